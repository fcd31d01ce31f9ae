//! The cases of `golden/open`: whole runs, from pictures and prompt to tokens, as the reference ran
//! them, and how they are run here. Keys are those of `case.json`.

use std::path::Path;

use secateur::trace::{Histories, Tensors, read_histories};
use secateur::{
    ChainSpec, Clip, Error, Frame, ImageBackend, Precision, ProcessorOptions, Request, VideoInfo,
    Vlm, VlmBuilder,
};
use serde::Deserialize;

use crate::golden;

/// A case.
#[derive(Clone, Debug, Deserialize)]
pub struct Case {
    /// Model, relative to the case's folder.
    pub model: String,
    /// Pictures, relative to the case's folder.
    #[serde(default)]
    pub images: Vec<String>,
    /// The text that the processor got, placeholders included.
    pub prompt: String,
    /// Stages as tables.
    #[serde(default)]
    pub chain: Vec<serde_json::Value>,
    /// Tokens of the answer.
    #[serde(default)]
    pub max_new_tokens: usize,
    /// Whether the answer goes on behind an end token.
    #[serde(default)]
    pub ignore_eos: bool,
    /// Whose resampling made the pixels; torchvision's where absent.
    pub preprocessing_backend: Option<String>,
    /// Pictures that are the frames of one video.
    #[serde(default)]
    pub video_frames: Vec<String>,
    /// Frames a second.
    pub fps: Option<f64>,
    /// The same, in the cases of other families.
    pub video_fps: Option<f64>,
    /// Largest `max|a - b| / max|b|` of a float tensor in f32.
    pub tolerance: f64,
    /// Instead of `chain`.
    #[serde(skip)]
    pub spec: Option<ChainSpec>,
}

/// Reads a case by its name.
///
/// # Panics
/// If it cannot be read: a golden that is not there is a broken checkout.
pub fn read_case(name: &str) -> Case {
    let file = golden().join("open").join(name).join("case.json");
    let text = std::fs::read_to_string(file).expect("case.json");
    serde_json::from_str(&text).expect("a case")
}

fn chain(entries: &[serde_json::Value]) -> ChainSpec {
    let stages: Vec<toml::Value> = entries
        .iter()
        .map(|entry| {
            let mut entry = entry.clone();
            if let Some(object) = entry.as_object_mut() {
                object.retain(|_, v| !v.is_null());
            }
            toml::Value::try_from(entry).expect("a table")
        })
        .collect();
    let mut table = toml::Table::new();
    table.insert("stage".into(), toml::Value::Array(stages));
    ChainSpec::from_toml("case.json", &table.to_string()).expect("a chain")
}

fn frame(path: &Path) -> Frame {
    let clip = secateur::image::load(path, &secateur::image::Limits::default()).expect("a picture");
    clip.frames()[0].clone()
}

/// Every tensor of the run of a case in `folder`.
///
/// # Errors
/// Those of the run.
///
/// # Panics
/// If a picture or the chain of the case cannot be read.
pub fn run(folder: &Path, case: &Case) -> Result<Tensors, Error> {
    run_with(folder, case, |builder| builder)
}

/// As [`run`], on a model that `set` has had in hand.
///
/// # Errors
/// Those of the run.
///
/// # Panics
/// As [`run`].
pub fn run_with(
    folder: &Path,
    case: &Case,
    set: impl FnOnce(VlmBuilder) -> VlmBuilder,
) -> Result<Tensors, Error> {
    let backend = match case.preprocessing_backend.as_deref() {
        Some("Pillow") => ImageBackend::Pillow,
        _ => ImageBackend::Torchvision,
    };
    let builder = Vlm::builder(folder.join(&case.model))
        .precision(Precision::F32)
        .threads(2)
        .image_options(ProcessorOptions { backend, ..ProcessorOptions::default() });
    let vlm = set(builder).open()?;
    let mut request = Request::new(case.prompt.clone())
        .raw_prompt()
        .max_tokens(case.max_new_tokens)
        .chain(case.spec.clone().unwrap_or_else(|| chain(&case.chain)));
    for image in &case.images {
        request = request.path(folder.join(image))?;
    }
    if !case.video_frames.is_empty() {
        let frames = case.video_frames.iter().map(|f| frame(&folder.join(f))).collect();
        let info = VideoInfo { fps: case.fps.or(case.video_fps), duration_s: None };
        request = request.clip(Clip::from_frames("video", frames, info)?);
    }
    if case.ignore_eos {
        request = request.ignore_eos();
    }
    let state = folder.join("state.safetensors");
    let histories = if state.is_file() { read_histories(&state)? } else { Histories::new() };
    vlm.trace(&request, &histories)
}
