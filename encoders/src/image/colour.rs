//! Any pixel format of a decoder to RGB8.
//!
//! Invariants
//! - Transparency lies over white, in the integer arithmetic of Pillow's `alpha_composite`
//!   (`src/libImaging/AlphaComposite.c`): the reference composites before it resizes.
//! - 16-bit channels keep their upper byte, as Pillow reads them; grey becomes three equal
//!   channels.
//! - Grey and RGB pictures are expanded inside the final buffer: no second copy of a large one.

use std::sync::Arc;

use image::ColorType;

use super::bitmap::shared_bytes;

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

fn high(bytes: &[u8], channel: usize) -> u8 {
    (u16::from_ne_bytes([bytes[2 * channel], bytes[2 * channel + 1]]) >> 8) as u8
}

fn real(bytes: &[u8], channel: usize) -> u8 {
    let at = 4 * channel;
    unit(f32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
}

fn blend(rgb: [u8; 3], alpha: u8) -> [u8; 3] {
    rgb.map(|v| over_white(v, alpha))
}

/// How one pixel's native bytes become RGB.
type Convert = fn(&[u8]) -> [u8; 3];

fn converter(colour: ColorType) -> Option<Convert> {
    Some(match colour {
        ColorType::L8 => |p| [p[0]; 3],
        ColorType::La8 => |p| blend([p[0]; 3], p[1]),
        ColorType::Rgb8 => |p| [p[0], p[1], p[2]],
        ColorType::Rgba8 => |p| blend([p[0], p[1], p[2]], p[3]),
        ColorType::L16 => |p| [high(p, 0); 3],
        ColorType::La16 => |p| blend([high(p, 0); 3], high(p, 1)),
        ColorType::Rgb16 => |p| [high(p, 0), high(p, 1), high(p, 2)],
        ColorType::Rgba16 => |p| blend([high(p, 0), high(p, 1), high(p, 2)], high(p, 3)),
        ColorType::Rgb32F => |p| [real(p, 0), real(p, 1), real(p, 2)],
        ColorType::Rgba32F => |p| blend([real(p, 0), real(p, 1), real(p, 2)], real(p, 3)),
        _ => return None,
    })
}

/// Reads `pixels` pixels of a decoder (`read` fills a buffer of native bytes) as RGB8.
///
/// `None` if the pixel format is not known.
pub(super) fn read_rgb<E>(
    colour: ColorType,
    pixels: usize,
    read: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Option<Result<Arc<[u8]>, E>> {
    let convert = converter(colour)?;
    let native = usize::from(colour.bytes_per_pixel());
    if native > 3 {
        let mut buffer = vec![0u8; pixels * native];
        return Some(read(&mut buffer).and_then(|()| {
            shared_bytes(pixels * 3, |out| {
                for (o, p) in out.chunks_exact_mut(3).zip(buffer.chunks_exact(native)) {
                    o.copy_from_slice(&convert(p));
                }
                Ok(())
            })
        }));
    }
    // Native bytes stand at the end of the buffer; pixel `i` is read before anything is written
    // at or beyond `start + native * (i + 1)`, because `3 (i + 1) <= start + native (i + 1)`.
    let start = pixels * (3 - native);
    Some(shared_bytes(pixels * 3, |out| {
        read(&mut out[start..])?;
        if native < 3 {
            for i in 0..pixels {
                let rgb = convert(&out[start + native * i..][..native]);
                out[3 * i..3 * i + 3].copy_from_slice(&rgb);
            }
        }
        Ok(())
    }))
}

/// Converts native bytes that are there already.
pub(super) fn to_rgb(colour: ColorType, bytes: &[u8]) -> Option<Arc<[u8]>> {
    let native = usize::from(colour.bytes_per_pixel());
    let read = |buffer: &mut [u8]| {
        buffer.copy_from_slice(bytes);
        Ok::<(), std::convert::Infallible>(())
    };
    match read_rgb(colour, bytes.len() / native, read)? {
        Ok(rgb) => Some(rgb),
        Err(never) => match never {},
    }
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
    fn grey_expands_inside_its_own_buffer() {
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
    }
}
