//! LLaVA-NeXT 1.6 (`llava_next`): LLaVA with any-resolution tiles.
//!
//! Particular to it: the whole picture comes first, then the map of all tiles without its padding,
//! with a learnt newline behind every row.
//!
//! Source: `modeling_llava_next` and `processing_llava_next` of transformers 5.24 (merge type
//! `spatial_unpad`). Deviation D2: grid pinpoints are (height, width), as that port reads them.

use secateur_core::error::{ConfigError, RunError};
use secateur_core::model::{Pixels, TokenSource, VisualLayout};

use crate::blocks::anyres::{Map, unpadded};
use crate::blocks::family::{Blueprint, Common, pictures_only};
use crate::blocks::layout::{Crop, LayoutBuilder};
use crate::config::{ConfigSource, pinpoints};
use crate::llava;

/// Template of the checkpoints with a Mistral decoder.
pub(crate) const TEMPLATE: &str = "{% for m in messages %}{% if m.role == 'assistant' %}\
    {% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}</s>{% else %}[INST] \
    {% for c in m.content if c.type == 'image' %}<image>\n{% endfor %}\
    {% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %} [/INST]{% endif %}\
    {% endfor %}";

#[derive(Debug)]
struct LlavaNext {
    common: Common,
}

/// Reads the configuration.
///
/// # Errors
/// A field that cannot be.
pub(crate) fn plan(source: &ConfigSource<'_>) -> Result<Box<dyn Blueprint>, ConfigError> {
    let (mut common, side) = llava::common(source)?;
    if llava::keeps_cls(source, "default", common.info.encoder.cls)? {
        let expected = "`default`: tiles with their class rows cannot be put together";
        return Err(source.root.error("vision_feature_select_strategy", expected, "`full`"));
    }
    // Newlines are no tower rows.
    common.info.one_to_one = false;
    common.newline = true;
    let default = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]];
    let tiles = own_tiles(&pinpoints(&source.root, &default)?);
    let map = square_map(side as u32, tiles);
    common.info.visual_tokens = side * side + (map.0 * (map.1 + 1)) as usize;
    Ok(Box::new(LlavaNext { common }))
}

/// The pinpoint with the smallest area: what a square picture of the tile's size gets.
pub(crate) fn own_tiles(pinpoints: &[[usize; 2]]) -> [usize; 2] {
    let mut smallest = pinpoints[0];
    for p in pinpoints {
        if p[0] * p[1] < smallest[0] * smallest[1] {
            smallest = *p;
        }
    }
    smallest
}

/// Rows and columns left of the map of such a picture; a tile has `side x side` cells.
pub(crate) fn square_map(side: u32, [height, width]: [usize; 2]) -> (u32, u32) {
    let least = height.min(width).max(1);
    let (rows, cols) = ((height / least) as u32 * side, (width / least) as u32 * side);
    let (rows, cols) = unpadded(rows, cols, [1, 1]);
    (rows.len() as u32, cols.len() as u32)
}

/// The whole picture in front of its tiles.
///
/// # Errors
/// If there is no crop.
pub(crate) fn base_and_tiles(crops: &[Crop]) -> Result<(&Crop, &[Crop]), RunError> {
    crops.split_first().ok_or_else(|| RunError::Prompt("a picture has no crop".into()))
}

impl Blueprint for LlavaNext {
    fn common(&self) -> &Common {
        &self.common
    }

    fn layout(&self, pixels: &[&Pixels]) -> Result<VisualLayout, RunError> {
        pictures_only(pixels, "LLaVA-NeXT")?;
        let mut builder = LayoutBuilder::new(self.common.info.encoder.cls);
        for (clip, pixels) in pixels.iter().enumerate() {
            let crops = builder.crops(pixels, clip);
            let (base, tiles) = base_and_tiles(&crops)?;
            let base_grid = builder.raster(base);
            if tiles.is_empty() {
                builder.newline(base_grid, base.grid.rows - 1);
                continue;
            }
            let map = Map::new(tiles)?;
            let (rows, cols) = (map.rows.len() as u32, map.cols.len() as u32);
            let grid = builder.grid(map.grid(rows, cols));
            for row in 0..rows {
                for col in 0..cols {
                    builder.patch(grid, row, col, TokenSource::Rows(vec![map.row(row, col)]));
                }
                builder.newline(grid, row);
            }
        }
        Ok(builder.finish())
    }
}
