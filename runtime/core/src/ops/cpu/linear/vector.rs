//! Products on vector registers: f32, and bf16 by conversion (or by `dot` where that is fast).
//!
//! Rows of the input are packed in blocks `[k][rows]`, so that one broadcast feeds the FMAs of two
//! panels; a block of 12 rows by 32 outputs fills 24 of 32 AVX-512 registers. Row chunks of at most
//! 1.25 MiB stay in L2 while the panels stream past; meanwhile the next pair of panels is fetched.
//! (Turns of some inputs, as with tiles, gained nothing.)
//!
//! FLOPs: `2 rows inputs outputs`. Bytes: the weights once per row chunk.
#![allow(unsafe_code, reason = "inner loops over packed panels")]

use std::ops::Range;

use super::finish::{BLOCK, Finish};
use super::{PANEL, PackedLinear};
use crate::ops::cpu::detect::Isa;
use crate::ops::cpu::memory::{Scratch, ScratchPool, Shared};
use crate::ops::cpu::simd::{self, Job, Simd};
use crate::ops::cpu::threads::Threads;

/// Bytes of packed input that stay in L2 beside a panel.
const CHUNK_BYTES: usize = 5 << 18;
/// Rows of a chunk at most: their sums stay in L1.
const CHUNK_ROWS: usize = 240;
/// Rows of a block that has a kernel, largest first.
const SIZES: [usize; 7] = [12, 8, 6, 4, 3, 2, 1];

/// Which products a block is made of.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// f32 weights.
    F32,
    /// bf16 weights and rounded inputs, both widened to f32.
    Wide,
    /// bf16 dot products.
    #[cfg(target_arch = "x86_64")]
    Dot,
}

/// Rows of the largest block: as many accumulators as there are registers for.
fn largest_block(isa: Isa) -> usize {
    match isa {
        Isa::Scalar => 2,
        Isa::Avx2 => 6,
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => 12,
    }
}

/// `(first row, rows)` of the blocks of `rows` rows.
fn blocks(rows: usize, largest: usize) -> Vec<(usize, usize)> {
    let mut out = Vec::new();
    let mut first = 0;
    while first < rows {
        let fits = |size: &&usize| **size <= largest && **size <= rows - first;
        let size = *SIZES.iter().find(fits).expect("the last size is 1");
        out.push((first, size));
        first += size;
    }
    out
}

/// Runs a product; see [`super::run`].
pub(super) fn run(
    threads: &Threads,
    isa: Isa,
    pool: &ScratchPool,
    w: &PackedLinear,
    x: &[f32],
    finish: &Finish<'_>,
) {
    pool.with(|[scratch, _]| run_with(threads, isa, pool, scratch, w, x, finish));
}

fn run_with(
    threads: &Threads,
    isa: Isa,
    pool: &ScratchPool,
    scratch: &mut Scratch,
    w: &PackedLinear,
    x: &[f32],
    finish: &Finish<'_>,
) {
    let kind = match isa {
        _ if !w.is_bf16 => Kind::F32,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => Kind::Dot,
        _ => Kind::Wide,
    };
    let largest = largest_block(isa);
    let rows = finish.rows;
    // Chunks of one size: a small last one would read all weights for a few rows.
    let most = (CHUNK_BYTES / (w.depth.max(1) * 4)).clamp(largest, CHUNK_ROWS);
    let chunk = rows.div_ceil(rows.div_ceil(most)).next_multiple_of(largest);
    let packed = scratch.take::<u32>(chunk.min(rows) * w.depth);
    for first in (0..rows).step_by(chunk) {
        let count = chunk.min(rows - first);
        let blocks = blocks(count, largest);
        let x = &x[first * w.inputs..][..count * w.inputs];
        let target = Shared::new(packed);
        // Below some 16k values the hand-over costs more than the copy.
        let grain = (16384 / (largest * w.depth.max(1))).max(1);
        threads.ranges(blocks.len(), grain, &|begin, len| {
            for (row, size) in &blocks[begin..begin + len] {
                // SAFETY: blocks do not overlap, and the scratch outlives the call.
                let block = unsafe { target.range(row * w.depth, size * w.depth) };
                pack_rows(isa, kind, &x[row * w.inputs..][..size * w.inputs], *size, w, block);
            }
        });
        let packed: &[u32] = packed;
        threads.ranges(w.panels.div_ceil(2), 2, &|begin, len| {
            let pairs = begin..begin + len;
            // Outside the job: what a closure holds is compiled without the job's features.
            pool.with(|[local, _]| {
                let sums = local.take::<f32>(count * BLOCK);
                let blocks = &blocks;
                simd::run(isa, Panels { kind, w, packed, blocks, first, pairs, finish, sums });
            });
        });
    }
}

