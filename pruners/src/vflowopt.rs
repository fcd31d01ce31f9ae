//! VFlowOpt: merges what matters least into what stays beside it, then drops inside the decoder
//! by the same map.
//!
//! Method: "VFlowOpt: A Token Pruning Framework for LMMs with Visual Information Flow-Guided
//! Optimization" (ICCV 2025, arXiv 2508.05211), from its mathematics. For a crop with encoder map
//! `a = mean over heads of A`:
//! ```text
//! received = column mean of a;  anchors = { i : received_i > t mean(received) }
//! I        = mean over anchors of a[i, :] + alpha softmax(H),   H = patch entropy in bits
//! ```
//! Stage E (at the input): `reduce = round_half_even(n (1 - keep))`, `extra = trunc(n / cell^2)`;
//! the `reduce + extra` tokens of lowest `I` are grouped by cells of `cell x cell`; the strongest
//! of each group becomes the mean of its group weighted by `I` and stays, the others go.
//! Stages D (before decoder layers): the `round_half_even(m (1 - keep_d))` tokens of lowest `I`
//! go, positions stay.
//!
//! `I` follows patches through tiling, pooling and merging; structural tokens have importance 1,
//! count in `n` and stay (F10).
//!
//! Deviations
//! - F1 (entropy of normalised values that wrap in 8 bits): grey levels before normalisation.
//! - F2: `entropy_weight` is 0 in every published preset.
//! - F3 (no anchor gives NaN): the most attended patch.
//! - F4 (one-crop and several pictures skip recycling or use the last request's map): the same
//!   procedure for all.
//! - F5 (ties open): lower index first.
//! - F6 (`extra` only estimates the number of cells, the count drifts by a few): as released;
//!   `exact = true` drops the weakest aggregates, or regroups fewer tokens, until the budget is
//!   met.
//! - F7 (weights may be negative, their sum 0): a sum of 0 or less gives equal weights.
//! - F8: recycling at the input only. F9 (`keep` solved from a budget is unbounded below): the
//!   tuner's matter.
//! - F11 (crops compete by raw importance): same.
//! - F12 (videos are not recycled): recycled per frame; `video_topk = true` cuts as released.

use std::collections::BTreeMap;

use ndarray::ArrayView2;
use secateur_core::chain::Params;
use secateur_core::error::{ChainError, RunError};
use secateur_core::model::ModelInfo;
use secateur_core::prune::{
    Budget, Cut, Memory, Merge, Plan, PositionPolicy, Pruner, Selection, Site, StagePlan,
};
use secateur_core::signal::{CropPixels, PatchOrder, Signal};
use secateur_core::tokens::TokenMap;

use crate::debias::Debias;
use crate::options::{self, Positions};
use crate::parameters::{DEBIASED, RENUMBERED, VFLOWOPT_KEEP, parameter};
use crate::registry::Entry;
use crate::score::{first_max, rising_order};

/// Its row in the registry.
pub const ENTRY: Entry = Entry {
    name: "vflowopt",
    paper: "VFlowOpt: A Token Pruning Framework for LMMs with Visual Information Flow-Guided \
            Optimization (ICCV 2025)",
    summary: "context relevance from attention anchors, weak tokens recycled into strong ones",
    reads: "the tower's attention map, one crop at a time (and pixels)",
    sites: "input, then decoder",
    example: "vflowopt:keep=64",
    debias: true,
    parameters: &[
        &[VFLOWOPT_KEEP],
        &[
            parameter(
                "stages",
                "(none beside keep; else the published two)",
                "cuts inside the decoder: a list of { layer, keep }, rising",
            ),
            parameter(
                "anchor_t",
                "39.26492840997221",
                "sharpness of the attention anchors, 0 or more",
            ),
            parameter("entropy_weight", "0.0", "weight of the pixels' entropy; 0 leaves it out"),
            parameter(
                "cell",
                "auto",
                "side of a cell in which weak tokens are recycled, patches; auto is the published one scaled to the grid",
            ),
            parameter(
                "encoder_layer",
                "auto",
                "tower layer whose map is read; auto is the last with full attention",
            ),
            parameter(
                "exact",
                "false",
                "meet the budget to the token, where the release overshoots",
            ),
            parameter(
                "video_topk",
                "false",
                "frames of a video: plain ranking, nothing is recycled",
            ),
        ],
        DEBIASED,
        RENUMBERED,
    ],
    build: |params| Ok(Box::new(VFlowOpt::parse(params)?)),
};

