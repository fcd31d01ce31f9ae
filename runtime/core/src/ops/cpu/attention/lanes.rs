//! Attention with one query a lane.
//!
//! A block holds up to two vectors of queries of one KV head: rows times the query heads that share
//! it. Scores, maxima and sums are vectors over queries, so softmax needs no horizontal step, and
//! keys and values are read row by row as they are stored, one broadcast a value.
//!
//! Method: "FlashAttention" (2022), with online softmax over blocks of 64 keys from key 0 on; a
//! block that no query of the lanes sees changes nothing, so bits do not depend on the neighbours
//! in the other lanes.
//!
//! FLOPs a block: `4 keys head_dim` a lane.
#![allow(unsafe_code, reason = "inner loops over blocks that are checked once")]

use super::keys::{self, BLOCK, Rows};
use crate::ops::cpu::simd::Simd;
use crate::ops::{AttentionParams, Window};

/// Vectors of queries in a block.
pub(super) const VECTORS: usize = 2;
/// Lanes of the widest block.
pub(super) const MAX_LANES: usize = 16 * VECTORS;
/// Below every score of a model, above `-inf`: the maximum of no keys.
pub(super) const NO_KEYS: f32 = -1e30;

/// What a lane may see.
#[derive(Clone)]
pub(super) struct Sight {
    /// Keys below this index, by order.
    pub(super) until: [f32; MAX_LANES],
    /// Keys at positions above this, if there is a window.
    pub(super) above: [f32; MAX_LANES],
    /// Smallest and largest `until` of the lanes in use.
    pub(super) range: (usize, usize),
    /// Smallest `above` of the lanes in use.
    pub(super) lowest: i32,
}

impl Sight {
    /// Of lanes with these ends, which a window may narrow.
    pub(super) fn new(lanes: usize, until: impl Fn(usize) -> usize) -> Self {
        let mut sight = Self {
            until: [0.0; MAX_LANES],
            above: [0.0; MAX_LANES],
            range: (usize::MAX, 0),
            lowest: i32::MAX,
        };
        for lane in 0..lanes {
            let end = until(lane);
            // Exact: a sequence has far fewer than 2^24 tokens.
            sight.until[lane] = end as f32;
            sight.range = (sight.range.0.min(end), sight.range.1.max(end));
        }
        sight
    }

    /// Lane `lane` sees positions from `position - window + 1` on.
    pub(super) fn set_window(&mut self, lane: usize, position: i32, window: i32) {
        let above = position.saturating_sub(window);
        self.above[lane] = above as f32;
        self.lowest = self.lowest.min(above);
    }
}

/// Memory of one block of queries.
pub(super) struct Work<'a> {
    /// Transposed queries, `[head_dim][lanes]`.
    pub(super) queries: &'a mut [f32],
    /// Scores, then weights, `[BLOCK][lanes]`.
    scores: &'a mut [f32],
    /// Transposed output, `[head_dim][lanes]`.
    sums: &'a mut [f32],
    /// Converted keys or values, `[BLOCK][padded]`.
    rows: &'a mut [f32],
}

impl<'a> Work<'a> {
    /// Values that `split` needs for heads of this width.
    pub(super) fn len(head_dim: usize) -> usize {
        let padded = head_dim.next_multiple_of(16);
        (2 * padded + BLOCK) * MAX_LANES + BLOCK * padded
    }

    /// Divides memory of `len(head_dim)` values.
    pub(super) fn split(memory: &'a mut [f32], head_dim: usize) -> Self {
        let padded = head_dim.next_multiple_of(16);
        let (queries, rest) = memory.split_at_mut(padded * MAX_LANES);
        let (sums, rest) = rest.split_at_mut(padded * MAX_LANES);
        let (scores, rest) = rest.split_at_mut(BLOCK * MAX_LANES);
        Self { queries, scores, sums, rows: &mut rest[..BLOCK * padded] }
    }
}

/// One block of queries and what it sees.
pub(super) struct Lanes<'a> {
    pub(super) params: AttentionParams,
    pub(super) keys: Rows<'a>,
    pub(super) values: Rows<'a>,
    pub(super) window: Option<Window<'a>>,
    pub(super) sight: Sight,
    /// Inputs of products are rounded to bf16.
    pub(super) rounded: bool,
}

/// Row maxima and sums of `exp`, one vector a vector of queries.
#[derive(Clone, Copy)]
pub(super) struct Softmax<S: Simd> {
    max: [S::F; VECTORS],
    sum: [S::F; VECTORS],
}

