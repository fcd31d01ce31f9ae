//! GIF: the first frame, row by row.
//!
//! Invariants
//! - One row is held besides the picture. Extension blocks other than the frame's own control block
//!   are skipped and never reach the decoder, which would collect profiles.
//! - As Pillow has it: what the frame does not cover is transparent where the frame has a
//!   transparent colour, and the first colour of its palette where it has none.
//!   An index beyond the palette is black. A frame that reaches beyond the screen widens it.

use std::io::{BufRead, Chain, Cursor, Read, Seek};

use image::metadata::Orientation;
use secateur_core::error::InputError;

use super::{corrupt, io_error};
use crate::image::bitmap::Bitmap;
use crate::image::limits::Limits;
use crate::image::sink::{Facts, Source};

const EXTENSION: u8 = 0x21;
const CONTROL: u8 = 0xF9;
const IMAGE: u8 = 0x2C;
/// Bytes of a frame's descriptor behind its mark.
const DESCRIPTOR: usize = 9;

struct Gif<'a, R: Read> {
    label: &'a str,
    reader: Chain<Cursor<Vec<u8>>, R>,
    facts: Facts,
}

/// Reads the header.
pub(super) fn open<'a, R: BufRead + Seek + 'a>(
    label: &'a str,
    mut reader: R,
    limits: &Limits,
) -> Result<Box<dyn Source + 'a>, InputError> {
    let head = head(&mut reader).map_err(|e| io_error(label, &e))?;
    let side = |at: usize| u32::from(u16::from_le_bytes([head[at], head[at + 1]]));
    // Left, top, width, height of the frame.
    let frame = head.len() - DESCRIPTOR;
    let width = side(6).max(side(frame) + side(frame + 4));
    let height = side(8).max(side(frame + 2) + side(frame + 6));
    limits.check_size(label, width, height)?;
    let peak_bytes = Facts::rgb_bytes(width, height);
    limits.check_memory(label, width, height, peak_bytes)?;
    let facts = Facts { width, height, orientation: Orientation::NoTransforms, peak_bytes };
    Ok(Box::new(Gif { label, reader: Cursor::new(head).chain(reader), facts }))
}

/// The header, the global palette, the first frame's control block and its descriptor; the reader
/// stands behind that.
fn head(reader: &mut (impl BufRead + Seek)) -> std::io::Result<Vec<u8>> {
    let mut head = vec![0u8; 13];
    reader.read_exact(&mut head)?;
    if head[10] & 0x80 != 0 {
        let palette = 3usize << (1 + (head[10] & 7));
        head.resize(13 + palette, 0);
        reader.read_exact(&mut head[13..])?;
    }
    let mut control = Vec::new();
    loop {
        let mut byte = [0u8];
        reader.read_exact(&mut byte)?;
        match byte[0] {
            IMAGE => {
                head.extend(control);
                head.push(IMAGE);
                let at = head.len();
                head.resize(at + DESCRIPTOR, 0);
                reader.read_exact(&mut head[at..])?;
                return Ok(head);
            }
            EXTENSION => {
                reader.read_exact(&mut byte)?;
                let label = byte[0];
                let mut kept = vec![EXTENSION, label];
                loop {
                    reader.read_exact(&mut byte)?;
                    let length = usize::from(byte[0]);
                    if label == CONTROL && kept.len() < 16 {
                        kept.push(byte[0]);
                        let at = kept.len();
                        kept.resize(at + length, 0);
                        reader.read_exact(&mut kept[at..])?;
                    } else {
                        reader.seek_relative(length as i64)?;
                    }
                    if length == 0 {
                        break;
                    }
                }
                if label == CONTROL {
                    control = kept;
                }
            }
            0x3B => {
                let reason = "no frame before the end mark";
                return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, reason));
            }
            // Stray bytes between blocks are passed over, as Pillow does.
            _ => {}
        }
    }
}

/// The rows of a frame in the order of the file.
fn order(height: usize, interlaced: bool) -> impl Iterator<Item = usize> {
    let passes: &[(usize, usize)] =
        if interlaced { &[(0, 8), (4, 8), (2, 4), (1, 2)] } else { &[(0, 1)] };
    passes.iter().flat_map(move |&(first, step)| (first..height).step_by(step))
}

impl<R: Read> Source for Gif<'_, R> {
    fn facts(&self) -> Facts {
        self.facts
    }

    fn read(self: Box<Self>) -> Result<Bitmap, InputError> {
        let Self { label, reader, facts } = *self;
        let failed = |e: gif::DecodingError| match e {
            gif::DecodingError::Io(e) => io_error(label, &e),
            other => corrupt(label, other),
        };
        let mut options = gif::DecodeOptions::new();
        options.set_color_output(gif::ColorOutput::Indexed);
        let mut decoder = options.read_info(reader).map_err(failed)?;
        let frame = decoder.next_frame_info().map_err(failed)?;
        let frame = frame.ok_or_else(|| corrupt(label, "no frame"))?;
        let (left, top) = (usize::from(frame.left), usize::from(frame.top));
        let (width, height) = (usize::from(frame.width), usize::from(frame.height));
        let (clear, interlaced) = (frame.transparent, frame.interlaced);
        let mut palette = [[0u8; 3]; 256];
        let colours = decoder.palette().map_err(failed)?;
        for (to, from) in palette.iter_mut().zip(colours.chunks_exact(3)) {
            to.copy_from_slice(from);
        }
        let ground = if clear.is_some() { [255; 3] } else { palette[0] };
        if let Some(clear) = clear {
            palette[usize::from(clear)] = [255; 3];
        }
        let mut sink = facts.sink();
        let covers = left == 0
            && top == 0
            && width >= facts.width as usize
            && height >= facts.height as usize;
        if !covers && ground != [255; 3] {
            let row = ground.repeat(facts.width as usize);
            (0..facts.height as usize).for_each(|y| sink.put(0, y, &row));
        }
        let mut row = vec![0u8; width];
        let mut rgb = vec![0u8; width * 3];
        for y in order(height, interlaced) {
            if !decoder.fill_buffer(&mut row).map_err(failed)? {
                return Err(corrupt(label, "the frame ends too early"));
            }
            for (pixel, &index) in rgb.chunks_exact_mut(3).zip(&row) {
                pixel.copy_from_slice(&palette[usize::from(index)]);
            }
            sink.put(left, top + y, &rgb);
        }
        Ok(sink.finish())
    }
}
