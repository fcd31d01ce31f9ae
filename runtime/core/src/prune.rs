//! Pruners: where they cut, what they read, what they return.
//!
//! A pruner is pure: its selection depends on the signals, the tokens that are there and its own
//! [`Memory`], nothing else. It works on host arrays and never sees a device.
//!
//! Invariants (checked at every cut by [`Selection::check`])
//! - `kept` is ascending and unique, every index names a current token, every structural token is
//!   among them.
//! - Merge targets are kept; the members of a merge are current tokens.

use std::any::Any;
use std::fmt;

use crate::error::{ChainError, RunError};
use crate::model::ModelInfo;
use crate::signal::{Signal, Signals};
use crate::tokens::TokenMap;

/// Where a stage cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// After the vision tower, before the projector: rows of the tower.
    Encoder,
    /// After projector and assembly, before decoder layer 0.
    Input,
    /// When that many decoder layers have run: `Decoder(r)` cuts before layer `r`,
    /// `1 <= r < layers`.
    Decoder(usize),
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Site::Encoder => f.write_str("encoder"),
            Site::Input => f.write_str("input"),
            Site::Decoder(layer) => write!(f, "decoder({layer})"),
        }
    }
}

/// What happens to the position ids of surviving tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PositionPolicy {
    /// They keep their ids; gaps stay. Decoding goes on from the unpruned length.
    Keep,
    /// All tokens of the sequence count anew from the cut on; decoding goes on from the pruned
    /// length, layer by layer.
    Renumber,
}

/// How much of the candidates stays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// That many tokens.
    Count(usize),
    /// That share of the candidates, in (0, 1].
    Share(f64),
    /// The fewest best tokens whose scores sum to that share of the total.
    Mass(f64),
}

impl Budget {
    /// Tokens to keep of `count` candidates, rounding half to even and clamping to `count`.
    /// `scores` (one a candidate, negative counts as 0) are read by [`Budget::Mass`] alone.
    pub fn resolve(&self, count: usize, scores: &[f32]) -> usize {
        match *self {
            Budget::Count(keep) => keep.min(count),
            Budget::Share(share) => {
                ((count as f64 * share).round_ties_even() as usize).clamp(1.min(count), count)
            }
            Budget::Mass(mass) => {
                let mut sorted: Vec<f64> = scores.iter().map(|&s| f64::from(s).max(0.0)).collect();
                sorted.sort_by(|a, b| b.total_cmp(a));
                let target = sorted.iter().sum::<f64>() * mass;
                let mut sum = 0.0;
                let kept = sorted.iter().take_while(|&&s| {
                    let open = sum < target;
                    sum += s;
                    open
                });
                kept.count().clamp(1.min(count), count)
            }
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Budget::Count(keep) => write!(f, "{keep}"),
            Budget::Share(share) => write!(f, "{share}"),
            Budget::Mass(mass) => write!(f, "mass:{mass}"),
        }
    }
}

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

/// One cut of a pruner, as it was planned for a model.
#[derive(Clone, Debug)]
pub struct StagePlan {
    /// Where.
    pub site: Site,
    /// What it reads there.
    pub reads: Vec<Signal>,
    /// What happens to positions.
    pub positions: PositionPolicy,
    /// Its budget, as text for `explain`.
    pub budget: String,
    /// Which of the pruner's drops it is; `None` for the stage that stands for the whole entry.
    pub drop: Option<usize>,
}

/// All cuts of a pruner, in the order of their sites.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The cuts.
    pub stages: Vec<StagePlan>,
    /// What it wants to see after decoding ([`Pruner::observe`]).
    pub observes: Vec<Signal>,
    /// Notes for `explain` and reports: fallbacks taken, defaults resolved.
    pub notes: Vec<String>,
}

/// What a pruner carries: for one request from stage to stage, and for an episode from step to
/// step. Both start empty.
#[derive(Default)]
pub struct Memory {
    request: Option<Box<dyn Any + Send>>,
    episode: Option<Box<dyn Any + Send>>,
}

