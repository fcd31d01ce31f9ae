//! VisionZip: keeps the patches that the class token looks at and merges the others by similarity.
//!
//! Method: "VisionZip: Longer is Better but Not Necessary in Vision Language Models" (2024), per
//! crop, at the layer that gives the features:
//! ```text
//! dominant:   the class token and the best (dominant - 1) patches by s[i] = sum over heads A[cls, i]
//! targets:    of the rest R, every step-th, step = max(1, |R| / contextual)
//! assign:     every other of R to the target whose mean key is nearest by cosine
//! contextual: C_t = X_t + mean of the assigned X
//! ```
//! The decoder sees class token, dominant patches ascending, contextual tokens.
//!
//! Deviations
//! - F1 (described as an average; the code adds the mean of the others to the target): code.
//! - F2 (layer 22 hard-wired): the last layer that runs.
//! - F3 (the class token goes to the decoder): code; `cls_token = false` puts one more patch there.
//! - F4 (targets are evenly spaced, not chosen by density): code.
//! - Towers without a class token: `fallback = "column_mean"`, and no class token is passed on.

use ndarray::{Array1, ArrayView2};
use secateur_core::chain::Params;
use secateur_core::error::{ChainError, RunError};
use secateur_core::model::ModelInfo;
use secateur_core::prune::{
    Budget, Cut, Memory, Merge, Plan, PositionPolicy, Pruner, Selection, Site, StagePlan,
};
use secateur_core::signal::Signal;

use crate::debias::Debias;
use crate::options::{self, Positions};
use crate::parameters::{DEBIASED, RENUMBERED, VISION_ZIP_KEEP, parameter};
use crate::registry::Entry;
use crate::score::{self, Group, Scope, first_max, top_k, with_structural};

/// Its row in the registry.
pub const ENTRY: Entry = Entry {
    name: "vision_zip",
    paper: "VisionZip: Longer is Better but Not Necessary in Vision Language Models (2024)",
    summary: "the patches that the class token looks at, the others merged by similarity",
    reads: "class-token attention and keys of the tower's last layer",
    sites: "encoder",
    example: "vision_zip:keep=64",
    debias: true,
    parameters: &[
        &[VISION_ZIP_KEEP],
        &[
            parameter(
                "dominant",
                "(from keep)",
                "patches kept as they are, the class token among them; in place of keep",
            ),
            parameter(
                "contextual",
                "(from keep; 0 beside dominant)",
                "tokens that the others are merged into",
            ),
            parameter(
                "cls_token",
                "true",
                "whether the class token is one of the dominant; false puts one more patch there",
            ),
            parameter(
                "fallback",
                "none",
                "for towers without a class token: column_mean (attention received)",
            ),
        ],
        DEBIASED,
        RENUMBERED,
    ],
    build: |params| Ok(Box::new(VisionZip::parse(params)?)),
};

/// Keeps dominant patches and makes contextual tokens of the rest.
#[derive(Clone, Debug)]
pub struct VisionZip {
    name: String,
    size: Size,
    cls_token: bool,
    column_mean: bool,
    debias: Option<Debias>,
    positions: Positions,
}

/// What the cut needs to know of the tower.
struct Tower {
    heads: usize,
    cls: bool,
}

/// How many tokens a crop keeps.
#[derive(Clone, Copy, Debug)]
enum Size {
    /// As given; the class token counts as dominant, if it is passed on.
    Given { dominant: usize, contextual: usize },
    /// A budget for each crop, split as published. One that keeps every patch changes nothing.
    Keep(Budget),
}

/// Dominant (class token included) and contextual tokens of `keep`: 54 and 10 of 64.
fn split(keep: usize) -> (usize, usize) {
    let contextual = (keep as f64 * 10.0 / 64.0).round_ties_even() as usize;
    (keep - contextual, contextual)
}

