//! JPEG, with the pixels of libjpeg-turbo: Pillow and torchvision decode with it, and a tower's
//! rows move with single levels.
//!
//! Invariants
//! - Integer DCT, triangle upsampling of chroma and the fixed-point colour tables of libjpeg-turbo,
//!   whose code `mozjpeg` builds from source (its decoder is unchanged); the same bits with and
//!   without its assembly.
//! - The file must hold what the decoder asks for: where it ends too early the picture is corrupt.
//!   libjpeg would go on with grey; Pillow refuses at the same place.
//! - Four components are inverted CMYK, as Adobe writes it and Pillow assumes.
//! - Several scans need the coefficients of the whole picture. Where they and the pixels together
//!   exceed the limit, libjpeg reduces by its scaled DCT and the picture is enlarged again: sizes
//!   stay, fine detail does not.
//! - Errors of libjpeg unwind into [`caught`] and nowhere further.

use std::any::Any;
use std::cell::Cell;
use std::io::{self, BufRead, Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use mozjpeg::{ColorSpace, Decompress};
use secateur_core::error::InputError;
use secateur_core::model::ImageBackend;

use super::jpeg_markers::{self, Markers, Process};
use super::{corrupt, io_error};
use crate::image::axis::Filter;
use crate::image::bitmap::Bitmap;
use crate::image::decode::{panic_text, unsupported};
use crate::image::limits::Limits;
use crate::image::resize::resize;
use crate::image::sink::{Facts, Sink, Source};

/// Most scans that are decoded: each may touch every coefficient, whatever its length in the file.
/// Encoders write about ten.
const MOST_SCANS: usize = 100;

/// libjpeg decodes to `n / 8` of the size.
const REDUCTIONS: [u8; 4] = [8, 4, 2, 1];

/// A JPEG whose header has been read.
struct Jpeg<'a, R> {
    label: &'a str,
    reader: R,
    markers: Markers,
    /// Of [`REDUCTIONS`].
    eighths: u8,
    peak_bytes: u64,
}

/// Reads the header.
pub(super) fn open<'a, R: BufRead + Seek + 'a>(
    label: &'a str,
    mut reader: R,
    limits: &Limits,
) -> Result<Box<dyn Source + 'a>, InputError> {
    let failed = |e: io::Error| io_error(label, &e);
    let markers = jpeg_markers::read(&mut reader).map_err(failed)?;
    limits.check_size(label, markers.width, markers.height)?;
    match (markers.process, markers.precision, markers.sampling.len()) {
        (Process::Other, _, _) => return Err(unsupported(label, "a lossless JPEG process")),
        (_, 8, 1 | 3 | 4) => {}
        (_, 8, n) => return Err(unsupported(label, &format!("a JPEG of {n} components"))),
        (_, bits, _) => return Err(unsupported(label, &format!("a JPEG of {bits} bits"))),
    }
    let pixels = Facts::rgb_bytes(markers.width, markers.height);
    let (mut eighths, mut peak_bytes) = (8, pixels);
    if markers.has_several_scans() {
        if jpeg_markers::count_scans(&mut reader, MOST_SCANS).map_err(failed)? >= MOST_SCANS {
            return Err(corrupt(label, format!("{MOST_SCANS} scans or more")));
        }
        let peak = |eighths: u8| {
            let part = pixels * u64::from(eighths).pow(2) / 64;
            // The reduced picture is enlarged once the coefficients are gone.
            let enlarging = if eighths == 8 { 0 } else { pixels + part * 9 / u64::from(eighths) };
            (part + markers.coefficient_bytes()).max(enlarging)
        };
        let fits = |&eighths: &u8| peak(eighths) <= limits.max_alloc_bytes;
        eighths = REDUCTIONS.into_iter().find(fits).unwrap_or(8);
        peak_bytes = peak(eighths);
    }
    limits.check_memory(label, markers.width, markers.height, peak_bytes)?;
    reader.rewind().map_err(failed)?;
    Ok(Box::new(Jpeg { label, reader, markers, eighths, peak_bytes }))
}

