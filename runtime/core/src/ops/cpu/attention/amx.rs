//! bf16 attention on AMX tiles, 32 queries a block.
//!
//! As in `lanes`, a query is a lane: tiles give `Sᵀ = K Qᵀ` with keys as rows, softmax is vertical,
//! and `Oᵀ = Vᵀ P` takes the weights as they come out of it, two keys interleaved. Keys are packed
//! once a task as rows, values as transposed tiles.
//!
//! Blocks are of 128 keys, so that scores, weights and sums of a block (32 KiB at 64 values a head)
//! stay in L1, and tiles and vectors rarely wait for each other. Weights enter the product rounded, their sum does not.
//!
//! FLOPs a block and key: `4 * 32 head_dim`, and 32 exponentials.
#![allow(unsafe_code, reason = "tile instructions exist as assembly only")]

use std::arch::asm;
use std::arch::x86_64::*;

use super::keys::Rows;
use super::lanes::{Lanes, NO_KEYS};
use super::{Context, Part};
use crate::ops::cpu::detect::Isa;
use crate::ops::cpu::memory::{Scratch, Shared};
use crate::ops::cpu::simd::Simd;
use crate::ops::cpu::simd::avx512::Avx512;
use crate::ops::cpu::tiles::Tiles;

/// Queries of a block.
const QUERIES: usize = 32;
/// Keys of a block.
const BLOCK: usize = 128;
/// Blocks of a task: packing keys and values costs as much as one block and a third.
const TASK: usize = 24;
/// Words of a tile.
const TILE: usize = 256;

/// Whether a part runs here. Depends on the segment alone.
pub(super) fn suits(context: &Context<'_>, part: &Part<'_>) -> bool {
    context.isa == Isa::Amx
        && context.rounded
        && context.params.scale > 0.0
        && part.queries() > super::few::FEW
}

/// Cuts a part into tasks `(first query, queries)`.
pub(super) fn plan(part: &Part<'_>, mut task: impl FnMut(usize, usize)) {
    let blocks = part.queries().div_ceil(QUERIES);
    let size = blocks.div_ceil(blocks.div_ceil(TASK).max(1)) * QUERIES;
    for begin in (0..part.queries()).step_by(size.max(1)) {
        task(begin, size.min(part.queries() - begin));
    }
}

/// Runs queries `begin .. begin + count` of a part for which `suits` is true.
pub(super) fn run(
    context: &Context<'_>,
    part: &Part<'_>,
    begin: usize,
    count: usize,
    out: Shared<f32>,
) {
    assert_eq!(context.isa, Isa::Amx, "tiles need Isa::Amx");
    // SAFETY: `Isa::Amx` implies these features.
    context.scratch.with(|scratch| unsafe { task(context, part, begin, count, out, scratch) });
}

/// Packed keys and values, and the memory of a block.
struct Packed<'a> {
    /// `[keys][depth]` bf16.
    keys: &'a mut [u16],
    /// `[keys / 32][rows / 16][16][16]` pairs: rows are values of a head, columns keys.
    values: &'a mut [u32],
    /// `[2][depth / 32][16][16]` pairs.
    queries: &'a mut [u32],
    /// `[2][BLOCK / 32][16][16]` pairs.
    weights: &'a mut [u32],
    /// `[BLOCK][QUERIES]`
    scores: &'a mut [f32],
    /// `[rows][QUERIES]`
    sums: &'a mut [f32],
    /// Width of a head, padded to what a step of a tile takes.
    depth: usize,
    /// Width of a head, padded to tiles of values.
    rows: usize,
}

