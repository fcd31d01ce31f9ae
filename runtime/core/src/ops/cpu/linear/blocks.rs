//! Layers whose weights stay in the quantised blocks of their file.
//!
//! A few rows (decoding) are multiplied block by block, straight from the mapped file, by candle's
//! kernels, which round the inputs to 8 bits as llama.cpp does: as many bytes are read as the file
//! has. Many rows (prefill) are worth decoding the blocks: a group of panels at a time, into bf16,
//! and on as any other layer.
//!
//! Invariants
//! - No copy of the weights is held but one group of panels, the same for all layers.
//! - The two ways differ by the rounding of inputs (8 bits a block against bf16): the results of a
//!   row differ within that with the number of rows beside it. With `f32` arithmetic blocks are
//!   decoded when a model is opened, and rows do not depend on their neighbours.
#![allow(unsafe_code, reason = "blocks of outputs are written from several threads")]

use std::sync::{Mutex, PoisonError};

use super::PANEL;
use super::finish::{BLOCK, Finish};
use super::pack::{PackedLinear, Source, panel_bias, sources};
use crate::error::RunError;
use crate::ops::Activation;
use crate::ops::cpu::blocks::{RoundedRows, round_rows};
use crate::ops::cpu::detect::Isa;
use crate::ops::cpu::memory::{ScratchPool, Shared};
use crate::ops::cpu::simd::{self, Job, Simd};
use crate::ops::cpu::threads::Threads;
use crate::ops::reference::check_matrices;
use crate::weights::{BlockFormat, Format, Matrix, WeightView};

/// Rows from which decoding the weights pays (see `benches`).
const MANY: usize = 24;
/// Inputs decoded at a time: whole blocks of every format.
const CHUNK: usize = 256;
/// Bytes of a group of decoded panels.
const GROUP: usize = 8 << 20;

/// A linear layer in blocks.
#[derive(Debug)]
pub(crate) struct BlockLinear {
    inputs: usize,
    outputs: usize,
    gated: bool,
    weights: Vec<(WeightView, BlockFormat)>,
    /// The rows of each panel.
    panels: Vec<Vec<Source>>,
    bias: Vec<f32>,
}

/// A group of decoded panels, whose memory all layers of an operation set use in turn.
#[derive(Debug)]
pub(in crate::ops::cpu) struct Group(Mutex<PackedLinear>);

impl Default for Group {
    fn default() -> Self {
        Self(Mutex::new(PackedLinear::empty()))
    }
}

impl BlockLinear {
    /// A layer of matrices that share their input, if all of them are in blocks.
    ///
    /// # Errors
    /// If shapes disagree.
    pub(crate) fn new(parts: &[Matrix], gated: bool) -> Result<Option<Self>, RunError> {
        let (inputs, outputs) = check_matrices(parts)?;
        let in_blocks = |m: &Matrix| match m.weight.format() {
            Format::Blocks(format) => Some((m.weight.clone(), format)),
            Format::Plain(_) => None,
        };
        let Some(blocks) = parts.iter().map(in_blocks).collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let panels = sources(parts, gated);
        Ok(Some(Self {
            inputs,
            outputs,
            gated,
            bias: panel_bias(parts, &panels),
            weights: blocks,
            panels,
        }))
    }

    /// `(inputs, outputs)`; outputs count gate and up.
    pub(in crate::ops::cpu) fn shape(&self) -> (usize, usize) {
        (self.inputs, self.outputs)
    }

    /// Runs the layer, as [`super::run`] does.
    ///
    /// # Panics
    /// If a slice has another size.
    pub(in crate::ops::cpu) fn run(
        &self,
        threads: &Threads,
        isa: Isa,
        (scratch, group): (&ScratchPool, &Group),
        x: &[f32],
        act: Activation,
        out: &mut [f32],
    ) {
        let rows = x.len() / self.inputs.max(1);
        let width = if self.gated { self.outputs / 2 } else { self.outputs };
        assert_eq!(x.len(), rows * self.inputs, "linear: whole rows of the input");
        assert_eq!(out.len(), rows * width, "linear: size of the output");
        if out.is_empty() {
            return;
        }
        let (gated, out) = (self.gated, Shared::new(out));
        let finish = Finish { act, bias: &self.bias, gated, first_panel: 0, width, rows, out };
        if rows < MANY {
            self.few(threads, isa, scratch, x, &finish);
        } else {
            self.many(threads, isa, (scratch, group), x, finish);
        }
    }