/// Packs `size` rows as `[k][size]` f32 (rounded for bf16) or as pairs of bf16 `[k / 2][size]`.
fn pack_rows(isa: Isa, kind: Kind, x: &[f32], size: usize, w: &PackedLinear, block: &mut [u32]) {
    if w.inputs != w.depth {
        block.fill(0);
    }
    match kind {
        Kind::F32 => {
            for (i, row) in x.chunks_exact(w.inputs).enumerate() {
                for (word, v) in block[i..].iter_mut().step_by(size).zip(row) {
                    *word = v.to_bits();
                }
            }
        }
        Kind::Wide => simd::run(isa, RoundRows { x, size, inputs: w.inputs, block }),
        #[cfg(target_arch = "x86_64")]
        Kind::Dot => dot_pairs(x, size, w.inputs, block),
    }
}

#[cfg(target_arch = "x86_64")]
fn dot_pairs(x: &[f32], size: usize, inputs: usize, block: &mut [u32]) {
    let bits = |v: &f32| u32::from(half::bf16::from_f32(*v).to_bits());
    for (i, row) in x.chunks_exact(inputs).enumerate() {
        for (word, pair) in block[i..].iter_mut().step_by(size).zip(row.chunks(2)) {
            *word = bits(&pair[0]) | pair.get(1).map_or(0, bits) << 16;
        }
    }
}

/// Rounds rows to bf16 and packs them as f32.
struct RoundRows<'a> {
    x: &'a [f32],
    size: usize,
    inputs: usize,
    block: &'a mut [u32],
}

impl Job for RoundRows<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, row) in self.x.chunks_exact(self.inputs).enumerate() {
            for (k, part) in row.chunks(S::LANES).enumerate() {
                let mut lanes = [0.0f32; PANEL];
                lanes[..part.len()].copy_from_slice(part);
                // SAFETY: `lanes` has 16 values, and `LANES` divides 16.
                unsafe { s.store(lanes.as_mut_ptr(), s.round_bf16(s.load(lanes.as_ptr()))) };
                let words = self.block[k * S::LANES * self.size + i..].iter_mut();
                for (word, v) in words.step_by(self.size).zip(&lanes[..part.len()]) {
                    *word = v.to_bits();
                }
            }
        }
    }
}

/// All row blocks of a chunk times a range of panel pairs.
struct Panels<'a> {
    kind: Kind,
    w: &'a PackedLinear,
    packed: &'a [u32],
    blocks: &'a [(usize, usize)],
    first: usize,
    pairs: Range<usize>,
    finish: &'a Finish<'a>,
    /// `[rows][BLOCK]`
    sums: &'a mut [f32],
}

impl Job for Panels<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let words = self.w.panel_words();
        let rows = self.sums.len() / BLOCK;
        for pair in self.pairs {
            let count = (self.w.panels - 2 * pair).min(2);
            let panels = &self.w.words()[2 * pair * words..][..count * words];
            for (block, (row, size)) in self.blocks.iter().enumerate() {
                // A block fetches an eighth of the next pair, which may lie past the end.
                let next = 2 * words + block * words / 4;
                let next = panels.as_ptr().wrapping_add(next);
                let a = &self.packed[row * self.w.depth..][..size * self.w.depth];
                let sums = &mut self.sums[row * BLOCK..];
                match self.kind {
                    Kind::F32 => multiply::<S, false>(s, a, *size, panels, words, next, sums),
                    Kind::Wide => multiply::<S, true>(s, a, *size, panels, words, next, sums),
                    #[cfg(target_arch = "x86_64")]
                    Kind::Dot => super::dot::multiply(a, *size, panels, words, sums),
                }
            }
            // SAFETY: this task alone stores these panels.
            unsafe { self.finish.store(s, self.sums, self.first, rows, 2 * pair) };
        }
    }
}

