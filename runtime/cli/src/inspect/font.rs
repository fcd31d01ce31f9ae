//! Text of the montage: Noto Sans Mono, rasterised ahead of time, so that no font has to be on the
//! machine. Printable ASCII; anything else becomes a question mark.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

const SIZE: RasterHeight = RasterHeight::Size16;

/// Width of a letter with its gap, pixels.
pub(crate) const ADVANCE: u32 = get_raster_width(FontWeight::Regular, SIZE) as u32;
/// Height of a line, pixels.
pub(crate) const HEIGHT: u32 = SIZE.val() as u32;

/// Calls `dot` with place (from (0, 0)) and coverage (0 to 255) of every pixel of the text.
pub(crate) fn draw(text: &str, mut dot: impl FnMut(u32, u32, u8)) {
    for (place, letter) in text.chars().enumerate() {
        let raster = get_raster(letter, FontWeight::Regular, SIZE)
            .or_else(|| get_raster('?', FontWeight::Regular, SIZE));
        let Some(raster) = raster else { continue };
        for (y, row) in raster.rows().enumerate() {
            for (x, &coverage) in row.iter().enumerate().filter(|(_, c)| **c > 0) {
                dot(place as u32 * ADVANCE + x as u32, y as u32, coverage);
            }
        }
    }
}
