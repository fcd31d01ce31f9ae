//! TransPrune: keeps the tokens that the decoder changes most and the instruction looks at.
//!
//! Method: "TransPrune: Token Transition Pruning for Efficient Large Vision-Language Model" (2025,
//! arXiv 2507.20630). For a module with input `a` (normalised) and output `b` (before the
//! residual), over all tokens `j` that are alive in the layer:
//! ```text
//! w[j]  = |b_j| / |a_j| * exp(c_j) / sum_j' exp(c_j'),   c_j = 1 - cos(a_j, b_j)
//! U[i]  = sum over accumulated layers of (w of attention + w of MLP)
//! G[i]  = mean over instruction rows and heads of the attention of the layer about to run
//! score = 2 alpha U / (sum U + 1e-8) + 2 (1 - alpha) G / (sum G + 1e-8)
//! ```
//! The best `trunc(v ratio)` of each drop stay and count their positions anew. Normalisers of
//! layers that ran before a drop stay as they were, so that later, shorter layers weigh more: a
//! property of the method.
//!
//! Deviations
//! - B1 (normalised over the whole batch): over the tokens of the sequence, text included.
//! - B2 (alpha = 0.5 in the paper, a plain sum in the code): `alpha` (0.5), where both are equal.
//! - B3 to B8 (no grouped queries, batch 1, NaN without text after the picture, one picture,
//!   sequences cut at 2048, right padding only): none of these limits; without text after the
//!   picture the last prompt row is the instruction.
//! - B9: the key is spelt `accumulate`; entry `a` means the `a`-th executed layer.
//! - B10: `use_iga`, `use_ttv` switch one term off.
//! - B11 (paper: `1 - |cos|`): `direction = "abs"`; default as in the code.
//! - B12, B13 (the paper adds raw terms, its attention is between instruction and picture alone):
//!   as in the code.
//!
//! Not published, ours: `keep` names what the last drop leaves; layers scale with the depth.

use secateur_core::chain::Params;
use secateur_core::error::{ChainError, RunError};
use secateur_core::model::ModelInfo;
use secateur_core::ops::Transition;
use secateur_core::prune::{
    Cut, Memory, Plan, PositionPolicy, Pruner, Selection, Site, StagePlan, check_finite,
};
use secateur_core::signal::{LayerTransitions, Rows, Signal};

use crate::options::{self, Positions};
use crate::parameters::{DEBIASED, RENUMBERED, SCHEDULED_KEEP, parameter};
use crate::pyramid_drop::first_and_later;
use crate::registry::Entry;
use crate::schedule::Schedule;
use crate::score::Ranking;

/// Its row in the registry.
pub const ENTRY: Entry = Entry {
    name: "trans_prune",
    paper: "TransPrune: Token Transition Pruning for Efficient Large Vision-Language Model \
            (arXiv 2507.20630)",
    summary: "the tokens that the decoder changes most and the instruction looks at, in stages",
    reads: "transitions of several decoder layers; instruction rows of the layer about to run",
    sites: "decoder, several",
    example: "trans_prune:keep=64",
    debias: true,
    parameters: &[
        &[SCHEDULED_KEEP],
        &[
            parameter(
                "layers",
                "([7;9;12] of 32, scaled to the depth)",
                "the layers before which it cuts, rising",
            ),
            parameter(
                "ratios",
                "([0.875;0.625;0.125] without keep)",
                "what each cut leaves, as shares of the tokens that entered; absent beside keep",
            ),
            parameter(
                "accumulate",
                "(from the first cut's layer to the last cut's)",
                "executed layers whose transitions are summed, from 1",
            ),
            parameter(
                "alpha",
                "0.5",
                "weight of transitions against the instruction's attention, in [0, 1]",
            ),
            parameter(
                "direction",
                "signed",
                "change of direction: 1 - cosine (signed), or its absolute form (abs)",
            ),
            parameter("use_ttv", "true", "rank by transitions"),
            parameter("use_iga", "true", "rank by the instruction's attention"),
            parameter(
                "scope",
                "all",
                "one ranking over all images, or one an image, which splits the budget",
            ),
        ],
        DEBIASED,
        RENUMBERED,
    ],
    build: |params| Ok(Box::new(TransPrune::parse(params)?)),
};

