//! Layers in quantised blocks (GGUF) beside the same layer in bf16, by the number of rows.
//!
//! `cargo bench -p secateur-benches --features gguf --bench blocks`. A layer of 4,096 x 4,096, eight
//! copies used in turn, so that weights come from memory as in a model; medians of seven rounds.
#![allow(clippy::print_stdout, reason = "a bench reports on stdout")]

use std::time::Instant;

use candle_core::quantized::{GgmlDType, QTensor};
use secateur_benches::values;
use secateur_core::ops::cpu::CpuOps;
use secateur_core::ops::{Activation, Linear, Ops, Precision};
use secateur_core::tensor::Tensor;
use secateur_core::weights::{BlockFormat, Format, WeightFile, WeightView};

const SIDE: usize = 4096;
const COPIES: usize = 8;
const ROUNDS: usize = 7;
const ROWS: [usize; 8] = [1, 4, 8, 16, 32, 64, 192, 640];

fn blocks(dtype: GgmlDType, format: BlockFormat) -> WeightView {
    let shape = [SIDE, SIDE];
    let dense =
        candle_core::Tensor::from_vec(values(SIDE * SIDE, 0.05), &shape, &candle_core::Device::Cpu);
    let bytes = QTensor::quantize(&dense.expect("a tensor"), dtype).expect("whole blocks");
    let bytes = bytes.data().expect("bytes").into_owned();
    WeightFile::in_memory("w", bytes).view("w", Format::Blocks(format), &shape, 0).expect("fits")
}

/// Median milliseconds of one layer.
fn time(ops: &CpuOps, layers: &[Linear], rows: usize) -> f64 {
    let x = Tensor::from_slice(rows, SIDE, &values(rows * SIDE, 1.0));
    let mut out = Tensor::default();
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            ops.scope(&mut || {
                for layer in layers {
                    ops.linear(layer, &x, Activation::None, &mut out);
                }
            });
            start.elapsed().as_secs_f64() * 1e3 / layers.len() as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

fn main() {
    let ops = CpuOps::new(Precision::Bf16, None);
    println!("{}; {SIDE} x {SIDE}, milliseconds", ops.describe());
    let dense = WeightView::from_f32("w", &[SIDE, SIDE], &values(SIDE * SIDE, 0.05));
    let formats = [
        ("bf16", dense),
        ("Q8_0", blocks(GgmlDType::Q8_0, BlockFormat::Q8_0)),
        ("Q4_K", blocks(GgmlDType::Q4K, BlockFormat::Q4_K)),
        ("Q6_K", blocks(GgmlDType::Q6K, BlockFormat::Q6_K)),
    ];
    println!("| rows | {} |", formats.each_ref().map(|f| f.0).join(" | "));
    println!("| ---: |{}", " ---: |".repeat(formats.len()));
    let layers = formats.each_ref().map(|(_, view)| -> Vec<Linear> {
        // A copy of its own each: a cache must not serve two of them.
        let copy = || {
            let bytes = view.bytes().to_vec();
            let file = WeightFile::in_memory("w", bytes);
            let view = file.view("w", view.format(), view.shape(), 0).expect("it fits");
            ops.pack_linear(&[view.into()]).expect("a matrix")
        };
        (0..COPIES).map(|_| copy()).collect()
    });
    for rows in ROWS {
        let times = layers.each_ref().map(|l| format!("{:.2}", time(&ops, l, rows)));
        println!("| {rows} | {} |", times.join(" | "));
    }
}
