//! Vision towers as ONNX files, run by ONNX Runtime (feature `onnx`).
//!
//! Invariants
//! - The file was written by `encoders/export_onnx.py`: what it is stands in its metadata, and is
//!   compared with the model's own configuration, and a sample of its weights with the model's,
//!   before it is used. Files of older exporters hold no sample and are taken by their shapes.
//! - Signals are extra outputs of the graph. Those that were not exported are withheld, with the
//!   reason, so that a chain that needs one is refused when it is planned.
//! - The library is loaded from a path that is known to be given; without one there is an error
//!   that says how to get it.
//!
//! Not here: towers with windows or grids of any size (Qwen), which run natively only.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ort::environment::Environment;
use ort::session::{Session, SessionOutputs};
use ort::value::TensorRef;
use secateur_core::error::RunError;
use secateur_core::model::{
    Control, Encoded, Encoder, EncoderInfo, Pixels, SignalKind, TowerSpec, Withheld,
};
use secateur_core::ops::Ops;
use secateur_core::signal::{CropSignals, Signal};
use secateur_core::weights::{Format, Weights};
use serde_json::Value;

use crate::vit::EncoderLoadError;
use crate::vit::config::Config;
use crate::vit::signals::{file, file_pixels};

/// Metadata key of the description that the exporter writes.
const KEY: &str = "secateur.tower";

/// The command that puts the library in place.
pub const INSTALL: &str = "export ORT_DYLIB_PATH=$(pip install -q onnxruntime && python -c \
    \"import glob, onnxruntime; print(glob.glob(onnxruntime.__path__[0] + \
    '/capi/libonnxruntime.so*')[0])\")";

/// Crops that run together on a GPU. On a CPU each runs alone, so that its result does not depend
/// on its neighbours.
const GPU_BATCH: usize = 16;

/// What runs the graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Provider {
    /// The CPU.
    #[default]
    Cpu,
    /// A CUDA device, by ordinal (feature `onnx-cuda`).
    Cuda(u32),
}

/// How to run.
#[derive(Clone, Debug, Default)]
pub struct OnnxOptions {
    /// `libonnxruntime.so` (1.24 or later); `ORT_DYLIB_PATH` if not given.
    pub library: Option<PathBuf>,
    /// Device.
    pub provider: Provider,
    /// Threads on a CPU; the library's own choice if not given.
    pub threads: Option<usize>,
}

/// Loads a tower from an ONNX file; `spec` is what the model's family asks for, `weights` the
/// model's own tower (`tower.*`), which the file must have been written from, `ops` holds the rows
/// it gives.
///
/// # Errors
/// [`EncoderLoadError::Onnx`]: no library, no such file, a file of another kind or of another
/// tower than the model's; [`EncoderLoadError::Config`] as [`crate::vit::build`].
pub fn load(
    path: &Path,
    spec: &TowerSpec,
    weights: &Weights,
    options: &OnnxOptions,
    ops: Arc<dyn Ops>,
) -> Result<Box<dyn Encoder>, EncoderLoadError> {
    let config = Config::read(spec)?;
    let failed =
        |reason: String| EncoderLoadError::Onnx { file: path.display().to_string(), reason };
    if !path.is_file() {
        return Err(failed("no such file".into()));
    }
    let library = library(options)?;
    let environment = environment(&library)?;
    let session = session(path, &environment, options).map_err(failed)?;
    let described = session
        .metadata()
        .ok()
        .and_then(|m| m.custom(KEY))
        .and_then(|text| serde_json::from_str::<Value>(&text).ok())
        .ok_or_else(|| failed(format!("no metadata `{KEY}`: write it with export_onnx.py")))?;
    check(&described, &config).map_err(failed)?;
    check_weights(&described, weights).map_err(failed)?;
    let outputs: Vec<String> = session.outputs().iter().map(|o| o.name().to_owned()).collect();
    if !outputs.iter().any(|o| o == "hidden") {
        return Err(failed("no output `hidden`".into()));
    }
    let info = info(&config, &outputs);
    let batch = if options.provider == Provider::Cpu { 1 } else { GPU_BATCH };
    Ok(Box::new(OnnxTower {
        file: path.display().to_string(),
        info,
        config,
        batch,
        session: Mutex::new(session),
        ops,
    }))
}

