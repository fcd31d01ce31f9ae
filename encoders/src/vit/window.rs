//! Windows of attention: which rows of a frame see each other, and in which order they stand.
//!
//! Invariants
//! - Merged cells are listed window by window, windows and cells within them in raster order;
//!   windows at the right and lower edge are cut short, empty ones do not exist.
//! - The four rows of a merge block stay together, so a permutation of cells is one of rows.
//!
//! Method: `get_window_index` of transformers (`models/qwen2_5_vl`).

use std::ops::Range;

use super::config::Config;

/// The windows of one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FrameWindows {
    /// Merged cell (raster index) at each place.
    pub(crate) cells: Vec<usize>,
    /// Number of cells of each window, in order.
    pub(crate) sizes: Vec<usize>,
}

/// Cuts a frame of `rows` x `cols` merged cells into windows of `side` x `side`.
pub(crate) fn frame(rows: usize, cols: usize, side: usize) -> FrameWindows {
    let mut cells = Vec::with_capacity(rows * cols);
    let mut sizes = Vec::new();
    for top in (0..rows).step_by(side) {
        for left in (0..cols).step_by(side) {
            let before = cells.len();
            for y in top..(top + side).min(rows) {
                cells.extend((left..(left + side).min(cols)).map(|x| y * cols + x));
            }
            sizes.push(cells.len() - before);
        }
    }
    FrameWindows { cells, sizes }
}

impl FrameWindows {
    /// Row (in block order) at each place, for blocks of `block` rows.
    pub(crate) fn rows(&self, block: usize) -> Vec<u32> {
        self.cells
            .iter()
            .flat_map(|cell| (0..block).map(move |i| (cell * block + i) as u32))
            .collect()
    }
}

/// The permutation of a batch's rows into windows, and the windows.
pub(crate) struct WindowOrder {
    /// Row that stands at each place.
    pub(crate) rows: Vec<u32>,
    /// Place at which each row stands.
    pub(crate) inverse: Vec<u32>,
    /// Places of each window.
    pub(crate) segments: Vec<Range<usize>>,
}

impl WindowOrder {
    /// `None` for a tower without windows.
    pub(crate) fn new(config: &Config, (h, w): (usize, usize), crops: usize) -> Option<Self> {
        let windows = config.windows.as_ref()?;
        let block = config.merge * config.merge;
        let frame = frame(h / config.merge, w / config.merge, windows.side);
        let one = frame.rows(block);
        let rows: Vec<u32> =
            (0..crops).flat_map(|c| one.iter().map(move |r| r + (c * h * w) as u32)).collect();
        let mut inverse = vec![0u32; rows.len()];
        for (place, row) in rows.iter().enumerate() {
            inverse[*row as usize] = place as u32;
        }
        let mut segments = Vec::new();
        let mut start = 0;
        for _ in 0..crops {
            for size in &frame.sizes {
                segments.push(start..start + size * block);
                start += size * block;
            }
        }
        Some(Self { rows, inverse, segments })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_cut_short_and_every_cell_stands_once() {
        let windows = frame(3, 5, 2);
        assert_eq!(windows.sizes, [4, 4, 2, 2, 2, 1]);
        assert_eq!(windows.cells[..6], [0, 1, 5, 6, 2, 3]);
        let mut sorted = windows.cells.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..15).collect::<Vec<_>>());
        assert_eq!(windows.rows(4)[..6], [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_lattice_of_whole_windows_has_no_empty_one() {
        assert_eq!(frame(4, 4, 2).sizes, [4; 4]);
    }
}
