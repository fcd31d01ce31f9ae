//! Any-resolution pictures: tiles put together to one map, padding taken off, maps shrunk.
//!
//! Invariants
//! - Tile order is row-major, and a tile's place follows from its origin in the source picture.
//! - Sizes are f64 with the reference's roundings: half-even at seven decimals, then truncation.
//!
//! Source: `image_size_to_num_patches`, `unpad_image` and `pack_image_features` of LLaVA-NeXT and
//! LLaVA-OneVision in transformers 5.24; bilinear weights as `torch.nn.functional.interpolate`
//! without antialias and with `align_corners` off computes them in f32.

use std::ops::Range;

use secateur_core::clip::Grid;
use secateur_core::error::RunError;

use super::layout::Crop;

/// Rows and columns of tiles that cover a picture.
///
/// # Errors
/// If the tiles are no full lattice.
pub(crate) fn lattice(tiles: &[Crop]) -> Result<(u32, u32), RunError> {
    let Some(first) = tiles.first() else { return Ok((0, 0)) };
    let same_row = |t: &&Crop| {
        (t.grid.origin[1] - first.grid.origin[1]).abs()
            < f64::from(t.grid.rows) * t.grid.cell[1] / 2.0
    };
    let cols = tiles.iter().take_while(same_row).count();
    if !tiles.len().is_multiple_of(cols) {
        return Err(RunError::Prompt(format!("{} tiles do not fill rows of {cols}", tiles.len())));
    }
    Ok(((tiles.len() / cols) as u32, cols as u32))
}

/// Half-even at seven decimals, then truncated.
fn rounded(x: f64) -> u32 {
    ((x * 1e7).round_ties_even() / 1e7) as u32
}

/// Rows and columns of a map of `rows x cols` cells that are left when the padding of a picture
/// `[width, height]` is taken off.
pub(crate) fn unpadded(
    rows: u32,
    cols: u32,
    [width, height]: [u32; 2],
) -> (Range<u32>, Range<u32>) {
    let (w, h) = (f64::from(width), f64::from(height));
    let (map_w, map_h) = (f64::from(cols), f64::from(rows));
    if w / h > map_w / map_h {
        let kept = rounded(h * (map_w / w)).min(rows);
        let padding = (rows - kept) / 2;
        (padding..rows - padding, 0..cols)
    } else {
        let kept = rounded(w * (map_h / h)).min(cols);
        let padding = (cols - kept) / 2;
        (0..rows, padding..cols - padding)
    }
}

/// The map of all tiles of a picture.
#[derive(Debug)]
pub(crate) struct Map<'a> {
    tiles: &'a [Crop],
    tile_cols: u32,
    /// Rows of cells that are picture.
    pub(crate) rows: Range<u32>,
    /// Columns of cells that are picture.
    pub(crate) cols: Range<u32>,
}

impl<'a> Map<'a> {
    /// Puts tiles together and takes the padding off.
    ///
    /// # Errors
    /// If there is no tile, or they are no full lattice.
    pub(crate) fn new(tiles: &'a [Crop]) -> Result<Self, RunError> {
        let (tile_rows, tile_cols) = lattice(tiles)?;
        let Some(first) = tiles.first() else {
            return Err(RunError::Prompt("a picture has no tile".into()));
        };
        let cells = first.grid;
        let (rows, cols) = unpadded(tile_rows * cells.rows, tile_cols * cells.cols, cells.source);
        Ok(Self { tiles, tile_cols, rows, cols })
    }

    /// Tower row of a cell, counted within what is left.
    pub(crate) fn row(&self, row: u32, col: u32) -> u32 {
        let (row, col) = (row + self.rows.start, col + self.cols.start);
        let cells = &self.tiles[0].grid;
        let tile = (row / cells.rows) * self.tile_cols + col / cells.cols;
        self.tiles[tile as usize].patch(row % cells.rows, col % cells.cols)
    }

    /// The grid of what is left, with `rows x cols` cells spread over it.
    pub(crate) fn grid(&self, rows: u32, cols: u32) -> Grid {
        let first = self.tiles[0].grid;
        let size = [self.cols.len() as f64, self.rows.len() as f64];
        let [width, height] = [0, 1].map(|i| first.cell[i] * size[i]);
        Grid {
            rows,
            cols,
            origin: [
                first.origin[0] + f64::from(self.cols.start) * first.cell[0],
                first.origin[1] + f64::from(self.rows.start) * first.cell[1],
            ],
            cell: [width / f64::from(cols), height / f64::from(rows)],
            ..first
        }
    }
}

/// Bilinear weights along one axis: for each of `outputs` cells, two input cells and the weight of
/// the second.
pub(crate) fn bilinear(inputs: u32, outputs: u32) -> Vec<(u32, u32, f32)> {
    let scale = inputs as f32 / outputs as f32;
    (0..outputs)
        .map(|i| {
            let at = (scale * (i as f32 + 0.5) - 0.5).max(0.0);
            let low = (at as u32).min(inputs - 1);
            (low, (low + 1).min(inputs - 1), at - low as f32)
        })
        .collect()
}

/// Terms of an output cell at weights `y` and `x` over the cells that `row` names; cells that
/// coincide are one term.
pub(crate) fn blend(
    (y0, y1, fy): (u32, u32, f32),
    (x0, x1, fx): (u32, u32, f32),
    row: impl Fn(u32, u32) -> u32,
) -> Vec<(u32, f32)> {
    let corners = [
        (y0, x0, (1.0 - fy) * (1.0 - fx)),
        (y0, x1, (1.0 - fy) * fx),
        (y1, x0, fy * (1.0 - fx)),
        (y1, x1, fy * fx),
    ];
    let mut terms: Vec<(u32, f32)> = Vec::with_capacity(4);
    for (y, x, weight) in corners.into_iter().filter(|c| c.2 != 0.0) {
        let row = row(y, x);
        match terms.iter_mut().find(|t| t.0 == row) {
            Some(term) => term.1 += weight,
            None => terms.push((row, weight)),
        }
    }
    terms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpadding_gives_the_published_counts() {
        // Picture, map of 24-cell tiles, rows and columns left: table of the reference's counts.
        for (picture, map, left) in [
            ([336, 336], [24, 48], (24, 24)),
            ([640, 480], [48, 48], (36, 48)),
            ([480, 640], [48, 48], (48, 36)),
            ([1920, 1080], [48, 48], (28, 48)),
            ([50, 200], [24, 48], (24, 6)),
            // 703 * (24 / 296) is 56.99.. before it is rounded; an odd remainder stays in.
            ([703, 296], [24, 72], (24, 58)),
        ] {
            let (rows, cols) = unpadded(map[0], map[1], picture);
            assert_eq!((rows.len(), cols.len()), left, "{picture:?}");
        }
    }

    #[test]
    fn bilinear_weights_sum_to_one_and_centre() {
        for (inputs, outputs) in [(27, 14), (54, 40), (5, 3), (1, 1)] {
            let axis = bilinear(inputs, outputs);
            assert_eq!(axis.len(), outputs as usize);
            for &y in &axis {
                let sum: f32 = blend(y, axis[0], |r, c| r * inputs + c).iter().map(|t| t.1).sum();
                assert!((sum - 1.0).abs() < 1e-6);
            }
        }
    }
}
