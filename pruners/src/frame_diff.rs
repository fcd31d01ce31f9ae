//! Frame difference: drops patches that have not changed since the frame before.
//!
//! For videos and camera streams, in front of any chain. Nothing is learnt and nothing of the
//! model is read by default: a token's score is the mean absolute difference of grey levels of
//! its pixels to the same cell one frame earlier (or `1 - cos` of its embedding). The first frame
//! stays whole. Between requests the last frame is remembered in the episode, so that a stream of
//! single pictures works too; then the answer no longer sees what stood still, so use it where
//! earlier answers are remembered, or with `min_keep`.
//!
//! Method (own definition, of the family of EVS, which video servers ship):
//! - `threshold = x` keeps what differs by more than `x` (default 6 grey levels, or 0.05 for
//!   embeddings); `keep` in its place keeps the most changed tokens of each frame;
//! - at least `min_keep` (1) tokens of every frame stay, the most changed ones;
//! - `reference = "kept"` compares with the frame in which the cell was last kept, so that slow
//!   drift is seen; `"previous"` (default) with the frame before.

use std::collections::BTreeMap;

use ndarray::ArrayView2;
use secateur_core::chain::Params;
use secateur_core::error::{ChainError, RunError};
use secateur_core::model::ModelInfo;
use secateur_core::prune::{
    Budget, Cut, Memory, Plan, PositionPolicy, Pruner, Selection, Site, StagePlan,
};
use secateur_core::signal::{CropSignals, PatchOrder, Signal};
use secateur_core::tokens::TokenKind;

use crate::options::{self, Positions};
use crate::parameters::{FRAME_KEEP, RENUMBERED, parameter};
use crate::registry::Entry;
use crate::score::{top_k, with_structural};

/// Its row in the registry.
pub const ENTRY: Entry = Entry {
    name: "frame_diff",
    paper: "own definition, of the family of EVS",
    summary: "for videos and streams: drops patches unchanged since the frame before",
    reads: "pixels (or projected tokens)",
    sites: "input",
    example: "frame_diff:threshold=6",
    debias: false,
    parameters: &[
        &[FRAME_KEEP],
        &[
            parameter(
                "threshold",
                "(6 levels; 0.05 on embeddings)",
                "change above which a patch stays; in place of keep",
            ),
            parameter("min_keep", "1", "patches of a frame that stay whatever happens"),
            parameter("on", "pixels", "what is compared: pixels, or embeddings (projected tokens)"),
            parameter(
                "reference",
                "previous",
                "compared with: the previous frame, or the last kept patch (kept)",
            ),
        ],
        RENUMBERED,
    ],
    build: |params| Ok(Box::new(FrameDiff::parse(params)?)),
};

/// Keeps what changed.
#[derive(Clone, Debug)]
pub struct FrameDiff {
    rule: Rule,
    min_keep: usize,
    embeddings: bool,
    only_kept: bool,
    positions: Positions,
}

#[derive(Clone, Copy, Debug)]
enum Rule {
    Above(f32),
    Best(Budget),
}

/// Picture, tile, row and column of a cell: the same in every frame.
type Place = (u32, u32, u32, u32);

/// What a cell showed, last time: what the pruner keeps in the episode.
#[derive(Clone, Debug, Default)]
struct Seen(BTreeMap<Place, Cell>);

#[derive(Clone, Debug)]
enum Cell {
    Grey(Vec<u8>),
    Row(Vec<f32>),
}

impl Cell {
    /// Mean difference of grey levels, or `1 - cos`; `None` if the two do not compare.
    fn difference(&self, other: &Cell) -> Option<f32> {
        match (self, other) {
            (Cell::Grey(a), Cell::Grey(b)) if a.len() == b.len() => {
                let sum: u64 = a.iter().zip(b).map(|(&x, &y)| u64::from(x.abs_diff(y))).sum();
                Some(sum as f32 / a.len().max(1) as f32)
            }
            (Cell::Row(a), Cell::Row(b)) if a.len() == b.len() => {
                let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(p, q)| p * q).sum::<f32>();
                let norms = (dot(a, a) * dot(b, b)).sqrt();
                Some(if norms > 0.0 { (1.0 - dot(a, b) / norms).max(0.0) } else { 0.0 })
            }
            _ => None,
        }
    }

    /// The largest difference there can be.
    fn whole(&self) -> f32 {
        match self {
            Cell::Grey(_) => 255.0,
            Cell::Row(_) => 2.0,
        }
    }
}