/// Keeps sums from dividing by zero.
const EPS: f64 = 1e-8;

/// How the change of direction enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// `1 - cos`, the release's.
    Signed,
    /// `1 - |cos|`, the paper's.
    Abs,
}

/// Ranks by token transitions and instruction attention.
#[derive(Clone, Debug)]
pub struct TransPrune {
    name: String,
    schedule: Schedule,
    accumulate: Option<Vec<usize>>,
    alpha: f64,
    direction: Direction,
    use_ttv: bool,
    use_iga: bool,
    rankings: [Ranking; 2],
    positions: Positions,
}

impl TransPrune {
    /// Parameters: `accumulate`, `layers`, `ratios` or `keep`, `alpha` (0.5), `direction =
    /// "signed" | "abs"`, `use_ttv`, `use_iga`, `scope`, `debias`, `positions`.
    ///
    /// # Errors
    /// Lists that do not fit each other, values out of range, both terms switched off.
    pub fn parse(params: &Params<'_>) -> Result<Self, ChainError> {
        let accumulate = params.counts("accumulate")?;
        if let Some(list) = &accumulate
            && (list.first().is_none_or(|&a| a == 0) || list.windows(2).any(|w| w[0] >= w[1]))
        {
            return Err(params.error("accumulate", "executed layers from 1 on, strictly rising"));
        }
        let alpha = params.number("alpha")?.unwrap_or(0.5);
        if !(0.0..=1.0).contains(&alpha) {
            return Err(params.error("alpha", "a number in [0, 1]"));
        }
        let directions = [("signed", Direction::Signed), ("abs", Direction::Abs)];
        let this = Self {
            name: params.pruner().to_owned(),
            schedule: Schedule::parse(params, &[7, 9, 12], &[0.875, 0.625, 0.125])?,
            accumulate,
            alpha,
            direction: params.choice("direction", &directions)?.unwrap_or(Direction::Signed),
            use_ttv: options::flag(params, "use_ttv", true)?,
            use_iga: options::flag(params, "use_iga", true)?,
            rankings: first_and_later(params)?,
            positions: Positions::parse(params, PositionPolicy::Renumber)?,
        };
        if !this.use_ttv && !this.use_iga {
            return Err(params.error("use_iga", "true, because `use_ttv` is false"));
        }
        Ok(this)
    }

    /// Decoder layers (0-based) whose transitions count at a drop after `executed` layers. Default:
    /// from the first drop's to the last drop's, as published.
    fn observed(&self, model: &ModelInfo, executed: usize) -> Vec<usize> {
        let list = match &self.accumulate {
            Some(list) => list.clone(),
            None => {
                let layers = self.schedule.layers(model);
                let (first, last) = (layers.first().copied(), layers.last().copied());
                (first.unwrap_or(1)..=last.unwrap_or(0)).collect()
            }
        };
        list.into_iter().filter(|&a| a <= executed).map(|a| a - 1).collect()
    }

    /// Accumulated transition weights of the visual tokens.
    fn transitions(&self, cut: &Cut<'_>) -> Result<Vec<f64>, RunError> {
        let mut sums = vec![0.0; cut.tokens.len()];
        if cut.signals.visual_rows.len() != sums.len() {
            let rows = cut.signals.visual_rows.len();
            return Err(cut.refuse(format!("{rows} rows for {} tokens", sums.len())));
        }
        for &signal in &cut.plan.reads {
            let Signal::Transitions { layer } = signal else { continue };
            let seen = cut.transitions(layer)?;
            let weights = layer_weights(seen, self.direction);
            check_finite(&signal, &weights)?;
            let mut at = 0;
            for (sum, &row) in sums.iter_mut().zip(&cut.signals.visual_rows) {
                at += seen.tokens[at..].partition_point(|&t| t < row);
                if seen.tokens.get(at) != Some(&row) {
                    let reason = format!("`{signal}` has no entry for row {row}");
                    return Err(cut.refuse(reason));
                }
                *sum += f64::from(weights[at]);
            }
        }
        Ok(sums)
    }
}

