//! Files and bytes to clips.
//!
//! Invariants
//! - The header is read and checked against [`Limits`] before pixels are allocated; a decoder that
//!   panics is a corrupt picture, not a crash.
//! - Of an animated picture the first frame is taken. How each format is read: [`read`].
//! - Pictures are turned upright by their EXIF tag here, where a file is loaded; raw pixels and
//!   `DynamicImage`s are taken as they are (as the reference does).
//!
//! Not here: video ([`Clip::from_frames`] takes frames of any source).

use std::any::Any;
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, ErrorKind, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::{ImageFormat, ImageReader};
use secateur_core::clip::Clip;
use secateur_core::error::InputError;

use super::limits::Limits;
use super::sink::Source;
use super::{colour, read};

/// The formats that are read.
pub const FORMATS: &[(&str, ImageFormat)] = &[
    ("png", ImageFormat::Png),
    ("jpeg", ImageFormat::Jpeg),
    ("webp", ImageFormat::WebP),
    ("bmp", ImageFormat::Bmp),
    ("gif", ImageFormat::Gif),
    ("tiff", ImageFormat::Tiff),
    ("ico", ImageFormat::Ico),
];

/// What a picture's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Width once upright, pixels.
    pub width: u32,
    /// Height once upright, pixels.
    pub height: u32,
    /// EXIF orientation, 1 to 8; 1 where there is none.
    pub orientation: u8,
    /// Name of the format, one of [`FORMATS`].
    pub format: &'static str,
    /// Most bytes that decoding holds at a time, the picture included.
    pub peak_bytes: u64,
}

/// Loads a picture from a file.
///
/// # Errors
/// [`InputError::NotFound`], [`InputError::Io`], [`InputError::UnsupportedFormat`],
/// [`InputError::Corrupt`], [`InputError::TooLarge`], [`InputError::Empty`].
pub fn load(path: &Path, limits: &Limits) -> Result<Clip, InputError> {
    let label = path.display().to_string();
    let file = open(path, &label, limits)?;
    guarded(&label, || read_clip(&label, file, limits))
}

/// Decodes a picture from bytes; `label` names it in errors.
///
/// # Errors
/// As [`load`].
pub fn decode(label: &str, bytes: &[u8], limits: &Limits) -> Result<Clip, InputError> {
    limits.check_file(label, bytes.len() as u64)?;
    guarded(label, || read_clip(label, Cursor::new(bytes), limits))
}

/// Size, orientation and format of a file from its header, no pixel decoded.
///
/// # Errors
/// As [`load`], as far as the header tells.
pub fn probe(path: &Path, limits: &Limits) -> Result<Header, InputError> {
    let label = path.display().to_string();
    let file = open(path, &label, limits)?;
    guarded(&label, || header(&label, file, limits))
}

/// As [`probe`], from bytes.
///
/// # Errors
/// As [`probe`].
pub fn probe_bytes(label: &str, bytes: &[u8], limits: &Limits) -> Result<Header, InputError> {
    limits.check_file(label, bytes.len() as u64)?;
    guarded(label, || header(label, Cursor::new(bytes), limits))
}

/// A picture that a program has decoded already, in whatever pixel format.
///
/// # Errors
/// [`InputError::Empty`], [`InputError::UnsupportedFormat`].
pub fn from_dynamic(label: &str, picture: &image::DynamicImage) -> Result<Clip, InputError> {
    let rgb = colour::to_rgb(picture.color(), picture.as_bytes())
        .ok_or_else(|| unsupported(label, &format!("pixel format {:?}", picture.color())))?;
    Clip::picture(label, picture.width(), picture.height(), rgb)
}

fn open(path: &Path, label: &str, limits: &Limits) -> Result<BufReader<File>, InputError> {
    let meta = std::fs::metadata(path).map_err(|e| io_error(label, &e))?;
    if !meta.is_file() {
        return Err(InputError::Io {
            path: label.to_owned(),
            reason: if meta.is_dir() { "is a folder" } else { "is not a regular file" }.into(),
        });
    }
    limits.check_file(label, meta.len())?;
    Ok(BufReader::new(File::open(path).map_err(|e| io_error(label, &e))?))
}

pub(super) fn io_error(label: &str, error: &std::io::Error) -> InputError {
    match error.kind() {
        ErrorKind::NotFound => InputError::NotFound { path: label.to_owned() },
        ErrorKind::UnexpectedEof => {
            InputError::Corrupt { path: label.to_owned(), reason: "the file ends too early".into() }
        }
        _ => InputError::Io { path: label.to_owned(), reason: error.to_string() },
    }
}

pub(super) fn unsupported(label: &str, what: &str) -> InputError {
    let names: Vec<&str> = FORMATS.iter().map(|(name, _)| *name).collect();
    let mut known = names.join(", ");
    if !what.is_empty() {
        known = format!("{known}; this one has {what}");
    }
    InputError::UnsupportedFormat { path: label.to_owned(), known }
}

/// Runs a decoder; a panic inside it means a file that it was not made for.
fn guarded<T>(label: &str, run: impl FnOnce() -> Result<T, InputError>) -> Result<T, InputError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|payload| {
        Err(InputError::Corrupt {
            path: label.to_owned(),
            reason: format!("the decoder failed: {}", panic_text(payload.as_ref())),
        })
    })
}

pub(super) fn panic_text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no reason given")
}

/// A source whose header has passed the limits.
fn opened<'a, R: BufRead + Seek + 'a>(
    label: &'a str,
    reader: R,
    limits: &Limits,
) -> Result<(Box<dyn Source + 'a>, &'static str), InputError> {
    let failed = |e: std::io::Error| io_error(label, &e);
    let guessed = ImageReader::new(reader).with_guessed_format().map_err(failed)?;
    let found = guessed.format();
    let (name, format) = FORMATS
        .iter()
        .find(|(_, format)| Some(*format) == found)
        .ok_or_else(|| unsupported(label, ""))?;
    let mut reader = guessed.into_inner();
    reader.rewind().map_err(failed)?;
    Ok((read::open(label, *format, reader, limits)?, name))
}

fn header<'a, R: BufRead + Seek + 'a>(
    label: &'a str,
    reader: R,
    limits: &Limits,
) -> Result<Header, InputError> {
    let (source, format) = opened(label, reader, limits)?;
    let facts = source.facts();
    let (width, height) = facts.upright();
    Ok(Header {
        width: width as u32,
        height: height as u32,
        orientation: facts.orientation.to_exif(),
        format,
        peak_bytes: facts.peak_bytes,
    })
}

fn read_clip<'a, R: BufRead + Seek + 'a>(
    label: &'a str,
    reader: R,
    limits: &Limits,
) -> Result<Clip, InputError> {
    let upright = opened(label, reader, limits)?.0.read()?;
    Clip::picture(label, upright.width as u32, upright.height as u32, upright.rgb)
}
