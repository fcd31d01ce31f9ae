//! Layouts: which visual tokens the crops of a request become, and of which tower rows.
//!
//! Invariants
//! - Clips stand in prompt order; grids carry the clip's index as their picture.
//! - Tower rows count over all crops: for each crop its class row, if the tower has one, then its
//!   patches in the tower's order.

use secateur_core::clip::Grid;
use secateur_core::model::{Pixels, TokenSource, VisualLayout};
use secateur_core::tokens::{TokenKind, VisualToken};

/// Builds a [`VisualLayout`] crop by crop.
#[derive(Debug, Default)]
pub(crate) struct LayoutBuilder {
    layout: VisualLayout,
    cls: u32,
    next_row: u32,
}

/// A crop of a clip as the tower sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crop {
    /// Its patch grid, with the clip's index as picture.
    pub(crate) grid: Grid,
    /// Tower row of its first patch.
    pub(crate) first: u32,
}

impl Crop {
    /// Tower row of a patch, raster order.
    pub(crate) fn patch(&self, row: u32, col: u32) -> u32 {
        self.first + row * self.grid.cols + col
    }
}

/// How the patches of a cell of several lie in the tower's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockOrder {
    /// Patches are in raster order.
    Raster,
    /// Patches of a cell are consecutive rows (Qwen).
    Blocks,
}

impl LayoutBuilder {
    /// A layout for a tower with or without class rows.
    pub(crate) fn new(cls: bool) -> Self {
        Self { cls: u32::from(cls), ..Self::default() }
    }

    /// The crops of the next clip, whose rows follow those of the clips before.
    pub(crate) fn crops(&mut self, pixels: &Pixels, clip: usize) -> Vec<Crop> {
        let crops = pixels.crops.iter().map(|grid| {
            let first = self.next_row + self.cls;
            self.next_row = first + grid.rows * grid.cols;
            Crop { grid: Grid { picture: clip as u32, ..*grid }, first }
        });
        crops.collect()
    }

    /// Adds a grid for tokens to lie on.
    pub(crate) fn grid(&mut self, grid: Grid) -> u32 {
        self.layout.map.grids.push(grid);
        self.layout.map.grids.len() as u32 - 1
    }

    /// A patch token at a cell of a grid.
    pub(crate) fn patch(&mut self, grid: u32, row: u32, col: u32, source: TokenSource) {
        let index = self.layout.map.tokens.len() as u32;
        let cells = self.layout.map.grids[grid as usize];
        self.layout.map.tokens.push(VisualToken::patch(index, grid, &cells, row, col));
        self.layout.sources.push(source);
    }

    /// A newline behind a row of a grid.
    pub(crate) fn newline(&mut self, grid: u32, row: u32) {
        let cells = self.layout.map.grids[grid as usize];
        self.other(grid, row, cells.cols, TokenKind::Structural, TokenSource::Structural);
    }

    fn other(&mut self, grid: u32, row: u32, col: u32, kind: TokenKind, source: TokenSource) {
        let index = self.layout.map.tokens.len() as u32;
        let coverage = 1.0;
        let members = Vec::new();
        let token = VisualToken { index, grid, row, col, kind, coverage, members };
        self.layout.map.tokens.push(token);
        self.layout.sources.push(source);
    }

    /// One token a patch, raster order.
    pub(crate) fn raster(&mut self, crop: &Crop) -> u32 {
        let grid = self.grid(crop.grid);
        for row in 0..crop.grid.rows {
            for col in 0..crop.grid.cols {
                self.patch(grid, row, col, TokenSource::Rows(vec![crop.patch(row, col)]));
            }
        }
        grid
    }

    /// The crop's class row as a token, in front of its patches.
    pub(crate) fn raster_with_cls(&mut self, crop: &Crop) {
        let grid = self.layout.map.grids.len() as u32;
        self.other(grid, 0, 0, TokenKind::Cls, TokenSource::Rows(vec![crop.first - 1]));
        self.raster(crop);
    }

    /// One token for each square of `side x side` patches, raster order; patches that fill no
    /// square are left out.
    pub(crate) fn squares(&mut self, crop: &Crop, side: u32, order: BlockOrder) -> u32 {
        let cells = coarser(&crop.grid, side);
        let grid = self.grid(cells);
        for row in 0..cells.rows {
            for col in 0..cells.cols {
                let rows = match order {
                    BlockOrder::Raster => (0..side * side)
                        .map(|i| crop.patch(row * side + i / side, col * side + i % side))
                        .collect(),
                    BlockOrder::Blocks => {
                        let first = crop.first + (row * cells.cols + col) * side * side;
                        (first..first + side * side).collect()
                    }
                };
                self.patch(grid, row, col, TokenSource::Rows(rows));
            }
        }
        grid
    }

    /// The layout.
    pub(crate) fn finish(self) -> VisualLayout {
        self.layout
    }
}

/// The grid whose cells are squares of `side x side` cells of `grid`.
pub(crate) fn coarser(grid: &Grid, side: u32) -> Grid {
    Grid {
        rows: grid.rows / side,
        cols: grid.cols / side,
        cell: grid.cell.map(|c| c * f64::from(side)),
        ..*grid
    }
}

/// Visual tokens of each clip, in order.
pub(crate) fn tokens_of_clips(layout: &VisualLayout, clips: usize) -> Vec<usize> {
    let mut counts = vec![0; clips];
    for token in &layout.map.tokens {
        counts[layout.map.grids[token.grid as usize].picture as usize] += 1;
    }
    counts
}