impl VisionZip {
    /// Parameters: `dominant` (the class token counts) and `contextual`, or `keep`, which is
    /// split as published (54 + 10 of 64); `cls_token` (true), `fallback = "column_mean"`,
    /// `debias`, `positions`.
    ///
    /// # Errors
    /// No budget, or a value out of range.
    pub fn parse(params: &Params<'_>) -> Result<Self, ChainError> {
        let (dominant, contextual) = (params.count("dominant")?, params.count("contextual")?);
        let size = match (dominant, options::budget(params)?) {
            (Some(0), _) => {
                return Err(params.error("dominant", "at least 1: the class token counts"));
            }
            (Some(dominant), None) => Size::Given { dominant, contextual: contextual.unwrap_or(0) },
            (None, Some(budget)) if contextual.is_none() => Size::Keep(budget),
            (Some(_), Some(_)) => return Err(params.error("dominant", "absent beside a budget")),
            _ => {
                let expected = "a budget, or `dominant` in its place";
                Size::Keep(params.missing("keep", expected, Budget::Share(1.0)))
            }
        };
        let fallbacks = [("column_mean", true), ("none", false)];
        Ok(Self {
            name: params.pruner().to_owned(),
            size,
            cls_token: options::flag(params, "cls_token", true)?,
            column_mean: params.choice("fallback", &fallbacks)?.unwrap_or(false),
            debias: Debias::option(params)?,
            positions: Positions::parse(params, PositionPolicy::Renumber)?,
        })
    }

    fn signals(&self, model: &ModelInfo) -> [Signal; 2] {
        let layer = model.encoder.layers.saturating_sub(1);
        let scores = if self.column_mean && !model.encoder.cls {
            Signal::ColumnMean { layer }
        } else {
            Signal::ClsAttention { layer }
        };
        [scores, Signal::EncoderKeys { layer }]
    }

    /// Dominant patches and contextual tokens of a crop; `keep` is its resolved budget.
    fn shares(&self, cls: bool, keep: usize) -> (usize, usize) {
        let (dominant, contextual) = match self.size {
            Size::Given { dominant, contextual } => (dominant, contextual),
            Size::Keep(_) => split(keep),
        };
        (dominant.saturating_sub(usize::from(cls)), contextual)
    }
}

/// Key of a patch, scaled to length 1.
fn metric(keys: ArrayView2<'_, f32>, row: usize) -> Array1<f32> {
    let key = keys.row(row);
    let norm = key.dot(&key).sqrt();
    key.mapv(|x| if norm > 0.0 { x / norm } else { 0.0 })
}

/// Contextual tokens from `rest` (current tokens, ascending) with a unit key each.
fn contextual_tokens(rest: &[u32], keys: &[Array1<f32>], count: usize) -> Vec<Merge> {
    let count = count.min(rest.len());
    if count == 0 {
        return Vec::new();
    }
    let step = (rest.len() / count).max(1);
    let targets: Vec<usize> = (0..count).map(|t| t * step).collect();
    let mut assigned: Vec<Vec<u32>> = vec![Vec::new(); count];
    for at in (0..rest.len()).filter(|at| at % step != 0 || at / step >= count) {
        let near = targets.iter().map(|&t| keys[at].dot(&keys[t]));
        if let Some(nearest) = first_max(near) {
            assigned[nearest].push(rest[at]);
        }
    }
    targets
        .into_iter()
        .zip(assigned)
        .map(|(t, others)| {
            let weight = 1.0 / others.len().max(1) as f32;
            let mean = others.into_iter().map(|i| (i, weight));
            Merge { target: rest[t], terms: std::iter::once((rest[t], 1.0)).chain(mean).collect() }
        })
        .collect()
}

impl Pruner for VisionZip {
    fn plan(&self, model: &ModelInfo) -> Result<Plan, ChainError> {
        if !model.one_to_one {
            return Err(ChainError::MissingSignal {
                pruner: self.name.clone(),
                model: model.name.clone(),
                signal: "one tower row for every visual token".into(),
                fallback: "; its projector mixes rows: use `vtc_cls`, `div_prune` or `vflowopt`"
                    .into(),
            });
        }
        let layer = model.encoder.layers.saturating_sub(1);
        if !model.encoder.cls && !self.column_mean {
            let way = match model.offers(&Signal::ColumnMean { layer }) {
                Ok(()) => "; `fallback = \"column_mean\"` reads the attention received instead",
                Err(_) => "",
            };
            return Err(ChainError::MissingSignal {
                pruner: self.name.clone(),
                model: model.name.clone(),
                signal: Signal::ClsAttention { layer }.to_string(),
                fallback: format!("; the vision tower has no class token{way}"),
            });
        }
        let mut notes = Vec::new();
        let positions = self.positions.resolve(model, &mut notes);
        if self.column_mean && !model.encoder.cls {
            notes.push("the tower has no class token: ranks by attention received".into());
        }
        let stage = StagePlan::at(Site::Encoder)
            .reads(self.signals(model))
            .positions(positions)
            .budget(match self.size {
                Size::Given { dominant, contextual } => format!("{dominant}+{contextual} a crop"),
                Size::Keep(budget) => Scope::EachCrop.describe(&budget),
            })
            .prepared(Tower { heads: model.encoder.heads, cls: model.encoder.cls });
        Ok(Plan::of([stage], notes))
    }

