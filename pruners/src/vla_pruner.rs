//! VLA-Pruner: keeps what matters to the instruction and what mattered to the last actions.
//!
//! Method: "VLA-Pruner: Temporal-Aware Dual-Level Visual Token Pruning for Efficient
//! Vision-Language-Action Inference" (2025, arXiv 2511.16449). At each control step, per view with
//! budget `b = round_half_even(v keep)`, before layer `K`:
//! ```text
//! semantic  S[j] = attention of layer K-1, mean over heads and prompt rows
//! action    G[j] = sum over the last w steps of gamma^age * (attention of the rows that
//!                  produced the action tokens, mean over rows and heads, of one layer)
//! kept           = top-b(S) united with top-b(G), reduced to b by max-min cosine distance of
//!                  the embeddings
//! ```
//! Fewer than `w` steps in the history: nothing is pruned. Survivors keep their positions.
//!
//! The history belongs to the episode ([`History`]), holds one vector a step by original index
//! (0 where a token was pruned), and starts anew when the number of visual tokens changes. A
//! step that fails before its answer is decoded adds nothing.
//!
//! Deviations
//! - V1 (the release gives the oldest step the most weight): `decay_order = "newest_heaviest"`;
//!   `"oldest_heaviest"` reproduces it.
//! - V2 (paper: mean over the latter half of layers): one layer, `action_layer`, as evaluated.
//! - V3 (notes speak of the last layer): layer `K - 1`, the last that has run.
//! - V4 (the program's default is the last row): `semantic_rows = "prefill_mean"`; `"last"`,
//!   `"text"`.
//! - V5 (one token may be taken several times): once.
//! - V6 (normalised in three ways): by the sum over tokens; the order is the same.
//! - V7 (warm-up runs the pruning path with a full budget): the stage keeps everything.
//! - V8 (scores in bf16): f32. V9: rounding half to even.
//! - V10, V11 (pruned tokens score 0, rows are not renormalised): as published; `refresh_every = r`
//!   leaves every `r`-th step unpruned (default: never).
//! - V12: `layer` means before that layer, for every model.
//! - V13, V14 (256 tokens, full maps): any number, reduced rows only.
//!
//! On an ordinary model a step is a request and the generated tokens are the action rows.

use std::collections::VecDeque;

use ndarray::{Array2, Axis};
use secateur_core::chain::Params;
use secateur_core::error::{ChainError, RunError};
use secateur_core::model::ModelInfo;
use secateur_core::prune::{
    Budget, Cut, Memory, Observation, Plan, PositionPolicy, Pruner, Selection, Site, StagePlan,
};
use secateur_core::signal::{Rows, Signal};

use crate::debias::Debias;
use crate::diversity::{Cosines, farthest_points};
use crate::options::{self, Positions};
use crate::parameters::{DEBIASED, KEPT, QUARTER, parameter};
use crate::registry::Entry;
use crate::score::{top_k, with_structural};

/// Its row in the registry.
pub const ENTRY: Entry = Entry {
    name: "vla_pruner",
    paper: "VLA-Pruner: Temporal-Aware Dual-Level Visual Token Pruning for Efficient \
            Vision-Language-Action Inference (arXiv 2511.16449)",
    summary: "what the prompt looks at and what the last steps' actions looked at, made diverse",
    reads: "attention rows of one decoder layer; generated rows of earlier steps; projected tokens",
    sites: "decoder",
    example: "vla_pruner:layer=3:keep=0.25",
    debias: true,
    parameters: &[
        &[QUARTER],
        &[
            parameter("layer", "3", "the decoder layer before which it cuts"),
            parameter("window", "3", "steps of history that are needed and smoothed"),
            parameter("gamma", "0.8", "weight of one step against the next newer one, in (0, 1]"),
            parameter(
                "semantic_rows",
                "prefill_mean",
                "prompt rows that rank: prefill_mean (all), last, or text (the instruction)",
            ),
            parameter(
                "action_layer",
                "auto",
                "decoder layer whose generated rows are history; auto is half the depth less one",
            ),
            parameter(
                "decay_order",
                "newest_heaviest",
                "newest_heaviest (the paper), or oldest_heaviest (the first release)",
            ),
            parameter("views", "1", "cameras in one request, each with its own budget"),
            parameter("refresh_every", "(never)", "leave every N-th step unpruned"),
        ],
        DEBIASED,
        KEPT,
    ],
    build: |params| Ok(Box::new(VlaPruner::parse(params)?)),
};

