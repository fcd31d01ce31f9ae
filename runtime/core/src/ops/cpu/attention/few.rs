//! Attention of a few queries, as in a decode step: lanes run along the head.
//!
//! All scores of a query are held at once, so softmax is exact in two sweeps. Keys and values are
//! read once for all queries that share them.
//!
//! FLOPs: `4 keys head_dim` a query. Bytes: keys and values once.
#![allow(unsafe_code, reason = "inner loops over blocks that are checked once")]

use super::keys::{self, BLOCK};
use super::lanes::Lanes;
use crate::ops::cpu::simd::Simd;

/// Queries that come here: from about nine on, one query a lane is faster.
pub(super) const FEW: usize = crate::ops::FEW_QUERIES;

/// Values of scratch for `queries` queries.
pub(super) fn scratch_len(queries: usize, head_dim: usize, keys: usize) -> usize {
    let padded = head_dim.next_multiple_of(16);
    queries * (2 * padded + keys.next_multiple_of(16)) + BLOCK * padded
}

/// Softmax weights of a few queries, not yet divided by their sums.
pub(super) struct Weights<'a> {
    /// `[queries][row]`, zero where hidden.
    rows: &'a mut [f32],
    row: usize,
    /// `1 / sum` of each row, zero for a query without keys.
    inverse: [f32; FEW],
    rest: &'a mut [f32],
}

impl Weights<'_> {
    /// Calls `each(query, weights)` with rows that sum to one.
    #[inline(always)]
    pub(super) fn each(&mut self, mut each: impl FnMut(usize, &[f32])) {
        for (i, row) in self.rows.chunks_exact_mut(self.row.max(1)).enumerate() {
            for x in row.iter_mut() {
                *x *= self.inverse[i];
            }
            each(i, row);
        }
    }
}

/// Scores and softmax of `queries` queries; with `rounded` the weights are rounded to bf16.
#[inline(always)]
pub(super) fn weigh<'m, 'q, S: Simd>(
    s: S,
    lanes: &Lanes<'_>,
    memory: &'m mut [f32],
    queries: usize,
    query: impl Fn(usize) -> &'q [f32],
    rounded: bool,
) -> Weights<'m> {
    let padded = lanes.keys.padded();
    let len = lanes.keys.len;
    let row = len.next_multiple_of(16);
    let (q, rest) = memory.split_at_mut(queries * padded);
    let (rows, rest) = rest.split_at_mut(queries * row);
    for (i, to) in q.chunks_exact_mut(padded).enumerate() {
        keys::copy(s, query(i), to, lanes.rounded);
    }
    let buffer = &mut rest[..BLOCK * padded];
    for first in (0..len).step_by(BLOCK) {
        let count = BLOCK.min(len - first);
        let (keys, stride) = lanes.keys.block(s, first, count, buffer);
        for (q, scores) in q.chunks_exact(padded).zip(rows.chunks_exact_mut(row)) {
            dots(s, q, keys, stride, &mut scores[first..first + count]);
        }
    }
    let mut inverse = [0.0f32; FEW];
    for (i, scores) in rows.chunks_exact_mut(row.max(1)).enumerate() {
        inverse[i] = softmax(s, lanes, i, len, scores, rounded);
    }
    Weights { rows, row, inverse, rest }
}

/// Attention of `queries` queries: `query(i)` gives one, `row(i)` is where its output goes.
#[inline(always)]
pub(super) fn attend<'q, 'o, S: Simd>(
    s: S,
    lanes: &Lanes<'_>,
    memory: &mut [f32],
    queries: usize,
    query: impl Fn(usize) -> &'q [f32],
    mut row: impl FnMut(usize) -> &'o mut [f32],
) {
    let padded = lanes.keys.padded();
    let len = lanes.keys.len;
    if len == 0 {
        (0..queries).for_each(|i| row(i).fill(0.0));
        return;
    }
    let weights = weigh(s, lanes, memory, queries, query, lanes.rounded);
    let (sums, rest) = weights.rest.split_at_mut(queries * padded);
    let buffer = &mut rest[..BLOCK * padded];
    sums.fill(0.0);
    for first in (0..len).step_by(BLOCK) {
        let count = BLOCK.min(len - first);
        let (values, stride) = lanes.values.block(s, first, count, buffer);
        let rows = weights.rows.chunks_exact(weights.row);
        for (sums, weights) in sums.chunks_exact_mut(padded).zip(rows) {
            add_weighted(s, &weights[first..first + count], values, stride, sums);
        }
    }
    for (i, sums) in sums.chunks_exact(padded).enumerate() {
        for (o, x) in row(i).iter_mut().zip(sums) {
            *o = x * weights.inverse[i];
        }
    }
}