impl<'a> Packed<'a> {
    fn take([first, second]: &'a mut [Scratch; 2], head_dim: usize, keys: usize) -> Self {
        let (depth, rows) = (head_dim.next_multiple_of(32), head_dim.next_multiple_of(16));
        let keys = keys.next_multiple_of(32);
        let (k, v) = first.take::<u32>(keys * (depth + rows) / 2).split_at_mut(keys * depth / 2);
        let sizes = [QUERIES * depth / 2, QUERIES * BLOCK / 2, QUERIES * BLOCK, QUERIES * rows];
        let (queries, rest) = second.take::<u32>(sizes.iter().sum()).split_at_mut(sizes[0]);
        let (weights, rest) = rest.split_at_mut(sizes[1]);
        let (scores, sums) = rest.split_at_mut(sizes[2]);
        Self {
            keys: bytemuck::cast_slice_mut(k),
            values: v,
            queries,
            weights,
            scores: bytemuck::cast_slice_mut(scores),
            sums: bytemuck::cast_slice_mut(sums),
            depth,
            rows,
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn task(
    context: &Context<'_>,
    part: &Part<'_>,
    begin: usize,
    count: usize,
    out: Shared<f32>,
    scratch: &mut [Scratch; 2],
) {
    let s = Avx512::new();
    let e = part.q.head_dim;
    let (keys, values) = Rows::of_keys(part.keys, part.kv_head, true);
    assert_eq!((keys.head_dim, values.head_dim), (e, e), "attention: widths of heads");
    let mut packed = Packed::take(scratch, e, keys.len);
    // Keys past the last one that the last query sees are not packed.
    let end = part.sight(begin + count - 1, 1).range.1.min(keys.len);
    pack_keys(s, keys, end, &mut packed);
    pack_values(s, values, end, &mut packed);
    let _tiles = Tiles::configure(16);
    for first in (begin..begin + count).step_by(QUERIES) {
        let count = QUERIES.min(begin + count - first);
        let lanes = Lanes {
            params: context.params,
            keys,
            values,
            window: part.window,
            sight: part.sight(first, count),
            rounded: true,
        };
        pack_queries(part, first, count, &mut packed);
        let sums = attend(s, &lanes, &mut packed);
        store(part, first, count, &packed, &sums, out);
    }
}

fn pack_keys(s: Avx512, keys: Rows<'_>, end: usize, packed: &mut Packed<'_>) {
    let depth = packed.depth;
    let rows = packed.keys.chunks_exact_mut(depth);
    for (r, to) in rows.take(end.next_multiple_of(32)).enumerate() {
        if r < end {
            keys.bf16_row(s, r, to);
        } else {
            to.fill(0);
        }
    }
}

/// Interleaves two keys at a time and transposes 16 pairs of them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn pack_values(s: Avx512, values: Rows<'_>, end: usize, packed: &mut Packed<'_>) {
    let rows = packed.rows;
    // Two rows at once; heads are at most a few hundred values wide.
    let mut pair = [vec![0u16; rows], vec![0u16; rows]];
    let mut block = vec![0u32; 16 * rows];
    for step in 0..end.div_ceil(32) {
        for p in 0..16 {
            for (i, row) in pair.iter_mut().enumerate() {
                let r = step * 32 + 2 * p + i;
                if r < end {
                    values.bf16_row(s, r, row);
                } else {
                    row.fill(0);
                }
            }
            let both = pair[0].iter().zip(&pair[1]);
            for (word, (even, odd)) in block[p * rows..][..rows].iter_mut().zip(both) {
                *word = u32::from(*even) | u32::from(*odd) << 16;
            }
        }
        for tile in 0..rows / 16 {
            let to = &mut packed.values[(step * rows / 16 + tile) * TILE..][..TILE];
            transpose(&block[tile * 16..], rows, to, 16);
        }
    }
}

/// Rounds queries to bf16 and transposes them, 16 lanes and 16 pairs at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack_queries(part: &Part<'_>, first: usize, count: usize, packed: &mut Packed<'_>) {
    let steps = packed.depth / 32;
    let mut block = [0u32; TILE];
    for half in 0..2 {
        for step in 0..steps {
            for (lane, row) in block.chunks_exact_mut(16).enumerate() {
                let lane = half * 16 + lane;
                if lane >= count {
                    row.fill(0);
                    continue;
                }
                let query = &part.query(first + lane)[step * 32..];
                let have = query.len().min(32);
                let mask = ((1u64 << have) - 1) as u32;
                // SAFETY: lanes below `have` lie in the query, the others are not read; the row
                // has 16 words.
                unsafe {
                    let a = _mm512_maskz_loadu_ps(mask as u16, query.as_ptr());
                    let b =
                        _mm512_maskz_loadu_ps((mask >> 16) as u16, query.as_ptr().wrapping_add(16));
                    let pairs: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(b, a));
                    _mm512_storeu_si512(row.as_mut_ptr().cast(), pairs);
                }
            }
            let to = &mut packed.queries[(half * steps + step) * TILE..][..TILE];
            transpose(&block, 16, to, 16);
        }
    }
}

