//! What each visual token is and where it came from.
//!
//! Invariants
//! - `index` is the token's place in the original visual order of the request: it survives every
//!   cut and is what reports and goldens speak of.
//! - Tokens stand in sequence order; a cut keeps that order.
//! - Structural tokens (newlines, separators) are kept by rule and never scored.
//! - Members of a merged token are original indices with weights; a token without members stands
//!   for itself.

use std::ops::Range;

use crate::clip::{Grid, Rect};
use crate::prune::Selection;

/// What a visual token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenKind {
    /// A cell of a grid.
    Patch,
    /// Newline or separator: position, no picture content.
    Structural,
    /// The class token of a vision tower.
    Cls,
    /// A token that stands for several patches and for no single cell.
    Merged,
}

/// One visual token.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct VisualToken {
    /// Place in the original visual order of the request.
    pub index: u32,
    /// Index into [`TokenMap::grids`]. For a structural token: the grid whose row it ends.
    pub grid: u32,
    /// Row in that grid.
    pub row: u32,
    /// Column in that grid; a newline stands at `cols`.
    pub col: u32,
    /// What it is.
    pub kind: TokenKind,
    /// Share of the cell that is picture and not padding, in [0, 1].
    pub coverage: f32,
    /// Original indices and weights of what was merged in, itself included; empty if nothing was.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<(u32, f32)>,
}

impl VisualToken {
    /// A patch of `grid` (whose place in the map is `grid_index`).
    pub fn patch(index: u32, grid_index: u32, grid: &Grid, row: u32, col: u32) -> Self {
        Self {
            index,
            grid: grid_index,
            row,
            col,
            kind: TokenKind::Patch,
            coverage: grid.coverage(row, col),
            members: Vec::new(),
        }
    }

    /// Whether pruners may rank it.
    pub fn is_candidate(&self) -> bool {
        self.kind != TokenKind::Structural
    }
}

/// All visual tokens of a request, in sequence order.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct TokenMap {
    /// The lattices that tokens lie on.
    pub grids: Vec<Grid>,
    /// The tokens.
    pub tokens: Vec<VisualToken>,
    /// Whether a stage added rows that are no cell of the raster: `index` then counts from that
    /// stage on, and such tokens stand at the place of their crop.
    pub rebased: bool,
}

impl TokenMap {
    /// All cells of `grids`, grid by grid, row by row.
    pub fn raster(grids: Vec<Grid>) -> Self {
        let mut tokens = Vec::new();
        for (g, grid) in grids.iter().enumerate() {
            for row in 0..grid.rows {
                for col in 0..grid.cols {
                    tokens.push(VisualToken::patch(tokens.len() as u32, g as u32, grid, row, col));
                }
            }
        }
        Self::new(grids, tokens)
    }

    /// Tokens of a dense request.
    pub fn new(grids: Vec<Grid>, tokens: Vec<VisualToken>) -> Self {
        Self { grids, tokens, rebased: false }
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no visual token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Original indices, in sequence order.
    pub fn indices(&self) -> Vec<u32> {
        self.tokens.iter().map(|t| t.index).collect()
    }

    /// The grid a token lies on.
    pub fn grid_of(&self, token: &VisualToken) -> &Grid {
        &self.grids[token.grid as usize]
    }

    /// Where a token's cell lies in its source picture; `None` for tokens without a cell.
    pub fn rect_of(&self, token: &VisualToken) -> Option<Rect> {
        (token.kind == TokenKind::Patch)
            .then(|| self.grid_of(token).cell_rect(token.row, token.col))
    }

    /// Ranges of consecutive tokens of one crop (same grid).
    pub fn crops(&self) -> Vec<Range<usize>> {
        self.ranges(|t| t.grid)
    }

    /// Ranges of consecutive tokens of one picture.
    pub fn pictures(&self) -> Vec<Range<usize>> {
        self.ranges(|t| self.grids[t.grid as usize].picture)
    }

    fn ranges(&self, key: impl Fn(&VisualToken) -> u32) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for (i, token) in self.tokens.iter().enumerate() {
            match ranges.last_mut() {
                Some(range) if key(&self.tokens[range.start]) == key(token) => range.end = i + 1,
                _ => ranges.push(i..i + 1),
            }
        }
        ranges
    }

    /// The map after a cut: kept tokens in order (a CLS row in front and appended rows behind,
    /// where the selection asks for them). With such extra rows the tokens no longer correspond
    /// to the original raster, and `index` counts anew from 0.
    #[must_use]
    pub fn compose(&self, selection: &Selection) -> Self {
        let mut tokens: Vec<VisualToken> =
            selection.kept.iter().map(|&i| self.tokens[i as usize].clone()).collect();
        for merge in &selection.merges {
            let at = selection.kept.partition_point(|&k| k < merge.target);
            tokens[at].members = self.members_of(&merge.terms);
        }
        if !selection.cls && selection.appended.is_empty() {
            return Self { grids: self.grids.clone(), tokens, rebased: self.rebased };
        }
        let crops: Vec<u32> = self.crops().iter().map(|r| self.tokens[r.start].grid).collect();
        let mut out = Vec::with_capacity(tokens.len() + selection.appended.len() + crops.len());
        for &grid in &crops {
            let extra = |kind, members| VisualToken {
                index: 0,
                grid,
                row: 0,
                col: 0,
                kind,
                coverage: 1.0,
                members,
            };
            if selection.cls {
                out.push(extra(TokenKind::Cls, Vec::new()));
            }
            out.extend(tokens.iter().filter(|t| t.grid == grid).cloned());
            for merge in &selection.appended {
                if self.tokens[merge.target as usize].grid == grid {
                    out.push(extra(TokenKind::Merged, self.members_of(&merge.terms)));
                }
            }
        }
        for (i, token) in out.iter_mut().enumerate() {
            token.index = i as u32;
        }
        Self { grids: self.grids.clone(), tokens: out, rebased: true }
    }

    /// Original members of a weighted sum of current tokens.
    fn members_of(&self, terms: &[(u32, f32)]) -> Vec<(u32, f32)> {
        let mut members = Vec::new();
        for &(i, weight) in terms {
            let token = &self.tokens[i as usize];
            if token.members.is_empty() {
                members.push((token.index, weight));
            } else {
                members.extend(token.members.iter().map(|&(j, w)| (j, w * weight)));
            }
        }
        members
    }
}
