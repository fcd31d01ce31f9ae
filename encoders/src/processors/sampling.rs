//! Which frames of a video each reference processor takes.
//!
//! Invariants
//! - Indices are 0-based in presentation order, below `total`, and never fall.
//! - f64, f32, truncation and rounding half to even exactly where the reference has them
//!   (models-b 10.1; `golden` indices).
//! - What a model folder says (`do_sample_frames`, `fps`, `num_frames`, `min_frames`,
//!   `max_frames`, `temporal_patch_size`, `initial_shift`, `video_sampling`) decides before the
//!   defaults of the class; `do_sample_frames: false` means every frame.
//!
//! Method: `sample_frames` of the video processors of transformers 5.24. Deviations
//! - `rate`: where a folder does not say whether frames are sampled, two a second are taken (as the
//!   models' own examples do), where the class would take every frame;
//! - `frames-win`: `num_frames` and `fps` together are the number, where some classes refuse;
//! - `no-more`: more frames than there are is all of them, where the classes refuse.
//!
//! Not here: decoding. A caller that has frames already gives them as they are.

use secateur_core::error::ConfigError;
use secateur_core::files::Fields;

/// Fewest and most frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Fewest, where the video has them.
    pub min: usize,
    /// Most.
    pub max: usize,
}

impl Default for Bounds {
    /// 4 to 768: the Qwen-VL families.
    fn default() -> Self {
        Self { min: 4, max: 768 }
    }
}

/// A policy of the references.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    /// Qwen2-VL and Qwen2.5-VL: whole groups of frames at about `fps`.
    QwenTwo {
        /// Frames a second wanted.
        fps: f64,
        /// Fewest and most frames.
        bounds: Bounds,
        /// Frames that become one: the number of frames is a multiple of it.
        group: usize,
    },
    /// Qwen2-VL and Qwen2.5-VL with a number of frames instead.
    QwenTwoFrames {
        /// Frames wanted; rounded to whole groups.
        frames: usize,
        /// As in [`Policy::QwenTwo`].
        group: usize,
    },
    /// Qwen3-VL: `fps` frames a second, first and last frame included.
    QwenThree {
        /// Frames a second wanted.
        fps: f64,
        /// Fewest and most frames.
        bounds: Bounds,
    },
    /// Qwen3-VL with a number of frames instead.
    QwenThreeFrames {
        /// Frames wanted.
        frames: usize,
    },
    /// SmolVLM: `fps` frames a second, at most `max_frames`; long clips lose a second at both ends.
    SmolVlm {
        /// Frames a second wanted.
        fps: f64,
        /// Most frames.
        max_frames: usize,
    },
    /// InternVL: one frame of each of equal parts.
    Parts {
        /// Number of parts, or parts a second.
        parts: Parts,
        /// Where the first frame lies; not given: in the middle of its part.
        shift: Option<f64>,
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

/// How many parts a video is cut into.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Parts {
    /// That many.
    Number(usize),
    /// That many a second.
    Rate(f64),
}

/// The sampling function of a family's video processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// `Qwen2VLVideoProcessor`.
    QwenTwo,
    /// `Qwen3VLVideoProcessor`.
    QwenThree,
    /// `SmolVLMVideoProcessor`.
    SmolVlm,
    /// `InternVLVideoProcessor`.
    InternVl,
    /// `BaseVideoProcessor`.
    Base,
}

/// What a model folder says of the frames of a video.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    rule: Rule,
    /// `do_sample_frames`, where it stands.
    samples: Option<bool>,
    fps: Option<f64>,
    frames: Option<usize>,
    bounds: Bounds,
    group: usize,
    shift: Option<f64>,
}

/// What is taken where a caller wishes nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wanted {
    /// Frames by a rule.
    By(Policy),
    /// Every frame.
    Every,
    /// The folder and its class say nothing.
    Unsaid,
}