/// Attention of a block: `packed.sums` holds the transposed output, not yet divided. Returns the
/// sums of weights.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn attend(s: Avx512, lanes: &Lanes<'_>, packed: &mut Packed<'_>) -> [f32; QUERIES] {
    let (depth, rows) = (packed.depth, packed.rows);
    let mut max = [s.splat(NO_KEYS); 2];
    let mut sum = [s.splat(0.0); 2];
    packed.sums.fill(0.0);
    for (first, count) in lanes.blocks(BLOCK) {
        let steps = count.div_ceil(32);
        for tile in (0..2 * steps).step_by(2) {
            let product = Product {
                a: packed.keys[(first + tile * 16) * depth..].as_ptr().cast(),
                a_row: depth * 2,
                a_tile: depth * 32,
                a_step: 64,
                b: packed.queries.as_ptr(),
                b_tile: depth / 32 * TILE * 4,
                steps: depth / 32,
                c: packed.scores[tile * 16 * QUERIES..].as_mut_ptr(),
            };
            // SAFETY: two tiles of keys, which were packed up to a multiple of 32, the queries,
            // and 32 rows of scores; tiles are configured.
            unsafe { product.go::<2, 0>() };
        }
        let shrink = weigh(s, lanes, packed, (first, count), &mut max, &mut sum);
        if let Some(shrink) = shrink {
            for row in packed.sums.chunks_exact_mut(QUERIES) {
                for (half, shrink) in row.chunks_exact_mut(16).zip(shrink) {
                    let at = half.as_mut_ptr();
                    // SAFETY: 16 values.
                    unsafe { s.store(at, s.mul(s.load(at), shrink)) };
                }
            }
        }
        for tile in (0..rows / 16).step_by(2) {
            let product = Product {
                a: packed.values[(first / 32 * rows / 16 + tile) * TILE..].as_ptr(),
                a_row: 64,
                a_tile: TILE * 4,
                a_step: rows / 16 * TILE * 4,
                b: packed.weights.as_ptr(),
                b_tile: BLOCK / 32 * TILE * 4,
                steps,
                c: packed.sums[tile * 16 * QUERIES..].as_mut_ptr(),
            };
            // SAFETY: one or two tiles of values over the steps of this block, the weights, and as
            // many rows of sums; tiles are configured.
            unsafe {
                if rows / 16 - tile > 1 { product.go::<2, 1>() } else { product.go::<1, 1>() }
            }
        }
    }
    let mut sums = [0.0; QUERIES];
    for (half, sum) in sums.chunks_exact_mut(16).zip(sum) {
        // SAFETY: 16 values.
        unsafe { s.store(half.as_mut_ptr(), sum) };
    }
    sums
}

