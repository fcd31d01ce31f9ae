//! WebP: a still picture, or the first frame of an animation.
//!
//! Invariants
//! - The file must be as long as its RIFF header says, as libwebp demands.
//! - Of an animation the first frame's own data is decoded as a still picture and laid on the
//!   canvas; the decoder never holds canvas, frame and result at once.
//! - What the frame does not cover is transparent (white) in a file with transparency and black in
//!   one without, as Pillow gives it.

use std::io::{self, BufRead, Cursor, Read, Seek, SeekFrom};

use image::ImageDecoder;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use secateur_core::error::InputError;

use super::plain::{image_error, wrap};
use super::{corrupt, io_error};
use crate::image::bitmap::Bitmap;
use crate::image::limits::Limits;
use crate::image::sink::{Facts, Source};

const HAS_ALPHA: u8 = 0x10;
const IS_ANIMATED: u8 = 0x02;
/// Bytes of a frame's header: place, size, duration, flags.
const FRAME_HEADER: u64 = 16;

/// The first frame of an animation.
struct Frame<'a> {
    label: &'a str,
    canvas: Facts,
    still: Box<dyn Source + 'a>,
    place: (usize, usize),
    has_alpha: bool,
}

/// Reads the header.
pub(super) fn open<'a, R: BufRead + Seek + 'a>(
    label: &'a str,
    mut reader: R,
    limits: &Limits,
) -> Result<Box<dyn Source + 'a>, InputError> {
    let failed = |e: io::Error| io_error(label, &e);
    let mut head = [0u8; 30];
    let length = reader.seek(SeekFrom::End(0)).map_err(failed)?;
    reader.rewind().map_err(failed)?;
    // The shortest pictures have less than the header of the extended format.
    let mut start = Vec::new();
    reader.by_ref().take(head.len() as u64).read_to_end(&mut start).map_err(failed)?;
    head[..start.len()].copy_from_slice(&start);
    if start.len() < 20 || length < u64::from(le32(&head[4..])) + 8 {
        return Err(corrupt(label, "the file ends too early"));
    }
    reader.rewind().map_err(failed)?;
    if &head[12..16] == b"VP8X" && head[20] & IS_ANIMATED != 0 {
        return animation(label, reader, &head, limits);
    }
    still(label, reader, limits)
}

fn still<'a, R: BufRead + Seek + 'a>(
    label: &'a str,
    mut reader: R,
    limits: &Limits,
) -> Result<Box<dyn Source + 'a>, InputError> {
    let failed = |e: io::Error| io_error(label, &e);
    let kinds = chunk_kinds(&mut reader).map_err(failed)?;
    reader.rewind().map_err(failed)?;
    let decoder = WebPDecoder::new(reader).map_err(|e| image_error(label, e))?;
    let has_alpha = decoder.color_type().has_alpha();
    // Beside its result: colour planes at 1.5 bytes; a transparency plane and the four channels
    // that it is decoded from; four channels of a lossless picture whose result has three.
    wrap(label, decoder, limits, move |pixels| match (kinds.is_lossy, has_alpha) {
        (true, false) => pixels * 3 / 2,
        (true, true) => pixels * 3 / 2 + if kinds.has_plain_alpha { pixels } else { pixels * 5 },
        (false, false) => pixels * 4,
        (false, true) => 0,
    })
}

/// How a still picture is coded.
struct Kinds {
    is_lossy: bool,
    /// The transparency plane is stored uncompressed.
    has_plain_alpha: bool,
}

fn chunk_kinds(reader: &mut (impl BufRead + Seek)) -> io::Result<Kinds> {
    reader.seek(SeekFrom::Start(12))?;
    let mut kinds = Kinds { is_lossy: false, has_plain_alpha: false };
    let mut head = [0u8; 9];
    while let Ok(()) = reader.read_exact(&mut head) {
        match &head[..4] {
            b"VP8 " => {
                kinds.is_lossy = true;
                break;
            }
            b"VP8L" => break,
            b"ALPH" => kinds.has_plain_alpha = head[8] & 3 == 0,
            _ => {}
        }
        let size = i64::from(le32(&head[4..8]));
        reader.seek_relative(size + (size & 1) - 1)?;
    }
    Ok(kinds)
}

