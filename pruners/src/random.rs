//! Random: keeps tokens by lot, with a seed.
//!
//! An honest baseline. Method (own definition): SplitMix64 from the seed; step `i < k` of a
//! Fisher-Yates shuffle swaps place `i` with `i + draw mod (n - i)`; the first `k`, ascending.
//! Several pictures: one sequence of draws, picture after picture.

use secateur_core::chain::Params;
use secateur_core::error::{ChainError, RunError};
use secateur_core::model::ModelInfo;
use secateur_core::prune::{
    Budget, Cut, Memory, Plan, PositionPolicy, Pruner, Selection, Site, StagePlan,
};
use secateur_core::random::SplitMix64;

use crate::grid::count_budget;
use crate::options::{self, Positions};
use crate::parameters::{KEEP, RENUMBERED, parameter};
use crate::registry::Entry;
use crate::score::{self, Scope, with_structural};

/// Its row in the registry.
pub const ENTRY: Entry = Entry {
    name: "random",
    paper: "baseline of this project",
    summary: "tokens by lot, the same for the same seed",
    reads: "nothing",
    sites: "input",
    example: "random:keep=64:seed=0",
    debias: false,
    parameters: &[
        &[KEEP],
        &[
            parameter("seed", "0", "start of the random numbers"),
            parameter(
                "per",
                "image",
                "who shares a budget and a ranking: each image, each crop, or all together",
            ),
        ],
        RENUMBERED,
    ],
    build: |params| Ok(Box::new(Random::parse(params)?)),
};

/// Keeps tokens by lot.
#[derive(Clone, Debug)]
pub struct Random {
    budget: Budget,
    seed: u64,
    scope: Scope,
    positions: Positions,
}

impl Random {
    /// Parameters: `keep`, `seed` (0), `per = "image" | "crop" | "all"`, `positions`.
    ///
    /// # Errors
    /// A missing budget, a value out of range.
    pub fn parse(params: &Params<'_>) -> Result<Self, ChainError> {
        Ok(Self {
            budget: count_budget(params)?,
            seed: params.count("seed")?.unwrap_or(0) as u64,
            scope: params.choice("per", Scope::PER_IMAGE)?.unwrap_or(Scope::EachImage),
            positions: Positions::parse(params, PositionPolicy::Renumber)?,
        })
    }
}

impl Pruner for Random {
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
        let mut draws = SplitMix64::new(self.seed);
        let by_grid = |i: u32| tokens.tokens[i as usize].grid;
        let mut chosen = Vec::new();
        for mut group in score::groups(tokens, self.scope, &self.budget, &[], by_grid) {
            let places = &mut group.members;
            for i in 0..group.keep {
                let rest = (places.len() - i) as u64;
                places.swap(i, i + (draws.next() % rest) as usize);
            }
            chosen.extend_from_slice(&places[..group.keep]);
        }
        Ok(Selection::keep(with_structural(tokens, chosen)))
    }
}