/// The published 10 % setting of LLaVA-OneVision, which defaults are taken from.
const ANCHOR_T: f64 = 39.264_928_409_972_21;
const CELL: f64 = 17.386_981_849_158_786;
const KEEP: f64 = 0.116_615_295_081_611_46;
const STAGE_KEEPS: [f64; 2] = [1.0, 0.6011];
/// Side of the grid that cells were published for.
const CELL_GRID: f64 = 27.0;
/// Importance of structural tokens.
const STRUCTURAL: f32 = 1.0;

/// Ranks by context relevance, recycles, then drops in the decoder.
#[derive(Clone, Debug)]
pub struct VFlowOpt {
    name: String,
    encoder_layer: Option<usize>,
    anchor_t: f64,
    entropy_weight: f64,
    keep: Budget,
    cell: Option<f64>,
    stages: Stages,
    exact: bool,
    video_topk: bool,
    debias: Option<Debias>,
    positions: Positions,
}

#[derive(Clone, Debug)]
enum Stages {
    /// As given: layer and budget.
    Given(Vec<(usize, Budget)>),
    /// The published keeps at a third and two thirds of the depth.
    Published,
}

impl Stages {
    fn resolve(&self, model: &ModelInfo) -> Vec<(usize, Budget)> {
        match self {
            Stages::Given(stages) => stages.clone(),
            Stages::Published => (1..=2)
                .map(|part| {
                    let at = model.decoder.layers as f64 * part as f64 / 3.0;
                    (at.round_ties_even() as usize, Budget::Share(STAGE_KEEPS[part - 1]))
                })
                .collect(),
        }
    }
}

impl Stages {
    /// The budget of drop `j`.
    fn budget(&self, j: usize) -> Option<Budget> {
        match self {
            Stages::Given(stages) => stages.get(j).map(|(_, budget)| *budget),
            Stages::Published => STAGE_KEEPS.get(j).copied().map(Budget::Share),
        }
    }
}

impl VFlowOpt {
    /// Parameters: `keep`, `anchor_t`, `entropy_weight`, `cell` (`"auto"`: as published, scaled to
    /// the grid), `encoder_layer` (`"auto"`: the last that runs), `stages = [{ layer, keep }]`,
    /// `exact`, `video_topk`, `debias`, `positions`. Without `keep` and `stages`: the published
    /// 10 % setting; with `keep` alone there are no decoder stages.
    ///
    /// # Errors
    /// A value out of range.
    pub fn parse(params: &Params<'_>) -> Result<Self, ChainError> {
        let keep = options::budget(params)?;
        let stages = match (params.tables("stages")?, keep) {
            (Some(tables), _) => Stages::Given(parse_stages(params, &tables)?),
            (None, Some(_)) => Stages::Given(Vec::new()),
            (None, None) => Stages::Published,
        };
        let cell = match params.get("cell") {
            Some(toml::Value::String(word)) if word == "auto" => None,
            _ => params.number("cell")?,
        };
        if cell.is_some_and(|cell| cell < 1.0) {
            return Err(params.error("cell", "a number of patches, 1 or more, or \"auto\""));
        }
        let anchor_t = params.number("anchor_t")?.unwrap_or(ANCHOR_T);
        if anchor_t < 0.0 {
            return Err(params.error("anchor_t", "a number, 0 or more"));
        }
        Ok(Self {
            name: params.pruner().to_owned(),
            encoder_layer: options::count_or_auto(params, "encoder_layer")?,
            anchor_t,
            entropy_weight: params.number("entropy_weight")?.unwrap_or(0.0),
            keep: keep.unwrap_or(Budget::Share(KEEP)),
            cell,
            stages,
            exact: options::flag(params, "exact", false)?,
            video_topk: options::flag(params, "video_topk", false)?,
            debias: Debias::option(params)?,
            positions: Positions::parse(params, PositionPolicy::Renumber)?,
        })
    }

    fn map_signal(&self, model: &ModelInfo) -> Signal {
        let full = model.encoder.full_attention_layers.last().copied();
        let last = full.unwrap_or(model.encoder.layers.saturating_sub(1));
        Signal::EncoderMap { layer: self.encoder_layer.unwrap_or(last) }
    }