fn library(options: &OnnxOptions) -> Result<PathBuf, EncoderLoadError> {
    let given = options.library.clone().or_else(|| {
        std::env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()).map(PathBuf::from)
    });
    given.ok_or_else(|| EncoderLoadError::Onnx {
        file: "libonnxruntime.so".into(),
        reason: format!("no path is given and ORT_DYLIB_PATH is not set; try: {INSTALL}"),
    })
}

/// The process's environment; the library allows one, made by whoever comes first.
fn environment(library: &Path) -> Result<Environment, EncoderLoadError> {
    static FIRST: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);
    let failed =
        |reason: String| EncoderLoadError::Onnx { file: library.display().to_string(), reason };
    let mut first = FIRST.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((path, environment)) = first.as_ref() {
        if path != library {
            return Err(failed(format!("{} is loaded already", path.display())));
        }
        return Ok(environment.clone());
    }
    let made = ort::init_from(library).map_err(|e| failed(e.to_string()))?;
    let made = made.build().map_err(|e| failed(e.to_string()))?;
    *first = Some((library.to_owned(), made.clone()));
    Ok(made)
}

fn session(
    path: &Path,
    environment: &Environment,
    options: &OnnxOptions,
) -> Result<Session, String> {
    let mut builder = Session::builder(environment).map_err(|e| e.to_string())?;
    if let Some(threads) = options.threads {
        builder = builder.with_intra_threads(threads.max(1)).map_err(|e| e.to_string())?;
    }
    if let Provider::Cuda(device) = options.provider {
        builder = with_cuda(builder, device)?;
    }
    builder.commit_from_file(path).map_err(|e| e.to_string())
}

#[cfg(feature = "onnx-cuda")]
fn with_cuda(
    builder: ort::session::builder::SessionBuilder,
    device: u32,
) -> Result<ort::session::builder::SessionBuilder, String> {
    let provider = ort::ep::CUDA::default()
        .with_device_id(i32::try_from(device).map_err(|e| e.to_string())?)
        .build()
        .error_on_failure();
    builder.with_execution_providers([provider]).map_err(|e| e.to_string())
}

#[cfg(not(feature = "onnx-cuda"))]
fn with_cuda(
    _: ort::session::builder::SessionBuilder,
    device: u32,
) -> Result<ort::session::builder::SessionBuilder, String> {
    Err(format!("CUDA device {device}: this program was built without the feature `onnx-cuda`"))
}

/// Compares the exported tower with the one that the model's configuration describes.
fn check(described: &Value, config: &Config) -> Result<(), String> {
    let text =
        |key: &str| described.get(key).and_then(Value::as_str).unwrap_or("absent").to_owned();
    if text("tower") != config.kind {
        return Err(format!(
            "holds a `{}`, the model's tower is a `{}`",
            text("tower"),
            config.kind
        ));
    }
    for (key, want) in [
        ("version", 1),
        ("layers", config.layers),
        ("file_layers", config.file_layers),
        ("heads", config.heads),
        ("width", config.width),
        ("image", config.image),
        ("patch", config.patch),
    ] {
        let found = described.get(key).and_then(Value::as_u64);
        if found != Some(want as u64) {
            let found = found.map_or("absent".to_owned(), |f| f.to_string());
            return Err(format!("`{key}` is {found}, the model needs {want}"));
        }
    }
    let eps = described.get("eps").and_then(Value::as_f64);
    if let Some(eps) = eps.filter(|eps| *eps as f32 != config.eps) {
        return Err(format!("`eps` is {eps}, the model needs {}", config.eps));
    }
    let normed = described.get("final_norm").and_then(Value::as_bool);
    if let Some(normed) = normed.filter(|n| *n != config.final_norm.is_some()) {
        return Err(format!("`final_norm` is {normed}, the model needs {}", !normed));
    }
    Ok(())
}

