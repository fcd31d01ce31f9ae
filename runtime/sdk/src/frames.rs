//! Videos as a model takes them: which frames, and what becomes of them where the family has no
//! video input.
//!
//! Invariants
//! - The frames that [`Vlm::frame_policy`] takes fit the model's context beside an answer.
//! - A family that has a video input gets the video whole; any other gets its frames as pictures
//!   of one prompt, in order, and nothing is left out silently.

use secateur_core::clip::Clip;
use secateur_core::error::InputError;
use secateur_encoders::processors::FAMILIES;
use secateur_encoders::processors::sampling::Policy;
use secateur_encoders::video::FPS;

use crate::error::Error;
use crate::vlm::Vlm;

/// Prompt tokens that are kept free of frames for question and template.
const TEXT_ROOM: usize = 128;
/// Most frames as pictures: few published checkpoints saw more pictures in a prompt.
const MOST_PICTURES: usize = 8;
/// Most frames of a video input whose reference names no policy.
const MOST_FRAMES: usize = 32;

impl Vlm {
    /// Whether the family has a video input of its own.
    pub fn takes_videos(&self) -> bool {
        self.model.entry.video
    }

    /// Most frames that are taken by default, with room for an answer of `max_tokens` tokens.
    ///
    /// As pictures every frame costs [`crate::ModelInfo::visual_tokens`] tokens, so this fits. A
    /// video input merges frames in its own way; there it is a usual number.
    pub fn most_frames(&self, max_tokens: usize) -> usize {
        if self.takes_videos() {
            return MOST_FRAMES;
        }
        if !self.model.entry.several {
            return 1;
        }
        let info = self.info();
        let room = info.decoder.context.saturating_sub(max_tokens.saturating_add(TEXT_ROOM));
        (room / info.visual_tokens.max(1)).clamp(1, MOST_PICTURES)
    }

    /// Which frames of a video are taken: as the family's own video processor does, at `fps` if
    /// that is given; where it has no rule, or `max_frames` is given, that many a second up to
    /// `max_frames` ([`Vlm::most_frames`] if not given).
    pub fn frame_policy(
        &self,
        fps: Option<f64>,
        max_frames: Option<usize>,
        max_tokens: usize,
    ) -> Policy {
        let family = self.model.entry.model_type;
        let own = FAMILIES.iter().find(|e| e.family == family).and_then(|e| e.frames);
        match (own, max_frames) {
            (Some(own), None) => fps.map_or(own, |fps| own.at(fps)),
            _ => Policy::Rate {
                fps: fps.unwrap_or(FPS),
                max_frames: max_frames.unwrap_or_else(|| self.most_frames(max_tokens)),
            },
        }
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
        if clip.video().is_none() || self.takes_videos() {
            return Ok(vec![clip]);
        }
        let count = clip.frames().len();
        if count > 1 && !self.model.entry.several {
            let name = self.model.entry.name;
            let reason = format!("{name} takes one picture, the video has {count} frames");
            return Err(InputError::Refused { path: clip.label().to_owned(), reason }.into());
        }
        let picture = |frame: &secateur_core::clip::Frame| {
            Clip::picture(clip.label(), frame.width, frame.height, frame.rgb.clone())
        };
        Ok(clip.frames().iter().map(picture).collect::<Result<_, _>>()?)
    }
}