    fn importance_of_tokens(&self, cut: &Cut<'_>) -> Result<Vec<f32>, RunError> {
        let map = cut.plan.reads.iter().find(|s| matches!(s, Signal::EncoderMap { .. }));
        let map = map.ok_or_else(|| cut.refuse("it reads a map of the tower"))?;
        let maps = cut.crop_matrices(*map)?;
        let order = PatchOrder::of(&cut.signals.sources);
        let mut scores = Vec::with_capacity(maps.len());
        for (crop, map) in maps.iter().enumerate() {
            if map.nrows() != map.ncols() {
                let reason = format!("an encoder map is {}x{}", map.nrows(), map.ncols());
                return Err(cut.refuse(reason));
            }
            let entropy = if self.entropy_weight == 0.0 {
                None
            } else {
                let raster = patch_entropy(&cut.signals.crops[crop].pixels);
                Some(in_tower_order(&raster, &cut.signals.crops[crop].pixels, order))
            };
            if entropy.as_ref().is_some_and(|e| e.len() != map.nrows()) {
                let patches = entropy.map_or(0, |e| e.len());
                let reason = format!("{patches} patches of pixels for {} rows", map.nrows());
                return Err(cut.refuse(reason));
            }
            scores.push(importance(*map, self.anchor_t, entropy.as_deref(), self.entropy_weight));
        }
        cut.token_scores(&scores, STRUCTURAL)
    }

    /// Whether stage E leaves `count` tokens as they are.
    fn keeps_whole(&self, count: usize) -> bool {
        matches!(self.keep, Budget::Count(keep) if keep >= count)
    }

    /// Stage E.
    fn recycle(&self, cut: &Cut<'_>, memory: &mut Memory) -> Result<Selection, RunError> {
        let tokens = cut.tokens;
        let mut scores = self.importance_of_tokens(cut)?;
        if let Some(debias) = &self.debias {
            debias.apply(tokens, &mut scores);
        }
        let by_index: BTreeMap<u32, f32> =
            tokens.tokens.iter().zip(&scores).map(|(t, &s)| (t.index, s)).collect();
        memory.set_request(by_index);
        let frames = tokens.grids.iter().any(|g| g.frame > 0);
        if self.video_topk && frames {
            let removed = removed(&self.keep, &scores);
            let kept = without_lowest(tokens, &scores, removed);
            return Ok(Selection { kept, scores: Some(scores), ..Selection::default() });
        }
        let widest = tokens.grids.iter().map(|g| g.rows.max(g.cols)).max().unwrap_or(1);
        let cell = self.cell.unwrap_or((CELL * f64::from(widest) / CELL_GRID).max(1.0));
        let Recycled { kept, merges, .. } = recycle(tokens, &scores, &self.keep, cell, self.exact);
        Ok(Selection { kept, merges, scores: Some(scores), ..Selection::default() })
    }

    /// Stage D.
    fn drop(&self, cut: &Cut<'_>, memory: &Memory, budget: &Budget) -> Result<Selection, RunError> {
        let map = memory
            .request::<BTreeMap<u32, f32>>()
            .ok_or_else(|| cut.refuse("the stage at the input has left no importance map"))?;
        let of = |t: &secateur_core::tokens::VisualToken| map.get(&t.index).copied();
        let scores: Option<Vec<f32>> = cut.tokens.tokens.iter().map(of).collect();
        let scores =
            scores.ok_or_else(|| cut.refuse("a token has no entry in the importance map"))?;
        let kept = without_lowest(cut.tokens, &scores, removed(budget, &scores));
        Ok(Selection { kept, scores: Some(scores), ..Selection::default() })
    }
}

