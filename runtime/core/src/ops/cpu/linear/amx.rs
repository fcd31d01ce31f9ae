//! bf16 products on AMX tiles.
//!
//! A tile is 16 rows of 64 bytes; one `tdpbf16ps` multiplies 16 rows by 16 outputs over 32 inputs.
//! The kernel keeps two tiles of rows times two panels of sums in four registers: four loads for four
//! products. The input is packed once as tiles `[rows / 16][inputs / 32][16][32]`, in chunks that
//! stay in L2 while panels stream past. Tiles stored after long loops were found to cost a thousand
//! cycles a block when the panels do not stay in L1, so sums are taken in turns of [`TURN`] inputs:
//! 16 KiB of two panels serve all rows of the chunk, and sums wait in L2 (7 % over whole loops at
//! 2048 inputs, 29 % at 1024). Inputs beyond [`DEPTH`] are summed in passes over all panels, so that
//! a chunk has enough rows to pay for the panels it reads.
//!
//! Invariants
//! - Tile registers hold values only inside one `asm!` block; the tile configuration of a thread is
//!   set by `Tiles` for the length of a task and released with it.
//! - The order of sums is the tile instruction's, also in [`rows_of_few`]: per 32 inputs the even
//!   and the odd products are chained apart by FMA, added, and added to the sum.
//!
//! FLOPs: `2 rows inputs outputs`. Bytes: the weights once per row chunk.
#![allow(unsafe_code, reason = "tile instructions exist as assembly only")]

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::finish::{BLOCK, Finish};
use super::{PANEL, PackedLinear};
use crate::ops::cpu::detect::Isa;
use crate::ops::cpu::memory::{Scratch, ScratchPool, Shared};
use crate::ops::cpu::simd::{self, Job, Simd};
use crate::ops::cpu::threads::Threads;
use crate::ops::cpu::tiles::Tiles;

/// Inputs of a tile.
const STEP: usize = 32;
/// Words of a packed tile of 16 rows.
const TILE: usize = 256;
/// Inputs summed in one pass.
const DEPTH: usize = 2048;
/// Inputs summed in one turn, where there are enough rows to use a turn's panels again.
const TURN: usize = 256;
/// Blocks of rows from which on sums are taken in turns.
const TURN_BLOCKS: usize = 3;
/// Bytes of packed input of a chunk and pass: with sums and two pairs of panels they fill L2.
const CHUNK_BYTES: usize = 9 << 17;
/// Up to so many rows the weights are multiplied by FMA on the way from memory.
const FEW: usize = 2;

/// Runs a product; see [`super::run`].
pub(super) fn run(
    threads: &Threads,
    isa: Isa,
    pool: &ScratchPool,
    w: &PackedLinear,
    x: &[f32],
    finish: &Finish<'_>,
) {
    pool.with(|scratch| run_with(threads, isa, pool, scratch, w, x, finish));
}

fn run_with(
    threads: &Threads,
    isa: Isa,
    pool: &ScratchPool,
    scratch: &mut [Scratch; 2],
    w: &PackedLinear,
    x: &[f32],
    finish: &Finish<'_>,
) {
    let rows = finish.rows;
    let steps = w.depth / STEP;
    let [for_input, for_sums] = scratch;
    if rows <= FEW {
        let packed = for_input.take::<u32>(rows * w.depth / 2);
        // SAFETY: `Isa::Amx` implies AVX-512 BF16.
        unsafe { pack_rows(x, w.inputs, steps, 1, packed) };
        let packed: &[u32] = packed;
        threads.ranges(w.panels.div_ceil(2), 1, &|begin, len| {
            simd::run(isa, Few { w, packed, pairs: begin..begin + len, finish });
        });
        return;
    }
    let passes = w.depth.div_ceil(DEPTH);
    let pass = steps.div_ceil(passes);
    // Few rows take tiles of their own height; else the last tile is filled up with zeros.
    let height = rows.min(16);
    let tiles = rows.div_ceil(16);
    let chunks = tiles.div_ceil((CHUNK_BYTES / (pass * TILE * 4)).max(1));
    let per_chunk = tiles.div_ceil(chunks);
    let tile_words = height * 16;
    let packed = for_input.take::<u32>(tiles * steps * tile_words);
    let target = Shared::new(packed);
    at_home(threads, chunks, per_chunk, &|chunk, i| {
        let tile = chunk * per_chunk + i;
        if tile < tiles {
            let first = tile * 16;
            let x = &x[first * w.inputs..rows.min(first + 16) * w.inputs];
            // SAFETY: tiles do not overlap, and the scratch outlives the call.
            let target = unsafe { target.range(tile * steps * tile_words, steps * tile_words) };
            // SAFETY: `Isa::Amx` implies AVX-512 BF16.
            unsafe { pack_rows(x, w.inputs, steps, height, target) };
        }
    });
    let packed: &[u32] = packed;
    let pairs = w.panels.div_ceil(2);
    let sums_len = if passes > 1 { pairs * tiles * 16 * BLOCK } else { 0 };
    let sums = Shared::new(for_sums.take::<f32>(sums_len));
    // A range is some 16th of the panels: enough to share out, long enough to stream.
    let range = pairs.div_ceil(16).max(1);
    for p in 0..passes {
        let range_steps = p * pass..steps.min((p + 1) * pass);
        at_home(threads, chunks, pairs.div_ceil(range), &|chunk, i| {
            let own = chunk * per_chunk..tiles.min((chunk + 1) * per_chunk);
            if own.is_empty() {
                return;
            }
            let _tiles = Tiles::configure(height);
            pool.with(|[local, _]| {
                let local = local.take::<f32>(own.len() * 16 * BLOCK);
                let block = Block {
                    w,
                    packed,
                    height,
                    tiles: own.clone(),
                    steps: range_steps.clone(),
                    pairs: i * range..pairs.min((i + 1) * range),
                    sums: if passes > 1 { sums } else { Shared::new(local) },
                    pair_sums: if passes > 1 { tiles * 16 * BLOCK } else { 0 },
                    first_sums: if passes > 1 { own.start * 16 * BLOCK } else { 0 },
                    last: p + 1 == passes,
                    finish,
                };
                simd::run(isa, block);
            });
        });
    }
}

