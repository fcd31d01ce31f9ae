//! Whether a video file is as long as its container says.
//!
//! Invariants
//! - Only sizes are compared that a container states of itself: the boxes of MP4 and QuickTime,
//!   the segment of Matroska and WebM, the chunk of AVI, the data object of ASF. Frame counts and
//!   durations are none: edit lists, dropped frames and a held last frame make them differ from
//!   what the file holds.
//! - A file whose container states nothing (a live recording, a transport stream) is whole.
//! - Reads a few bytes at each box; any bytes give an answer.

use std::fs::File;
use std::io::{Read, Result, Seek, SeekFrom};

/// Most boxes that are looked at: a fragmented recording of a day has fewer.
const MOST_BOXES: usize = 1 << 20;
/// Writers of AVI are off by a chunk header or padding.
const AVI_SLACK: u64 = 8;
/// First 16 bytes of an ASF file, and those of its data object.
const ASF_HEAD: [u8; 16] = *b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c";
const ASF_DATA: [u8; 16] = *b"\x36\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c";
const EBML: [u8; 4] = [0x1a, 0x45, 0xdf, 0xa3];
const SEGMENT: [u8; 4] = [0x18, 0x53, 0x80, 0x67];

/// A length that a file falls short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Short {
    /// Bytes that the container states.
    pub(super) expected: u64,
    /// Bytes of the file.
    pub(super) found: u64,
}

/// What of a file is missing at its end; `None` if nothing is, or if nobody can know.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn missing(file: &mut File) -> Result<Option<Short>> {
    let found = file.metadata()?.len();
    let expected = stated(file, found)?;
    Ok(expected.filter(|e| *e > found).map(|expected| Short { expected, found }))
}

fn stated(file: &mut (impl Read + Seek), length: u64) -> Result<Option<u64>> {
    let Some(head) = at::<16>(file, 0, length)? else { return Ok(None) };
    if head[..4] == *b"RIFF" {
        return avi(file, length);
    }
    if head[..4] == EBML {
        return matroska(file, length);
    }
    if head == ASF_HEAD {
        return asf(file, length);
    }
    boxes(file, length)
}

/// `N` bytes at a place; `None` where the file ends before.
fn at<const N: usize>(
    file: &mut (impl Read + Seek),
    place: u64,
    length: u64,
) -> Result<Option<[u8; N]>> {
    if place.checked_add(N as u64).is_none_or(|end| end > length) {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(place))?;
    let mut bytes = [0; N];
    file.read_exact(&mut bytes)?;
    Ok(Some(bytes))
}

/// End of the box of an ISO base media file that reaches furthest, of those that hold the film.
fn boxes(file: &mut (impl Read + Seek), length: u64) -> Result<Option<u64>> {
    const FILM: [&[u8; 4]; 3] = [b"mdat", b"moov", b"moof"];
    const OTHER: [&[u8; 4]; 13] = [
        b"ftyp", b"free", b"skip", b"wide", b"pnot", b"styp", b"sidx", b"ssix", b"uuid", b"meta",
        b"emsg", b"prft", b"mfra",
    ];
    let mut place = 0u64;
    for _ in 0..MOST_BOXES {
        let Some(head) = at::<8>(file, place, length)? else { return Ok(None) };
        let is_film = FILM.iter().any(|kind| head[4..] == **kind);
        if !is_film && !OTHER.iter().any(|kind| head[4..] == **kind) {
            return Ok(None);
        }
        let size = match u32::from_be_bytes([head[0], head[1], head[2], head[3]]) {
            // To the end of the file.
            0 => return Ok(None),
            1 => match at::<8>(file, place + 8, length)? {
                Some(long) => u64::from_be_bytes(long),
                None => return Ok(None),
            },
            size => u64::from(size),
        };
        let Some(end) = place.checked_add(size).filter(|_| size >= 8) else { return Ok(None) };
        if is_film && end > length {
            return Ok(Some(end));
        }
        place = end;
    }
    Ok(None)
}

/// End of the segment, where its size is known.
fn matroska(file: &mut (impl Read + Seek), length: u64) -> Result<Option<u64>> {
    let Some((size, bytes)) = vint(file, 4, length)? else { return Ok(None) };
    let Some(place) = size.and_then(|size| size.checked_add(4 + bytes)) else { return Ok(None) };
    if at::<4>(file, place, length)? != Some(SEGMENT) {
        return Ok(None);
    }
    let Some((size, bytes)) = vint(file, place + 4, length)? else { return Ok(None) };
    Ok(size.and_then(|size| size.checked_add(place + 4 + bytes)))
}

