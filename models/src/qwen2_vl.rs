//! Qwen2-VL and Qwen2.5-VL (`qwen2_vl`, `qwen2_5_vl`): patch-row towers with a 2x2 merger, Qwen2
//! decoders with M-RoPE in chunks.
//!
//! Particular to them: files are flat or nested, the merger normalises each patch before four are
//! put side by side (layer norm in the first, RMS in the second), and the second gives the
//! temporal axis of a video real time.
//!
//! Source: `modeling_qwen2_vl`, `modeling_qwen2_5_vl` and their processors in transformers 5.24.
//! Deviations: V1 (text behind a video) is an option, V2 and V7 as in that release.

use secateur_core::error::{ConfigError, RunError};
use secateur_core::files::Fields;
use secateur_core::model::{
    EncoderInfo, Pixels, Positions, Prompt, SignalKind, VisualLayout, Withheld,
};
use secateur_core::ops::{Activation, NormKind};

use crate::blocks::family::{Blueprint, Common, inside_vocabulary};
use crate::blocks::layout::{BlockOrder, LayoutBuilder};
use crate::blocks::mrope::{self, Lattice};
use crate::blocks::projector::{ProjectorConfig, ProjectorNorm};
use crate::config::{
    ConfigSource, DecoderDefaults, VideoAdvance, VisionSource, decoder, list, token_id,
};

/// ChatML with the default system line.
pub(crate) const TEMPLATE: &str = "{% for m in messages %}\
    {% if loop.first and m.role != 'system' %}<|im_start|>system\n\
    You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n\
    {% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>\
    {% elif c.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>\
    {% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Frames a second that a video without a rate is taken to have.
pub(crate) const UNKNOWN_FPS: f64 = 24.0;

/// What the three Qwen families read of a vision configuration.
#[derive(Debug)]
pub(crate) struct QwenVision {
    /// Width of a tower row.
    pub(crate) width: usize,
    pub(crate) depth: usize,
    pub(crate) heads: usize,
    /// Patches along a side of a token.
    pub(crate) merge: usize,
    /// Frames of a temporal patch.
    pub(crate) temporal: usize,
    pub(crate) patch: usize,
}

/// Side of the square picture that reports count tokens of, pixels.
const OWN_SIDE: usize = 448;

impl QwenVision {
    /// Reads sizes; `width_key` is `embed_dim` in Qwen2-VL and `hidden_size` later.
    pub(crate) fn read(
        fields: &Fields<'_>,
        width_key: &str,
        patch: usize,
    ) -> Result<Self, ConfigError> {
        let vision = Self {
            width: fields.size(width_key, 1..=1 << 16, Some(1280))?,
            depth: fields.size("depth", 1..=1024, Some(32))?,
            heads: fields.size("num_heads", 1..=1024, Some(16))?,
            merge: fields.size("spatial_merge_size", 1..=16, Some(2))?,
            temporal: fields.size("temporal_patch_size", 1..=64, Some(2))?,
            patch: fields.size("patch_size", 1..=1024, Some(patch))?,
        };
        if !vision.width.is_multiple_of(vision.heads) {
            let expected = format!("a divisor of `{width_key}` {}", vision.width);
            return Err(fields.error("num_heads", &expected, &vision.heads.to_string()));
        }
        Ok(vision)
    }

    /// The tower's output must be the decoder's width.
    pub(crate) fn check_output(
        fields: &Fields<'_>,
        key: &str,
        hidden: usize,
    ) -> Result<(), ConfigError> {
        let output = fields.size(key, 1..=1 << 20, Some(hidden))?;
        if output == hidden {
            return Ok(());
        }
        let expected = format!("the decoder's width {hidden}");
        Err(fields.error(key, &expected, &output.to_string()))
    }

    pub(crate) fn info(&self, kind: &str, full_attention_layers: Vec<usize>) -> EncoderInfo {
        EncoderInfo {
            tower: kind.to_owned(),
            layers: self.depth,
            file_layers: self.depth,
            heads: self.heads,
            width: self.width,
            cls: false,
            full_attention_layers,
            withheld: vec![Withheld::all(
                SignalKind::PoolingAttention,
                format!("the tower `{kind}` has no pooling head"),
            )],
        }
    }

    /// Visual tokens of a square picture of [`OWN_SIDE`].
    pub(crate) fn own_tokens(&self) -> usize {
        let factor = self.patch * self.merge;
        ((OWN_SIDE as f64 / factor as f64).round_ties_even() as usize).max(1).pow(2)
    }

