//! LLaVA-OneVision (`llava_onevision`): SigLIP and Qwen2; pictures, several pictures, video.
//!
//! Particular to it: a large map of tiles is shrunk bilinearly to about `anyres_max` tiles after
//! its padding is off; a picture that the processor made one padded square of (the form for
//! several pictures) has one newline at its end; frames of a video are pooled to half the side and
//! the whole video has one newline.
//!
//! Source: `modeling_llava_onevision` and `processing_llava_onevision` of transformers 5.24.
//! Features are hidden states before the final norm (feature layer -1 of a tower that is cut).

use secateur_core::error::{ConfigError, RunError};
use secateur_core::model::{Pixels, TokenSource, VisualLayout};
use serde_json::json;

use crate::blocks::anyres::{Map, bilinear, blend};
use crate::blocks::family::{Blueprint, Common, inside_vocabulary};
use crate::blocks::layout::{Crop, LayoutBuilder};
use crate::blocks::projector::ProjectorConfig;
use crate::config::{
    ConfigSource, DecoderDefaults, activation, decoder, feature_layers, pinpoints, token_id, vision,
};
use crate::llava::keeps_cls;
use crate::llava_next::{base_and_tiles, own_tiles, square_map};

/// ChatML, pictures first.
pub(crate) const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n\
    {% for c in m.content if c.type == 'image' %}<image>\n{% endfor %}\
    {% for c in m.content if c.type == 'video' %}<video>\n{% endfor %}\
    {% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

#[derive(Debug)]
struct Onevision {
    common: Common,
    /// Tiles whose cells a map keeps at most.
    max_tiles: f64,
}

/// Reads the configuration.
///
/// # Errors
/// A field that cannot be.
pub(crate) fn plan(source: &ConfigSource<'_>) -> Result<Box<dyn Blueprint>, ConfigError> {
    let root = &source.root;
    let defaults = DecoderDefaults { kind: "qwen2", ..DecoderDefaults::default() };
    let decoder = decoder(&source.text()?, defaults)?;
    let so400m = json!({
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26,
        "num_attention_heads": 16, "image_size": 384, "patch_size": 14, "vision_use_head": false
    });
    let tower = source.vision("siglip_vision_model", so400m)?;
    let sizes = vision(&tower.fields()?, &tower.kind)?;
    let features = feature_layers(root, "vision_feature_layer", -1, sizes.layers)?;
    if keeps_cls(source, "full", sizes.cls)? {
        let expected = "a tower without a class row";
        return Err(root.error("vision_config.model_type", expected, &format!("`{}`", tower.kind)));
    }
    const IMAGE: [&str; 2] = ["image_token_index", "image_token_id"];
    const VIDEO: [&str; 2] = ["video_token_index", "video_token_id"];
    let image_token = token_id(root, &IMAGE, 151_646)?;
    let video_token = token_id(root, &VIDEO, 151_647)?;
    inside_vocabulary(root, IMAGE[0], image_token, decoder.vocab)?;
    inside_vocabulary(root, VIDEO[0], video_token, decoder.vocab)?;
    let projector = ProjectorConfig::mlp(
        sizes.width * features.layers.len(),
        decoder.hidden,
        activation(root, "projector_hidden_act", "gelu")?,
        root.flag("multimodal_projector_bias", true)?,
    );
    let squares: Vec<[usize; 2]> =
        (1..=6).flat_map(|i| (1..=6).map(move |j| [384 * i, 384 * j])).collect();
    let side = sizes.side();
    let map = square_map(side as u32, own_tiles(&pinpoints(root, &squares)?));
    let tokens = side * side + (map.0 * (map.1 + 1)) as usize;
    let common = Common {
        info: source.info(sizes.info(&tower.kind, &features), decoder.info(), tokens)?,
        tower: tower.tower(features.layers, false),
        decoder,
        image_token,
        video_token: Some(video_token),
        projector,
        levels: Vec::new(),
        newline: true,
    };
    Ok(Box::new(Onevision { common, max_tiles: max_tiles(source)? }))
}

/// The number of `anyres_max_9`.
fn max_tiles(source: &ConfigSource<'_>) -> Result<f64, ConfigError> {
    const KEY: &str = "vision_aspect_ratio";
    let name = source.root.text(KEY, "anyres_max_9")?;
    name.strip_prefix("anyres_max_")
        .and_then(|n| n.parse::<u32>().ok())
        .filter(|n| (1..=1024).contains(n))
        .map(f64::from)
        .ok_or_else(|| source.root.error(KEY, "`anyres_max_` and a number", &format!("`{name}`")))
}

impl Onevision {
    /// The whole picture, then the map of its tiles, shrunk where it is large.
    fn picture(&self, builder: &mut LayoutBuilder, crops: &[Crop]) -> Result<(), RunError> {
        let (base, tiles) = base_and_tiles(crops)?;
        let base_grid = builder.raster(base);
        if tiles.is_empty() {
            builder.newline(base_grid, base.grid.rows - 1);
            return Ok(());
        }
        let map = Map::new(tiles)?;
        let (rows, cols) = (map.rows.len() as u32, map.cols.len() as u32);
        let (h, w) = (f64::from(rows), f64::from(cols));
        let cells = f64::from(base.grid.rows * base.grid.cols);
        let ratio = (h * w / (self.max_tiles * cells)).sqrt();
        if ratio <= 1.1 {
            let grid = builder.grid(map.grid(rows, cols));
            for row in 0..rows {
                for col in 0..cols {
                    builder.patch(grid, row, col, TokenSource::Rows(vec![map.row(row, col)]));
                }
                builder.newline(grid, row);
            }
            return Ok(());
        }
        // Floor division of f64, at least one cell.
        let shrunk = |n: f64| ((n / ratio).floor() as u32).max(1);
        let (new_rows, new_cols) = (shrunk(h), shrunk(w));
        let (ys, xs) = (bilinear(rows, new_rows), bilinear(cols, new_cols));
        let grid = builder.grid(map.grid(new_rows, new_cols));
        for (row, &y) in (0..).zip(&ys) {
            for (col, &x) in (0..).zip(&xs) {
                let terms = blend(y, x, |r, c| map.row(r, c));
                builder.patch(grid, row, col, TokenSource::Sum(terms));
            }
            builder.newline(grid, row);
        }
        Ok(())
    }
}

/// Frames pooled to half the side, one newline at the end.
fn video(builder: &mut LayoutBuilder, frames: &[Crop]) {
    let mut last = None;
    for frame in frames {
        let cells = frame.grid;
        let (rows, cols) = (cells.rows.div_ceil(2), cells.cols.div_ceil(2));
        let scale =
            [f64::from(cells.cols) / f64::from(cols), f64::from(cells.rows) / f64::from(rows)];
        let cell = [cells.cell[0] * scale[0], cells.cell[1] * scale[1]];
        let grid = builder.grid(secateur_core::clip::Grid { rows, cols, cell, ..cells });
        let (ys, xs) = (bilinear(cells.rows, rows), bilinear(cells.cols, cols));
        for (row, &y) in (0..).zip(&ys) {
            for (col, &x) in (0..).zip(&xs) {
                let terms = blend(y, x, |r, c| frame.patch(r, c));
                builder.patch(grid, row, col, TokenSource::Sum(terms));
            }
        }
        last = Some((grid, rows - 1));
    }
    if let Some((grid, row)) = last {
        builder.newline(grid, row);
    }
}

impl Blueprint for Onevision {
    fn common(&self) -> &Common {
        &self.common
    }

    fn layout(&self, pixels: &[&Pixels]) -> Result<VisualLayout, RunError> {
        let mut builder = LayoutBuilder::new(self.common.info.encoder.cls);
        for (clip, pixels) in pixels.iter().enumerate() {
            let crops = builder.crops(pixels, clip);
            if pixels.video {
                video(&mut builder, &crops);
            } else {
                self.picture(&mut builder, &crops)?;
            }
        }
        Ok(builder.finish())
    }
}