fn parse_stages(
    params: &Params<'_>,
    tables: &[Params<'_>],
) -> Result<Vec<(usize, Budget)>, ChainError> {
    let mut stages: Vec<(usize, Budget)> = Vec::new();
    for table in tables {
        let layer = table.count("layer")?.unwrap_or_else(|| table.missing("layer", "a layer", 1));
        let budget = options::required_budget(table)?;
        table.finish()?;
        if stages.last().is_some_and(|&(before, _)| before >= layer) {
            return Err(params.error("stages", "layers that rise strictly"));
        }
        stages.push((layer, budget));
    }
    Ok(stages)
}

/// Tokens that a budget removes of those with `scores`: `round_half_even(n (1 - keep))` for a
/// share.
fn removed(keep: &Budget, scores: &[f32]) -> usize {
    let n = scores.len();
    match *keep {
        Budget::Share(share) => ((n as f64 * (1.0 - share)).round_ties_even() as usize).min(n),
        _ => n - keep.resolve(n, scores),
    }
}

/// All tokens but the `count` of lowest score; structural ones stay. Ascending.
fn without_lowest(tokens: &TokenMap, scores: &[f32], count: usize) -> Vec<u32> {
    let mut stays = vec![true; tokens.len()];
    for i in rising_order(scores).into_iter().take(count) {
        stays[i as usize] = !tokens.tokens[i as usize].is_candidate();
    }
    (0..tokens.len() as u32).filter(|&i| stays[i as usize]).collect()
}

/// Entropy of each patch in bits, row by row; what does not fill a patch is cut off.
///
/// `gray = (R + G + B + 1) / 3`, 256 bins, `H = - sum q log2(q + 1e-10)` in f32.
pub fn patch_entropy(pixels: &CropPixels) -> Vec<f32> {
    let side = pixels.patch.max(1);
    let (rows, cols) = (pixels.height / side, pixels.width / side);
    let mut out = Vec::with_capacity(rows * cols);
    for row in 0..rows {
        for col in 0..cols {
            let mut bins = [0u32; 256];
            for y in row * side..(row + 1) * side {
                let from = (y * pixels.width + col * side) * 3;
                for rgb in pixels.rgb[from..from + side * 3].chunks_exact(3) {
                    let sum: u32 = rgb.iter().map(|&c| u32::from(c)).sum();
                    bins[((sum + 1) / 3) as usize] += 1;
                }
            }
            let area = (side * side) as f32;
            let terms = bins.iter().filter(|&&b| b > 0).map(|&b| {
                let q = b as f32 / area;
                q * (q + 1e-10).log2()
            });
            out.push(-terms.sum::<f32>());
        }
    }
    out
}

/// Values of a raster of patches in the order in which the tower numbers them.
fn in_tower_order(raster: &[f32], pixels: &CropPixels, order: PatchOrder) -> Vec<f32> {
    let cols = pixels.width / pixels.patch.max(1);
    let value = |patch: usize| {
        let (row, col) = order.place(patch, cols);
        raster.get(row * cols + col).copied().unwrap_or(0.0)
    };
    (0..raster.len()).map(value).collect()
}

/// Patches that receive more than `t` times the mean attention; the most attended one if there is
/// none. `received` is the column mean.
pub fn anchors(received: &[f64], t: f64) -> Vec<usize> {
    let mean = received.iter().sum::<f64>() / received.len().max(1) as f64;
    let above: Vec<usize> = (0..received.len()).filter(|&i| received[i] > t * mean).collect();
    if above.is_empty() {
        return first_max(received.iter().map(|&r| r as f32)).into_iter().collect();
    }
    above
}

/// Mean attention that each patch of a map (query rows, key columns) receives.
pub fn received(map: ArrayView2<'_, f32>) -> Vec<f64> {
    let mut sums = vec![0.0f64; map.ncols()];
    for row in map.rows() {
        sums.iter_mut().zip(row).for_each(|(s, &a)| *s += f64::from(a));
    }
    let rows = map.nrows().max(1) as f64;
    sums.into_iter().map(|s| s / rows).collect()
}

/// The importance of the patches of a crop, `[patches]`.
pub fn importance(
    map: ArrayView2<'_, f32>,
    anchor_t: f64,
    entropy: Option<&[f32]>,
    entropy_weight: f64,
) -> Vec<f32> {
    let anchors = anchors(&received(map), anchor_t);
    let mut sums = vec![0.0f64; map.ncols()];
    for &i in &anchors {
        sums.iter_mut().zip(map.row(i)).for_each(|(s, &a)| *s += f64::from(a));
    }
    sums.iter_mut().for_each(|s| *s /= anchors.len().max(1) as f64);
    if let Some(entropy) = entropy {
        let highest = entropy.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let powers: Vec<f64> = entropy.iter().map(|&h| f64::from(h - highest).exp()).collect();
        let total: f64 = powers.iter().sum();
        sums.iter_mut().zip(&powers).for_each(|(s, p)| *s += entropy_weight * p / total);
    }
    sums.into_iter().map(|s| s as f32).collect()
}

/// What stage E decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Recycled {
    /// Tokens of lowest importance, rising; ties: lower index first.
    pub low: Vec<u32>,
    /// Tokens that stay, ascending.
    pub kept: Vec<u32>,
    /// Those that carry an aggregate, with its members.
    pub merges: Vec<Merge>,
}

