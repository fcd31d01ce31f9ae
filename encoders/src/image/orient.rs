//! EXIF orientation: pictures are turned upright when they are loaded.
//!
//! Invariants
//! - The eight values of the EXIF `Orientation` tag (0x0112); any other means upright.
//! - Turning moves pixels and changes none.

use image::metadata::Orientation;

#[cfg(feature = "video")]
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

/// Where the pixels of a file belong in the upright picture.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// Where they are.
    Rows,
    /// Pixel (x, y) of a picture of (width, height) belongs at the result.
    Moved(fn(usize, usize, usize, usize) -> (usize, usize)),
}

impl Place {
    /// The place of pixel (`x`, `y`) of a picture of `w` x `h`.
    pub(super) fn of(self, x: usize, y: usize, w: usize, h: usize) -> (usize, usize) {
        match self {
            Place::Rows => (x, y),
            Place::Moved(to) => to(x, y, w, h),
        }
    }
}

/// Where an orientation's pixels belong.
pub(super) fn place(orientation: Orientation) -> Place {
    Place::Moved(match orientation {
        Orientation::NoTransforms => return Place::Rows,
        Orientation::FlipHorizontal => |x, y, w, _| (w - 1 - x, y),
        Orientation::Rotate180 => |x, y, w, h| (w - 1 - x, h - 1 - y),
        Orientation::FlipVertical => |x, y, _, h| (x, h - 1 - y),
        // Tag 5: rotate by 90 degrees clockwise, then mirror: the transpose.
        Orientation::Rotate90FlipH => |x, y, _, _| (y, x),
        Orientation::Rotate90 => |x, y, _, h| (h - 1 - y, x),
        // Tag 7: the transpose over the other diagonal.
        Orientation::Rotate270FlipH => |x, y, w, h| (h - 1 - y, w - 1 - x),
        Orientation::Rotate270 => |x, y, w, _| (y, w - 1 - x),
    })
}

/// The picture turned clockwise by quarter turns.
#[cfg(feature = "video")]
pub(crate) fn turned(picture: Bitmap, quarters: u8) -> Bitmap {
    let orientation = match quarters % 4 {
        0 => return picture,
        1 => Orientation::Rotate90,
        2 => Orientation::Rotate180,
        _ => Orientation::Rotate270,
    };
    let mut sink = super::sink::Sink::new(picture.width as u32, picture.height as u32, orientation);
    for y in 0..picture.height {
        sink.put(0, y, picture.row(y));
    }
    sink.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::sink::Sink;

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
            // A 2 x 3 picture whose pixels are numbered 0 to 5.
            let mut sink = Sink::new(2, 3, Orientation::from_exif(tag).unwrap());
            for y in 0..3u8 {
                sink.put(0, usize::from(y), &[2 * y, 0, 0, 2 * y + 1, 0, 0]);
            }
            let turned = sink.finish();
            let got: Vec<u8> = turned.rgb.chunks_exact(3).map(|p| p[0]).collect();
            assert_eq!((turned.width, got.as_slice()), (width, &want[..]), "tag {tag}");
        }
    }
}
