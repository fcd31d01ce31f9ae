//! Adapters that cannot be merged are refused by name, and nothing of an adapter is left out. That
//! merged values are those of PEFT is for the cases of `tests/golden/bugs`.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::fs::File;
use std::io::Write;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use secateur_core::weights::{WeightView, Weights};
use secateur_models::adapter::Adapter;
use serde_json::{Value, json};

/// A base of three tensors, under published names.
fn base() -> Weights {
    let view = |name: &str, shape: &[usize]| {
        let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| i as f32).collect();
        (name.to_owned(), WeightView::from_f32(name, shape, &values))
    };
    Weights::from_views(
        "the base",
        [
            view("language_model.model.embed_tokens.weight", &[3, 2]),
            view("language_model.model.layers.0.self_attn.q_proj.weight", &[2, 2]),
            view("language_model.model.layers.0.mlp.up_proj.weight", &[4, 2]),
        ],
    )
}

const Q: &str = "base_model.model.model.language_model.layers.0.self_attn.q_proj";

/// Writes an adapter: its configuration, and tensors of ones.
fn write(folder: &Path, config: &Value, tensors: &[(String, Vec<usize>)]) {
    let mut file = File::create(folder.join("adapter_config.json")).unwrap();
    file.write_all(config.to_string().as_bytes()).unwrap();
    let ones: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, shape)| {
            let bytes = 1f32.to_le_bytes().repeat(shape.iter().product());
            (name.clone(), shape.clone(), bytes)
        })
        .collect();
    let views = ones
        .iter()
        .map(|(n, shape, b)| (n, TensorView::new(Dtype::F32, shape.clone(), b).unwrap()));
    let mut file = File::create(folder.join("adapter_model.safetensors")).unwrap();
    file.write_all(&safetensors::serialize(views, None).unwrap()).unwrap();
}

fn factors(module: &str, rank: usize) -> Vec<(String, Vec<usize>)> {
    vec![
        (format!("{module}.lora_A.weight"), vec![rank, 2]),
        (format!("{module}.lora_B.weight"), vec![2, rank]),
    ]
}

fn merged(config: &Value, tensors: &[(String, Vec<usize>)]) -> Result<Weights, String> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), config, tensors);
    let adapter = Adapter::open(folder.path()).map_err(|e| e.to_string())?;
    adapter.merged(base()).map_err(|e| e.to_string())
}

fn lora(change: Value) -> Value {
    let mut config = json!({ "peft_type": "LORA", "r": 1, "lora_alpha": 2 });
    config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    config
}

fn q_of(weights: &Weights) -> Vec<f32> {
    let name = "language_model.model.layers.0.self_attn.q_proj.weight";
    weights.tensor(name, &[2, 2]).unwrap().to_f32()
}

#[test]
fn names_of_every_release_land_in_the_same_tensor() {
    for module in [
        Q.to_owned(),
        "base_model.model.language_model.model.layers.0.self_attn.q_proj".into(),
        "model.language_model.layers.0.self_attn.q_proj".into(),
    ] {
        let weights = merged(&lora(json!({})), &factors(&module, 1)).unwrap();
        assert_eq!(q_of(&weights), [2.0, 3.0, 4.0, 5.0], "{module}");
    }
    // The name that the adapter had in a program may stand between.
    let named = [
        (format!("{Q}.lora_A.default.weight"), vec![1, 2]),
        (format!("{Q}.lora_B.default.weight"), vec![2, 1]),
    ];
    assert_eq!(q_of(&merged(&lora(json!({})), &named).unwrap()), [2.0, 3.0, 4.0, 5.0]);
}

#[test]
fn the_factor_is_that_of_the_module() {
    let first = |config: Value, rank| q_of(&merged(&lora(config), &factors(Q, rank)).unwrap())[0];
    assert_eq!(first(json!({ "r": 4, "lora_alpha": 2 }), 4), 2.0);
    assert_eq!(first(json!({ "r": 4, "lora_alpha": 2, "use_rslora": true }), 4), 4.0);
    assert_eq!(first(json!({ "r": 4, "rank_pattern": { "q_proj": 2 } }), 2), 2.0);
    assert_eq!(first(json!({ "alpha_pattern": { r"layers\.\d+\..*proj": 5 } }), 1), 5.0);
    assert_eq!(first(json!({ "alpha_pattern": { "proj": 5 } }), 1), 2.0);
    // Whether the base stores its matrices turned is a matter of classes that no family here has.
    assert_eq!(first(json!({ "fan_in_fan_out": true }), 1), 2.0);
}

