//! Picture files, good and bad: every kind gives RGB or an error that says what is wrong, never a
//! panic, within bounded memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Cursor, Write};
use std::path::Path;

use image::{
    DynamicImage, GrayImage, ImageBuffer, ImageFormat, Luma, Rgb, RgbImage, Rgba, RgbaImage,
};
use secateur_core::clip::Clip;
use secateur_core::error::InputError;
use secateur_encoders::image::{Limits, decode, from_dynamic, load, probe, probe_bytes};

fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A 40 x 30 picture with a gradient.
fn gradient() -> DynamicImage {
    RgbImage::from_fn(40, 30, |x, y| Rgb([(x * 6) as u8, (y * 8) as u8, (x ^ y) as u8])).into()
}

fn read(bytes: &[u8]) -> Result<Clip, InputError> {
    decode("picture", bytes, &Limits::default())
}

fn pixel(clip: &Clip, x: usize, y: usize) -> [u8; 3] {
    let at = (y * clip.width() as usize + x) * 3;
    clip.frames()[0].rgb[at..at + 3].try_into().unwrap()
}

#[test]
fn every_format_is_read() {
    let source = gradient();
    for format in [
        ImageFormat::Png,
        ImageFormat::Bmp,
        ImageFormat::Tiff,
        ImageFormat::WebP,
        ImageFormat::Ico,
        ImageFormat::Gif,
        ImageFormat::Jpeg,
    ] {
        // Icons hold RGBA alone.
        let icon = DynamicImage::from(source.to_rgba8());
        let kept = if format == ImageFormat::Ico { &icon } else { &source };
        let clip = read(&encoded(kept, format)).unwrap();
        assert_eq!((clip.width(), clip.height()), (40, 30), "{format:?}");
        let lossless = !matches!(format, ImageFormat::Gif | ImageFormat::Jpeg);
        if lossless {
            assert_eq!(&clip.frames()[0].rgb[..], source.as_bytes(), "{format:?}");
        }
    }
}

#[test]
fn grey_sixteen_bits_and_transparency_become_rgb() {
    let grey: DynamicImage = GrayImage::from_fn(3, 2, |x, y| Luma([(x * 50 + y) as u8])).into();
    let clip = read(&encoded(&grey, ImageFormat::Png)).unwrap();
    assert_eq!(pixel(&clip, 2, 1), [101; 3]);

    let deep: ImageBuffer<Rgb<u16>, Vec<u16>> =
        ImageBuffer::from_pixel(2, 2, Rgb([0x1280, 0xFFFF, 0x00FF]));
    let clip = read(&encoded(&deep.into(), ImageFormat::Png)).unwrap();
    assert_eq!(pixel(&clip, 1, 1), [0x12, 0xFF, 0]);

    let mut clear = RgbaImage::from_pixel(2, 1, Rgba([10, 20, 30, 0]));
    clear.put_pixel(1, 0, Rgba([0, 0, 0, 128]));
    for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Tiff] {
        let clip = read(&encoded(&clear.clone().into(), format)).unwrap();
        assert_eq!((pixel(&clip, 0, 0), pixel(&clip, 1, 0)), ([255; 3], [127; 3]), "{format:?}");
    }
}

/// A PNG chunk with its checksum.
fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut crc = u32::MAX;
    for byte in kind.iter().chain(data) {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    let mut out = (data.len() as u32).to_be_bytes().to_vec();
    out.extend_from_slice(kind);
    out.extend_from_slice(data);
    out.extend_from_slice(&(!crc).to_be_bytes());
    out
}