/// Compares the sample of weights that the exporter wrote, bit by bit as f32. A quantised graph
/// keeps the sample of the weights that it was made from; a model whose own tower is held in
/// quantised blocks has no exact values to compare.
fn check_weights(described: &Value, weights: &Weights) -> Result<(), String> {
    let Some(sample) = described.get("weights").and_then(Value::as_object) else { return Ok(()) };
    for (name, values) in sample {
        let own = format!("tower.{name}");
        let wanted: Vec<f32> = values.as_array().into_iter().flatten().filter_map(as_f32).collect();
        let shape = weights.shape_of(&own).map(<[usize]>::to_vec);
        let view = shape.and_then(|shape| weights.tensor(&own, &shape).ok()).ok_or_else(|| {
            format!("was exported from a model with a tensor `{name}`, which this model lacks")
        })?;
        if !matches!(view.format(), Format::Plain(_)) {
            continue;
        }
        let same = wanted.iter().enumerate().all(|(i, want)| {
            let mut found = [0.0];
            view.read_f32((2 * i + 1) * view.len() / (2 * wanted.len()), &mut found);
            found[0].to_bits() == want.to_bits()
        });
        if !same || wanted.is_empty() {
            return Err(format!(
                "was exported from another model: tensor `{name}` holds other values than this \
                 model's; export its own tower with export_onnx.py"
            ));
        }
    }
    Ok(())
}

fn as_f32(value: &Value) -> Option<f32> {
    // Exact: the exporter writes every f32 as the f64 that equals it.
    value.as_f64().map(|v| v as f32)
}

/// What the exported outputs offer.
fn info(config: &Config, outputs: &[String]) -> EncoderInfo {
    let layers_of = |prefix: &str| -> Vec<usize> {
        outputs.iter().filter_map(|o| o.strip_prefix(prefix)?.parse().ok()).collect()
    };
    let native = |kind, what: &str| {
        Withheld::all(kind, format!("the ONNX tower gives no {what}; use the native tower"))
    };
    let mut withheld = vec![
        native(SignalKind::EncoderMap, "attention maps"),
        native(SignalKind::PoolingAttention, "attention of a pooling head"),
    ];
    for (kind, prefix, flag) in [
        (SignalKind::ClsAttention, "cls_attention.", ""),
        (SignalKind::ColumnMean, "column_mean.", ""),
        (SignalKind::EncoderKeys, "keys.", " --keys"),
    ] {
        let except = layers_of(prefix);
        let found = match except.as_slice() {
            [] => format!("the ONNX tower has no output `{prefix}LAYER`"),
            layers => format!("the ONNX tower gives `{prefix}LAYER` of layers {layers:?} alone"),
        };
        let reason = format!("{found}; export it again with `--signals {{layers}}{flag}`");
        withheld.push(Withheld { kind, except, reason });
    }
    EncoderInfo {
        tower: config.kind.clone(),
        layers: config.layers,
        file_layers: config.file_layers,
        heads: config.heads,
        width: config.width,
        cls: config.class_token,
        full_attention_layers: (0..config.layers).collect(),
        withheld,
    }
}

/// A tower that ONNX Runtime runs.
struct OnnxTower {
    file: String,
    info: EncoderInfo,
    config: Config,
    batch: usize,
    session: Mutex<Session>,
    ops: Arc<dyn Ops>,
}

impl std::fmt::Debug for OnnxTower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnnxTower").field("file", &self.file).field("info", &self.info).finish()
    }
}

/// Name of the output that holds a signal.
fn output_of(signal: &Signal) -> Option<String> {
    match signal {
        Signal::ClsAttention { layer } => Some(format!("cls_attention.{layer}")),
        Signal::ColumnMean { layer } => Some(format!("column_mean.{layer}")),
        Signal::EncoderKeys { layer } => Some(format!("keys.{layer}")),
        Signal::EncoderMap { layer } => Some(format!("map.{layer}")),
        _ => None,
    }
}

