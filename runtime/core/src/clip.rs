//! Pictures and frames as they enter, and the geometry that leads back to their pixels.
//!
//! Invariants
//! - A [`Clip`] has at least one frame, and every frame at least one pixel.
//! - A [`Grid`] maps a cell of a token grid to a rectangle of the *source* picture through every
//!   resize, crop, pad and tile: heads and `inspect` need nothing else.
//! - The mapping is an affine map per axis, so it can be inverted exactly.
//!
//! Not here: file formats and limits (`encoders`), pixels as a model wants them ([`crate::model`]).

use std::sync::Arc;

use crate::error::InputError;

/// One picture, RGB, 8 bits a channel.
#[derive(Clone)]
pub struct Frame {
    /// Width, pixels.
    pub width: u32,
    /// Height, pixels.
    pub height: u32,
    /// `[height, width, 3]`, row-major.
    pub rgb: Arc<[u8]>,
    /// Capture or presentation time, seconds.
    pub time_s: Option<f64>,
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frame {}x{}", self.width, self.height)
    }
}

/// A picture, or the frames of a video in order.
#[derive(Clone, Debug)]
pub struct Clip {
    label: String,
    frames: Vec<Frame>,
    video: Option<VideoInfo>,
}

/// What is known of the video that frames were taken from.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct VideoInfo {
    /// Frames a second of the frames given, after sampling.
    pub fps: Option<f64>,
    /// Length of the source, seconds.
    pub duration_s: Option<f64>,
}

impl Clip {
    /// A picture from raw RGB bytes `[height, width, 3]`. `label` names it in errors.
    ///
    /// # Errors
    /// [`InputError::Empty`] for a side of zero, [`InputError::Corrupt`] if the length is wrong.
    pub fn picture(
        label: impl Into<String>,
        width: u32,
        height: u32,
        rgb: impl Into<Arc<[u8]>>,
    ) -> Result<Self, InputError> {
        let frame = Frame { width, height, rgb: rgb.into(), time_s: None };
        Self::checked(label.into(), vec![frame], None)
    }

    /// A video from frames in order.
    ///
    /// # Errors
    /// As [`Clip::picture`], and if there is no frame or frames differ in size.
    pub fn from_frames(
        label: impl Into<String>,
        frames: Vec<Frame>,
        info: VideoInfo,
    ) -> Result<Self, InputError> {
        Self::checked(label.into(), frames, Some(info))
    }

    fn checked(
        label: String,
        frames: Vec<Frame>,
        video: Option<VideoInfo>,
    ) -> Result<Self, InputError> {
        let Some(first) = frames.first() else {
            return Err(InputError::Empty { path: label, width: 0, height: 0 });
        };
        let (width, height) = (first.width, first.height);
        for frame in &frames {
            if frame.width == 0 || frame.height == 0 {
                return Err(InputError::Empty {
                    path: label,
                    width: frame.width,
                    height: frame.height,
                });
            }
            if (frame.width, frame.height) != (width, height) {
                let reason = format!(
                    "frames differ in size: {width}x{height} and {}x{}",
                    frame.width, frame.height
                );
                return Err(InputError::Refused { path: label, reason });
            }
            let expected = frame.width as usize * frame.height as usize * 3;
            if frame.rgb.len() != expected {
                let reason = format!(
                    "{}x{} RGB needs {expected} bytes, {} were given",
                    frame.width,
                    frame.height,
                    frame.rgb.len()
                );
                return Err(InputError::Corrupt { path: label, reason });
            }
        }
        Ok(Self { label, frames, video })
    }

    /// Name for errors and records.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// At least one frame.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// Present if the clip is a video, even one of a single frame.
    pub fn video(&self) -> Option<VideoInfo> {
        self.video
    }

    /// Width of every frame, pixels.
    pub fn width(&self) -> u32 {
        self.frames[0].width
    }

    /// Height of every frame, pixels.
    pub fn height(&self) -> u32 {
        self.frames[0].height
    }
}

/// A rectangle in source pixels; it may reach beyond the picture where padding was added.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Rect {
    /// Left edge.
    pub x: f64,
    /// Upper edge.
    pub y: f64,
    /// Width.
    pub width: f64,
    /// Height.
    pub height: f64,
}

/// A lattice of cells over one crop, and where it lies in the source picture.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Grid {
    /// Index of the picture or video in the prompt.
    pub picture: u32,
    /// Index of the (first) frame it was cut from.
    pub frame: u32,
    /// Index of the tile among those of the frame.
    pub tile: u32,
    /// Cells down.
    pub rows: u32,
    /// Cells across.
    pub cols: u32,
    /// Upper left corner of cell (0, 0), source pixels.
    pub origin: [f64; 2],
    /// Width and height of a cell, source pixels.
    pub cell: [f64; 2],
    /// Width and height of the source picture, pixels.
    pub source: [u32; 2],
}

impl Grid {
    /// The rectangle of a cell.
    pub fn cell_rect(&self, row: u32, col: u32) -> Rect {
        Rect {
            x: self.origin[0] + f64::from(col) * self.cell[0],
            y: self.origin[1] + f64::from(row) * self.cell[1],
            width: self.cell[0],
            height: self.cell[1],
        }
    }

    /// The cell (row, column) that holds a point of the source picture.
    pub fn cell_at(&self, x: f64, y: f64) -> Option<(u32, u32)> {
        let col = ((x - self.origin[0]) / self.cell[0]).floor();
        let row = ((y - self.origin[1]) / self.cell[1]).floor();
        let inside =
            col >= 0.0 && row >= 0.0 && col < f64::from(self.cols) && row < f64::from(self.rows);
        inside.then_some((row as u32, col as u32))
    }

    /// Share of a cell's area that is picture and not padding, in [0, 1].
    pub fn coverage(&self, row: u32, col: u32) -> f32 {
        let rect = self.cell_rect(row, col);
        let overlap = |start: f64, length: f64, size: u32| {
            ((start + length).min(f64::from(size)) - start.max(0.0)).max(0.0) / length
        };
        let share = overlap(rect.x, rect.width, self.source[0])
            * overlap(rect.y, rect.height, self.source[1]);
        share.clamp(0.0, 1.0) as f32
    }
}