/// Runs `task(chunk, i)` for all chunks and `0 <= i < each`; a thread starts with the chunk that it
/// packed itself, because that one lies in its L2.
fn at_home(threads: &Threads, chunks: usize, each: usize, task: &(dyn Fn(usize, usize) + Sync)) {
    if chunks == 1 {
        threads.each(each, &|i| task(0, i));
        return;
    }
    let next: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
    threads.enter(&|thread| {
        let home = thread * chunks / threads.len();
        for chunk in (home..chunks).chain(0..home) {
            loop {
                let i = next[chunk].fetch_add(1, Ordering::Relaxed);
                if i >= each {
                    break;
                }
                task(chunk, i);
            }
        }
    });
}

/// Packs rows as tiles: `steps` blocks of `[height][16]` pairs of bf16, zero past the rows and
/// inputs that exist.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pack_rows(x: &[f32], inputs: usize, steps: usize, height: usize, target: &mut [u32]) {
    let height = height.max(x.len() / inputs.max(1));
    assert!(target.len() >= steps * height * 16, "room for the tiles");
    for r in 0..height {
        let row = x.get(r * inputs..(r + 1) * inputs).unwrap_or(&[]);
        for step in 0..steps {
            let to = target[(step * height + r) * 16..][..16].as_mut_ptr();
            let first = step * STEP;
            let have = row.len().saturating_sub(first).min(STEP);
            let from = row.as_ptr().wrapping_add(first);
            // SAFETY: lanes below `have` lie in the row, the others are not read; the target has
            // 16 words.
            unsafe {
                let (a, b) = if have == STEP {
                    (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16)))
                } else {
                    let mask = (1u32 << have) - 1;
                    (
                        _mm512_maskz_loadu_ps(mask as u16, from),
                        _mm512_maskz_loadu_ps((mask >> 16) as u16, from.wrapping_add(16)),
                    )
                };
                let pairs = _mm512_cvtne2ps_pbh(b, a);
                let pairs = std::mem::transmute::<__m512bh, __m512i>(pairs);
                _mm512_storeu_si512(to.cast(), pairs);
            }
        }
    }
}

/// Some tiles of rows times a range of panel pairs, over the inputs of one pass.
struct Block<'a> {
    w: &'a PackedLinear,
    packed: &'a [u32],
    height: usize,
    tiles: Range<usize>,
    steps: Range<usize>,
    pairs: Range<usize>,
    /// Where sums wait between turns and passes: `[16][BLOCK]` a tile of rows.
    sums: Shared<f32>,
    /// Values from one pair of panels to the next: zero if the pass ends a pair's sums.
    pair_sums: usize,
    /// Values before the first of these tiles.
    first_sums: usize,
    last: bool,
    finish: &'a Finish<'a>,
}