fn animation<'a, R: BufRead + Seek + 'a>(
    label: &'a str,
    mut reader: R,
    head: &[u8; 30],
    limits: &Limits,
) -> Result<Box<dyn Source + 'a>, InputError> {
    let failed = |e: io::Error| io_error(label, &e);
    let (width, height) = (le24(&head[24..]) + 1, le24(&head[27..]) + 1);
    limits.check_size(label, width, height)?;
    let has_alpha = head[20] & HAS_ALPHA != 0;
    reader.seek(SeekFrom::Start(20 + u64::from(le32(&head[16..])))).map_err(failed)?;
    let mut orientation = Orientation::NoTransforms;
    let mut chunk = [0u8; 8];
    let size = loop {
        reader.read_exact(&mut chunk).map_err(failed)?;
        let size = u64::from(le32(&chunk[4..]));
        match &chunk[..4] {
            b"ANMF" => break size,
            _ => reader.seek_relative((size + (size & 1)) as i64).map_err(failed)?,
        }
    };
    let mut frame = [0u8; FRAME_HEADER as usize];
    reader.read_exact(&mut frame).map_err(failed)?;
    let place = (le24(&frame) as usize * 2, le24(&frame[3..]) as usize * 2);
    let (w, h) = (le24(&frame[6..]) + 1, le24(&frame[9..]) + 1);
    let inside = place.0 + w as usize <= width as usize && place.1 + h as usize <= height as usize;
    let data = size.checked_sub(FRAME_HEADER).filter(|_| inside);
    let data = data.ok_or_else(|| corrupt(label, "a frame outside the picture"))?;
    // A file of its own: the frame's size as the canvas, then the frame's chunks.
    let mut file = b"RIFF\0\0\0\0WEBPVP8X\x0A\0\0\0".to_vec();
    file.extend_from_slice(&[head[20] & HAS_ALPHA, 0, 0, 0]);
    file.extend_from_slice(&frame[6..12]);
    let from = file.len();
    let read = io::copy(&mut Read::take(&mut reader, data), &mut file).map_err(failed)?;
    if read < data {
        return Err(corrupt(label, "the file ends too early"));
    }
    let riff = (file.len() - 8) as u32;
    file[4..8].copy_from_slice(&riff.to_le_bytes());
    // Transparency of the frame counts where the file declares it.
    if &file[from..(from + 4).min(file.len())] == b"ALPH" && !has_alpha {
        file[20] |= HAS_ALPHA;
    }
    let held = file.len() as u64;
    // EXIF stands behind the frames.
    reader.seek_relative((size & 1) as i64).map_err(failed)?;
    if head[20] & 0x08 != 0 {
        while reader.read_exact(&mut chunk).is_ok() {
            let size = u64::from(le32(&chunk[4..]));
            if &chunk[..4] == b"EXIF" {
                let mut exif = Vec::new();
                Read::take(&mut reader, size.min(1 << 20))
                    .read_to_end(&mut exif)
                    .map_err(failed)?;
                orientation = Orientation::from_exif_chunk(&exif).unwrap_or(orientation);
                break;
            }
            reader.seek_relative((size + (size & 1)) as i64).map_err(failed)?;
        }
    }
    let still = still(label, Cursor::new(file), limits)?;
    let covers = (w, h) == (width, height);
    let own = if covers { 0 } else { Facts::rgb_bytes(width, height) };
    let peak_bytes = held
        + still.facts().peak_bytes.max(Facts::rgb_bytes(w, h) + Facts::rgb_bytes(width, height));
    limits.check_memory(label, width, height, peak_bytes.max(own))?;
    let canvas = Facts { width, height, orientation, peak_bytes };
    Ok(Box::new(Frame { label, canvas, still, place, has_alpha }))
}

impl Source for Frame<'_> {
    fn facts(&self) -> Facts {
        self.canvas
    }

    fn read(self: Box<Self>) -> Result<Bitmap, InputError> {
        let Self { label, canvas, still, place, has_alpha } = *self;
        let frame = still.read()?;
        let size = (canvas.width as usize, canvas.height as usize);
        if canvas.orientation == Orientation::NoTransforms && (frame.width, frame.height) == size {
            return Ok(frame);
        }
        if frame.width == 0 {
            return Err(corrupt(label, "an empty frame"));
        }
        let mut sink = canvas.sink();
        if !has_alpha && (frame.width, frame.height) != size {
            let black = vec![0u8; size.0 * 3];
            (0..size.1).for_each(|y| sink.put(0, y, &black));
        }
        for y in 0..frame.height {
            sink.put(place.0, place.1 + y, frame.row(y));
        }
        Ok(sink.finish())
    }
}

fn le24(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0])
}

fn le32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
