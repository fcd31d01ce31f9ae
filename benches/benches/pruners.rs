//! What choosing costs: every pruner of the registry at 576, 2,880 and 8,192 visual tokens of one
//! picture and a 7B model, keeping a quarter; and the filter of farthest points alone, on one core.
//!
//! `cargo bench -p secateur-benches --bench pruners`. Only [`Pruner::select`] is timed; that the
//! decoder and the tower give the signals is part of the runs that `secateur bench` times. After
//! criterion's lines comes a table with the share of a dense prefill at a stated rate
//! (`SECATEUR_BENCH_TFLOPS`, default 2: bf16 products of two cores with AMX).
//! `SECATEUR_BENCH_THREADS` sets the threads (default: all cores).
//!
//! Tokens come in crops of 576 or 1,024, as towers give them: no tower's map is larger.
#![allow(clippy::print_stdout, reason = "a bench reports on stdout")]
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ndarray::Array2;
use secateur_benches::values;
use secateur_core::chain::{ChainSpec, Params};
use secateur_core::clip::Grid;
use secateur_core::error::{ChainError, RunError};
use secateur_core::model::{DecoderInfo, ModelInfo};
use secateur_core::prune::{Cut, Memory, Observation, Plan, Pruner, Selection};
use secateur_core::testkit::{self, Fill};
use secateur_core::tokens::TokenMap;
use secateur_pruners::PRUNERS;
use secateur_pruners::diversity::{Cosines, farthest_points};

/// Visual tokens, crops, and cells along a crop's side.
const SIZES: &[(usize, u32, u32)] = &[(576, 1, 24), (2880, 5, 24), (8192, 8, 32)];

/// Passes everything on and adds up the time of `select`.
#[derive(Debug)]
struct Timed {
    inner: Box<dyn Pruner>,
    nanos: AtomicU64,
}

impl Pruner for Timed {
    fn plan(&self, model: &ModelInfo) -> Result<Plan, ChainError> {
        self.inner.plan(model)
    }

    fn select(&self, cut: &Cut<'_>, memory: &mut Memory) -> Result<Selection, RunError> {
        let start = Instant::now();
        let selection = self.inner.select(cut, memory);
        self.nanos.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        selection
    }

    fn observe(&self, seen: &Observation<'_>, memory: &mut Memory) {
        self.inner.observe(seen, memory);
    }
}

/// The pruner of a registry row's example, with a quarter of the tokens.
fn build(example: &str) -> Timed {
    let chain = example.replace("keep=64", "keep=0.25");
    let stage = ChainSpec::parse(&chain).expect("examples parse").stages.remove(0);
    let entry = secateur_pruners::registry::find(&stage.pruner).expect("a row of the registry");
    let inner = (entry.build)(&Params::new(&stage.pruner, &stage.params)).expect("examples build");
    Timed { inner, nanos: AtomicU64::new(0) }
}

fn tokens(crops: u32, side: u32) -> TokenMap {
    TokenMap::raster((0..crops).map(|tile| Grid { tile, ..testkit::grid(0, side, side) }).collect())
}

/// Time of `select` in one request; pruners with a history have had a whole episode before it.
fn once(pruner: &Timed, model: &ModelInfo, tokens: &TokenMap, memory: &mut Memory) -> Duration {
    pruner.nanos.store(0, Ordering::Relaxed);
    testkit::run(pruner, model, tokens, Fill::Noise(7), memory).expect("the pruner runs");
    Duration::from_nanos(pruner.nanos.load(Ordering::Relaxed))
}

/// Arithmetic of a dense prefill of that many tokens: two per weight and token, and the causal
/// half of attention's two products.
fn prefill_flops(decoder: &DecoderInfo, inner: usize, tokens: usize) -> f64 {
    let (h, kv) = (decoder.hidden as f64, (decoder.kv_heads * decoder.head_dim) as f64);
    let heads = (decoder.attn_heads * decoder.head_dim) as f64;
    let weights = 2.0 * h * heads + 2.0 * h * kv + 3.0 * h * inner as f64;
    let n = tokens as f64;
    decoder.layers as f64 * (2.0 * weights * n + 2.0 * heads * n * n)
}

fn choosing(c: &mut Criterion) {
    let pool = threads(std::env::var("SECATEUR_BENCH_THREADS").ok().and_then(|n| n.parse().ok()));
    let model = testkit::llava_15_7b();
    let rate = std::env::var("SECATEUR_BENCH_TFLOPS").ok().and_then(|t| t.parse().ok());
    let rate: f64 = rate.unwrap_or(2.0);
    let mut table = String::new();
    for entry in PRUNERS {
        let pruner = build(entry.example);
        let mut group = c.benchmark_group(entry.name);
        let mut row = format!("| `{}` |", entry.name);
        for &(count, crops, side) in SIZES {
            let tokens = tokens(crops, side);
            let mut memory = Memory::default();
            let mut all = Vec::new();
            group.bench_function(BenchmarkId::from_parameter(count), |b| {
                b.iter_custom(|iterations| {
                    let run = || once(&pruner, &model, &tokens, &mut memory);
                    let times: Vec<Duration> = pool.install(|| {
                        std::iter::repeat_with(run).take(iterations as usize).collect()
                    });
                    all.extend_from_slice(&times);
                    times.iter().sum()
                });
            });
            all.sort_unstable();
            let ms = all.get(all.len() / 2).map_or(0.0, |t| t.as_secs_f64() * 1e3);
            let dense = prefill_flops(&model.decoder, 11008, count + 64) / (rate * 1e12) * 1e3;
            row.push_str(&format!(" {ms:.2} | {:.2} % |", 100.0 * ms / dense));
        }
        table.push_str(&row);
        table.push('\n');
        group.finish();
    }
    println!("\nms of choosing, medians, and share of a dense 7B prefill at {rate} TFLOP/s");
    println!("| pruner | 576 | share | 2,880 | share | 8,192 | share |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n{table}");
}

fn threads(count: Option<usize>) -> rayon::ThreadPool {
    let builder = rayon::ThreadPoolBuilder::new().num_threads(count.unwrap_or(0));
    builder.build().expect("threads start")
}

/// Half of 512 candidates, with their similarities ready, and from rows of two decoders' widths.
fn farthest(c: &mut Criterion) {
    let pool = threads(Some(1));
    let mut group = c.benchmark_group("farthest-points-256-of-512");
    for width in [2048, 4096] {
        let rows =
            Array2::from_shape_vec((512, width), values(512 * width, 1.0)).expect("a matrix");
        let cosines = Cosines::new(rows.view());
        let name = |part: &str| BenchmarkId::new(part.to_owned(), width);
        group.bench_function(name("filter"), |b| b.iter(|| farthest_points(&cosines, 256)));
        group.bench_function(name("similarities and filter"), |b| {
            b.iter(|| pool.install(|| farthest_points(&Cosines::new(rows.view()), 256)));
        });
    }
    group.finish();
}

fn short() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
}

criterion_group!(name = benches; config = short(); targets = farthest, choosing);
criterion_main!(benches);
