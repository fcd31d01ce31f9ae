//! One list of cases over every kernel variant of this machine, against the reference.
//!
//! Tolerances are bounds, not lucky constants: a sum of `k` products of magnitude at most `p` in
//! f32 differs by at most `k 2^-23 p` times a small factor; with bf16 inputs both sides round the
//! same inputs, so the same bound holds. Where a kernel rounds something that the reference rounds
//! elsewhere (softmax weights before normalisation), `2^-8` of the magnitude is added.

#[path = "ops/attention.rs"]
mod attention;
#[cfg(feature = "gguf")]
#[path = "ops/blocks.rs"]
mod blocks;
#[path = "ops/linear.rs"]
mod linear;
#[path = "ops/rows.rs"]
mod rows;

use secateur_core::ops::Precision;
use secateur_core::ops::cpu::{CpuOps, Isa};
use secateur_core::tensor::Tensor;

/// Deterministic values in `(-scale, scale)`.
struct Values(u64);

impl Values {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn vec(&mut self, len: usize, scale: f32) -> Vec<f32> {
        (0..len).map(|_| self.next() * scale).collect()
    }

    fn tensor(&mut self, rows: usize, cols: usize, scale: f32) -> Tensor {
        Tensor::from_slice(rows, cols, &self.vec(rows * cols, scale))
    }
}

/// One operation set for every variant that this machine has; others are named skips.
fn variants(precision: Precision, threads: usize) -> Vec<CpuOps> {
    let mut out = Vec::new();
    for isa in Isa::ALL {
        if isa.is_available() {
            out.push(CpuOps::with_isa(precision, Some(threads), isa));
        } else {
            // The harness shows this with `--nocapture`, and for a failing test.
            #[allow(clippy::print_stdout, reason = "a skipped variant has to be named")]
            {
                println!("skip: this CPU has no {}", isa.name());
            }
        }
    }
    out
}

const BOTH: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// Asserts `|got - want| <= bound`, naming the place.
#[track_caller]
fn close(what: &str, got: &[f32], want: &[f32], bound: f32) {
    assert_eq!(got.len(), want.len(), "{what}: number of values");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let same = g == w || (g - w).abs() <= bound || (g.is_nan() && w.is_nan());
        assert!(same, "{what}: value {i} is {g}, expected {w} within {bound}");
    }
}

/// Asserts equal bits.
#[track_caller]
fn equal_bits(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}: number of values");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(g.to_bits() == w.to_bits(), "{what}: value {i} is {g:e}, expected {w:e}");
    }
}
