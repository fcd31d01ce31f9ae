//! The operations that take the time: linear layers, attention, norms.
//!
//! `cargo bench -p secateur-benches --bench ops`. Before criterion's own lines, each case prints its
//! best rate and the share of the ceiling that binds it (arithmetic or memory, `probe`). Weights are
//! several copies used in turn, so that they come from memory as in a model.
//!
//! `SECATEUR_ISA` chooses the kernels, `SECATEUR_BENCH_THREADS` the threads (default: all cores).
#![allow(clippy::print_stdout, reason = "a bench reports on stdout")]
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use secateur_benches::probe::{Roofline, roofline};
use secateur_benches::values;
use secateur_core::cache::LayerCache;
use secateur_core::ops::cpu::{CpuOps, Isa};
use secateur_core::ops::{
    Activation, AttentionParams, Heads, Keys, Linear, Mask, NormKind, Ops, Precision, Segment,
};
use secateur_core::tensor::Tensor;
use secateur_core::weights::WeightView;

fn threads() -> usize {
    let asked = std::env::var("SECATEUR_BENCH_THREADS").ok().and_then(|n| n.parse().ok());
    asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

fn machine(precision: Precision) -> (CpuOps, Roofline) {
    let ops = CpuOps::new(precision, Some(threads()));
    let ceiling = roofline(precision, Isa::chosen(), threads());
    println!(
        "{}: ceilings {:.0} GFLOP/s, {:.1} GB/s",
        ops.describe(),
        ceiling.gflops,
        ceiling.gbytes
    );
    (ops, ceiling)
}

/// Prints the best of some runs beside the ceiling that binds it.
fn share(name: &str, ceiling: Roofline, flops: f64, bytes: f64, mut run: impl FnMut()) {
    let mut best = Duration::MAX;
    for _ in 0..7 {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed());
    }
    let ns = best.as_nanos() as f64;
    let (arithmetic, memory) = (flops / ceiling.gflops, bytes / ceiling.gbytes);
    println!(
        "{name}: {:.3} ms, {:.0} GFLOP/s, {:.1} GB/s, {:.0} % of the {} ceiling",
        ns / 1e6,
        flops / ns,
        bytes / ns,
        100.0 * arithmetic.max(memory) / ns,
        if arithmetic > memory { "arithmetic" } else { "memory" },
    );
}

fn linear(c: &mut Criterion) {
    const COPIES: usize = 6;
    let (inputs, outputs) = (2048, 5632);
    for precision in [Precision::F32, Precision::Bf16] {
        let (ops, ceiling) = machine(precision);
        let weights =
            WeightView::from_f32("w", &[outputs, inputs], &values(inputs * outputs, 0.05));
        let layers: Vec<Linear> = (0..COPIES)
            .map(|_| ops.pack_linear(&[weights.clone().into()]).expect("shapes agree"))
            .collect();
        let mut group = c.benchmark_group(format!("linear-{}", precision.dtype()));
        for rows in [1, 8, 64, 640] {
            let x = Tensor::from_slice(rows, inputs, &values(rows * inputs, 1.0));
            let mut out = Tensor::zeros(rows, outputs);
            let flops = 2.0 * (rows * inputs * outputs) as f64;
            let bytes = (inputs * outputs * precision.dtype().size()) as f64;
            let mut turn = 0;
            let mut run = || {
                ops.linear(&layers[turn % COPIES], &x, Activation::None, &mut out);
                turn += 1;
            };
            let name = format!("linear {} {rows} x {inputs} x {outputs}", precision.dtype());
            ops.scope(&mut || share(&name, ceiling, flops, bytes, &mut run));
            group.throughput(Throughput::Elements(flops as u64));
            group.bench_function(BenchmarkId::from_parameter(rows), |b| b.iter(&mut run));
        }
        group.finish();
    }
}

fn attention(c: &mut Criterion) {
    // `(name, queries, keys, heads, KV heads, width of a head, mask)`
    let cases = [
        ("prefill 640", 640, 640, 32, 4, 64, Mask::Causal),
        ("encoder 577", 577, 577, 16, 16, 64, Mask::Full),
        ("decode at 640", 1, 640, 32, 4, 64, Mask::Causal),
    ];
    for precision in [Precision::F32, Precision::Bf16] {
        let (ops, ceiling) = machine(precision);
        let mut group = c.benchmark_group(format!("attention-{}", precision.dtype()));
        for (name, n, keys, heads, kv_heads, head_dim, mask) in cases {
            let q = Tensor::from_slice(n, heads * head_dim, &values(n * heads * head_dim, 2.0));
            let width = kv_heads * head_dim;
            let kv = Tensor::from_slice(keys, width, &values(keys * width, 2.0));
            let kv = Heads { tensor: &kv, offset: 0, heads: kv_heads, head_dim };
            let mut cache = LayerCache::new(kv_heads, head_dim, keys, precision.dtype());
            ops.cache_append(&mut cache, kv, kv, 0..keys);
            let segment =
                Segment { rows: 0..n, keys: Keys::Cached(&cache), mask, window: None, scores: &[] };
            let q = Heads { tensor: &q, offset: 0, heads, head_dim };
            let params = AttentionParams { scale: 0.125, softcap: None };
            let mut out = Tensor::zeros(n, heads * head_dim);
            let mut run = || {
                ops.attention(params, q, std::slice::from_ref(&segment), &mut out);
            };
            let seen = if mask == Mask::Causal && n > 1 { keys as f64 / 2.0 } else { keys as f64 };
            let flops = 4.0 * (n * heads * head_dim) as f64 * seen;
            let bytes = cache.bytes() as f64;
            let what = format!("attention {} {name}", precision.dtype());
            ops.scope(&mut || share(&what, ceiling, flops, bytes, &mut run));
            group.throughput(Throughput::Elements(flops as u64));
            group.bench_function(BenchmarkId::from_parameter(name), |b| b.iter(&mut run));
        }
        group.finish();
    }
}

fn norm(c: &mut Criterion) {
    let width = 2048;
    let (ops, ceiling) = machine(Precision::F32);
    let rms = ops.pack_norm(NormKind::Rms, vec![1.0; width], None, 1e-5);
    let mut group = c.benchmark_group("add_norm");
    for rows in [1, 640] {
        let mut x = Tensor::from_slice(rows, width, &values(rows * width, 1.0));
        let delta = Tensor::from_slice(rows, width, &values(rows * width, 1e-6));
        let mut out = Tensor::zeros(rows, width);
        let mut run = || ops.add_norm(&mut x, &delta, None, &rms, &mut out);
        // Two tensors read, two written.
        let (flops, bytes) = (6.0 * (rows * width) as f64, 16.0 * (rows * width) as f64);
        let name = format!("add_norm {rows} x {width}");
        ops.scope(&mut || share(&name, ceiling, flops, bytes, &mut run));
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::from_parameter(rows), |b| b.iter(&mut run));
    }
    group.finish();
}

fn settings() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20)
}

criterion_group! { name = benches; config = settings(); targets = linear, attention, norm }
criterion_main!(benches);
