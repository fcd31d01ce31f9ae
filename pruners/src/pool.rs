//! Pool: averages areas of the token grid, as if the picture had fewer patches.
//!
//! An honest baseline, and a strong one. Method (own definition): the lattice of [`crate::grid`]
//! at the same budget cuts the grid into `a x b` rectangles of equal size, `a b <= k` as near to
//! `k` as that lattice comes; each becomes one token, the mean of its cells weighted by the area
//! that lies in the rectangle, at the place (and position) of the cell in its centre.
//!
//! Where an earlier stage cut or merged, the tokens that are left are halved across their longer
//! extent until there are exactly `k` areas of about as many tokens each; every area becomes one
//! token, the plain mean, at the place of the one nearest its middle. Tokens without a cell (class
//! and merged ones) count as lying behind the last row.

use secateur_core::chain::Params;
use secateur_core::error::{ChainError, RunError};
use secateur_core::model::ModelInfo;
use secateur_core::prune::{
    Budget, Cut, Memory, Merge, Plan, PositionPolicy, Pruner, Selection, Site, StagePlan,
};
use secateur_core::tokens::{TokenKind, TokenMap};

use crate::grid::count_budget;
use crate::lattice::{self, lattice_shape};
use crate::options::{self, Positions};
use crate::parameters::{KEEP, RENUMBERED, parameter};
use crate::registry::Entry;
use crate::score::{self, Scope, with_structural};

/// Its row in the registry.
pub const ENTRY: Entry = Entry {
    name: "pool",
    paper: "baseline of this project",
    summary: "the token grid averaged by area to about the budget",
    reads: "nothing",
    sites: "input",
    example: "pool:keep=64",
    debias: false,
    parameters: &[
        &[KEEP],
        &[parameter(
            "per",
            "image",
            "the image's crops share a budget (image), or each has one (crop)",
        )],
        RENUMBERED,
    ],
    build: |params| Ok(Box::new(Pool::parse(params)?)),
};

/// Averages areas of the token grid.
#[derive(Clone, Debug)]
pub struct Pool {
    budget: Budget,
    scope: Scope,
    positions: Positions,
}

impl Pool {
    /// Parameters: `keep`, `per = "image" | "crop"`, `positions`.
    ///
    /// # Errors
    /// A missing budget, a value out of range.
    pub fn parse(params: &Params<'_>) -> Result<Self, ChainError> {
        let scopes = &Scope::PER_CROP[..2];
        Ok(Self {
            budget: count_budget(params)?,
            scope: params.choice("per", scopes)?.unwrap_or(Scope::SplitOverCrops),
            positions: Positions::parse(params, PositionPolicy::Renumber)?,
        })
    }
}

impl Pruner for Pool {
    fn plan(&self, model: &ModelInfo) -> Result<Plan, ChainError> {
        let mut notes = Vec::new();
        let positions = self.positions.resolve(model, &mut notes);
        let stage = StagePlan::at(Site::Input)
            .positions(positions)
            .budget(format_args!("{}, pooled", self.scope.describe(&self.budget)));
        Ok(Plan::of([stage], notes))
    }

    fn keeps(&self, _stage: usize, current: usize, entered: usize) -> Option<usize> {
        let keep = options::keeps(&self.budget, current)?;
        let side = (current as f64).sqrt() as usize;
        // Only a picture that is whole lies on the lattice.
        if keep == 0 || keep >= current || side * side != current || current != entered {
            return Some(keep);
        }
        let (down, across) = lattice_shape(side, side, keep);
        Some(down * across)
    }