/// `scores[j] = q · keys[j]`; `q` is padded with zeros, keys in place are not padded and need none.
#[inline(always)]
fn dots<S: Simd>(s: S, q: &[f32], keys: &[f32], stride: usize, scores: &mut [f32]) {
    let width = q.len();
    assert!(keys.len() >= (scores.len() - 1) * stride + width, "keys of the block");
    for (j, score) in scores.iter_mut().enumerate() {
        let mut acc = s.splat(0.0);
        for c in (0..width).step_by(S::LANES) {
            // SAFETY: `width` is a multiple of 16 and inside both, as checked above.
            unsafe {
                let k = s.load(keys.as_ptr().add(j * stride + c));
                acc = s.fma(k, s.load(q.as_ptr().add(c)), acc);
            }
        }
        *score = s.sum(acc);
    }
}

/// Scales, caps and masks the scores of `len` keys, turns them into `exp(score - max)`, and returns
/// `1 / sum`, zero if no key is seen. The row is padded to a multiple of 16.
#[inline(always)]
fn softmax<S: Simd>(
    s: S,
    lanes: &Lanes<'_>,
    lane: usize,
    len: usize,
    scores: &mut [f32],
    rounded: bool,
) -> f32 {
    let scale = s.splat(lanes.params.scale);
    for part in scores.chunks_exact_mut(S::LANES) {
        // SAFETY: `LANES` values.
        let mut x = s.mul(unsafe { s.load(part.as_ptr()) }, scale);
        if let Some(cap) = lanes.params.softcap {
            x = s.mul(s.splat(cap), s.tanh(s.mul(x, s.splat(1.0 / cap))));
        }
        // SAFETY: `LANES` values.
        unsafe { s.store(part.as_mut_ptr(), x) };
    }
    let until = (lanes.sight.until[lane] as usize).min(len);
    scores[until..].fill(f32::NEG_INFINITY);
    if let Some(window) = lanes.window {
        for (x, position) in scores.iter_mut().zip(window.keys) {
            if *position as f32 <= lanes.sight.above[lane] {
                *x = f32::NEG_INFINITY;
            }
        }
    }
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        scores.fill(0.0);
        return 0.0;
    }
    let max = s.splat(max);
    let mut sum = s.splat(0.0);
    for part in scores.chunks_exact_mut(S::LANES) {
        // SAFETY: `LANES` values.
        unsafe {
            let e = s.exp(s.sub(s.load(part.as_ptr()), max));
            sum = s.add(sum, e);
            s.store(part.as_mut_ptr(), if rounded { s.round_bf16(e) } else { e });
        }
    }
    1.0 / s.sum(sum)
}

/// `sums += sum_j weights[j] values[j]`
#[inline(always)]
fn add_weighted<S: Simd>(s: S, weights: &[f32], values: &[f32], stride: usize, sums: &mut [f32]) {
    let width = sums.len();
    assert!(values.len() >= (weights.len() - 1) * stride + width, "values of the block");
    let mut c = 0;
    while c < width {
        let at = sums[c..].as_mut_ptr();
        // SAFETY: `width` is a multiple of 16, and all sizes were checked above.
        unsafe {
            let v = values.as_ptr().add(c);
            if width - c >= 4 * S::LANES {
                some_columns::<S, 4>(s, weights, v, stride, at);
                c += 4 * S::LANES;
            } else {
                some_columns::<S, 1>(s, weights, v, stride, at);
                c += S::LANES;
            }
        }
    }
}

/// # Safety
/// `values` has a row of `N` vectors for each weight, `sums` has `N` vectors.
#[inline(always)]
unsafe fn some_columns<S: Simd, const N: usize>(
    s: S,
    weights: &[f32],
    values: *const f32,
    stride: usize,
    sums: *mut f32,
) {
    // Two chains a vector hide the latency of FMA; their sum is taken in one order.
    let mut acc = [[s.splat(0.0); N]; 2];
    for (j, w) in weights.iter().enumerate() {
        let w = s.splat(*w);
        for (i, acc) in acc[j % 2].iter_mut().enumerate() {
            // SAFETY: the caller's word.
            *acc = s.fma(w, unsafe { s.load(values.add(j * stride + i * S::LANES)) }, *acc);
        }
    }
    for (i, (a, b)) in acc[0].iter().zip(&acc[1]).enumerate() {
        // SAFETY: the caller's word.
        unsafe {
            let at = sums.add(i * S::LANES);
            s.store(at, s.add(s.load(at), s.add(*a, *b)));
        }
    }
}
