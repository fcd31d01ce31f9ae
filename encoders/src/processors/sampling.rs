//! Which frames of a video each reference processor takes.
//!
//! Invariants
//! - Indices are 0-based in presentation order, below `total`, and never fall.
//! - f64 and truncation or rounding half to even exactly where the reference has them
//!   (models-b 10.1; `golden` indices).
//!
//! Not here: decoding. A caller that has frames already gives them as they are.

/// A policy of the references.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    /// Qwen2-VL and Qwen2.5-VL: an even number of frames at about `fps` (4 to 768).
    QwenTwo {
        /// Frames a second wanted.
        fps: f64,
    },
    /// Qwen2-VL and Qwen2.5-VL with a number of frames instead.
    QwenTwoFrames {
        /// Frames wanted; rounded to an even number.
        frames: usize,
    },
    /// Qwen3-VL: 2 frames a second, first and last frame included (4 to 768).
    QwenThree {
        /// Frames a second wanted.
        fps: f64,
    },
    /// SmolVLM: one frame a second, at most `max_frames`; long clips lose a second at both ends.
    SmolVlm {
        /// Frames a second wanted.
        fps: f64,
        /// Most frames.
        max_frames: usize,
    },
    /// `fps` frames a second, at most `max_frames`: the reference's default elsewhere.
    Rate {
        /// Frames a second wanted.
        fps: f64,
        /// Most frames.
        max_frames: usize,
    },
    /// `frames` frames spread evenly.
    Uniform {
        /// Frames wanted.
        frames: usize,
    },
}

impl Policy {
    /// The same rule at another rate; rules of a number of frames stay as they are.
    #[must_use]
    pub fn at(self, fps: f64) -> Self {
        match self {
            Policy::QwenTwo { .. } => Policy::QwenTwo { fps },
            Policy::QwenThree { .. } => Policy::QwenThree { fps },
            Policy::SmolVlm { max_frames, .. } => Policy::SmolVlm { fps, max_frames },
            Policy::Rate { max_frames, .. } => Policy::Rate { fps, max_frames },
            Policy::QwenTwoFrames { .. } | Policy::Uniform { .. } => self,
        }
    }
}

/// `count` numbers from `start` to `end`, both included; one number is `start`.
fn linspace(start: f64, end: f64, count: usize) -> impl Iterator<Item = f64> {
    let step = if count > 1 { (end - start) / (count - 1) as f64 } else { 0.0 };
    (0..count).map(move |i| {
        // The last is exact, as numpy's.
        if count > 1 && i == count - 1 { end } else { i as f64 * step + start }
    })
}

fn spread(total: usize, count: usize) -> Vec<usize> {
    (0..count).map(|i| (i as f64 * (total as f64 / count as f64)) as usize).collect()
}

/// Indices of the frames to take from a video of `total` frames at `source_fps`.
///
/// Empty if `total` is 0 or a rate is not a positive number.
pub fn indices(policy: Policy, total: usize, source_fps: f64) -> Vec<usize> {
    if total == 0 || !(source_fps.is_finite() && source_fps > 0.0) {
        return Vec::new();
    }
    let seconds = total as f64 / source_fps;
    match policy {
        Policy::QwenTwo { fps } if fps > 0.0 => {
            let most = (total.min(768) / 2 * 2) as f64;
            let wanted = (total as f64 / source_fps * fps).max(4.0).min(most).min(total as f64);
            spread(total, ((wanted / 2.0).floor() as usize * 2).max(1))
        }
        Policy::QwenTwoFrames { frames } => {
            let even = (frames as f64 / 2.0).round_ties_even() as usize * 2;
            spread(total, even.min(total / 2 * 2).max(1))
        }
        Policy::QwenThree { fps } if fps > 0.0 => {
            let wanted = ((total as f64 / source_fps * fps) as usize).clamp(4, 768).min(total);
            linspace(0.0, (total - 1) as f64, wanted)
                .map(|x| x.round_ties_even() as usize)
                .collect()
        }
        Policy::SmolVlm { fps, max_frames } if fps > 0.0 && max_frames > 0 => {
            let count = ((fps * seconds).round_ties_even() as usize).min(max_frames).max(1);
            let last = total - 1;
            let (mut start, mut end) = (0, last);
            if seconds - 2.0 > max_frames as f64 * fps {
                start = source_fps as usize;
                end = ((total as f64 - source_fps) as usize).min(last);
            }
            if start >= end {
                (start, end) = (0, last);
            }
            let mut taken: Vec<usize> =
                linspace(start as f64, end as f64, count).map(|x| x as usize).collect();
            taken.dedup();
            taken
        }
        Policy::Rate { fps, max_frames } if fps > 0.0 => {
            let count = ((seconds * fps) as usize).clamp(1, max_frames.max(1)).min(total);
            (0..count).map(|i| i * total / count).collect()
        }
        Policy::Uniform { frames } => spread(total, frames.min(total)),
        _ => Vec::new(),
    }
}
