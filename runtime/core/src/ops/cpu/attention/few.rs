//! Attention of a few queries, as in a decode step: lanes run along the head.
//!
//! All scores of a query are held at once, so softmax is exact in two sweeps. Keys and values are
//! read once for all queries that share them.
//!
//! FLOPs: `4 keys head_dim` a query. Bytes: keys and values once.
#![allow(unsafe_code, reason = "inner loops over blocks that are checked once")]

use super::keys::{self, BLOCK};
use super::lanes::{Lanes, Sight};
use crate::ops::cpu::elementwise::map_rows;
use crate::ops::cpu::simd::Simd;

/// Queries that come here: from about nine on, one query a lane is faster.
pub(super) const FEW: usize = 8;

/// Values of scratch for `queries` queries.
pub(super) fn scratch_len(queries: usize, head_dim: usize, keys: usize) -> usize {
    let padded = head_dim.next_multiple_of(16);
    queries * (2 * padded + keys.next_multiple_of(16)) + BLOCK * padded
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
    let row_len = len.next_multiple_of(16);
    let (q, rest) = memory.split_at_mut(queries * padded);
    let (sums, rest) = rest.split_at_mut(queries * padded);
    let (scores, rest) = rest.split_at_mut(queries * row_len);
    let buffer = &mut rest[..BLOCK * padded];
    for (i, to) in q.chunks_exact_mut(padded).enumerate() {
        keys::copy(s, query(i), to, lanes.rounded);
    }
    sums.fill(0.0);
    for first in (0..len).step_by(BLOCK) {
        let count = BLOCK.min(len - first);
        let (rows, stride) = lanes.keys.block(s, first, count, buffer);
        for (q, scores) in q.chunks_exact(padded).zip(scores.chunks_exact_mut(row_len)) {
            dots(s, q, rows, stride, &mut scores[first..first + count]);
        }
    }
    let mut inverse = [0.0f32; FEW];
    for (i, scores) in scores.chunks_exact_mut(row_len).enumerate() {
        inverse[i] = softmax(s, lanes, &lanes.sight, i, &mut scores[..len]);
    }
    for first in (0..len).step_by(BLOCK) {
        let count = BLOCK.min(len - first);
        let (rows, stride) = lanes.values.block(s, first, count, buffer);
        for (sums, scores) in sums.chunks_exact_mut(padded).zip(scores.chunks_exact(row_len)) {
            add_weighted(s, &scores[first..first + count], rows, stride, sums);
        }
    }
    for (i, sums) in sums.chunks_exact(padded).enumerate() {
        for (o, x) in row(i).iter_mut().zip(sums) {
            *o = x * inverse[i];
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

/// Scales, caps and masks scores, turns them into `exp(score - max)` (rounded for bf16), and
/// returns `1 / sum`, zero if no key is seen.
#[inline(always)]
fn softmax<S: Simd>(
    s: S,
    lanes: &Lanes<'_>,
    sight: &Sight,
    lane: usize,
    scores: &mut [f32],
) -> f32 {
    let scale = s.splat(lanes.params.scale);
    match lanes.params.softcap {
        None => map_rows(s, [], scores, |[], x| s.mul(x, scale)),
        Some(cap) => map_rows(s, [], scores, |[], x| {
            s.mul(s.splat(cap), s.tanh(s.mul(s.mul(x, scale), s.splat(1.0 / cap))))
        }),
    }
    let until = (sight.until[lane] as usize).min(scores.len());
    scores[until..].fill(f32::NEG_INFINITY);
    if let Some(window) = lanes.window {
        for (x, position) in scores.iter_mut().zip(window.keys) {
            if *position as f32 <= sight.above[lane] {
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
    map_rows(s, [], scores, |[], x| s.exp(s.sub(x, max)));
    let mut acc = s.splat(0.0);
    let whole = scores.len() / S::LANES * S::LANES;
    for part in scores[..whole].chunks_exact(S::LANES) {
        // SAFETY: `LANES` values.
        acc = s.add(acc, unsafe { s.load(part.as_ptr()) });
    }
    let sum = s.sum(acc) + scores[whole..].iter().sum::<f32>();
    if lanes.rounded {
        map_rows(s, [], scores, |[], x| s.round_bf16(x));
    }
    1.0 / sum
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
