//! LLaVA-1.5 (`llava`): CLIP, an MLP of two layers, a Llama decoder.
//!
//! Particular to it: the feature layer may be a list (hidden states side by side), strategy `full`
//! keeps the class row as a token, every picture has the same number of tokens in raster order and
//! no structural token.
//!
//! Source: `modeling_llava` and `processing_llava` of transformers 5.24.

use secateur_core::error::{ConfigError, RunError};
use secateur_core::model::{ModelInfo, Pixels, VisualLayout};
use serde_json::{Value, json};

use crate::blocks::family::{Blueprint, Common, inside_vocabulary, pictures_only};
use crate::blocks::layout::LayoutBuilder;
use crate::blocks::projector::ProjectorConfig;
use crate::config::{
    ConfigSource, DecoderDefaults, activation, decoder, feature_layers, token_id, vision,
};

/// Template of the published checkpoints.
pub(crate) const TEMPLATE: &str = "{% for m in messages %}{{ m.role | upper }}: \
    {% for c in m.content if c.type == 'image' %}<image>\n{% endfor %}\
    {% for c in m.content if c.type == 'text' %}{{ c.text }} {% endfor %}\
    {% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}\
    {% if add_generation_prompt %}ASSISTANT:{% endif %}";

/// CLIP-L/14-336, where a file has no vision configuration.
pub(crate) fn default_vision() -> Value {
    json!({
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768
    })
}

#[derive(Debug)]
struct Llava {
    common: Common,
    keep_cls: bool,
}

/// Whether the class row of a tower that has one (`cls`) is kept as a token.
///
/// # Errors
/// If the strategy is neither `default` nor `full`, or would drop a row that is no class row.
pub(crate) fn keeps_cls(
    source: &ConfigSource<'_>,
    default: &str,
    cls: bool,
) -> Result<bool, ConfigError> {
    const KEY: &str = "vision_feature_select_strategy";
    match source.root.text(KEY, default)?.as_str() {
        "default" if cls => Ok(false),
        "full" => Ok(cls),
        "default" => {
            Err(source.root.error(KEY, "`full`: the tower has no class row to drop", "`default`"))
        }
        other => Err(source.root.error(KEY, "`default` or `full`", &format!("`{other}`"))),
    }
}

/// What LLaVA-1.5 and LLaVA-NeXT have in common: everything but the layout.
pub(crate) fn common(source: &ConfigSource<'_>) -> Result<(Common, usize), ConfigError> {
    let root = &source.root;
    let defaults = DecoderDefaults { kind: "llama", ..DecoderDefaults::default() };
    let decoder = decoder(&source.text()?, defaults)?;
    let tower = source.vision("clip_vision_model", default_vision())?;
    let sizes = vision(&tower.fields()?, &tower.kind)?;
    let features = feature_layers(root, "vision_feature_layer", -2, sizes.layers)?;
    const IMAGE: [&str; 2] = ["image_token_index", "image_token_id"];
    let image_token = token_id(root, &IMAGE, 32000)?;
    inside_vocabulary(root, IMAGE[0], image_token, decoder.vocab)?;
    let projector = ProjectorConfig::mlp(
        sizes.width * features.layers.len(),
        decoder.hidden,
        activation(root, "projector_hidden_act", "gelu")?,
        root.flag("multimodal_projector_bias", true)?,
    );
    let encoder = sizes.info(&tower.kind, &features);
    let side = sizes.side();
    let common = Common {
        info: ModelInfo { one_to_one: true, ..source.info(encoder, decoder.info(), side * side)? },
        tower: tower.tower(features.layers, false),
        decoder,
        image_token,
        video_token: None,
        projector,
        levels: Vec::new(),
        newline: false,
    };
    Ok((common, side))
}

/// Reads the configuration.
///
/// # Errors
/// A field that cannot be.
pub(crate) fn plan(source: &ConfigSource<'_>) -> Result<Box<dyn Blueprint>, ConfigError> {
    let (mut common, _) = common(source)?;
    let keep_cls = keeps_cls(source, "default", common.info.encoder.cls)?;
    common.info.visual_tokens += usize::from(keep_cls);
    Ok(Box::new(Llava { common, keep_cls }))
}

impl Blueprint for Llava {
    fn common(&self) -> &Common {
        &self.common
    }

    fn layout(&self, pixels: &[&Pixels]) -> Result<VisualLayout, RunError> {
        pictures_only(pixels, "LLaVA-1.5")?;
        let mut builder = LayoutBuilder::new(self.common.info.encoder.cls);
        for (clip, pixels) in pixels.iter().enumerate() {
            for crop in builder.crops(pixels, clip) {
                if self.keep_cls {
                    builder.raster_with_cls(&crop);
                } else {
                    builder.raster(&crop);
                }
            }
        }
        Ok(builder.finish())
    }
}
