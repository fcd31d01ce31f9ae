//! `vtc_cls` on SigLIP's pooling head, end to end: a checkpoint with the head's tensors keeps what
//! the probe's attention ranks highest, one without them is refused by the name of the tensor.
//!
//! Tiny random weights, f32. The order is computed from the definition of multi-head attention.

use std::path::Path;
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use secateur::{Answer, ChainSpec, Error, Precision, Request, Vlm};
use secateur_core::files::ModelFiles;
use secateur_core::model::{Control, ProcessorOptions};
use secateur_core::ops::cpu::CpuOps;
use secateur_core::weights::Weights;
use secateur_models::ModelOptions;
use secateur_tests::golden;

const WIDTH: usize = 32;
const HEADS: usize = 2;
const KEEP: usize = 7;
const CHAIN: &str = "vtc_cls:keep=7:fallback=pooling_head";

/// Probe, stacked projection and bias.
fn head() -> [(&'static str, Vec<usize>, Vec<f32>); 3] {
    let mut state = 7u32;
    let mut random = |n: usize| -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    };
    [
        ("probe", vec![1, 1, WIDTH], random(WIDTH)),
        ("attention.in_proj_weight", vec![3 * WIDTH, WIDTH], random(3 * WIDTH * WIDTH)),
        ("attention.in_proj_bias", vec![3 * WIDTH], random(3 * WIDTH)),
    ]
}

/// Copies a model and adds the head to its tensors.
fn add_head(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copied");
    }
    let bytes = std::fs::read(from.join("model.safetensors")).expect("weights");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let added: Vec<(String, Vec<usize>, Vec<u8>)> = head()
        .into_iter()
        .map(|(name, shape, values)| {
            let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            (format!("vision_tower.head.{name}"), shape, data)
        })
        .collect();
    let mut views = file.tensors();
    views.extend(added.iter().map(|(name, shape, data)| {
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), data).expect("a view"))
    }));
    safetensors::serialize_to_file(views, None, &to.join("model.safetensors")).expect("written");
}

fn ask(model: &Path) -> Result<Answer, Error> {
    let vlm = Vlm::builder(model).precision(Precision::F32).threads(2).open()?;
    let picture = golden().join("images/shapes-160x120.png");
    let request = Request::new("What is this?").path(&picture)?;
    let session = vlm.session().chain(ChainSpec::parse(CHAIN)?);
    { session }.ask(request.max_tokens(2).ignore_eos().detail())?.finish()
}

/// Mean over heads of `softmax(q k^T / sqrt(d))`, patches from the most looked at to the least.
fn reference_order(x: &[f32]) -> Vec<u32> {
    let [(_, _, probe), (_, _, weight), (_, _, bias)] = head();
    let project = |input: &[f32], row: usize| -> f64 {
        let weights = &weight[row * WIDTH..][..WIDTH];
        let dot: f64 = weights.iter().zip(input).map(|(w, v)| f64::from(w * v)).sum();
        dot + f64::from(bias[row])
    };
    let e = WIDTH / HEADS;
    let patches: Vec<&[f32]> = x.chunks_exact(WIDTH).collect();
    let mut mean = vec![0.0; patches.len()];
    for rows in [0..e, e..2 * e] {
        let logit = |x: &[f32]| -> f64 {
            let dot: f64 = rows.clone().map(|r| project(&probe, r) * project(x, WIDTH + r)).sum();
            dot / (e as f64).sqrt()
        };
        let exp: Vec<f64> = patches.iter().map(|x| logit(x).exp()).collect();
        let sum: f64 = exp.iter().sum();
        mean.iter_mut().zip(exp).for_each(|(m, v)| *m += v / sum);
    }
    let mut order: Vec<u32> = (0..mean.len() as u32).collect();
    order.sort_by(|&a, &b| mean[b as usize].total_cmp(&mean[a as usize]));
    order
}

#[test]
fn the_patches_that_the_probe_looks_at_are_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    add_head(&golden().join("models/paligemma-tiny"), folder.path());
    let answer = ask(folder.path()).expect("the head is there");
    assert!(answer.report.notes.iter().any(|n| n.contains("pooling_head")));

    // PaliGemma's features pass the post norm: they are what the head reads.
    let files = ModelFiles::folder(folder.path()).expect("a model");
    let ops: Arc<dyn secateur::Ops> = Arc::new(CpuOps::new(Precision::F32, Some(1)));
    let weights = Weights::open(folder.path()).expect("weights");
    let model = secateur_models::load(&files, weights, &ops, ModelOptions::default())
        .expect("the model loads");
    let tower = secateur_encoders::vit::build(&model.tower, &model.weights, ops).expect("a tower");
    let processor =
        secateur_encoders::processors::from_files(&files, "paligemma").expect("a processor");
    let picture = golden().join("images/shapes-160x120.png");
    let clip = secateur_encoders::image::load(&picture, &Default::default()).expect("a picture");
    let pixels = processor.process(&clip, &ProcessorOptions::default()).expect("pixels");
    let rows = tower.encode(&[&pixels], &[], &Control::default()).expect("rows").hidden;

    let mut want = reference_order(rows.host());
    want.truncate(KEEP);
    want.sort_unstable();
    let stage = answer.report.stages.last().expect("a cut");
    let kept: Vec<u32> = stage.tokens.tokens.iter().map(|t| t.index).collect();
    assert_eq!(kept, want);
}

#[test]
fn without_the_head_the_error_names_what_is_missing() {
    let error = ask(&golden().join("models/paligemma-tiny")).expect_err("no head").to_string();
    assert!(error.contains("encoder.pooling_attention"), "{error}");
    assert!(error.contains("head.probe"), "{error}");
}
