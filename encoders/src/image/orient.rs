//! EXIF orientation: pictures are turned upright when they are loaded.
//!
//! Invariants
//! - The eight values of the EXIF `Orientation` tag (0x0112); any other means upright.
//! - Turning moves pixels and changes none.

use image::metadata::Orientation;

use super::bitmap::Bitmap;

/// Whether the orientation swaps width and height.
pub(super) fn swaps_sides(orientation: Orientation) -> bool {
    matches!(
        orientation,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    )
}

/// The picture turned clockwise by quarter turns.
#[cfg(feature = "video")]
pub(crate) fn turned(picture: Bitmap, quarters: u8) -> Bitmap {
    let orientation = match quarters % 4 {
        0 => Orientation::NoTransforms,
        1 => Orientation::Rotate90,
        2 => Orientation::Rotate180,
        _ => Orientation::Rotate270,
    };
    upright(picture, orientation)
}

/// The picture turned as its tag says.
pub(super) fn upright(picture: Bitmap, orientation: Orientation) -> Bitmap {
    let (w, h) = (picture.width, picture.height);
    // Source pixel of the output's pixel (x, y).
    let source: fn(usize, usize, usize, usize) -> (usize, usize) = match orientation {
        Orientation::NoTransforms => return picture,
        Orientation::FlipHorizontal => |x, y, w, _| (w - 1 - x, y),
        Orientation::Rotate180 => |x, y, w, h| (w - 1 - x, h - 1 - y),
        Orientation::FlipVertical => |x, y, _, h| (x, h - 1 - y),
        // Tag 5: rotate by 90 degrees clockwise, then mirror: the transpose.
        Orientation::Rotate90FlipH => |x, y, _, _| (y, x),
        Orientation::Rotate90 => |x, y, _, h| (y, h - 1 - x),
        // Tag 7: the transpose over the other diagonal.
        Orientation::Rotate270FlipH => |x, y, w, h| (w - 1 - y, h - 1 - x),
        Orientation::Rotate270 => |x, y, w, _| (w - 1 - y, x),
    };
    let (width, height) = if swaps_sides(orientation) { (h, w) } else { (w, h) };
    Bitmap::build(width, height, |out| {
        for (y, line) in out.chunks_exact_mut(width * 3).enumerate() {
            for (x, pixel) in line.chunks_exact_mut(3).enumerate() {
                let (sx, sy) = source(x, y, w, h);
                pixel.copy_from_slice(&picture.rgb[(sy * w + sx) * 3..][..3]);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 2 x 3 picture whose pixels are numbered 0 to 5.
    fn numbered() -> Bitmap {
        Bitmap::build(2, 3, |out| {
            for (i, p) in out.chunks_exact_mut(3).enumerate() {
                p.fill(i as u8);
            }
        })
    }

    #[test]
    fn every_tag_turns_as_exif_defines_it() {
        let cases: [(u8, usize, [u8; 6]); 8] = [
            (1, 2, [0, 1, 2, 3, 4, 5]),
            (2, 2, [1, 0, 3, 2, 5, 4]),
            (3, 2, [5, 4, 3, 2, 1, 0]),
            (4, 2, [4, 5, 2, 3, 0, 1]),
            (5, 3, [0, 2, 4, 1, 3, 5]),
            (6, 3, [4, 2, 0, 5, 3, 1]),
            (7, 3, [5, 3, 1, 4, 2, 0]),
            (8, 3, [1, 3, 5, 0, 2, 4]),
        ];
        for (tag, width, want) in cases {
            let turned = upright(numbered(), Orientation::from_exif(tag).unwrap());
            let got: Vec<u8> = turned.rgb.chunks_exact(3).map(|p| p[0]).collect();
            assert_eq!((turned.width, got.as_slice()), (width, &want[..]), "tag {tag}");
        }
    }
}
