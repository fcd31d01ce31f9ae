//! Any-resolution tiling: the shared part of LLaVA-NeXT and LLaVA-OneVision.
//!
//! Invariants
//! - Crop 0 is the whole picture squeezed to one tile (the base); the tiles follow row by row.
//! - All arithmetic is f64 with the reference's truncations: one off and the number of
//!   placeholders differs from the number of features.
//!
//! Method: `select_best_resolution` and `get_patch_output_size` of transformers
//! (`image_processing_utils.py`, `models/llava_next`). Deviation `pinpoint-order` (models-a D2):
//! pinpoints are read as `[height, width]`, as the port does; the original code reads
//! `(width, height)`, which matters for ties alone.

use secateur_core::clip::Grid;
use secateur_core::error::{ConfigError, InputError};
use secateur_core::files::{Fields, short};
use secateur_core::model::ImageBackend;
use serde_json::Value;

use super::settings::{MAX_SIDE, Values};
use super::steps::{Crops, Place, View, check_area, check_source};
use crate::image::{Bitmap, resize};

/// Sizes (height, width) that a picture may be tiled at, and the side of a tile.
#[derive(Clone, Debug)]
pub(crate) struct AnyRes {
    pinpoints: Vec<(usize, usize)>,
    side: usize,
    patch: usize,
}

/// How one picture is tiled.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    /// Width and height of the tiled ground.
    pub(crate) best: (usize, usize),
    /// Width and height of the picture on it.
    pub(crate) inner: (usize, usize),
    /// Where it lies.
    pub(crate) offset: (usize, usize),
    /// Base, then tiles.
    pub(crate) grids: Vec<Grid>,
}

impl AnyRes {
    pub(crate) fn read(
        fields: &Fields<'_>,
        side: usize,
        patch: usize,
        default: &[(usize, usize)],
    ) -> Result<Self, ConfigError> {
        let pinpoints = match fields.get("image_grid_pinpoints") {
            None => default.to_vec(),
            Some(value) => pinpoints(value).ok_or_else(|| {
                let expected = format!("1 to 1024 pairs [height, width] of 1 to {MAX_SIDE} pixels");
                fields.error("image_grid_pinpoints", &expected, &short(value))
            })?,
        };
        Ok(Self { pinpoints, side, patch })
    }

    /// Side of a tile, pixels.
    pub(crate) fn side(&self) -> usize {
        self.side
    }

    /// The pinpoint that keeps most of a picture, (height, width); the first of equals.
    pub(crate) fn best(&self, width: usize, height: usize) -> (usize, usize) {
        let (w, h) = (width as f64, height as f64);
        let mut best = self.pinpoints[0];
        let (mut most, mut least_waste) = (0usize, usize::MAX);
        for &(ph, pw) in &self.pinpoints {
            let scale = (pw as f64 / w).min(ph as f64 / h);
            let kept = ((w * scale) as usize * (h * scale) as usize).min(width * height);
            let waste = pw * ph - kept;
            if kept > most || (kept == most && waste < least_waste) {
                (most, least_waste, best) = (kept, waste, (ph, pw));
            }
        }
        best
    }

    pub(crate) fn plan(&self, width: u32, height: u32) -> Result<Plan, InputError> {
        let (w, h) = check_source(width, height)?;
        let (best_h, best_w) = self.best(w, h);
        let (scale_w, scale_h) = (best_w as f64 / w as f64, best_h as f64 / h as f64);
        let inner = if scale_w < scale_h {
            (best_w, ((h as f64 * scale_w).ceil() as usize).min(best_h))
        } else {
            (((w as f64 * scale_h).ceil() as usize).min(best_w), best_h)
        };
        let offset = ((best_w - inner.0) / 2, (best_h - inner.1) / 2);
        let side = (self.side, self.side);
        // Tiles that would be cut short at the right or lower edge do not arise from pinpoints
        // that are multiples of the side; others lose their remainder, as the reference does.
        let (rows, cols) = (best_h / self.side, best_w / self.side);
        check_area((width, height), 1 + rows * cols, side)?;
        let place = |tile: usize| Place { source: [width, height], frame: 0, tile: tile as u32 };
        let base = View::source().resized((w, h), side);
        let ground =
            View::source().resized((w, h), inner).moved(-(offset.0 as isize), -(offset.1 as isize));
        let mut grids = vec![base.grid(side, self.patch, place(0))];
        for r in 0..rows {
            for c in 0..cols {
                let corner = ((c * self.side) as isize, (r * self.side) as isize);
                let view = ground.moved(corner.0, corner.1);
                grids.push(view.grid(side, self.patch, place(1 + r * cols + c)));
            }
        }
        Ok(Plan { best: (best_w, best_h), inner, offset, grids })
    }

    /// Base and tiles of a picture.
    pub(crate) fn cut(
        &self,
        picture: &Bitmap,
        plan: &Plan,
        values: &Values,
        backend: ImageBackend,
    ) -> Crops {
        let mut crops = Crops::new(values, backend, self.patch);
        let side = (self.side, self.side);
        let mut grids = plan.grids.iter();
        if let Some(grid) = grids.next() {
            crops.push(&resize(picture.clone(), side, values.filter, backend), *grid);
        }
        let inner = resize(picture.clone(), plan.inner, values.filter, backend);
        let cols = plan.best.0 / self.side;
        for (i, grid) in grids.enumerate() {
            let corner = (
                ((i % cols) * self.side) as isize - plan.offset.0 as isize,
                ((i / cols) * self.side) as isize - plan.offset.1 as isize,
            );
            crops.push(&inner.window(corner, side, [0; 3]), *grid);
        }
        crops
    }
}

fn pinpoints(value: &Value) -> Option<Vec<(usize, usize)>> {
    let list = value.as_array().filter(|l| (1..=1024).contains(&l.len()))?;
    let side = |v: &Value| {
        v.as_u64().and_then(|s| usize::try_from(s).ok()).filter(|s| (1..=MAX_SIDE).contains(s))
    };
    list.iter()
        .map(|pair| match pair.as_array()?.as_slice() {
            [h, w] => Some((side(h)?, side(w)?)),
            _ => None,
        })
        .collect()
}
