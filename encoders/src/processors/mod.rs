//! Clips to the pixels that a family's vision tower wants.
//!
//! Invariants
//! - [`from_files`] reads a model folder's preprocessor in its old form (`preprocessor_config.json`,
//!   `video_preprocessor_config.json`) and its new one (`processor_config.json` with nested
//!   `image_processor` and `video_processor`, which wins).
//! - The class name in a file selects the steps, never the arithmetic: whose resampling is used is
//!   the caller's choice ([`secateur_core::model::ImageBackend`]).
//! - [`secateur_core::model::Pixels::crops`] says for each crop where its patch grid lies in the
//!   source picture; `crops()` gives the same from the size alone.
//!
//! A new processor is one file here and one row of [`FAMILIES`].

mod anyres;
mod clip;
mod internvl;
mod llava_next;
mod llava_onevision;
pub(crate) mod qwen;
mod qwen_size;
pub mod sampling;
mod settings;
mod smolvlm;
mod steps;

pub use clip::SingleCrop;
pub use internvl::InternVl;
pub use llava_next::LlavaNext;
pub use llava_onevision::LlavaOnevision;
pub use qwen::{Generation, QwenVl};
pub use smolvlm::SmolVlm;

use secateur_core::error::ConfigError;
use secateur_core::files::{Fields, ModelFiles};
use secateur_core::model::Processor;
use serde_json::Value;

use sampling::{Rule, Sampler};

/// Builds a processor from pictures' fields, videos' fields and the side of a patch.
type Build = fn(&Fields<'_>, Option<&Fields<'_>>, usize) -> Result<Box<dyn Processor>, ConfigError>;

/// A family's processor.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// `model_type` of the configuration.
    pub family: &'static str,
    /// How the reference's video processor chooses frames, where the family has one.
    pub frames: Option<sampling::Rule>,
    build: Build,
}

/// Every family whose pictures can be processed.
pub const FAMILIES: &[Entry] = &[
    Entry { family: "llava", frames: None, build: single_crop },
    Entry {
        family: "llava_next",
        frames: None,
        build: |f, _, p| Ok(Box::new(LlavaNext::new(f, p)?)),
    },
    Entry {
        family: "llava_onevision",
        frames: Some(Rule::Base),
        build: |f, v, p| Ok(Box::new(LlavaOnevision::new(f, v, p)?)),
    },
    Entry {
        family: "internvl",
        frames: Some(Rule::InternVl),
        build: |f, v, p| Ok(Box::new(InternVl::new(f, v, p)?)),
    },
    Entry {
        family: "paligemma",
        frames: None,
        build: |f, _, p| Ok(Box::new(SingleCrop::siglip(f, p)?)),
    },
    Entry {
        family: "qwen2_vl",
        frames: Some(Rule::QwenTwo),
        build: |f, v, _| Ok(Box::new(QwenVl::new(f, v, Generation::Two)?)),
    },
    Entry {
        family: "qwen2_5_vl",
        frames: Some(Rule::QwenTwo),
        build: |f, v, _| Ok(Box::new(QwenVl::new(f, v, Generation::Two)?)),
    },
    Entry {
        family: "qwen3_vl",
        frames: Some(Rule::QwenThree),
        build: |f, v, _| Ok(Box::new(QwenVl::new(f, v, Generation::Three)?)),
    },
    Entry {
        family: "smolvlm",
        frames: Some(Rule::SmolVlm),
        build: |f, v, p| Ok(Box::new(SmolVlm::new(f, v, p)?)),
    },
    Entry {
        family: "idefics3",
        frames: None,
        build: |f, v, p| Ok(Box::new(SmolVlm::new(f, v, p)?)),
    },
];

