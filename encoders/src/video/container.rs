//! What a container says of its video: where it is, how many frames are shown, when, which way up.
//!
//! Invariants
//! - Only packets that are shown count: not those before the start of an edit list, not empty
//!   ones (dropped frames).
//! - Times are whole units of the stream; seconds are `units * numerator / denominator`, in that
//!   order, so that 17408 units of 1/10240 s are 1.7 s and not the number beside it.
//! - No other file is opened and no network: names are files whatever they look like, and formats
//!   that only point to others (playlists) are none.
//!
//! Method: number, rate and length of the content as torchcodec finds them, which is what
//! transformers samples by: frames over the time from the first to the end of the last.

use std::ffi::OsString;
use std::path::Path;
use std::sync::OnceLock;

use ffmpeg_next::codec::packet::side_data;
use ffmpeg_next::codec::{Parameters, packet};
use ffmpeg_next::format::context::Input;
use ffmpeg_next::format::stream::Disposition;
use ffmpeg_next::util::log;
use ffmpeg_next::{Dictionary, Error, Packet, Rational, format, media};
use secateur_core::error::InputError;

use super::{ffi, whole};

/// Quarter turns clockwise that make a frame upright.
pub(super) type Turns = u8;

/// Demuxers of [`super::EXTENSIONS`], by their names in FFmpeg.
const FORMATS: &str = "mov,mp4,3gp,3g2,matroska,webm,avi,mpeg,mpegvideo,mpegts,flv,live_flv,asf,\
                       m4v,h264,hevc";
/// Frames a second where no file says anything.
const UNKNOWN_FPS: f64 = 24.0;

/// What the container says of its video stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    /// Its number in the container.
    pub(super) index: usize,
    /// Seconds a unit of its times.
    pub(super) unit: Rational,
    /// Number of frames that are shown.
    pub(super) frames: usize,
    /// Seconds from the first frame to the end of the last.
    pub(super) length_s: f64,
    /// Frames a second, mean over the stream.
    pub(super) fps: f64,
    pub(super) turns: Turns,
}

pub(super) fn corrupt(label: &str, reason: impl std::fmt::Display) -> InputError {
    InputError::Corrupt { path: label.to_owned(), reason: reason.to_string() }
}

pub(super) fn unreadable(label: &str, error: impl std::fmt::Display) -> InputError {
    let known = super::EXTENSIONS.join(", ");
    corrupt(label, format!("expected a whole video ({known}), FFmpeg finds: {error}"))
}

/// A number of units as seconds.
pub(super) fn seconds(units: i64, unit: Rational) -> f64 {
    units as f64 * f64::from(unit.numerator()) / f64::from(unit.denominator())
}

fn init() -> Result<(), String> {
    static READY: OnceLock<Result<(), String>> = OnceLock::new();
    READY
        .get_or_init(|| {
            ffmpeg_next::init().map_err(|e| e.to_string())?;
            // What concerns us comes as an error; the rest would stand between our own lines.
            log::set_level(log::Level::Quiet);
            Ok(())
        })
        .clone()
}

/// Opens a file for reading packets.
///
/// # Errors
/// No file, an empty one, none that FFmpeg knows.
pub(super) fn open(path: &Path, label: &str) -> Result<Input, InputError> {
    let io = |reason: String| InputError::Io { path: label.to_owned(), reason };
    init().map_err(|e| io(format!("FFmpeg: {e}")))?;
    let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => InputError::NotFound { path: label.to_owned() },
        _ => io(e.to_string()),
    })?;
    if !meta.is_file() {
        return Err(io("is not a regular file".to_owned()));
    }
    if meta.len() == 0 {
        return Err(InputError::Empty { path: label.to_owned(), width: 0, height: 0 });
    }
    let mut options = Dictionary::new();
    options.set("protocol_whitelist", "file");
    options.set("format_whitelist", FORMATS);
    // A name such as `http:x.mp4` is a file's, too.
    let mut url = OsString::from("file:");
    url.push(path);
    format::input_with_dictionary(Path::new(&url), options).map_err(|e| unreadable(label, e))
}