/// The `count` tokens of lowest importance, which tokens are not among them, and one aggregate for
/// each cell that they fill.
fn regroup(
    tokens: &TokenMap,
    importance: &[f32],
    count: usize,
    cell: f64,
) -> (Vec<u32>, Vec<bool>, Vec<Merge>) {
    let mut low = rising_order(importance);
    low.truncate(count);
    low.retain(|&i| tokens.tokens[i as usize].is_candidate());
    let mut stays = vec![true; tokens.len()];
    let mut groups: BTreeMap<(u32, u64, u64), Vec<u32>> = BTreeMap::new();
    for &i in &low {
        stays[i as usize] = false;
        let t = &tokens.tokens[i as usize];
        let at = |place: u32| (f64::from(place) / cell).floor() as u64;
        groups.entry((t.grid, at(t.row), at(t.col))).or_default().push(i);
    }
    let mut merges: Vec<Merge> = groups
        .into_values()
        .filter_map(|mut members| {
            members.sort_unstable();
            let own: Vec<f32> = members.iter().map(|&i| importance[i as usize]).collect();
            let target = members[first_max(own.iter().copied())?];
            let sum: f32 = own.iter().sum();
            let weight = |i: f32| if sum > 0.0 { i / sum } else { 1.0 / own.len() as f32 };
            let weights: Vec<f32> = own.iter().map(|&i| weight(i)).collect();
            Some(Merge { target, terms: members.into_iter().zip(weights).collect() })
        })
        .collect();
    merges.sort_by_key(|m| m.target);
    (low, stays, merges)
}

/// Stage E on tokens with an importance each.
pub fn recycle(
    tokens: &TokenMap,
    importance: &[f32],
    keep: &Budget,
    cell: f64,
    exact: bool,
) -> Recycled {
    let n = tokens.len();
    let removed = removed(keep, importance);
    // A share of 1 still regroups `extra` tokens, as released; a count of all changes nothing.
    let is_whole = removed == 0 && matches!(keep, Budget::Count(_));
    let mut extra = if is_whole { 0 } else { (n as f64 / (cell * cell)) as usize };
    let (low, mut stays, mut merges) = loop {
        let (low, stays, merges) = regroup(tokens, importance, removed + extra, cell);
        let staying = stays.iter().filter(|&&s| s).count() + merges.len();
        let short = (n - removed).saturating_sub(staying);
        if !exact || short == 0 || extra == 0 {
            break (low, stays, merges);
        }
        // Low tokens that lie close together fill fewer cells than were counted on.
        extra -= short.min(extra);
    };
    if exact {
        // The weakest aggregates go first; of equals the lower index.
        let staying = stays.iter().filter(|&&s| s).count() + merges.len();
        let strength: Vec<f32> = merges.iter().map(|m| importance[m.target as usize]).collect();
        let mut weakest = rising_order(&strength);
        weakest.truncate(staying.saturating_sub(n - removed));
        let mut at = 0u32;
        merges.retain(|_| {
            at += 1;
            !weakest.contains(&(at - 1))
        });
    }
    for merge in &merges {
        stays[merge.target as usize] = true;
    }
    let kept = (0..n as u32).filter(|&i| stays[i as usize]).collect();
    Recycled { low, kept, merges }
}

impl Pruner for VFlowOpt {
    fn plan(&self, model: &ModelInfo) -> Result<Plan, ChainError> {
        let mut notes = Vec::new();
        let positions = self.positions.resolve(model, &mut notes);
        let mut reads = vec![self.map_signal(model)];
        if self.entropy_weight != 0.0 {
            reads.push(Signal::Pixels);
        }
        let drops = self.stages.resolve(model);
        let first = StagePlan::at(Site::Input).reads(reads).positions(positions);
        let mut stages = vec![first.budget(format_args!("{}, recycled", self.keep))];
        for (j, (layer, budget)) in drops.iter().enumerate() {
            options::check_decoder_layer(&self.name, *layer, model)?;
            stages.push(StagePlan::at(Site::Decoder(*layer)).budget(budget).drop(j));
        }
        if !self.exact {
            notes.push("the count after recycling differs from the budget by a few cells".into());
        }
        Ok(Plan::of(stages, notes))
    }

    fn keeps(&self, stage: usize, current: usize, _entered: usize) -> Option<usize> {
        let budget = match stage {
            // How many cells the low tokens fill, the picture decides; a whole count removes none.
            0 if !self.exact && !self.keeps_whole(current) => return None,
            0 => self.keep,
            _ => self.stages.budget(stage - 1)?,
        };
        match budget {
            Budget::Mass(_) => None,
            budget => Some(current - removed(&budget, &vec![0.0; current])),
        }
    }

    fn select(&self, cut: &Cut<'_>, memory: &mut Memory) -> Result<Selection, RunError> {
        if cut.stage == 0 {
            return self.recycle(cut, memory);
        }
        let budget = self.stages.budget(cut.stage - 1);
        let budget = budget.ok_or_else(|| cut.refuse("it has no such stage"))?;
        self.drop(cut, memory, &budget)
    }
}
