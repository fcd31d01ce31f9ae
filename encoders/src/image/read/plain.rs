//! Formats that the `image` crate reads into one buffer: BMP, ICO, and what the others hand over.
//!
//! Invariants
//! - The last row of a BMP may lack the bytes that fill it to a multiple of four, as for Pillow.
//! - Wide pixels become RGB inside the decoder's own buffer, which then shrinks before the upright
//!   picture is made: never are there three buffers.

use std::io::{self, BufRead, Read, Seek, SeekFrom};

use image::error::LimitErrorKind;
use image::metadata::Orientation;
use image::{ColorType, ImageDecoder, ImageError, ImageFormat, ImageReader};
use secateur_core::error::InputError;

use super::{corrupt, io_error};
use crate::image::bitmap::Bitmap;
use crate::image::colour::{self, Depth};
use crate::image::decode::unsupported;
use crate::image::limits::Limits;
use crate::image::sink::{Facts, Source};

/// A decoder of the `image` crate whose header has passed the limits.
pub(super) struct Plain<'a, D> {
    label: &'a str,
    decoder: D,
    facts: Facts,
    colour: ColorType,
}

/// Reads the header.
pub(super) fn open<'a, R: BufRead + Seek + 'a>(
    label: &'a str,
    format: ImageFormat,
    reader: R,
    limits: &Limits,
) -> Result<Box<dyn Source + 'a>, InputError> {
    let mut reader = reader;
    let padding = match format {
        ImageFormat::Bmp => bmp_padding(&mut reader).map_err(|e| io_error(label, &e))?,
        _ => 0,
    };
    let reader = Padded::new(reader, padding).map_err(|e| io_error(label, &e))?;
    let mut reader = ImageReader::with_format(reader, format);
    // Sides are compared below, where the size is known and can be named.
    let mut early = limits.for_decoder();
    early.max_image_width = None;
    early.max_image_height = None;
    reader.limits(early);
    let decoder = reader.into_decoder().map_err(|e| image_error(label, e))?;
    wrap(label, decoder, limits, |_| 0)
}

/// A decoder that holds `beside(pixels)` bytes while it fills its buffer.
pub(super) fn wrap<'a>(
    label: &'a str,
    mut decoder: impl ImageDecoder + 'a,
    limits: &Limits,
    beside: impl Fn(u64) -> u64,
) -> Result<Box<dyn Source + 'a>, InputError> {
    let (width, height) = decoder.dimensions();
    limits.check_size(label, width, height)?;
    let pixels = u64::from(width) * u64::from(height);
    let native = u64::from(decoder.color_type().bytes_per_pixel());
    // First the decoder's buffer, then that buffer as RGB and the upright picture.
    let peak_bytes = (native * pixels + beside(pixels)).max((native.min(3) + 3) * pixels);
    limits.check_memory(label, width, height, peak_bytes)?;
    decoder.set_limits(limits.for_decoder()).map_err(|e| image_error(label, e))?;
    // A broken EXIF block does not spoil the picture.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let colour = decoder.color_type();
    let facts = Facts { width, height, orientation, peak_bytes };
    Ok(Box::new(Plain { label, decoder, facts, colour }))
}

impl<D: ImageDecoder> Source for Plain<'_, D> {
    fn facts(&self) -> Facts {
        self.facts
    }

    fn read(self: Box<Self>) -> Result<Bitmap, InputError> {
        let Self { label, decoder, facts, colour } = *self;
        let convert = colour::row_converter(colour, Depth::Native)
            .ok_or_else(|| unsupported(label, &format!("pixel format {colour:?}")))?;
        let (width, height) = (facts.width as usize, facts.height as usize);
        let mut native = usize::from(colour.bytes_per_pixel());
        let mut bytes = vec![0u8; width * height * native];
        decoder.read_image(&mut bytes).map_err(|e| image_error(label, e))?;
        if native > 3 {
            let mut row = vec![0u8; width * 3];
            for y in 0..height {
                convert(&bytes[y * width * native..][..width * native], &mut row);
                bytes[y * width * 3..][..width * 3].copy_from_slice(&row);
            }
            bytes.truncate(width * height * 3);
            bytes.shrink_to_fit();
            native = 3;
        }
        let mut sink = facts.sink();
        let mut row = vec![0u8; width * 3];
        for (y, line) in bytes.chunks_exact(width * native).enumerate() {
            if native == 3 {
                sink.put(0, y, line);
            } else {
                convert(line, &mut row);
                sink.put(0, y, &row);
            }
        }
        Ok(sink.finish())
    }
}

