//! RGB8 pixels as the processors hand them on.
//!
//! Invariants
//! - `rgb` has `width * height * 3` bytes, rows from the top; both sides are at least 1.
//! - Pixels are shared, not copied, between a frame, a bitmap and a crop's record.

use std::sync::Arc;

use secateur_core::clip::Frame;

/// An RGB8 picture.
#[derive(Clone)]
pub struct Bitmap {
    /// Width, pixels.
    pub width: usize,
    /// Height, pixels.
    pub height: usize,
    /// `[height, width, 3]`
    pub rgb: Arc<[u8]>,
}

impl std::fmt::Debug for Bitmap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bitmap {}x{}", self.width, self.height)
    }
}

/// Zeroed shared bytes that `fill` writes, allocated once.
pub(crate) fn shared_bytes<E>(
    len: usize,
    fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<Arc<[u8]>, E> {
    let mut bytes: Arc<[u8]> = std::iter::repeat_n(0u8, len).collect();
    // The only handle was made on the line above.
    if let Some(buffer) = Arc::get_mut(&mut bytes) {
        fill(buffer)?;
    }
    Ok(bytes)
}

impl Bitmap {
    /// A bitmap whose zeroed pixels `fill` writes.
    pub(crate) fn build(width: usize, height: usize, fill: impl FnOnce(&mut [u8])) -> Self {
        let filled = shared_bytes(width * height * 3, |buffer| {
            fill(buffer);
            Ok::<(), std::convert::Infallible>(())
        });
        match filled {
            Ok(rgb) => Self { width, height, rgb },
            Err(never) => match never {},
        }
    }

    /// The pixels of a frame, shared.
    pub fn from_frame(frame: &Frame) -> Self {
        Self { width: frame.width as usize, height: frame.height as usize, rgb: frame.rgb.clone() }
    }

    /// Row `y`, `[width, 3]`.
    pub fn row(&self, y: usize) -> &[u8] {
        &self.rgb[y * self.width * 3..(y + 1) * self.width * 3]
    }

    /// The rectangle at (`left`, `top`), which may reach beyond the picture; what lies outside is
    /// `fill`.
    #[must_use]
    pub fn window(
        &self,
        (left, top): (isize, isize),
        (width, height): (usize, usize),
        fill: [u8; 3],
    ) -> Self {
        if (left, top) == (0, 0) && (width, height) == (self.width, self.height) {
            return self.clone();
        }
        // Columns of the output that the picture covers.
        let first = (-left).clamp(0, width as isize) as usize;
        let last = (self.width as isize - left).clamp(first as isize, width as isize) as usize;
        Self::build(width, height, |out| {
            for (y, line) in out.chunks_exact_mut(width * 3).enumerate() {
                let source = y as isize + top;
                let inside = source >= 0 && source < self.height as isize && first < last;
                if !inside {
                    line.chunks_exact_mut(3).for_each(|p| p.copy_from_slice(&fill));
                    continue;
                }
                line[..first * 3].chunks_exact_mut(3).for_each(|p| p.copy_from_slice(&fill));
                line[last * 3..].chunks_exact_mut(3).for_each(|p| p.copy_from_slice(&fill));
                let start = (first as isize + left) as usize * 3;
                line[first * 3..last * 3]
                    .copy_from_slice(&self.row(source as usize)[start..][..(last - first) * 3]);
            }
        })
    }
}

/// A picture on a larger ground of one colour, without the memory of the ground: padding a
/// 1 x 65,535 picture to a square costs nothing.
#[derive(Clone, Debug)]
pub struct Canvas {
    /// The picture.
    pub picture: Bitmap,
    /// Width of the ground, pixels.
    pub width: usize,
    /// Height of the ground, pixels.
    pub height: usize,
    /// Left edge of the picture on it.
    pub left: usize,
    /// Upper edge of the picture on it.
    pub top: usize,
    /// Colour of the ground.
    pub fill: [u8; 3],
}

impl From<Bitmap> for Canvas {
    fn from(picture: Bitmap) -> Self {
        let (width, height) = (picture.width, picture.height);
        Self { picture, width, height, left: 0, top: 0, fill: [0; 3] }
    }
}

impl Canvas {
    /// The picture in the middle of a square of its longer side; odd remainders go right and
    /// below.
    pub fn square(picture: Bitmap, fill: [u8; 3]) -> Self {
        let side = picture.width.max(picture.height);
        let (left, top) = ((side - picture.width) / 2, (side - picture.height) / 2);
        Self { picture, width: side, height: side, left, top, fill }
    }

    /// Row `y` of the ground, `[width, 3]`; `scratch` holds it where it must be put together.
    pub(super) fn row<'a>(&'a self, y: usize, scratch: &'a mut Vec<u8>) -> &'a [u8] {
        let inside = y >= self.top && y < self.top + self.picture.height;
        if inside && self.picture.width == self.width {
            return self.picture.row(y - self.top);
        }
        scratch.clear();
        let pad = |scratch: &mut Vec<u8>, count: usize| {
            scratch.extend(self.fill.iter().copied().cycle().take(count * 3));
        };
        if inside {
            pad(scratch, self.left);
            scratch.extend_from_slice(self.picture.row(y - self.top));
            pad(scratch, self.width - self.left - self.picture.width);
        } else {
            pad(scratch, self.width);
        }
        scratch
    }

    /// A rectangle of the ground as a bitmap.
    pub(super) fn window(&self, window: super::Window) -> Bitmap {
        let origin =
            (window.left as isize - self.left as isize, window.top as isize - self.top as isize);
        self.picture.window(origin, (window.width, window.height), self.fill)
    }
}
