//! Rotary position tables: one axis, or three (M-RoPE).
//!
//! Invariants
//! - Angles, cosines and sines are f32, as in the reference; inverse frequencies are rounded
//!   where the reference rounds them (exponent, power and reciprocal are f32 each).
//! - A one-axis model reads the first axis of a position.
//!
//! Method: "RoFormer" (2021); `linear` divides frequencies by a factor; `llama3` as transformers
//! computes it (wavelength tests are strict). M-RoPE: each frequency belongs to one axis, in
//! chunks (Qwen2-VL, Qwen2.5-VL) or interleaved (Qwen3-VL).

use secateur_core::cache::Position;
use secateur_core::ops::RopeTable;

/// How frequencies are stretched for longer contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// They are not.
    Default,
    /// All are divided by a factor.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Long wavelengths are divided, short ones kept, those between blended.
    Llama3 {
        /// The divisor.
        factor: f32,
        /// Wavelengths longer than `original / low` are divided.
        low: f32,
        /// Wavelengths shorter than `original / high` are kept.
        high: f32,
        /// Context that the model was first made for.
        original: f32,
    },
}

/// Which axis of a position each frequency reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeAxes {
    /// The first.
    One,
    /// Frequencies in three runs of these lengths: time, height, width.
    Chunked([usize; 3]),
    /// Frequency `i` reads height if `i % 3 == 1`, width if `i % 3 == 2`, each below three times
    /// its length, else time.
    Interleaved([usize; 3]),
}

/// Rotary positions of a decoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// Stretching.
    pub scaling: RopeScaling,
    /// Axes.
    pub axes: RopeAxes,
}

/// Frequencies ready for use.
#[derive(Clone, Debug)]
pub(crate) struct RopeFrequencies {
    inverse: Vec<f32>,
    axis: Vec<usize>,
}

impl Rope {
    /// The frequencies of heads of `head_dim`.
    pub(crate) fn frequencies(&self, head_dim: usize) -> RopeFrequencies {
        let half = head_dim / 2;
        let inverse = (0..half).map(|i| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            // A correctly rounded f32 power: through f64.
            let power = f64::from(self.theta).powf(f64::from(exponent)) as f32;
            self.scaled(1.0 / power)
        });
        let axis = (0..half).map(|i| match self.axes {
            RopeAxes::One => 0,
            RopeAxes::Chunked([t, h, _]) => usize::from(i >= t) + usize::from(i >= t + h),
            RopeAxes::Interleaved(sections) => {
                let axis = i % 3;
                if i < 3 * sections[axis] { axis } else { 0 }
            }
        });
        RopeFrequencies { inverse: inverse.collect(), axis: axis.collect() }
    }

    fn scaled(&self, inverse: f32) -> f32 {
        match self.scaling {
            RopeScaling::Default => inverse,
            RopeScaling::Linear { factor } => inverse / factor,
            RopeScaling::Llama3 { factor, low, high, original } => {
                let wavelength = 2.0 * std::f32::consts::PI / inverse;
                if wavelength > original / low {
                    return inverse / factor;
                }
                if wavelength < original / high {
                    return inverse;
                }
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 - smooth) * inverse / factor + smooth * inverse
            }
        }
    }
}

impl RopeFrequencies {
    /// The table of `positions`, one row each.
    pub(crate) fn table(&self, positions: &[Position]) -> RopeTable {
        let half = self.inverse.len();
        let mut table = RopeTable {
            cos: Vec::with_capacity(positions.len() * half),
            sin: Vec::with_capacity(positions.len() * half),
            half,
        };
        for position in positions {
            for (inverse, &axis) in self.inverse.iter().zip(&self.axis) {
                let (sin, cos) = (position[axis] as f32 * inverse).sin_cos();
                table.cos.push(cos);
                table.sin.push(sin);
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_of_the_published_sections() {
        let rope = |axes| Rope { theta: 1e6, scaling: RopeScaling::Default, axes };
        let chunked = rope(RopeAxes::Chunked([16, 24, 24])).frequencies(128).axis;
        assert_eq!((chunked[15], chunked[16], chunked[39], chunked[40]), (0, 1, 1, 2));
        let woven = rope(RopeAxes::Interleaved([24, 20, 20])).frequencies(128).axis;
        assert_eq!(&woven[..6], &[0, 1, 2, 0, 1, 2]);
        assert_eq!(&woven[57..], &[0, 1, 2, 0, 0, 0, 0]);
    }

    #[test]
    fn llama3_keeps_short_wavelengths_and_divides_long_ones() {
        let plain = Rope { theta: 5e5, scaling: RopeScaling::Default, axes: RopeAxes::One };
        let llama3 = Rope {
            scaling: RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 },
            ..plain
        };
        let (a, b) = (plain.frequencies(128).inverse, llama3.frequencies(128).inverse);
        assert_eq!(a[0], b[0]);
        assert_eq!(a[63] / 8.0, b[63]);
    }
}
