//! Qwen2-VL, Qwen2.5-VL and Qwen3-VL: pictures and videos as rows of patches.
//!
//! Invariants
//! - One row of `Pixels::values` is one patch over a pair of frames, `[channel, frame, y, x]`;
//!   rows go frame pair by frame pair, then in blocks of merge x merge patches, so that the rows
//!   of one visual token are neighbours.
//! - One crop a frame pair: its grid counts patches in raster order, its rows and its `rgb` are in
//!   the order of the rows above. `rgb` is therefore a column, one patch wide: patch `i` of it is
//!   row `i` of the crop.
//! - A picture fills both frames of its pair; a video repeats its last frame up to a full pair.
//!
//! Method: `Qwen2VLImageProcessor`, `Qwen2VLVideoProcessor`, `Qwen3VLVideoProcessor` of
//! transformers. Deviation `cap` (models-b V8): where a file does not say
//! `cap_pixels_per_frame`, the total of a video is bounded.

use rayon::prelude::*;
use secateur_core::clip::{Clip, Grid};
use secateur_core::error::{ConfigError, InputError};
use secateur_core::files::{Fields, short};
use secateur_core::model::{Pixels, Processor, ProcessorOptions};
use secateur_core::signal::CropPixels;
use serde_json::Value;

use super::qwen_size::{self, Budget, MAX_RATIO};
use super::settings::{CLIP_MEAN, CLIP_STD, HALF, ValueDefaults, Values};
use super::steps::{Place, View, check_area, check_source, named, own_aspect, size_label};
use crate::image::{Bitmap, Filter, resize};

const NAME: &str = "Qwen-VL";

/// Frames a second where neither the clip nor its frames say it: the reference's own fallback.
const UNKNOWN_FPS: f64 = 24.0;

/// Which rule sizes a video.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// Qwen2-VL and Qwen2.5-VL: a budget a frame.
    Two,
    /// Qwen3-VL: a budget a clip, and timestamps.
    Three,
}

/// Settings of pictures or of videos.
#[derive(Clone, Debug)]
struct Side {
    values: Values,
    budget: Budget,
    patch: usize,
    temporal: usize,
    merge: usize,
}

/// `Qwen2VLImageProcessor` and the two video processors.
#[derive(Clone, Debug)]
pub struct QwenVl {
    generation: Generation,
    picture: Side,
    video: Side,
    cap: bool,
    /// What the cap counts in: tokens of a clip (Qwen2-VL, 2.5) or of a frame (Qwen3-VL).
    video_tokens: usize,
}

/// A scaled picture or video: patches down, across, and its grids.
struct Plan {
    /// Width and height of a scaled frame.
    size: (usize, usize),
    pairs: usize,
}

impl Side {
    fn read(
        fields: &Fields<'_>,
        generation: Generation,
        budget: Budget,
        is_video: bool,
    ) -> Result<Self, ConfigError> {
        let (mean, std, patch) = match generation {
            Generation::Two => (CLIP_MEAN, CLIP_STD, 14),
            Generation::Three => (HALF, HALF, 16),
        };
        let defaults = ValueDefaults { mean, std, filter: Filter::Bicubic };
        let mut read = budget;
        const MOST: usize = 1 << 30;
        match fields.get("size") {
            None => {}
            Some(Value::Object(_)) => {
                let size = fields.object("size")?;
                read.min = size.size("shortest_edge", 1..=MOST, Some(read.min))?;
                read.max = size.size("longest_edge", 1..=MOST, Some(read.max))?;
            }
            Some(other) => {
                let expected = "an object with shortest_edge and longest_edge (areas in pixels)";
                return Err(fields.error("size", expected, &short(other)));
            }
        }
        // Where both spellings stand, these win; videos of Qwen3-VL do not know them.
        if !(is_video && generation == Generation::Three) {
            read.min = fields.size("min_pixels", 1..=MOST, Some(read.min))?;
            read.max = fields.size("max_pixels", 1..=MOST, Some(read.max))?;
        }
        if read.min > read.max {
            let found = format!("{} with a maximum of {}", read.min, read.max);
            return Err(fields.error("min_pixels", "at most max_pixels", &found));
        }
        Ok(Self {
            values: Values::read(fields, defaults)?,
            budget: read,
            patch: fields.size("patch_size", 1..=256, Some(patch))?,
            temporal: fields.size("temporal_patch_size", 1..=16, Some(2))?,
            merge: fields.size("merge_size", 1..=16, Some(2))?,
        })
    }

    fn factor(&self) -> usize {
        self.patch * self.merge
    }

    /// The budget after the user's wishes.
    fn budget(&self, options: &ProcessorOptions) -> Budget {
        let max = options.max_pixels.unwrap_or(self.budget.max).max(1);
        let min = options.min_pixels.unwrap_or(self.budget.min).min(max);
        Budget { min, max }
    }