impl<S: Simd> Softmax<S> {
    #[inline(always)]
    pub(super) fn new(s: S) -> Self {
        Self { max: [s.splat(NO_KEYS); VECTORS], sum: [s.splat(0.0); VECTORS] }
    }
}

/// Puts a query into a lane of the transposed queries.
#[inline(always)]
pub(super) fn set_query<S: Simd>(
    s: S,
    work: &mut Work<'_>,
    lane: usize,
    query: &[f32],
    rounded: bool,
) {
    let width = VECTORS * S::LANES;
    let mut row = [0.0f32; 16];
    for (c, part) in query.chunks(16).enumerate() {
        keys::copy(s, part, &mut row, rounded);
        for (i, x) in row[..part.len()].iter().enumerate() {
            work.queries[(c * 16 + i) * width + lane] = *x;
        }
    }
}

impl Lanes<'_> {
    /// First keys and counts of the blocks of `size` keys that some lane may see.
    pub(super) fn blocks(&self, size: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let end = self.sight.range.1.min(self.keys.len);
        (0..end).step_by(size).map(move |first| (first, size.min(end - first))).filter(
            move |(first, count)| {
                self.window.is_none_or(|w| {
                    w.keys[*first..first + count].iter().any(|p| *p > self.sight.lowest)
                })
            },
        )
    }

    /// Scaled, capped and masked scores of a block of keys into `work.scores`; returns their
    /// maxima together with `max`.
    #[inline(always)]
    fn score<S: Simd>(
        &self,
        s: S,
        work: &mut Work<'_>,
        (first, count): (usize, usize),
        max: [S::F; VECTORS],
    ) -> [S::F; VECTORS] {
        let (rows, stride) = self.keys.block(s, first, count, work.rows);
        products::<S>(s, self.keys.head_dim, work.queries, rows, stride, count, work.scores);
        let scale = s.splat(self.params.scale);
        let masked = first + count > self.sight.range.0 || self.window.is_some();
        let mut max = max;
        let width = VECTORS * S::LANES;
        let scores = &mut work.scores[..count * width];
        for (j, row) in scores.chunks_exact_mut(width).enumerate() {
            for (v, max) in max.iter_mut().enumerate() {
                let lane = v * S::LANES;
                let at = row[lane..lane + S::LANES].as_mut_ptr();
                // SAFETY: `at` has `LANES` values.
                let mut x = s.mul(unsafe { s.load(at) }, scale);
                if let Some(cap) = self.params.softcap {
                    x = s.mul(s.splat(cap), s.tanh(s.mul(x, s.splat(1.0 / cap))));
                }
                if masked {
                    x = self.mask(s, x, first + j, lane);
                }
                *max = s.max(*max, x);
                // SAFETY: as above.
                unsafe { s.store(at, x) };
            }
        }
        max
    }

    #[inline(always)]
    pub(super) fn mask<S: Simd>(&self, s: S, x: S::F, key: usize, lane: usize) -> S::F {
        let hidden = s.splat(f32::NEG_INFINITY);
        // SAFETY: both arrays have a value for every lane.
        let (until, above) = unsafe {
            (s.load(self.sight.until[lane..].as_ptr()), s.load(self.sight.above[lane..].as_ptr()))
        };
        let x = s.if_le(until, s.splat(key as f32), hidden, x);
        match self.window {
            None => x,
            Some(w) => s.if_le(s.splat(w.keys[key] as f32), above, hidden, x),
        }
    }

    /// Attention of the block: `work.sums` holds the transposed output, not yet divided.
    #[inline(always)]
    pub(super) fn attend<S: Simd>(&self, s: S, work: &mut Work<'_>) -> Softmax<S> {
        let width = VECTORS * S::LANES;
        let mut state = Softmax::<S>::new(s);
        work.sums[..self.values.head_dim * width].fill(0.0);
        for (first, count) in self.blocks(BLOCK) {
            let max = self.score(s, work, (first, count), state.max);
            let shrink = self.exponentials(s, work, count, &mut state, max);
            if let Some(shrink) = shrink {
                for row in work.sums[..self.values.head_dim * width].chunks_exact_mut(width) {
                    for v in 0..VECTORS {
                        let at = row[v * S::LANES..].as_mut_ptr();
                        // SAFETY: a row has `VECTORS * LANES` values.
                        unsafe { s.store(at, s.mul(s.load(at), shrink[v])) };
                    }
                }
            }
            let (rows, stride) = self.values.block(s, first, count, work.rows);
            accumulate::<S>(s, self.values.head_dim, work.scores, rows, stride, count, work.sums);
        }
        state
    }

    /// Turns scores into `exp(score - max)` and updates the sums; returns the factor of what was
    /// summed before, if it is not one everywhere.
    #[inline(always)]
    fn exponentials<S: Simd>(
        &self,
        s: S,
        work: &mut Work<'_>,
        count: usize,
        state: &mut Softmax<S>,
        max: [S::F; VECTORS],
    ) -> Option<[S::F; VECTORS]> {
        let width = VECTORS * S::LANES;
        let mut block = [s.splat(0.0); VECTORS];
        for row in work.scores[..count * width].chunks_exact_mut(width) {
            for v in 0..VECTORS {
                let at = row[v * S::LANES..].as_mut_ptr();
                // SAFETY: a row has `VECTORS * LANES` values.
                unsafe {
                    let e = s.exp(s.sub(s.load(at), max[v]));
                    block[v] = s.add(block[v], e);
                    s.store(at, if self.rounded { s.round_bf16(e) } else { e });
                }
            }
        }
        let mut shrink = block;
        let mut same = true;
        for v in 0..VECTORS {
            same &= s.all_equal(state.max[v], max[v]);
            shrink[v] = s.exp(s.sub(state.max[v], max[v]));
            state.sum[v] = s.fma(state.sum[v], shrink[v], block[v]);
            state.max[v] = max[v];
        }
        (!same).then_some(shrink)
    }

    /// Divides and transposes the output: lane `lane` goes to `row(lane)`.
    #[inline(always)]
    pub(super) fn finish<'o, S: Simd>(
        &self,
        s: S,
        work: &Work<'_>,
        state: &Softmax<S>,
        lanes: usize,
        mut row: impl FnMut(usize) -> &'o mut [f32],
    ) {
        let inverse = inverse_sums(s, state);
        let width = VECTORS * S::LANES;
        for (lane, inverse) in inverse[..lanes].iter().enumerate() {
            let sums = work.sums[lane..].iter().step_by(width);
            for (o, x) in row(lane).iter_mut().zip(sums) {
                *o = x * inverse;
            }
        }
    }

    /// Maxima and sums over all keys, without an output.
    #[inline(always)]
    pub(super) fn statistics<S: Simd>(&self, s: S, work: &mut Work<'_>) -> Softmax<S> {
        let mut state = Softmax::<S>::new(s);
        for (first, count) in self.blocks(BLOCK) {
            let max = self.score(s, work, (first, count), state.max);
            self.exponentials(s, work, count, &mut state, max);
        }
        state
    }

    /// Calls `each(key, weights)` for every key that some lane may see; lanes from `lanes` on, which
    /// hold no query, have weight zero.
    #[inline(always)]
    pub(super) fn weights<S: Simd>(
        &self,
        s: S,
        work: &mut Work<'_>,
        state: &Softmax<S>,
        lanes: usize,
        mut each: impl FnMut(usize, &[f32]),
    ) {
        let mut inverse = inverse_sums(s, state);
        inverse[lanes..].fill(0.0);
        let width = VECTORS * S::LANES;
        for (first, count) in self.blocks(BLOCK) {
            self.score(s, work, (first, count), state.max);
            for (j, row) in work.scores[..count * width].chunks_exact_mut(width).enumerate() {
                for v in 0..VECTORS {
                    let at = row[v * S::LANES..].as_mut_ptr();
                    // SAFETY: a row and `inverse` have `VECTORS * LANES` values.
                    unsafe {
                        let e = s.exp(s.sub(s.load(at), state.max[v]));
                        s.store(at, s.mul(e, s.load(inverse[v * S::LANES..].as_ptr())));
                    }
                }
                each(first + j, row);
            }
        }
    }
}

