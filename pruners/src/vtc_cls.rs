//! VTC-CLS: keeps the patches that the class token of the vision tower looks at.
//!
//! Method: "\[CLS\] Token Tells Everything Needed for Training-free Efficient MLLMs" (2024):
//! `s[i] = sum over layers e of mean over heads of A_e[cls, i]`, the highest `k` of each crop.
//! Softmax runs over all keys, the class column is dropped afterwards, nothing is renormalised.
//!
//! Deviations
//! - A1, A3 (the release reduces over the batch and knows no tiles): crop by crop; `per = "image"`
//!   splits one budget over the crops of a picture.
//! - A2, A8 (576 patches, a budget above them or of 1 fails): any number, budgets are clamped.
//! - A4 (figure: the last K layers; code: a start index): `ensemble_layers` or `start_layer`, and
//!   `end_layer` (default: the last layer that runs).
//! - A5 (a script that does not pass the method's flag): nothing to port.
//! - A6 (towers without a class token): refused unless a fallback is chosen: `"column_mean"` ranks by
//!   attention received, over the same layers; `"pooling_head"` by the attention of SigLIP's
//!   pooling head after the last layer, where the checkpoint holds one.
//! - A7: rows are cut before the projector where every visual token is one tower row, after it
//!   else; where the projector works row by row the two are equal.
//! - A9 (seven layers in the code, K = 3 in the paper): K = 3.
//!
//! `layer = r` uses the same scores for a cut inside the decoder.

use secateur_core::chain::Params;
use secateur_core::error::{ChainError, RunError};
use secateur_core::model::ModelInfo;
use secateur_core::prune::{
    Budget, Cut, Memory, Plan, PositionPolicy, Pruner, Selection, Site, StagePlan,
};
use secateur_core::signal::Signal;

use crate::debias::Debias;
use crate::options::{self, Positions};
use crate::parameters::{DEBIASED, KEEP, RENUMBERED, parameter};
use crate::registry::Entry;
use crate::score::{Ranking, Scope};

/// Its row in the registry.
pub const ENTRY: Entry = Entry {
    name: "vtc_cls",
    paper: "[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs (2024)",
    summary: "the patches that the class token looks at, summed over a few tower layers",
    reads: "class-token attention of the tower (or attention received, or a pooling head's)",
    sites: "encoder",
    example: "vtc_cls:keep=64",
    debias: true,
    parameters: &[
        &[KEEP],
        &[
            parameter(
                "ensemble_layers",
                "3",
                "how many of the last tower layers are summed; absent beside start_layer",
            ),
            parameter(
                "start_layer",
                "(the ensemble's first)",
                "first tower layer that is summed, from 0",
            ),
            parameter("end_layer", "(the last that runs)", "last tower layer that is summed"),
            parameter(
                "per",
                "crop",
                "who shares a budget: each crop, the crops of an image, or all together",
            ),
            parameter(
                "fallback",
                "none",
                "for towers without a class token: column_mean (attention received) or pooling_head (SigLIP's, where the file has it)",
            ),
            parameter(
                "layer",
                "(none: it cuts at the encoder)",
                "cut before this decoder layer instead, by the same scores",
            ),
        ],
        DEBIASED,
        RENUMBERED,
    ],
    build: |params| Ok(Box::new(VtcCls::parse(params)?)),
};

/// The paper's ensemble.
const ENSEMBLE_LAYERS: usize = 3;

/// Ranks by attention of the class token.
#[derive(Clone, Debug)]
pub struct VtcCls {
    name: String,
    budget: Budget,
    layers: Layers,
    fallback: Option<Fallback>,
    decoder_layer: Option<usize>,
    ranking: Ranking,
    positions: Positions,
}

/// What is read of a tower without a class token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fallback {
    ColumnMean,
    PoolingHead,
}

/// Which tower layers are summed, 0-based.
#[derive(Clone, Copy, Debug)]
struct Layers {
    start: Option<usize>,
    end: Option<usize>,
    count: usize,
}

impl Layers {
    /// The layers for a model. Without an explicit start: the last `count` layers that attend over
    /// the whole crop.
    fn resolve(self, model: &ModelInfo) -> Vec<usize> {
        let end = self.end.unwrap_or(model.encoder.layers.saturating_sub(1));
        match self.start {
            Some(start) => (start..=end).collect(),
            None => {
                let full = model.encoder.full_attention_layers.iter().copied();
                let mut layers: Vec<usize> = full.filter(|&e| e <= end).collect();
                layers.drain(..layers.len().saturating_sub(self.count));
                if layers.is_empty() { vec![end] } else { layers }
            }
        }
    }
}

