//! Video files through the system's FFmpeg (feature `video`).
//!
//! Invariants
//! - Decoding is sequential and keeps only the frames that are wanted; it stops after the last.
//! - Times are presentation times from the start of the stream, never decoding times.
//! - Rotation that the container asks for is applied; frames are RGB8 of the coded size, so that
//!   resizing is the processor's alone.
//! - A frame that cannot be decoded makes the file corrupt: nothing is silently left out.
//!
//! Method and traps: models-b 10.2 (`video-rs` 0.12: its `decode()` gives decoding times, its
//! frame count is 0 for WebM, its rows are padded, it knows no rotation).

use std::path::Path;
use std::sync::OnceLock;

use secateur_core::clip::{Clip, Frame, VideoInfo};
use secateur_core::error::InputError;
use video_rs::ffmpeg::{Rational, codec, format, media};
use video_rs::{Decoder, Error};

use super::{Sampling, SceneCuts, VideoOptions, check_bytes};
use crate::image::{Bitmap, Limits};
use crate::processors::sampling;

/// Quarter turns clockwise that make a frame upright.
type Turns = u8;

/// What the container says of its video stream.
#[derive(Clone, Copy, Debug)]
struct Stream {
    /// Frames a second, mean over the stream.
    fps: f64,
    /// Number of packets: of frames, in every container of the field.
    frames: usize,
    turns: Turns,
    /// First presentation time, seconds.
    start_s: f64,
}

fn init() -> Result<(), String> {
    static READY: OnceLock<Result<(), String>> = OnceLock::new();
    READY.get_or_init(|| video_rs::init().map_err(|e| e.to_string())).clone()
}

fn corrupt(label: &str, reason: impl std::fmt::Display) -> InputError {
    InputError::Corrupt { path: label.to_owned(), reason: reason.to_string() }
}

fn unreadable(label: &str, error: impl std::fmt::Display) -> InputError {
    let known = super::EXTENSIONS.join(", ");
    corrupt(label, format!("expected a whole video ({known}), FFmpeg finds: {error}"))
}

/// Checks that there is a file, so that the error is ours and not FFmpeg's.
fn check_file(path: &Path, label: &str) -> Result<(), InputError> {
    let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => InputError::NotFound { path: label.to_owned() },
        _ => InputError::Io { path: label.to_owned(), reason: e.to_string() },
    })?;
    if !meta.is_file() {
        let reason = "is not a regular file".to_owned();
        return Err(InputError::Io { path: label.to_owned(), reason });
    }
    if meta.len() == 0 {
        return Err(InputError::Empty { path: label.to_owned(), width: 0, height: 0 });
    }
    Ok(())
}

/// A fraction as a number; infinite or NaN where its lower part is 0.
fn rate(r: Rational) -> f64 {
    f64::from(r.numerator()) / f64::from(r.denominator())
}

