//! InternVL 2.5 and 3 in the transformers layout (`internvl`): InternViT, pixel unshuffle, Qwen2 or
//! Llama.
//!
//! Particular to it: a visual token is a square of patches side by side, pictures are tiles with a
//! thumbnail last, each placeholder becomes `<img>` and `</img>` around its tokens, and a video is
//! a line a frame.
//!
//! Source: `modeling_internvl` and `processing_internvl` of transformers 5.24. The original
//! repositories (`internvl_chat`) name tensors otherwise and are not read.

use secateur_core::error::{ConfigError, RunError};
use secateur_core::model::{Pixels, VisualLayout};
use secateur_core::ops::{Activation, NormKind};

use crate::blocks::family::{Blueprint, Common, inside_vocabulary};
use crate::blocks::layout::{BlockOrder, LayoutBuilder, tokens_of_clips};
use crate::blocks::projector::{ProjectorConfig, ProjectorNorm};
use crate::blocks::prompt::Placeholders;
use crate::config::{
    ConfigSource, DecoderDefaults, activation, decoder, feature_layers, token_id, vision,
};
use crate::text::TextModel;

/// ChatML, pictures first.
pub(crate) const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n\
    {% for c in m.content if c.type == 'image' %}<IMG_CONTEXT>\n{% endfor %}\
    {% for c in m.content if c.type == 'video' %}<video>\n{% endfor %}\
    {% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

#[derive(Debug)]
struct InternVl {
    common: Common,
    /// Patches along a side of a token.
    side: u32,
}

/// Reads the configuration.
///
/// # Errors
/// A field that cannot be.
pub(crate) fn plan(source: &ConfigSource<'_>) -> Result<Box<dyn Blueprint>, ConfigError> {
    let root = &source.root;
    let defaults = DecoderDefaults { kind: "qwen2", ..DecoderDefaults::default() };
    let decoder = decoder(&source.text()?, defaults)?;
    let tower = source.vision_of("internvl_vision")?;
    let sizes = vision(&tower.fields()?, &tower.kind)?;
    let features = feature_layers(root, "vision_feature_layer", -1, sizes.layers)?;
    // Only the last state passes the tower's optional final norm.
    let final_norm = features.layers == [-1];
    let ratio = root.number("downsample_ratio", 1e-3..=1.0, Some(0.5))?;
    let side = (1.0 / ratio).round() as usize;
    if (side as f64 * ratio - 1.0).abs() > 1e-6 || !sizes.side().is_multiple_of(side) {
        let expected = format!("1 / n, n a divisor of the {} patches along a side", sizes.side());
        return Err(root.error("downsample_ratio", &expected, &ratio.to_string()));
    }
    let image_token = token_id(root, &["image_token_id"], 151_667)?;
    inside_vocabulary(root, "image_token_id", image_token, decoder.vocab)?;
    let hidden = decoder.hidden;
    let act = activation(root, "projector_hidden_act", "gelu")?;
    let projector = ProjectorConfig {
        prefix: "projector.".into(),
        width: sizes.width * features.layers.len(),
        group: side * side,
        each: None,
        joined: Some(ProjectorNorm { name: "layer_norm", kind: NormKind::Layer, eps: 1e-5 }),
        linears: vec![
            ("linear_1", hidden, true, act),
            ("linear_2", hidden, true, Activation::None),
        ],
    };
    let cells = sizes.side() / side;
    let common = Common {
        info: source.info(sizes.info(&tower.kind, &features), decoder.info(), cells * cells)?,
        tower: tower.tower(features.layers, final_norm),
        decoder,
        image_token,
        video_token: None,
        projector,
        levels: Vec::new(),
        newline: false,
    };
    Ok(Box::new(InternVl { common, side: side as u32 }))
}

impl Blueprint for InternVl {
    fn common(&self) -> &Common {
        &self.common
    }

    fn layout(&self, pixels: &[&Pixels]) -> Result<VisualLayout, RunError> {
        let mut builder = LayoutBuilder::new(self.common.info.encoder.cls);
        for (clip, pixels) in pixels.iter().enumerate() {
            for crop in builder.crops(pixels, clip) {
                builder.squares(&crop, self.side, BlockOrder::Raster);
            }
        }
        Ok(builder.finish())
    }

    fn placeholders(&self, text: &TextModel) -> Result<Placeholders, RunError> {
        let image = text.tokenizer.require(self.common.image_token, "image token")?;
        let special = text.tokenizer.special();
        Ok(Placeholders {
            image,
            video: Some(special.get("video_token").unwrap_or("<video>").to_owned()),
        })
    }

    fn expand(
        &self,
        prompt: &str,
        pixels: &[&Pixels],
        layout: &VisualLayout,
        text: &TextModel,
    ) -> Result<String, RunError> {
        let placeholders = self.placeholders(text)?;
        let special = text.tokenizer.special();
        let start = special.get("start_image_token").unwrap_or("<img>");
        let end = special.get("end_image_token").unwrap_or("</img>");
        let counts = tokens_of_clips(layout, pixels.len());
        placeholders.replace(prompt, pixels, |clip, of_clip| {
            let around =
                |tokens: usize| format!("{start}{}{end}", placeholders.image.repeat(tokens));
            if !of_clip.video {
                return Ok(around(counts[clip]));
            }
            let frames = of_clip.crops.len().max(1);
            let lines: Vec<String> = (1..=frames)
                .map(|n| format!("Frame{n}: {}", around(counts[clip] / frames)))
                .collect();
            Ok(lines.join("\n"))
        })
    }
}