/// Turns the scores of a block into weights and updates maxima and sums; returns the factor of what
/// was summed before, if it is not one everywhere.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
fn weigh(
    s: Avx512,
    lanes: &Lanes<'_>,
    packed: &mut Packed<'_>,
    (first, count): (usize, usize),
    max: &mut [__m512; 2],
    sum: &mut [__m512; 2],
) -> Option<[__m512; 2]> {
    // Maxima and scores in units of `log2`: `2^(factor score - max)`.
    let plain = lanes.params.softcap.is_none();
    let factor = s.splat(if plain { lanes.params.scale * std::f32::consts::LOG2_E } else { 1.0 });
    let masked = first + count > lanes.sight.range.0 || lanes.window.is_some();
    let old = *max;
    let scores = &mut packed.scores[..count.next_multiple_of(32) * QUERIES];
    if !plain || masked || !count.is_multiple_of(32) {
        for (j, row) in scores.chunks_exact_mut(QUERIES).enumerate() {
            for (half, part) in row.chunks_exact_mut(16).enumerate() {
                let at = part.as_mut_ptr();
                // SAFETY: 16 values.
                let mut x = unsafe { s.load(at) };
                if let Some(cap) = lanes.params.softcap {
                    let bent = s.tanh(s.mul(x, s.splat(lanes.params.scale / cap)));
                    x = s.mul(bent, s.splat(cap * std::f32::consts::LOG2_E));
                }
                x = if j >= count {
                    s.splat(f32::NEG_INFINITY)
                } else if masked {
                    lanes.mask(s, x, first + j, half * 16)
                } else {
                    x
                };
                // SAFETY: 16 values.
                unsafe { s.store(at, x) };
            }
        }
    }
    let mut highest = [s.splat(f32::NEG_INFINITY); 2];
    for row in scores.chunks_exact(QUERIES) {
        for (half, part) in row.chunks_exact(16).enumerate() {
            // SAFETY: 16 values.
            highest[half] = s.max(highest[half], unsafe { s.load(part.as_ptr()) });
        }
    }
    let mut shrink = old;
    let mut same = true;
    for half in 0..2 {
        max[half] = s.max(old[half], s.mul(highest[half], factor));
        same &= s.all_equal(old[half], max[half]);
        shrink[half] = s.exp2_negative(s.sub(old[half], max[half]));
    }
    let interleave = interleaving();
    let mut block = [s.splat(0.0); 2];
    for (p, rows) in scores.chunks_exact(2 * QUERIES).enumerate() {
        for half in 0..2 {
            let low = s.sub(s.splat(0.0), max[half]);
            // SAFETY: two rows of 32 values.
            let (even, odd) = unsafe {
                (s.load(rows[half * 16..].as_ptr()), s.load(rows[QUERIES + half * 16..].as_ptr()))
            };
            let even = s.exp2_negative(s.fma(even, factor, low));
            let odd = s.exp2_negative(s.fma(odd, factor, low));
            block[half] = s.add(block[half], s.add(even, odd));
            let to = &mut packed.weights[(half * BLOCK / 2 + p) * 16..][..16];
            // SAFETY: 16 words; a vector of bf16 is a vector of words.
            unsafe {
                let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(odd, even));
                let pairs = _mm512_permutexvar_epi16(interleave, both);
                _mm512_storeu_si512(to.as_mut_ptr().cast(), pairs);
            }
        }
    }
    for half in 0..2 {
        sum[half] = s.fma(sum[half], shrink[half], block[half]);
    }
    (!same).then_some(shrink)
}

/// Index of the permutation that interleaves the two halves of 32 words of 16 bits.
#[target_feature(enable = "avx512f")]
fn interleaving() -> __m512i {
    let index: [u16; 32] = std::array::from_fn(|i| (i / 2 + i % 2 * 16) as u16);
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(index.as_ptr().cast()) }
}

/// Divides by the sums and transposes 16 lanes and 16 values of a head at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn store(
    part: &Part<'_>,
    first: usize,
    count: usize,
    packed: &Packed<'_>,
    sums: &[f32; QUERIES],
    out: Shared<f32>,
) {
    let e = part.q.head_dim;
    let width = part.q.heads * e;
    let mut tile = [0.0f32; TILE];
    for half in 0..2 {
        for c in (0..e).step_by(16) {
            let from = &packed.sums[c * QUERIES + half * 16..];
            transpose(bytemuck::cast_slice(from), QUERIES, bytemuck::cast_slice_mut(&mut tile), 16);
            for (lane, row) in tile.chunks_exact(16).enumerate() {
                let lane = half * 16 + lane;
                if lane >= count {
                    break;
                }
                let (r, head) = part.place(first + lane);
                let size = 16.min(e - c);
                // SAFETY: this task alone writes this head of this row, and the output lives.
                let to = unsafe { out.range(r * width + head * e + c, size) };
                let inverse =
                    if sums[lane] > 0.0 || sums[lane].is_nan() { 1.0 / sums[lane] } else { 0.0 };
                for (o, x) in to.iter_mut().zip(row) {
                    *o = x * inverse;
                }
            }
        }
    }
}

