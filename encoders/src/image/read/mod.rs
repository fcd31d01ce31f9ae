//! One file a format: a header at once, the pixels row by row.
//!
//! Invariants
//! - Sizes are checked by [`super::Limits`] before pixels are allocated, and what a decoder holds
//!   besides the picture is in `Facts::peak_bytes`.
//! - A file that ends before its last pixel is corrupt; what stands behind the last pixel is not
//!   asked for where Pillow does not ask for it.
//! - Text, profiles and thumbnails are passed over unread; of EXIF the orientation is taken. Frames
//!   of an animation behind the first are not decoded.

use std::io::{BufRead, ErrorKind, Seek};

use image::ImageFormat;
use secateur_core::error::InputError;

use super::limits::Limits;
use super::sink::Source;

mod gif;
mod jpeg;
mod jpeg_markers;
mod plain;
mod png;
mod tiff;
mod webp;

/// Reads the header of a file of that format.
pub(super) fn open<'a, R: BufRead + Seek + 'a>(
    label: &'a str,
    format: ImageFormat,
    reader: R,
    limits: &Limits,
) -> Result<Box<dyn Source + 'a>, InputError> {
    match format {
        ImageFormat::Jpeg => jpeg::open(label, reader, limits),
        ImageFormat::Png => png::open(label, reader, limits),
        ImageFormat::Gif => gif::open(label, reader, limits),
        ImageFormat::WebP => webp::open(label, reader, limits),
        ImageFormat::Tiff => tiff::open(label, reader, limits),
        _ => plain::open(label, format, reader, limits),
    }
}

/// A file that breaks the rules of its format.
fn corrupt(label: &str, reason: impl ToString) -> InputError {
    InputError::Corrupt { path: label.to_owned(), reason: reason.to_string() }
}

/// A file that cannot be read on: one that ends too early is corrupt.
fn io_error(label: &str, error: &std::io::Error) -> InputError {
    match error.kind() {
        ErrorKind::UnexpectedEof => corrupt(label, "the file ends too early"),
        ErrorKind::InvalidData | ErrorKind::Other => corrupt(label, error),
        _ => super::decode::io_error(label, error),
    }
}
