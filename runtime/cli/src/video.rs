//! Videos on their way to the model: files, and folders whose pictures are frames.
//!
//! Invariant: what is taken by default fits the model; a number that was asked for is taken as it
//! is, and if the context is too short the error names the flag.

use std::path::{Path, PathBuf};

use secateur::image::Limits;
use secateur::{Clip, Error, FrameSampling, InputError, Outline, Policy, VideoOptions, Vlm, video};

use crate::args::{FrameChoice, VideoArgs};
use crate::named::pictures_of;

/// Smallest mean difference of grey levels, of 255, that is a change of scene: a cut moves most
/// pixels by far more, noise and motion by less.
const SCENE_THRESHOLD: f32 = 20.0;
/// Which frames are taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frames {
    options: VideoOptions,
    /// Rate of the frames of folders.
    fps: f64,
    /// Most frames of folders.
    most: usize,
}

impl Frames {
    /// What flags and model say together; `max_tokens` are kept free for the answer.
    pub(crate) fn new(
        args: &VideoArgs,
        vlm: &impl TakesFrames,
        max_tokens: usize,
        limits: Limits,
    ) -> Self {
        let most = args.max_frames.unwrap_or_else(|| vlm.most_frames(max_tokens));
        let asked = args.fps;
        let fps = asked.unwrap_or(video::FPS);
        let sampling = match args.sampling {
            FrameChoice::Model => {
                FrameSampling::Policy(vlm.frame_policy(asked, args.max_frames, max_tokens))
            }
            FrameChoice::Rate => FrameSampling::Policy(Policy::Rate { fps, max_frames: most }),
            FrameChoice::Uniform => FrameSampling::Policy(Policy::Uniform { frames: most }),
            FrameChoice::Scenes => {
                FrameSampling::Scenes { max_frames: most, threshold: SCENE_THRESHOLD }
            }
        };
        let options = VideoOptions { sampling, limits, ..VideoOptions::default() };
        Self { options, fps, most }
    }

    /// For tests of pictures.
    #[cfg(test)]
    pub(crate) fn pictures_only() -> Self {
        Self { options: VideoOptions::default(), fps: video::FPS, most: 1 }
    }

    /// What can change a caption, for fingerprints: limits cannot.
    pub(crate) fn identity(&self) -> String {
        format!("{:?}, folders {} at {} a second", self.options.sampling, self.most, self.fps)
    }

    /// Limits on frames, and on pictures.
    pub(crate) fn limits(&self) -> &Limits {
        &self.options.limits
    }

    /// Reads a video file, or a folder of frames.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn load(&self, path: &Path) -> Result<Clip, InputError> {
        if !path.is_dir() {
            return video::load(path, &self.options);
        }
        let label = path.display().to_string();
        let pictures = pictures_of(path)
            .map_err(|e| InputError::Io { path: label.clone(), reason: e.to_string() })?;
        if pictures.is_empty() {
            let reason = "expected pictures in the folder, found none".to_owned();
            return Err(InputError::Refused { path: label, reason });
        }
        let count = self.most.min(pictures.len());
        let taken: Vec<PathBuf> =
            (0..count).map(|i| pictures[i * pictures.len() / count].clone()).collect();
        // Fewer frames of the same time are further apart.
        let fps = self.fps * count as f64 / pictures.len() as f64;
        video::from_pictures(&label, &taken, fps, &self.options)
    }
}

/// A model, loaded or not: which frames it takes.
pub(crate) trait TakesFrames {
    /// See [`Vlm::most_frames`].
    fn most_frames(&self, max_tokens: usize) -> usize;
    /// See [`Vlm::frame_policy`].
    fn frame_policy(&self, fps: Option<f64>, most: Option<usize>, max_tokens: usize) -> Policy;
}

impl TakesFrames for Vlm {
    fn most_frames(&self, max_tokens: usize) -> usize {
        Vlm::most_frames(self, max_tokens)
    }

    fn frame_policy(&self, fps: Option<f64>, most: Option<usize>, max_tokens: usize) -> Policy {
        Vlm::frame_policy(self, fps, most, max_tokens)
    }
}

impl TakesFrames for Outline {
    fn most_frames(&self, max_tokens: usize) -> usize {
        Outline::most_frames(self, max_tokens)
    }

    fn frame_policy(&self, fps: Option<f64>, most: Option<usize>, max_tokens: usize) -> Policy {
        Outline::frame_policy(self, fps, most, max_tokens)
    }
}

/// Whether a path is read here and not as a picture.
pub(crate) fn is_video(path: &Path) -> bool {
    video::is_video(path) || path.is_dir()
}

/// What to do about an error of a run over that many frames of videos.
pub(crate) fn advice(error: &Error, frames: usize) -> Option<String> {
    match error {
        Error::Context { .. } if frames > 1 => {
            Some(format!("{frames} frames were taken; take fewer with --max-frames"))
        }
        _ => None,
    }
}
