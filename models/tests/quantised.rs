//! Quantised checkpoints are refused by the name of their method before a weight is read, and by
//! their scales where no file names one.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use secateur_core::error::ConfigError;
use secateur_core::files::ModelFiles;
use secateur_core::weights::{WeightView, Weights};
use secateur_models::{ModelOptions, describe, load};
use serde_json::{Value, json};
use support::{reference, root};

fn tiny() -> Value {
    let files = ModelFiles::folder(&root().join("models/llava-1.5-tiny")).unwrap();
    files.required_json("config.json").unwrap()
}

/// A folder of a configuration and one more file.
fn folder(config: &Value, beside: Option<(&'static str, Value)>) -> ModelFiles {
    let bytes = |value: &Value| -> &'static [u8] { value.to_string().into_bytes().leak() };
    let mut files = vec![("config.json", bytes(config))];
    files.extend(beside.map(|(name, value)| (name, bytes(&value))));
    ModelFiles::embedded("test", files.leak())
}

fn found(files: &ModelFiles) -> Option<String> {
    match describe(files, ModelOptions::default()) {
        Ok(_) => None,
        Err(ConfigError::Unsupported { what: "quantisation", found, .. }) => Some(found),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_method_that_config_json_announces_is_named() {
    for (place, value, name) in [
        ("/quantization_config", json!({ "quant_method": "awq", "bits": 4 }), "awq"),
        ("/quantization_config", json!({ "quant_method": "gptq" }), "gptq"),
        ("/quantization_config", json!({ "quant_method": "fp8" }), "fp8"),
        ("/quantization_config", json!({ "quant_method": "mxfp4" }), "mxfp4"),
        (
            "/quantization_config",
            json!({ "quant_method": "bitsandbytes", "load_in_4bit": true }),
            "bitsandbytes",
        ),
        ("/quantization_config", json!({ "load_in_8bit": true }), "bitsandbytes"),
        ("/quantization_config", json!({ "bits": 4 }), "one without a name"),
        ("/quantization_config", json!("int8"), "\"int8\""),
        ("/text_config/quantization_config", json!({ "quant_method": "hqq" }), "hqq"),
        ("/vision_config/quantization_config", json!({ "quant_method": "torchao" }), "torchao"),
        (
            "/compression_config",
            json!({ "quant_method": "compressed-tensors" }),
            "compressed-tensors",
        ),
        ("/quantization", json!({ "group_size": 64, "bits": 4 }), "mlx"),
    ] {
        let mut config = tiny();
        let (parent, key) = place.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[key] = value.clone();
        assert_eq!(found(&folder(&config, None)).as_deref(), Some(name), "{place} {value}");
    }
}

#[test]
fn a_method_that_another_file_announces_is_named() {
    for (file, value, name) in [
        ("quantize_config.json", json!({ "bits": 4, "group_size": 128 }), "gptq"),
        ("quantize_config.json", json!({ "quant_method": "marlin" }), "marlin"),
        ("quant_config.json", json!({ "w_bit": 4, "version": "GEMM" }), "awq"),
        (
            "hf_quant_config.json",
            json!({ "quantization": { "quant_algo": "NVFP4" } }),
            "modelopt NVFP4",
        ),
    ] {
        assert_eq!(found(&folder(&tiny(), Some((file, value)))).as_deref(), Some(name), "{file}");
    }
}

#[test]
fn a_configuration_that_quantises_nothing_is_no_reason() {
    for value in [
        json!(null),
        json!({}),
        json!({ "quant_method": "bitsandbytes", "load_in_4bit": false, "load_in_8bit": false }),
    ] {
        let mut config = tiny();
        config["quantization_config"] = value;
        assert_eq!(found(&folder(&config, None)), None, "{config}");
    }
    let cache = json!({ "quantization": { "quant_algo": null, "kv_cache_quant_algo": "FP8" } });
    assert_eq!(found(&folder(&tiny(), Some(("hf_quant_config.json", cache)))), None);
}

#[test]
fn a_gguf_file_speaks_for_itself() {
    let mut config = tiny();
    config["quantization_config"] = json!({ "quant_method": "awq" });
    let made = vec![("config.json".to_owned(), config.to_string().into_bytes())];
    let files = ModelFiles::described("x", std::path::Path::new("none/x.gguf"), made);
    assert_eq!(found(&files), None);
}

#[test]
fn weights_with_scales_beside_them_are_not_read_without() {
    let dir = root().join("models/llava-1.5-tiny");
    let files = ModelFiles::folder(&dir).unwrap();
    const MODULES: &[&str] = &[
        "language_model.model.layers.1.mlp.up_proj",
        "language_model.lm_head",
        "language_model.model.embed_tokens",
        "multi_modal_projector.linear_1",
    ];
    for module in MODULES {
        for leaf in ["weight_scale", "weight_scale_inv", "scales", "SCB", "weight.absmax"] {
            let mut weights = Weights::open(&dir).unwrap();
            let name = format!("{module}.{leaf}");
            weights.replace(&name, WeightView::from_f32(&name, &[1], &[0.02]));
            let error = load(&files, weights, &reference(), ModelOptions::default());
            let error = error.unwrap_err().to_string();
            assert!(error.contains(leaf) && error.contains("quantised"), "{name}: {error}");
        }
    }
    // A head that is there in quantised form only is not the table.
    let mut weights =
        Weights::open(&dir).unwrap().renamed(|n| (!n.contains("lm_head")).then(|| n.to_owned()));
    let name = "language_model.lm_head.qweight";
    weights.replace(name, WeightView::from_f32(name, &[1], &[0.0]));
    let error = load(&files, weights, &reference(), ModelOptions::default()).unwrap_err();
    assert!(error.to_string().contains("head.qweight"), "{error}");
}