/// `to[j][i] = from[i][j]` for 16 by 16 words; rows are `from_stride` and `to_stride` apart.
#[target_feature(enable = "avx512f")]
fn transpose(from: &[u32], from_stride: usize, to: &mut [u32], to_stride: usize) {
    assert!(from.len() >= 15 * from_stride + 16 && to.len() >= 15 * to_stride + 16, "16 rows");
    let mut r = [_mm512_setzero_si512(); 16];
    for (i, r) in r.iter_mut().enumerate() {
        // SAFETY: row `i` has 16 words from its start on.
        *r = unsafe { _mm512_loadu_si512(from.as_ptr().add(i * from_stride).cast()) };
    }
    let mut t = r;
    for i in (0..16).step_by(2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for i in (0..16).step_by(4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // `r[4 b + c]` holds, in its 128-bit lane `l`, column `4 l + c` of rows `4 b ..`.
    for c in 0..4 {
        let (a, b) = (r[c], r[4 + c]);
        let (d, f) = (r[8 + c], r[12 + c]);
        let low = _mm512_shuffle_i32x4::<0x44>(a, b);
        let high = _mm512_shuffle_i32x4::<0xEE>(a, b);
        let low2 = _mm512_shuffle_i32x4::<0x44>(d, f);
        let high2 = _mm512_shuffle_i32x4::<0xEE>(d, f);
        t[c] = _mm512_shuffle_i32x4::<0x88>(low, low2);
        t[4 + c] = _mm512_shuffle_i32x4::<0xDD>(low, low2);
        t[8 + c] = _mm512_shuffle_i32x4::<0x88>(high, high2);
        t[12 + c] = _mm512_shuffle_i32x4::<0xDD>(high, high2);
    }
    for (j, t) in t.iter().enumerate() {
        // SAFETY: row `j` has 16 words from its start on.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().add(j * to_stride).cast(), *t) };
    }
}

/// A tile product: one or two tiles of rows times two tiles of lanes.
struct Product {
    a: *const u32,
    /// Bytes from one row of `a` to the next, from one tile of rows to the next, from one step of
    /// 32 summed values to the next.
    a_row: usize,
    a_tile: usize,
    a_step: usize,
    /// Tiles of 1 KiB, one a step; `b_tile` bytes from the first 16 lanes to the second.
    b: *const u32,
    b_tile: usize,
    steps: usize,
    /// `[16 M][QUERIES]`
    c: *mut f32,
}

impl Product {
    /// `M` tiles of rows; with `ADD` on top of what is there.
    ///
    /// # Safety
    /// The pointers reach as far as `M`, `steps` and the strides say, `steps` is not zero, and this
    /// thread's tiles are configured to 16 rows.
    #[inline(always)]
    unsafe fn go<const M: usize, const ADD: usize>(&self) {
        // SAFETY: the caller's word; all tile registers are declared as overwritten.
        unsafe {
            asm!(
                ".if {ADD}",
                "tileloadd tmm0, [{c} + {wide}]",
                "tileloadd tmm1, [{c} + {wide} + 64]",
                ".if {M} > 1",
                "tileloadd tmm2, [{c} + {wide} + 2048]",
                "tileloadd tmm3, [{c} + {wide} + 2112]",
                ".endif",
                ".else",
                "tilezero tmm0",
                "tilezero tmm1",
                ".if {M} > 1",
                "tilezero tmm2",
                "tilezero tmm3",
                ".endif",
                ".endif",
                "2:",
                "tileloadd tmm4, [{a0} + {a_row}]",
                "tileloadd tmm6, [{b0} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {line}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                ".if {M} > 1",
                "tileloadd tmm5, [{a1} + {a_row}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a1}, {a_step}",
                ".endif",
                "add {a0}, {a_step}",
                "add {b0}, 1024",
                "add {b1}, 1024",
                "dec {n}",
                "jnz 2b",
                "tilestored [{c} + {wide}], tmm0",
                "tilestored [{c} + {wide} + 64], tmm1",
                ".if {M} > 1",
                "tilestored [{c} + {wide} + 2048], tmm2",
                "tilestored [{c} + {wide} + 2112], tmm3",
                ".endif",
                M = const M,
                ADD = const ADD,
                c = in(reg) self.c,
                wide = in(reg) QUERIES * 4,
                line = in(reg) 64usize,
                a_row = in(reg) self.a_row,
                a_step = in(reg) self.a_step,
                a0 = inout(reg) self.a => _,
                a1 = inout(reg) self.a.wrapping_byte_add(self.a_tile) => _,
                b0 = inout(reg) self.b => _,
                b1 = inout(reg) self.b.wrapping_byte_add(self.b_tile) => _,
                n = inout(reg) self.steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}
