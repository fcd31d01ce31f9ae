//! Even lattices of tokens: what `grid` keeps, `pool` averages over, and rankings fall back to.
//!
//! Method (own definition): see [`crate::grid`].

use secateur_core::tokens::{TokenKind, TokenMap};

/// Rows and columns of the grid of `members` (current tokens, ascending), if they are every cell of
/// it and nothing else.
pub(crate) fn raster_of(tokens: &TokenMap, members: &[u32]) -> Option<(usize, usize)> {
    let first = &tokens.tokens[*members.first()? as usize];
    let grid = tokens.grid_of(first);
    let cells = grid.rows as usize * grid.cols as usize;
    let is_raster = members.len() == cells
        && members.iter().enumerate().all(|(at, &i)| {
            let t = &tokens.tokens[i as usize];
            let cell = t.row as usize * grid.cols as usize + t.col as usize;
            t.kind == TokenKind::Patch && t.grid == first.grid && cell == at
        });
    is_raster.then_some((grid.rows as usize, grid.cols as usize))
}

/// `k` of `members` (current tokens, ascending) on the lattice of their grid, or spread evenly if
/// they are not one whole raster. Ascending.
pub fn lattice_of(tokens: &TokenMap, members: &[u32], k: usize) -> Vec<u32> {
    let places = match raster_of(tokens, members) {
        Some((rows, cols)) => lattice(rows, cols, k),
        None => spread(members.len(), k),
    };
    places.into_iter().map(|at| members[at]).collect()
}

/// Rows and columns of the lattice of at most `k` points on `rows x cols` cells; `k >= 1`.
pub fn lattice_shape(rows: usize, cols: usize, k: usize) -> (usize, usize) {
    let exact = (k as f64 * rows as f64 / cols as f64).sqrt().round_ties_even() as usize;
    let down = exact.clamp(1, rows.min(k).max(1));
    (down, cols.min(k / down))
}

/// Raster indices of the `k` cells that the lattice keeps, ascending; `k` is clamped to the cells.
pub fn lattice(rows: usize, cols: usize, k: usize) -> Vec<usize> {
    let k = k.min(rows * cols);
    if k == 0 {
        return Vec::new();
    }
    let (down, across) = lattice_shape(rows, cols, k);
    let mut used = vec![false; rows * cols];
    for i in 0..down {
        for j in 0..across {
            let row = (2 * i + 1) * rows / (2 * down);
            let col = (2 * j + 1) * cols / (2 * across);
            used[row * cols + col] = true;
        }
    }
    let free: Vec<usize> = (0..rows * cols).filter(|&i| !used[i]).collect();
    for at in spread(free.len(), k - (rows * cols - free.len())) {
        used[free[at]] = true;
    }
    (0..rows * cols).filter(|&i| used[i]).collect()
}

/// `k` of `count` places at even distances, ascending.
fn spread(count: usize, k: usize) -> Vec<usize> {
    let k = k.min(count);
    (0..k).map(|i| (2 * i + 1) * count / (2 * k)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_lattice_keeps_exactly_the_budget_and_reaches_all_quarters(
            rows in 1usize..30, cols in 1usize..30, k in 0usize..600,
        ) {
            let kept = lattice(rows, cols, k);
            prop_assert_eq!(kept.len(), k.min(rows * cols));
            prop_assert!(kept.windows(2).all(|w| w[0] < w[1]));
            prop_assert!(kept.iter().all(|&i| i < rows * cols));
            if rows >= 2 && cols >= 2 && k >= 16 && k * 4 >= rows.max(cols) * 4 && rows * 4 > cols && cols * 4 > rows {
                for (top, left) in [(true, true), (true, false), (false, true), (false, false)] {
                    prop_assert!(kept.iter().any(|i| {
                        ((i / cols) < rows.div_ceil(2)) == top && ((i % cols) < cols.div_ceil(2)) == left
                    }), "an empty quarter of {rows}x{cols} at {k}: {kept:?}");
                }
            }
        }
    }
}