    /// The merger: each patch normalised, `merge²` side by side, two matrices.
    pub(crate) fn merger(
        &self,
        hidden: usize,
        norm: ProjectorNorm,
        linears: [&'static str; 2],
    ) -> ProjectorConfig {
        let group = self.merge * self.merge;
        ProjectorConfig {
            prefix: "projector.".into(),
            width: self.width,
            group,
            each: Some(norm),
            joined: None,
            linears: vec![
                (linears[0], self.width * group, true, Activation::GeluErf),
                (linears[1], hidden, true, Activation::None),
            ],
        }
    }
}

/// Ids of the placeholders, which all Qwen families name alike.
pub(crate) fn placeholder_ids(root: &Fields<'_>, vocab: usize) -> Result<(u32, u32), ConfigError> {
    let image = token_id(root, &["image_token_id"], 151_655)?;
    let video = token_id(root, &["video_token_id"], 151_656)?;
    inside_vocabulary(root, "image_token_id", image, vocab)?;
    inside_vocabulary(root, "video_token_id", video, vocab)?;
    Ok((image, video))
}

/// One token for each square of patches, which are consecutive tower rows.
pub(crate) fn merged_layout(pixels: &[&Pixels], merge: usize) -> VisualLayout {
    let mut builder = LayoutBuilder::new(false);
    for (clip, pixels) in pixels.iter().enumerate() {
        for crop in builder.crops(pixels, clip) {
            builder.squares(&crop, merge as u32, BlockOrder::Blocks);
        }
    }
    builder.finish()
}

/// The text configuration: nested, or the root of the old flat files.
pub(crate) fn text_fields<'a>(source: &ConfigSource<'a>) -> Result<Fields<'a>, ConfigError> {
    let nested = source.text()?;
    Ok(if nested.is_present() { nested } else { source.root.clone() })
}

#[derive(Debug)]
struct Qwen2Vl {
    common: Common,
    merge: usize,
    /// Temporal positions of a second, times the frames of a temporal patch; `None`: a step a
    /// temporal patch.
    per_second: Option<f64>,
    advance: VideoAdvance,
}

/// Reads the configuration of Qwen2-VL.
///
/// # Errors
/// A field that cannot be.
pub(crate) fn plan(source: &ConfigSource<'_>) -> Result<Box<dyn Blueprint>, ConfigError> {
    let tower = source.vision_of("qwen2_vl")?;
    let fields = tower.fields()?;
    let vision = QwenVision::read(&fields, "embed_dim", 14)?;
    let norm = ProjectorNorm { name: "ln_q", kind: NormKind::Layer, eps: 1e-6 };
    let full = (0..vision.depth).collect();
    blueprint(source, &tower, "qwen2_vl_text", vision, norm, full, None, "hidden_size")
}

/// Reads the configuration of Qwen2.5-VL.
///
/// # Errors
/// A field that cannot be.
pub(crate) fn plan_2_5(source: &ConfigSource<'_>) -> Result<Box<dyn Blueprint>, ConfigError> {
    let tower = source.vision_of("qwen2_5_vl")?;
    let fields = tower.fields()?;
    let vision = QwenVision::read(&fields, "hidden_size", 14)?;
    let norm = ProjectorNorm { name: "ln_q", kind: NormKind::Rms, eps: 1e-6 };
    const FULL: &str = "fullatt_block_indexes";
    let full = list(&fields, FULL, 0..=vision.depth - 1)?.unwrap_or_else(|| vec![7, 15, 23, 31]);
    let full = full.into_iter().filter(|&l| l < vision.depth).collect();
    let rate = fields.number("tokens_per_second", 0.0..=1e4, Some(4.0))?;
    let per_second = Some(rate * vision.temporal as f64);
    blueprint(source, &tower, "qwen2_5_vl_text", vision, norm, full, per_second, "out_hidden_size")
}

#[allow(clippy::too_many_arguments, reason = "what tells the two families apart, listed once")]
fn blueprint(
    source: &ConfigSource<'_>,
    tower: &VisionSource,
    kind: &'static str,
    vision: QwenVision,
    norm: ProjectorNorm,
    full_attention: Vec<usize>,
    per_second: Option<f64>,
    output_key: &str,
) -> Result<Box<dyn Blueprint>, ConfigError> {
    let defaults = DecoderDefaults { kind, forced: true, ..DecoderDefaults::default() };
    let decoder = decoder(&text_fields(source)?, defaults)?;
    QwenVision::check_output(&tower.fields()?, output_key, decoder.hidden)?;
    let (image_token, video_token) = placeholder_ids(&source.root, decoder.vocab)?;
    let common = Common {
        info: source.info(
            vision.info(&tower.kind, full_attention),
            decoder.info(),
            vision.own_tokens(),
        )?,
        tower: tower.tower(vec![-1], false),
        image_token,
        video_token: Some(video_token),
        projector: vision.merger(decoder.hidden, norm, ["mlp.0", "mlp.2"]),
        decoder,
        levels: Vec::new(),
        newline: false,
    };
    let advance = source.options.video_advance;
    Ok(Box::new(Qwen2Vl { common, merge: vision.merge, per_second, advance }))
}

impl Blueprint for Qwen2Vl {
    fn common(&self) -> &Common {
        &self.common
    }

    fn layout(&self, pixels: &[&Pixels]) -> Result<VisualLayout, RunError> {
        Ok(merged_layout(pixels, self.merge))
    }

    fn positions(&self, prompt: &Prompt, pixels: &[&Pixels]) -> Result<Positions, RunError> {
        let merge = self.merge as u32;
        let lattices: Vec<Lattice> = pixels
            .iter()
            .filter_map(|p| {
                let first = p.crops.first()?;
                let interval = match self.per_second {
                    Some(positions) if p.video => {
                        let fps = p.fps.filter(|f| f.is_finite() && *f > 0.0);
                        positions / fps.unwrap_or(UNKNOWN_FPS)
                    }
                    _ => 1.0,
                };
                Some(Lattice {
                    frames: p.crops.len() as u32,
                    rows: first.rows / merge,
                    cols: first.cols / merge,
                    interval,
                    video: p.video,
                })
            })
            .collect();
        mrope::positions(prompt, &lattices, self.advance)
    }
}
