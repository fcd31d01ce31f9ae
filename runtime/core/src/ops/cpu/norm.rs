//! Normalisations, and the residual sums that stand before them.
//!
//! FLOPs: some 4 to 8 a value; bound by memory. Bytes: each tensor once a row, which stays in L1
//! between the sweeps.
#![allow(unsafe_code, reason = "vector loads, and rows written from several threads")]

use super::detect::Isa;
use super::elementwise::{add_row, load_padded, map_rows};
use super::memory::Shared;
use super::simd::{self, Job, Simd};
use super::threads::Threads;
use crate::ops::{Norm, NormKind, Transition};

/// Values of a task: below this the hand-over costs more than the work.
const GRAIN: usize = 1 << 14;

/// `sum f(xs)` over slices of one length, four chains of vectors, the last one padded with `pad`.
#[inline(always)]
fn sum_of<S: Simd, const N: usize>(
    s: S,
    xs: [&[f32]; N],
    pad: f32,
    f: impl Fn([S::F; N]) -> S::F,
) -> f32 {
    let len = xs[0].len();
    assert!(xs.iter().all(|x| x.len() == len), "slices of one length");
    let mut acc = [s.splat(0.0); 4];
    let mut v = [s.splat(0.0); N];
    let mut i = 0;
    while i + 4 * S::LANES <= len {
        for (k, acc) in acc.iter_mut().enumerate() {
            for (v, x) in v.iter_mut().zip(&xs) {
                // SAFETY: four vectors from `i` on lie in every slice.
                *v = unsafe { s.load(x.as_ptr().add(i + k * S::LANES)) };
            }
            *acc = s.add(*acc, f(v));
        }
        i += 4 * S::LANES;
    }
    while i < len {
        let left = (len - i).min(S::LANES);
        for (v, x) in v.iter_mut().zip(&xs) {
            *v = load_padded(s, &x[i..i + left], pad);
        }
        acc[0] = s.add(acc[0], f(v));
        i += left;
    }
    s.sum(s.add(s.add(acc[0], acc[2]), s.add(acc[1], acc[3])))
}

/// `out = norm(x)`, one row.
#[inline(always)]
fn norm_row<S: Simd>(s: S, norm: &Norm, x: &[f32], out: &mut [f32]) {
    let n = x.len() as f32;
    let mean = match norm.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => sum_of(s, [x], 0.0, |[v]| v) / n,
    };
    let m = s.splat(mean);
    let squares = sum_of(s, [x], mean, |[v]| {
        let d = s.sub(v, m);
        s.mul(d, d)
    });
    let inverse = s.splat(1.0 / (squares / n + norm.eps).sqrt());
    let scaled = |v: S::F, g: S::F| s.mul(s.mul(s.sub(v, m), inverse), g);
    match &norm.bias {
        None => map_rows(s, [x, &norm.gain], out, |[v, g], _| scaled(v, g)),
        Some(b) => map_rows(s, [x, &norm.gain, b], out, |[v, g, b], _| s.add(scaled(v, g), b)),
    }
}

#[inline(always)]
fn transition<S: Simd>(s: S, a: &[f32], b: &[f32]) -> Transition {
    [
        sum_of(s, [a], 0.0, |[a]| s.mul(a, a)),
        sum_of(s, [b], 0.0, |[b]| s.mul(b, b)),
        sum_of(s, [a, b], 0.0, |[a, b]| s.mul(a, b)),
    ]
}

/// Rows of one task: `x += scale * delta`, transitions, `out = norm(x)`, each if asked for.
struct Rows<'a> {
    width: usize,
    x: &'a mut [f32],
    delta: Option<(&'a [f32], Option<&'a [f32]>)>,
    tap: Option<(&'a [f32], &'a mut [Transition])>,
    norm: Option<(&'a Norm, &'a mut [f32])>,
}

impl Job for Rows<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let width = self.width;
        for r in 0..self.x.len() / width {
            let at = r * width..(r + 1) * width;
            let x = &mut self.x[at.clone()];
            if let Some((delta, scale)) = self.delta {
                let delta = &delta[at.clone()];
                add_row(s, x, delta, scale);
                if let Some((input, out)) = &mut self.tap {
                    out[r] = transition(s, &input[at.clone()], delta);
                }
            }
            if let Some((norm, out)) = &mut self.norm {
                norm_row(s, norm, x, &mut out[at]);
            }
        }
    }
}

