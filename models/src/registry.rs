//! The families, in one table: what is supported, what a folder is, and how it is loaded.
//!
//! A new family is one file and one row here.

use std::sync::Arc;

use secateur_core::error::{ConfigError, RunError};
use secateur_core::files::ModelFiles;
use secateur_core::model::{Family, ModelInfo, Pixels, SignalKind, TowerSpec, VisualLayout};
use secateur_core::ops::Ops;
use secateur_core::weights::Weights;

use crate::blocks::config::DecoderConfig;
use crate::blocks::family::{Blueprint, LoadedFamily};
use crate::config::{ConfigSource, ModelOptions};
use crate::error::LoadError;
use crate::text::TextModel;
use crate::weights::canonical;

/// One family.
#[derive(Debug)]
pub struct FamilyEntry {
    /// `model_type` of `config.json`.
    pub model_type: &'static str,
    /// Name for people.
    pub name: &'static str,
    /// Several pictures in one prompt.
    pub several: bool,
    /// Videos.
    pub video: bool,
    /// Whether the published weights were trained to answer with boxes.
    pub boxes: bool,
    /// Signals of the vision tower; decoder signals are offered by all.
    pub signals: &'static [SignalKind],
    /// Chat template of folders that have none.
    pub template: &'static str,
    /// How the reference's processor lays its tensors out, for traces.
    pub outputs: ProcessorOutputs,
    plan: fn(&ConfigSource<'_>) -> Result<Box<dyn Blueprint>, ConfigError>,
}

/// How a reference processor lays its tensors out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessorOutputs {
    /// Whether the crops of a picture stand on an axis of their own.
    pub crops_stacked: bool,
    /// Name of the values of a video; those of a picture are `pixel_values`.
    pub video_values: &'static str,
}

const PLAIN: ProcessorOutputs =
    ProcessorOutputs { crops_stacked: false, video_values: "pixel_values_videos" };
const STACKED: ProcessorOutputs = ProcessorOutputs { crops_stacked: true, ..PLAIN };
const ONE_NAME: ProcessorOutputs = ProcessorOutputs { video_values: "pixel_values", ..PLAIN };
const STACKED_ONE_NAME: ProcessorOutputs = ProcessorOutputs { crops_stacked: true, ..ONE_NAME };

/// Signals of towers with a class token.
const WITH_CLS: &[SignalKind] = &[
    SignalKind::ClsAttention,
    SignalKind::ColumnMean,
    SignalKind::EncoderMap,
    SignalKind::EncoderKeys,
    SignalKind::EncoderFeatures,
];
/// Signals of towers without one.
const WITHOUT_CLS: &[SignalKind] = &[
    SignalKind::ColumnMean,
    SignalKind::EncoderMap,
    SignalKind::EncoderKeys,
    SignalKind::EncoderFeatures,
];

/// Signals of SigLIP towers; the pooling head's where the checkpoint has it.
const SIGLIP: &[SignalKind] = &[
    SignalKind::ColumnMean,
    SignalKind::PoolingAttention,
    SignalKind::EncoderMap,
    SignalKind::EncoderKeys,
    SignalKind::EncoderFeatures,
];

/// All families.
pub static FAMILIES: &[FamilyEntry] = &[
    FamilyEntry {
        model_type: "llava",
        name: "LLaVA-1.5",
        several: true,
        video: false,
        boxes: false,
        signals: WITH_CLS,
        template: crate::llava::TEMPLATE,
        outputs: PLAIN,
        plan: crate::llava::plan,
    },
    FamilyEntry {
        model_type: "llava_next",
        name: "LLaVA-NeXT 1.6",
        several: true,
        video: false,
        boxes: false,
        signals: WITH_CLS,
        template: crate::llava_next::TEMPLATE,
        outputs: STACKED,
        plan: crate::llava_next::plan,
    },
    FamilyEntry {
        model_type: "llava_onevision",
        name: "LLaVA-OneVision",
        several: true,
        video: true,
        boxes: false,
        signals: SIGLIP,
        template: crate::llava_onevision::TEMPLATE,
        outputs: STACKED,
        plan: crate::llava_onevision::plan,
    },
    FamilyEntry {
        model_type: "qwen2_vl",
        name: "Qwen2-VL",
        several: true,
        video: true,
        boxes: true,
        signals: WITHOUT_CLS,
        template: crate::qwen2_vl::TEMPLATE,
        outputs: PLAIN,
        plan: crate::qwen2_vl::plan,
    },
    FamilyEntry {
        model_type: "qwen2_5_vl",
        name: "Qwen2.5-VL",
        several: true,
        video: true,
        boxes: true,
        signals: WITHOUT_CLS,
        template: crate::qwen2_vl::TEMPLATE,
        outputs: PLAIN,
        plan: crate::qwen2_vl::plan_2_5,
    },
    FamilyEntry {
        model_type: "qwen3_vl",
        name: "Qwen3-VL (dense)",
        several: true,
        video: true,
        boxes: true,
        signals: WITHOUT_CLS,
        template: crate::qwen3_vl::TEMPLATE,
        outputs: PLAIN,
        plan: crate::qwen3_vl::plan,
    },
    FamilyEntry {
        model_type: "smolvlm",
        name: "SmolVLM, SmolVLM2",
        several: true,
        video: true,
        boxes: false,
        signals: WITHOUT_CLS,
        template: crate::smolvlm::TEMPLATE,
        outputs: STACKED_ONE_NAME,
        plan: crate::smolvlm::plan,
    },
    FamilyEntry {
        model_type: "idefics3",
        name: "Idefics3",
        several: true,
        video: false,
        boxes: false,
        signals: WITHOUT_CLS,
        template: crate::smolvlm::TEMPLATE_IDEFICS3,
        outputs: STACKED,
        plan: crate::smolvlm::plan_idefics3,
    },
    FamilyEntry {
        model_type: "internvl",
        name: "InternVL 2.5, 3",
        several: true,
        video: true,
        boxes: true,
        signals: WITH_CLS,
        template: crate::internvl::TEMPLATE,
        outputs: ONE_NAME,
        plan: crate::internvl::plan,
    },
    FamilyEntry {
        model_type: "paligemma",
        name: "PaliGemma 1, 2",
        several: true,
        video: false,
        boxes: true,
        signals: SIGLIP,
        template: crate::paligemma::TEMPLATE,
        outputs: PLAIN,
        plan: crate::paligemma::plan,
    },
];

