//! What stands in a JPEG before its pixels: the frame, the kind of scans, the EXIF orientation.
//!
//! Invariants
//! - At most one segment (64 KiB) is held; segments that no pixel needs are skipped unread.
//! - Nothing here judges the coded data: that is libjpeg's work.
//!
//! Method: ITU-T T.81, annex B.

use std::io::{self, BufRead, ErrorKind, Read, Seek};

use image::metadata::Orientation;

/// Which process codes the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Process {
    /// Rows can be decoded as they come.
    Sequential,
    /// Coefficients of the whole picture come in several scans.
    Progressive,
    /// Lossless or hierarchical.
    Other,
}

/// A frame's header and what stands before the first scan.
#[derive(Clone, Debug)]
pub(super) struct Markers {
    /// Width, pixels.
    pub(super) width: u32,
    /// Height, pixels.
    pub(super) height: u32,
    /// Bits of a sample.
    pub(super) precision: u8,
    /// Horizontal and vertical sampling factor of each component.
    pub(super) sampling: Vec<(u32, u32)>,
    /// How the frame is coded.
    pub(super) process: Process,
    /// Components of the first scan.
    pub(super) first_scan: usize,
    /// The EXIF tag.
    pub(super) orientation: Orientation,
}

const SOI: u8 = 0xD8;
const EOI: u8 = 0xD9;
const SOS: u8 = 0xDA;
const APP1: u8 = 0xE1;
const EXIF: &[u8] = b"Exif\0\0";

/// A rule of the format that a file breaks.
fn broken(reason: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, reason)
}

fn byte(reader: &mut impl Read) -> io::Result<u8> {
    let mut one = [0u8];
    reader.read_exact(&mut one)?;
    Ok(one[0])
}

fn word(reader: &mut impl Read) -> io::Result<u16> {
    let mut two = [0u8; 2];
    reader.read_exact(&mut two)?;
    Ok(u16::from_be_bytes(two))
}

/// The next marker's code; bytes before it are passed over, as libjpeg does.
fn next_marker(reader: &mut impl Read) -> io::Result<u8> {
    loop {
        while byte(reader)? != 0xFF {}
        let mut code = byte(reader)?;
        while code == 0xFF {
            code = byte(reader)?;
        }
        if code != 0 {
            return Ok(code);
        }
    }
}

fn process_of(code: u8) -> Option<Process> {
    match code {
        0xC0 | 0xC1 | 0xC9 => Some(Process::Sequential),
        0xC2 | 0xCA => Some(Process::Progressive),
        // Huffman tables, reserved, arithmetic conditioning.
        0xC4 | 0xC8 | 0xCC => None,
        0xC0..=0xCF => Some(Process::Other),
        _ => None,
    }
}

/// Reads up to the first scan.
pub(super) fn read(reader: &mut (impl BufRead + Seek)) -> io::Result<Markers> {
    if [byte(reader)?, byte(reader)?] != [0xFF, SOI] {
        return Err(broken("no start of a JPEG"));
    }
    let mut frame: Option<Markers> = None;
    let mut orientation = None;
    loop {
        let code = next_marker(reader)?;
        match code {
            EOI => return Err(broken("no picture before the end marker")),
            // Markers without a segment.
            0x01 | 0xD0..=SOI => continue,
            _ => {}
        }
        let length = u64::from(word(reader)?);
        let Some(length) = length.checked_sub(2) else {
            return Err(broken("a segment shorter than its length field"));
        };
        if code == SOS {
            let mut frame = frame.ok_or_else(|| broken("a scan before the frame's header"))?;
            frame.first_scan = usize::from(byte(reader)?);
            frame.orientation = orientation.unwrap_or(Orientation::NoTransforms);
            return Ok(frame);
        }
        let wanted = process_of(code).is_some() || (code == APP1 && orientation.is_none());
        if !wanted {
            reader.seek_relative(length as i64)?;
            continue;
        }
        let mut segment = vec![0u8; length as usize];
        reader.read_exact(&mut segment)?;
        if let Some(process) = process_of(code) {
            if frame.is_some() {
                return Err(broken("two frame headers"));
            }
            frame = Some(frame_header(&segment, process)?);
        } else if let Some(exif) = segment.strip_prefix(EXIF) {
            orientation = Orientation::from_exif_chunk(exif);
        }
    }
}

fn frame_header(segment: &[u8], process: Process) -> io::Result<Markers> {
    let [precision, h1, h0, w1, w0, count, components @ ..] = segment else {
        return Err(broken("a frame header that is too short"));
    };
    let count = usize::from(*count);
    if components.len() < count * 3 {
        return Err(broken("a frame header that is too short"));
    }
    let sampling = components
        .chunks_exact(3)
        .take(count)
        .map(|c| (u32::from(c[1] >> 4), u32::from(c[1] & 15)))
        .collect();
    Ok(Markers {
        width: u32::from(u16::from_be_bytes([*w1, *w0])),
        height: u32::from(u16::from_be_bytes([*h1, *h0])),
        precision: *precision,
        sampling,
        process,
        first_scan: 0,
        orientation: Orientation::NoTransforms,
    })
}

/// The scans from the reader's place to the file's end, counted up to `most`.
pub(super) fn count_scans(reader: &mut impl BufRead, most: usize) -> io::Result<usize> {
    let mut count = 0;
    let mut after_ff = false;
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(count);
        }
        for &byte in buffer {
            if after_ff && byte == SOS {
                count += 1;
                if count >= most {
                    return Ok(count);
                }
            }
            after_ff = byte == 0xFF;
        }
        let length = buffer.len();
        reader.consume(length);
    }
}

impl Markers {
    /// Whether libjpeg must hold the coefficients of the whole picture.
    pub(super) fn has_several_scans(&self) -> bool {
        self.process == Process::Progressive || self.first_scan < self.sampling.len()
    }

    /// Bytes of the coefficients of the whole picture: 16 bits each, whole blocks of 8 x 8.
    pub(super) fn coefficient_bytes(&self) -> u64 {
        let most = |side: fn(&(u32, u32)) -> u32| self.sampling.iter().map(side).max();
        let (h_most, v_most) = (most(|s| s.0).unwrap_or(1), most(|s| s.1).unwrap_or(1));
        let blocks = |side: u32, factor: u32, most: u32| {
            let units = u64::from(side).div_ceil(8 * u64::from(most.max(1)));
            units * u64::from(factor)
        };
        self.sampling
            .iter()
            .map(|&(h, v)| blocks(self.width, h, h_most) * blocks(self.height, v, v_most) * 64 * 2)
            .sum()
    }
}
