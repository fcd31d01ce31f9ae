//! The examples are in `src/bin`; `cargo run -p secateur-examples --bin NAME`. Here is what two of
//! them share: a pruner of one's own.

use secateur::prune::{Budget, Cut, Memory, Plan, Pruner, Selection, Site, StagePlan};
use secateur::{ChainError, ModelInfo, Params, RunError};

/// Keeps the tokens nearest the middle of each picture.
#[derive(Debug)]
pub struct Centre {
    /// How many.
    pub keep: Budget,
    /// What a step to the side counts beside a step up or down.
    pub across: f64,
}

impl Centre {
    /// Parameters: `keep` (0.5) and `across` (1).
    ///
    /// # Errors
    /// A value of another kind.
    pub fn build(params: &Params<'_>) -> Result<Box<dyn Pruner>, ChainError> {
        let keep = params.budget("keep")?.unwrap_or(Budget::Share(0.5));
        let across = params.number("across")?.unwrap_or(1.0);
        Ok(Box::new(Self { keep, across }))
    }
}

impl Pruner for Centre {
    fn plan(&self, _model: &ModelInfo) -> Result<Plan, ChainError> {
        Ok(StagePlan::at(Site::Input).budget(self.keep).into())
    }

    // For `explain` and `eval`: what the budget leaves.
    fn keeps(&self, _stage: usize, current: usize, _entered: usize) -> Option<usize> {
        Some(self.keep.resolve(current, &[]))
    }

    fn select(&self, cut: &Cut<'_>, _memory: &mut Memory) -> Result<Selection, RunError> {
        let tokens = &cut.tokens.tokens;
        let scores: Vec<f32> = tokens
            .iter()
            .map(|t| {
                let grid = cut.tokens.grid_of(t);
                let off = |at: u32, size: u32| (f64::from(at) + 0.5) / f64::from(size) - 0.5;
                let (down, across) = (off(t.row, grid.rows), self.across * off(t.col, grid.cols));
                -(down * down + across * across) as f32
            })
            .collect();
        let mut ranked: Vec<usize> =
            (0..tokens.len()).filter(|&i| tokens[i].is_candidate()).collect();
        let keep = self.keep.resolve(ranked.len(), &scores);
        // A stable sort: of equal scores the lower index stays in front.
        ranked.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let stays = |i: &usize| !tokens[*i].is_candidate() || ranked[..keep].contains(i);
        let kept = (0..tokens.len()).filter(stays).map(|i| i as u32).collect();
        Ok(Selection { scores: Some(scores), ..Selection::keep(kept) })
    }
}
