//! DivPrune: keeps tokens that are as different from one another as can be.
//!
//! Method: "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models" (CVPR
//! 2025): greedy max-min over `D[i, j] = 1 - cos(x_i, x_j)` of projected tokens; the first token
//! is the one whose nearest other is farthest. `k = round_half_even(ratio v)`.
//!
//! Deviations
//! - G1 (chosen tokens can be chosen again when all distances are about 0): taken once.
//! - G2 (zero vectors give NaN): a zero row has cosine 0.
//! - G3 (all crops and newlines of a picture as one set): one set a picture, newlines kept aside.
//! - G4 (the span starts at the constant 35): from the placeholders.

use ndarray::Axis;
use secateur_core::chain::Params;
use secateur_core::error::{ChainError, RunError};
use secateur_core::model::ModelInfo;
use secateur_core::prune::{
    Budget, Cut, Memory, Plan, PositionPolicy, Pruner, Selection, Site, StagePlan,
};
use secateur_core::signal::Signal;

use crate::diversity::{Cosines, farthest_points};
use crate::grid::count_budget;
use crate::options::{self, Positions};
use crate::parameters::{KEEP, RENUMBERED, parameter};
use crate::registry::Entry;
use crate::score::{self, Scope, with_structural};

/// Its row in the registry.
pub const ENTRY: Entry = Entry {
    name: "div_prune",
    paper: "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models (CVPR 2025)",
    summary: "tokens as different from one another as can be",
    reads: "projected tokens",
    sites: "input",
    example: "div_prune:keep=64",
    debias: false,
    parameters: &[
        &[KEEP],
        &[parameter(
            "per",
            "image",
            "who shares a budget and a ranking: each image, each crop, or all together",
        )],
        RENUMBERED,
    ],
    build: |params| Ok(Box::new(DivPrune::parse(params)?)),
};

/// Chooses by max-min cosine distance.
#[derive(Clone, Debug)]
pub struct DivPrune {
    budget: Budget,
    scope: Scope,
    positions: Positions,
}

impl DivPrune {
    /// Parameters: `keep` (or `ratio`), `per = "image" | "crop" | "all"`, `positions`.
    ///
    /// # Errors
    /// A missing budget, a value out of range.
    pub fn parse(params: &Params<'_>) -> Result<Self, ChainError> {
        Ok(Self {
            budget: count_budget(params)?,
            scope: params.choice("per", Scope::PER_IMAGE)?.unwrap_or(Scope::EachImage),
            positions: Positions::parse(params, PositionPolicy::Renumber)?,
        })
    }
}

impl Pruner for DivPrune {
    fn plan(&self, model: &ModelInfo) -> Result<Plan, ChainError> {
        let mut notes = Vec::new();
        let positions = self.positions.resolve(model, &mut notes);
        let stage = StagePlan::at(Site::Input)
            .reads([Signal::Embeddings])
            .positions(positions)
            .budget(self.scope.describe(&self.budget));
        Ok(Plan::of([stage], notes))
    }

    fn keeps(&self, _stage: usize, current: usize, _entered: usize) -> Option<usize> {
        options::keeps(&self.budget, current)
    }

    fn select(&self, cut: &Cut<'_>, _memory: &mut Memory) -> Result<Selection, RunError> {
        let tokens = cut.tokens;
        let rows = cut.embeddings()?;
        let by_grid = |i: u32| tokens.tokens[i as usize].grid;
        let mut chosen = Vec::new();
        for group in score::groups(tokens, self.scope, &self.budget, &[], by_grid) {
            if group.keep >= group.members.len() {
                chosen.extend(group.members);
                continue;
            }
            let index: Vec<usize> = group.members.iter().map(|&i| i as usize).collect();
            let cosines = Cosines::new(rows.select(Axis(0), &index).view());
            let order = farthest_points(&cosines, group.keep);
            chosen.extend(order.into_iter().map(|at| group.members[at]));
        }
        Ok(Selection::keep(with_structural(tokens, chosen)))
    }
}