fn stream(path: &Path, label: &str) -> Result<Stream, InputError> {
    let mut input = format::input(path).map_err(|e| unreadable(label, e))?;
    let found = input
        .streams()
        .best(media::Type::Video)
        .ok_or_else(|| corrupt(label, "expected a video stream, the file has none"))?;
    let index = found.index();
    let sane = |f: f64| f.is_finite() && f > 0.0 && f < 1e4;
    let rates = [rate(found.avg_frame_rate()), rate(found.rate())];
    let turns = found
        .side_data()
        .find(|d| d.kind() == codec::packet::side_data::Type::DisplayMatrix)
        .map_or(0, |d| turns(d.data()));
    // FFmpeg's "unknown" is the smallest number.
    let start = Some(found.start_time()).filter(|t| *t != i64::MIN).unwrap_or(0);
    let start_s = start as f64 * rate(found.time_base());
    // Zero where the container does not say.
    let promised = usize::try_from(found.frames()).unwrap_or(0);
    let unit_s = rate(found.time_base());
    // A container's length is its longest stream's: of a single one it says where that ends.
    let length_s = Some(input.duration()).filter(|d| *d > 0 && input.nb_streams() == 1);
    let (mut frames, mut first, mut last) = (0usize, f64::INFINITY, f64::NEG_INFINITY);
    for (_, packet) in input.packets().filter(|(stream, _)| stream.index() == index) {
        frames += 1;
        if let Some(time) = packet.pts().map(|t| t as f64 * unit_s) {
            (first, last) = (first.min(time), last.max(time));
        }
    }
    let short = |expected: String, found: String| {
        corrupt(label, format!("expected {expected}, the file ends after {found}"))
    };
    if frames < promised {
        return Err(short(format!("{promised} frames"), frames.to_string()));
    }
    let spacing = (last - first) / frames.saturating_sub(1) as f64;
    if let Some(length_s) = length_s.map(|us| us as f64 / 1e6)
        && spacing.is_finite()
        && last - first + 2.0 * spacing < 0.9 * length_s
    {
        return Err(short(format!("{length_s:.1} s"), format!("{:.1} s", last - first)));
    }
    // Matroska has no mean rate and FFmpeg guesses one; frames that were dropped make it wrong.
    let fps = rates.into_iter().find(|f| sane(*f)).unwrap_or(24.0);
    let measured = 1.0 / spacing;
    let fps = if sane(measured) && (fps / measured - 1.0).abs() > 0.1 { measured } else { fps };
    Ok(Stream { fps, frames, turns, start_s: if start_s.is_finite() { start_s } else { 0.0 } })
}

/// Clockwise quarter turns of a display matrix (nine native i32, 16.16).
fn turns(matrix: &[u8]) -> Turns {
    let entry = |i: usize| {
        let bytes = matrix.get(4 * i..4 * i + 4)?;
        Some(f64::from(i32::from_ne_bytes(bytes.try_into().ok()?)))
    };
    let (Some(a), Some(b)) = (entry(0), entry(1)) else { return 0 };
    let quarters = (b.atan2(a) / std::f64::consts::FRAC_PI_2).round() as i64;
    quarters.rem_euclid(4) as Turns
}

/// All frames of a file, one at a time.
pub struct VideoFrames {
    label: String,
    decoder: Decoder,
    stream: Stream,
    /// Seconds a unit of the decoder's times, which are not the container's.
    unit_s: f64,
    limits: Limits,
    next: usize,
    last_s: f64,
    done: bool,
}

impl std::fmt::Debug for VideoFrames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VideoFrames").field("label", &self.label).field("next", &self.next).finish()
    }
}

/// Opens a file for reading frame by frame, with the memory of one frame.
///
/// # Errors
/// As [`super::load`].
pub fn frames(path: &Path, limits: &Limits) -> Result<VideoFrames, InputError> {
    let label = path.display().to_string();
    init().map_err(|e| InputError::Io { path: label.clone(), reason: format!("FFmpeg: {e}") })?;
    check_file(path, &label)?;
    let stream = stream(path, &label)?;
    let decoder = Decoder::new(path).map_err(|e| unreadable(&label, e))?;
    let (width, height) = decoder.size();
    limits.check_size(&label, width, height, u64::from(width) * u64::from(height) * 3)?;
    let unit_s = rate(decoder.time_base());
    Ok(VideoFrames {
        label,
        decoder,
        stream,
        unit_s,
        limits: *limits,
        next: 0,
        last_s: 0.0,
        done: false,
    })
}

impl VideoFrames {
    /// Frames a second of the source, mean over the stream.
    pub fn fps(&self) -> f64 {
        self.stream.fps
    }

    /// Number of frames that the container holds.
    pub fn count_hint(&self) -> usize {
        self.stream.frames
    }

    /// The error of a frame that cannot be decoded.
    fn broken(&self, error: &Error) -> InputError {
        let expected = self.stream.frames;
        let reason = format!("expected {expected} frames, frame {} fails: {error}", self.next);
        corrupt(&self.label, reason)
    }