/// The video stream and the parameters of its decoder. Reads every packet, decodes none.
///
/// # Errors
/// A file without a video, a broken one, one that was cut.
pub(super) fn scan(path: &Path, label: &str) -> Result<(Stream, Parameters), InputError> {
    let mut input = open(path, label)?;
    let found = input.streams().best(media::Type::Video).ok_or_else(|| {
        corrupt(label, "expected a video stream, the file has none (sound only, or damaged)")
    })?;
    if found.disposition().contains(Disposition::ATTACHED_PIC) {
        let reason = "expected a video stream, the file holds sound and a cover picture only";
        return Err(corrupt(label, reason));
    }
    let (index, unit) = (found.index(), found.time_base());
    let rates = [found.avg_frame_rate(), found.rate()];
    let turns = found
        .side_data()
        .find(|d| d.kind() == side_data::Type::DisplayMatrix)
        .map_or(0, |d| turns(d.data()));
    let parameters = found.parameters();
    // Zero where the container does not say.
    let promised = usize::try_from(found.frames()).unwrap_or(0);
    let is_stream = input.format().name().contains("mpegts");
    let (mut packets, mut frames, mut is_cut) = (0usize, 0usize, false);
    let (mut first, mut end) = (i64::MAX, i64::MIN);
    loop {
        let mut packet = Packet::empty();
        match packet.read(&mut input) {
            Ok(()) => {}
            Err(Error::Eof) => break,
            Err(error) => return Err(unreadable(label, format!("frame {packets}: {error}"))),
        }
        if packet.stream() != index || packet.size() == 0 {
            continue;
        }
        packets += 1;
        is_cut = !is_stream && packet.flags().contains(packet::Flags::CORRUPT);
        if ffi::is_hidden(&packet) {
            continue;
        }
        frames += 1;
        if let Some(time) = packet.pts().or(packet.dts()) {
            first = first.min(time);
            end = end.max(time.saturating_add(packet.duration().max(0)));
        }
    }
    check_whole(path, label, is_cut, promised, packets)?;
    // In this order, rounding included: a whole number of frames may hang on the last bit.
    let length_s = if end > first { seconds(end, unit) - seconds(first, unit) } else { 0.0 };
    let sane = |f: &f64| f.is_finite() && *f > 0.0 && *f < 1e4;
    let measured = frames as f64 / length_s;
    let said = rates.into_iter().map(|r| seconds(1, r));
    let fps = [measured].into_iter().chain(said).find(sane).unwrap_or(UNKNOWN_FPS);
    let length_s = if length_s > 0.0 { length_s } else { frames as f64 / fps };
    Ok((Stream { index, unit, frames, length_s, fps, turns }, parameters))
}

/// Refuses a file whose end is missing.
fn check_whole(
    path: &Path,
    label: &str,
    is_cut: bool,
    promised: usize,
    packets: usize,
) -> Result<(), InputError> {
    let short = std::fs::File::open(path)
        .and_then(|mut file| whole::missing(&mut file))
        .map_err(|e| InputError::Io { path: label.to_owned(), reason: e.to_string() })?;
    let reason = match short {
        Some(_) if packets < promised => {
            format!("expected {promised} frames, the file ends after {packets}")
        }
        Some(short) => {
            format!("expected {} bytes, the file ends after {}", short.expected, short.found)
        }
        None if is_cut => format!("expected a whole frame, the file ends in that of {packets}"),
        None => return Ok(()),
    };
    Err(corrupt(label, reason))
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

    #[test]
    fn seconds_are_a_quotient_of_whole_numbers() {
        assert_eq!(seconds(17_408, Rational::new(1, 10_240)), 1.7);
        assert_eq!(
            format!("{:.1}", (seconds(12_288, Rational::new(1, 10_240)) + 1.7) / 2.0),
            "1.4"
        );
    }
}