/// `1 / sum` of each lane, zero for a lane that saw nothing.
#[inline(always)]
fn inverse_sums<S: Simd>(s: S, state: &Softmax<S>) -> [f32; MAX_LANES] {
    let mut inverse = [0.0; MAX_LANES];
    let zero = s.splat(0.0);
    for v in 0..VECTORS {
        let x = s.if_le(state.sum[v], zero, zero, s.div(s.splat(1.0), state.sum[v]));
        // SAFETY: the array has `VECTORS * 16` values.
        unsafe { s.store(inverse[v * S::LANES..].as_mut_ptr(), x) };
    }
    inverse
}

/// `scores[j][lane] = sum_c keys[j][c] queries[c][lane]` for `count` keys.
#[inline(always)]
fn products<S: Simd>(
    s: S,
    head_dim: usize,
    queries: &[f32],
    keys: &[f32],
    stride: usize,
    count: usize,
    scores: &mut [f32],
) {
    let width = VECTORS * S::LANES;
    assert!(queries.len() >= head_dim * width && scores.len() >= count * width, "room");
    assert!(count == 0 || keys.len() >= (count - 1) * stride + head_dim, "keys of the block");
    let mut j = 0;
    while j < count {
        // SAFETY: all sizes were checked above.
        unsafe {
            let (k, out) = (keys.as_ptr().add(j * stride), scores.as_mut_ptr().add(j * width));
            let left = count - j;
            if S::LANES == 16 && left >= 8 {
                some_products::<S, 8>(s, head_dim, queries.as_ptr(), k, stride, out);
                j += 8;
            } else if left >= 4 {
                some_products::<S, 4>(s, head_dim, queries.as_ptr(), k, stride, out);
                j += 4;
            } else {
                some_products::<S, 1>(s, head_dim, queries.as_ptr(), k, stride, out);
                j += 1;
            }
        }
    }
}