/// Bytes that fill the rows of an uncompressed BMP to a multiple of four.
///
/// Source: `BITMAPINFOHEADER` (width at byte 18, bits of a pixel at 28, compression at 30).
fn bmp_padding(reader: &mut (impl BufRead + Seek)) -> io::Result<usize> {
    let mut head = Vec::new();
    reader.by_ref().take(34).read_to_end(&mut head)?;
    reader.rewind()?;
    if head.len() < 34 || head[14] < 40 || head[30..34] != [0; 4] {
        return Ok(0);
    }
    let width = u64::from(u32::from_le_bytes([head[18], head[19], head[20], head[21]]));
    let bits = u64::from(u16::from_le_bytes([head[28], head[29]]));
    let row = (width * bits).div_ceil(8);
    Ok((row.next_multiple_of(4) - row) as usize)
}

/// A reader with some zero bytes behind its end.
struct Padded<R> {
    reader: R,
    /// Place of the next byte, and where the reader ends.
    at: u64,
    end: u64,
    padding: usize,
}

impl<R: Seek> Padded<R> {
    fn new(mut reader: R, padding: usize) -> io::Result<Self> {
        let end = reader.seek(SeekFrom::End(0))?;
        reader.rewind()?;
        Ok(Self { reader, at: 0, end, padding })
    }
}

impl<R: BufRead> BufRead for Padded<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at < self.end {
            return self.reader.fill_buf();
        }
        let passed = usize::try_from(self.at - self.end).unwrap_or(usize::MAX);
        Ok(&[0; 4][..self.padding.saturating_sub(passed)])
    }

    fn consume(&mut self, bytes: usize) {
        if self.at < self.end {
            self.reader.consume(bytes);
        }
        self.at += bytes as u64;
    }
}

impl<R: BufRead> Read for Padded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl<R: Seek> Seek for Padded<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = self.reader.seek(match to {
            SeekFrom::Current(by) => {
                let place = self.at.checked_add_signed(by);
                SeekFrom::Start(place.ok_or(io::ErrorKind::InvalidInput)?)
            }
            other => other,
        })?;
        Ok(self.at)
    }

    fn seek_relative(&mut self, by: i64) -> io::Result<()> {
        // Keeps the buffer of a buffered reader.
        if self.at < self.end {
            self.reader.seek_relative(by)?;
            self.at = self.at.checked_add_signed(by).ok_or(io::ErrorKind::InvalidInput)?;
            return Ok(());
        }
        self.seek(SeekFrom::Current(by)).map(|_| ())
    }
}

/// What a decoder of the `image` crate says.
pub(super) fn image_error(label: &str, error: ImageError) -> InputError {
    match error {
        ImageError::IoError(e) => io_error(label, &e),
        ImageError::Limits(e) => InputError::TooLarge {
            path: label.to_owned(),
            found: "the picture".into(),
            limit: match e.kind() {
                LimitErrorKind::DimensionError => "the longest side allowed".into(),
                _ => "the memory allowed for one picture (max_decode_memory)".into(),
            },
        },
        ImageError::Unsupported(e) => unsupported(label, &format!("a feature that is not: {e}")),
        other => corrupt(label, other),
    }
}
