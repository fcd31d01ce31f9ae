//! Weights in the order in which kernels read them.
//!
//! f32: `[panels][inputs][16]`. bf16: `[panels][inputs / 2][16][2]`, inputs padded with zeros to a
//! multiple of 32: one line of 64 bytes holds two consecutive inputs of 16 outputs, which is what
//! `vdpbf16ps` and the tile instruction take. A gated layer alternates panels of gate and up.

use half::bf16;

use super::PANEL;
use crate::error::RunError;
use crate::ops::Precision;
use crate::ops::cpu::memory::{Memory, Shared};
use crate::ops::cpu::threads::Threads;
use crate::ops::reference::{check_matrices, join_biases};
use crate::tensor::DType;
use crate::weights::{Format, Matrix, WeightView};

/// A linear layer packed for the CPU's kernels.
#[derive(Debug)]
pub(crate) struct PackedLinear {
    /// Width of the input.
    pub(super) inputs: usize,
    /// Inputs with padding.
    pub(super) depth: usize,
    /// Width of the output; gate and up together.
    pub(super) outputs: usize,
    /// Number of panels.
    pub(super) panels: usize,
    /// Panels alternate between gate and up.
    pub(super) gated: bool,
    /// bf16 weights, else f32.
    pub(super) is_bf16: bool,
    /// In panel order, padded; empty if there is none.
    pub(super) bias: Vec<f32>,
    memory: Memory,
}

impl PackedLinear {
    /// `(inputs, outputs)`; outputs count gate and up.
    pub(in crate::ops::cpu) fn shape(&self) -> (usize, usize) {
        (self.inputs, self.outputs)
    }

    /// 32-bit words of a panel: one f32, or a pair of bf16.
    pub(super) fn panel_words(&self) -> usize {
        PANEL * if self.is_bf16 { self.depth / 2 } else { self.depth }
    }

    /// All panels as words.
    pub(super) fn words(&self) -> &[u32] {
        self.memory.as_slice()
    }
}

/// Packs matrices that share their input; `gated` takes exactly two of the same shape.
///
/// # Errors
/// If shapes disagree.
pub(crate) fn pack(
    precision: Precision,
    threads: &Threads,
    parts: &[Matrix],
    gated: bool,
) -> Result<PackedLinear, RunError> {
    let (inputs, outputs) = check_matrices(parts)?;
    if inputs == 0 || outputs == 0 {
        let shape = format!("`{}` has shape {:?}", parts[0].weight.name(), parts[0].weight.shape());
        return Err(RunError::Shape(format!("{shape}: a linear layer needs inputs and outputs")));
    }
    let sources = sources(parts, gated);
    let mut packed = PackedLinear {
        inputs,
        depth: 0,
        outputs,
        panels: 0,
        gated,
        is_bf16: precision == Precision::Bf16,
        bias: panel_bias(parts, &sources),
        memory: Memory::zeroed(0),
    };
    let is_bf16 = packed.is_bf16;
    packed.fill(threads, &sources, &|rows, panel| {
        for (c, row) in rows.iter().enumerate() {
            let view = &parts[row.matrix].weight;
            if is_bf16 {
                fill_pairs(view, row.index, inputs, &mut panel[c..]);
            } else {
                fill_words(view, row.index, inputs, &mut panel[c..]);
            }
        }
    });
    Ok(packed)
}

/// Biases in panel order, padded; empty if there is none.
pub(super) fn panel_bias(parts: &[Matrix], sources: &[Vec<Source>]) -> Vec<f32> {
    let joined = join_biases(parts);
    if joined.is_empty() {
        return Vec::new();
    }
    let mut bias = vec![0.0; sources.len() * PANEL];
    for (slot, source) in bias.chunks_exact_mut(PANEL).zip(sources) {
        for (b, row) in slot.iter_mut().zip(source) {
            *b = joined[row.joined];
        }
    }
    bias
}

