//! PyramidDrop: drops tokens in stages, each by the attention of the layer that comes next.
//!
//! Method: "Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy
//! Reduction" (2024): before each layer `r` of the schedule,
//! `s[i] = mean over heads of P_r[last, i]` with the weights of layer `r` on what enters it; the
//! best `trunc(v ratio)` stay and count their positions anew.
//!
//! Deviations
//! - E1 (queries, keys and values are projected again for scoring): the layer reuses the keys.
//! - E2 (paper: the last layer of a stage; code: the first layer of the next): code.
//! - E3, E6, E7, E8 (no grouped queries, one picture, sequences cut at 2048, right padding only):
//!   none of these limits.
//! - E4: FastV's code with other rows, several drops and renumbering.
//!
//! Not published, ours: `keep` names what the last drop leaves; layers scale with the depth.

use secateur_core::chain::Params;
use secateur_core::error::{ChainError, RunError};
use secateur_core::model::ModelInfo;
use secateur_core::prune::{Cut, Memory, Plan, PositionPolicy, Pruner, Selection, Site, StagePlan};
use secateur_core::signal::{Rows, Signal};

use crate::debias::Debias;
use crate::options::Positions;
use crate::parameters::{DEBIASED, RENUMBERED, SCHEDULED_KEEP, parameter};
use crate::registry::Entry;
use crate::schedule::Schedule;
use crate::score::{Ranking, Scope};

/// Its row in the registry.
pub const ENTRY: Entry = Entry {
    name: "pyramid_drop",
    paper: "Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction \
            (2024)",
    summary: "several drops by the attention of the last prompt token, deeper and deeper",
    reads: "one attention row of the decoder layer about to run, at each drop",
    sites: "decoder, several",
    example: "pyramid_drop:keep=64",
    debias: true,
    parameters: &[
        &[SCHEDULED_KEEP],
        &[
            parameter(
                "layers",
                "([8;16;24] of 32, scaled to the depth)",
                "the layers before which it cuts, rising",
            ),
            parameter(
                "ratios",
                "([0.5;0.25;0.125] without keep)",
                "what each cut leaves, as shares of the tokens that entered; absent beside keep",
            ),
            parameter(
                "scope",
                "all",
                "one ranking over all images, or one an image, which splits the budget",
            ),
        ],
        DEBIASED,
        RENUMBERED,
    ],
    build: |params| Ok(Box::new(PyramidDrop::parse(params)?)),
};

/// Ranks by the last prompt token's attention, several times.
#[derive(Clone, Debug)]
pub struct PyramidDrop {
    schedule: Schedule,
    /// Of the first drop, which alone is debiased, and of the later ones.
    rankings: [Ranking; 2],
    positions: Positions,
}

impl PyramidDrop {
    /// Parameters: `layers`, `ratios` or `keep`, `scope = "all" | "image"`, `debias`, `positions`.
    ///
    /// # Errors
    /// Lists that do not fit each other, values out of range.
    pub fn parse(params: &Params<'_>) -> Result<Self, ChainError> {
        Ok(Self {
            schedule: Schedule::parse(params, &[8, 16, 24], &[0.5, 0.25, 0.125])?,
            rankings: first_and_later(params)?,
            positions: Positions::parse(params, PositionPolicy::Renumber)?,
        })
    }
}

/// The rankings of a staged pruner: `scope`, and `debias` for the first drop alone.
///
/// # Errors
/// Values out of range.
pub(crate) fn first_and_later(params: &Params<'_>) -> Result<[Ranking; 2], ChainError> {
    let scope = params.choice("scope", Scope::DECODER)?.unwrap_or(Scope::All);
    let debias = Debias::option(params)?;
    Ok([Ranking { scope, debias }, Ranking { scope, debias: None }])
}

impl Pruner for PyramidDrop {
    fn plan(&self, model: &ModelInfo) -> Result<Plan, ChainError> {
        let mut notes = Vec::new();
        let positions = self.positions.resolve(model, &mut notes);
        let layers = self.schedule.layers(model);
        let stage = |(j, layer): (usize, usize)| {
            StagePlan::at(Site::Decoder(layer))
                .reads([Signal::Probe { layer, rows: Rows::Last }])
                .positions(positions)
                .budget(self.schedule.describe(j))
                .drop(j)
        };
        Ok(Plan::of(layers.into_iter().enumerate().map(stage), notes))
    }

    fn keeps(&self, stage: usize, current: usize, entered: usize) -> Option<usize> {
        self.schedule.keeps(stage, current, entered)
    }

    fn select(&self, cut: &Cut<'_>, _memory: &mut Memory) -> Result<Selection, RunError> {
        let [row] = cut.plan.reads[..] else { return Err(cut.refuse("it reads one row")) };
        let scores = cut.vector(row)?.to_vec();
        let ranking = &self.rankings[cut.stage.min(1)];
        Ok(ranking.select(cut, scores, &self.schedule.budget_at(cut)))
    }
}
