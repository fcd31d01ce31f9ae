//! Pictures as they come: odd but valid ones are captioned, broken ones are records, none stops
//! the job or takes its memory.

mod support;

use std::fs;
use std::io::Cursor;
use std::path::Path;

use image::{ImageFormat, Rgb, RgbImage};
use support::{picture, put, records, run, texts};

fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |mut crc, &b| {
        crc ^= u32::from(b);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
        }
        crc
    })
}

/// A PNG that says it has that size, with next to no data.
fn png_that_claims(width: u32, height: u32) -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8; 4], data: &[u8]| {
        let body = [&kind[..], data].concat();
        png.extend((data.len() as u32).to_be_bytes());
        png.extend(&body);
        png.extend(crc(&body).to_be_bytes());
    };
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[1, 0, 0, 0, 0]].concat();
    chunk(b"IHDR", &header);
    // An empty deflate stream.
    chunk(b"IDAT", &[0x78, 0x9c, 0x03, 0x00, 0x00, 0x00, 0x00, 0x01]);
    chunk(b"IEND", &[]);
    png
}

/// An uncompressed CMYK TIFF of 2 x 1 pixels.
fn cmyk_tiff() -> Vec<u8> {
    let mut tiff = b"II*\0\x08\0\0\0".to_vec();
    let bits_at = 8 + 2 + 10 * 12 + 4;
    let data_at = bits_at + 8;
    let entries: [(u16, u16, u32, u32); 10] = [
        (256, 4, 1, 2),
        (257, 4, 1, 1),
        (258, 3, 4, bits_at),
        (259, 3, 1, 1),
        (262, 3, 1, 5),
        (273, 4, 1, data_at),
        (277, 3, 1, 4),
        (278, 4, 1, 1),
        (279, 4, 1, 8),
        (332, 3, 1, 1),
    ];
    tiff.extend(10u16.to_le_bytes());
    for (tag, kind, count, value) in entries {
        tiff.extend(tag.to_le_bytes());
        tiff.extend(kind.to_le_bytes());
        tiff.extend(count.to_le_bytes());
        tiff.extend(value.to_le_bytes());
    }
    tiff.extend(0u32.to_le_bytes());
    tiff.extend([8u16; 4].iter().flat_map(|b| b.to_le_bytes()));
    tiff.extend([0, 255, 255, 0, 255, 0, 0, 0]);
    tiff
}

/// A JPEG whose EXIF block says orientation 6: stored lying, 40 x 20.
fn turned_jpeg() -> Vec<u8> {
    let mut jpeg = Vec::new();
    RgbImage::from_pixel(40, 20, Rgb([9, 90, 200]))
        .write_to(&mut Cursor::new(&mut jpeg), ImageFormat::Jpeg)
        .expect("a JPEG");
    let exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let length = (exif.len() as u16 + 2).to_be_bytes();
    let segment = [&b"\xff\xe1"[..], &length, exif].concat();
    jpeg.splice(2..2, segment);
    jpeg
}

fn save(path: &Path, image: impl Into<image::DynamicImage>) {
    image.into().save(path).expect("a picture");
}

fn animated_gif() -> Vec<u8> {
    let mut gif = Vec::new();
    let mut encoder = image::codecs::gif::GifEncoder::new(&mut gif);
    for i in 0..3 {
        let frame = image::DynamicImage::from(picture(i * 17)).to_rgba8();
        encoder.encode_frame(image::Frame::new(frame)).expect("a frame");
    }
    drop(encoder);
    gif
}