impl Memory {
    /// What an earlier stage of this request left.
    pub fn request<T: 'static>(&self) -> Option<&T> {
        self.request.as_ref()?.downcast_ref()
    }

    /// Leaves something for later stages of this request.
    pub fn set_request<T: Send + 'static>(&mut self, value: T) {
        self.request = Some(Box::new(value));
    }

    /// What earlier steps of the episode left.
    pub fn episode<T: 'static>(&self) -> Option<&T> {
        self.episode.as_ref()?.downcast_ref()
    }

    /// What earlier steps of the episode left, made by `T::default` if there is nothing.
    pub fn episode_or_default<T: Default + Send + 'static>(&mut self) -> &mut T {
        if self.episode::<T>().is_none() {
            self.episode = Some(Box::new(T::default()));
        }
        self.episode
            .as_mut()
            .and_then(|e| e.downcast_mut())
            .expect("the value was put there one line above")
    }

    /// Drops what belongs to a request: called when one begins.
    pub fn begin_request(&mut self) {
        self.request = None;
    }

    /// Drops everything: called when an episode begins.
    pub fn reset(&mut self) {
        self.request = None;
        self.episode = None;
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Memory {{ request: {}, episode: {} }}",
            self.request.is_some(),
            self.episode.is_some()
        )
    }
}

/// What a pruner sees at a cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut<'a> {
    /// Index of the stage within the pruner's plan.
    pub stage: usize,
    /// Its site.
    pub site: Site,
    /// The tokens that are there.
    pub tokens: &'a TokenMap,
    /// Visual tokens that entered the decoder; at earlier sites, the tokens that are there.
    pub entered: usize,
    /// The declared signals.
    pub signals: &'a Signals,
    /// The model.
    pub model: &'a ModelInfo,
}

impl Cut<'_> {
    /// A declared decoder vector, `[visual tokens]`.
    ///
    /// # Errors
    /// If the runtime did not give it (the plan did not declare it), or if it holds NaN or
    /// infinity: named with its layer.
    pub fn vector(&self, signal: Signal) -> Result<&[f32], RunError> {
        let values = self.signals.vector(&signal).ok_or_else(|| RunError::Selection {
            pruner: String::new(),
            site: self.site.to_string(),
            reason: format!("signal `{signal}` was read but not declared in the plan"),
        })?;
        check_finite(&signal, values.iter())?;
        Ok(values)
    }

    /// A declared encoder vector of every crop, `[patches]` each.
    ///
    /// # Errors
    /// As [`Cut::vector`].
    pub fn crop_vectors(&self, signal: Signal) -> Result<Vec<&[f32]>, RunError> {
        (0..self.signals.crops.len())
            .map(|crop| {
                let values = self
                    .signals
                    .crop_vector(crop, &signal)
                    .and_then(|v| v.as_slice())
                    .ok_or_else(|| RunError::Selection {
                        pruner: String::new(),
                        site: self.site.to_string(),
                        reason: format!("signal `{signal}` was read but not declared in the plan"),
                    })?;
                check_finite(&signal, values.iter())?;
                Ok(values)
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

    /// Sees the signals of [`Plan::observes`] when a request has been decoded. `entered` are the
    /// visual tokens that entered the decoder.
    fn observe(&self, _signals: &Signals, _entered: usize, _memory: &mut Memory) {}

    /// Replaces what earlier steps of the episode left by `history`, `[steps, visual tokens]`,
    /// oldest first. Pruners without state over time ignore it.
    fn load_history(&self, _history: ndarray::Array2<f32>, _memory: &mut Memory) {}

    /// What the last [`Pruner::observe`] added to the episode, `[visual tokens]`; `None` for
    /// pruners without such a state and before the first step.
    fn last_action_score(&self, _memory: &Memory) -> Option<Vec<f32>> {
        None
    }
}
