//! Small files that claim much: how much memory one picture, and a folder of them, takes.
//!
//! Each file says 8,000 x 5,000 pixels (the edge of what one picture may take by itself) and is made
//! here by hand, so that it is small: the same code over and over. `SECATEUR_FULL=1` runs more
//! variants.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use support::{is_full, picture, put, secateur};

const WIDTH: u32 = 8000;
const HEIGHT: u32 = 5000;
const MIB: u64 = 1 << 20;
/// What one picture of 40 megapixels may add to the process.
const ONE: u64 = 300 * MIB;
/// What any folder of them may add.
const FOLDER: u64 = 600 * MIB;

/// Bits, least significant first.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    held: u64,
    count: u32,
}

impl Bits {
    fn put(&mut self, value: u64, count: u32) {
        self.held |= value << self.count;
        self.count += count;
        while self.count >= 8 {
            self.bytes.push(self.held as u8);
            self.held >>= 8;
            self.count -= 8;
        }
    }

    fn end(mut self) -> Vec<u8> {
        if self.count > 0 {
            self.bytes.push(self.held as u8);
        }
        self.bytes
    }
}

/// A zlib stream of that many zero bytes.
fn zeros(count: u64) -> Vec<u8> {
    let mut bits = Bits::default();
    bits.put(0x0178, 16);
    // One block with fixed codes: a zero, then copies of the 258 bytes before.
    bits.put(0b011, 3);
    let literal = |bits: &mut Bits| bits.put(0b0000_1100, 8);
    literal(&mut bits);
    let copies = (count - 1) / 258;
    for _ in 0..copies {
        // Length 258 is code 285, 11000101 from its first bit; distance 1 is code 0.
        bits.put(0b1010_0011, 8);
        bits.put(0, 5);
    }
    for _ in 0..(count - 1) % 258 {
        literal(&mut bits);
    }
    bits.put(0, 7);
    let mut stream = bits.end();
    let adler = (((count % 65_521) as u32) << 16) | 1;
    stream.extend(adler.to_be_bytes());
    stream
}

fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |mut crc, &b| {
        crc ^= u32::from(b);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
        }
        crc
    })
}

/// A black PNG of `bits` a channel and colour type `colour`, with chunks before its pixels.
fn png(bits: u8, colour: u8, interlaced: bool, extra: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
    let channels = [1u64, 0, 3, 1, 2, 0, 4][usize::from(colour)];
    let row = u64::from(WIDTH) * channels * u64::from(bits) / 8;
    // Adam7 has a filter byte for each row of each pass: the last pass has half of the rows.
    let filters = u64::from(HEIGHT) * if interlaced { 15 } else { 8 } / 8;
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8; 4], data: &[u8]| {
        let body = [&kind[..], data].concat();
        png.extend((data.len() as u32).to_be_bytes());
        png.extend(&body);
        png.extend(crc(&body).to_be_bytes());
    };
    let tail = [bits, colour, 0, 0, u8::from(interlaced)];
    chunk(b"IHDR", &[&WIDTH.to_be_bytes()[..], &HEIGHT.to_be_bytes(), &tail].concat());
    for (kind, data) in extra {
        chunk(kind, data);
    }
    chunk(b"IDAT", &zeros(row * u64::from(HEIGHT) + filters));
    chunk(b"IEND", &[]);
    png
}

/// A grey JPEG, `sampling` of its first component as (horizontal, vertical): only DC codes of zero.
fn jpeg(progressive: bool, sampling: (u8, u8), components: u8) -> Vec<u8> {
    let mut jpeg = b"\xFF\xD8".to_vec();
    let mut segment = |code: u8, data: &[u8]| {
        jpeg.extend([0xFF, code]);
        jpeg.extend((data.len() as u16 + 2).to_be_bytes());
        jpeg.extend(data);
    };
    segment(0xDB, &[&[0u8][..], &[1; 64]].concat());
    let mut frame = vec![8];
    frame.extend((HEIGHT as u16).to_be_bytes());
    frame.extend((WIDTH as u16).to_be_bytes());
    frame.push(components);
    for id in 1..=components {
        let factors = if id == 1 { sampling.0 << 4 | sampling.1 } else { 0x11 };
        frame.extend([id, factors, 0]);
    }
    segment(if progressive { 0xC2 } else { 0xC0 }, &frame);
    // One code of one bit: no difference for DC, end of block for AC.
    let one = [&[1u8][..], &[0; 15], &[0]].concat();
    segment(0xC4, &[&[0x00][..], &one].concat());
    segment(0xC4, &[&[0x10][..], &one].concat());
    let mut scan = vec![components];
    (1..=components).for_each(|id| scan.extend([id, 0]));
    scan.extend([0, if progressive { 0 } else { 63 }, 0]);
    segment(0xDA, &scan);
    let (h, v) = sampling;
    let units =
        u64::from(WIDTH).div_ceil(8 * u64::from(h)) * u64::from(HEIGHT).div_ceil(8 * u64::from(v));
    let blocks = units * (u64::from(h) * u64::from(v) + u64::from(components) - 1);
    let bits = blocks * if progressive { 1 } else { 2 };
    jpeg.resize(jpeg.len() + bits.div_ceil(8) as usize, 0);
    jpeg.extend(b"\xFF\xD9");
    jpeg
}

