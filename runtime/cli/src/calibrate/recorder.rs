//! A pruner that keeps every token and adds the attention it reads to a shared curve.

use std::sync::{Arc, Mutex};

use secateur::prune::{Cut, Memory, Plan, Pruner, Selection, Site, StagePlan};
use secateur::signal::{Rows, Signal};
use secateur::{ChainError, ModelInfo, RunError, TokenKind, TokenMap};

/// Least share of a token that must be picture.
const LEAST_COVERAGE: f32 = 0.5;

/// What is read before the layer `K` of a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// The last prompt row of layer `K - 1`, which has run.
    Last,
    /// The last prompt row of layer `K`, which is about to run.
    Probe,
    /// The instruction's rows of layer `K`.
    Instruction,
}

impl Reads {
    fn signal(self, layer: usize) -> Signal {
        match self {
            Reads::Last => Signal::Attention { layer: layer - 1, rows: Rows::Last },
            Reads::Probe => Signal::Probe { layer, rows: Rows::Last },
            Reads::Instruction => Signal::Probe { layer, rows: Rows::Instruction },
        }
    }
}

/// Attention by place in the raster, added up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Curve {
    /// Sum and number of values at `i / (bins - 1)`.
    bins: Vec<(f64, usize)>,
    /// Prompts that were added.
    pub(crate) prompts: usize,
}

impl Curve {
    /// An empty curve of that many places.
    pub(crate) fn new(bins: usize) -> Self {
        Self { bins: vec![(0.0, 0); bins.max(2)], prompts: 0 }
    }

    /// Adds the attention of one prompt, a value a token.
    pub(crate) fn add(&mut self, tokens: &TokenMap, values: &[f32]) {
        let last = self.bins.len() - 1;
        for ((place, token), &value) in places(tokens).iter().zip(&tokens.tokens).zip(values) {
            if let Some(place) = place
                && token.coverage >= LEAST_COVERAGE
                && token.kind == TokenKind::Patch
            {
                let bin = &mut self.bins[(place * last as f64).round() as usize];
                bin.0 += f64::from(value);
                bin.1 += 1;
            }
        }
        self.prompts += 1;
    }

    /// Place in [0, 1], mean attention, and number of values, where there are any.
    pub(crate) fn points(&self) -> Vec<(f64, f64, f64)> {
        let last = (self.bins.len() - 1) as f64;
        let point = |(i, &(sum, count)): (usize, &(f64, usize))| {
            (count > 0).then(|| (i as f64 / last, sum / count as f64, count as f64))
        };
        self.bins.iter().enumerate().filter_map(point).collect()
    }
}

/// Raster index of each token within its picture, scaled to [0, 1], as `debias` counts it; `None`
/// without a cell.
fn places(tokens: &TokenMap) -> Vec<Option<f64>> {
    let cells = |g: usize| (tokens.grids[g].rows * tokens.grids[g].cols) as usize;
    let of_picture = |g: usize, end: usize| -> usize {
        (0..end).filter(|&o| tokens.grids[o].picture == tokens.grids[g].picture).map(cells).sum()
    };
    let spans: Vec<(usize, usize)> = (0..tokens.grids.len())
        .map(|g| (of_picture(g, g), of_picture(g, tokens.grids.len())))
        .collect();
    let place = |token: &secateur::VisualToken| {
        let g = token.grid as usize;
        let (before, whole) = *spans.get(g)?;
        let index = before + (token.row * tokens.grids[g].cols + token.col) as usize;
        (token.kind == TokenKind::Patch).then(|| index as f64 / (whole.max(2) - 1) as f64)
    };
    tokens.tokens.iter().map(place).collect()
}

/// The pruner.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    /// The layer before which it looks.
    pub(crate) layer: usize,
    /// What it reads.
    pub(crate) reads: Reads,
    /// Where it writes.
    pub(crate) curve: Arc<Mutex<Curve>>,
}

impl Pruner for Recorder {
    fn plan(&self, model: &ModelInfo) -> Result<Plan, ChainError> {
        if self.layer < 1 || self.layer >= model.decoder.layers {
            return Err(ChainError::Layer {
                pruner: "calibrate".into(),
                layer: self.layer as i64,
                part: "a cut inside the decoder",
                first: 1,
                last: model.decoder.layers.saturating_sub(1),
            });
        }
        let stage = StagePlan::at(Site::Decoder(self.layer));
        Ok(stage.reads([self.reads.signal(self.layer)]).budget("all").into())
    }

    fn select(&self, cut: &Cut<'_>, _memory: &mut Memory) -> Result<Selection, RunError> {
        let values = cut.vector(self.reads.signal(self.layer))?;
        if let Ok(mut curve) = self.curve.lock() {
            curve.add(cut.tokens, values);
        }
        Ok(Selection::keep((0..cut.tokens.len() as u32).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secateur::{ModelSource, Request, Vlm};

    #[test]
    fn attention_is_recorded_and_the_answer_stays() {
        let curve = Arc::new(Mutex::new(Curve::new(256)));
        let shared = curve.clone();
        let build = move |_: &secateur::Params<'_>| {
            let recorder = Recorder { layer: 2, reads: Reads::Last, curve: shared.clone() };
            Ok(Box::new(recorder) as Box<dyn Pruner>)
        };
        let vlm =
            Vlm::builder(ModelSource::Embedded).pruner("record", Arc::new(build)).open().unwrap();
        let grey = vec![90u8; 128 * 128 * 3];
        let request = Request::new("What is this?").rgb("grey", 128, 128, grey).unwrap();
        let chain = secateur::parse_chain("record").unwrap();
        let recorded = vlm.last_hidden(&request.clone().chain(chain)).unwrap();
        assert_eq!(recorded, vlm.last_hidden(&request).unwrap());
        let curve = curve.lock().unwrap();
        assert_eq!((curve.prompts, curve.points().len()), (1, 256));
        let sum: f64 = curve.points().iter().map(|p| p.1).sum();
        assert!(sum > 0.0 && sum < 1.0, "{sum}");
    }

    #[test]
    fn a_layer_that_does_not_exist_is_refused() {
        let vlm = Vlm::builder(ModelSource::Embedded).open().unwrap();
        let curve = Arc::new(Mutex::new(Curve::new(9)));
        for layer in [0, 99] {
            let recorder = Recorder { layer, reads: Reads::Probe, curve: curve.clone() };
            assert!(recorder.plan(vlm.info()).is_err(), "{layer}");
        }
    }
}