/// Transition weight of attention and MLP together, one a token of the layer.
pub fn layer_weights(layer: &LayerTransitions, direction: Direction) -> Vec<f32> {
    let attention = transition_weights(&layer.attention, direction);
    let mlp = transition_weights(&layer.mlp, direction);
    attention.iter().zip(&mlp).map(|(a, m)| (a + m) as f32).collect()
}

/// `|b| / |a| * softmax(1 - cos(a, b))` over all tokens given. `1 - cos` lies in `[0, 2]`, so that
/// no maximum needs to be taken off before the exponential.
fn transition_weights(transitions: &[Transition], direction: Direction) -> Vec<f64> {
    let parts: Vec<(f64, f64)> = transitions
        .iter()
        .map(|t| {
            let [aa, bb, ab] = t.map(f64::from);
            let (a, b) = (aa.sqrt(), bb.sqrt());
            let cos = ab / (a.max(EPS) * b.max(EPS));
            let change = match direction {
                Direction::Signed => 1.0 - cos,
                Direction::Abs => 1.0 - cos.abs(),
            };
            (b / a, change.exp())
        })
        .collect();
    let sum: f64 = parts.iter().map(|p| p.1).sum();
    parts.into_iter().map(|(magnitude, e)| magnitude * e / sum).collect()
}

impl Pruner for TransPrune {
    fn plan(&self, model: &ModelInfo) -> Result<Plan, ChainError> {
        let mut notes = Vec::new();
        let positions = self.positions.resolve(model, &mut notes);
        let layers = self.schedule.layers(model);
        let mut stages = Vec::new();
        for (j, layer) in layers.into_iter().enumerate() {
            options::check_decoder_layer(&self.name, layer, model)?;
            let observed = if self.use_ttv { self.observed(model, layer) } else { Vec::new() };
            if self.use_ttv && observed.is_empty() {
                notes.push(format!(
                    "drop {j} before layer {layer} comes before any accumulated layer: \
                     instruction attention alone decides"
                ));
            }
            let mut reads: Vec<Signal> =
                observed.into_iter().map(|layer| Signal::Transitions { layer }).collect();
            if self.use_iga {
                reads.push(Signal::Probe { layer, rows: Rows::Instruction });
            }
            let stage = StagePlan::at(Site::Decoder(layer)).reads(reads).positions(positions);
            stages.push(stage.budget(self.schedule.describe(j)).drop(j));
        }
        Ok(Plan::of(stages, notes))
    }

    fn keeps(&self, stage: usize, current: usize, entered: usize) -> Option<usize> {
        self.schedule.keeps(stage, current, entered)
    }

    fn select(&self, cut: &Cut<'_>, _memory: &mut Memory) -> Result<Selection, RunError> {
        let mut scores = vec![0.0f64; cut.tokens.len()];
        let mut add = |weight: f64, term: &[f64]| {
            let sum = term.iter().sum::<f64>() + EPS;
            scores.iter_mut().zip(term).for_each(|(s, t)| *s += 2.0 * weight * t / sum);
        };
        if self.use_ttv {
            add(self.alpha, &self.transitions(cut)?);
        }
        for &probe in cut.plan.reads.iter().filter(|s| matches!(s, Signal::Probe { .. })) {
            let rows = cut.vector(probe)?;
            let rows: Vec<f64> = rows.iter().map(|&x| f64::from(x)).collect();
            add(1.0 - self.alpha, &rows);
        }
        let scores = scores.into_iter().map(|s| s as f32).collect();
        let ranking = &self.rankings[cut.stage.min(1)];
        Ok(ranking.select(cut, scores, &self.schedule.budget_at(cut)))
    }
}
