//! PNG, row by row.
//!
//! Invariants
//! - One row is held besides the picture, interlaced or not.
//! - The picture is there once its last row is: a missing checksum or end chunk spoils nothing, as
//!   for Pillow.
//! - 16-bit channels keep their upper byte.

use std::io::{BufRead, Seek};

use image::ColorType;
use image::metadata::Orientation;
use secateur_core::error::InputError;

use super::{corrupt, io_error};
use crate::image::bitmap::Bitmap;
use crate::image::colour::{self, Depth};
use crate::image::decode::unsupported;
use crate::image::limits::Limits;
use crate::image::sink::{Facts, Source};

/// Bytes for rows and for the chunks that are kept (palette, transparency, EXIF).
const CHUNK_BYTES: usize = 16 << 20;

/// First column, first row and steps of the seven passes.
///
/// Source: PNG specification, third edition, 8.1.
const PASSES: [(usize, usize, usize, usize); 7] = [
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
];

struct Png<'a, R: BufRead + Seek> {
    label: &'a str,
    reader: png::Reader<R>,
    facts: Facts,
    colour: ColorType,
}

/// Reads the header.
pub(super) fn open<'a, R: BufRead + Seek + 'a>(
    label: &'a str,
    reader: R,
    limits: &Limits,
) -> Result<Box<dyn Source + 'a>, InputError> {
    let failed = |e: png::DecodingError| png_error(label, e);
    let mut decoder = png::Decoder::new_with_limits(reader, png::Limits { bytes: CHUNK_BYTES });
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(png::Transformations::EXPAND);
    let (width, height) = decoder.read_header_info().map_err(failed)?.size();
    limits.check_size(label, width, height)?;
    let peak_bytes = Facts::rgb_bytes(width, height);
    limits.check_memory(label, width, height, peak_bytes)?;
    let reader = decoder.read_info().map_err(failed)?;
    let orientation = reader
        .info()
        .exif_metadata
        .as_ref()
        .and_then(|exif| Orientation::from_exif_chunk(exif))
        .unwrap_or(Orientation::NoTransforms);
    let colour = match reader.output_color_type() {
        (png::ColorType::Grayscale, png::BitDepth::Eight) => ColorType::L8,
        (png::ColorType::Grayscale, png::BitDepth::Sixteen) => ColorType::L16,
        (png::ColorType::GrayscaleAlpha, png::BitDepth::Eight) => ColorType::La8,
        (png::ColorType::GrayscaleAlpha, png::BitDepth::Sixteen) => ColorType::La16,
        (png::ColorType::Rgb, png::BitDepth::Eight) => ColorType::Rgb8,
        (png::ColorType::Rgb, png::BitDepth::Sixteen) => ColorType::Rgb16,
        (png::ColorType::Rgba, png::BitDepth::Eight) => ColorType::Rgba8,
        (png::ColorType::Rgba, png::BitDepth::Sixteen) => ColorType::Rgba16,
        other => return Err(unsupported(label, &format!("pixel format {other:?}"))),
    };
    let facts = Facts { width, height, orientation, peak_bytes };
    Ok(Box::new(Png { label, reader, facts, colour }))
}

fn png_error(label: &str, error: png::DecodingError) -> InputError {
    match error {
        png::DecodingError::IoError(e) => io_error(label, &e),
        png::DecodingError::LimitsExceeded => InputError::TooLarge {
            path: label.to_owned(),
            found: "a row or a chunk beside the pixels".into(),
            limit: format!("{CHUNK_BYTES} bytes"),
        },
        other => corrupt(label, other),
    }
}

impl<R: BufRead + Seek> Source for Png<'_, R> {
    fn facts(&self) -> Facts {
        self.facts
    }

    fn read(self: Box<Self>) -> Result<Bitmap, InputError> {
        let Self { label, mut reader, facts, colour } = *self;
        let convert = colour::row_converter(colour, Depth::BigEndian)
            .ok_or_else(|| unsupported(label, &format!("pixel format {colour:?}")))?;
        let (width, height) = (facts.width as usize, facts.height as usize);
        let native = usize::from(colour.bytes_per_pixel());
        let mut row = vec![0u8; width * native];
        let mut rgb = vec![0u8; width * 3];
        let mut sink = facts.sink();
        let whole = [(0, 0, 1, 1)];
        let passes = if reader.info().interlaced { &PASSES[..] } else { &whole[..] };
        for &(x0, y0, dx, dy) in passes {
            let samples = width.saturating_sub(x0).div_ceil(dx);
            if samples == 0 {
                continue;
            }
            for y in (y0..height).step_by(dy) {
                let read = reader.read_row(&mut row).map_err(|e| png_error(label, e))?;
                if read.is_none() {
                    return Err(corrupt(label, "a row is missing"));
                }
                let rgb = &mut rgb[..samples * 3];
                convert(&row[..samples * native], rgb);
                if dx == 1 {
                    sink.put(x0, y, rgb);
                } else {
                    for (i, pixel) in rgb.chunks_exact(3).enumerate() {
                        sink.put(x0 + i * dx, y, pixel);
                    }
                }
            }
        }
        Ok(sink.finish())
    }
}
