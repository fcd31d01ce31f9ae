//! Configurations: decoder and tower sizes with the defaults of their own classes.
//!
//! Invariants
//! - Every number is checked here, before a weight is read or a size multiplied: a field that
//!   cannot be is a [`ConfigError`] that names it.
//! - A sub-configuration that is given in part takes the defaults of its own class, not those
//!   that the family's configuration shows for an absent one.
//!
//! Source: configuration classes of transformers 5.24. `rope_parameters` (new files) and
//! `rope_scaling` with a top-level `rope_theta` (old files) are read alike; where both are there
//! the second counts, and nothing of the first.

mod decoder;
mod quantisation;
mod vision;

use secateur_core::error::ConfigError;
use secateur_core::files::{Fields, ModelFiles};
use secateur_core::model::{DecoderInfo, EncoderInfo, ModelInfo, TowerSpec};
use secateur_core::ops::Activation;
use serde_json::{Value, json};

pub(crate) use decoder::{DecoderDefaults, decoder};
pub(crate) use vision::{FeatureLayers, feature_layers, vision};

/// Largest width of anything.
const MAX_WIDTH: usize = 1 << 17;
/// Most layers.
const MAX_LAYERS: usize = 1024;
/// Most heads.
const MAX_HEADS: usize = 1024;
/// Largest vocabulary.
const MAX_VOCAB: usize = 1 << 24;
/// Longest context.
const MAX_CONTEXT: usize = 1 << 26;

/// Rules that a caller may choose where references disagree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelOptions {
    /// Where M-RoPE text goes on after a video.
    pub video_advance: VideoAdvance,
}

/// Deviation V1: where the text behind a video starts under M-RoPE (Qwen2-VL, Qwen2.5-VL).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VideoAdvance {
    /// One after the largest position so far: what the weights were trained with.
    MaxPlusOne,
    /// After the larger side of a frame, even if time went further: transformers 5.24, whose runs
    /// are the reference here. The two differ for long videos alone.
    #[default]
    MaxHw,
}

/// A model's configuration on the way to a blueprint.
#[derive(Clone, Debug)]
pub(crate) struct ConfigSource<'a> {
    pub(crate) files: &'a ModelFiles,
    pub(crate) root: Fields<'a>,
    pub(crate) options: ModelOptions,
    value: &'a Value,
}

impl<'a> ConfigSource<'a> {
    /// `value` is the content of `config.json` of `files`.
    ///
    /// # Errors
    /// If it is not an object.
    pub(crate) fn new(
        files: &'a ModelFiles,
        value: &'a Value,
        options: ModelOptions,
    ) -> Result<Self, ConfigError> {
        let root = Fields::root(files.label("config.json"), value)?;
        Ok(Self { files, root, options, value })
    }

    /// Refuses a model whose files say that its weights are quantised.
    ///
    /// # Errors
    /// [`ConfigError::Unsupported`] with the method.
    pub(crate) fn refuse_quantised(&self) -> Result<(), ConfigError> {
        quantisation::refuse(self)
    }

    /// The text configuration.
    pub(crate) fn text(&self) -> Result<Fields<'a>, ConfigError> {
        self.root.object("text_config")
    }

    /// The vision configuration as it stands in the file, or `default` where there is none; it
    /// names `kind` where the file does not.
    pub(crate) fn vision(&self, kind: &str, default: Value) -> Result<VisionSource, ConfigError> {
        // Checks that it is an object.
        self.root.object("vision_config")?;
        let mut value =
            self.value.get("vision_config").filter(|v| !v.is_null()).cloned().unwrap_or(default);
        let kind = value.get("model_type").and_then(Value::as_str).unwrap_or(kind).to_owned();
        value["model_type"] = json!(kind);
        Ok(VisionSource {
            file: self.root.file().to_owned(),
            kind,
            value: json!({ "vision_config": value }),
        })
    }

    /// The vision configuration of a family that has one kind of tower, whatever name the file
    /// gives it (that of the family, in old files).
    pub(crate) fn vision_of(&self, kind: &str) -> Result<VisionSource, ConfigError> {
        let mut found = self.vision(kind, json!({}))?;
        kind.clone_into(&mut found.kind);
        found.value["vision_config"]["model_type"] = json!(kind);
        Ok(found)
    }

    /// A model's facts, put together; visual tokens are no tower rows unless the family says so.
    pub(crate) fn info(
        &self,
        encoder: EncoderInfo,
        decoder: DecoderInfo,
        visual_tokens: usize,
    ) -> Result<ModelInfo, ConfigError> {
        Ok(ModelInfo {
            name: self.files.name().to_owned(),
            family: self.root.text("model_type", "")?,
            encoder,
            decoder,
            one_to_one: false,
            visual_tokens,
        })
    }
}