/// A zlib stream of stored blocks.
fn stored(data: &[u8]) -> Vec<u8> {
    let mut out = vec![0x78, 0x01];
    let mut blocks = data.chunks(0xFFFF).peekable();
    while let Some(block) = blocks.next() {
        out.push(u8::from(blocks.peek().is_none()));
        out.extend_from_slice(&(block.len() as u16).to_le_bytes());
        out.extend_from_slice(&(!(block.len() as u16)).to_le_bytes());
        out.extend_from_slice(block);
    }
    let (mut a, mut b) = (1u32, 0u32);
    for byte in data {
        a = (a + u32::from(*byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    out.extend_from_slice(&((b << 16) | a).to_be_bytes());
    out
}

/// A PNG by hand: header fields, chunks between header and data, raw rows with filter bytes.
fn png(width: u32, height: u32, depth: u8, colour: u8, extra: &[Vec<u8>], rows: &[u8]) -> Vec<u8> {
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = Vec::new();
    header.extend_from_slice(&width.to_be_bytes());
    header.extend_from_slice(&height.to_be_bytes());
    header.extend_from_slice(&[depth, colour, 0, 0, 0]);
    out.extend(chunk(b"IHDR", &header));
    out.extend(extra.concat());
    out.extend(chunk(b"IDAT", &stored(rows)));
    out.extend(chunk(b"IEND", &[]));
    out
}

#[test]
fn palettes_and_single_bits_are_expanded() {
    let palette = chunk(b"PLTE", &[255, 0, 0, 0, 255, 0, 0, 0, 255]);
    let clear = chunk(b"tRNS", &[255, 0]);
    let bytes = png(3, 1, 8, 3, &[palette.clone(), clear], &[0, 0, 1, 2]);
    let clip = read(&bytes).unwrap();
    // The second entry is transparent: white.
    assert_eq!(&clip.frames()[0].rgb[..], &[255, 0, 0, 255, 255, 255, 0, 0, 255]);
    let clip = read(&png(3, 1, 8, 3, &[palette], &[0, 0, 1, 2])).unwrap();
    assert_eq!(pixel(&clip, 1, 0), [0, 255, 0]);
    let clip = read(&png(8, 1, 1, 0, &[], &[0, 0b1010_0000])).unwrap();
    assert_eq!((pixel(&clip, 0, 0), pixel(&clip, 1, 0)), ([255; 3], [0; 3]));
}

/// A JPEG with an EXIF block that holds nothing but the orientation.
fn jpeg_with_orientation(tag: u16) -> Vec<u8> {
    let jpeg = encoded(&gradient(), ImageFormat::Jpeg);
    let mut tiff = b"II*\0\x08\0\0\0\x01\0".to_vec();
    tiff.extend_from_slice(&[0x12, 0x01, 3, 0, 1, 0, 0, 0]);
    tiff.extend_from_slice(&tag.to_le_bytes());
    tiff.extend_from_slice(&[0; 6]);
    let mut out = jpeg[..2].to_vec();
    out.extend_from_slice(&[0xFF, 0xE1]);
    out.extend_from_slice(&((tiff.len() + 8) as u16).to_be_bytes());
    out.extend_from_slice(b"Exif\0\0");
    out.extend(tiff);
    out.extend_from_slice(&jpeg[2..]);
    out
}

#[test]
fn exif_turns_pictures_upright() {
    let plain = read(&encoded(&gradient(), ImageFormat::Jpeg)).unwrap();
    let (w, h) = (40usize, 30usize);
    // Where the plain picture's upper left corner ends up.
    let corners = [
        (1, (0, 0)),
        (2, (w - 1, 0)),
        (3, (w - 1, h - 1)),
        (4, (0, h - 1)),
        (5, (0, 0)),
        (6, (h - 1, 0)),
        (7, (h - 1, w - 1)),
        (8, (0, w - 1)),
        (9, (0, 0)),
        (0, (0, 0)),
    ];
    for (tag, (x, y)) in corners {
        let bytes = jpeg_with_orientation(tag);
        let clip = read(&bytes).unwrap();
        let swapped = (5..=8).contains(&tag);
        let size = if swapped { (30, 40) } else { (40, 30) };
        assert_eq!((clip.width(), clip.height()), size, "orientation {tag}");
        assert_eq!(pixel(&clip, x, y), pixel(&plain, 0, 0), "orientation {tag}");
        let header = probe_bytes("picture", &bytes, &Limits::default()).unwrap();
        let told = if (1..=8).contains(&tag) { tag as u8 } else { 1 };
        assert_eq!((header.width, header.height, header.orientation), (size.0, size.1, told));
        assert_eq!(header.format, "jpeg");
    }
}

#[test]
fn the_first_frame_of_an_animation_is_taken() {
    let mut bytes = Vec::new();
    {
        let mut encoder = image::codecs::gif::GifEncoder::new(&mut bytes);
        for colour in [[200, 0, 0, 255], [0, 0, 200, 255]] {
            let frame = image::Frame::new(RgbaImage::from_pixel(8, 6, Rgba(colour)));
            encoder.encode_frame(frame).unwrap();
        }
    }
    let clip = read(&bytes).unwrap();
    assert_eq!((clip.frames().len(), clip.video()), (1, None));
    let [r, _, b] = pixel(&clip, 3, 3);
    assert!(r > 180 && b < 20, "the first frame is red");
}

#[test]
fn cmyk_is_converted() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cmyk.jpg");
    let clip = load(&path, &Limits::default()).unwrap();
    let want = [
        ((8, 8), [255, 255, 255]),
        ((24, 8), [255, 0, 0]),
        ((8, 24), [0, 255, 0]),
        ((24, 24), [55, 55, 55]),
    ];
    for ((x, y), colour) in want {
        let got = pixel(&clip, x, y);
        let off = got.iter().zip(colour).map(|(a, b)| a.abs_diff(b)).max().unwrap();
        assert!(off <= 6, "({x}, {y}) is {got:?}, expected about {colour:?}");
    }
}

#[test]
fn what_is_no_picture_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::File::create(&path).unwrap().write_all(bytes).unwrap();
        path
    };
    let limits = Limits::default();
    let missing = load(&folder.path().join("no.png"), &limits).unwrap_err();
    assert!(matches!(missing, InputError::NotFound { .. }), "{missing}");
    let html = load(&file("page.jpg", b"<!doctype html><html></html>"), &limits).unwrap_err();
    assert!(matches!(html, InputError::UnsupportedFormat { .. }), "{html}");
    assert!(html.to_string().contains("png, jpeg, webp"), "{html}");
    let empty = load(&file("empty.png", b""), &limits).unwrap_err();
    assert!(matches!(empty, InputError::Empty { .. }), "{empty}");
    let dir = load(folder.path(), &limits).unwrap_err();
    assert!(matches!(dir, InputError::Io { .. }) && dir.to_string().contains("folder"), "{dir}");
    // The content decides, not the name.
    let png = file("really.jpg", &encoded(&gradient(), ImageFormat::Png));
    assert_eq!(probe(&png, &limits).unwrap().format, "png");
    let small = Limits { max_file_bytes: 100, ..limits };
    let large = load(&png, &small).unwrap_err();
    assert!(matches!(large, InputError::TooLarge { .. }), "{large}");
    assert!(large.to_string().contains("really.jpg"), "{large}");
}