impl VtcCls {
    /// Parameters: `keep`, `start_layer` or `ensemble_layers` (3), `end_layer`, `per = "crop" |
    /// "image" | "all"`, `fallback = "column_mean" | "pooling_head"`, `layer`, `debias`, `positions`.
    ///
    /// # Errors
    /// A missing budget, a value out of range.
    pub fn parse(params: &Params<'_>) -> Result<Self, ChainError> {
        let (start, end) = (params.count("start_layer")?, params.count("end_layer")?);
        let count = params.count("ensemble_layers")?;
        if start.is_some() && count.is_some() {
            return Err(params.error("ensemble_layers", "absent beside `start_layer`"));
        }
        if count == Some(0) {
            return Err(params.error("ensemble_layers", "at least one layer"));
        }
        if let (Some(start), Some(end)) = (start, end)
            && start > end
        {
            return Err(params.error("start_layer", &format!("at most `end_layer`, {end}")));
        }
        let fallbacks = [
            ("column_mean", Some(Fallback::ColumnMean)),
            ("pooling_head", Some(Fallback::PoolingHead)),
            ("none", None),
        ];
        Ok(Self {
            name: params.pruner().to_owned(),
            budget: options::required_budget(params)?,
            layers: Layers { start, end, count: count.unwrap_or(ENSEMBLE_LAYERS) },
            fallback: params.choice("fallback", &fallbacks)?.flatten(),
            decoder_layer: params.count("layer")?,
            ranking: Ranking {
                scope: params.choice("per", Scope::PER_CROP)?.unwrap_or(Scope::EachCrop),
                debias: Debias::option(params)?,
            },
            positions: Positions::parse(params, PositionPolicy::Renumber)?,
        })
    }

    /// What is read of a layer of this model.
    fn signal(&self, model: &ModelInfo, layer: usize) -> Signal {
        match self.fallback.filter(|_| !model.encoder.cls) {
            Some(Fallback::ColumnMean) => Signal::ColumnMean { layer },
            Some(Fallback::PoolingHead) => Signal::PoolingAttention,
            None => Signal::ClsAttention { layer },
        }
    }

    /// The signals that are summed: the pooling head has no layers, its attention counts once.
    fn signals(&self, model: &ModelInfo) -> Vec<Signal> {
        let layers = self.layers.resolve(model).into_iter();
        let mut signals: Vec<Signal> = layers.map(|layer| self.signal(model, layer)).collect();
        signals.dedup();
        signals
    }
}

impl Pruner for VtcCls {
    fn plan(&self, model: &ModelInfo) -> Result<Plan, ChainError> {
        let layers = self.layers.resolve(model);
        let (Some(first), Some(last)) = (layers.first(), layers.last()) else {
            return Err(ChainError::Layer {
                pruner: self.name.clone(),
                layer: self.layers.start.unwrap_or(0) as i64,
                part: "the encoder",
                first: 0,
                last: model.encoder.layers.saturating_sub(1),
            });
        };
        let summed = format!("sums tower layers {first} to {last}");
        let mut notes = match self.fallback.filter(|_| !model.encoder.cls) {
            None => vec![summed],
            Some(Fallback::ColumnMean) => vec![
                summed,
                "the tower has no class token: ranks by attention received (score_source = \
                 \"col_mean\")"
                    .into(),
            ],
            Some(Fallback::PoolingHead) => vec![
                "the tower has no class token: ranks by attention of its pooling head \
                 (score_source = \"pooling_head\")"
                    .into(),
            ],
        };
        let positions = self.positions.resolve(model, &mut notes);
        let site = match self.decoder_layer {
            Some(layer) => {
                options::check_decoder_layer(&self.name, layer, model)?;
                Site::Decoder(layer)
            }
            // A projector that mixes tower rows needs them all: the cut follows it.
            None if model.one_to_one => Site::Encoder,
            None => Site::Input,
        };
        let stage = StagePlan::at(site).reads(self.signals(model)).positions(positions);
        Ok(Plan::of([stage.budget(self.ranking.scope.describe(&self.budget))], notes))
    }

    fn keeps(&self, _stage: usize, current: usize, _entered: usize) -> Option<usize> {
        options::keeps(&self.budget, current)
    }

    fn select(&self, cut: &Cut<'_>, _memory: &mut Memory) -> Result<Selection, RunError> {
        let mut sums: Vec<Vec<f32>> = Vec::new();
        for &signal in &cut.plan.reads {
            let rows = cut.crop_vectors(signal)?;
            sums.resize_with(rows.len(), Vec::new);
            for (sum, row) in sums.iter_mut().zip(rows) {
                sum.resize(row.len(), 0.0);
                sum.iter_mut().zip(row).for_each(|(s, r)| *s += r);
            }
        }
        let scores = cut.token_scores(&sums, 0.0)?;
        Ok(self.ranking.select_by_crop(cut, scores, &self.budget, |i| cut.crop_of(i)))
    }
}