#[test]
fn each_picture_has_its_record() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("in");
    fs::create_dir(&place).unwrap();
    let at = |name: &str| place.join(name);
    // Odd, but pictures.
    save(&at("grey16.png"), image::ImageBuffer::<image::Luma<u16>, _>::new(30, 20));
    save(&at("alpha.png"), image::RgbaImage::new(30, 20));
    put(&at("animated.gif"), &animated_gif());
    put(&at("turned.jpg"), &turned_jpeg());
    put(&at("cmyk.tiff"), &cmyk_tiff());
    save(&at("one.png"), RgbImage::new(1, 1));
    save(&at("flat.png"), RgbImage::new(3000, 1));
    // A picture under a wrong name.
    picture(1).write_to(&mut fs::File::create(at("wrong.jpg")).unwrap(), ImageFormat::Png).unwrap();
    // Not pictures, or not whole ones.
    put(&at("bomb.png"), &png_that_claims(65_535, 65_535));
    put(&at("zero.png"), &png_that_claims(0, 9));
    put(&at("empty.png"), b"");
    put(&at("page.jpg"), b"<!doctype html><title>404</title>");
    let whole = turned_jpeg();
    put(&at("head.jpg"), &whole[..60]);
    put(&at("short.png"), &png_that_claims(40, 40));

    let args = ["caption", "in", "gone.png", "--format", "jsonl", "--max-tokens", "2"];
    let (code, out, err) = texts(&run(folder.path(), &args));
    assert_eq!(code, 3, "{err}");
    let records = records(&out);
    let kind = |name: &str| records[&format!("in/{name}")]["error"]["kind"].clone();
    let status = |name: &str| records[&format!("in/{name}")]["status"].clone();
    for name in [
        "grey16.png",
        "alpha.png",
        "animated.gif",
        "turned.jpg",
        "one.png",
        "flat.png",
        "wrong.jpg",
    ] {
        assert_eq!(status(name), "ok", "{name}: {}", kind(name));
    }
    for (name, expected) in [
        ("bomb.png", "image_too_large"),
        ("empty.png", "empty_image"),
        ("page.jpg", "unsupported_format"),
        ("head.jpg", "image_corrupt"),
        ("short.png", "image_corrupt"),
    ] {
        assert_eq!(kind(name), expected, "{name}");
    }
    // A side of zero is against the format's own rules: decoders may call it either.
    assert!(["empty_image", "image_corrupt"].contains(&kind("zero.png").as_str().unwrap()));
    // CMYK is converted or refused, never a crash.
    assert!(status("cmyk.tiff") == "ok" || kind("cmyk.tiff") == "unsupported_format");
    assert_eq!(records["gone.png"]["error"]["kind"], "not_found");
    let turned = &records["in/turned.jpg"]["image"];
    assert_eq!(turned["exif_orientation"], 6);
    assert_eq!((&turned["width"], &turned["height"]), (&20.into(), &40.into()));
    assert_eq!(records["in/animated.gif"]["image"]["frames"], 1);
    assert!(
        err.contains("image_too_large") && err.contains("max-pixels") || err.contains("max_pixels")
    );
}

#[test]
fn limits_are_flags() {
    let folder = support::pictures(1);
    let small = ["caption", "in", "--format", "jsonl", "--max-tokens", "2", "--max-pixels", "100"];
    let (code, out, _) = texts(&run(folder.path(), &small));
    assert_eq!(code, 3);
    assert_eq!(records(&out)["000.png"]["error"]["kind"], "image_too_large");
    let bytes = ["caption", "in", "--format", "jsonl", "--max-file-size", "10"];
    let (code, out, _) = texts(&run(folder.path(), &bytes));
    assert_eq!(code, 3);
    assert_eq!(records(&out)["000.png"]["error"]["kind"], "image_too_large");
}

#[cfg(unix)]
#[test]
fn a_file_that_may_not_be_read_is_a_record() {
    use std::os::unix::fs::PermissionsExt;
    let folder = support::pictures(2);
    let path = folder.path().join("in/001.png");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(&path).is_ok() {
        return; // An administrator reads everything.
    }
    let args = ["caption", "in", "--format", "jsonl", "--max-tokens", "2"];
    let (code, out, _) = texts(&run(folder.path(), &args));
    assert_eq!(code, 3);
    assert_eq!(records(&out)["001.png"]["error"]["kind"], "permission");
}

#[cfg(target_os = "linux")]
#[test]
fn a_bomb_takes_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    put(&folder.path().join("bomb.png"), &png_that_claims(65_535, 65_535));
    put(&folder.path().join("ok.png"), &[]);
    support::picture(1).save(folder.path().join("ok.png")).unwrap();
    let peak = |name: &str| {
        let args = ["ask", "--image", name, "what?", "--max-tokens", "1", "--json"];
        texts(&run(folder.path(), &args))
    };
    let (code, _, err) = peak("bomb.png");
    assert_eq!(code, 1);
    assert!(err.contains("65535x65535"), "{err}");
    assert_eq!(peak("ok.png").0, 0);
}