/// What a model folder is, without any weight.
#[derive(Debug)]
pub struct Description {
    /// Its row of the table.
    pub entry: &'static FamilyEntry,
    blueprint: Box<dyn Blueprint>,
}

impl Description {
    /// What the model is and offers.
    pub fn info(&self) -> &ModelInfo {
        &self.blueprint.common().info
    }

    /// The tower it wants.
    pub fn tower(&self) -> &TowerSpec {
        &self.blueprint.common().tower
    }

    /// Its decoder.
    pub fn decoder(&self) -> &DecoderConfig {
        &self.blueprint.common().decoder
    }

    /// The visual tokens of clips, for counting them; only `crops`, `grid_thw`, `source` and
    /// `video` of the pixels are looked at.
    ///
    /// # Errors
    /// If the clips cannot stand in one request.
    pub fn layout(&self, pixels: &[&Pixels]) -> Result<VisualLayout, RunError> {
        self.blueprint.layout(pixels)
    }
}

/// A model with its weights, but for the tower's, which `weights` still names.
pub struct LoadedModel {
    /// Its row of the table.
    pub entry: &'static FamilyEntry,
    /// Layout, prompt, projection, positions, decoder.
    pub family: Box<dyn Family>,
    /// The tower it wants: `tower.*` of `weights`.
    pub tower: TowerSpec,
    /// The checkpoint under canonical names.
    pub weights: Weights,
    /// Tokenizer, chat template, end tokens.
    pub text: Arc<TextModel>,
}

impl std::fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoadedModel {:?} from {}", self.family.info(), self.weights.label())
    }
}

/// Reads what a folder is from its configuration alone.
///
/// # Errors
/// A folder that is only an adapter, a missing or malformed `config.json`, quantised weights, a
/// family that is not known (the error lists those that
/// are), a field that cannot be.
pub fn describe(files: &ModelFiles, options: ModelOptions) -> Result<Description, ConfigError> {
    crate::adapter::refuse_as_model(files)?;
    let config = files.required_json("config.json")?;
    let source = ConfigSource::new(files, &config, options)?;
    let model_type = source.root.text("model_type", "")?;
    let entry = FAMILIES.iter().find(|f| f.model_type == model_type).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().map(|f| f.model_type).collect();
        ConfigError::Unsupported {
            file: files.label("config.json"),
            what: "model_type",
            found: model_type.clone(),
            supported: known.join(", "),
        }
    })?;
    source.refuse_quantised()?;
    Ok(Description { entry, blueprint: (entry.plan)(&source)? })
}

/// Loads decoder, projectors and text of a model. `weights` are those of the folder, under the
/// names of its files.
///
/// # Errors
/// As [`describe`], and what is wrong with tokenizer, template or weights.
pub fn load(
    files: &ModelFiles,
    weights: Weights,
    ops: &Arc<dyn Ops>,
    options: ModelOptions,
) -> Result<LoadedModel, LoadError> {
    let Description { entry, blueprint } = describe(files, options)?;
    let text = Arc::new(TextModel::load(files, entry.template)?);
    let weights = weights.renamed(canonical);
    let tower = blueprint.common().tower.clone();
    let family = LoadedFamily::load(blueprint, Arc::clone(&text), &weights, ops)?;
    Ok(LoadedModel { entry, family: Box::new(family), tower, weights, text })
}