/// LLaVA-1.5 stands on CLIP, its relatives on SigLIP: the file's class decides.
fn single_crop(
    fields: &Fields<'_>,
    _: Option<&Fields<'_>>,
    patch: usize,
) -> Result<Box<dyn Processor>, ConfigError> {
    let named = fields.text("image_processor_type", "")?;
    let class = if named.is_empty() { fields.text("feature_extractor_type", "")? } else { named };
    let steps = class.trim_end_matches("Fast").trim_end_matches("Pil");
    match steps {
        "" | "CLIPImageProcessor" | "CLIPFeatureExtractor" | "LlavaImageProcessor" => {
            Ok(Box::new(SingleCrop::clip(fields, patch)?))
        }
        "SiglipImageProcessor" => Ok(Box::new(SingleCrop::siglip(fields, patch)?)),
        other => Err(ConfigError::Unsupported {
            file: fields.file().to_owned(),
            what: "image processor",
            found: other.to_owned(),
            supported: "CLIPImageProcessor, LlavaImageProcessor, SiglipImageProcessor".into(),
        }),
    }
}

const NEW: &str = "processor_config.json";
const OLD: &str = "preprocessor_config.json";
const OLD_VIDEO: &str = "video_preprocessor_config.json";

/// The processor of a model folder; `family` is the configuration's `model_type`.
///
/// # Errors
/// An unknown family (the error lists the known), a file that is missing or not JSON, a field that
/// cannot be.
pub fn from_files(files: &ModelFiles, family: &str) -> Result<Box<dyn Processor>, ConfigError> {
    let config = files.required_json("config.json")?;
    let config = Fields::root(files.label("config.json"), &config)?;
    let entry = FAMILIES.iter().find(|e| e.family == family).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().map(|e| e.family).collect();
        ConfigError::Unsupported {
            file: files.label("config.json"),
            what: "processor of family",
            found: family.to_owned(),
            supported: known.join(", "),
        }
    })?;
    let patch = tower_patch(&config, family)?;
    with_fields(files, |picture, video| (entry.build)(picture, video, patch))
}

/// What a model folder says of the frames of a video; `None` for families without a rule.
///
/// # Errors
/// As [`from_files`].
pub fn sampler(files: &ModelFiles, family: &str) -> Result<Option<Sampler>, ConfigError> {
    let Some(rule) = FAMILIES.iter().find(|e| e.family == family).and_then(|e| e.frames) else {
        return Ok(None);
    };
    with_fields(files, |picture, video| Ok(Some(Sampler::read(rule, video.unwrap_or(picture))?)))
}

/// The fields of pictures and of videos, wherever they stand.
fn with_fields<T>(
    files: &ModelFiles,
    read: impl FnOnce(&Fields<'_>, Option<&Fields<'_>>) -> Result<T, ConfigError>,
) -> Result<T, ConfigError> {
    let new = files.json(NEW)?.unwrap_or(Value::Null);
    let nested = |key: &str| new.get(key).filter(|v| v.is_object());
    let (old, old_video);
    let (label, picture) = match nested("image_processor") {
        Some(value) => (format!("{} (image_processor)", files.label(NEW)), value),
        None => {
            old = files.required_json(OLD)?;
            (files.label(OLD), &old)
        }
    };
    let video = match nested("video_processor") {
        Some(value) => Some((format!("{} (video_processor)", files.label(NEW)), value)),
        None => {
            old_video = files.json(OLD_VIDEO)?;
            old_video.as_ref().map(|value| (files.label(OLD_VIDEO), value))
        }
    };
    let picture = Fields::root(label, picture)?;
    let video = video.map(|(label, value)| Fields::root(label, value)).transpose()?;
    read(&picture, video.as_ref())
}

/// Side of a patch of the tower, pixels: one number or a pair of equal ones; absent, the default
/// of the tower's class (or of the family, where the whole tower is absent).
fn tower_patch(config: &Fields<'_>, family: &str) -> Result<usize, ConfigError> {
    let tower = config.object("vision_config")?;
    let kind = tower.text("model_type", "")?;
    let default = match (tower.is_present(), kind.as_str(), family) {
        (true, "clip_vision_model", _) => 32,
        (true, "siglip_vision_model", _) => 16,
        (true, _, "smolvlm" | "idefics3") => 32,
        (true, "", "paligemma") => 16,
        _ => 14,
    };
    crate::vit::config::square_side(&tower, "patch_size", default)
}
