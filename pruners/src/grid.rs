//! Grid: keeps an even lattice of tokens, whatever the picture shows.
//!
//! An honest baseline: it reads nothing and costs nothing. Published comparisons rarely include
//! it; every accuracy table of this project does.
//!
//! Method (own definition): on `rows x cols` cells with budget `k`,
//! `a = clamp(round_half_even(sqrt(k rows / cols)), 1, min(rows, k))`, `b = min(cols, k / a)`;
//! cells `((2i + 1) rows / 2a, (2j + 1) cols / 2b)`; the remaining `k - a b` are spread evenly over
//! the unused raster indices. Where tokens are missing or have no cell (an earlier stage cut or
//! merged), `k` are spread evenly over those that are there.

use secateur_core::chain::Params;
use secateur_core::error::{ChainError, RunError};
use secateur_core::model::ModelInfo;
use secateur_core::prune::{
    Budget, Cut, Memory, Plan, PositionPolicy, Pruner, Selection, Site, StagePlan,
};

use crate::lattice::lattice_of;
use crate::options::{self, Positions};
use crate::parameters::{KEEP, RENUMBERED, parameter};
use crate::registry::Entry;
use crate::score::{self, Scope, with_structural};

/// Its row in the registry.
pub const ENTRY: Entry = Entry {
    name: "grid",
    paper: "baseline of this project",
    summary: "an even lattice of tokens, scored by nothing",
    reads: "nothing",
    sites: "input",
    example: "grid:keep=64",
    debias: false,
    parameters: &[
        &[KEEP],
        &[parameter(
            "per",
            "image",
            "the image's crops share a budget (image), each has one (crop), or all together (all)",
        )],
        RENUMBERED,
    ],
    build: |params| Ok(Box::new(Grid::parse(params)?)),
};

/// Keeps a lattice.
#[derive(Clone, Debug)]
pub struct Grid {
    budget: Budget,
    scope: Scope,
    positions: Positions,
}

impl Grid {
    /// Parameters: `keep`, `per = "image" | "crop"`, `positions`.
    ///
    /// # Errors
    /// A missing budget, a value out of range.
    pub fn parse(params: &Params<'_>) -> Result<Self, ChainError> {
        Ok(Self {
            budget: count_budget(params)?,
            scope: params.choice("per", Scope::PER_CROP)?.unwrap_or(Scope::SplitOverCrops),
            positions: Positions::parse(params, PositionPolicy::Renumber)?,
        })
    }
}

/// A budget for pruners that score nothing: a mass has no meaning there.
///
/// # Errors
/// No budget, or a mass.
pub(crate) fn count_budget(params: &Params<'_>) -> Result<Budget, ChainError> {
    match options::required_budget(params)? {
        Budget::Mass(_) => {
            Err(params.error("keep", "a number of tokens or a share: nothing is scored"))
        }
        budget => Ok(budget),
    }
}

impl Pruner for Grid {
    fn plan(&self, model: &ModelInfo) -> Result<Plan, ChainError> {
        let mut notes = Vec::new();
        let positions = self.positions.resolve(model, &mut notes);
        let stage = StagePlan::at(Site::Input)
            .positions(positions)
            .budget(self.scope.describe(&self.budget));
        Ok(Plan::of([stage], notes))
    }

    fn keeps(&self, _stage: usize, current: usize, _entered: usize) -> Option<usize> {
        options::keeps(&self.budget, current)
    }

    fn select(&self, cut: &Cut<'_>, _memory: &mut Memory) -> Result<Selection, RunError> {
        let tokens = cut.tokens;
        let by_grid = |i: u32| tokens.tokens[i as usize].grid;
        let groups = score::groups(tokens, self.scope, &self.budget, &[], by_grid);
        let chosen = groups.iter().flat_map(|g| lattice_of(tokens, &g.members, g.keep));
        Ok(Selection::keep(with_structural(tokens, chosen)))
    }
}
