//! What a pruner sees at a cut: the stage as it was planned, the tokens that are there, and the
//! readers of its signals.
//!
//! Invariants
//! - A reader gives what the stage declared and nothing else: an undeclared signal is an error that
//!   names pruner and signal.
//! - What a reader gives is finite; NaN and infinity are an error that names signal and layer.
//! - Patch scores reach tokens through tiling, stitching, pooling and merging in one place
//!   ([`Cut::token_scores`]).

use ndarray::ArrayView2;

use crate::error::RunError;
use crate::plan::{Site, StagePlan};
use crate::signal::{LayerTransitions, PatchSource, Signal, Signals};
use crate::tokens::TokenMap;

/// What a pruner sees at a cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut<'a> {
    /// Name of the pruner in the chain, for errors.
    pub pruner: &'a str,
    /// Index of the stage within the pruner's plan.
    pub stage: usize,
    /// The stage as it was planned: its site and what it reads.
    pub plan: &'a StagePlan,
    /// The tokens that are there.
    pub tokens: &'a TokenMap,
    /// Visual tokens that entered the decoder; at earlier sites, the tokens that are there.
    pub entered: usize,
    /// The declared signals.
    pub signals: &'a Signals,
}

impl<'a> Cut<'a> {
    /// Where it is.
    pub fn site(&self) -> Site {
        self.plan.site
    }

    /// An error of the pruner about this cut.
    pub fn refuse(&self, reason: impl Into<String>) -> RunError {
        RunError::Selection {
            pruner: self.pruner.to_owned(),
            site: self.plan.site.to_string(),
            reason: reason.into(),
        }
    }

    fn undeclared(&self, signal: &Signal) -> RunError {
        self.refuse(format!("signal `{signal}` was read but not declared in the plan"))
    }

    /// What [`StagePlan::prepared`] was given.
    ///
    /// # Errors
    /// If the plan prepared nothing of that type.
    pub fn prepared<T: 'static>(&self) -> Result<&'a T, RunError> {
        let facts = self.plan.prepared.as_deref().and_then(|facts| facts.downcast_ref());
        facts.ok_or_else(|| {
            let what = std::any::type_name::<T>();
            self.refuse(format!("the plan prepared no `{what}`"))
        })
    }

    /// A declared decoder vector, `[visual tokens]`.
    ///
    /// # Errors
    /// If the plan did not declare it, or if it holds NaN or infinity.
    pub fn vector(&self, signal: Signal) -> Result<&'a [f32], RunError> {
        let values = self.signals.vector(&signal).ok_or_else(|| self.undeclared(&signal))?;
        check_finite(&signal, values)?;
        Ok(values)
    }

    /// A declared encoder vector of every crop, `[patches]` each.
    ///
    /// # Errors
    /// As [`Cut::vector`].
    pub fn crop_vectors(&self, signal: Signal) -> Result<Vec<&'a [f32]>, RunError> {
        (0..self.signals.crops.len())
            .map(|crop| {
                let values = self.signals.crop_vector(crop, &signal).and_then(|v| v.as_slice());
                let values = values.ok_or_else(|| self.undeclared(&signal))?;
                check_finite(&signal, values)?;
                Ok(values)
            })
            .collect()
    }

    /// A declared encoder matrix of every crop.
    ///
    /// # Errors
    /// As [`Cut::vector`].
    pub fn crop_matrices(&self, signal: Signal) -> Result<Vec<ArrayView2<'a, f32>>, RunError> {
        (0..self.signals.crops.len())
            .map(|crop| {
                let matrix = self.signals.crop_matrix(crop, &signal);
                let matrix = matrix.ok_or_else(|| self.undeclared(&signal))?;
                check_finite(&signal, matrix.iter())?;
                Ok(matrix)
            })
            .collect()
    }

    /// Projected tokens, `[visual tokens, hidden]`.
    ///
    /// # Errors
    /// As [`Cut::vector`], and if there are not as many rows as tokens.
    pub fn embeddings(&self) -> Result<ArrayView2<'a, f32>, RunError> {
        let signal = Signal::Embeddings;
        let rows = self.signals.embeddings.as_ref().ok_or_else(|| self.undeclared(&signal))?;
        check_finite(&signal, rows)?;
        if rows.nrows() != self.tokens.len() {
            let (rows, tokens) = (rows.nrows(), self.tokens.len());
            return Err(self.refuse(format!("{rows} embeddings for {tokens} tokens")));
        }
        Ok(rows.view())
    }

    /// Mean of the embedded instruction, `[hidden]`.
    ///
    /// # Errors
    /// As [`Cut::vector`].
    pub fn instruction(&self) -> Result<&'a [f32], RunError> {
        let signal = Signal::InstructionEmbedding;
        let values = self.signals.instruction.as_ref().and_then(|v| v.as_slice());
        let values = values.ok_or_else(|| self.undeclared(&signal))?;
        check_finite(&signal, values)?;
        Ok(values)
    }

    /// Declared transitions of a decoder layer. Reductions that are not finite are for the pruner to
    /// refuse, once it has made weights of them ([`check_finite`]).
    ///
    /// # Errors
    /// If the plan did not declare them.
    pub fn transitions(&self, layer: usize) -> Result<&'a LayerTransitions, RunError> {
        let seen = self.signals.transitions.get(&layer);
        seen.ok_or_else(|| self.undeclared(&Signal::Transitions { layer }))
    }

    /// Of which patches a current token is made; `None` where it has none (structural, class and
    /// merged tokens).
    pub fn source(&self, token: u32) -> Option<&'a PatchSource> {
        let index = self.tokens.tokens[token as usize].index as usize;
        self.signals.sources.get(index).filter(|s| !s.patches.is_empty())
    }

    /// Crop that a current token comes from; that of its grid where it has no patches.
    pub fn crop_of(&self, token: u32) -> u32 {
        let grid = self.tokens.tokens[token as usize].grid;
        self.source(token).map_or(grid, |s| s.patches[0].0)
    }

    /// Carries patch scores (`[patches]` a crop) to the current tokens, one each; tokens without
    /// patches get `other`.
    ///
    /// # Errors
    /// If a token is made of patches that have no score.
    pub fn token_scores(&self, scores: &[Vec<f32>], other: f32) -> Result<Vec<f32>, RunError> {
        (0..self.tokens.len() as u32)
            .map(|token| {
                let Some(source) = self.source(token) else { return Ok(other) };
                source.score(scores).map_err(|(crop, patch)| {
                    self.refuse(format!(
                        "token {token} is made of patch {patch} of crop {crop}, which has no score"
                    ))
                })
            })
            .collect()
    }
}

/// # Errors
/// [`RunError::NonFinite`] naming signal and layer.
pub fn check_finite<'a>(
    signal: &Signal,
    values: impl IntoIterator<Item = &'a f32>,
) -> Result<(), RunError> {
    if values.into_iter().all(|v| v.is_finite()) {
        return Ok(());
    }
    let layer = match *signal {
        Signal::Attention { layer, .. }
        | Signal::Probe { layer, .. }
        | Signal::Transitions { layer }
        | Signal::Hidden { layer }
        | Signal::GeneratedRows { layer } => layer,
        ref other => other.encoder_layer().unwrap_or(0),
    };
    Err(RunError::NonFinite { signal: signal.to_string(), layer })
}