impl<R: BufRead> Source for Jpeg<'_, R> {
    fn facts(&self) -> Facts {
        Facts {
            width: self.markers.width,
            height: self.markers.height,
            orientation: self.markers.orientation,
            peak_bytes: self.peak_bytes,
        }
    }

    fn read(self: Box<Self>) -> Result<Bitmap, InputError> {
        let facts = self.facts();
        let Self { label, reader, markers, eighths, .. } = *self;
        let components = markers.sampling.len();
        let picture = decode(label, reader, components, eighths, |width, height| {
            if eighths == 8 {
                facts.sink()
            } else {
                Sink::new(width as u32, height as u32, facts.orientation)
            }
        })?;
        let (width, height) = facts.upright();
        if (picture.width, picture.height) == (width, height) {
            return Ok(picture);
        }
        Ok(resize(picture, (width, height), Filter::Bilinear, ImageBackend::Pillow))
    }
}

/// Decodes to `eighths / 8` of the size, into the sink that `make` gives for a width and height.
fn decode(
    label: &str,
    reader: impl BufRead,
    components: usize,
    eighths: u8,
    make: impl FnOnce(usize, usize) -> Sink,
) -> Result<Bitmap, InputError> {
    let has_ended = Rc::new(Cell::new(false));
    let reader = Whole { reader, has_ended: has_ended.clone() };
    let run = || -> io::Result<Bitmap> {
        let mut decoder = Decompress::builder().from_reader(reader)?;
        decoder.scale(eighths);
        let mut decoder = match components {
            1 => decoder.grayscale()?,
            3 => decoder.rgb()?,
            _ => decoder.to_colorspace(ColorSpace::JCS_CMYK)?,
        };
        let (width, height) = (decoder.width(), decoder.height());
        let mut sink = make(width, height);
        let mut row = vec![0u8; width * components];
        let mut rgb = vec![0u8; width * 3];
        for y in 0..height {
            decoder.read_scanlines_into(&mut row)?;
            match components {
                1 => {
                    for (out, &grey) in rgb.chunks_exact_mut(3).zip(&row) {
                        out.fill(grey);
                    }
                    sink.put(0, y, &rgb);
                }
                3 => sink.put(0, y, &row),
                _ => {
                    for (out, cmyk) in rgb.chunks_exact_mut(3).zip(row.chunks_exact(4)) {
                        out.copy_from_slice(&inverted_cmyk(cmyk));
                    }
                    sink.put(0, y, &rgb);
                }
            }
        }
        // What follows the last row is not asked for.
        Ok(sink.finish())
    };
    caught(run).map_err(|reason| {
        corrupt(label, if has_ended.get() { "the file ends too early" } else { reason.as_str() })
    })
}

/// Runs libjpeg, whose errors unwind with a text.
fn caught<T>(run: impl FnOnce() -> io::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(payload) => Err(said(payload.as_ref())),
    }
}

fn said(payload: &(dyn Any + Send)) -> String {
    let text = panic_text(payload);
    text.strip_prefix("libjpeg fatal error: ").unwrap_or(text).to_owned()
}

/// One inverted CMYK pixel as RGB, in the integer arithmetic of Pillow (`src/libImaging/Convert.c`,
/// `cmyk2rgb`).
fn inverted_cmyk(cmyk: &[u8]) -> [u8; 3] {
    let black = u32::from(cmyk[3]);
    [0, 1, 2].map(|i| {
        let product = (255 - u32::from(cmyk[i])) * black + 128;
        (black - (((product >> 8) + product) >> 8)) as u8
    })
}

/// A reader whose end is an error and is remembered: libjpeg is never given an end marker that the
/// file does not hold.
struct Whole<R> {
    reader: R,
    has_ended: Rc<Cell<bool>>,
}

impl<R: BufRead> Read for Whole<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

impl<R: BufRead> BufRead for Whole<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.reader.fill_buf()?.is_empty() {
            self.has_ended.set(true);
            return Err(io::Error::other("the file ends too early"));
        }
        self.reader.fill_buf()
    }

    fn consume(&mut self, bytes: usize) {
        self.reader.consume(bytes);
    }
}