    fn grids(&self, source: (u32, u32), plan: &Plan) -> Vec<Grid> {
        let view = View::source().resized((source.0 as usize, source.1 as usize), plan.size);
        (0..plan.pairs)
            .map(|t| {
                let frame = (t * self.temporal) as u32;
                let place = Place { source: [source.0, source.1], frame, tile: 0 };
                view.grid(plan.size, self.patch, place)
            })
            .collect()
    }

    /// Patch rows of frames of one size; `frames[t * temporal + i]` is frame `i` of pair `t`.
    fn rows(&self, frames: &[Bitmap], plan: &Plan, options: &ProcessorOptions) -> Vec<f32> {
        let table = self.values.table(options.backend);
        let p = self.patch;
        let order = patch_order(plan.size.1 / p, plan.size.0 / p, self.merge);
        let width = 3 * self.temporal * p * p;
        let mut values = vec![0.0f32; plan.pairs * order.len() * width];
        values.par_chunks_exact_mut(width).enumerate().for_each(|(n, row)| {
            let (pair, (y, x)) = (n / order.len(), order[n % order.len()]);
            for (slot, out) in row.chunks_exact_mut(p * p).enumerate() {
                let (channel, time) = (slot / self.temporal, slot % self.temporal);
                let frame = &frames[(pair * self.temporal + time).min(frames.len() - 1)];
                for (dy, line) in out.chunks_exact_mut(p).enumerate() {
                    let bytes = &frame.row(y * p + dy)[x * p * 3..(x + 1) * p * 3];
                    for (o, b) in line.iter_mut().zip(bytes.iter().skip(channel).step_by(3)) {
                        *o = table[channel][*b as usize];
                    }
                }
            }
        });
        values
    }

    /// The patches of a frame one below the other, in the order of the rows.
    fn column(&self, frame: &Bitmap) -> CropPixels {
        let p = self.patch;
        let order = patch_order(frame.height / p, frame.width / p, self.merge);
        let column = Bitmap::build(p, p * order.len(), |out| {
            for (patch, (y, x)) in out.chunks_exact_mut(p * p * 3).zip(&order) {
                for (dy, line) in patch.chunks_exact_mut(p * 3).enumerate() {
                    line.copy_from_slice(&frame.row(y * p + dy)[x * p * 3..(x + 1) * p * 3]);
                }
            }
        });
        CropPixels { width: p, height: column.height, patch: p, rgb: column.rgb }
    }
}

/// Raster coordinates (y, x) of the patches of a frame, in blocks of `merge` x `merge`.
pub(crate) fn patch_order(rows: usize, cols: usize, merge: usize) -> Vec<(usize, usize)> {
    let mut order = Vec::with_capacity(rows * cols);
    for by in (0..rows).step_by(merge) {
        for bx in (0..cols).step_by(merge) {
            for y in by..(by + merge).min(rows) {
                order.extend((bx..(bx + merge).min(cols)).map(|x| (y, x)));
            }
        }
    }
    order
}

impl QwenVl {
    /// From the fields of both preprocessors; where a model has none for videos, its picture
    /// settings hold for them, too.
    ///
    /// # Errors
    /// A field that cannot be, by name.
    pub fn new(
        fields: &Fields<'_>,
        video: Option<&Fields<'_>>,
        generation: Generation,
    ) -> Result<Self, ConfigError> {
        let picture = Side::read(fields, generation, Budget { min: 3136, max: 1_003_520 }, false)?;
        let video_budget = match generation {
            Generation::Two => Budget { min: 100_352, max: 602_112 },
            Generation::Three => Budget { min: 131_072, max: 786_432 },
        };
        let video_fields = video.unwrap_or(fields);
        let video = Side::read(video_fields, generation, video_budget, true)?;
        let shape = |s: &Side| (s.patch, s.temporal, s.merge);
        if shape(&picture) != shape(&video) {
            let expected = format!("that of pictures, {}", picture.patch);
            return Err(video_fields.error("patch_size", &expected, &video.patch.to_string()));
        }
        let cap = video_fields.flag("cap_pixels_per_frame", true)?;
        let most = match generation {
            Generation::Two => 128_000,
            Generation::Three => 768,
        };
        let video_tokens = video_fields.size("max_video_tokens", 1..=1 << 24, Some(most))?;
        Ok(Self { generation, picture, video, cap, video_tokens })
    }