/// # Safety
/// `queries` has `head_dim` rows, `keys` has `N` rows of `head_dim`, `out` has `N` rows.
#[inline(always)]
unsafe fn some_products<S: Simd, const N: usize>(
    s: S,
    head_dim: usize,
    queries: *const f32,
    keys: *const f32,
    stride: usize,
    out: *mut f32,
) {
    let width = VECTORS * S::LANES;
    let mut acc = [[s.splat(0.0); VECTORS]; N];
    for c in 0..head_dim {
        // SAFETY: the caller's word.
        unsafe {
            let (q0, q1) =
                (s.load(queries.add(c * width)), s.load(queries.add(c * width + S::LANES)));
            for (j, acc) in acc.iter_mut().enumerate() {
                let k = s.splat(*keys.add(j * stride + c));
                acc[0] = s.fma(k, q0, acc[0]);
                acc[1] = s.fma(k, q1, acc[1]);
            }
        }
    }
    for (j, acc) in acc.iter().enumerate() {
        // SAFETY: the caller's word.
        unsafe {
            s.store(out.add(j * width), acc[0]);
            s.store(out.add(j * width + S::LANES), acc[1]);
        }
    }
}

/// `sums[c][lane] += sum_j values[j][c] weights[j][lane]` for `count` keys.
#[inline(always)]
fn accumulate<S: Simd>(
    s: S,
    head_dim: usize,
    weights: &[f32],
    values: &[f32],
    stride: usize,
    count: usize,
    sums: &mut [f32],
) {
    let width = VECTORS * S::LANES;
    assert!(weights.len() >= count * width && sums.len() >= head_dim * width, "room");
    assert!(count == 0 || values.len() >= (count - 1) * stride + head_dim, "values of the block");
    let mut c = 0;
    while c < head_dim {
        // SAFETY: all sizes were checked above.
        unsafe {
            let (v, out) = (values.as_ptr().add(c), sums.as_mut_ptr().add(c * width));
            let left = head_dim - c;
            if S::LANES == 16 && left >= 8 {
                some_sums::<S, 8>(s, count, weights.as_ptr(), v, stride, out);
                c += 8;
            } else if left >= 4 {
                some_sums::<S, 4>(s, count, weights.as_ptr(), v, stride, out);
                c += 4;
            } else {
                some_sums::<S, 1>(s, count, weights.as_ptr(), v, stride, out);
                c += 1;
            }
        }
    }
}

/// # Safety
/// `weights` has `count` rows, `values` has `count` rows of `N` values, `out` has `N` rows.
#[inline(always)]
unsafe fn some_sums<S: Simd, const N: usize>(
    s: S,
    count: usize,
    weights: *const f32,
    values: *const f32,
    stride: usize,
    out: *mut f32,
) {
    let width = VECTORS * S::LANES;
    let mut acc = [[s.splat(0.0); VECTORS]; N];
    for (c, acc) in acc.iter_mut().enumerate() {
        // SAFETY: the caller's word.
        unsafe {
            *acc = [s.load(out.add(c * width)), s.load(out.add(c * width + S::LANES))];
        }
    }
    for j in 0..count {
        // SAFETY: the caller's word.
        unsafe {
            let (w0, w1) =
                (s.load(weights.add(j * width)), s.load(weights.add(j * width + S::LANES)));
            for (c, acc) in acc.iter_mut().enumerate() {
                let v = s.splat(*values.add(j * stride + c));
                acc[0] = s.fma(v, w0, acc[0]);
                acc[1] = s.fma(v, w1, acc[1]);
            }
        }
    }
    for (c, acc) in acc.iter().enumerate() {
        // SAFETY: the caller's word.
        unsafe {
            s.store(out.add(c * width), acc[0]);
            s.store(out.add(c * width + S::LANES), acc[1]);
        }
    }
}
