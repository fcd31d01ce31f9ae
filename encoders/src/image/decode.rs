//! Files and bytes to clips.
//!
//! Invariants
//! - The header is read and checked against [`Limits`] before pixels are allocated; a decoder that
//!   panics is a corrupt picture, not a crash.
//! - Of an animated picture the first frame is taken.
//! - Pictures are turned upright by their EXIF tag here, where a file is loaded; raw pixels and
//!   `DynamicImage`s are taken as they are (as the reference does).
//!
//! Not here: video ([`Clip::from_frames`] takes frames of any source).

use std::any::Any;
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, ErrorKind, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::error::LimitErrorKind;
use image::metadata::Orientation;
use image::{ImageDecoder, ImageError, ImageFormat, ImageReader};
use secateur_core::clip::Clip;
use secateur_core::error::InputError;

use super::bitmap::Bitmap;
use super::limits::Limits;
use super::{colour, orient};

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
    guarded(&label, || Ok(open_decoder(&label, file, limits)?.header()))
}

/// As [`probe`], from bytes.
///
/// # Errors
/// As [`probe`].
pub fn probe_bytes(label: &str, bytes: &[u8], limits: &Limits) -> Result<Header, InputError> {
    limits.check_file(label, bytes.len() as u64)?;
    guarded(label, || Ok(open_decoder(label, Cursor::new(bytes), limits)?.header()))
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

fn io_error(label: &str, error: &std::io::Error) -> InputError {
    match error.kind() {
        ErrorKind::NotFound => InputError::NotFound { path: label.to_owned() },
        ErrorKind::UnexpectedEof => {
            InputError::Corrupt { path: label.to_owned(), reason: "the file ends too early".into() }
        }
        _ => InputError::Io { path: label.to_owned(), reason: error.to_string() },
    }
}

fn unsupported(label: &str, what: &str) -> InputError {
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

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no reason given")
}

fn image_error(label: &str, error: ImageError) -> InputError {
    let path = label.to_owned();
    match error {
        ImageError::IoError(e) => io_error(label, &e),
        ImageError::Limits(e) => InputError::TooLarge {
            path,
            found: "the picture".into(),
            limit: match e.kind() {
                LimitErrorKind::DimensionError => "the longest side allowed".into(),
                _ => "the memory allowed for one picture".into(),
            },
        },
        ImageError::Unsupported(e) => unsupported(label, &format!("a feature that is not: {e}")),
        other => InputError::Corrupt { path, reason: other.to_string() },
    }
}

/// A decoder whose header has passed the limits.
struct Opened<D> {
    decoder: D,
    orientation: Orientation,
    format: &'static str,
}

impl<D: ImageDecoder> Opened<D> {
    fn header(&self) -> Header {
        let (width, height) = self.decoder.dimensions();
        let swap = orient::swaps_sides(self.orientation);
        let (width, height) = if swap { (height, width) } else { (width, height) };
        Header { width, height, orientation: self.orientation.to_exif(), format: self.format }
    }
}

fn open_decoder<'a, R: BufRead + Seek + 'a>(
    label: &str,
    reader: R,
    limits: &Limits,
) -> Result<Opened<impl ImageDecoder + 'a>, InputError> {
    let mut reader =
        ImageReader::new(reader).with_guessed_format().map_err(|e| io_error(label, &e))?;
    let format = reader
        .format()
        .and_then(|found| FORMATS.iter().find(|(_, format)| *format == found))
        .map(|(name, _)| *name)
        .ok_or_else(|| unsupported(label, ""))?;
    // Sides are compared below, where the size is known and can be named.
    let mut early = limits.for_decoder();
    early.max_image_width = None;
    early.max_image_height = None;
    reader.limits(early);
    let mut decoder = reader.into_decoder().map_err(|e| image_error(label, e))?;
    let (width, height) = decoder.dimensions();
    limits.check_size(label, width, height, decoder.total_bytes())?;
    decoder.set_limits(limits.for_decoder()).map_err(|e| image_error(label, e))?;
    // A broken EXIF block does not spoil the picture.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok(Opened { decoder, orientation, format })
}

fn read_clip<R: BufRead + Seek>(
    label: &str,
    reader: R,
    limits: &Limits,
) -> Result<Clip, InputError> {
    let opened = open_decoder(label, reader, limits)?;
    let (width, height) = opened.decoder.dimensions();
    let colour = opened.decoder.color_type();
    let pixels = width as usize * height as usize;
    let decoder = opened.decoder;
    let rgb = colour::read_rgb(colour, pixels, |buffer| decoder.read_image(buffer))
        .ok_or_else(|| unsupported(label, &format!("pixel format {colour:?}")))?
        .map_err(|e| image_error(label, e))?;
    let picture = Bitmap { width: width as usize, height: height as usize, rgb };
    let upright = orient::upright(picture, opened.orientation);
    Clip::picture(label, upright.width as u32, upright.height as u32, upright.rgb)
}