    fn keeps(&self, _stage: usize, current: usize, _entered: usize) -> Option<usize> {
        let keep = match &self.size {
            Size::Given { .. } => 0,
            Size::Keep(budget) => match options::keeps(budget, current)? {
                keep if keep >= current => return Some(current),
                keep => keep,
            },
        };
        // Whether there is a class row, only the model says; with the fallback there may be none.
        if self.cls_token && self.column_mean {
            return None;
        }
        let cls = self.cls_token;
        let (patches, contextual) = self.shares(cls, keep);
        let patches = patches.min(current);
        Some(usize::from(cls) + patches + contextual.min(current - patches))
    }

    fn select(&self, cut: &Cut<'_>, _memory: &mut Memory) -> Result<Selection, RunError> {
        let tokens = cut.tokens;
        let tower: &Tower = cut.prepared()?;
        let [attention, keys] = cut.plan.reads[..] else {
            return Err(cut.refuse("it reads attention and keys"));
        };
        // The release sums over heads; signals are means.
        let heads = tower.heads as f32;
        let sums: Vec<Vec<f32>> = cut
            .crop_vectors(attention)?
            .into_iter()
            .map(|row| row.iter().map(|a| a * heads).collect())
            .collect();
        let mut scores = cut.token_scores(&sums, 0.0)?;
        let keys = cut.crop_matrices(keys)?;
        let picture = self.debias.as_ref().and_then(|d| d.apply(tokens, &mut scores));
        let clamps = self.debias.as_ref().is_some_and(Debias::clamps);
        let cls = self.cls_token && tower.cls;
        let crop_of = |i: u32| cut.crop_of(i);
        let budget = match self.size {
            Size::Given { .. } => Budget::Count(usize::MAX),
            Size::Keep(budget) => budget,
        };
        let groups = score::groups(tokens, Scope::EachCrop, &budget, &scores, crop_of);
        let is_whole = |g: &Group| g.keep >= g.members.len();
        if matches!(self.size, Size::Keep(_)) && groups.iter().all(is_whole) {
            let kept = (0..tokens.len() as u32).collect();
            return Ok(Selection { scores: Some(scores), ..Selection::keep(kept) });
        }
        let mut chosen: Vec<u32> = Vec::new();
        let mut appended = Vec::new();
        for group in groups {
            let valid = picture.as_ref().map_or(group.members.len(), |mask| {
                group.members.iter().filter(|&&i| mask[i as usize]).count()
            });
            let (patches, contextual) = self.shares(cls, group.keep);
            let keep = if clamps { patches.min(valid) } else { patches };
            let own: Vec<f32> = group.members.iter().map(|&i| scores[i as usize]).collect();
            let best = top_k(&own, keep);
            let is_best = |at: &usize| best.binary_search(&(*at as u32)).is_ok();
            let rest: Vec<u32> =
                (0..own.len()).filter(|at| !is_best(at)).map(|at| group.members[at]).collect();
            chosen.extend(best.iter().map(|&at| group.members[at as usize]));
            let unit = rest.iter().map(|&i| {
                let row = cut.source(i).and_then(|s| {
                    let &(crop, patch, _) = s.patches.first()?;
                    let row = patch as usize + usize::from(tower.cls);
                    keys.get(crop as usize).filter(|k| row < k.nrows()).map(|k| metric(*k, row))
                });
                row.ok_or_else(|| cut.refuse(format!("token {i} has no tower key")))
            });
            let unit: Vec<Array1<f32>> = unit.collect::<Result<_, _>>()?;
            appended.extend(contextual_tokens(&rest, &unit, contextual));
        }
        Ok(Selection {
            kept: with_structural(tokens, chosen),
            appended,
            cls,
            scores: Some(scores),
            ..Selection::default()
        })
    }
}