/// A GIF of two frames, all of colour 0.
fn gif() -> Vec<u8> {
    let mut gif = b"GIF89a".to_vec();
    gif.extend((WIDTH as u16).to_le_bytes());
    gif.extend((HEIGHT as u16).to_le_bytes());
    gif.extend([0x80, 0, 0, 9, 9, 9, 200, 0, 0]);
    let mut frame = Bits::default();
    let width = |next: u64| (u64::BITS - next.leading_zeros()).clamp(3, 12);
    let (mut left, mut next) = (u64::from(WIDTH) * u64::from(HEIGHT), 6u64);
    frame.put(4, 3);
    while left > 0 {
        frame.put(0, 3);
        left -= 1;
        // Each new code stands for one pixel more than the one before, until the table is full.
        let mut run = 2;
        while left > 0 && next < 4096 {
            let fits = run <= left;
            frame.put(if fits { next } else { 0 }, width(next));
            left -= if fits { run } else { 1 };
            // Behind a single pixel only single ones are sure.
            run = if fits { run + 1 } else { u64::MAX };
            next += 1;
        }
        if left > 0 {
            frame.put(4, 12);
            next = 6;
        }
    }
    frame.put(5, width(next));
    let data = frame.end();
    for _ in 0..2 {
        gif.extend([0x2C, 0, 0, 0, 0]);
        gif.extend((WIDTH as u16).to_le_bytes());
        gif.extend((HEIGHT as u16).to_le_bytes());
        gif.extend([0, 2]);
        for block in data.chunks(255) {
            gif.push(block.len() as u8);
            gif.extend(block);
        }
        gif.push(0);
    }
    gif.push(0x3B);
    gif
}

fn riff(chunks: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
    let mut body = b"WEBP".to_vec();
    for (kind, data) in chunks {
        body.extend(*kind);
        body.extend((data.len() as u32).to_le_bytes());
        body.extend(data);
        body.resize(body.len().next_multiple_of(2), 0);
    }
    [&b"RIFF"[..], &(body.len() as u32).to_le_bytes(), &body].concat()
}

/// A lossless WebP bitstream of one colour: every code has one symbol, so pixels take no bit.
fn lossless(alpha: bool) -> Vec<u8> {
    let mut bits = Bits::default();
    bits.put(0x2F, 8);
    bits.put(u64::from(WIDTH - 1), 14);
    bits.put(u64::from(HEIGHT - 1), 14);
    bits.put(u64::from(alpha), 1);
    // Version, no transform, no colour cache, no meta codes.
    bits.put(0, 3 + 1 + 1 + 1);
    for _ in 0..5 {
        // A simple code of one symbol of one bit: 0.
        bits.put(0b0001, 4);
    }
    bits.end()
}

fn animated_webp() -> Vec<u8> {
    let sides = [&(WIDTH - 1).to_le_bytes()[..3], &(HEIGHT - 1).to_le_bytes()[..3]].concat();
    let still = riff(&[(b"VP8L", lossless(true))]);
    let frame = [&[0u8; 6][..], &sides, &[50, 0, 0, 0], &still[12..]].concat();
    riff(&[
        (b"VP8X", [&[0x12u8, 0, 0, 0][..], &sides].concat()),
        (b"ANIM", vec![0; 6]),
        (b"ANMF", frame.clone()),
        (b"ANMF", frame),
    ])
}