#[test]
fn prefixes_and_flipped_bytes_never_panic() {
    for format in [
        ImageFormat::Png,
        ImageFormat::Bmp,
        ImageFormat::Tiff,
        ImageFormat::WebP,
        ImageFormat::Ico,
        ImageFormat::Gif,
        ImageFormat::Jpeg,
    ] {
        let whole = encoded(&gradient(), format);
        for cut in (1..whole.len()).step_by(37) {
            let result = read(&whole[..cut]);
            // Where exactly a file may be cut: `pillow.rs`.
            let lacks_pixels = matches!(format, ImageFormat::Png) && cut + 24 < whole.len();
            if lacks_pixels {
                assert!(result.is_err(), "{format:?} cut at {cut}");
            }
        }
        for at in (0..whole.len()).step_by(13) {
            let mut broken = whole.clone();
            broken[at] ^= 0xA5;
            let _ = read(&broken);
        }
    }
}

/// Peak resident size of this process, KiB; `None` where the system does not say.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn bombs_are_refused_from_their_headers() {
    let before = peak_kib();
    let zeros = vec![0u8; 4096];
    let wide = read(&png(65_535, 65_535, 1, 0, &[], &zeros)).unwrap_err();
    assert!(matches!(wide, InputError::TooLarge { .. }), "{wide}");
    assert!(wide.to_string().contains("65535x65535") && wide.to_string().contains("max_pixels"));
    let long = read(&png(1, 1_000_000, 8, 2, &[], &zeros)).unwrap_err();
    assert!(long.to_string().contains("1x1000000"), "{long}");
    let none = read(&png(0, 10, 8, 2, &[], &zeros)).unwrap_err();
    assert!(matches!(none, InputError::Corrupt { .. } | InputError::Empty { .. }), "{none}");
    // A header of 65,500 x 65,500 in front of an ordinary JPEG's data.
    let mut jpeg = encoded(&gradient(), ImageFormat::Jpeg);
    let start = jpeg.windows(2).position(|w| w == [0xFF, 0xC0]).unwrap();
    jpeg[start + 5..start + 9].copy_from_slice(&[0xFF, 0xDC, 0xFF, 0xDC]);
    assert!(matches!(read(&jpeg).unwrap_err(), InputError::TooLarge { .. }));
    let mut bmp = encoded(&gradient(), ImageFormat::Bmp);
    bmp[18..26].copy_from_slice(&[0xF0, 0xFF, 0, 0, 0xF0, 0xFF, 0, 0]);
    assert!(read(&bmp).is_err());
    let mut gif = encoded(&gradient(), ImageFormat::Gif);
    gif[6..10].copy_from_slice(&[0xFF; 4]);
    assert!(matches!(read(&gif).unwrap_err(), InputError::TooLarge { .. }));
    let limits = Limits { max_pixels: 1000, ..Limits::default() };
    let error = decode("x", &encoded(&gradient(), ImageFormat::Png), &limits).unwrap_err();
    assert_eq!(error.to_string(), "x: a picture of 40x30 pixels exceeds 1000 pixels (max_pixels)");
    // The tests of this program run side by side, so the bound holds for all of them.
    if let (Some(before), Some(after)) = (before, peak_kib()) {
        assert!(after - before < 300 * 1024, "{} KiB more at the peak", after - before);
    }
}

#[test]
fn compressed_text_and_profiles_do_not_grow() {
    // 16 MiB of stored text and a broken profile: ancillary, so the picture is read without them.
    let mut text = b"comment\0\0".to_vec();
    text.extend(stored(&vec![b'a'; 16 << 20]));
    let extra = [chunk(b"zTXt", &text), chunk(b"iCCP", b"name\0\0junk")];
    let clip = read(&png(2, 1, 8, 0, &extra, &[0, 5, 6])).unwrap();
    assert_eq!(pixel(&clip, 1, 0), [6; 3]);
}

#[test]
fn decoded_pictures_are_taken_as_they_are() {
    let clip = from_dynamic("memory", &gradient()).unwrap();
    assert_eq!(&clip.frames()[0].rgb[..], gradient().as_bytes());
    let grey = DynamicImage::ImageLuma8(GrayImage::from_pixel(2, 2, Luma([9])));
    assert_eq!(pixel(&from_dynamic("memory", &grey).unwrap(), 1, 1), [9; 3]);
}
