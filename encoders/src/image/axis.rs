//! Weights of the resamplers in fixed point, as torchvision and Pillow round them.
//!
//! Invariants
//! - Weights are computed in f64 over the support `filter * max(in / out, 1)`, divided by their
//!   sum and rounded half away from zero.
//! - torchvision: the precision is the largest `p <= 22` for which the axis' largest weight stays
//!   below 2^15; Pillow: 22 bits.
//! - Sums fit i32: a kernel's positive part is below 1.4, so 255 * 1.4 * 2^22 < 2^31.
//!
//! Method: `UpSampleKernel.cpp` of ATen, `Resample.c` of Pillow.

use secateur_core::model::ImageBackend;

/// A resampling kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Triangle, support 1.
    Bilinear,
    /// Cubic with a = -1/2, support 2.
    Bicubic,
    /// Lanczos with three lobes.
    Lanczos,
}

impl Filter {
    /// From Pillow's number (`resample` in a preprocessor's file): 1, 2 or 3.
    pub fn from_pillow(number: u64) -> Option<Self> {
        match number {
            1 => Some(Filter::Lanczos),
            2 => Some(Filter::Bilinear),
            3 => Some(Filter::Bicubic),
            _ => None,
        }
    }

    fn support(self) -> f64 {
        match self {
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    fn value(self, t: f64) -> f64 {
        let x = t.abs();
        match self {
            Filter::Bilinear => (1.0 - x).max(0.0),
            Filter::Bicubic => {
                const A: f64 = -0.5;
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
            Filter::Lanczos => {
                if x < 3.0 {
                    sinc(t) * sinc(t / 3.0)
                } else {
                    0.0
                }
            }
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// The normalised weights of output `i`, and the first input they stand for.
fn weights(input: usize, output: usize, filter: Filter, i: usize, out: &mut Vec<f64>) -> usize {
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let (support, inverse) = (filter.support() * stretch, 1.0 / stretch);
    let centre = (i as f64 + 0.5) * scale;
    // `as` truncates towards zero and saturates, as the references' casts do after their clamps.
    let lo = (centre - support + 0.5).max(0.0) as usize;
    let hi = ((centre + support + 0.5).max(0.0) as usize).min(input);
    out.clear();
    out.extend((lo..hi).map(|j| filter.value((j as f64 - centre + 0.5) * inverse)));
    let sum: f64 = out.iter().sum();
    if sum != 0.0 {
        out.iter_mut().for_each(|w| *w /= sum);
    }
    lo
}

/// Fixed-point weights of one axis for a range of outputs.
pub(super) struct Axis {
    /// Of each output: first input, first weight.
    taps: Vec<(usize, usize)>,
    weights: Vec<i32>,
    bits: u32,
    /// Inputs that any output reads.
    pub(super) inputs: std::ops::Range<usize>,
}

impl Axis {
    pub(super) fn new(
        (input, output): (usize, usize),
        range: std::ops::Range<usize>,
        filter: Filter,
        backend: ImageBackend,
    ) -> Self {
        let mut row = Vec::new();
        let bits = match backend {
            ImageBackend::Pillow => 22,
            ImageBackend::Torchvision => {
                let fits =
                    |max: f64, p: u32| (0.5 + max * f64::from(1u32 << p)) < f64::from(1u32 << 15);
                let mut largest = 0.0f64;
                for i in 0..output {
                    weights(input, output, filter, i, &mut row);
                    largest = row.iter().copied().fold(largest, f64::max);
                    // 14 bits hold weights up to 2, which no kernel reaches: nothing can change.
                    if !fits(largest, 15) {
                        break;
                    }
                }
                (1..=22).take_while(|&p| fits(largest, p)).last().unwrap_or(0)
            }
        };
        let one = f64::from(1u32 << bits);
        let mut axis = Self { taps: Vec::new(), weights: Vec::new(), bits, inputs: input..0 };
        for i in range {
            let first = weights(input, output, filter, i, &mut row);
            axis.taps.push((first, axis.weights.len()));
            axis.inputs.start = axis.inputs.start.min(first);
            axis.inputs.end = axis.inputs.end.max(first + row.len());
            axis.weights.extend(row.iter().map(|w| {
                let half = if *w < 0.0 { -0.5 } else { 0.5 };
                (w * one + half) as i32
            }));
        }
        axis
    }

    pub(super) fn len(&self) -> usize {
        self.taps.len()
    }

    /// First input and weights of output `i`.
    pub(super) fn of(&self, i: usize) -> (usize, &[i32]) {
        let (first, start) = self.taps[i];
        let end = self.taps.get(i + 1).map_or(self.weights.len(), |t| t.1);
        (first, &self.weights[start..end])
    }

    pub(super) fn round(&self, sum: i32) -> u8 {
        (sum >> self.bits).clamp(0, 255) as u8
    }

    pub(super) fn half(&self) -> i32 {
        // One bit less than a unit; with no bits there is nothing to round.
        (1i32 << self.bits) >> 1
    }
}
