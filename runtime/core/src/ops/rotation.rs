//! Rotary positions: frequencies of a model, and the rotation of some rows that a set makes of them.
//!
//! Invariants
//! - A row's rotation depends on its own position alone, so that rows that are kept keep the bits of
//!   theirs: [`super::Ops::rotation_rows`] gathers instead of computing anew.
//! - 1-D, 2-D and M-RoPE are one operation: each pair of a head reads one axis of the position.

use crate::cache::Position;

/// Frequencies of one kind of layer: pair `i` of a head turns by `position[axis[i]] * inverse[i]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frequencies {
    inverse: Vec<f32>,
    axis: Vec<usize>,
}

impl Frequencies {
    /// Radians a position and axis (0 to 2), one pair of a head each.
    ///
    /// # Panics
    /// If an axis does not exist.
    pub fn new(pairs: impl IntoIterator<Item = (f32, usize)>) -> Self {
        let (inverse, axis): (Vec<f32>, Vec<usize>) = pairs.into_iter().unzip();
        assert!(axis.iter().all(|a| *a < 3), "a position has three axes");
        Self { inverse, axis }
    }

    /// `(radians a position, axis)` of each pair.
    pub fn pairs(&self) -> impl Iterator<Item = (f32, usize)> + '_ {
        self.inverse.iter().copied().zip(self.axis.iter().copied())
    }

    /// `head_dim / 2`
    pub fn half(&self) -> usize {
        self.inverse.len()
    }
}

/// cos and sin of the angles of some rows, made by an operation set.
#[derive(Clone, Debug, Default)]
pub struct Rotation {
    /// `[rows, half]`
    pub(crate) cos: Vec<f32>,
    /// `[rows, half]`
    pub(crate) sin: Vec<f32>,
    /// `head_dim / 2`
    pub(crate) half: usize,
}

impl Rotation {
    /// Computed on the host, one row a position.
    pub(crate) fn on_host(frequencies: &Frequencies, positions: &[Position]) -> Self {
        let half = frequencies.half();
        let mut rotation = Self {
            cos: Vec::with_capacity(positions.len() * half),
            sin: Vec::with_capacity(positions.len() * half),
            half,
        };
        for position in positions {
            for (inverse, axis) in frequencies.pairs() {
                let (sin, cos) = (position[axis] as f32 * inverse).sin_cos();
                rotation.cos.push(cos);
                rotation.sin.push(sin);
            }
        }
        rotation
    }

    /// Rows `index`, in that order.
    pub(crate) fn gathered(&self, index: &[u32]) -> Self {
        let take = |values: &[f32]| -> Vec<f32> {
            let rows = index.iter().map(|&r| &values[r as usize * self.half..][..self.half]);
            rows.flatten().copied().collect()
        };
        Self { cos: take(&self.cos), sin: take(&self.sin), half: self.half }
    }
}