/// Which step of the history weighs most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecayOrder {
    /// The paper's.
    NewestHeaviest,
    /// The first release's.
    OldestHeaviest,
}

/// Action scores of the last steps: what the pruner keeps in the episode.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// One vector a step, `[original visual tokens]`, oldest first, at most `window`.
    pub entries: VecDeque<Vec<f32>>,
    /// Steps that were pruned, or left unpruned by `refresh_every`.
    steps: usize,
    /// What the last step added.
    last: Option<Vec<f32>>,
}

impl History {
    /// A history of steps, `[original visual tokens]` each, oldest first.
    pub fn new(steps: impl IntoIterator<Item = Vec<f32>>) -> Self {
        Self { entries: steps.into_iter().collect(), ..Self::default() }
    }

    /// Drops all entries if they speak of another number of tokens.
    fn fit(&mut self, tokens: usize) {
        if self.entries.iter().any(|e| e.len() != tokens) {
            self.entries.clear();
            self.steps = 0;
            self.last = None;
        }
    }

    /// Adds the newest step.
    fn push(&mut self, scores: Vec<f32>, window: usize) {
        self.fit(scores.len());
        self.last = Some(scores.clone());
        self.entries.push_back(scores);
        while self.entries.len() > window {
            self.entries.pop_front();
        }
    }

    /// Smoothed action score, `[original visual tokens]`, scaled to sum to 1 (unless all is 0);
    /// `None` while fewer than `window` steps are there.
    pub fn smooth(&self, window: usize, gamma: f64, order: DecayOrder) -> Option<Vec<f32>> {
        if self.entries.len() < window {
            return None;
        }
        let last = self.entries.iter().rev().take(window);
        let mut sum = vec![0.0f32; self.entries.back().map_or(0, Vec::len)];
        for (age, entry) in last.enumerate() {
            let power = match order {
                DecayOrder::NewestHeaviest => age,
                DecayOrder::OldestHeaviest => window - 1 - age,
            };
            let weight = gamma.powi(power as i32) as f32;
            sum.iter_mut().zip(entry).for_each(|(s, e)| *s += weight * e);
        }
        let total: f32 = sum.iter().sum();
        if total > 0.0 {
            sum.iter_mut().for_each(|s| *s /= total);
        }
        Some(sum)
    }
}

/// Ranks by prompt attention and by the attention of past actions.
#[derive(Clone, Debug)]
pub struct VlaPruner {
    name: String,
    layer: usize,
    budget: Budget,
    window: usize,
    gamma: f64,
    rows: Rows,
    action_layer: Option<usize>,
    decay_order: DecayOrder,
    views: usize,
    refresh_every: Option<usize>,
    debias: Option<Debias>,
    positions: Positions,
}

impl VlaPruner {
    /// Parameters: `layer` (3), `keep` (0.25, for each view), `window` (3), `gamma` (0.8),
    /// `semantic_rows`, `action_layer` (`"auto"`: half the depth less one), `decay_order`,
    /// `views` (1), `refresh_every`, `debias`, `positions`.
    ///
    /// # Errors
    /// A value out of range.
    pub fn parse(params: &Params<'_>) -> Result<Self, ChainError> {
        let rows =
            [("prefill_mean", Rows::All), ("last", Rows::Last), ("text", Rows::InnerInstruction)];
        let orders = [
            ("newest_heaviest", DecayOrder::NewestHeaviest),
            ("oldest_heaviest", DecayOrder::OldestHeaviest),
        ];
        let positive = |key: &str, default: usize| match params.count(key)? {
            Some(0) => Err(params.error(key, "at least 1")),
            other => Ok(other.unwrap_or(default)),
        };
        let gamma = params.number("gamma")?.unwrap_or(0.8);
        if !(gamma > 0.0 && gamma <= 1.0) {
            return Err(params.error("gamma", "a number in (0, 1]"));
        }
        let refresh_every = params.count("refresh_every")?.filter(|&r| r > 0);
        Ok(Self {
            name: params.pruner().to_owned(),
            layer: params.count("layer")?.unwrap_or(3),
            budget: options::budget(params)?.unwrap_or(Budget::Share(0.25)),
            window: positive("window", 3)?,
            gamma,
            rows: params.choice("semantic_rows", &rows)?.unwrap_or(Rows::All),
            action_layer: options::count_or_auto(params, "action_layer")?,
            decay_order: params
                .choice("decay_order", &orders)?
                .unwrap_or(DecayOrder::NewestHeaviest),
            views: positive("views", 1)?,
            refresh_every,
            debias: Debias::option(params)?,
            positions: Positions::parse(params, PositionPolicy::Keep)?,
        })
    }

