//! What `explain` says of every preset on the model that the preset is named after: the sites,
//! counts, positions and signals of a published setting, as people read them.
//!
//! `cargo insta review` shows a difference; it is a change of a published setting.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use secateur_core::model::ModelInfo;
use secateur_core::testkit;
use secateur_pruners::{presets, registry};

/// LLaVA-NeXT-7B: the layers of LLaVA-1.5, four tiles and the whole picture.
fn llava_next_7b() -> ModelInfo {
    let base = testkit::llava_15_7b();
    ModelInfo {
        name: "llava-next-7b".into(),
        family: "llava_next".into(),
        one_to_one: false,
        visual_tokens: 2880,
        ..base
    }
}

/// LLaVA-OneVision-7B: SigLIP, so no class token; 28 decoder layers.
fn onevision_7b() -> ModelInfo {
    let mut model = testkit::llava_15_7b();
    model.name = "llava-onevision-7b".into();
    model.family = "llava_onevision".into();
    model.encoder.tower = "siglip_vision_model".into();
    model.encoder.layers = 26;
    model.encoder.file_layers = 26;
    model.encoder.width = 1152;
    model.encoder.cls = false;
    model.one_to_one = false;
    model.encoder.full_attention_layers = (0..26).collect();
    model.decoder.layers = 28;
    model.decoder.hidden = 3584;
    model.visual_tokens = 7290;
    model
}

/// OpenVLA: 256 visual tokens in front of a Llama of 32 layers.
fn openvla() -> ModelInfo {
    let base = testkit::llava_15_7b();
    ModelInfo { name: "openvla-7b".into(), visual_tokens: 256, ..base }
}

/// OpenVLA-OFT: two cameras.
fn openvla_oft() -> ModelInfo {
    ModelInfo { name: "openvla-oft-7b".into(), visual_tokens: 512, ..openvla() }
}

type Model = fn() -> ModelInfo;

/// The model that a part of a preset's name stands for.
const MODELS: &[(&str, Model)] = &[
    ("llava1.5", testkit::llava_15_7b),
    ("llava-next", llava_next_7b),
    ("onevision", onevision_7b),
    ("openvla-oft", openvla_oft),
    ("openvla", openvla),
];

#[test]
fn every_preset_is_explained_on_its_model() {
    let mut page = String::new();
    for name in presets::names() {
        let (_, model) = MODELS.iter().find(|(part, _)| name.contains(part)).unwrap();
        let model = model();
        let chain = registry::registry().build(presets::get(name).unwrap()).unwrap();
        let resolved = chain.resolve(&model).unwrap_or_else(|e| panic!("{name}: {e}"));
        page.push_str(&format!("== {name}\n{}\n", resolved.explain(&model, model.visual_tokens)));
    }
    insta::assert_snapshot!("presets", page);
}
