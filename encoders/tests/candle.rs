//! A tower written in candle, plugged in as an encoder: CLIP's first steps, by hand.
#![cfg(feature = "candle")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use secateur_core::model::{
    Control, Encoder, EncoderInfo, Pixels, ProcessorOptions, SignalKind, TowerSpec, Withheld,
};
use secateur_core::ops::Precision;
use secateur_core::ops::cpu::CpuOps;
use secateur_core::signal::Signal;
use secateur_core::weights::Weights;
use secateur_encoders::candle::{CandleEncoder, CandleRows, CandleTower};
use secateur_encoders::{processors, vit};
use support::{Case, golden, relative, tower_spec, tower_weights};

/// Patch embedding, class token, positions and the first norm: `hidden_states[0]` of CLIP.
#[derive(Debug)]
struct Embeddings {
    info: EncoderInfo,
    weights: BTreeMap<&'static str, Tensor>,
    patch: usize,
}

impl Embeddings {
    fn new(weights: &Weights, info: EncoderInfo) -> Self {
        let names = [
            "embeddings.patch_embedding.weight",
            "embeddings.class_embedding",
            "embeddings.position_embedding.weight",
            "pre_layrnorm.weight",
            "pre_layrnorm.bias",
        ];
        let load = |name: &'static str| {
            let full = format!("tower.{name}");
            let shape = weights.shape_of(&full).unwrap().to_vec();
            let values = weights.tensor(&full, &shape).unwrap().to_f32();
            (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
        };
        Self { info, weights: names.into_iter().map(load).collect(), patch: 14 }
    }
}

impl CandleTower for Embeddings {
    fn info(&self) -> &EncoderInfo {
        &self.info
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn forward(&self, pixels: &Tensor, _: &[Signal]) -> candle_core::Result<CandleRows> {
        let w = |name: &str| &self.weights[name];
        let patches = pixels
            .conv2d(w("embeddings.patch_embedding.weight"), 0, self.patch, 1, 1)?
            .flatten(2, 3)?
            .transpose(1, 2)?;
        let (crops, _, width) = patches.dims3()?;
        let class = w("embeddings.class_embedding").broadcast_as((crops, 1, width))?;
        let x = Tensor::cat(&[&class.contiguous()?, &patches.contiguous()?], 1)?
            .broadcast_add(w("embeddings.position_embedding.weight"))?;
        let centred = x.broadcast_sub(&x.mean_keepdim(2)?)?;
        let variance = centred.sqr()?.mean_keepdim(2)?;
        let hidden = centred
            .broadcast_div(&(variance + 1e-5)?.sqrt()?)?
            .broadcast_mul(w("pre_layrnorm.weight"))?
            .broadcast_add(w("pre_layrnorm.bias"))?;
        Ok(CandleRows { hidden, signals: BTreeMap::new() })
    }
}

#[test]
fn a_candle_tower_is_an_encoder_like_any_other() {
    let case = Case::read(&golden().join("open/llava-two-images-dense"));
    let weights = tower_weights(&case.model);
    let ops = Arc::new(CpuOps::new(Precision::F32, Some(1)));
    // The native tower, asked for its embeddings alone.
    let spec = TowerSpec { feature_layers: vec![0], ..tower_spec(&case.model) };
    let native = vit::build(&spec, &weights, ops.clone()).unwrap();
    let withheld = [SignalKind::ClsAttention, SignalKind::ColumnMean, SignalKind::EncoderKeys]
        .map(|kind| Withheld::all(kind, "the candle tower gives features only"));
    let info = EncoderInfo { withheld: withheld.to_vec(), ..native.info().clone() };
    let ours = CandleEncoder::new(Embeddings::new(&weights, info), 1, ops);

    let files = secateur_core::files::ModelFiles::folder(&case.model).unwrap();
    let processor = processors::from_files(&files, &case.family).unwrap();
    let options = ProcessorOptions { backend: case.backend, ..Default::default() };
    let pixels: Vec<Pixels> =
        case.clips.iter().map(|c| processor.process(c, &options).unwrap()).collect();
    let refs: Vec<&Pixels> = pixels.iter().collect();
    let a = native.encode(&refs, &[], &Control::default()).unwrap();
    let b = ours.encode(&refs, &[], &Control::default()).unwrap();
    assert_eq!(a.crops, b.crops);
    let want: Vec<f64> = a.hidden.host().iter().map(|v| f64::from(*v)).collect();
    assert!(relative(b.hidden.host(), &want) < 1e-5);
}

#[test]
fn a_tower_that_errs_is_an_error() {
    let case = Case::read(&golden().join("open/llava-dense"));
    let weights = tower_weights(&case.model);
    let ops = Arc::new(CpuOps::new(Precision::F32, Some(1)));
    let spec = TowerSpec { feature_layers: vec![0], ..tower_spec(&case.model) };
    let native = vit::build(&spec, &weights, ops.clone()).unwrap();
    let info = EncoderInfo { width: 31, ..native.info().clone() };
    let ours = CandleEncoder::new(Embeddings::new(&weights, info), 4, ops);
    let files = secateur_core::files::ModelFiles::folder(&case.model).unwrap();
    let processor = processors::from_files(&files, &case.family).unwrap();
    let mut pixels = processor.process(&case.clips[0], &ProcessorOptions::default()).unwrap();
    let error = ours.encode(&[&pixels], &[], &Control::default()).unwrap_err().to_string();
    assert!(error.contains("[1, 65, 32]") && error.contains("[1, 65, 31]"), "{error}");
    pixels.shape = vec![3, 112, 112];
    assert!(ours.encode(&[&pixels], &[], &Control::default()).is_err());
}