impl Job for Block<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let words = self.w.panel_words();
        for pair in self.pairs.clone() {
            let count = (self.w.panels - 2 * pair).min(2);
            let panels = &self.w.words()[2 * pair * words..][..count * words];
            let size = self.tiles.len() * 16 * BLOCK;
            let at = pair * self.pair_sums + self.first_sums;
            // SAFETY: this task alone has these tiles and panels in this pass.
            let sums = unsafe { self.sums.range(at, size) };
            self.multiply(panels, sums);
            if self.last {
                let first = self.tiles.start * 16;
                let rows = (self.tiles.len() * 16).min(self.finish.rows - first);
                // SAFETY: this task alone stores these rows and panels.
                unsafe { self.finish.store(s, sums, first, rows, 2 * pair) };
            }
        }
    }
}

impl Block<'_> {
    /// The block's rows times one or two panels, in turns.
    fn multiply(&self, panels: &[u32], sums: &mut [f32]) {
        let words = self.w.panel_words();
        let tile_words = self.height * 16;
        let tile_rows = (self.w.depth / STEP) * tile_words;
        let row_blocks = self.tiles.len().div_ceil(2);
        let turn = if row_blocks < TURN_BLOCKS { self.steps.len() } else { TURN / STEP };
        let rows = &self.packed[self.tiles.start * tile_rows..][..self.tiles.len() * tile_rows];
        assert!(sums.len() >= self.tiles.len() * 16 * BLOCK, "room for the sums");
        assert!(self.steps.end * TILE <= words && !panels.is_empty(), "steps of the panels");
        // The next pair is fetched into L2 meanwhile, the same steps of it: one panel by the first
        // half of the row blocks, one by the second. It may lie past the end.
        let half = row_blocks.div_ceil(2);
        let ahead = match row_blocks {
            1 => 32,
            blocks => 16usize.div_ceil(blocks - half),
        };
        for first in self.steps.clone().step_by(turn) {
            let steps = turn.min(self.steps.end - first);
            for block in 0..row_blocks {
                let tile = 2 * block;
                let (panel, within) = if block < half { (2, block) } else { (3, block - half) };
                let next = panel * words + first * TILE + within * steps * ahead * 16;
                let call = Call {
                    a: rows[tile * tile_rows + first * tile_words..].as_ptr(),
                    a_bytes: tile_rows * 4,
                    a_step: tile_words * 4,
                    panel: panels[first * TILE..].as_ptr(),
                    panel_bytes: if panels.len() > words { words * 4 } else { 0 },
                    steps,
                    sums: sums[tile * 16 * BLOCK..].as_mut_ptr(),
                    next: panels.as_ptr().wrapping_add(next),
                    ahead,
                };
                // SAFETY: there are one or two tiles of rows and of sums from here, with `steps`
                // steps, and as many of the panels; tiles are configured by the caller.
                unsafe {
                    match (self.tiles.len() - tile, first > 0) {
                        (1, false) => call.go::<1, 0>(),
                        (1, true) => call.go::<1, 1>(),
                        (_, false) => call.go::<2, 0>(),
                        (_, true) => call.go::<2, 1>(),
                    }
                }
            }
        }
    }
}

/// Arguments of the tile kernel.
struct Call {
    /// First row tile of this pass.
    a: *const u32,
    /// From one tile of rows to the next.
    a_bytes: usize,
    /// From one step of inputs to the next.
    a_step: usize,
    /// First panel tile of this pass.
    panel: *const u32,
    /// From one panel to the next; zero if there is one only.
    panel_bytes: usize,
    steps: usize,
    /// `[16 * tiles][BLOCK]`
    sums: *mut f32,
    /// What to prefetch, and how many lines a step.
    next: *const u32,
    ahead: usize,
}

