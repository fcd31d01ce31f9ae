//! TIFF: the first page, strip by strip or tile by tile.
//!
//! Invariants
//! - One strip or tile is held besides the picture where the pixels of a page lie together in 8 or
//!   16 bits; other layouts (planes, CMYK, single bits, floats) go through the `image` crate, which
//!   holds the page twice.
//! - Profiles and other tags are not read.

use std::io::{BufRead, Seek};

use image::ColorType;
use image::codecs::tiff::TiffDecoder;
use image::metadata::Orientation;
use secateur_core::error::InputError;
use tiff::TiffError;
use tiff::decoder::{Decoder, Limits as TiffLimits};
use tiff::tags::Tag;

use super::plain::{image_error, wrap};
use super::{corrupt, io_error};
use crate::image::bitmap::Bitmap;
use crate::image::colour::{self, Depth};
use crate::image::decode::unsupported;
use crate::image::limits::Limits;
use crate::image::sink::{Facts, Source};

/// Bytes of one tag's values: places of strips, for most pictures.
const TAG_BYTES: usize = 8 << 20;

struct Tiff<'a, R: BufRead + Seek> {
    label: &'a str,
    decoder: Decoder<R>,
    facts: Facts,
    colour: ColorType,
}

/// Reads the header.
pub(super) fn open<'a, R: BufRead + Seek + 'a>(
    label: &'a str,
    mut reader: R,
    limits: &Limits,
) -> Result<Box<dyn Source + 'a>, InputError> {
    let failed = |e: TiffError| tiff_error(label, e);
    let mut decoder = Decoder::new(&mut reader).map_err(failed)?.with_limits(own_limits(limits));
    let (width, height) = decoder.dimensions().map_err(failed)?;
    limits.check_size(label, width, height)?;
    let colour = together(&mut decoder).map_err(failed)?;
    reader.rewind().map_err(|e| io_error(label, &e))?;
    let Some(colour) = colour else {
        let decoder = TiffDecoder::new(reader).map_err(|e| image_error(label, e))?;
        let native = u64::from(image::ImageDecoder::color_type(&decoder).bytes_per_pixel());
        // The decoder fills a buffer of its own first; CMYK has one channel more.
        return wrap(label, decoder, limits, move |pixels| pixels * native * 4 / 3);
    };
    let mut decoder = Decoder::new(reader).map_err(failed)?.with_limits(own_limits(limits));
    let (across, down) = decoder.chunk_dimensions();
    let chunk = u64::from(across.min(width)) * u64::from(down.min(height));
    let peak_bytes = Facts::rgb_bytes(width, height) + chunk * u64::from(colour.bytes_per_pixel());
    limits.check_memory(label, width, height, peak_bytes)?;
    let tag = decoder.find_tag_unsigned::<u16>(Tag::Orientation).unwrap_or(None);
    let orientation = tag
        .and_then(|tag| Orientation::from_exif(u8::try_from(tag).ok()?))
        .unwrap_or(Orientation::NoTransforms);
    let facts = Facts { width, height, orientation, peak_bytes };
    Ok(Box::new(Tiff { label, decoder, facts, colour }))
}

fn own_limits(limits: &Limits) -> TiffLimits {
    let most = usize::try_from(limits.max_alloc_bytes).unwrap_or(usize::MAX);
    let mut own = TiffLimits::default();
    own.decoding_buffer_size = most;
    own.intermediate_buffer_size = most;
    own.ifd_value_size = TAG_BYTES;
    own
}

/// The pixel format of a page whose channels lie together in whole unsigned bytes.
fn together<R: BufRead + Seek>(decoder: &mut Decoder<R>) -> Result<Option<ColorType>, TiffError> {
    let planes = decoder.find_tag_unsigned::<u16>(Tag::PlanarConfiguration)?.unwrap_or(1);
    let formats = decoder.find_tag_unsigned_vec::<u16>(Tag::SampleFormat)?.unwrap_or_default();
    if planes != 1 || formats.iter().any(|&format| format != 1) {
        return Ok(None);
    }
    let photometric = decoder.find_tag_unsigned::<u16>(Tag::PhotometricInterpretation)?;
    Ok(match decoder.colortype()? {
        // Grey with transparency as most programs declare it.
        tiff::ColorType::Multiband { bit_depth: 8, num_samples: 2 } if photometric == Some(1) => {
            Some(ColorType::La8)
        }
        tiff::ColorType::Gray(8) => Some(ColorType::L8),
        tiff::ColorType::Gray(16) => Some(ColorType::L16),
        tiff::ColorType::GrayA(8) => Some(ColorType::La8),
        tiff::ColorType::GrayA(16) => Some(ColorType::La16),
        tiff::ColorType::RGB(8) => Some(ColorType::Rgb8),
        tiff::ColorType::RGB(16) => Some(ColorType::Rgb16),
        tiff::ColorType::RGBA(8) => Some(ColorType::Rgba8),
        tiff::ColorType::RGBA(16) => Some(ColorType::Rgba16),
        _ => None,
    })
}

fn tiff_error(label: &str, error: TiffError) -> InputError {
    match error {
        TiffError::IoError(e) => io_error(label, &e),
        TiffError::UnsupportedError(e) => {
            unsupported(label, &format!("a feature that is not: {e}"))
        }
        TiffError::LimitsExceeded => InputError::TooLarge {
            path: label.to_owned(),
            found: "a strip, tile or tag".into(),
            limit: "the memory allowed for one picture (max_decode_memory)".into(),
        },
        other => corrupt(label, other),
    }
}

impl<R: BufRead + Seek> Source for Tiff<'_, R> {
    fn facts(&self) -> Facts {
        self.facts
    }

    fn read(self: Box<Self>) -> Result<Bitmap, InputError> {
        let Self { label, mut decoder, facts, colour } = *self;
        let failed = |e: TiffError| tiff_error(label, e);
        let convert = colour::row_converter(colour, Depth::Native)
            .ok_or_else(|| unsupported(label, &format!("pixel format {colour:?}")))?;
        let native = usize::from(colour.bytes_per_pixel());
        let (across, down) = decoder.chunk_dimensions();
        let columns = facts.width.div_ceil(across.max(1));
        let rows = facts.height.div_ceil(down.max(1));
        let mut sink = facts.sink();
        let mut rgb = Vec::new();
        let mut bytes = Vec::new();
        for index in 0..columns * rows {
            let (width, height) = decoder.chunk_data_dimensions(index);
            let line = width as usize * native;
            bytes.resize(line * height as usize, 0);
            decoder.read_chunk_bytes(index, &mut bytes).map_err(failed)?;
            rgb.resize(width as usize * 3, 0);
            let (x, y) = (index % columns * across, index / columns * down);
            for (i, pixels) in bytes.chunks_exact(line.max(1)).enumerate() {
                convert(pixels, &mut rgb);
                sink.put(x as usize, y as usize + i, &rgb);
            }
        }
        Ok(sink.finish())
    }
}