/// Most frames that a file may ask for.
const MOST: usize = 1 << 20;

impl Sampler {
    /// Reads the fields of a video preprocessor.
    ///
    /// # Errors
    /// A field that cannot be, by name.
    pub fn read(rule: Rule, fields: &Fields<'_>) -> Result<Self, ConfigError> {
        let rate = |of: &Fields<'_>, key: &str| -> Result<Option<f64>, ConfigError> {
            of.get(key).map(|_| of.number(key, 1e-6..=1e4, None)).transpose()
        };
        let number = |of: &Fields<'_>, key: &str| -> Result<Option<usize>, ConfigError> {
            of.get(key).map(|_| of.size(key, 1..=MOST, None)).transpose()
        };
        let (mut fps, mut frames) = (rate(fields, "fps")?, number(fields, "num_frames")?);
        if rule == Rule::SmolVlm && fields.has("video_sampling") {
            let own = fields.object("video_sampling")?;
            fps = rate(&own, "fps")?.or(fps);
            frames = number(&own, "max_frames")?.or(frames);
        }
        let samples = match fields.get("do_sample_frames") {
            None => None,
            Some(_) => Some(fields.flag("do_sample_frames", true)?),
        };
        let bounds = Bounds {
            min: number(fields, "min_frames")?.unwrap_or(Bounds::default().min),
            max: number(fields, "max_frames")?.unwrap_or(Bounds::default().max),
        };
        let shift = match fields.get("initial_shift") {
            None | Some(serde_json::Value::Bool(true)) => None,
            Some(serde_json::Value::Bool(false)) => Some(0.0),
            Some(_) => Some(fields.number("initial_shift", 0.0..=1e9, None)?),
        };
        let group = fields.size("temporal_patch_size", 1..=16, Some(2))?;
        Ok(Self { rule, samples, fps, frames, bounds, group, shift })
    }

    /// The rate that the folder names.
    pub fn fps(&self) -> Option<f64> {
        self.fps
    }

    /// Which frames are taken; `fps` is a caller's wish and goes before the folder's.
    pub fn wanted(&self, fps: Option<f64>) -> Wanted {
        let frames = self.frames.filter(|_| fps.is_none());
        let asked = fps.or(self.fps);
        let (bounds, group) = (self.bounds, self.group);
        let is_off = self.samples == Some(false) && fps.is_none();
        Wanted::By(match (self.rule, frames, asked) {
            // The family's own processor asks for its rate and number, whatever the flag says.
            (Rule::SmolVlm, frames, asked) => {
                if is_off && frames.is_none() && asked.is_none() {
                    return Wanted::Every;
                }
                let max_frames = self.frames.unwrap_or(64);
                Policy::SmolVlm { fps: asked.unwrap_or(1.0), max_frames }
            }
            _ if is_off => return Wanted::Every,
            (Rule::QwenTwo, Some(frames), _) => Policy::QwenTwoFrames { frames, group },
            (Rule::QwenTwo, None, asked) => {
                Policy::QwenTwo { fps: asked.unwrap_or(2.0), bounds, group }
            }
            (Rule::QwenThree, Some(frames), _) => Policy::QwenThreeFrames { frames },
            (Rule::QwenThree, None, asked) => {
                Policy::QwenThree { fps: asked.unwrap_or(2.0), bounds }
            }
            (Rule::InternVl, Some(frames), _) => {
                Policy::Parts { parts: Parts::Number(frames), shift: self.shift }
            }
            (Rule::InternVl, None, Some(fps)) => {
                Policy::Parts { parts: Parts::Rate(fps), shift: self.shift }
            }
            (Rule::Base, Some(frames), _) => Policy::Uniform { frames },
            (Rule::Base, None, Some(fps)) => Policy::Rate { fps, max_frames: usize::MAX },
            (Rule::InternVl | Rule::Base, None, None) if self.samples == Some(true) => {
                return Wanted::Every;
            }
            (Rule::InternVl | Rule::Base, None, None) => return Wanted::Unsaid,
        })
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

/// `count` indices from `start` on, `total / count` apart, as torch's `arange(..).int()` has them:
/// computed in f64, stored as f32, truncated.
fn arange(start: f64, total: usize, count: usize) -> Vec<usize> {
    let step = total as f64 / count as f64;
    (0..count)
        .map(|i| start + i as f64 * step)
        .take_while(|x| *x < total as f64)
        .map(|x| (x as f32 as usize).min(total - 1))
        .collect()
}

/// `count` indices spread evenly, in whole numbers.
fn spread(total: usize, count: usize) -> Vec<usize> {
    (0..count).map(|i| (i as u128 * total as u128 / count as u128) as usize).collect()
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
        Policy::QwenTwo { fps, bounds, group } if fps > 0.0 && group > 0 => {
            let most = (total.min(bounds.max) / group * group) as f64;
            let wanted = (seconds * fps).max(bounds.min as f64).min(most).min(total as f64);
            arange(0.0, total, ((wanted / group as f64).floor() as usize * group).max(1))
        }
        Policy::QwenTwoFrames { frames, group } if group > 0 => {
            let whole = (frames as f64 / group as f64).round_ties_even() as usize * group;
            arange(0.0, total, whole.min(total / group * group).max(1))
        }
        Policy::QwenThree { fps, bounds } if fps > 0.0 => {
            let wanted = ((seconds * fps) as usize).max(bounds.min).min(bounds.max);
            ends_included(total, wanted.min(total))
        }
        Policy::QwenThreeFrames { frames } => ends_included(total, frames.min(total)),
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
        Policy::Parts { parts, shift } => {
            let wanted = match parts {
                Parts::Number(number) => number,
                Parts::Rate(fps) => (seconds * fps) as usize,
            };
            let count = wanted.clamp(1, total);
            arange(shift.unwrap_or(total as f64 / count as f64 / 2.0), total, count)
        }
        Policy::Rate { fps, max_frames } if fps > 0.0 => {
            let count = ((seconds * fps) as usize).clamp(1, max_frames.max(1)).min(total);
            spread(total, count)
        }
        Policy::Uniform { frames } => spread(total, frames.min(total)),
        _ => Vec::new(),
    }
}