impl Call {
    /// `M` tiles of rows times two panels; with `ADD` on top of the sums that are there.
    ///
    /// # Safety
    /// The pointers reach as far as `M`, `steps` and the strides say, `steps` and `ahead` are not
    /// zero, and this thread's tiles are configured.
    #[inline(always)]
    unsafe fn go<const M: usize, const ADD: usize>(&self) {
        // SAFETY: the caller's word; all tile registers are declared as overwritten.
        unsafe {
            asm!(
                // Sums: tmm0/1 of the first tile of rows, tmm2/3 of the second.
                "mov {i:e}, 128", // bytes from one row of sums to the next
                ".if {ADD}",
                "tileloadd tmm0, [{c} + {i}]",
                "tileloadd tmm1, [{c} + {i} + 64]",
                ".if {M} > 1",
                "tileloadd tmm2, [{c} + {i} + 2048]",
                "tileloadd tmm3, [{c} + {i} + 2112]",
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
                "tileloadd tmm4, [{a0} + {line}]",
                "tileloadd tmm6, [{b0} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {line}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                ".if {M} > 1",
                "tileloadd tmm5, [{a1} + {line}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                ".endif",
                // Prefetch between the products, as many lines as the caller asked for.
                "mov {i:e}, {ahead:e}",
                "3:",
                "prefetcht1 [{next}]",
                "add {next}, 64",
                "dec {i:e}",
                "jnz 3b",
                ".if {M} > 1",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a1}, {a_step}",
                ".endif",
                "add {a0}, {a_step}",
                "add {b0}, 1024",
                "add {b1}, 1024",
                "dec {n}",
                "jnz 2b",
                "mov {i:e}, 128",
                "tilestored [{c} + {i}], tmm0",
                "tilestored [{c} + {i} + 64], tmm1",
                ".if {M} > 1",
                "tilestored [{c} + {i} + 2048], tmm2",
                "tilestored [{c} + {i} + 2112], tmm3",
                ".endif",
                M = const M,
                ADD = const ADD,
                c = in(reg) self.sums,
                line = in(reg) 64usize,
                a0 = inout(reg) self.a => _,
                a1 = inout(reg) self.a.wrapping_byte_add(self.a_bytes) => _,
                b0 = inout(reg) self.panel => _,
                b1 = inout(reg) self.panel.wrapping_byte_add(self.panel_bytes) => _,
                a_step = in(reg) self.a_step,
                n = inout(reg) self.steps => _,
                next = inout(reg) self.next => _,
                ahead = in(reg) self.ahead,
                i = out(reg) _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

/// A row or two times a range of panel pairs: bound by memory, so FMAs keep up, and prefetching
/// by line beats whole tiles (36 against 32 GB/s on two cores).
struct Few<'a> {
    w: &'a PackedLinear,
    packed: &'a [u32],
    pairs: Range<usize>,
    finish: &'a Finish<'a>,
}

impl Job for Few<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let words = self.w.panel_words();
        let mut tile = [0.0f32; FEW * BLOCK];
        for pair in self.pairs.clone() {
            let two = self.w.panels - 2 * pair > 1;
            let panels = &self.w.words()[2 * pair * words..][..if two { 2 * words } else { words }];
            let second = if two { words } else { 0 };
            // SAFETY: `Isa::Amx` implies AVX-512 F.
            unsafe {
                match self.finish.rows {
                    1 => rows_of_few::<1>(self.packed, panels, second, words / TILE, &mut tile),
                    _ => rows_of_few::<2>(self.packed, panels, second, words / TILE, &mut tile),
                }
            }
            // SAFETY: this task alone stores these panels.
            unsafe { self.finish.store(s, &tile, 0, self.finish.rows, 2 * pair) };
        }
    }
}

/// `M` rows times two panels in the order of the tile instruction. Inputs are packed as
/// `[steps][M][16]` pairs.
#[target_feature(enable = "avx512f")]
fn rows_of_few<const M: usize>(
    x: &[u32],
    panels: &[u32],
    second: usize,
    steps: usize,
    tile: &mut [f32; FEW * BLOCK],
) {
    assert!(x.len() >= steps * M * 16 && panels.len() >= second + steps * TILE, "packed sizes");
    let upper = _mm512_set1_epi32(0xFFFF_0000_u32 as i32);
    let mut sums = [[_mm512_setzero_ps(); 2]; M];
    for step in 0..steps {
        let mut even = [[_mm512_setzero_ps(); 2]; M];
        let mut odd = [[_mm512_setzero_ps(); 2]; M];
        for p in 0..16 {
            for half in 0..2 {
                let at = half * second + step * TILE + p * PANEL;
                // SAFETY: both panels have `steps` tiles; a prefetch may miss.
                let w = unsafe {
                    let from = panels.as_ptr().add(at);
                    _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(1024).cast());
                    _mm512_loadu_si512(from.cast())
                };
                let w0 = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(w));
                let w1 = _mm512_castsi512_ps(_mm512_and_si512(w, upper));
                for r in 0..M {
                    // SAFETY: `x` has `steps` blocks of `M` rows of 16 pairs.
                    let pair = unsafe { *x.get_unchecked((step * M + r) * 16 + p) };
                    let (x0, x1) = (f32::from_bits(pair << 16), f32::from_bits(pair & 0xFFFF_0000));
                    even[r][half] = _mm512_fmadd_ps(_mm512_set1_ps(x0), w0, even[r][half]);
                    odd[r][half] = _mm512_fmadd_ps(_mm512_set1_ps(x1), w1, odd[r][half]);
                }
            }
        }
        for r in 0..M {
            for half in 0..2 {
                let both = _mm512_add_ps(even[r][half], odd[r][half]);
                sums[r][half] = _mm512_add_ps(sums[r][half], both);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (half, sum) in sums.iter().enumerate() {
            let to = &mut tile[r * BLOCK + half * PANEL..][..PANEL];
            // SAFETY: 16 values.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), *sum) };
        }
    }
}
