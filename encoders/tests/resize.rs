//! Properties of the resamplers; that their bits are the references' is for `processors.rs`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use secateur_core::model::ImageBackend;
use secateur_encoders::image::{Bitmap, Canvas, Filter, Window, resize, resize_window};

fn bitmap(width: usize, height: usize, seed: u64) -> Bitmap {
    let mut state = seed | 1;
    let bytes: Vec<u8> = (0..width * height * 3)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect();
    Bitmap { width, height, rgb: bytes.into() }
}

fn filters() -> impl Strategy<Value = Filter> {
    prop_oneof![Just(Filter::Bilinear), Just(Filter::Bicubic), Just(Filter::Lanczos)]
}

fn backends() -> impl Strategy<Value = ImageBackend> {
    prop_oneof![Just(ImageBackend::Torchvision), Just(ImageBackend::Pillow)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_window_is_the_crop_of_the_whole(
        (w, h) in (1usize..40, 1usize..40),
        (to_w, to_h) in (1usize..60, 1usize..60),
        (left, top, right, bottom) in (0.0f64..1.0, 0.0f64..1.0, 0.0f64..1.0, 0.0f64..1.0),
        filter in filters(),
        backend in backends(),
        seed in any::<u64>(),
    ) {
        let at = |a: f64, n: usize| ((a * n as f64) as usize).min(n - 1);
        let (x0, x1) = (at(left, to_w).min(at(right, to_w)), at(left, to_w).max(at(right, to_w)));
        let (y0, y1) = (at(top, to_h).min(at(bottom, to_h)), at(top, to_h).max(at(bottom, to_h)));
        let window = Window { left: x0, top: y0, width: x1 - x0 + 1, height: y1 - y0 + 1 };
        let source = bitmap(w, h, seed);
        let whole = resize(source.clone(), (to_w, to_h), filter, backend);
        let part = resize_window(source, (to_w, to_h), window, filter, backend);
        let cropped = whole.window((x0 as isize, y0 as isize), (window.width, window.height), [0; 3]);
        prop_assert_eq!(&part.rgb[..], &cropped.rgb[..]);
    }

    #[test]
    fn a_flat_picture_stays_flat(
        (w, h) in (1usize..50, 1usize..50),
        to in (1usize..80, 1usize..80),
        colour in any::<[u8; 3]>(),
        filter in filters(),
        backend in backends(),
    ) {
        let rgb: Vec<u8> = colour.iter().copied().cycle().take(w * h * 3).collect();
        let flat = Bitmap { width: w, height: h, rgb: rgb.into() };
        let out = resize(flat, to, filter, backend);
        prop_assert!(out.rgb.chunks_exact(3).all(|p| p == colour));
    }

    #[test]
    fn a_canvas_is_the_padded_picture(
        (w, h) in (1usize..30, 1usize..30),
        to in (1usize..40, 1usize..40),
        filter in filters(),
        backend in backends(),
        seed in any::<u64>(),
    ) {
        let source = bitmap(w, h, seed);
        let canvas = Canvas::square(source.clone(), [122, 116, 104]);
        let corner = (-(canvas.left as isize), -(canvas.top as isize));
        let side = (canvas.width, canvas.height);
        let padded = source.window(corner, side, [122, 116, 104]);
        let a = resize(canvas, to, filter, backend);
        let b = resize(padded, to, filter, backend);
        prop_assert_eq!(&a.rgb[..], &b.rgb[..]);
    }
}

#[test]
fn the_same_size_is_the_same_picture() {
    let source = bitmap(17, 9, 3);
    let out = resize(source.clone(), (17, 9), Filter::Bicubic, ImageBackend::Pillow);
    assert_eq!(out.rgb, source.rgb);
}

#[test]
fn a_thin_picture_costs_no_more_than_its_crop() {
    let source = bitmap(1, 60_000, 5);
    let whole = (336, 336 * 60_000);
    let window = Window { left: 0, top: (whole.1 - 336) / 2, width: 336, height: 336 };
    let out = resize_window(source.clone(), whole, window, Filter::Bicubic, ImageBackend::Pillow);
    assert_eq!((out.width, out.height), (336, 336));
    let square = Canvas::square(source, [122, 116, 104]);
    let out = resize(square, (336, 336), Filter::Bicubic, ImageBackend::Torchvision);
    assert_eq!(&out.rgb[..3], &[122, 116, 104]);
}
