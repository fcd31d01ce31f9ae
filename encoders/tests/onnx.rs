//! Exported towers against the native ones. Needs ONNX Runtime: `ORT_DYLIB_PATH`.
#![cfg(feature = "onnx")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "a skip says why")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use secateur_core::model::{Control, Encoder, Pixels, ProcessorOptions, SignalKind, TowerSpec};
use secateur_core::ops::Precision;
use secateur_core::ops::cpu::CpuOps;
use secateur_core::signal::Signal;
use secateur_encoders::onnx::{self, OnnxOptions, load};
use secateur_encoders::{processors, vit};
use support::{Case, golden, tower_spec, tower_weights};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Whether the library is there; a machine without it skips, and says so.
fn library_is_there() -> bool {
    let there = std::env::var_os("ORT_DYLIB_PATH").is_some();
    let required = std::env::var("SECATEUR_REQUIRE").unwrap_or_default();
    assert!(there || !required.contains("onnx"), "onnx is required: ORT_DYLIB_PATH is not set");
    if !there {
        eprintln!("skipped: ORT_DYLIB_PATH is not set");
    }
    there
}

fn ops() -> Arc<CpuOps> {
    Arc::new(CpuOps::new(Precision::F32, Some(2)))
}

fn pixels(case: &Case) -> Vec<Pixels> {
    let files = secateur_core::files::ModelFiles::folder(&case.model).unwrap();
    let processor = processors::from_files(&files, &case.family).unwrap();
    let options = ProcessorOptions {
        backend: case.backend,
        pictures: case.clips.len(),
        ..Default::default()
    };
    case.clips.iter().map(|c| processor.process(c, &options).unwrap()).collect()
}

#[test]
fn an_exported_tower_equals_the_native_one() {
    if !library_is_there() {
        return;
    }
    for (name, model, exported_layers) in [
        ("llava-two-images-dense", "llava-1.5-tiny.onnx", &[0, 1, 2][..]),
        ("llava-onevision-tiny.image", "llava-onevision-tiny.onnx", &[2]),
    ] {
        let case = Case::read(&golden().join("open").join(name));
        let spec = tower_spec(&case.model);
        let weights = tower_weights(&case.model);
        let native = vit::build(&spec, &weights, ops()).unwrap();
        let exported: Box<dyn Encoder> =
            load(&file(model), &spec, &weights, &OnnxOptions::default(), ops()).unwrap();
        let layer = native.info().layers - 1;
        let mut signals = vec![
            Signal::ColumnMean { layer },
            Signal::EncoderKeys { layer },
            Signal::EncoderFeatures,
        ];
        if native.info().cls {
            signals.push(Signal::ClsAttention { layer });
        }
        let withheld = |kind| exported.info().withheld.iter().find(|w| w.kind == kind).unwrap();
        assert_eq!(exported.info().full_attention_layers, native.info().full_attention_layers);
        assert_eq!(withheld(SignalKind::ColumnMean).except, exported_layers);
        assert!(withheld(SignalKind::EncoderMap).except.is_empty());
        let pixels = pixels(&case);
        let refs: Vec<&Pixels> = pixels.iter().collect();
        let a = native.encode(&refs, &signals, &Control::default()).unwrap();
        let b = exported.encode(&refs, &signals, &Control::default()).unwrap();
        assert_eq!(a.crops, b.crops, "{name}");
        let near = |a: f32, b: f32, what: &str| {
            assert!((a - b).abs() < 1e-4, "{name}: {what}: native {a}, exported {b}");
        };
        for (x, y) in a.hidden.host().iter().zip(b.hidden.host()) {
            near(*x, *y, "features");
        }
        for (x, y) in a.signals.iter().zip(&b.signals) {
            assert_eq!(x.vectors.len() + x.matrices.len(), signals.len(), "{name}");
            for (signal, vector) in &x.vectors {
                for (p, q) in vector.iter().zip(&y.vectors[signal]) {
                    near(*p, *q, &signal.to_string());
                }
            }
            for (signal, matrix) in &x.matrices {
                for (p, q) in matrix.iter().zip(&y.matrices[signal]) {
                    near(*p, *q, &signal.to_string());
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_with_its_reason() {
    let model = golden().join("models/llava-1.5-tiny");
    let spec = tower_spec(&model);
    let weights = tower_weights(&model);
    let load = |path: &Path, spec: &TowerSpec, options: &OnnxOptions, ops| {
        load(path, spec, &weights, options, ops)
    };
    let options =
        OnnxOptions { library: Some("/nowhere/libonnxruntime.so".into()), ..Default::default() };
    let error = load(&file("llava-1.5-tiny.onnx"), &spec, &options, ops()).unwrap_err();
    assert!(error.to_string().contains("/nowhere/libonnxruntime.so"), "{error}");
    let error = load(&file("absent.onnx"), &spec, &OnnxOptions::default(), ops()).unwrap_err();
    assert!(error.to_string().contains("no such file"), "{error}");
    if !library_is_there() {
        let error =
            load(&file("llava-1.5-tiny.onnx"), &spec, &OnnxOptions::default(), ops()).unwrap_err();
        assert!(error.to_string().contains("pip install"), "{error}");
        return;
    }
    let options = OnnxOptions::default();
    let error = load(&file("llava-onevision-tiny.onnx"), &spec, &options, ops()).unwrap_err();
    assert!(error.to_string().contains("siglip_vision_model"), "{error}");
    let mut other = spec.clone();
    other.feature_layers = vec![-1];
    let error = load(&file("llava-1.5-tiny.onnx"), &other, &options, ops()).unwrap_err();
    assert!(error.to_string().contains("`layers` is 3, the model needs 4"), "{error}");
    let error = load(&file("README.md"), &spec, &options, ops()).unwrap_err();
    assert!(error.to_string().contains("README.md"), "{error}");
    // The same shapes with other values: a model that was trained on, say.
    let changed = tower_weights(&model).renamed(|name| {
        let (q, k) = ("tower.encoder.layers.1.self_attn.q_proj.weight", "self_attn.k_proj");
        if name == q {
            None
        } else if name == q.replace("self_attn.q_proj", k) {
            Some(q.into())
        } else {
            Some(name.to_owned())
        }
    });
    let path = file("llava-1.5-tiny.onnx");
    let error = onnx::load(&path, &spec, &changed, &options, ops()).unwrap_err().to_string();
    let tensor = "`encoder.layers.1.self_attn.q_proj.weight` holds other values";
    assert!(error.contains("another model") && error.contains(tensor), "{error}");
}