/// One row block times one or two panels into `sums: [size, BLOCK]`.
#[inline(always)]
fn multiply<S: Simd, const BF16: bool>(
    s: S,
    a: &[u32],
    size: usize,
    panels: &[u32],
    words: usize,
    next: *const u32,
    sums: &mut [f32],
) {
    let lines = words / PANEL;
    assert!(a.len() >= lines * size * if BF16 { 2 } else { 1 }, "packed rows");
    assert!(panels.len() >= words && sums.len() >= size * BLOCK, "packed panels");
    let a = a.as_ptr().cast::<f32>();
    let two = panels.len() > words;
    // Two vectors side by side: both panels at 16 lanes, the two halves of one panel at 8.
    let step = if S::LANES == PANEL { 2 } else { 1 };
    for (i, p) in (0..if two { 2 } else { 1 }).step_by(step).enumerate() {
        let base = panels[p * words..].as_ptr();
        let second = match S::LANES {
            PANEL if two => panels[words..].as_ptr(),
            // One panel at 16 lanes: the second vector repeats the first and is not stored.
            PANEL => base,
            lanes => base.wrapping_add(lanes),
        };
        let out = sums[i * PANEL..].as_mut_ptr();
        macro_rules! size {
            ($n:literal) => {
                // SAFETY: `a` has groups of `size` values for every line, both streams have
                // `lines` lines, and the sums have `size` rows of `BLOCK` columns.
                unsafe { micro::<S, $n, BF16>(s, lines, a, base, second, next, out) }
            };
        }
        match size {
            1 => size!(1),
            2 => size!(2),
            3 => size!(3),
            4 => size!(4),
            6 => size!(6),
            8 if S::LANES == PANEL => size!(8),
            12 if S::LANES == PANEL => size!(12),
            _ => unreachable!("no block has {size} rows"),
        }
    }
}

/// `MR` rows times two vectors of outputs. Rows of `out` are `BLOCK` apart, the second vector
/// follows the first. `next` is fetched, a line for every four.
///
/// # Safety
/// `a` has `lines * (1 + BF16)` groups of `MR` values, the streams have `lines` lines, and `out`
/// has `MR` rows.
#[inline(always)]
unsafe fn micro<S: Simd, const MR: usize, const BF16: bool>(
    s: S,
    lines: usize,
    a: *const f32,
    b0: *const u32,
    b1: *const u32,
    next: *const u32,
    out: *mut f32,
) {
    let mut acc = [[s.splat(0.0); 2]; MR];
    for k in 0..lines {
        // SAFETY: the caller's word on all three.
        unsafe {
            let (p0, p1) = (b0.add(k * PANEL), b1.add(k * PANEL));
            if MR <= 8 {
                // Few rows are bound by memory; 2 KiB ahead was the best of 0, 2, 4 and 8.
                s.prefetch(p0.wrapping_add(512));
                s.prefetch(p1.wrapping_add(512));
            } else if k % 4 == 0 {
                s.prefetch_far(next.wrapping_add(k / 4 * PANEL));
            }
            if BF16 {
                let ((e0, o0), (e1, o1)) = (s.load_pairs(p0), s.load_pairs(p1));
                for (i, acc) in acc.iter_mut().enumerate() {
                    let even = s.splat(*a.add(2 * k * MR + i));
                    let odd = s.splat(*a.add((2 * k + 1) * MR + i));
                    acc[0] = s.fma(odd, o0, s.fma(even, e0, acc[0]));
                    acc[1] = s.fma(odd, o1, s.fma(even, e1, acc[1]));
                }
            } else {
                let (v0, v1) = (s.load(p0.cast()), s.load(p1.cast()));
                for (i, acc) in acc.iter_mut().enumerate() {
                    let x = s.splat(*a.add(k * MR + i));
                    acc[0] = s.fma(x, v0, acc[0]);
                    acc[1] = s.fma(x, v1, acc[1]);
                }
            }
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        // SAFETY: row `i` of the sums.
        unsafe {
            s.store(out.add(i * BLOCK), acc[0]);
            s.store(out.add(i * BLOCK + S::LANES), acc[1]);
        }
    }
}
