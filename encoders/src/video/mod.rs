//! Frames of a video: from a file, from pictures in a folder, or live from a camera.
//!
//! Invariants
//! - Frames carry their presentation time in seconds from the start of the source; of a variable
//!   frame rate the real times are kept.
//! - What is kept in memory is bounded: a file's frames by [`VideoOptions::max_bytes`], a stream's
//!   by its capacity.
//! - Files are decoded by the system's FFmpeg (feature `video`); everything else here needs none.
//!
//! Not here: how many tokens a frame costs ([`crate::processors`]).

#[cfg(feature = "video")]
mod colour;
#[cfg(feature = "video")]
mod container;
#[cfg(feature = "video")]
mod ffi;
#[cfg(feature = "video")]
mod file;
mod live;
mod scene;
#[cfg(feature = "video")]
mod whole;

use std::path::{Path, PathBuf};

use secateur_core::clip::{Clip, Frame, VideoInfo};
use secateur_core::error::InputError;

use crate::image::Limits;
use crate::processors::sampling::Policy;

#[cfg(feature = "video")]
pub use file::{VideoFrames, frames};
pub use live::LiveFrames;
pub use scene::SceneCuts;

/// Endings of video files, lower case.
pub const EXTENSIONS: &[&str] =
    &["mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "flv", "wmv", "3gp"];

/// Frames a second where nothing else is said: transformers' own default.
pub const FPS: f64 = 2.0;

/// Whether a file's name says that it is a video.
pub fn is_video(path: &Path) -> bool {
    let ending = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    ending.is_some_and(|e| EXTENSIONS.contains(&e.as_str()))
}

/// Which frames of a file are taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// By a policy of a reference processor, or evenly.
    Policy(Policy),
    /// The first frame, then those that differ most from the frame before them.
    Scenes {
        /// Most frames.
        max_frames: usize,
        /// Smallest mean difference of grey levels that counts as a change, 0 to 255.
        threshold: f32,
    },
}

/// How a file is read.
#[derive(Clone, Copy, Debug)]
pub struct VideoOptions {
    /// Which frames.
    pub sampling: Sampling,
    /// Limits on a frame's size; the file itself may have any length.
    pub limits: Limits,
    /// Most bytes of all frames that are kept.
    pub max_bytes: u64,
}

impl Default for VideoOptions {
    fn default() -> Self {
        Self {
            sampling: Sampling::Policy(Policy::Rate { fps: FPS, max_frames: 64 }),
            limits: Limits::default(),
            max_bytes: 1 << 30,
        }
    }
}

/// Loads frames of a video file.
///
/// # Errors
/// As [`crate::image::load`]; [`InputError::Refused`] without the feature `video`.
pub fn load(path: &Path, options: &VideoOptions) -> Result<Clip, InputError> {
    #[cfg(feature = "video")]
    return file::load(path, options);
    #[cfg(not(feature = "video"))]
    {
        let _ = options;
        Err(InputError::Refused {
            path: path.display().to_string(),
            reason: "this program was built without the feature `video`; give the frames as \
                     pictures"
                .into(),
        })
    }
}

/// The frames of a video that stand as pictures, in the order given, `fps` a second.
///
/// # Errors
/// As [`crate::image::load`]; [`InputError::Refused`] if the pictures differ in size or need more
/// than [`VideoOptions::max_bytes`].
pub fn from_pictures(
    label: &str,
    pictures: &[PathBuf],
    fps: f64,
    options: &VideoOptions,
) -> Result<Clip, InputError> {
    if !(fps.is_finite() && fps > 0.0) {
        return Err(InputError::Refused {
            path: label.to_owned(),
            reason: format!("{fps} frames a second; expected a positive number"),
        });
    }
    let mut frames: Vec<Frame> = Vec::new();
    for (i, picture) in pictures.iter().enumerate() {
        let clip = crate::image::load(picture, &options.limits)?;
        let frame = Frame { time_s: Some(i as f64 / fps), ..clip.frames()[0].clone() };
        check_bytes(label, &frame, frames.len() + 1, options)?;
        frames.push(frame);
    }
    let info = VideoInfo { fps: Some(fps), duration_s: Some(pictures.len() as f64 / fps) };
    Clip::from_frames(label, frames, info)
}

/// Refuses to keep more frames than memory is meant for.
fn check_bytes(
    label: &str,
    frame: &Frame,
    count: usize,
    options: &VideoOptions,
) -> Result<(), InputError> {
    let total = (frame.rgb.len() as u64).saturating_mul(count as u64);
    if total <= options.max_bytes {
        return Ok(());
    }
    Err(InputError::TooLarge {
        path: label.to_owned(),
        found: format!("{count} frames of {}x{} pixels", frame.width, frame.height),
        limit: format!("{} bytes; take fewer frames (max_frames)", options.max_bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn videos_are_known_by_their_ending() {
        assert!(is_video(Path::new("a/B.MP4")) && is_video(Path::new("x.webm")));
        assert!(!is_video(Path::new("x.gif")) && !is_video(Path::new("mp4")));
    }

    #[test]
    fn a_rate_that_is_none_is_refused() {
        let error = from_pictures("frames", &[], 0.0, &VideoOptions::default()).unwrap_err();
        assert!(error.to_string().contains("positive"), "{error}");
    }
}
