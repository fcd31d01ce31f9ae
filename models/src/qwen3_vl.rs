//! Qwen3-VL, dense (`qwen3_vl`): deepstack levels, interleaved M-RoPE, timestamps before frames.
//!
//! Particular to it: rows of earlier tower layers pass mergers of their own (norm after four are
//! put side by side) and are added behind the first decoder layers; every frame pair of a video is
//! a lattice of its own with its time as text in front.
//!
//! Source: `modeling_qwen3_vl` and `processing_qwen3_vl` of transformers 5.24. Deviation V3: the
//! template's outer `<|vision_start|>...<|vision_end|>` around a video is taken away, as releases
//! before it did.

use secateur_core::error::{ConfigError, RunError};
use secateur_core::model::{Pixels, Positions, Prompt, VisualLayout};
use secateur_core::ops::{Activation, NormKind};

use crate::blocks::family::{Blueprint, Common};
use crate::blocks::layout::tokens_of_clips;
use crate::blocks::mrope::{self, Lattice};
use crate::blocks::projector::{ProjectorConfig, ProjectorNorm};
use crate::config::{ConfigSource, DecoderDefaults, VideoAdvance, decoder, list, token_id};
use crate::qwen2_vl::{QwenVision, UNKNOWN_FPS, merged_layout, placeholder_ids, text_fields};
use crate::text::TextModel;

/// ChatML without a system line.
pub(crate) const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n\
    {% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>\
    {% elif c.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>\
    {% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

#[derive(Debug)]
struct Qwen3Vl {
    common: Common,
    merge: usize,
    temporal: usize,
    vision_start: u32,
    vision_end: u32,
}

/// Reads the configuration.
///
/// # Errors
/// A field that cannot be.
pub(crate) fn plan(source: &ConfigSource<'_>) -> Result<Box<dyn Blueprint>, ConfigError> {
    let root = &source.root;
    let tower = source.vision_of("qwen3_vl")?;
    let fields = tower.fields()?;
    let mut vision = QwenVision::read(&fields, "hidden_size", 16)?;
    // Class defaults that differ from those of the families before it.
    vision.width = fields.size("hidden_size", 1..=1 << 16, Some(1152))?;
    vision.depth = fields.size("depth", 1..=1024, Some(27))?;
    let defaults =
        DecoderDefaults { kind: "qwen3_vl_text", forced: true, ..DecoderDefaults::default() };
    let decoder = decoder(&text_fields(source)?, defaults)?;
    QwenVision::check_output(&fields, "out_hidden_size", decoder.hidden)?;
    const DEEP: &str = "deepstack_visual_indexes";
    let deep = list(&fields, DEEP, 0..=vision.depth - 1)?.unwrap_or_else(|| vec![8, 16, 24]);
    if deep.len() > decoder.layers {
        let expected =
            format!("at most one entry for each of the {} decoder layers", decoder.layers);
        return Err(fields.error(DEEP, &expected, &format!("{} entries", deep.len())));
    }
    let norm = ProjectorNorm { name: "norm", kind: NormKind::Layer, eps: 1e-6 };
    let projector = vision.merger(decoder.hidden, norm, ["linear_fc1", "linear_fc2"]);
    // The tower gives its levels by rising block, whatever the order of the list; each goes through
    // the merger at the place where the list first names its block.
    let mut blocks = deep.clone();
    blocks.sort_unstable();
    blocks.dedup();
    let merger = |block: &usize| deep.iter().position(|d| d == block).unwrap_or_default();
    let levels = blocks.iter().map(merger).map(|j| ProjectorConfig {
        prefix: format!("projector.deepstack.{j}."),
        each: None,
        joined: projector.each,
        ..projector.clone()
    });
    let (image_token, video_token) = placeholder_ids(root, decoder.vocab)?;
    debug_assert_eq!(projector.linears[1].3, Activation::None);
    let common = Common {
        info: source.info(
            vision.info(&tower.kind, (0..vision.depth).collect()),
            decoder.info(),
            vision.own_tokens(),
        )?,
        tower: tower.tower(vec![-1], false),
        decoder,
        image_token,
        video_token: Some(video_token),
        levels: levels.collect(),
        projector,
        newline: false,
    };
    Ok(Box::new(Qwen3Vl {
        common,
        merge: vision.merge,
        temporal: vision.temporal,
        vision_start: token_id(root, &["vision_start_token_id"], 151_652)?,
        vision_end: token_id(root, &["vision_end_token_id"], 151_653)?,
    }))
}

impl Qwen3Vl {
    /// Seconds of each temporal patch: as given, else from the rate, where an incomplete last
    /// patch repeats its last frame.
    fn times(&self, pixels: &Pixels) -> Vec<f64> {
        let patches = pixels.crops.len();
        if pixels.times_s.len() == patches {
            return pixels.times_s.clone();
        }
        let fps = pixels.fps.filter(|f| f.is_finite() && *f > 0.0).unwrap_or(UNKNOWN_FPS);
        let (first, last) = (0, self.temporal - 1);
        let middle = (first + last) as f64 / 2.0;
        (0..patches).map(|i| ((i * self.temporal) as f64 + middle) / fps).collect()
    }
}

impl Blueprint for Qwen3Vl {
    fn common(&self) -> &Common {
        &self.common
    }

    fn layout(&self, pixels: &[&Pixels]) -> Result<VisualLayout, RunError> {
        Ok(merged_layout(pixels, self.merge))
    }

    fn expand(
        &self,
        prompt: &str,
        pixels: &[&Pixels],
        layout: &VisualLayout,
        text: &TextModel,
    ) -> Result<String, RunError> {
        let placeholders = self.placeholders(text)?;
        let start = text.tokenizer.require(self.vision_start, "vision start token")?;
        let end = text.tokenizer.require(self.vision_end, "vision end token")?;
        let counts = tokens_of_clips(layout, pixels.len());
        let prompt = match &placeholders.video {
            Some(video) => prompt.replace(&format!("{start}{video}{end}"), video),
            None => prompt.to_owned(),
        };
        placeholders.replace(&prompt, pixels, |clip, of_clip| {
            let Some(video) = placeholders.video.as_ref().filter(|_| of_clip.video) else {
                return Ok(placeholders.image.repeat(counts[clip]));
            };
            let times = self.times(of_clip);
            let pads = video.repeat(counts[clip] / times.len().max(1));
            Ok(times.iter().map(|t| format!("<{t:.1} seconds>{start}{pads}{end}")).collect())
        })
    }

    fn positions(&self, prompt: &Prompt, pixels: &[&Pixels]) -> Result<Positions, RunError> {
        let merge = self.merge as u32;
        let lattices: Vec<Lattice> = pixels
            .iter()
            .flat_map(|p| &p.crops)
            .map(|grid| Lattice {
                frames: 1,
                rows: grid.rows / merge,
                cols: grid.cols / merge,
                interval: 1.0,
                video: false,
            })
            .collect();
        mrope::positions(prompt, &lattices, VideoAdvance::MaxPlusOne)
    }
}