/// A size of EBML (`None`: unknown) and the bytes that it takes.
fn vint(
    file: &mut (impl Read + Seek),
    place: u64,
    length: u64,
) -> Result<Option<(Option<u64>, u64)>> {
    let Some([first]) = at::<1>(file, place, length)? else { return Ok(None) };
    let bytes = u64::from(first.leading_zeros()) + 1;
    if bytes > 8 {
        return Ok(None);
    }
    let most = (1u64 << (7 * bytes)) - 1;
    let mut value = u64::from(first) & (0xff >> bytes);
    for i in 1..bytes {
        let Some([byte]) = at::<1>(file, place + i, length)? else { return Ok(None) };
        value = value << 8 | u64::from(byte);
    }
    Ok(Some(((value != most).then_some(value), bytes)))
}

/// End of the last RIFF chunk: of the first, or of those that follow it in large files.
fn avi(file: &mut (impl Read + Seek), length: u64) -> Result<Option<u64>> {
    let mut place = 0u64;
    for _ in 0..MOST_BOXES {
        let Some(head) = at::<8>(file, place, length)? else { return Ok(None) };
        let size = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        // A recording that was not closed.
        if head[..4] != *b"RIFF" || size == 0 || size == u32::MAX {
            return Ok(None);
        }
        let end = place + 8 + u64::from(size);
        if end > length + AVI_SLACK {
            return Ok(Some(end));
        }
        place = end + end % 2;
    }
    Ok(None)
}

/// End of the data object.
fn asf(file: &mut (impl Read + Seek), length: u64) -> Result<Option<u64>> {
    let mut place = 0u64;
    for _ in 0..MOST_BOXES {
        let Some(kind) = at::<16>(file, place, length)? else { return Ok(None) };
        let Some(size) = at::<8>(file, place + 16, length)? else { return Ok(None) };
        let size = u64::from_le_bytes(size);
        let Some(end) = place.checked_add(size).filter(|_| size >= 24) else { return Ok(None) };
        if kind == ASF_DATA {
            return Ok(Some(end));
        }
        place = end;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn ends(bytes: &[u8]) -> Option<u64> {
        stated(&mut Cursor::new(bytes), bytes.len() as u64).unwrap()
    }

    fn mp4(kind: &[u8; 4], size: u32, body: usize) -> Vec<u8> {
        [&16u32.to_be_bytes()[..], b"ftypisom\0\0\0\0", &size.to_be_bytes(), kind, &vec![0; body]]
            .concat()
    }

    #[test]
    fn a_box_of_the_film_that_reaches_beyond_the_file_is_missing_bytes() {
        assert_eq!(ends(&mp4(b"mdat", 40, 20)), Some(56));
        assert_eq!(ends(&mp4(b"mdat", 28, 20)), None);
        assert_eq!(ends(&mp4(b"mdat", 0, 20)), None, "to the end of the file");
        assert_eq!(ends(&mp4(b"free", 40, 20)), None, "nothing of the film");
        assert_eq!(ends(&mp4(b"JUNK", 40, 20)), None, "no box at all");
        assert_eq!(ends(&mp4(b"mdat", 7, 20)), None, "a size that cannot be");
    }

    #[test]
    fn a_segment_a_chunk_and_a_data_object_say_where_they_end() {
        let webm = |size: &[u8]| [&EBML[..], &[0x82, 0, 0], &SEGMENT, size, &[0; 20]].concat();
        assert_eq!(ends(&webm(&[0x9e])), Some(7 + 5 + 30));
        assert_eq!(ends(&webm(&[0x40, 100])), Some(7 + 6 + 100));
        assert_eq!(ends(&webm(&[0x01, 255, 255, 255, 255, 255, 255, 255])), None, "live");
        let avi = |size: u32| [&b"RIFF"[..], &size.to_le_bytes(), b"AVI ", &[0; 20]].concat();
        assert_eq!(ends(&avi(60)), Some(68));
        assert_eq!((ends(&avi(24)), ends(&avi(0)), ends(&avi(30))), (None, None, None));
        let object = |kind: [u8; 16], size: u64| [&kind[..], &size.to_le_bytes()].concat();
        let asf = [object(ASF_HEAD, 24), object(ASF_DATA, 100)].concat();
        assert_eq!(ends(&asf), Some(124));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_have_an_answer(
            kind in 0usize..4,
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80),
        ) {
            let head: [&[u8]; 4] = [b"RIFF", &EBML, &ASF_HEAD, b"\0\0\0\x10ftyp"];
            ends(&[head[kind], &bytes].concat());
        }
    }
}