    fn semantic(&self) -> Signal {
        Signal::Attention { layer: self.layer - 1, rows: self.rows }
    }

    fn action_layer(&self, model: &ModelInfo) -> usize {
        self.action_layer.unwrap_or((model.decoder.layers / 2).saturating_sub(1))
    }

    /// The current candidates of each view, and how many tokens the view had.
    ///
    /// Views are the pictures where there are as many, and equal parts of the original visual
    /// tokens else.
    fn split_views(&self, cut: &Cut<'_>, dense: usize) -> Vec<(Vec<u32>, usize)> {
        let tokens = cut.tokens;
        let mut pictures: Vec<u32> = tokens.grids.iter().map(|g| g.picture).collect();
        pictures.sort_unstable();
        pictures.dedup();
        let by_picture = self.views > 1 && pictures.len() == self.views;
        let mut views: Vec<(Vec<u32>, usize)> = (0..self.views)
            .map(|view| {
                let cells = |g: &secateur_core::clip::Grid| g.rows as usize * g.cols as usize;
                let size = if by_picture {
                    let own = tokens.grids.iter().filter(|g| g.picture == pictures[view]);
                    own.map(cells).sum()
                } else {
                    (view + 1) * dense / self.views - view * dense / self.views
                };
                (Vec::new(), size)
            })
            .collect();
        for (i, token) in tokens.tokens.iter().enumerate().filter(|(_, t)| t.is_candidate()) {
            let view = if by_picture {
                pictures.binary_search(&tokens.grid_of(token).picture).unwrap_or(0)
            } else {
                let at = token.index as usize;
                (0..self.views).rfind(|v| at >= v * dense / self.views).unwrap_or(0)
            };
            views[view].0.push(i as u32);
        }
        views
    }
}

/// Reduces the union of two top sets to `budget` tokens by max-min diversity. `semantic`,
/// `action` and `rows` have one entry a token of the view; places in the view, ascending.
fn choose(
    semantic: &[f32],
    action: &[f32],
    budget: usize,
    rows: impl FnOnce(&[usize]) -> Array2<f32>,
) -> Vec<usize> {
    if budget >= semantic.len() {
        return (0..semantic.len()).collect();
    }
    let mut union: Vec<usize> = top_k(semantic, budget)
        .into_iter()
        .chain(top_k(action, budget))
        .map(|i| i as usize)
        .collect();
    union.sort_unstable();
    union.dedup();
    if union.len() == budget {
        return union;
    }
    let order = farthest_points(&Cosines::new(rows(&union).view()), budget);
    let mut kept: Vec<usize> = order.into_iter().map(|at| union[at]).collect();
    kept.sort_unstable();
    kept
}

