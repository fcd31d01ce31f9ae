//! Any pixel format of a decoder to RGB8.
//!
//! Invariants
//! - Transparency lies over white, in the integer arithmetic of Pillow's `alpha_composite`
//!   (`src/libImaging/AlphaComposite.c`): the reference composites before it resizes.
//! - 16-bit channels keep their upper byte. For RGB that is what Pillow does; 16-bit *grey* it clips
//!   at 255, so that nearly every picture is white: there ours is the picture.
//! - Grey becomes three equal channels.

use std::sync::Arc;

use image::ColorType;

use super::bitmap::Bitmap;

/// One channel over white: `alpha` 0 to 255.
fn over_white(value: u8, alpha: u8) -> u8 {
    if alpha == 255 {
        return value;
    }
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    let sum = ((value * alpha + 255 * (255 - alpha)) << 7) + (0x80 << 7);
    ((((sum >> 8) + sum) >> 8) >> 7) as u8
}

fn unit(value: f32) -> u8 {
    // NaN becomes 0: `as` saturates.
    (value.clamp(0.0, 1.0) * 255.0 + 0.5) as u8
}

/// How the bytes of 16-bit channels are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// As this machine orders them.
    Native,
    /// The upper byte first.
    BigEndian,
}

fn real(bytes: &[u8], channel: usize) -> u8 {
    let at = 4 * channel;
    unit(f32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
}

fn blend(rgb: [u8; 3], alpha: u8) -> [u8; 3] {
    rgb.map(|v| over_white(v, alpha))
}

/// Turns native pixels into as many RGB pixels.
pub(super) type RowConverter = Box<dyn Fn(&[u8], &mut [u8])>;

fn each<const N: usize>(pixel: impl Fn(&[u8; N]) -> [u8; 3] + 'static) -> Option<RowConverter> {
    Some(Box::new(move |native, rgb| {
        for (from, to) in native.as_chunks::<N>().0.iter().zip(rgb.as_chunks_mut::<3>().0) {
            *to = pixel(from);
        }
    }))
}

/// How pixels of that format become RGB; `None` if the format is not known.
pub(super) fn row_converter(colour: ColorType, depth: Depth) -> Option<RowConverter> {
    // Which of a channel's two bytes is the upper one.
    let u = usize::from(depth == Depth::Native && cfg!(target_endian = "little"));
    match colour {
        ColorType::L8 => each(|p: &[u8; 1]| [p[0]; 3]),
        ColorType::La8 => each(|p: &[u8; 2]| blend([p[0]; 3], p[1])),
        ColorType::Rgb8 => each(|p: &[u8; 3]| *p),
        ColorType::Rgba8 => each(|p: &[u8; 4]| blend([p[0], p[1], p[2]], p[3])),
        ColorType::L16 => each(move |p: &[u8; 2]| [p[u]; 3]),
        ColorType::La16 => each(move |p: &[u8; 4]| blend([p[u]; 3], p[2 + u])),
        ColorType::Rgb16 => each(move |p: &[u8; 6]| [p[u], p[2 + u], p[4 + u]]),
        ColorType::Rgba16 => each(move |p: &[u8; 8]| blend([p[u], p[2 + u], p[4 + u]], p[6 + u])),
        ColorType::Rgb32F => each(|p: &[u8; 12]| [real(p, 0), real(p, 1), real(p, 2)]),
        ColorType::Rgba32F => {
            each(|p: &[u8; 16]| blend([real(p, 0), real(p, 1), real(p, 2)], real(p, 3)))
        }
        _ => None,
    }
}

/// Converts native bytes that are there already.
pub(super) fn to_rgb(colour: ColorType, bytes: &[u8]) -> Option<Arc<[u8]>> {
    let convert = row_converter(colour, Depth::Native)?;
    let pixels = bytes.len() / usize::from(colour.bytes_per_pixel());
    Some(Bitmap::build(pixels, 1, |rgb| convert(bytes, rgb)).rgb)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transparency_lies_over_white() {
        assert_eq!(over_white(0, 0), 255);
        assert_eq!(over_white(77, 255), 77);
        // Rounded value * a / 255 + 255 - a, as Pillow gives it.
        for (value, alpha) in [(0u8, 128u8), (10, 1), (200, 77), (255, 3), (128, 254)] {
            let exact = f64::from(value) * f64::from(alpha) / 255.0 + 255.0 - f64::from(alpha);
            assert!((f64::from(over_white(value, alpha)) - exact).abs() <= 0.5 + 1e-2);
        }
    }

    #[test]
    fn grey_becomes_three_channels() {
        let rgb = to_rgb(ColorType::L8, &[1, 2, 3, 4]).unwrap();
        assert_eq!(&rgb[..], &[1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]);
        let rgb = to_rgb(ColorType::La8, &[9, 255, 0, 0, 7, 255]).unwrap();
        assert_eq!(&rgb[..], &[9, 9, 9, 255, 255, 255, 7, 7, 7]);
    }

    #[test]
    fn sixteen_bits_keep_the_upper_byte() {
        let bytes: Vec<u8> =
            [0x12FFu16, 0xFF00, 0x00FF].iter().flat_map(|v| v.to_ne_bytes()).collect();
        assert_eq!(&to_rgb(ColorType::Rgb16, &bytes).unwrap()[..], &[0x12, 0xFF, 0]);
        let mut grey = [0u8; 3];
        row_converter(ColorType::L16, Depth::BigEndian).unwrap()(&[0x12, 0xFF], &mut grey);
        assert_eq!(grey, [0x12; 3]);
    }
}
