//! PaliGemma 1 and 2 (`paligemma`): SigLIP with its final norm, one matrix, Gemma or Gemma2.
//!
//! Particular to it: the whole prompt sees itself (prefix-LM), positions start at 1, the prompt is
//! `<image>... <bos>text\n` and gets its BOS from the expansion and not from the tokenizer.
//!
//! Source: `modeling_paligemma` and `processing_paligemma` of transformers 5.24. Deviation D5:
//! picture rows enter unscaled (the scale is the token embedding's).

use secateur_core::error::{ConfigError, RunError};
use secateur_core::model::{ModelInfo, Pixels, Positions, Prompt, VisualLayout};
use secateur_core::ops::Activation;
use serde_json::json;

use crate::blocks::family::{Blueprint, Common, pictures_only, positions_from};
use crate::blocks::layout::{LayoutBuilder, tokens_of_clips};
use crate::blocks::projector::ProjectorConfig;
use crate::config::{ConfigSource, DecoderDefaults, FeatureLayers, decoder, token_id, vision};
use crate::text::TextModel;

/// Pretrained checkpoints have no chat: pictures, then the words of the last turn.
pub(crate) const TEMPLATE: &str = "{% set parts = messages[-1].content %}\
    {% for c in parts if c.type == 'image' %}<image>{% endfor %}\
    {% for c in parts if c.type == 'text' %}{{ c.text }}{% endfor %}";

#[derive(Debug)]
struct PaliGemma {
    common: Common,
}

/// Reads the configuration.
///
/// # Errors
/// A field that cannot be.
pub(crate) fn plan(source: &ConfigSource<'_>) -> Result<Box<dyn Blueprint>, ConfigError> {
    let root = &source.root;
    let defaults = DecoderDefaults { kind: "gemma", ..DecoderDefaults::default() };
    let mut decoder = decoder(&source.text()?, defaults)?;
    decoder.prefix_lm = true;
    let so400m = json!({
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
        "num_attention_heads": 16, "image_size": 224, "patch_size": 14
    });
    let tower = source.vision("siglip_vision_model", so400m)?;
    let sizes = vision(&tower.fields()?, &tower.kind)?;
    let features = FeatureLayers::last(sizes.layers);
    let side = sizes.side();
    let projector = ProjectorConfig {
        prefix: "projector.".into(),
        width: sizes.width,
        group: 1,
        each: None,
        joined: None,
        linears: vec![("linear", decoder.hidden, true, Activation::None)],
    };
    let common = Common {
        info: ModelInfo {
            one_to_one: true,
            ..source.info(sizes.info(&tower.kind, &features), decoder.info(), side * side)?
        },
        tower: tower.tower(features.layers, true),
        // May lie outside the embedding: its row is never read.
        image_token: token_id(root, &["image_token_index", "image_token_id"], 256_000)?,
        decoder,
        video_token: None,
        projector,
        levels: Vec::new(),
        newline: false,
    };
    Ok(Box::new(PaliGemma { common }))
}

impl Blueprint for PaliGemma {
    fn common(&self) -> &Common {
        &self.common
    }

    fn layout(&self, pixels: &[&Pixels]) -> Result<VisualLayout, RunError> {
        pictures_only(pixels, "PaliGemma")?;
        let mut builder = LayoutBuilder::new(self.common.info.encoder.cls);
        for (clip, pixels) in pixels.iter().enumerate() {
            for crop in builder.crops(pixels, clip) {
                builder.raster(&crop);
            }
        }
        Ok(builder.finish())
    }

    /// All pictures stand in front of the words: a prompt without placeholders gets one a picture,
    /// and BOS stands behind the last.
    fn expand(
        &self,
        prompt: &str,
        pixels: &[&Pixels],
        layout: &VisualLayout,
        text: &TextModel,
    ) -> Result<String, RunError> {
        let placeholders = self.placeholders(text)?;
        let bos = text.tokenizer.special().get("bos_token").unwrap_or("<bos>");
        let image = placeholders.image.as_str();
        let mut prompt = match placeholders.kinds(prompt).len() {
            0 => format!("{}{prompt}", image.repeat(pixels.len())),
            _ => prompt.to_owned(),
        };
        let words = prompt.rfind(image).map_or(0, |at| at + image.len());
        prompt.insert_str(words, bos);
        prompt.push('\n');
        let counts = tokens_of_clips(layout, pixels.len());
        placeholders.replace(&prompt, pixels, |clip, _| Ok(image.repeat(counts[clip])))
    }

    fn adds_specials(&self) -> bool {
        false
    }

    fn positions(&self, prompt: &Prompt, _pixels: &[&Pixels]) -> Result<Positions, RunError> {
        Ok(positions_from(1, prompt.slots.len()))
    }
}
