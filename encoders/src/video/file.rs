//! Video files through the system's FFmpeg (feature `video`).
//!
//! Invariants
//! - Decoding is sequential and keeps only the frames that are wanted; it stops after the last.
//! - Times are presentation times from the first frame that is shown, never decoding times.
//! - Rotation that the container asks for is applied; frames are RGB8 of the coded size, so that
//!   resizing is the processor's alone.
//! - A frame that cannot be decoded makes the file corrupt: nothing is silently left out. Only
//!   what stands before the first picture that can be decoded (a recording that starts between
//!   two key frames) is passed over, and then counts nowhere.

use std::path::Path;

use ffmpeg_next::codec::context::Context;
use ffmpeg_next::codec::decoder;
use ffmpeg_next::error::EAGAIN;
use ffmpeg_next::format::context::Input;
use ffmpeg_next::{Error, Packet, frame};
use secateur_core::clip::{Clip, Frame, VideoInfo};
use secateur_core::error::InputError;

use super::colour::ToRgb;
use super::container::{self, Stream, corrupt, seconds, unreadable};
use super::{Sampling, SceneCuts, VideoOptions, check_bytes};
use crate::image::{Bitmap, Limits};
use crate::processors::sampling::{self, Policy};

/// All frames of a file, one at a time.
pub struct VideoFrames {
    label: String,
    input: Input,
    decoder: decoder::Video,
    to_rgb: ToRgb,
    stream: Stream,
    limits: Limits,
    next: usize,
    /// Units of the first frame's time.
    start: Option<i64>,
    last_s: f64,
    /// Whether the decoder was told that nothing follows.
    is_drained: bool,
    is_done: bool,
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
    let (stream, parameters) = container::scan(path, &label)?;
    let input = container::open(path, &label)?;
    let mut context = Context::from_parameters(parameters).map_err(|e| unreadable(&label, e))?;
    context.set_time_base(stream.unit);
    let mut decoder = context.decoder();
    decoder.set_packet_time_base(stream.unit);
    let decoder = decoder.video().map_err(|e| unreadable(&label, e))?;
    let (width, height) = (decoder.width(), decoder.height());
    if width > 0 && height > 0 {
        limits.check_size(&label, width, height)?;
    }
    Ok(VideoFrames {
        label,
        input,
        decoder,
        to_rgb: ToRgb::default(),
        stream,
        limits: *limits,
        next: 0,
        start: None,
        last_s: 0.0,
        is_drained: false,
        is_done: false,
    })
}

impl VideoFrames {
    /// Frames a second of the source, mean over the stream.
    pub fn fps(&self) -> f64 {
        self.stream.fps
    }

    /// Number of frames that are shown, as the container tells it.
    pub fn count_hint(&self) -> usize {
        self.stream.frames
    }

    /// The error of a frame that cannot be decoded.
    fn broken(&self, error: Error) -> InputError {
        let expected = self.stream.frames;
        let reason = format!("expected {expected} frames, frame {} fails: {error}", self.next);
        corrupt(&self.label, reason)
    }

    /// The decoder's next frame; `None` at the end.
    fn decode(&mut self) -> Result<Option<frame::Video>, Error> {
        let mut raw = frame::Video::empty();
        loop {
            match self.decoder.receive_frame(&mut raw) {
                Ok(()) => return Ok(Some(raw)),
                Err(Error::Eof) => return Ok(None),
                Err(Error::Other { errno: EAGAIN }) => {}
                Err(error) => self.pass_over(error)?,
            }
            if let Err(error) = self.feed() {
                self.pass_over(error)?;
            }
        }
    }

    /// An error before the first frame is forgiven: its packet has no key frame to stand on.
    fn pass_over(&self, error: Error) -> Result<(), Error> {
        if self.next == 0 && !self.is_drained { Ok(()) } else { Err(error) }
    }

    /// Gives the decoder the stream's next packet.
    fn feed(&mut self) -> Result<(), Error> {
        loop {
            let mut packet = Packet::empty();
            match packet.read(&mut self.input) {
                // An empty packet is a frame that was dropped; the decoder would take it as the end.
                Ok(()) if packet.stream() != self.stream.index || packet.size() == 0 => {}
                Ok(()) => return self.decoder.send_packet(&packet),
                Err(_) if self.is_drained => return Err(Error::Eof),
                Err(Error::Eof) => {
                    self.is_drained = true;
                    return self.decoder.send_eof();
                }
                Err(error) => {
                    self.is_drained = true;
                    return Err(error);
                }
            }
        }
    }

    /// Seconds from the first frame.
    fn time_of(&mut self, raw: &frame::Video) -> f64 {
        let start = self.start;
        let time = raw.timestamp();
        self.start = start.or(time);
        match (time, self.start) {
            (Some(time), Some(start)) => seconds(time.saturating_sub(start), self.stream.unit),
            _ if self.next == 0 => 0.0,
            _ => self.last_s + 1.0 / self.stream.fps,
        }
    }

