//! Videos as a model takes them: which frames, and what becomes of them where the family has no
//! video input.
//!
//! Invariants
//! - The frames that [`Vlm::frame_policy`] takes fit the model's context beside an answer.
//! - A family that has a video input gets the video whole; any other gets its frames as pictures
//!   of one prompt, in order, and nothing is left out silently.

use secateur_core::clip::{Clip, Frame, VideoInfo};
use secateur_core::error::InputError;
use secateur_core::model::ModelInfo;
use secateur_encoders::processors::sampling::{Policy, Sampler, Wanted};
use secateur_encoders::video::FPS;
use secateur_models::FamilyEntry;

use crate::error::Error;
use crate::outline::Outline;
use crate::vlm::Vlm;

/// Prompt tokens that are kept free of frames for question and template.
const TEXT_ROOM: usize = 128;
/// Most frames as pictures: few published checkpoints saw more pictures in a prompt.
const MOST_PICTURES: usize = 8;
/// Most frames of a video input whose reference names no policy.
const MOST_FRAMES: usize = 32;
/// Frames, and the side of each, of the video that is laid out to see what one costs.
const SAMPLE: (usize, u32) = (4, 448);

/// What decides which frames a model takes.
struct Taker<'a> {
    entry: &'static FamilyEntry,
    info: &'a ModelInfo,
    sampler: Option<&'a Sampler>,
    max_tokens: usize,
}

impl Taker<'_> {
    /// Prompt tokens that frames may take.
    fn room(&self) -> usize {
        self.info.decoder.context.saturating_sub(self.max_tokens.saturating_add(TEXT_ROOM))
    }

    fn most_frames(&self) -> usize {
        if self.entry.video {
            return MOST_FRAMES;
        }
        if !self.entry.several {
            return 1;
        }
        (self.room() / self.info.visual_tokens.max(1)).clamp(1, MOST_PICTURES)
    }

    /// `cost`: tokens of a clip, to see how many frames there is room for.
    fn policy(
        &self,
        fps: Option<f64>,
        max_frames: Option<usize>,
        cost: impl FnOnce(Clip) -> Result<usize, Error>,
    ) -> Policy {
        let by_rate = |max_frames: usize| {
            let said = fps.or_else(|| self.sampler?.fps());
            Policy::Rate { fps: said.unwrap_or(FPS), max_frames }
        };
        if let Some(max_frames) = max_frames {
            return by_rate(max_frames);
        }
        match self.sampler.map_or(Wanted::Unsaid, |sampler| sampler.wanted(fps)) {
            Wanted::By(policy) => policy,
            Wanted::Every => {
                let (count, side) = SAMPLE;
                let each = blank(count, side).and_then(cost).unwrap_or(0).div_ceil(count);
                Policy::Uniform { frames: (self.room() / each.max(1)).max(1) }
            }
            Wanted::Unsaid => by_rate(self.most_frames()),
        }
    }
}

/// A black video.
fn blank(count: usize, side: u32) -> Result<Clip, Error> {
    let rgb = vec![0; side as usize * side as usize * 3].into();
    let frame = Frame { width: side, height: side, rgb, time_s: None };
    let info = VideoInfo { fps: Some(FPS), duration_s: None };
    Ok(Clip::from_frames("a black video", vec![frame; count], info)?)
}

impl Vlm {
    /// Whether the family has a video input of its own.
    pub fn takes_videos(&self) -> bool {
        self.model.entry.video
    }

    fn taker(&self, max_tokens: usize) -> Taker<'_> {
        let model = &self.model;
        Taker { entry: model.entry, info: &model.info, sampler: model.sampler.as_ref(), max_tokens }
    }

    /// Most frames that are taken by default, with room for an answer of `max_tokens` tokens.
    ///
    /// As pictures every frame costs [`crate::ModelInfo::visual_tokens`] tokens, so this fits. A
    /// video input merges frames in its own way; there it is a usual number.
    pub fn most_frames(&self, max_tokens: usize) -> usize {
        self.taker(max_tokens).most_frames()
    }

    /// Which frames of a video are taken: as the model folder says (`fps`, `num_frames`,
    /// `max_frames`, `do_sample_frames` and more of its video preprocessor) and the family's own
    /// video processor does, at `fps` if that is given; where nothing is said, or `max_frames` is
    /// given, that many a second up to `max_frames` ([`Vlm::most_frames`] if not given). Every
    /// frame (`do_sample_frames: false`) means as many, evenly, as the context has room for.
    pub fn frame_policy(
        &self,
        fps: Option<f64>,
        max_frames: Option<usize>,
        max_tokens: usize,
    ) -> Policy {
        self.taker(max_tokens).policy(fps, max_frames, |clip| {
            let model = &self.model;
            let pixels = crate::outline::pixels(&*model.processor, &[&clip], &model.options)?;
            let views: Vec<_> = pixels.iter().collect();
            Ok(model.family.layout(&views)?.map.len())
        })
    }

    /// A clip as this model takes it: a picture as it is; a video as it is where the family has
    /// videos, else each frame as a picture.
    ///
    /// ```
    /// use secateur::{Clip, Frame, ModelSource, VideoInfo, Vlm};
    /// let vlm = Vlm::builder(ModelSource::Embedded).open()?;
    /// let frame = Frame { width: 8, height: 8, rgb: vec![0; 192].into(), time_s: None };
    /// let clip = Clip::from_frames("film", vec![frame; 3], VideoInfo::default())?;
    /// assert_eq!(vlm.fitted(clip)?.len(), 3);
    /// # Ok::<(), secateur::Error>(())
    /// ```
    ///
    /// # Errors
    /// More than one frame for a family that takes one picture.
    pub fn fitted(&self, clip: Clip) -> Result<Vec<Clip>, Error> {
        fitted(self.model.entry, clip)
    }
}

impl Outline {
    /// Which frames of a video are taken: see [`Vlm::frame_policy`].
    pub fn frame_policy(
        &self,
        fps: Option<f64>,
        max_frames: Option<usize>,
        max_tokens: usize,
    ) -> Policy {
        self.taker(max_tokens).policy(fps, max_frames, |clip| Ok(self.tokens(&[clip])?.len()))
    }

    /// Most frames that are taken by default: see [`Vlm::most_frames`].
    pub fn most_frames(&self, max_tokens: usize) -> usize {
        self.taker(max_tokens).most_frames()
    }

    fn taker(&self, max_tokens: usize) -> Taker<'_> {
        Taker { entry: self.entry(), info: self.info(), sampler: self.sampler(), max_tokens }
    }

    /// A clip as the model takes it: see [`Vlm::fitted`].
    ///
    /// # Errors
    /// More than one frame for a family that takes one picture.
    pub fn fitted(&self, clip: Clip) -> Result<Vec<Clip>, Error> {
        fitted(self.entry(), clip)
    }
}

fn fitted(family: &FamilyEntry, clip: Clip) -> Result<Vec<Clip>, Error> {
    if clip.video().is_none() || family.video {
        return Ok(vec![clip]);
    }
    let count = clip.frames().len();
    if count > 1 && !family.several {
        let name = family.name;
        let reason = format!("{name} takes one picture, the video has {count} frames");
        return Err(InputError::Refused { path: clip.label().to_owned(), reason }.into());
    }
    let picture = |frame: &secateur_core::clip::Frame| {
        Clip::picture(clip.label(), frame.width, frame.height, frame.rgb.clone())
    };
    Ok(clip.frames().iter().map(picture).collect::<Result<_, _>>()?)
}
