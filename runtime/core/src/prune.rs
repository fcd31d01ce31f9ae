//! Pruners: where they cut, what they read, what they return.
//!
//! A pruner is pure: its selection depends on the signals, the tokens that are there and its own
//! [`Memory`], nothing else. It works on host arrays and never sees a device.
//!
//! Invariants (checked at every cut by [`Selection::check`])
//! - `kept` is ascending and unique, every index names a current token, every structural token is
//!   among them.
//! - Merge targets are kept; the members of a merge are current tokens.

use std::fmt;

use crate::error::{ChainError, RunError};
use crate::model::ModelInfo;
use crate::signal::{Signal, Signals};
use crate::tokens::TokenMap;

pub use crate::cut::{Cut, check_finite};
pub use crate::episode::{Episode, Memory};
pub use crate::plan::{Budget, Plan, PositionPolicy, Site, StagePlan};

/// One token as a weighted sum of current tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Merge {
    /// The token whose place (and position) the sum takes.
    pub target: u32,
    /// Current tokens and their weights, the target's own included.
    pub terms: Vec<(u32, f32)>,
}

/// The outcome of a cut. Indices count the tokens that were there before it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    /// Ascending and unique.
    pub kept: Vec<u32>,
    /// Kept tokens that are replaced by a weighted sum; targets ascending.
    pub merges: Vec<Merge>,
    /// Rows put behind the kept ones of the target's crop (only at [`Site::Encoder`]).
    pub appended: Vec<Merge>,
    /// Whether the tower's CLS row of each crop goes in front (only at [`Site::Encoder`]).
    pub cls: bool,
    /// What was ranked, one a current token, for reports; `None` if nothing was scored.
    pub scores: Option<Vec<f32>>,
    /// What a person should know about this cut (a fallback was taken), for reports.
    pub notes: Vec<String>,
}

impl Selection {
    /// A plain cut.
    pub fn keep(kept: Vec<u32>) -> Self {
        Self { kept, ..Self::default() }
    }

    /// Whether nothing is dropped, merged or added.
    pub fn is_identity(&self, tokens: usize) -> bool {
        self.kept.len() == tokens && self.merges.is_empty() && self.appended.is_empty() && !self.cls
    }

    /// The rules every selection must meet.
    ///
    /// # Errors
    /// Says which rule is broken.
    pub fn check(&self, tokens: &TokenMap, site: Site) -> Result<(), String> {
        if let Some(pair) = self.kept.windows(2).find(|w| w[0] >= w[1]) {
            return Err(format!("kept tokens are not ascending and unique at {pair:?}"));
        }
        if let Some(&last) = self.kept.last()
            && last as usize >= tokens.len()
        {
            return Err(format!("kept token {last} of {} does not exist", tokens.len()));
        }
        let mut kept = vec![false; tokens.len()];
        for &i in &self.kept {
            kept[i as usize] = true;
        }
        if let Some(lost) =
            (0..tokens.len()).find(|&i| !kept[i] && !tokens.tokens[i].is_candidate())
        {
            return Err(format!("structural token {lost} was dropped"));
        }
        for merge in self.merges.iter().chain(&self.appended) {
            let all = merge.terms.iter().map(|t| t.0).chain([merge.target]);
            if let Some(bad) = all.into_iter().find(|&i| i as usize >= tokens.len()) {
                return Err(format!("a merge names token {bad} of {}", tokens.len()));
            }
            if let Some(&(i, w)) = merge.terms.iter().find(|t| !t.1.is_finite()) {
                return Err(format!("a merge gives token {i} the weight {w}"));
            }
        }
        if let Some(merge) = self.merges.iter().find(|m| !kept[m.target as usize]) {
            return Err(format!("merge target {} is not kept", merge.target));
        }
        if self.merges.windows(2).any(|w| w[0].target >= w[1].target) {
            return Err("merge targets are not ascending and unique".into());
        }
        if site != Site::Encoder && (self.cls || !self.appended.is_empty()) {
            return Err("extra rows can be added at the encoder site only".into());
        }
        Ok(())
    }
}

/// What a pruner sees when a request has been decoded.
#[derive(Clone, Copy, Debug)]
pub struct Observation<'a> {
    /// [`Plan::observes`], as planned.
    pub reads: &'a [Signal],
    /// Their values.
    pub signals: &'a Signals,
    /// Visual tokens that entered the decoder.
    pub entered: usize,
}

/// A way to choose visual tokens.
pub trait Pruner: Send + Sync + fmt::Debug {
    /// Its stages for a model: sites, signals, budgets.
    ///
    /// # Errors
    /// Layers that the model does not have, parameters that do not fit it. Whether the model
    /// offers the signals is checked by the chain.
    fn plan(&self, model: &ModelInfo) -> Result<Plan, ChainError>;

    /// Tokens that stage `stage` keeps of `current` candidates of a square crop, for `explain`;
    /// `None` if that depends on the picture. `entered` are the tokens that entered the decoder;
    /// at the sites before it, those of the picture before any cut.
    fn keeps(&self, _stage: usize, _current: usize, _entered: usize) -> Option<usize> {
        None
    }

    /// Chooses tokens at a cut.
    ///
    /// # Errors
    /// A signal that is not finite, and whatever the method itself cannot do.
    fn select(&self, cut: &Cut<'_>, memory: &mut Memory) -> Result<Selection, RunError>;

    /// Sees the signals of [`Plan::observes`] when a request has been decoded.
    fn observe(&self, _seen: &Observation<'_>, _memory: &mut Memory) {}

    /// Replaces what earlier steps of the episode left by `history`, `[steps, visual tokens]`,
    /// oldest first. Pruners without state over time ignore it.
    fn load_history(&self, _history: ndarray::Array2<f32>, _memory: &mut Memory) {}

    /// What the last [`Pruner::observe`] added to the episode, `[visual tokens]`; `None` for
    /// pruners without such a state and before the first step.
    fn last_action_score(&self, _memory: &Memory) -> Option<Vec<f32>> {
        None
    }
}
