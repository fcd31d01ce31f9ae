//! The steps that processors share: where pixels came from, and collecting crops.
//!
//! Invariants
//! - A [`View`] is an affine map per axis from pixels of the picture at hand to source pixels;
//!   resizing, cropping, padding and tiling each change it by one line.
//! - [`Crops`] writes values, bytes and grids of a crop together, so they cannot fall apart.

use secateur_core::clip::{Clip, Grid};
use secateur_core::error::InputError;
use secateur_core::model::{ImageAspect, ImageBackend, Pixels, ProcessorOptions};
use secateur_core::signal::CropPixels;

use super::settings::Values;
use crate::image::Bitmap;

/// Most pixels of all crops of one picture together: nothing that a file or a picture says may
/// allocate more.
const MAX_PIXELS: usize = 128 << 20;

/// Where the pixels of a processed picture lie in the source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct View {
    origin: [f64; 2],
    scale: [f64; 2],
}

impl View {
    /// The source itself.
    pub(crate) fn source() -> Self {
        Self { origin: [0.0; 2], scale: [1.0; 2] }
    }

    /// After resizing `from` to `to` (width, height).
    #[must_use]
    pub(crate) fn resized(self, from: (usize, usize), to: (usize, usize)) -> Self {
        let ratio = |a: usize, b: usize| a as f64 / b as f64;
        Self {
            origin: self.origin,
            scale: [self.scale[0] * ratio(from.0, to.0), self.scale[1] * ratio(from.1, to.1)],
        }
    }

    /// With the corner moved to (`left`, `top`): a crop or tile, or padding where negative.
    #[must_use]
    pub(crate) fn moved(self, left: isize, top: isize) -> Self {
        Self {
            origin: [
                self.origin[0] + left as f64 * self.scale[0],
                self.origin[1] + top as f64 * self.scale[1],
            ],
            scale: self.scale,
        }
    }

    /// The patch grid of a crop of `size` (width, height); remainders have no patch.
    pub(crate) fn grid(self, size: (usize, usize), patch: usize, place: Place) -> Grid {
        Grid {
            picture: 0,
            frame: place.frame,
            tile: place.tile,
            rows: (size.1 / patch) as u32,
            cols: (size.0 / patch) as u32,
            origin: self.origin,
            cell: [self.scale[0] * patch as f64, self.scale[1] * patch as f64],
            source: place.source,
        }
    }
}

/// Which crop a grid belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) source: [u32; 2],
    pub(crate) frame: u32,
    pub(crate) tile: u32,
}

/// Crops of one clip as they are made: `[crops, 3, height, width]`.
#[derive(Debug)]
pub(crate) struct Crops {
    table: Box<[[f32; 256]; 3]>,
    patch: usize,
    size: Option<(usize, usize)>,
    values: Vec<f32>,
    grids: Vec<Grid>,
    rgb: Vec<CropPixels>,
}

impl Crops {
    pub(crate) fn new(values: &Values, backend: ImageBackend, patch: usize) -> Self {
        Self {
            table: values.table(backend),
            patch,
            size: None,
            values: Vec::new(),
            grids: Vec::new(),
            rgb: Vec::new(),
        }
    }

    /// Adds a crop; all crops of a clip have one size.
    pub(crate) fn push(&mut self, crop: &Bitmap, grid: Grid) {
        let size = (crop.width, crop.height);
        debug_assert!(self.size.is_none_or(|s| s == size), "crops of one size");
        self.size = Some(size);
        self.values.reserve(crop.rgb.len());
        for (c, table) in self.table.iter().enumerate() {
            self.values.extend(crop.rgb.iter().skip(c).step_by(3).map(|b| table[*b as usize]));
        }
        self.rgb.push(CropPixels {
            width: crop.width,
            height: crop.height,
            patch: self.patch,
            rgb: crop.rgb.clone(),
        });
        self.grids.push(grid);
    }

    pub(crate) fn finish(self, clip: &Clip) -> Pixels {
        let (width, height) = self.size.unwrap_or((0, 0));
        Pixels {
            shape: vec![self.grids.len(), 3, height, width],
            values: self.values,
            crops: self.grids,
            rgb: self.rgb,
            grid_thw: None,
            source: [clip.width(), clip.height()],
            video: clip.video().is_some(),
            times_s: Vec::new(),
            fps: clip.video().and_then(|v| v.fps),
            outputs: Vec::new(),
        }
    }
}

/// A picture's name where only its size is known.
pub(crate) fn size_label(width: u32, height: u32) -> String {
    format!("a picture of {width}x{height} pixels")
}

/// Refuses a side of zero: sizes may come from a caller and not from a clip.
pub(crate) fn check_source(width: u32, height: u32) -> Result<(usize, usize), InputError> {
    if width == 0 || height == 0 {
        return Err(InputError::Empty { path: size_label(width, height), width, height });
    }
    Ok((width as usize, height as usize))
}

/// Refuses crops that would not fit in memory.
pub(crate) fn check_area(
    (width, height): (u32, u32),
    count: usize,
    size: (usize, usize),
) -> Result<(), InputError> {
    let total = count.saturating_mul(size.0).saturating_mul(size.1);
    if total > MAX_PIXELS {
        return Err(InputError::Refused {
            path: size_label(width, height),
            reason: format!(
                "the processor would make {count} crops of {}x{} pixels; at most {MAX_PIXELS} \
                 pixels are made of one input",
                size.0, size.1
            ),
        });
    }
    Ok(())
}

/// Puts the clip's name in place of a size label.
pub(crate) fn named<T>(clip: &Clip, result: Result<T, InputError>) -> Result<T, InputError> {
    result.map_err(|error| match error {
        InputError::Refused { reason, .. } => {
            InputError::Refused { path: clip.label().to_owned(), reason }
        }
        other => other,
    })
}

/// Refuses a video where the family takes pictures only.
pub(crate) fn pictures_only(clip: &Clip, family: &str) -> Result<(), InputError> {
    if clip.video().is_none() {
        return Ok(());
    }
    Err(InputError::Refused {
        path: clip.label().to_owned(),
        reason: format!("{family} takes pictures, not videos; give frames as pictures"),
    })
}

/// Refuses another shape where the family has one of its own.
pub(crate) fn own_aspect(
    (width, height): (u32, u32),
    options: &ProcessorOptions,
    family: &str,
) -> Result<(), InputError> {
    if options.aspect == ImageAspect::Model {
        return Ok(());
    }
    Err(InputError::Refused {
        path: size_label(width, height),
        reason: format!(
            "{family} fits pictures of any shape in its own way; padding or cropping to a square \
             is for models that see one square crop"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_leads_back_through_resize_pad_and_tile() {
        // 200 x 100 to 400 x 200, padded to 400 x 400 (100 above), tile (1, 0) of 200.
        let view = View::source().resized((200, 100), (400, 200)).moved(0, -100).moved(200, 0);
        let grid = view.grid((200, 200), 50, Place { source: [200, 100], frame: 0, tile: 1 });
        assert_eq!((grid.rows, grid.cols), (4, 4));
        assert_eq!((grid.origin, grid.cell), ([100.0, -50.0], [25.0, 25.0]));
        assert_eq!((grid.coverage(1, 0), grid.coverage(2, 3)), (0.0, 1.0));
        assert_eq!(grid.cell_at(199.0, 1.0), Some((2, 3)));
    }
}