impl FrameDiff {
    /// Parameters: `threshold` or `keep` (a frame), `min_keep` (1), `on = "pixels" |
    /// "embeddings"`, `reference = "previous" | "kept"`, `positions`.
    ///
    /// # Errors
    /// Both rules at once, or a value out of range.
    pub fn parse(params: &Params<'_>) -> Result<Self, ChainError> {
        let embeddings =
            params.choice("on", &[("pixels", false), ("embeddings", true)])?.unwrap_or(false);
        let threshold = params.number("threshold")?;
        if threshold.is_some_and(|t| t < 0.0) {
            return Err(params.error("threshold", "a number, 0 or more"));
        }
        let rule = match (options::budget(params)?, threshold) {
            (Some(_), Some(_)) => return Err(params.error("threshold", "absent beside a budget")),
            (Some(budget), None) => Rule::Best(budget),
            (None, threshold) => {
                let default = if embeddings { 0.05 } else { 6.0 };
                Rule::Above(threshold.unwrap_or(default) as f32)
            }
        };
        let references = [("previous", false), ("kept", true)];
        Ok(Self {
            rule,
            min_keep: params.count("min_keep")?.unwrap_or(1),
            embeddings,
            only_kept: params.choice("reference", &references)?.unwrap_or(false),
            positions: Positions::parse(params, PositionPolicy::Renumber)?,
        })
    }

    /// Places among `scores` (one a cell of a frame) that stay, ascending.
    fn choose(&self, scores: &[f32]) -> Vec<u32> {
        let best = match &self.rule {
            Rule::Above(threshold) => scores.iter().filter(|&&s| s > *threshold).count(),
            Rule::Best(budget) => budget.resolve(scores.len(), scores),
        };
        top_k(scores, best.max(self.min_keep))
    }
}

/// Grey levels of the patches that a token is made of.
fn grey(crops: &[CropSignals], patches: &[(u32, u32, f32)], order: PatchOrder) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for &(crop, patch, _) in patches {
        let pixels = &crops.get(crop as usize)?.pixels;
        let side = pixels.patch.max(1);
        let (row, col) = order.place(patch as usize, pixels.width / side);
        for y in row * side..(row + 1) * side {
            let from = (y * pixels.width + col * side) * 3;
            let line = pixels.rgb.get(from..from + side * 3)?;
            let level = |rgb: &[u8]| rgb.iter().map(|&c| u16::from(c)).sum::<u16>() / 3;
            out.extend(line.chunks_exact(3).map(|rgb| level(rgb) as u8));
        }
    }
    Some(out)
}

impl Pruner for FrameDiff {
    fn plan(&self, model: &ModelInfo) -> Result<Plan, ChainError> {
        let mut notes = Vec::new();
        let positions = self.positions.resolve(model, &mut notes);
        let budget = match &self.rule {
            Rule::Above(threshold) => format!("changed by more than {threshold}"),
            Rule::Best(budget) => format!("{budget} a frame"),
        };
        notes.push("the first frame stays whole".into());
        let read = if self.embeddings { Signal::Embeddings } else { Signal::Pixels };
        let stage = StagePlan::at(Site::Input).reads([read]).positions(positions).budget(budget);
        Ok(Plan::of([stage], notes))
    }

    fn select(&self, cut: &Cut<'_>, memory: &mut Memory) -> Result<Selection, RunError> {
        let tokens = cut.tokens;
        let order = PatchOrder::of(&cut.signals.sources);
        let rows: Option<ArrayView2<'_, f32>> =
            if self.embeddings { Some(cut.embeddings()?) } else { None };
        let cell_of = |i: u32| -> Option<Cell> {
            if let Some(rows) = rows {
                return Some(Cell::Row(rows.row(i as usize).to_vec()));
            }
            let source = cut.source(i)?;
            Some(Cell::Grey(grey(&cut.signals.crops, &source.patches, order)?))
        };
        let seen = memory.episode_or_default::<Seen>();
        let mut scores = vec![0.0f32; tokens.len()];
        let mut chosen: Vec<u32> = Vec::new();
        for range in tokens.crops() {
            let mut frame: Vec<(u32, Place, Cell, Option<f32>)> = Vec::new();
            for i in range.start as u32..range.end as u32 {
                let t = &tokens.tokens[i as usize];
                if t.kind != TokenKind::Patch {
                    // Without a cell there is nothing to compare.
                    chosen.push(i);
                    continue;
                }
                let grid = tokens.grid_of(t);
                let place = (grid.picture, grid.tile, t.row, t.col);
                let cell = cell_of(i)
                    .ok_or_else(|| cut.refuse(format!("token {i} has no pixels to compare")))?;
                let difference = seen.0.get(&place).and_then(|before| cell.difference(before));
                scores[i as usize] = difference.unwrap_or(cell.whole());
                frame.push((i, place, cell, difference));
            }
            let own: Vec<f32> = frame.iter().map(|f| scores[f.0 as usize]).collect();
            let kept = if frame.iter().all(|f| f.3.is_none()) {
                (0..own.len() as u32).collect()
            } else {
                self.choose(&own)
            };
            for (at, (i, place, cell, _)) in frame.into_iter().enumerate() {
                let stays = kept.binary_search(&(at as u32)).is_ok();
                if stays {
                    chosen.push(i);
                }
                if stays || !self.only_kept {
                    seen.0.insert(place, cell);
                }
            }
        }
        let kept = with_structural(tokens, chosen);
        Ok(Selection { kept, scores: Some(scores), ..Selection::default() })
    }
}
