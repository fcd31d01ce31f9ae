//! What happens to a block of sums before it is stored: bias, activation, gate.
#![allow(unsafe_code, reason = "blocks of rows are written from several threads")]

use super::PANEL;
use crate::ops::Activation;
use crate::ops::cpu::elementwise::activate;
use crate::ops::cpu::memory::Shared;
use crate::ops::cpu::simd::Simd;

/// Columns of a block: two panels.
pub(super) const BLOCK: usize = 2 * PANEL;

/// The end of one product.
#[derive(Clone, Copy)]
pub(super) struct Finish<'a> {
    /// Applied to the output, or to the gate.
    pub(super) act: Activation,
    /// In panel order, padded to whole panels; empty if there is none.
    pub(super) bias: &'a [f32],
    /// Panels alternate between gate and up.
    pub(super) gated: bool,
    /// Panels of the layer in front of those that the kernel counts from 0; even.
    pub(super) first_panel: usize,
    /// Columns of the output.
    pub(super) width: usize,
    /// Rows of the output.
    pub(super) rows: usize,
    /// `[rows, width]`
    pub(super) out: Shared<f32>,
}

impl Finish<'_> {
    /// Stores rows `first ..` of the kernel's panels `panel` and, if it exists, `panel + 1`.
    ///
    /// `tile: [count, BLOCK]` holds the sums.
    ///
    /// # Safety
    /// No other thread stores these elements, and the output still lives.
    #[inline(always)]
    pub(super) unsafe fn store<S: Simd>(
        &self,
        s: S,
        tile: &[f32],
        first: usize,
        count: usize,
        panel: usize,
    ) {
        assert!(first + count <= self.rows && tile.len() >= count * BLOCK, "rows of the block");
        let panel = self.first_panel + panel;
        if self.gated {
            let column = panel / 2 * PANEL;
            let valid = PANEL.min(self.width - column);
            for r in 0..count {
                let sums = &tile[r * BLOCK..][..BLOCK];
                // SAFETY: the caller's duty.
                let out = unsafe { self.out.range((first + r) * self.width + column, valid) };
                self.pair(s, sums, panel, out);
            }
            return;
        }
        for half in 0..2 {
            let column = (panel + half) * PANEL;
            if column >= self.width {
                break;
            }
            let valid = PANEL.min(self.width - column);
            for r in 0..count {
                let sums = &tile[r * BLOCK + half * PANEL..][..PANEL];
                // SAFETY: the caller's duty.
                let out = unsafe { self.out.range((first + r) * self.width + column, valid) };
                self.single(s, sums, panel + half, out);
            }
        }
    }

    /// Sums of one panel, from the bias on.
    #[inline(always)]
    fn with_bias<S: Simd>(&self, s: S, sums: &[f32], panel: usize, lane: usize) -> S::F {
        let sums = &sums[lane..lane + S::LANES];
        // SAFETY: the slice has `LANES` values.
        let x = unsafe { s.load(sums.as_ptr()) };
        if self.bias.is_empty() {
            return x;
        }
        let bias = &self.bias[panel * PANEL + lane..][..S::LANES];
        // SAFETY: the slice has `LANES` values.
        s.add(x, unsafe { s.load(bias.as_ptr()) })
    }

    #[inline(always)]
    fn single<S: Simd>(&self, s: S, sums: &[f32], panel: usize, out: &mut [f32]) {
        for lane in (0..PANEL).step_by(S::LANES) {
            let y = activate(s, self.act, self.with_bias(s, sums, panel, lane));
            put(s, y, lane, out);
        }
    }

    #[inline(always)]
    fn pair<S: Simd>(&self, s: S, sums: &[f32], panel: usize, out: &mut [f32]) {
        for lane in (0..PANEL).step_by(S::LANES) {
            let gate = activate(s, self.act, self.with_bias(s, sums, panel, lane));
            let up = self.with_bias(s, &sums[PANEL..], panel + 1, lane);
            put(s, s.mul(gate, up), lane, out);
        }
    }
}

/// Stores lanes `lane ..` of a panel's row as far as the output reaches.
#[inline(always)]
fn put<S: Simd>(s: S, y: S::F, lane: usize, out: &mut [f32]) {
    if let Some(whole) = out.get_mut(lane..lane + S::LANES) {
        // SAFETY: the slice has `LANES` values.
        unsafe { s.store(whole.as_mut_ptr(), y) };
    } else if lane < out.len() {
        let mut all = [0.0; PANEL];
        // SAFETY: `LANES` divides `PANEL`.
        unsafe { s.store(all.as_mut_ptr(), y) };
        let rest = &mut out[lane..];
        rest.copy_from_slice(&all[..rest.len()]);
    }
}
