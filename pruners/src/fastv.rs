//! FastV: after a few decoder layers, keeps the tokens that the last prompt token looks at.
//!
//! Method: "An Image is Worth 1/2 Tokens After Layer 2" (2024): before layer `K`, ranked by
//! `s[i] = mean over heads of A_{K-1}[last, i]`, the attention of the layer that has just run.
//! Survivors keep their positions.
//!
//! Deviations
//! - D1, D2 (masking forms, selection anew at every decode step): tokens are dropped once, in the
//!   prefill, as in the release's fork for transformers.
//! - D3 (a rotation table of 1000 positions): no limit.
//! - D4 (`K = 0` drops at random): `random`.
//! - D5 (a count, or a share removed): `keep`, or `drop_ratio` with `round_half_even`.
//! - D6 (the first sequence of a batch decides for all): each sequence for itself.

use secateur_core::chain::Params;
use secateur_core::error::{ChainError, RunError};
use secateur_core::model::ModelInfo;
use secateur_core::prune::{
    Budget, Cut, Memory, Plan, PositionPolicy, Pruner, Selection, Site, StagePlan,
};
use secateur_core::signal::{Rows, Signal};

use crate::debias::Debias;
use crate::options::{self, Positions};
use crate::parameters::{DEBIASED, KEEP, KEPT, parameter};
use crate::registry::Entry;
use crate::score::{Ranking, Scope};

/// Its row in the registry.
pub const ENTRY: Entry = Entry {
    name: "fastv",
    paper: "An Image is Worth 1/2 Tokens After Layer 2 (2024)",
    summary: "the tokens that the last prompt token looks at in an early decoder layer",
    reads: "one attention row of the decoder layer before the cut",
    sites: "decoder",
    example: "fastv:layer=2:keep=64",
    debias: true,
    parameters: &[
        &[KEEP],
        &[
            parameter("layer", "2", "the decoder layer before which it cuts"),
            parameter(
                "scope",
                "all",
                "one ranking over all images, or one an image, which splits the budget",
            ),
        ],
        DEBIASED,
        KEPT,
    ],
    build: |params| Ok(Box::new(FastV::parse(params)?)),
};

/// Ranks by attention of the last prompt token.
#[derive(Clone, Debug)]
pub struct FastV {
    name: String,
    layer: usize,
    budget: Budget,
    ranking: Ranking,
    positions: Positions,
}

impl FastV {
    /// Parameters: `layer` (2), `keep`, `scope = "all" | "image"`, `debias`, `positions`.
    ///
    /// # Errors
    /// A missing budget, a value out of range.
    pub fn parse(params: &Params<'_>) -> Result<Self, ChainError> {
        Ok(Self {
            name: params.pruner().to_owned(),
            layer: params.count("layer")?.unwrap_or(2),
            budget: options::required_budget(params)?,
            ranking: Ranking {
                scope: params.choice("scope", Scope::DECODER)?.unwrap_or(Scope::All),
                debias: Debias::option(params)?,
            },
            positions: Positions::parse(params, PositionPolicy::Keep)?,
        })
    }

    fn signal(&self) -> Signal {
        Signal::Attention { layer: self.layer - 1, rows: Rows::Last }
    }
}

impl Pruner for FastV {
    fn plan(&self, model: &ModelInfo) -> Result<Plan, ChainError> {
        options::check_decoder_layer(&self.name, self.layer, model)?;
        let mut notes = Vec::new();
        let positions = self.positions.resolve(model, &mut notes);
        let stage = StagePlan::at(Site::Decoder(self.layer))
            .reads([self.signal()])
            .positions(positions)
            .budget(self.ranking.scope.describe(&self.budget));
        Ok(Plan::of([stage], notes))
    }

    fn keeps(&self, _stage: usize, current: usize, _entered: usize) -> Option<usize> {
        options::keeps(&self.budget, current)
    }

    fn select(&self, cut: &Cut<'_>, _memory: &mut Memory) -> Result<Selection, RunError> {
        let scores = cut.vector(self.signal())?.to_vec();
        Ok(self.ranking.select(cut, scores, &self.budget))
    }
}