    fn select(&self, cut: &Cut<'_>, _memory: &mut Memory) -> Result<Selection, RunError> {
        let tokens = cut.tokens;
        let by_grid = |i: u32| tokens.tokens[i as usize].grid;
        let mut chosen = Vec::new();
        let mut merges = Vec::new();
        for group in score::groups(tokens, self.scope, &self.budget, &[], by_grid) {
            if group.keep >= group.members.len() {
                chosen.extend(group.members);
                continue;
            }
            let pooled = match lattice::raster_of(tokens, &group.members) {
                Some(_) => pool_cells(tokens, &group.members, group.keep),
                None => pool_areas(tokens, group.members, group.keep),
            };
            for merge in pooled {
                chosen.push(merge.target);
                if merge.terms.len() > 1 {
                    merges.push(merge);
                }
            }
        }
        merges.sort_by_key(|m| m.target);
        Ok(Selection { kept: with_structural(tokens, chosen), merges, ..Selection::default() })
    }
}

/// Means over exactly `keep` areas of the tokens that are left of a grid, at least as many.
fn pool_areas(tokens: &TokenMap, members: Vec<u32>, keep: usize) -> Vec<Merge> {
    let place = |i: u32| {
        let t = &tokens.tokens[i as usize];
        match t.kind {
            TokenKind::Patch => (t.row, t.col),
            _ => (tokens.grid_of(t).rows, tokens.grid_of(t).cols),
        }
    };
    let mut open = vec![(members, keep)];
    let mut merges = Vec::new();
    while let Some((mut area, parts)) = open.pop() {
        let spread = |of: &dyn Fn(u32) -> u32| {
            let values = || area.iter().map(|&i| of(i));
            values().max().unwrap_or(0) - values().min().unwrap_or(0)
        };
        let is_tall = spread(&|i| place(i).0) >= spread(&|i| place(i).1);
        if parts > 1 {
            area.sort_by_key(|&i| {
                let (row, col) = place(i);
                if is_tall { (row, col, i) } else { (col, row, i) }
            });
            // No part gets fewer tokens than it has areas.
            let half = parts / 2;
            let rest = area.split_off(area.len() * half / parts);
            open.extend([(area, half), (rest, parts - half)]);
            continue;
        }
        let count = area.len() as i64;
        let sum = area.iter().map(|&i| place(i)).fold((0, 0), |sum: (i64, i64), (row, col)| {
            (sum.0 + i64::from(row), sum.1 + i64::from(col))
        });
        let distance = |i: u32| {
            let (row, col) = place(i);
            let (dy, dx) = (i64::from(row) * count - sum.0, i64::from(col) * count - sum.1);
            dy * dy + dx * dx
        };
        let Some(&target) = area.iter().min_by_key(|&&i| (distance(i), i)) else { continue };
        area.sort_unstable();
        let weight = 1.0 / area.len() as f32;
        merges.push(Merge { target, terms: area.into_iter().map(|i| (i, weight)).collect() });
    }
    merges
}

/// Means over at most `keep` rectangles of the grid that `cells` (of one grid) lie on.
fn pool_cells(tokens: &TokenMap, cells: &[u32], keep: usize) -> Vec<Merge> {
    let Some(&first) = cells.first().filter(|_| keep > 0) else { return Vec::new() };
    let grid = tokens.grid_of(&tokens.tokens[first as usize]);
    let (rows, cols) = (grid.rows as usize, grid.cols as usize);
    let (down, across) = lattice_shape(rows, cols, keep);
    let mut sums: Vec<Vec<(u32, f64)>> = vec![Vec::new(); down * across];
    for &i in cells {
        let t = &tokens.tokens[i as usize];
        for (y, height) in overlaps(t.row as usize, rows, down) {
            for (x, width) in overlaps(t.col as usize, cols, across) {
                sums[y * across + x].push((i, height * width));
            }
        }
    }
    let centre = |at: usize, parts: usize, size: usize| (2 * at + 1) * size / (2 * parts);
    let mut taken = vec![false; tokens.len()];
    let mut merges = Vec::new();
    for (at, terms) in sums.into_iter().enumerate() {
        let (row, col) = (centre(at / across, down, rows), centre(at % across, across, cols));
        let distance = |i: u32| {
            let t = &tokens.tokens[i as usize];
            let (dy, dx) = (t.row as i64 - row as i64, t.col as i64 - col as i64);
            dy * dy + dx * dx
        };
        // A cell can carry one mean only; where few cells are left two rectangles may want it.
        let free = terms.iter().map(|t| t.0).filter(|&i| !taken[i as usize]);
        let Some(target) = free.min_by_key(|&i| (distance(i), i)) else { continue };
        taken[target as usize] = true;
        let area: f64 = terms.iter().map(|t| t.1).sum();
        let terms = terms.into_iter().map(|(i, w)| (i, (w / area) as f32)).collect();
        merges.push(Merge { target, terms });
    }
    merges
}