impl PackedLinear {
    /// A layer without panels yet, which [`PackedLinear::fill`] gives it: bf16, no bias.
    #[cfg(feature = "gguf")]
    pub(super) fn empty() -> Self {
        Self {
            inputs: 0,
            depth: 0,
            outputs: 0,
            panels: 0,
            gated: false,
            is_bf16: true,
            bias: Vec::new(),
            memory: Memory::zeroed(0),
        }
    }

    /// Makes these rows the panels, in memory that is kept if it is large enough; `write` puts the
    /// rows of one panel in their places.
    pub(super) fn fill(
        &mut self,
        threads: &Threads,
        sources: &[Vec<Source>],
        write: &(dyn Fn(&[Source], &mut [u32]) + Sync),
    ) {
        let panels = sources.len();
        self.depth = if self.is_bf16 { self.inputs.next_multiple_of(32) } else { self.inputs };
        self.panels = panels;
        let words = self.panel_words();
        if self.memory.as_slice::<u32>().len() < panels * words {
            self.memory = Memory::zeroed(panels * words * 4);
        }
        let target = Shared::new(&mut self.memory.as_mut_slice::<u32>()[..panels * words]);
        threads.each(panels, &|p| {
            #[allow(unsafe_code, reason = "each task fills one panel")]
            // SAFETY: task `p` alone writes panel `p`, and the memory outlives the call.
            let panel = unsafe { target.range(p * words, words) };
            write(&sources[p], panel);
        });
    }
}

/// One output of a layer: which row of which matrix, and its place among the joined rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    pub(super) matrix: usize,
    pub(super) index: usize,
    joined: usize,
}

/// The rows of each panel, in order; the last panel of a part may have fewer than 16.
pub(super) fn sources(parts: &[Matrix], gated: bool) -> Vec<Vec<Source>> {
    let mut all = Vec::new();
    for (matrix, part) in parts.iter().enumerate() {
        for index in 0..part.weight.shape()[0] {
            all.push(Source { matrix, index, joined: all.len() });
        }
    }
    if !gated {
        return all.chunks(PANEL).map(<[Source]>::to_vec).collect();
    }
    let (gate, up) = all.split_at(all.len() / 2);
    let pairs = gate.chunks(PANEL).zip(up.chunks(PANEL));
    pairs.flat_map(|(g, u)| [g.to_vec(), u.to_vec()]).collect()
}

/// Writes row `index` as f32 words, one every 16.
fn fill_words(view: &WeightView, index: usize, inputs: usize, panel: &mut [u32]) {
    let mut row = [0.0; 256];
    for first in (0..inputs).step_by(row.len()) {
        let part = &mut row[..(inputs - first).min(256)];
        view.read_f32(index * inputs + first, part);
        for (word, x) in panel[first * PANEL..].iter_mut().step_by(PANEL).zip(part) {
            *word = x.to_bits();
        }
    }
}

/// Writes row `index` as pairs of bf16, one word every 16.
fn fill_pairs(view: &WeightView, index: usize, inputs: usize, panel: &mut [u32]) {
    if view.format() == Format::Plain(DType::Bf16) && inputs.is_multiple_of(2) {
        let bytes = view.row_bytes(index);
        for (word, pair) in panel.iter_mut().step_by(PANEL).zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*pair);
        }
        return;
    }
    let mut row = [0.0; 256];
    for first in (0..inputs).step_by(row.len()) {
        let part = &mut row[..(inputs - first).min(256)];
        view.read_f32(index * inputs + first, part);
        let words = panel[first / 2 * PANEL..].iter_mut().step_by(PANEL);
        for (word, pair) in words.zip(part.chunks(2)) {
            let bits = |x: &f32| u32::from(bf16::from_f32(*x).to_bits());
            *word = bits(&pair[0]) | pair.get(1).map_or(0, bits) << 16;
        }
    }
}
