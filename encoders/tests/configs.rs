//! Configurations that lie: an error that names the field, before a weight is read, and no panic.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use secateur_core::files::{Fields, ModelFiles};
use secateur_core::model::{ProcessorOptions, TowerSpec};
use secateur_core::ops::Precision;
use secateur_core::ops::cpu::CpuOps;
use secateur_core::tensor::DType;
use secateur_core::weights::Weights;
use secateur_encoders::processors::{self, QwenVl, SingleCrop, SmolVlm};
use secateur_encoders::vit;
use serde_json::{Value, json};
use support::{entries, golden, tower_spec, tower_weights};

fn spec(kind: &str, config: Value) -> TowerSpec {
    TowerSpec {
        file: "config.json".into(),
        kind: kind.into(),
        config,
        feature_layers: vec![-1],
        final_norm: false,
    }
}

/// The error of a configuration, without weights: reading one would fail in another way.
fn refusal(spec: &TowerSpec) -> String {
    let ops = Arc::new(CpuOps::new(Precision::F32, Some(1)));
    let weights = Weights::random(1, DType::F32).renamed(|_| None);
    match vit::build(spec, &weights, ops) {
        Err(vit::EncoderLoadError::Config(error)) => error.to_string(),
        Err(other) => panic!("{other} is not about the configuration"),
        Ok(tower) => panic!("{tower:?} was built"),
    }
}

#[test]
fn a_tower_that_cannot_be_is_refused_by_the_name_of_its_field() {
    let clip = |key: &str, value: Value| {
        let mut config = json!({"hidden_size": 64, "num_attention_heads": 4, "image_size": 28,
            "patch_size": 14, "num_hidden_layers": 2, "intermediate_size": 64});
        config[key] = value;
        refusal(&spec("clip_vision_model", config))
    };
    for (key, value) in [
        ("num_attention_heads", json!(5)),
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!("4")),
        ("patch_size", json!(29)),
        ("patch_size", json!(-1)),
        ("patch_size", json!([14, 7])),
        ("image_size", json!(2_147_483_648_u64)),
        ("hidden_size", json!(1e30)),
        ("hidden_act", json!("mish")),
        ("num_channels", json!(1)),
        ("layer_norm_eps", json!(-1.0)),
    ] {
        let error = clip(key, value.clone());
        assert!(error.contains(key), "{key} = {value}: {error}");
    }
    let qwen = |key: &str, value: Value| {
        let mut config = json!({"hidden_size": 24, "num_heads": 3, "depth": 2,
            "fullatt_block_indexes": [1], "intermediate_size": 40});
        config[key] = value;
        refusal(&spec("qwen2_5_vl", config))
    };
    for (key, value) in [
        ("window_size", json!(27)),
        ("num_heads", json!(4)),
        ("fullatt_block_indexes", json!(["a"])),
        ("temporal_patch_size", json!(0)),
    ] {
        let error = qwen(key, value.clone());
        assert!(error.contains(key), "{key} = {value}: {error}");
    }
    let error = refusal(&spec("eva_clip", json!({})));
    assert!(error.contains("eva_clip") && error.contains("siglip_vision_model"), "{error}");
    let mut deep = spec("clip_vision_model", json!({"num_hidden_layers": 2}));
    deep.feature_layers = vec![-4];
    let error = refusal(&deep);
    assert!(error.contains("vision_feature_layer") && error.contains("2 layers"), "{error}");
}

#[test]
fn every_integer_of_every_tower_may_lie_without_a_panic() {
    for model in entries(&golden().join("models")) {
        let honest = tower_spec(&model);
        let weights = tower_weights(&model);
        let keys: Vec<String> = honest.config.as_object().unwrap().keys().cloned().collect();
        for key in keys {
            for lie in [
                json!(0),
                json!(1),
                json!(-1),
                json!(2_147_483_648_u64),
                json!(null),
                json!("x"),
                json!([]),
                json!({}),
                json!(1.5),
            ] {
                let mut spec = honest.clone();
                spec.config[&key] = lie.clone();
                let ops = Arc::new(CpuOps::new(Precision::F32, Some(1)));
                // A lie that does no harm may pass; a tower that does not fit its weights may not.
                let _ = vit::build(&spec, &weights, ops);
            }
        }
    }
}

#[test]
fn a_tensor_of_another_shape_is_named() {
    let model = golden().join("models/llava-1.5-tiny");
    let mut spec = tower_spec(&model);
    spec.config["intermediate_size"] = json!(48);
    let ops = Arc::new(CpuOps::new(Precision::F32, Some(1)));
    let error = vit::build(&spec, &tower_weights(&model), ops).unwrap_err().to_string();
    assert!(error.contains("mlp.fc1.weight") && error.contains("[48, 32]"), "{error}");
}

#[test]
fn a_preprocessor_that_cannot_be_is_refused_by_the_name_of_its_field() {
    let build = |value: Value| {
        SingleCrop::clip(&Fields::root("preprocessor_config.json", &value).unwrap(), 14)
            .unwrap_err()
            .to_string()
    };
    for (key, value) in [
        ("size", json!({"shortest_edge": 0})),
        ("size", json!("large")),
        ("crop_size", json!({"height": 336})),
        ("crop_size", json!(7)),
        ("image_std", json!([0.5, 0.0, 0.5])),
        ("image_mean", json!([0.5, 0.5])),
        ("resample", json!(0)),
        ("rescale_factor", json!(0)),
        ("do_pad", json!("yes")),
    ] {
        let error = build(json!({ key: value }));
        assert!(error.contains(key), "{key} = {value}: {error}");
    }
    let value = json!({"min_pixels": 10, "max_pixels": 5});
    let fields = Fields::root("preprocessor_config.json", &value).unwrap();
    let error = QwenVl::new(&fields, None, processors::Generation::Two).unwrap_err().to_string();
    assert!(error.contains("min_pixels"), "{error}");
    let value = json!({"size": {"longest_edge": 0}});
    let fields = Fields::root("preprocessor_config.json", &value).unwrap();
    assert!(SmolVlm::new(&fields, None, 14).unwrap_err().to_string().contains("longest_edge"));
}

#[test]
fn nested_files_win_and_unknown_families_list_the_known() {
    let files = ModelFiles::embedded(
        "tiny",
        &[
            ("config.json", br#"{"vision_config": {"patch_size": 7}}"#),
            ("preprocessor_config.json", br#"{"size": 56, "crop_size": 56}"#),
            (
                "processor_config.json",
                br#"{"image_processor": {"image_processor_type": "CLIPImageProcessorFast",
                     "size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}}"#,
            ),
        ],
    );
    let processor = processors::from_files(&files, "llava").unwrap();
    let grids = processor.crops(100, 50, &ProcessorOptions::default()).unwrap();
    assert_eq!((grids[0].rows, grids[0].cols), (4, 4));
    let error = processors::from_files(&files, "llama").unwrap_err().to_string();
    assert!(error.contains("llama") && error.contains("qwen2_5_vl"), "{error}");
    let empty = ModelFiles::embedded("tiny", &[("config.json", b"{}")]);
    let error = processors::from_files(&empty, "llava").unwrap_err().to_string();
    assert!(error.contains("preprocessor_config.json"), "{error}");
}