/// Parts (of `parts` equal ones over `size` cells) that cell `at` reaches into, and how far.
fn overlaps(at: usize, size: usize, parts: usize) -> impl Iterator<Item = (usize, f64)> {
    // In units of 1 / parts of a cell: the cell is `parts` long, a part is `size` long.
    let (from, to) = (at * parts, (at + 1) * parts);
    (from / size..=(to - 1) / size).map(move |part| {
        let (start, end) = (part * size, (part + 1) * size);
        (part, (to.min(end) - from.max(start)) as f64 / parts as f64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use secateur_core::clip::Grid;

    fn square(rows: u32, cols: u32) -> TokenMap {
        let grid = Grid {
            picture: 0,
            frame: 0,
            tile: 0,
            rows,
            cols,
            origin: [0.0; 2],
            cell: [1.0; 2],
            source: [cols, rows],
        };
        TokenMap::raster(vec![grid])
    }

    #[test]
    fn four_by_four_pools_to_the_means_of_its_quarters() {
        let map = square(4, 4);
        let cells: Vec<u32> = (0..16).collect();
        let merges = pool_cells(&map, &cells, 4);
        let first: Vec<(u32, f32)> = vec![(0, 0.25), (1, 0.25), (4, 0.25), (5, 0.25)];
        assert_eq!(merges[0], Merge { target: 5, terms: first });
        assert_eq!(merges.iter().map(|m| m.target).collect::<Vec<_>>(), [5, 7, 13, 15]);
    }

    proptest! {
        #[test]
        fn what_is_left_of_a_grid_pools_to_exactly_the_budget(
            cut in proptest::collection::vec(any::<bool>(), 90), k in 1usize..60,
        ) {
            let map = square(9, 10);
            let left: Vec<u32> = (0..90).filter(|&i| cut[i as usize]).collect();
            prop_assume!(k <= left.len());
            let merges = pool_areas(&map, left.clone(), k);
            prop_assert_eq!(merges.len(), k);
            let mut members: Vec<u32> =
                merges.iter().flat_map(|m| m.terms.iter().map(|t| t.0)).collect();
            members.sort_unstable();
            prop_assert_eq!(members, left);
            prop_assert!(merges.iter().all(|m| m.terms.iter().any(|t| t.0 == m.target)));
        }

        #[test]
        fn every_cell_gives_its_whole_area_and_weights_sum_to_one(
            rows in 1u32..20, cols in 1u32..20, k in 1usize..100,
        ) {
            let map = square(rows, cols);
            let cells: Vec<u32> = (0..rows * cols).collect();
            prop_assume!(k < cells.len());
            let merges = pool_cells(&map, &cells, k);
            let (down, across) = lattice_shape(rows as usize, cols as usize, k);
            prop_assert_eq!(merges.len(), down * across);
            let mut given = vec![0.0f64; cells.len()];
            let area = (rows * cols) as f64 / (down * across) as f64;
            for merge in &merges {
                let sum: f32 = merge.terms.iter().map(|t| t.1).sum();
                prop_assert!((sum - 1.0).abs() < 1e-5);
                for &(i, w) in &merge.terms {
                    given[i as usize] += f64::from(w) * area;
                }
            }
            prop_assert!(given.iter().all(|g| (g - 1.0).abs() < 1e-4), "{given:?}");
        }
    }
}