    fn plan(
        &self,
        width: u32,
        height: u32,
        frames: Option<usize>,
        options: &ProcessorOptions,
    ) -> Result<Plan, InputError> {
        let (w, h) = check_source(width, height)?;
        let refuse =
            |reason: String| InputError::Refused { path: size_label(width, height), reason };
        own_aspect((width, height), options, NAME)?;
        if qwen_size::too_thin(w, h) {
            return Err(refuse(format!(
                "the longer side is more than {MAX_RATIO} times the shorter; {NAME} takes no \
                 thinner pictures"
            )));
        }
        let side = if frames.is_some() { &self.video } else { &self.picture };
        let (factor, mut budget) = (side.factor(), side.budget(options));
        let (height_px, width_px) = match (frames, self.generation) {
            (None, _) => qwen_size::picture(h, w, factor, budget),
            (Some(n), Generation::Two) => {
                if self.cap {
                    let share = (self.video_tokens, factor, side.temporal);
                    budget = qwen_size::capped_frame(n, share, budget);
                }
                qwen_size::picture(h, w, factor, budget)
            }
            (Some(n), Generation::Three) => {
                if n < side.temporal {
                    return Err(refuse(format!(
                        "a video of {n} frame; {NAME} needs at least {}",
                        side.temporal
                    )));
                }
                if options.max_pixels.is_some() {
                    // The user's figure is for one frame, the file's for the clip.
                    budget.max = budget.max.saturating_mul(n);
                }
                if self.cap {
                    budget = qwen_size::capped_clip(n, (self.video_tokens, factor), budget);
                }
                qwen_size::clip(n, (h, w), side.temporal, factor, budget)
            }
        };
        let size = if side.values.resize { (width_px, height_px) } else { (w, h) };
        if size.0 % factor != 0 || size.1 % factor != 0 {
            return Err(refuse(format!(
                "resizing is switched off and the sides are no multiples of {factor}"
            )));
        }
        let pairs = frames.map_or(1, |n| n.div_ceil(side.temporal));
        check_area((width, height), pairs * side.temporal, size)?;
        Ok(Plan { size, pairs })
    }
}

/// Time of each frame, seconds, and frames a second.
fn frame_times(clip: &Clip) -> (Vec<f64>, f64) {
    let frames = clip.frames();
    let told: Option<Vec<f64>> = frames.iter().map(|f| f.time_s).collect();
    let rate = clip.video().and_then(|v| v.fps).filter(|f| f.is_finite() && *f > 0.0);
    let measured = || {
        let times = told.as_ref()?;
        let span = times.last()? - times.first()?;
        (span > 0.0).then(|| (times.len() - 1) as f64 / span)
    };
    let fps = rate.or_else(measured).unwrap_or(UNKNOWN_FPS);
    let times = told.unwrap_or_else(|| (0..frames.len()).map(|i| i as f64 / fps).collect());
    (times, fps)
}

impl Processor for QwenVl {
    fn process(&self, clip: &Clip, options: &ProcessorOptions) -> Result<Pixels, InputError> {
        let is_video = clip.video().is_some();
        let count = is_video.then(|| clip.frames().len());
        let source = (clip.width(), clip.height());
        let plan = named(clip, self.plan(source.0, source.1, count, options))?;
        let side = if is_video { &self.video } else { &self.picture };
        let frames: Vec<Bitmap> = clip
            .frames()
            .iter()
            .take(count.unwrap_or(1))
            .map(|f| resize(Bitmap::from_frame(f), plan.size, side.values.filter, options.backend))
            .collect();
        let values = side.rows(&frames, &plan, options);
        let grid = [plan.pairs, plan.size.1 / side.patch, plan.size.0 / side.patch];
        let (times, fps) = if is_video { frame_times(clip) } else { (Vec::new(), UNKNOWN_FPS) };
        let time_of = |i: usize| times[i.min(times.len() - 1)];
        let times_s = if is_video {
            (0..plan.pairs)
                .map(|t| {
                    let first = time_of(t * side.temporal);
                    let last = time_of((t + 1) * side.temporal - 1);
                    (first + last) / 2.0
                })
                .collect()
        } else {
            Vec::new()
        };
        let name = if is_video { "video_grid_thw" } else { "image_grid_thw" };
        Ok(Pixels {
            shape: vec![grid.iter().product(), 3 * side.temporal * side.patch * side.patch],
            values,
            crops: side.grids(source, &plan),
            rgb: (0..plan.pairs).map(|t| side.column(&frames[t * side.temporal])).collect(),
            grid_thw: Some(grid),
            source: [source.0, source.1],
            video: is_video,
            times_s,
            fps: is_video.then_some(fps),
            outputs: vec![(name.into(), grid.map(|v| v as i64).to_vec(), vec![1, 3])],
        })
    }

    fn crops(
        &self,
        width: u32,
        height: u32,
        options: &ProcessorOptions,
    ) -> Result<Vec<Grid>, InputError> {
        let plan = self.plan(width, height, None, options)?;
        Ok(self.picture.grids((width, height), &plan))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_go_block_by_block() {
        let want = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)];
        assert_eq!(patch_order(2, 4, 2), want);
    }
}
