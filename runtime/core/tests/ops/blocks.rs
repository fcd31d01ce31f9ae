//! Layers in quantised blocks equal the layers of their decoded weights.

use candle_core::quantized::{GgmlDType, QTensor};
use secateur_core::ops::reference::ReferenceOps;
use secateur_core::ops::{Activation, Ops, Precision};
use secateur_core::tensor::Tensor;
use secateur_core::weights::{BlockFormat, Format, Matrix, WeightFile, WeightView};

use super::{Values, close, variants};

const FORMATS: [(GgmlDType, BlockFormat); 5] = [
    (GgmlDType::Q8_0, BlockFormat::Q8_0),
    (GgmlDType::Q4_0, BlockFormat::Q4_0),
    (GgmlDType::Q4K, BlockFormat::Q4_K),
    (GgmlDType::Q5K, BlockFormat::Q5_K),
    (GgmlDType::Q6K, BlockFormat::Q6_K),
];

/// Random weights as candle quantises them.
fn quantised(
    (dtype, format): (GgmlDType, BlockFormat),
    shape: [usize; 2],
    values: &mut Values,
) -> WeightView {
    let data = values.vec(shape[0] * shape[1], 0.5);
    let dense = candle_core::Tensor::from_vec(data, &shape, &candle_core::Device::Cpu);
    let blocks = QTensor::quantize(&dense.expect("a tensor"), dtype).expect("whole blocks");
    let bytes = blocks.data().expect("bytes").into_owned();
    WeightFile::in_memory("w.gguf", bytes)
        .view("w", Format::Blocks(format), &shape, 0)
        .expect("it fits")
}

fn decoded(view: &WeightView) -> WeightView {
    WeightView::from_f32("w", view.shape(), &view.to_f32())
}

/// Rows, inputs, outputs, gated.
fn check(format: (GgmlDType, BlockFormat), rows: usize, shape: [usize; 2], gated: bool) {
    let mut values = Values::new(11);
    let w = [quantised(format, shape, &mut values), quantised(format, shape, &mut values)];
    let bias = WeightView::from_f32("b", &shape[..1], &values.vec(shape[0], 1.0));
    let x = values.tensor(rows, shape[1], 1.0);
    let run = |ops: &dyn Ops, w: &[WeightView; 2]| {
        let mut parts = w.clone().map(Matrix::from);
        parts[0].bias = Some(bias.clone());
        let mut out = Tensor::default();
        if gated {
            let layer = ops.pack_gated(&parts[0], &parts[1]).expect("shapes agree");
            ops.gated_linear(&layer, &x, Activation::Silu, &mut out);
        } else {
            let layer = ops.pack_linear(&parts).expect("they agree");
            ops.linear(&layer, &x, Activation::None, &mut out);
        }
        out.host().to_vec()
    };
    let plain = [decoded(&w[0]), decoded(&w[1])];
    let want = run(&ReferenceOps::new(Precision::Bf16), &plain);
    // A sum of `inputs` products of at most 0.25 whose errors are independent: inputs of a block
    // are rounded to 1/254 of their largest, bf16 to 1/512. Six deviations; a gate multiplies by the
    // other sum, which reaches some 12.
    let deviation = (shape[1] as f32).sqrt() * 0.25 * (1.0 / 254.0);
    let bound = 6.0 * deviation * if gated { 12.0 } else { 1.0 };
    for ops in variants(Precision::Bf16, 2) {
        let what = format!("{}, {}, {rows} rows, {shape:?}", ops.describe(), format.1.name());
        close(&what, &run(&ops, &w), &want, bound);
    }
}

#[test]
fn layers_in_blocks_equal_those_of_the_decoded_weights() {
    for format in FORMATS {
        for rows in [1, 3, 23, 24, 61] {
            check(format, rows, [40, 256], false);
            check(format, rows, [24, 512], true);
        }
    }
}

/// More panels than a group has, and a last group that is not full.
#[test]
fn groups_of_panels_follow_one_another() {
    check(FORMATS[2], 26, [1100, 4096], false);
    check(FORMATS[0], 26, [560, 4096], true);
}

/// In f32 blocks are decoded when they are packed, and nothing else differs.
#[test]
fn f32_layers_in_blocks_are_those_of_the_decoded_weights() {
    let mut values = Values::new(3);
    let w = quantised(FORMATS[2], [33, 256], &mut values);
    let x = values.tensor(5, 256, 1.0);
    for ops in variants(Precision::F32, 1) {
        let run = |w: &WeightView| {
            let mut out = Tensor::default();
            ops.linear(
                &ops.pack_linear(&[w.clone().into()]).expect("a matrix"),
                &x,
                Activation::None,
                &mut out,
            );
            out.host().to_vec()
        };
        assert_eq!(run(&w), run(&decoded(&w)), "{}", ops.describe());
    }
}
