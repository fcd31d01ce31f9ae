//! Rows of a decoder to one upright RGB8 picture.
//!
//! Invariants
//! - One buffer of `width * height * 3` bytes is made; each row is written where the EXIF tag wants
//!   it, so a turned picture is never held twice.
//! - Pixels that no row covers stay white, as transparency does.

use std::sync::Arc;

use image::metadata::Orientation;
use secateur_core::error::InputError;

use super::bitmap::Bitmap;
use super::orient::{self, Place};

/// A picture that is being read.
pub(super) struct Sink {
    width: usize,
    height: usize,
    place: Place,
    upright: (usize, usize),
    rgb: Arc<[u8]>,
}

impl Sink {
    /// A white picture of that size before it is turned.
    pub(super) fn new(width: u32, height: u32, orientation: Orientation) -> Self {
        let (width, height) = (width as usize, height as usize);
        let swaps = orient::swaps_sides(orientation);
        let upright = if swaps { (height, width) } else { (width, height) };
        let rgb = std::iter::repeat_n(255u8, width * height * 3).collect();
        Self { width, height, place: orient::place(orientation), upright, rgb }
    }

    /// Writes pixels `rgb` (`[n, 3]`) at column `x` of row `y`; what lies outside is left out.
    pub(super) fn put(&mut self, x: usize, y: usize, rgb: &[u8]) {
        if y >= self.height || x >= self.width {
            return;
        }
        let count = (rgb.len() / 3).min(self.width - x);
        // The only handle was made in `new`.
        let Some(out) = Arc::get_mut(&mut self.rgb) else { return };
        let (w, h, place) = (self.width, self.height, self.place);
        if matches!(place, Place::Rows) {
            let at = (y * w + x) * 3;
            out[at..at + count * 3].copy_from_slice(&rgb[..count * 3]);
            return;
        }
        for (i, pixel) in rgb.chunks_exact(3).take(count).enumerate() {
            let (ux, uy) = place.of(x + i, y, w, h);
            let at = (uy * self.upright.0 + ux) * 3;
            out[at..at + 3].copy_from_slice(pixel);
        }
    }

    /// The picture.
    pub(super) fn finish(self) -> Bitmap {
        Bitmap { width: self.upright.0, height: self.upright.1, rgb: self.rgb }
    }
}

/// A picture file whose header has been read.
pub(super) trait Source {
    /// What the header says.
    fn facts(&self) -> Facts;

    /// The first frame, upright.
    fn read(self: Box<Self>) -> Result<Bitmap, InputError>;
}

/// What a header says, before the picture is turned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    /// Width in the file, pixels.
    pub(super) width: u32,
    /// Height in the file, pixels.
    pub(super) height: u32,
    /// The EXIF tag.
    pub(super) orientation: Orientation,
    /// Most bytes that [`Source::read`] holds at a time, the picture included.
    pub(super) peak_bytes: u64,
}

impl Facts {
    /// An empty picture of that size.
    pub(super) fn sink(&self) -> Sink {
        Sink::new(self.width, self.height, self.orientation)
    }

    /// Width and height once upright, pixels.
    pub(super) fn upright(&self) -> (usize, usize) {
        let (width, height) = (self.width as usize, self.height as usize);
        if orient::swaps_sides(self.orientation) { (height, width) } else { (width, height) }
    }

    /// Bytes of the picture as RGB8.
    pub(super) fn rgb_bytes(width: u32, height: u32) -> u64 {
        u64::from(width) * u64::from(height) * 3
    }
}