/// A vision configuration with its class.
#[derive(Clone, Debug)]
pub(crate) struct VisionSource {
    file: String,
    /// `model_type`.
    pub(crate) kind: String,
    /// Below the key `vision_config`, so that errors name the whole path.
    value: Value,
}

impl VisionSource {
    /// Its fields.
    pub(crate) fn fields(&self) -> Result<Fields<'_>, ConfigError> {
        Fields::root(self.file.as_str(), &self.value)?.object("vision_config")
    }

    /// The tower that a family wants.
    pub(crate) fn tower(&self, feature_layers: Vec<i64>, final_norm: bool) -> TowerSpec {
        TowerSpec {
            file: self.file.clone(),
            kind: self.kind.clone(),
            config: self.value["vision_config"].clone(),
            feature_layers,
            final_norm,
        }
    }
}

/// An activation by its name in the field `key`.
pub(crate) fn activation(
    fields: &Fields<'_>,
    key: &str,
    default: &str,
) -> Result<Activation, ConfigError> {
    let name = fields.text(key, default)?;
    Ok(match name.as_str() {
        "silu" | "swish" => Activation::Silu,
        "gelu" => Activation::GeluErf,
        "gelu_pytorch_tanh" | "gelu_new" => Activation::GeluTanh,
        "quick_gelu" => Activation::QuickGelu,
        "relu" => Activation::Relu,
        other => {
            return Err(ConfigError::Unsupported {
                file: fields.file().to_owned(),
                what: "activation",
                found: other.to_owned(),
                supported: "silu, gelu, gelu_pytorch_tanh, quick_gelu, relu".into(),
            });
        }
    })
}

/// A token id under the first of `keys` that is there.
pub(crate) fn token_id(
    fields: &Fields<'_>,
    keys: &[&str],
    default: u32,
) -> Result<u32, ConfigError> {
    let key = keys.iter().find(|k| fields.get(k).is_some()).unwrap_or(&keys[0]);
    let id = fields.size(key, 0..=MAX_VOCAB, Some(default as usize))?;
    // At most MAX_VOCAB, which fits.
    Ok(id as u32)
}

/// A list of whole numbers in `range`; `None` where the key is absent.
pub(crate) fn list(
    fields: &Fields<'_>,
    key: &str,
    range: std::ops::RangeInclusive<usize>,
) -> Result<Option<Vec<usize>>, ConfigError> {
    let Some(value) = fields.get(key) else { return Ok(None) };
    let number =
        |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| range.contains(n));
    value.as_array().and_then(|list| list.iter().map(number).collect()).map(Some).ok_or_else(|| {
        let expected = format!("a list of whole numbers from {} to {}", range.start(), range.end());
        fields.error(key, &expected, &secateur_core::files::short(value))
    })
}

/// Sizes (height, width) that any-resolution pictures are scaled to.
pub(crate) fn pinpoints(
    fields: &Fields<'_>,
    default: &[[usize; 2]],
) -> Result<Vec<[usize; 2]>, ConfigError> {
    const KEY: &str = "image_grid_pinpoints";
    let Some(value) = fields.get(KEY) else { return Ok(default.to_vec()) };
    let pair = |v: &Value| -> Option<[usize; 2]> {
        let side =
            |v: &Value| usize::try_from(v.as_u64()?).ok().filter(|s| (1..=1 << 15).contains(s));
        match v.as_array()?.as_slice() {
            [h, w] => Some([side(h)?, side(w)?]),
            _ => None,
        }
    };
    value
        .as_array()
        .filter(|list| !list.is_empty())
        .and_then(|list| list.iter().map(pair).collect())
        .ok_or_else(|| {
            fields.error(KEY, "a list of [height, width]", &secateur_core::files::short(value))
        })
}