/// A deflated TIFF in one strip.
fn tiff(channels: u16) -> Vec<u8> {
    let data = zeros(u64::from(WIDTH) * u64::from(HEIGHT) * u64::from(channels));
    let bits_at = 8 + 2 + 11 * 12 + 4;
    let entries: [(u16, u16, u32, u32); 11] = [
        (256, 4, 1, WIDTH),
        (257, 4, 1, HEIGHT),
        (258, 3, u32::from(channels), bits_at),
        (259, 3, 1, 8),
        (262, 3, 1, 2),
        (273, 4, 1, bits_at + 8),
        (277, 3, 1, u32::from(channels)),
        (278, 4, 1, HEIGHT),
        (279, 4, 1, data.len() as u32),
        (284, 3, 1, 1),
        (338, 3, 1, 2),
    ];
    let count = if channels == 4 { 11u16 } else { 10 };
    let mut tiff = b"II*\0\x08\0\0\0".to_vec();
    tiff.extend(count.to_le_bytes());
    for (tag, kind, count, value) in &entries[..usize::from(count)] {
        tiff.extend(tag.to_le_bytes());
        tiff.extend(kind.to_le_bytes());
        tiff.extend(count.to_le_bytes());
        tiff.extend(value.to_le_bytes());
    }
    tiff.resize(bits_at as usize, 0);
    tiff.extend([8u16; 4].iter().flat_map(|b| b.to_le_bytes()));
    tiff.extend(data);
    tiff
}

/// A BMP whose pixels are a hole in the file.
fn bmp(path: &Path) {
    let mut bmp = b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
    bmp.extend(WIDTH.to_le_bytes());
    bmp.extend(HEIGHT.to_le_bytes());
    bmp.extend([1, 0, 24, 0]);
    bmp.resize(54, 0);
    put(path, &bmp);
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(54 + u64::from(WIDTH) * u64::from(HEIGHT) * 3).unwrap();
}

/// Peak resident size of a run of the program, bytes, and its records.
fn peak(folder: &Path, args: &[&str]) -> (u64, String) {
    let mut child = secateur(folder)
        .args(["caption", "--format", "jsonl", "--max-tokens", "1", "--progress", "none"])
        .args(args)
        .stdout(Stdio::from(fs::File::create(folder.join("out.jsonl")).unwrap()))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    // The kernel keeps the highest value; the last look before the end has it, since the model
    // still runs after the pictures were read.
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
        most = most.max(kib.unwrap_or(0) * 1024);
        std::thread::park_timeout(Duration::from_millis(2));
    }
    (most, fs::read_to_string(folder.join("out.jsonl")).unwrap())
}

#[test]
fn forty_megapixels_of_any_format_stay_within_the_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("in");
    fs::create_dir(&place).unwrap();
    let mut files: Vec<(&str, Vec<u8>)> = vec![
        ("rgb.png", png(8, 2, false, &[])),
        ("rgba.png", png(8, 6, false, &[])),
        ("deep.png", png(16, 6, false, &[])),
        ("interlaced.png", png(16, 6, true, &[])),
        ("baseline.jpg", jpeg(false, (2, 2), 3)),
        ("progressive.jpg", jpeg(true, (2, 2), 3)),
        ("progressive-444.jpg", jpeg(true, (1, 1), 3)),
        ("animated.gif", gif()),
        ("still.webp", riff(&[(b"VP8L", lossless(false))])),
        ("alpha.webp", riff(&[(b"VP8L", lossless(true))])),
        ("animated.webp", animated_webp()),
        ("rgb.tif", tiff(3)),
        ("rgba.tif", tiff(4)),
    ];
    let profile = [b"name\0\0", &zeros(400 << 20)[..]].concat();
    let text = [b"comment\0\0", &zeros(400 << 20)[..]].concat();
    files.push(("chunks.png", png(8, 2, false, &[(b"iCCP", profile), (b"zTXt", text)])));
    if !is_full() {
        // One of each way of reading.
        let short = [
            "interlaced.png",
            "chunks.png",
            "baseline.jpg",
            "progressive-444.jpg",
            "animated.gif",
            "animated.webp",
            "rgba.tif",
        ];
        files.retain(|(name, _)| short.contains(name));
    }
    let small = folder.path().join("small.png");
    picture(1).save(&small).unwrap();
    let (before, _) = peak(folder.path(), &["small.png"]);
    let mut wrong = Vec::new();
    for (name, bytes) in &files {
        put(&place.join(name), bytes);
    }
    bmp(&place.join("rgb.bmp"));
    let names: Vec<&str> = files.iter().map(|(name, _)| *name).chain(["rgb.bmp"]).collect();
    for name in &names {
        let (most, out) = peak(folder.path(), &[&format!("in/{name}")]);
        let grown = most.saturating_sub(before);
        if grown > ONE || !out.contains("\"status\":\"ok\"") {
            wrong.push(format!("{name}: {} MiB more, {out}", grown / MIB));
        }
    }
    let args = ["in", "--jobs", "8", "--batch-size", "8"];
    let (most, out) = peak(folder.path(), &args);
    let grown = most.saturating_sub(before);
    if grown > FOLDER || out.matches("\"status\":\"ok\"").count() != names.len() {
        wrong.push(format!("the folder: {} MiB more, {out}", grown / MIB));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