impl Pruner for VlaPruner {
    fn plan(&self, model: &ModelInfo) -> Result<Plan, ChainError> {
        options::check_decoder_layer(&self.name, self.layer, model)?;
        let action_layer = self.action_layer(model);
        if action_layer >= model.decoder.layers {
            return Err(ChainError::Layer {
                pruner: self.name.clone(),
                layer: action_layer as i64,
                part: "the decoder",
                first: 0,
                last: model.decoder.layers.saturating_sub(1),
            });
        }
        let mut notes = vec![format!(
            "the first {} steps of an episode are not pruned; action rows of layer {action_layer}",
            self.window
        )];
        let positions = self.positions.resolve(model, &mut notes);
        let per_view = if self.views > 1 { " a view" } else { "" };
        let stage = StagePlan::at(Site::Decoder(self.layer))
            .reads([self.semantic(), Signal::Embeddings])
            .positions(positions)
            .budget(format_args!("{}{per_view}", self.budget));
        let observes = vec![Signal::GeneratedRows { layer: action_layer }];
        Ok(Plan { stages: vec![stage], observes, notes })
    }

    fn keeps(&self, _stage: usize, current: usize, entered: usize) -> Option<usize> {
        let whole: usize = (0..self.views)
            .map(|v| (v + 1) * entered / self.views - v * entered / self.views)
            .map(|size| options::keeps(&self.budget, size))
            .sum::<Option<usize>>()?;
        Some(whole.min(current))
    }

    fn select(&self, cut: &Cut<'_>, memory: &mut Memory) -> Result<Selection, RunError> {
        let tokens = cut.tokens;
        let dense = match cut.signals.sources.len() {
            0 => cut.entered,
            dense => dense,
        };
        let history = memory.episode_or_default::<History>();
        history.fit(dense);
        let all = || (0..tokens.len() as u32).collect();
        let Some(guide) = history.smooth(self.window, self.gamma, self.decay_order) else {
            return Ok(Selection::keep(all()));
        };
        history.steps += 1;
        if self.refresh_every.is_some_and(|r| history.steps.is_multiple_of(r)) {
            let notes = vec!["this step is not pruned (`refresh_every`)".to_owned()];
            return Ok(Selection { notes, ..Selection::keep(all()) });
        }
        let mut semantic = cut.vector(self.semantic())?.to_vec();
        let embeddings = cut.embeddings()?;
        let picture = self.debias.as_ref().and_then(|d| d.apply(tokens, &mut semantic));
        let clamps = self.debias.as_ref().is_some_and(Debias::clamps);
        let mut chosen: Vec<u32> = Vec::new();
        for (members, size) in self.split_views(cut, dense) {
            let own: Vec<f32> = members.iter().map(|&i| semantic[i as usize]).collect();
            let action = members.iter().map(|&i| {
                let index = tokens.tokens[i as usize].index as usize;
                guide
                    .get(index)
                    .copied()
                    .ok_or_else(|| cut.refuse(format!("the history has no token {index}")))
            });
            let action: Vec<f32> = action.collect::<Result<_, _>>()?;
            let mut budget = self.budget.resolve(size, &own).min(members.len());
            if let Some(mask) = picture.as_ref().filter(|_| clamps) {
                let valid = members.iter().filter(|&&i| mask[i as usize]).count();
                budget = budget.min(valid.max(1));
            }
            let rows = |union: &[usize]| {
                let index: Vec<usize> = union.iter().map(|&at| members[at] as usize).collect();
                embeddings.select(Axis(0), &index)
            };
            let kept = choose(&own, &action, budget, rows);
            chosen.extend(kept.into_iter().map(|at| members[at]));
        }
        let kept = with_structural(tokens, chosen);
        Ok(Selection { kept, scores: Some(semantic), ..Selection::default() })
    }

    fn observe(&self, seen: &Observation<'_>, memory: &mut Memory) {
        let history = memory.episode_or_default::<History>();
        let rows = seen.reads.first().and_then(|signal| seen.signals.vector(signal));
        let Some(rows) = rows else { return };
        if rows.iter().all(|v| v.is_finite()) {
            history.push(rows.to_vec(), self.window);
        }
    }

    fn load_history(&self, history: Array2<f32>, memory: &mut Memory) {
        let own = memory.episode_or_default::<History>();
        *own = History::default();
        for row in history.rows() {
            own.push(row.to_vec(), self.window);
        }
        own.last = None;
    }

    fn last_action_score(&self, memory: &Memory) -> Option<Vec<f32>> {
        memory.episode::<History>()?.last.clone()
    }
}