    /// Decodes the next frame; `None` at the end. `wanted` is asked before pixels are made.
    fn step(&mut self, wanted: impl FnOnce(usize) -> bool) -> Result<Option<Step>, InputError> {
        if self.is_done {
            return Ok(None);
        }
        let decoded = self.decode().map_err(|error| self.broken(error));
        self.is_done = !matches!(decoded, Ok(Some(_)));
        let Some(mut raw) = decoded? else { return Ok(None) };
        let time_s = self.time_of(&raw);
        self.last_s = time_s;
        let index = self.next;
        self.next += 1;
        if !wanted(index) {
            return Ok(Some(None));
        }
        let frame = self.upright(&mut raw, index, time_s);
        self.is_done = frame.is_err();
        Ok(Some(Some(frame?)))
    }

    fn upright(
        &mut self,
        raw: &mut frame::Video,
        index: usize,
        time_s: f64,
    ) -> Result<Frame, InputError> {
        let (width, height) = (raw.width(), raw.height());
        self.limits.check_size(&self.label, width, height)?;
        let rgb = self
            .to_rgb
            .convert(raw)
            .map_err(|e| corrupt(&self.label, format!("frame {index} has no colours: {e}")))?;
        let (row, stride) = (width as usize * 3, rgb.stride(0));
        let data = rgb.data(0);
        let is_short = stride < row || data.len() < stride * (height as usize - 1) + row;
        if (rgb.width(), rgb.height()) != (width, height) || is_short {
            return Err(corrupt(&self.label, format!("frame {index} has no pixels")));
        }
        let picture = Bitmap::build(width as usize, height as usize, |out| {
            for (line, source) in out.chunks_exact_mut(row).zip(data.chunks(stride)) {
                line.copy_from_slice(&source[..row]);
            }
        });
        let upright = crate::image::turned(picture, self.stream.turns);
        Ok(Frame {
            width: upright.width as u32,
            height: upright.height as u32,
            rgb: upright.rgb,
            time_s: Some(time_s),
        })
    }

    /// The frames that a policy takes of `total`; what was decoded is counted in `next`.
    fn taken(
        &mut self,
        policy: Policy,
        total: usize,
        options: &VideoOptions,
    ) -> Result<Vec<Frame>, InputError> {
        let fps = total as f64 / self.stream.length_s;
        let wanted = sampling::indices(policy, total, fps);
        let Some(last) = wanted.last().copied() else { return Ok(Vec::new()) };
        let mut kept: Vec<Frame> = Vec::new();
        while self.next <= last {
            let Some(step) = self.step(|i| wanted.binary_search(&i).is_ok())? else { break };
            let Some(frame) = step else { continue };
            check_bytes(&self.label, &frame, wanted.len(), options)?;
            // A policy may name a frame twice.
            let index = self.next - 1;
            let times = wanted.iter().filter(|w| **w == index).count();
            kept.extend(std::iter::repeat_n(frame, times));
        }
        Ok(kept)
    }
}

/// A frame, or none where it was not wanted.
type Step = Option<Frame>;

impl Iterator for VideoFrames {
    type Item = Result<Frame, InputError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step(|_| true).transpose().map(|step| {
            step.and_then(|frame| {
                frame.ok_or_else(|| corrupt(&self.label, "a frame that was asked for is missing"))
            })
        })
    }
}

/// See [`super::load`].
pub(super) fn load(path: &Path, options: &VideoOptions) -> Result<Clip, InputError> {
    let mut source = frames(path, &options.limits)?;
    let stream = source.stream;
    let mut total = stream.frames;
    let kept: Vec<Frame> = match options.sampling {
        Sampling::Scenes { max_frames, threshold } => {
            let mut cuts = SceneCuts::new(max_frames, threshold);
            while let Some(frame) = source.next() {
                let frame = frame?;
                check_bytes(&source.label, &frame, cuts.held() + 1, options)?;
                cuts.push(&frame);
            }
            total = source.next;
            cuts.finish().into_iter().map(|(_, frame)| frame).collect()
        }
        Sampling::Policy(policy) => {
            let mut kept = source.taken(policy, total, options)?;
            if source.is_done && source.next < total {
                // Some packets gave no frame: the decoder's count is the true one.
                total = source.next;
                source = frames(path, &options.limits)?;
                kept = source.taken(policy, total, options)?;
            }
            kept
        }
    };
    if kept.is_empty() {
        let reason = "expected at least one frame, none could be decoded";
        return Err(corrupt(&source.label, reason));
    }
    let fps = kept.len() as f64 / total as f64 * (total as f64 / stream.length_s);
    let info = VideoInfo { fps: Some(fps), duration_s: Some(stream.length_s) };
    Clip::from_frames(source.label, kept, info)
}
