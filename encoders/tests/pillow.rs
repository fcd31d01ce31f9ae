//! Small picture files against what Pillow 13 makes of them: the same pixels, and the same answer
//! at every place where a file can be cut.
//!
//! `golden/pillow` holds files of each format and, beside each, its pixels as a PNG (transparency
//! over white); `golden/cut` holds files and a table of the shortest beginnings that Pillow accepts.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use secateur_core::clip::Clip;
use secateur_core::error::InputError;
use secateur_encoders::image::{Limits, decode, load, probe};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn ending<'a>(path: &'a Path) -> &'a str {
    path.extension().and_then(|e| e.to_str()).unwrap()
}

/// Files of `folder` that have a PNG of their pixels beside them.
fn judged(folder: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let pixels = PathBuf::from(format!("{}.png", path.display()));
        if pixels.is_file() {
            found.push((path, pixels));
        }
    }
    found.sort();
    found
}

fn largest_difference(a: &Clip, b: &Clip) -> Option<u8> {
    let ((a, b), same_size) =
        ((&a.frames()[0], &b.frames()[0]), (a.width(), a.height()) == (b.width(), b.height()));
    let differences = a.rgb.iter().zip(b.rgb.iter()).map(|(a, b)| a.abs_diff(*b));
    same_size.then(|| differences.max().unwrap_or(0))
}

/// Levels, of 255, that a file may differ from Pillow by, and why.
fn tolerance(path: &Path) -> u8 {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap();
    match name {
        // Grey of 16 bits keeps its upper byte, where Pillow's is white: see `sixteen_bit_grey`.
        "grey16.png" => 255,
        // One rounding of floats, against one of integers.
        "cmyk.tif" => 1,
        _ => 0,
    }
}

#[test]
fn pixels_are_pillows() {
    let limits = Limits::default();
    let mut wrong = Vec::new();
    let files = judged(&folder("pillow"));
    assert!(files.len() > 40, "{} files", files.len());
    for (path, pixels) in files {
        let expected = load(&pixels, &limits).unwrap();
        let found = load(&path, &limits).map_err(|e| e.to_string());
        let verdict = match &found {
            Ok(found) => match largest_difference(found, &expected) {
                Some(by) if by <= tolerance(&path) => continue,
                Some(by) => format!("differs by up to {by}"),
                None => format!("{}x{}", found.width(), found.height()),
            },
            Err(error) => error.clone(),
        };
        wrong.push(format!("{}: {verdict}", path.file_name().unwrap().display()));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn sixteen_bit_grey_keeps_its_upper_byte_where_pillow_gives_white() {
    let limits = Limits::default();
    let path = folder("pillow").join("grey16.png");
    let (ours, pillows) =
        (load(&path, &limits).unwrap(), load(&folder("pillow").join("grey16.png.png"), &limits));
    let of = |clip: &Clip| -> u64 { clip.frames()[0].rgb.iter().map(|&v| u64::from(v)).sum() };
    let bytes = ours.frames()[0].rgb.len() as u64;
    assert!(of(&ours) < 200 * bytes, "a picture");
    assert!(of(&pillows.unwrap()) > 254 * bytes, "white");
}

#[test]
fn a_file_cut_anywhere_is_corrupt_where_pillow_says_so() {
    let limits = Limits::default();
    let table = std::fs::read_to_string(folder("cut").join("shortest.json")).unwrap();
    let table: BTreeMap<String, usize> = serde_json::from_str(&table).unwrap();
    let mut wrong = Vec::new();
    for (name, shortest) in &table {
        let whole = std::fs::read(folder("cut").join(name)).unwrap();
        let expected = decode(name, &whole, &limits).unwrap();
        for length in 0..whole.len() {
            let found = decode(name, &whole[..length], &limits);
            let verdict = match (&found, length < *shortest) {
                // The pixels are there though the frame's last block lacks its last byte.
                (Ok(clip), true)
                    if name.ends_with(".gif")
                        && length + 1 == *shortest
                        && largest_difference(clip, &expected) == Some(0) =>
                {
                    continue;
                }
                (Ok(_), true) => "is read",
                // The `image` crate wants the end chunk of a PNG inside an icon.
                (Err(_), false) if name == "icon.ico" => continue,
                (Ok(clip), false) if largest_difference(clip, &expected) == Some(0) => continue,
                (Ok(_), false) => "gives other pixels",
                (Err(_), false) => "is refused",
                // The first bytes say which format it is, so without them it is none.
                (Err(InputError::UnsupportedFormat { .. } | InputError::Empty { .. }), true)
                    if length < 16 =>
                {
                    continue;
                }
                (Err(InputError::Corrupt { .. }), true) => continue,
                (Err(_), true) => "is not called corrupt",
            };
            wrong.push(format!("{name}: {length} of {} bytes {verdict}", whole.len()));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of them, such as\n{}",
        wrong.len(),
        wrong[..wrong.len().min(40)].join("\n")
    );
}

#[test]
fn no_file_needs_more_than_its_header_says() {
    let limits = Limits::default();
    for (path, _) in judged(&folder("pillow")) {
        let header = probe(&path, &limits).unwrap();
        let pixels = u64::from(header.width) * u64::from(header.height);
        assert!(header.peak_bytes >= pixels * 3, "{}", path.display());
        let tight = Limits { max_alloc_bytes: header.peak_bytes - 1, ..limits };
        let is_jpeg = matches!(ending(&path), "jpg");
        match load(&path, &tight) {
            Err(InputError::TooLarge { limit, .. }) => {
                assert!(limit.contains("max_decode_memory"), "{limit}");
            }
            // A JPEG of several scans is reduced before it is refused.
            Ok(clip) => assert!(is_jpeg && clip.width() == header.width, "{}", path.display()),
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_jpeg_that_would_take_too_much_is_reduced_and_keeps_its_size() {
    let path = folder("pillow").join("progressive-444.jpg");
    let whole = load(&path, &Limits::default()).unwrap();
    let peak = probe(&path, &Limits::default()).unwrap().peak_bytes;
    let tight = Limits { max_alloc_bytes: peak - 1, ..Limits::default() };
    let reduced = load(&path, &tight).unwrap();
    let by = largest_difference(&reduced, &whole).expect("the same size");
    assert!(by > 8, "less detail");
    let mean = |clip: &Clip| -> f64 {
        let rgb = &clip.frames()[0].rgb;
        rgb.iter().map(|&v| f64::from(v)).sum::<f64>() / rgb.len() as f64
    };
    assert!((mean(&reduced) - mean(&whole)).abs() < 3.0, "the same picture");
}