    /// Decodes the next frame; `None` at the end. `wanted` is asked before pixels are copied.
    fn step(
        &mut self,
        wanted: impl FnOnce(usize) -> bool,
    ) -> Option<Result<Option<Frame>, InputError>> {
        if self.done {
            return None;
        }
        let raw = match self.decoder.decode_raw() {
            Ok(raw) => raw,
            Err(Error::DecodeExhausted | Error::ReadExhausted) => {
                self.done = true;
                return None;
            }
            Err(error) => {
                self.done = true;
                return Some(Err(self.broken(&error)));
            }
        };
        let index = self.next;
        self.next += 1;
        let time_s = match raw.timestamp() {
            Some(t) if self.unit_s.is_finite() && self.unit_s > 0.0 => {
                t as f64 * self.unit_s - self.stream.start_s
            }
            _ if index == 0 => 0.0,
            _ => self.last_s + 1.0 / self.stream.fps,
        };
        self.last_s = time_s;
        if !wanted(index) {
            return Some(Ok(None));
        }
        let (width, height) = (raw.width(), raw.height());
        let native = u64::from(width) * u64::from(height) * 3;
        if let Err(error) = self.limits.check_size(&self.label, width, height, native) {
            self.done = true;
            return Some(Err(error));
        }
        let (row, stride) = (width as usize * 3, raw.stride(0));
        let data = raw.data(0);
        if stride < row || data.len() < stride * (height as usize - 1) + row {
            self.done = true;
            return Some(Err(corrupt(&self.label, format!("frame {index} has no pixels"))));
        }
        let picture = Bitmap::build(width as usize, height as usize, |out| {
            for (line, source) in out.chunks_exact_mut(row).zip(data.chunks(stride)) {
                line.copy_from_slice(&source[..row]);
            }
        });
        let upright = crate::image::turned(picture, self.stream.turns);
        Some(Ok(Some(Frame {
            width: upright.width as u32,
            height: upright.height as u32,
            rgb: upright.rgb,
            time_s: Some(time_s),
        })))
    }
}

impl Iterator for VideoFrames {
    type Item = Result<Frame, InputError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.step(|_| true)? {
            Ok(Some(frame)) => Some(Ok(frame)),
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

/// See [`super::load`].
pub(super) fn load(path: &Path, options: &VideoOptions) -> Result<Clip, InputError> {
    let mut source = frames(path, &options.limits)?;
    let (label, stream) = (source.label.clone(), source.stream);
    let kept: Vec<Frame> = match options.sampling {
        Sampling::Scenes { max_frames, threshold } => {
            let mut cuts = SceneCuts::new(max_frames, threshold);
            for frame in source.by_ref() {
                let frame = frame?;
                check_bytes(&label, &frame, cuts.held() + 1, options)?;
                cuts.push(&frame);
            }
            cuts.finish().into_iter().map(|(_, frame)| frame).collect()
        }
        Sampling::Policy(policy) => {
            let wanted = sampling::indices(policy, stream.frames, stream.fps);
            let mut kept: Vec<Frame> = Vec::new();
            let last = wanted.last().copied();
            while last.is_some_and(|last| source.next <= last) {
                let Some(step) = source.step(|i| wanted.binary_search(&i).is_ok()) else { break };
                let Some(frame) = step? else { continue };
                check_bytes(&label, &frame, wanted.len(), options)?;
                // A policy may name a frame twice.
                let index = source.next - 1;
                let times = wanted.iter().filter(|w| **w == index).count();
                kept.extend(std::iter::repeat_n(frame, times));
            }
            kept
        }
    };
    if kept.is_empty() {
        return Err(corrupt(&label, "expected at least one frame, none could be decoded"));
    }
    let total = stream.frames.max(source.next) as f64;
    let info = VideoInfo {
        fps: Some(kept.len() as f64 / total * stream.fps),
        duration_s: Some(total / stream.fps),
    };
    Clip::from_frames(label, kept, info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quarter_turns_are_read_off_the_matrix() {
        let matrix =
            |a: i32, b: i32| -> Vec<u8> { [a, b].iter().flat_map(|v| v.to_ne_bytes()).collect() };
        let one = 65_536;
        for (a, b, want) in [(one, 0, 0), (0, one, 1), (-one, 0, 2), (0, -one, 3)] {
            assert_eq!(turns(&matrix(a, b)), want);
        }
        assert_eq!(turns(&[1, 2]), 0);
    }
}
