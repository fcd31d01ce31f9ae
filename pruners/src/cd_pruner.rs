//! CDPruner: keeps tokens that are relevant to the instruction and differ from one another.
//!
//! Method: "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in
//! MLLMs" (NeurIPS 2025, arXiv 2506.10967): greedy MAP of a determinantal point process with
//! kernel `r_i cos(x_i, x_j) r_j`, where `r` is the relevance to the instruction, scaled to
//! `(0, 1]` as `(r - min + 1e-6) / (max - min)`.
//!
//! Deviations (ids of this file)
//! - `relevance-space`: the release takes relevance from CLIP's joint space, where patches that
//!   match score low, and negates it. Its text tower is no part of the models here: relevance is
//!   the cosine with the mean embedded instruction in the decoder's space. `relevance =
//!   "negative"` negates it.
//! - `relevance_weight = theta` puts `exp(theta / (2 (1 - theta)) r)` in place of `r` (the paper's
//!   weighted form, commented out in the release).
//! - `split = true` chooses half of the budget in each half of the tokens, as a well-known
//!   inference server does to save time; default: the whole kernel, as in the paper.
//! - `exhausted`: the release divides by zero once all directions are taken; the rest goes by
//!   relevance.

use ndarray::{ArrayView1, Axis};
use secateur_core::chain::Params;
use secateur_core::error::{ChainError, RunError};
use secateur_core::model::ModelInfo;
use secateur_core::prune::{
    Budget, Cut, Memory, Plan, PositionPolicy, Pruner, Selection, Site, StagePlan,
};
use secateur_core::signal::Signal;

use crate::diversity::{Cosines, greedy_dpp};
use crate::options::{self, Positions};
use crate::parameters::{KEEP, RENUMBERED, parameter};
use crate::registry::Entry;
use crate::score::{self, Group, Scope, with_structural};

/// Its row in the registry.
pub const ENTRY: Entry = Entry {
    name: "cd_pruner",
    paper: "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in \
            MLLMs (NeurIPS 2025)",
    summary: "tokens relevant to the instruction and different from one another",
    reads: "projected tokens; the embedded instruction",
    sites: "input",
    example: "cd_pruner:keep=64",
    debias: false,
    parameters: &[
        &[KEEP],
        &[
            parameter(
                "per",
                "image",
                "who shares a budget and a ranking: each image, each crop, or all together",
            ),
            parameter(
                "relevance",
                "positive",
                "sign of the likeness to the instruction: positive, or negative as the released LLaVA code has it",
            ),
            parameter(
                "relevance_weight",
                "(none: relevance is scaled to (0, 1])",
                "weight of relevance against diversity, in [0, 1)",
            ),
            parameter("split", "false", "choose half of the budget in each half of the tokens"),
        ],
        RENUMBERED,
    ],
    build: |params| Ok(Box::new(CdPruner::parse(params)?)),
};

/// Chooses by a determinantal point process.
#[derive(Clone, Debug)]
pub struct CdPruner {
    budget: Budget,
    scope: Scope,
    sign: f32,
    relevance_weight: Option<f64>,
    split: bool,
    positions: Positions,
}

impl CdPruner {
    /// Parameters: `keep`, `per = "image" | "crop" | "all"`, `relevance = "positive" |
    /// "negative"`, `relevance_weight` in `[0, 1)`, `split`, `positions`.
    ///
    /// # Errors
    /// A missing budget, a value out of range.
    pub fn parse(params: &Params<'_>) -> Result<Self, ChainError> {
        let relevance_weight = params.number("relevance_weight")?;
        if relevance_weight.is_some_and(|w| !(0.0..1.0).contains(&w)) {
            return Err(params.error("relevance_weight", "a number in [0, 1)"));
        }
        let signs = [("positive", 1.0f32), ("negative", -1.0)];
        Ok(Self {
            budget: options::required_budget(params)?,
            scope: params.choice("per", Scope::PER_IMAGE)?.unwrap_or(Scope::EachImage),
            sign: params.choice("relevance", &signs)?.unwrap_or(1.0),
            relevance_weight,
            split: options::flag(params, "split", false)?,
            positions: Positions::parse(params, PositionPolicy::Renumber)?,
        })
    }

    /// Relevance of the members of a group, scaled to `(0, 1]`, or weighted.
    fn quality(&self, relevance: &[f32], group: &Group) -> Vec<f32> {
        let own: Vec<f32> = group.members.iter().map(|&i| relevance[i as usize]).collect();
        let low = own.iter().copied().fold(f32::INFINITY, f32::min);
        let high = own.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let scaled = |r: f32| if high > low { (r - low + 1e-6) / (high - low) } else { 1.0 };
        let weighted = |r: f32| match self.relevance_weight {
            Some(theta) => (theta / (2.0 * (1.0 - theta)) * f64::from(r)).exp() as f32,
            None => r,
        };
        own.into_iter().map(|r| weighted(scaled(r))).collect()
    }
}

impl Pruner for CdPruner {
    fn plan(&self, model: &ModelInfo) -> Result<Plan, ChainError> {
        let mut notes = Vec::new();
        let positions = self.positions.resolve(model, &mut notes);
        let stage = StagePlan::at(Site::Input)
            .reads([Signal::Embeddings, Signal::InstructionEmbedding])
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
        let instruction = ArrayView1::from(cut.instruction()?);
        if instruction.len() != rows.ncols() {
            let reason =
                format!("{} values of instruction for {}", instruction.len(), rows.ncols());
            return Err(cut.refuse(reason));
        }
        let norm = |v: ArrayView1<'_, f32>| v.dot(&v).sqrt();
        let length = norm(instruction);
        let relevance: Vec<f32> = rows
            .rows()
            .into_iter()
            .map(|row| {
                let both = norm(row) * length;
                if both > 0.0 { self.sign * row.dot(&instruction) / both } else { 0.0 }
            })
            .collect();
        let by_grid = |i: u32| tokens.tokens[i as usize].grid;
        // A mass is one of relevance, counted from the least relevant token.
        let low = relevance.iter().copied().fold(f32::INFINITY, f32::min);
        let above: Vec<f32> = relevance.iter().map(|r| r - low).collect();
        let mut chosen = Vec::new();
        for group in score::groups(tokens, self.scope, &self.budget, &above, by_grid) {
            if group.keep >= group.members.len() {
                chosen.extend(group.members);
                continue;
            }
            let quality = self.quality(&relevance, &group);
            let middle = if self.split { group.members.len().div_ceil(2) } else { 0 };
            let sizes = [middle, group.members.len() - middle];
            let budgets = score::split_budget(group.keep, &sizes);
            for (range, keep) in [(0..middle, budgets[0]), (middle..quality.len(), budgets[1])] {
                let members = &group.members[range.clone()];
                let index: Vec<usize> = members.iter().map(|&i| i as usize).collect();
                let cosines = Cosines::new(rows.select(Axis(0), &index).view());
                let order = greedy_dpp(&cosines, &quality[range], keep);
                chosen.extend(order.into_iter().map(|at| members[at]));
            }
        }
        let kept = with_structural(tokens, chosen);
        Ok(Selection { kept, scores: Some(relevance), ..Selection::default() })
    }
}
