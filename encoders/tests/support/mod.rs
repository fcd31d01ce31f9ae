//! Golden files as the tests read them.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use secateur_core::clip::{Clip, Frame, VideoInfo};
use secateur_core::model::{ImageBackend, TowerSpec};
use secateur_core::weights::Weights;
use secateur_encoders::image::{Limits, load};
use serde_json::Value;

/// The workspace's golden folder.
pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

pub fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Sorted entries of a folder.
pub fn entries(path: &Path) -> Vec<PathBuf> {
    let read = std::fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut list: Vec<PathBuf> = read.map(|e| e.unwrap().path()).collect();
    list.sort();
    list
}

/// A tensor of a safetensors file.
#[derive(Clone, Debug)]
pub struct Expected {
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

pub fn tensors(path: &Path) -> BTreeMap<String, Expected> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.tensors()
        .into_iter()
        .map(|(name, t)| {
            let values = match t.dtype() {
                safetensors::Dtype::F32 => t
                    .data()
                    .chunks_exact(4)
                    .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
                    .collect(),
                safetensors::Dtype::I64 => t
                    .data()
                    .chunks_exact(8)
                    .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64)
                    .collect(),
                other => panic!("{name}: {other:?}"),
            };
            (name, Expected { shape: t.shape().to_vec(), values })
        })
        .collect()
}

/// One case of `open`.
pub struct Case {
    pub name: String,
    pub model: PathBuf,
    pub family: String,
    pub clips: Vec<Clip>,
    pub backend: ImageBackend,
    pub expected: BTreeMap<String, Expected>,
}

impl Case {
    pub fn read(folder: &Path) -> Self {
        let case = json(&folder.join("case.json"));
        let paths = |key: &str| -> Vec<PathBuf> {
            let list = case.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
            list.iter().map(|p| folder.join(p.as_str().unwrap())).collect()
        };
        let one = |path: &PathBuf| load(path, &Limits::default()).unwrap();
        let mut clips: Vec<Clip> = paths("images").iter().map(one).collect();
        let frames: Vec<Frame> =
            paths("video_frames").iter().map(|p| one(p).frames()[0].clone()).collect();
        if !frames.is_empty() {
            let info = VideoInfo { fps: case["fps"].as_f64(), duration_s: None };
            clips.push(Clip::from_frames("frames", frames, info).unwrap());
        }
        let backend = match case.get("preprocessing_backend").and_then(Value::as_str) {
            Some("Pillow") => ImageBackend::Pillow,
            _ => ImageBackend::Torchvision,
        };
        Self {
            name: folder.file_name().unwrap().to_string_lossy().into_owned(),
            model: folder.join(case["model"].as_str().unwrap()),
            family: case["family"].as_str().unwrap().to_owned(),
            clips,
            backend,
            expected: tensors(&folder.join("expected.safetensors")),
        }
    }
}

/// The tower's tensors under canonical names, as a family maps them.
pub fn tower_weights(model: &Path) -> Weights {
    Weights::open(model).unwrap().renamed(|name| {
        let name = name.strip_prefix("model.").unwrap_or(name);
        let prefixes = ["vision_tower.vision_model.", "vision_tower.", "vision_model.", "visual."];
        prefixes.iter().find_map(|p| name.strip_prefix(p)).map(|leaf| format!("tower.{leaf}"))
    })
}

/// What each family asks of its tower.
pub fn tower_spec(model: &Path) -> TowerSpec {
    let config = json(&model.join("config.json"));
    let family = config["model_type"].as_str().unwrap();
    let vision = config["vision_config"].clone();
    let told = vision.get("model_type").and_then(Value::as_str);
    let kind = match (family, told) {
        ("qwen2_vl" | "qwen2_5_vl" | "qwen3_vl", _) => family,
        (_, Some(kind)) => kind,
        _ => panic!("{family}: no kind of tower"),
    };
    let final_norm = matches!(family, "paligemma" | "smolvlm" | "idefics3" | "internvl");
    let layer = config.get("vision_feature_layer").and_then(Value::as_i64).unwrap_or(-1);
    TowerSpec {
        file: model.join("config.json").display().to_string(),
        kind: kind.to_owned(),
        config: vision,
        feature_layers: vec![layer],
        final_norm,
    }
}

/// `max |a - b| / max |b|`, as the golden cases measure.
pub fn relative(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "number of values");
    let scale = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let worst = got.iter().zip(want).fold(0.0f64, |m, (g, w)| {
        if g.is_finite() { m.max((f64::from(*g) - w).abs()) } else { f64::INFINITY }
    });
    worst / scale.max(f64::MIN_POSITIVE)
}