/// `x += scale * delta`; with `tap` transitions of `delta`; with `norm` `out = norm(x)`.
///
/// # Panics
/// If sizes disagree.
pub(super) fn add_norm(
    (threads, isa): (&Threads, Isa),
    width: usize,
    x: &mut [f32],
    (delta, scale): (&[f32], Option<&[f32]>),
    tap: Option<(&[f32], &mut [Transition])>,
    norm: Option<(&Norm, &mut [f32])>,
) {
    let len = x.len();
    assert_eq!(delta.len(), len, "add: size of delta");
    assert!(scale.is_none_or(|s| s.len() == width), "add: width of the scale");
    if let Some((norm, out)) = &norm {
        assert_eq!((norm.gain.len(), out.len()), (width, len), "norm: sizes");
    }
    if let Some((input, out)) = &tap {
        assert_eq!((input.len(), out.len() * width), (len, len), "transition tap: sizes");
    }
    if len == 0 {
        return;
    }
    let x = Shared::new(x);
    let tap = tap.map(|(input, out)| (input, Shared::new(out)));
    let norm = norm.map(|(norm, out)| (norm, Shared::new(out)));
    threads.ranges(len / width, GRAIN / width, &|first, count| {
        let (at, size) = (first * width, count * width);
        // SAFETY: tasks own different rows of all three.
        let rows = unsafe {
            Rows {
                width,
                x: x.range(at, size),
                delta: Some((&delta[at..at + size], scale)),
                tap: tap.map(|(input, out)| (&input[at..at + size], out.range(first, count))),
                norm: norm.map(|(norm, out)| (norm, out.range(at, size))),
            }
        };
        simd::run(isa, rows);
    });
}

struct NormRows<'a> {
    norm: &'a Norm,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Job for NormRows<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.norm.gain.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            norm_row(s, self.norm, x, out);
        }
    }
}

/// `out = norm(x)`; rows as wide as the gain.
///
/// # Panics
/// If sizes disagree.
pub(super) fn norm((threads, isa): (&Threads, Isa), norm: &Norm, x: &[f32], out: &mut [f32]) {
    let width = norm.gain.len();
    assert_eq!(x.len(), out.len(), "norm: size of the output");
    assert!(x.len().is_multiple_of(width.max(1)), "norm: whole rows");
    if x.is_empty() {
        return;
    }
    let out = Shared::new(out);
    threads.ranges(x.len() / width, GRAIN / width, &|first, count| {
        let (at, size) = (first * width, count * width);
        // SAFETY: tasks own different rows.
        let out = unsafe { out.range(at, size) };
        simd::run(isa, NormRows { norm, x: &x[at..at + size], out });
    });
}

struct HeadNorm<'a> {
    norm: &'a Norm,
    rows: &'a mut [f32],
    cols: usize,
    offset: usize,
    heads: usize,
}

impl Job for HeadNorm<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.norm.gain.len();
        let mut copy = vec![0.0; width];
        for row in self.rows.chunks_exact_mut(self.cols) {
            let heads = &mut row[self.offset..self.offset + self.heads * width];
            for head in heads.chunks_exact_mut(width) {
                copy.copy_from_slice(head);
                norm_row(s, self.norm, &copy, head);
            }
        }
    }
}

/// Normalises `heads` heads of every row, in place.
///
/// # Panics
/// If the heads do not lie in the row.
pub(super) fn head_norm(
    (threads, isa): (&Threads, Isa),
    norm: &Norm,
    x: &mut [f32],
    cols: usize,
    offset: usize,
    heads: usize,
) {
    assert!(offset + heads * norm.gain.len() <= cols, "head_norm: heads lie in the row");
    if x.is_empty() || norm.gain.is_empty() {
        return;
    }
    let len = x.len();
    let x = Shared::new(x);
    threads.ranges(len / cols, GRAIN / cols, &|first, count| {
        // SAFETY: tasks own different rows.
        let rows = unsafe { x.range(first * cols, count * cols) };
        simd::run(isa, HeadNorm { norm, rows, cols, offset, heads });
    });
}
