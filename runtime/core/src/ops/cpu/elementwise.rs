//! Operations that treat every value on its own: activations, scaling, sums of tensors.
#![allow(unsafe_code, reason = "vector loads and stores, and rows written from several threads")]

use super::detect::Isa;
use super::memory::Shared;
use super::simd::{self, Job, Simd};
use super::threads::Threads;
use crate::ops::Activation;

/// Values of a task: below this the hand-over costs more than the work.
const GRAIN: usize = 1 << 15;

/// An activation of a vector. Silu, quick GELU and the tanh form are all `x sigmoid(y)`: the last
/// by `(1 + tanh z) / 2 = sigmoid(2 z)`, which keeps its relative accuracy for negative `x`.
#[inline(always)]
pub(super) fn activate<S: Simd>(s: S, act: Activation, x: S::F) -> S::F {
    match act {
        Activation::None => x,
        Activation::Silu => s.mul(x, s.sigmoid(x)),
        Activation::QuickGelu => s.mul(x, s.sigmoid(s.mul(s.splat(1.702), x))),
        Activation::GeluTanh => {
            // 2 sqrt(2 / pi) (x + 0.044715 x³)
            let cubic = s.mul(s.mul(x, x), s.splat(0.071_354_814));
            s.mul(x, s.sigmoid(s.mul(x, s.add(cubic, s.splat(1.595_769)))))
        }
        Activation::GeluErf => {
            let half = s.mul(x, s.splat(0.5));
            let erf = s.erf(s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2)));
            s.fma(half, erf, half)
        }
        Activation::Relu => s.max(x, s.splat(0.0)),
    }
}

/// `f` on the vectors of slices of one length; the rest goes through a padded copy, so that each
/// value meets the same instructions wherever it stands.
///
/// `f` has to be small: it is inlined by its size, and code that is not inlined here is compiled
/// without the CPU's features. Exponentials go into plain loops.
#[inline(always)]
pub(super) fn map_rows<S: Simd, const N: usize>(
    s: S,
    ins: [&[f32]; N],
    out: &mut [f32],
    f: impl Fn([S::F; N], S::F) -> S::F,
) {
    let len = out.len();
    assert!(ins.iter().all(|x| x.len() == len), "slices of one length");
    let whole = len / S::LANES * S::LANES;
    let mut xs = [s.splat(0.0); N];
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: `i + LANES <= len`, the length of every slice.
        unsafe {
            for (x, from) in xs.iter_mut().zip(&ins) {
                *x = s.load(from.as_ptr().add(i));
            }
            let old = s.load(out.as_ptr().add(i));
            s.store(out.as_mut_ptr().add(i), f(xs, old));
        }
    }
    if whole < len {
        for (x, from) in xs.iter_mut().zip(&ins) {
            *x = load_padded(s, &from[whole..], 0.0);
        }
        let mut all = [0.0f32; 16];
        let y = f(xs, load_padded(s, &out[whole..], 0.0));
        // SAFETY: 16 values, and `LANES` divides 16.
        unsafe { s.store(all.as_mut_ptr(), y) };
        out[whole..].copy_from_slice(&all[..len - whole]);
    }
}

/// Fewer than 16 values, and `pad` in the lanes behind them.
#[inline(always)]
pub(super) fn load_padded<S: Simd>(s: S, x: &[f32], pad: f32) -> S::F {
    let mut lanes = [pad; 16];
    lanes[..x.len()].copy_from_slice(x);
    // SAFETY: 16 values, and `LANES` divides 16.
    unsafe { s.load(lanes.as_ptr()) }
}

struct Scale<'a> {
    x: &'a mut [f32],
    factor: f32,
}

impl Job for Scale<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let factor = s.splat(self.factor);
        map_rows(s, [], self.x, |[], x| s.mul(x, factor));
    }
}

/// `x *= factor`
pub(super) fn scale(threads: &Threads, isa: Isa, x: &mut [f32], factor: f32) {
    let len = x.len();
    let x = Shared::new(x);
    threads.ranges(len, GRAIN, &|first, count| {
        // SAFETY: ranges do not overlap.
        let x = unsafe { x.range(first, count) };
        simd::run(isa, Scale { x, factor });
    });
}

/// `x += scale * delta`, one row.
#[inline(always)]
pub(super) fn add_row<S: Simd>(s: S, x: &mut [f32], delta: &[f32], scale: Option<&[f32]>) {
    match scale {
        None => map_rows(s, [delta], x, |[d], x| s.add(x, d)),
        Some(scale) => map_rows(s, [delta, scale], x, |[d, c], x| s.fma(d, c, x)),
    }
}