#[test]
fn what_is_not_plain_lora_is_refused_by_name() {
    for (change, word) in [
        (json!({ "peft_type": "IA3" }), "IA3"),
        (json!({ "use_dora": true }), "use_dora"),
        (json!({ "alora_invocation_tokens": [1, 2] }), "alora_invocation_tokens"),
        (json!({ "layer_replication": [[0, 1], [0, 1]] }), "layer_replication"),
        (json!({ "target_parameters": ["experts.up"] }), "target_parameters"),
        (json!({ "trainable_token_indices": [3] }), "trainable_token_indices"),
        (json!({ "init_lora_weights": "pissa_niter_4" }), "pissa_niter_4"),
        (json!({ "r": 0 }), "`r`"),
        (json!({ "r": u64::MAX }), "`r`"),
        (json!({ "lora_alpha": "x" }), "lora_alpha"),
        (json!({ "alpha_pattern": { "(": 1 } }), "alpha_pattern.("),
        (json!({ "rank_pattern": [1] }), "rank_pattern"),
    ] {
        let error = merged(&lora(change.clone()), &factors(Q, 1)).unwrap_err();
        assert!(error.contains(word) && error.contains("adapter_config.json"), "{change}: {error}");
    }
    for start in [json!(true), json!("gaussian"), json!(null)] {
        merged(&lora(json!({ "init_lora_weights": start })), &factors(Q, 1)).unwrap();
    }
}

#[test]
fn every_tensor_lands_or_is_named() {
    let one = |name: &str, shape: &[usize]| vec![(name.to_owned(), shape.to_vec())];
    type Tensors = Vec<(String, Vec<usize>)>;
    let cases: Vec<(Tensors, Vec<&str>)> = vec![
        (factors("base_model.model.other.proj", 1), vec!["other.proj.lora_A", "the base"]),
        (one("base_model.model.lm_head.bias", &[3]), vec!["lm_head.bias"]),
        (one(&format!("{Q}.lora_A.weight"), &[1, 2]), vec!["q_proj", "factor B"]),
        (one(&format!("{Q}.lora_magnitude_vector"), &[2]), vec!["lora_magnitude_vector"]),
        (factors(Q, 3), vec!["q_proj", "rank 3", "says 1"]),
        (
            vec![
                (format!("{Q}.lora_A.weight"), vec![1, 5]),
                (format!("{Q}.lora_B.weight"), vec![2, 1]),
            ],
            vec!["q_proj", "[2, 5]", "[2, 2]"],
        ),
        (
            vec![(format!("{Q}.lora_A.weight"), vec![2]), (format!("{Q}.lora_B.weight"), vec![2])],
            vec!["q_proj.lora_B", "[2]"],
        ),
        (
            vec![
                (format!("{Q}.lora_A.weight"), vec![1, 0]),
                (format!("{Q}.lora_B.weight"), vec![2, 1]),
            ],
            vec!["q_proj.lora_B"],
        ),
        (
            one("base_model.model.model.embed_tokens.weight", &[9, 2]),
            vec!["embed_tokens", "[9, 2]"],
        ),
        (factors("base_model.model.lm_head", 1), vec!["lm_head", "one matrix"]),
        (Vec::new(), vec!["no tensor"]),
    ];
    for (tensors, words) in cases {
        let error = merged(&lora(json!({})), &tensors).unwrap_err();
        for word in words {
            assert!(error.contains(word), "{tensors:?}: no `{word}` in {error}");
        }
    }
}

#[test]
fn a_base_whose_weights_are_unread_or_in_part_there_is_not_changed_silently() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &lora(json!({})), &factors(Q, 1));
    let adapter = Adapter::open(folder.path()).unwrap();
    // Twice the same adapter.
    let once = adapter.merged(base()).unwrap();
    let error = adapter.merged(once).unwrap_err().to_string();
    assert!(error.contains("changed twice"), "{error}");
    let error = adapter.merged(Weights::random(1, secateur_core::tensor::DType::F32));
    assert!(error.unwrap_err().to_string().contains("q_proj"));
}

#[test]
fn a_folder_without_the_tensors_says_which_file_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Adapter::open(folder.path()).unwrap_err().to_string();
    assert!(open().contains("adapter_config.json"), "{}", open());
    write(folder.path(), &lora(json!({})), &factors(Q, 1));
    std::fs::remove_file(folder.path().join("adapter_model.safetensors")).unwrap();
    assert!(open().contains("adapter_model.safetensors"), "{}", open());
    File::create(folder.path().join("adapter_model.bin")).unwrap();
    assert!(open().contains("adapter_model.bin"), "{}", open());
}