    fn few(
        &self,
        threads: &Threads,
        isa: Isa,
        scratch: &ScratchPool,
        x: &[f32],
        finish: &Finish<'_>,
    ) {
        let mut rounded: Vec<(BlockFormat, RoundedRows)> = Vec::new();
        for (_, format) in &self.weights {
            if rounded.iter().all(|(other, _)| other != format) {
                rounded.push((*format, round_rows(*format, x, self.inputs)));
            }
        }
        let inputs_of: Vec<&RoundedRows> = self
            .weights
            .iter()
            .filter_map(|(_, f)| rounded.iter().find(|(g, _)| f == g).map(|(_, rows)| rows))
            .collect();
        threads.ranges(self.panels.len().div_ceil(2), 1, &|begin, len| {
            scratch.with(|[local, _]| {
                let tile = local.take::<f32>(finish.rows * BLOCK);
                for pair in begin..begin + len {
                    tile.fill(0.0);
                    let both = self.panels.iter().skip(2 * pair).take(2).enumerate();
                    for (half, panel) in both {
                        for (column, source) in panel.iter().enumerate() {
                            let row = self.weights[source.matrix].0.row_bytes(source.index);
                            let x = inputs_of[source.matrix];
                            let sums = &mut tile[half * PANEL + column..];
                            x.dot(row, sums.iter_mut().step_by(BLOCK));
                        }
                    }
                    simd::run(isa, Store { finish, tile, panel: 2 * pair });
                }
            });
        });
    }

    fn many(
        &self,
        threads: &Threads,
        isa: Isa,
        (scratch, group): (&ScratchPool, &Group),
        x: &[f32],
        finish: Finish<'_>,
    ) {
        // The panels are written anew for every group: a panic leaves nothing that is read later.
        let mut group = group.0.lock().unwrap_or_else(PoisonError::into_inner);
        (group.inputs, group.outputs, group.gated) = (self.inputs, self.outputs, self.gated);
        let panel = PANEL * 2 * self.inputs.max(1);
        let size = (GROUP / panel).next_multiple_of(2).max(2);
        for (i, sources) in self.panels.chunks(size).enumerate() {
            group.fill(threads, sources, &|rows, panel| {
                scratch.with(|[local, _]| {
                    let chunk = local.take::<f32>(PANEL * CHUNK * 2);
                    self.decode_panel(isa, rows, chunk, panel);
                });
            });
            let finish = Finish { first_panel: i * size, ..finish };
            super::panels(threads, isa, scratch, &group, x, &finish);
        }
    }
}

impl BlockLinear {
    /// Writes rows as a panel of bf16 pairs, [`CHUNK`] inputs of all rows at a time, so that what
    /// is decoded is still in L1 when its places are filled.
    fn decode_panel(&self, isa: Isa, rows: &[Source], scratch: &mut [f32], panel: &mut [u32]) {
        let (decoded, pairs) = scratch.split_at_mut(PANEL * CHUNK);
        let pairs: &mut [u32] = bytemuck::cast_slice_mut(pairs);
        for first in (0..self.inputs).step_by(CHUNK) {
            let count = CHUNK.min(self.inputs - first);
            for (row, out) in rows.iter().zip(decoded.chunks_exact_mut(CHUNK)) {
                let (view, format) = &self.weights[row.matrix];
                let (values, bytes) = (format.values(), format.bytes());
                let blocks = first / values * bytes..(first + count) / values * bytes;
                format.decode(&view.row_bytes(row.index)[blocks], &mut out[..count]);
            }
            simd::run(isa, Round { x: decoded, out: pairs });
            let lines = panel[first / 2 * PANEL..].chunks_exact_mut(PANEL).take(count / 2);
            for (at, line) in lines.enumerate() {
                for (word, row) in line.iter_mut().zip(pairs.chunks_exact(CHUNK / 2)) {
                    *word = row[at];
                }
            }
        }
    }
}

/// Rounds to bf16; a word holds two of them.
struct Round<'a> {
    x: &'a [f32],
    out: &'a mut [u32],
}

impl Job for Round<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert!(self.out.len() * 2 >= self.x.len(), "room for all");
        let out = self.out.as_mut_ptr().cast::<u16>();
        for (i, x) in self.x.chunks_exact(S::LANES).enumerate() {
            // SAFETY: `x` has `LANES` values, and the output room for as many halves of words as
            // there are values.
            unsafe { s.store_bf16(out.add(i * S::LANES), s.load(x.as_ptr())) };
        }
    }
}

/// Ends a pair of panels.
struct Store<'a> {
    finish: &'a Finish<'a>,
    /// `[rows, BLOCK]`
    tile: &'a [f32],
    panel: usize,
}

impl Job for Store<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: each pair of panels is stored by one task, while the caller holds the output.
        unsafe { self.finish.store(s, self.tile, 0, self.finish.rows, self.panel) };
    }
}
