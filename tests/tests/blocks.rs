//! A GGUF decoder in Q8_0 blocks runs near the reference of its f32 weights, decoded when it is
//! opened (f32) and multiplied as it stands in the file (bf16). Needs the feature `gguf`.
#![cfg(feature = "gguf")]

use secateur::trace::{Histories, Values};
use secateur::{Clip, GgufPair, Precision, Request, Vlm};
use secateur_tests::{Golden, golden, tensors};

/// Largest `|a - b|` over the largest `|b|`.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let largest = b.iter().fold(1e-6f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0.0, |m, (a, b)| m.max((a - b).abs() / largest))
}

#[test]
fn a_quantised_decoder_is_near_the_reference() {
    let folder = golden().join("gguf/llava-1.5-tiny");
    let case = golden().join("open/llava-dense");
    let text = std::fs::read_to_string(case.join("case.json")).expect("case.json");
    let text: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let picture = case.join(text["images"][0].as_str().expect("a picture"));
    let clip: Clip =
        secateur::image::load(&picture, &secateur::image::Limits::default()).expect("a picture");
    let prompt = text["prompt"].as_str().expect("a prompt");
    let want = tensors(&case.join("expected.safetensors"));
    let Some(Golden::Floats(_, want)) = want.get("logits") else { panic!("no logits") };
    for precision in [Precision::F32, Precision::Bf16] {
        let pair = GgufPair {
            decoder: folder.join("model-q8_0.gguf"),
            projector: folder.join("mmproj.gguf"),
        };
        let vlm = Vlm::builder(pair).precision(precision).threads(2).open().expect("it opens");
        let request = Request::new(prompt).raw_prompt().clip(clip.clone()).max_tokens(1);
        let got = vlm.trace(&request, &Histories::new()).expect("it runs");
        let Some((_, Values::Floats(got))) = got.get("logits") else { panic!("no logits") };
        assert_eq!(got.len(), want.len());
        // 8 bits a weight move logits by some percent; another order of rows moves them by 100.
        let found = distance(got, want);
        assert!(found > 0.0 && found < 0.08, "{precision:?}: {found}");
    }
}
