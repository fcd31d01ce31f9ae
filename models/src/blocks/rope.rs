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

use secateur_core::ops::Frequencies;

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

impl Rope {
    /// The frequencies of heads of `head_dim`.
    pub(crate) fn frequencies(&self, head_dim: usize) -> Frequencies {
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
        Frequencies::new(inverse.zip(axis))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_of_the_published_sections() {
        let rope = |axes| Rope { theta: 1e6, scaling: RopeScaling::Default, axes };
        let axes =
            |axes| -> Vec<usize> { rope(axes).frequencies(128).pairs().map(|p| p.1).collect() };
        let chunked = axes(RopeAxes::Chunked([16, 24, 24]));
        assert_eq!((chunked[15], chunked[16], chunked[39], chunked[40]), (0, 1, 1, 2));
        let woven = axes(RopeAxes::Interleaved([24, 20, 20]));
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
        let inverse =
            |rope: Rope| -> Vec<f32> { rope.frequencies(128).pairs().map(|p| p.0).collect() };
        let (a, b) = (inverse(plain), inverse(llama3));
        assert_eq!(a[0], b[0]);
        assert_eq!(a[63] / 8.0, b[63]);
    }
}