/// `count` indices from the first frame to the last.
fn ends_included(total: usize, count: usize) -> Vec<usize> {
    linspace(0.0, (total - 1) as f64, count).map(|x| x.round_ties_even() as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(rule: Rule, text: &str, fps: Option<f64>) -> Wanted {
        let value = serde_json::from_str(text).unwrap();
        let fields = Fields::root("video_preprocessor_config.json", &value).unwrap();
        Sampler::read(rule, &fields).unwrap().wanted(fps)
    }

    #[test]
    fn the_folder_decides_before_the_class_and_a_caller_before_both() {
        use Policy as P;
        let bounds = Bounds::default();
        let (two, three) = (Rule::QwenTwo, Rule::QwenThree);
        let cases: [(Rule, &str, Option<f64>, Wanted); 22] = [
            (three, "{}", None, Wanted::By(P::QwenThree { fps: 2.0, bounds })),
            (three, r#"{"fps": 4}"#, None, Wanted::By(P::QwenThree { fps: 4.0, bounds })),
            (three, r#"{"fps": 4}"#, Some(1.0), Wanted::By(P::QwenThree { fps: 1.0, bounds })),
            (
                three,
                r#"{"min_frames": 2, "max_frames": 9}"#,
                None,
                Wanted::By(P::QwenThree { fps: 2.0, bounds: Bounds { min: 2, max: 9 } }),
            ),
            (three, r#"{"num_frames": 5}"#, None, Wanted::By(P::QwenThreeFrames { frames: 5 })),
            (
                three,
                r#"{"num_frames": 5}"#,
                Some(3.0),
                Wanted::By(P::QwenThree { fps: 3.0, bounds }),
            ),
            (three, r#"{"do_sample_frames": false}"#, None, Wanted::Every),
            (
                three,
                r#"{"do_sample_frames": false}"#,
                Some(1.0),
                Wanted::By(P::QwenThree { fps: 1.0, bounds }),
            ),
            (two, "{}", None, Wanted::By(P::QwenTwo { fps: 2.0, bounds, group: 2 })),
            (two, r#"{"do_sample_frames": false, "fps": 2}"#, None, Wanted::Every),
            (
                two,
                r#"{"do_sample_frames": true, "num_frames": 7, "temporal_patch_size": 4}"#,
                None,
                Wanted::By(P::QwenTwoFrames { frames: 7, group: 4 }),
            ),
            (
                Rule::SmolVlm,
                r#"{"do_sample_frames": false, "video_sampling": {"max_frames": 8, "fps": 2}}"#,
                None,
                Wanted::By(P::SmolVlm { fps: 2.0, max_frames: 8 }),
            ),
            (
                Rule::SmolVlm,
                r#"{"fps": 3, "num_frames": 4}"#,
                None,
                Wanted::By(P::SmolVlm { fps: 3.0, max_frames: 4 }),
            ),
            (Rule::SmolVlm, "{}", None, Wanted::By(P::SmolVlm { fps: 1.0, max_frames: 64 })),
            (Rule::SmolVlm, r#"{"do_sample_frames": false}"#, None, Wanted::Every),
            (
                Rule::InternVl,
                r#"{"num_frames": 3, "initial_shift": false}"#,
                None,
                Wanted::By(P::Parts { parts: Parts::Number(3), shift: Some(0.0) }),
            ),
            (
                Rule::InternVl,
                r#"{"fps": 0.5, "initial_shift": true}"#,
                None,
                Wanted::By(P::Parts { parts: Parts::Rate(0.5), shift: None }),
            ),
            (Rule::InternVl, "{}", None, Wanted::Unsaid),
            (Rule::Base, r#"{"num_frames": 3}"#, None, Wanted::By(P::Uniform { frames: 3 })),
            (
                Rule::Base,
                r#"{"fps": 3}"#,
                None,
                Wanted::By(P::Rate { fps: 3.0, max_frames: usize::MAX }),
            ),
            (Rule::Base, r#"{"do_sample_frames": true}"#, None, Wanted::Every),
            (Rule::Base, r#"{"fps": null, "do_sample_frames": null}"#, None, Wanted::Unsaid),
        ];
        for (rule, text, fps, want) in cases {
            assert_eq!(wanted(rule, text, fps), want, "{rule:?} {text} {fps:?}");
        }
    }

    #[test]
    fn a_field_that_cannot_be_is_named() {
        for (text, key) in [
            (r#"{"fps": 0}"#, "fps"),
            (r#"{"fps": "two"}"#, "fps"),
            (r#"{"num_frames": -1}"#, "num_frames"),
            (r#"{"max_frames": 0}"#, "max_frames"),
            (r#"{"do_sample_frames": 3}"#, "do_sample_frames"),
            (r#"{"initial_shift": "no"}"#, "initial_shift"),
        ] {
            let value = serde_json::from_str(text).unwrap();
            let fields = Fields::root("video_preprocessor_config.json", &value).unwrap();
            let error = Sampler::read(Rule::InternVl, &fields).unwrap_err().to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
    }

    /// Values of `torch.arange(start, total, total / count).int()` where f64 alone differs.
    #[test]
    fn indices_are_truncated_from_f32() {
        for (total, count, at, index) in [(30, 22, 11, 15), (52, 46, 23, 26), (60, 44, 22, 30)] {
            assert_eq!(arange(0.0, total, count)[at], index, "{count} of {total}");
        }
        assert_eq!(arange(2.5, 5, 1), [2], "the middle");
    }
}