impl OnnxTower {
    fn error(&self, reason: impl std::fmt::Display) -> RunError {
        RunError::Device(format!("{}: {reason}", self.file))
    }

    /// An output of `crops` equal parts.
    fn take<'a>(
        &self,
        outputs: &'a SessionOutputs<'_>,
        name: &str,
        len: usize,
    ) -> Result<&'a [f32], RunError> {
        let value = outputs.get(name).ok_or_else(|| self.error(format!("no output `{name}`")))?;
        let (shape, values) = value.try_extract_tensor::<f32>().map_err(|e| self.error(e))?;
        if values.len() != len {
            return Err(
                self.error(format!("output `{name}` has shape {shape:?}, needs {len} values"))
            );
        }
        Ok(values)
    }

    /// Runs some crops of one clip and files their rows and signals.
    fn run(
        &self,
        values: &[f32],
        crops: usize,
        signals: &[Signal],
        rows: &mut Vec<f32>,
        out: &mut [CropSignals],
    ) -> Result<(), RunError> {
        let side = self.config.image;
        let patches = self.config.table * self.config.table;
        let per_crop = patches + self.config.class_rows();
        let input = TensorRef::from_array_view(([crops, 3, side, side], values))
            .map_err(|e| self.error(e))?;
        // A run that failed leaves nothing behind that a next one could trip over.
        let mut session = self.session.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let outputs =
            session.run(ort::inputs!["pixel_values" => input]).map_err(|e| self.error(e))?;
        let hidden = self.take(&outputs, "hidden", crops * per_crop * self.config.width)?;
        rows.extend_from_slice(hidden);
        for signal in signals {
            let Some(name) = output_of(signal) else { continue };
            let keys = matches!(signal, Signal::EncoderKeys { .. });
            let one = if keys { per_crop * self.config.head_dim() } else { patches };
            let all = self.take(&outputs, &name, crops * one)?;
            file(*signal, all, keys.then(|| (per_crop, self.config.head_dim())), out)?;
        }
        if signals.contains(&Signal::EncoderFeatures) {
            file(Signal::EncoderFeatures, hidden, Some((per_crop, self.config.width)), out)?;
        }
        Ok(())
    }
}

impl Encoder for OnnxTower {
    fn info(&self) -> &EncoderInfo {
        &self.info
    }

    fn encode(
        &self,
        pixels: &[&Pixels],
        signals: &[Signal],
        control: &Control,
    ) -> Result<Encoded, RunError> {
        let side = self.config.image;
        let per_crop = self.config.table * self.config.table + self.config.class_rows();
        let (mut rows, mut crops, mut filed) = (Vec::new(), Vec::new(), Vec::new());
        for p in pixels {
            let count = p.crops.len();
            if p.shape != [count, 3, side, side] || p.values.len() != count * 3 * side * side {
                return Err(RunError::Shape(format!(
                    "pixels of shape {:?}, the tower takes [crops, 3, {side}, {side}]",
                    p.shape
                )));
            }
            let mut out = vec![CropSignals::default(); count];
            for first in (0..count).step_by(self.batch) {
                control.check()?;
                let some = self.batch.min(count - first);
                let one = 3 * side * side;
                let values = &p.values[first * one..(first + some) * one];
                self.run(values, some, signals, &mut rows, &mut out[first..first + some])?;
            }
            file_pixels(p, signals, &mut out);
            for _ in 0..count {
                crops.push((crops.len() * per_crop, per_crop));
            }
            filed.extend(out);
        }
        let hidden = self.ops.upload(rows.len() / self.config.width, self.config.width, &rows)?;
        Ok(Encoded { hidden, crops, levels: Vec::new(), signals: filed, outputs: Vec::new() })
    }
}
