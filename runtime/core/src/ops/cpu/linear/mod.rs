//! Matrix products with packed weights: `out = act(x Wᵀ + b)` and its gated form.
//!
//! Invariants
//! - Weights are packed once, in panels of [`PANEL`] outputs (`pack`), and stream through every
//!   kernel in that order.
//! - One output element is summed over `k` in one order, whatever the number of rows, the row
//!   block it falls in and the thread that computes it: a batch equals its members bit for bit.
//!   In f32 and on CPUs without tiles this is one chain over `k`. With tiles it is the tile
//!   instruction's order (32 inputs at a time, even and odd ones apart), which the kernel for a few
//!   rows repeats in FMAs; only subnormal numbers, which tiles read as zero, can tell them apart.
//! - Outputs past `outputs` in the last panel are computed from zero weights and never stored.
//!
//! Figures (two Sapphire Rapids class cores, 2048 x 5632, against torch in the same minute): see
//! `benches`.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(feature = "gguf")]
mod blocks;
#[cfg(target_arch = "x86_64")]
mod dot;
mod finish;
mod pack;
mod vector;

#[cfg(feature = "gguf")]
pub(crate) use blocks::BlockLinear;
#[cfg(feature = "gguf")]
pub(super) use blocks::Group;
pub(crate) use pack::PackedLinear;
pub(super) use pack::pack;

use super::detect::Isa;
use super::memory::{ScratchPool, Shared};
use super::threads::Threads;
use crate::ops::Activation;
use finish::Finish;

/// Outputs of a panel: one 64-byte line holds one input (f32) or two (bf16) of each.
const PANEL: usize = 16;

/// Runs a layer: `x: [rows, inputs]`, `out: [rows, outputs]` (half of that if it is gated).
///
/// # Panics
/// If a slice does not have that size.
pub(super) fn run(
    threads: &Threads,
    isa: Isa,
    scratch: &ScratchPool,
    w: &PackedLinear,
    x: &[f32],
    act: Activation,
    out: &mut [f32],
) {
    let rows = x.len().checked_div(w.inputs).unwrap_or(0);
    let width = if w.gated { w.outputs / 2 } else { w.outputs };
    assert_eq!(x.len(), rows * w.inputs, "linear: whole rows of the input");
    assert_eq!(out.len(), rows * width, "linear: size of the output");
    if out.is_empty() {
        return;
    }
    let (gated, out) = (w.gated, Shared::new(out));
    let finish = Finish { act, bias: &w.bias, gated, first_panel: 0, width, rows, out };
    panels(threads, isa, scratch, w, x, &finish);
}

/// All panels of a layer, or of a part of one.
fn panels(
    threads: &Threads,
    isa: Isa,
    scratch: &ScratchPool,
    w: &PackedLinear,
    x: &[f32],
    finish: &Finish<'_>,
) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Amx if w.is_bf16 => amx::run(threads, isa, scratch, w, x, finish),
        _ => vector::run(threads, isa, scratch, w, x, finish),
    }
}
