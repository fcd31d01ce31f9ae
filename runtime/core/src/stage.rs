//! One cut: a stage chooses, what it chose is checked, and a report says what it did.

use std::time::Duration;

use crate::chain::ResolvedStage;
use crate::error::RunError;
use crate::prune::{Cut, Memory, Selection, Site};
use crate::signal::Signals;
use crate::tokens::TokenMap;

/// What one cut did.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct StageReport {
    /// Index of the chain's entry.
    pub entry: usize,
    /// Which drop of the entry; `None` if the cut stands for it.
    pub drop: Option<usize>,
    /// The pruner.
    pub pruner: String,
    /// Where.
    pub site: Site,
    /// Visual tokens before.
    pub before: usize,
    /// Visual tokens after.
    pub kept: usize,
    /// Milliseconds for scoring, selecting and gathering.
    pub ms: f64,
    /// What the pruner has to say about this cut, such as a fallback that it took.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Original indices that were kept, ascending.
    #[serde(skip)]
    pub indices: Vec<u32>,
    /// Original indices of kept tokens that stand for a group, be it a group of one.
    #[serde(skip)]
    pub recycled: Vec<u32>,
    /// Original indices of the tokens that were ranked, and their scores.
    #[serde(skip)]
    pub scores: Option<(Vec<u32>, Vec<f32>)>,
    /// The tokens after the cut.
    #[serde(skip)]
    pub tokens: TokenMap,
}

/// Lets a stage choose, and checks what it chose.
pub(crate) fn choose(
    stage: &ResolvedStage,
    tokens: &TokenMap,
    entered: usize,
    signals: &Signals,
    memory: &mut Memory,
    floor: Option<usize>,
) -> Result<Selection, RunError> {
    let site = stage.plan.site;
    let cut = Cut {
        pruner: &stage.name,
        stage: stage.stage,
        plan: &stage.plan,
        tokens,
        entered,
        signals,
    };
    let broken = |reason: String| cut.refuse(reason);
    let mut selection = stage.pruner.select(&cut, memory)?;
    if let Some(scores) = &selection.scores
        && scores.len() != tokens.len()
    {
        return Err(broken(format!("{} scores for {} tokens", scores.len(), tokens.len())));
    }
    selection.check(tokens, site).map_err(broken)?;
    if let Some(cells) = floor {
        crate::floor::enforce(cells, tokens, &mut selection);
        selection.check(tokens, site).map_err(broken)?;
    }
    Ok(selection)
}

/// The report of a cut; `tokens` are those before it.
pub(crate) fn report(
    stage: &ResolvedStage,
    tokens: &TokenMap,
    after: &TokenMap,
    selection: &Selection,
    time: Duration,
) -> StageReport {
    let index = |i: u32| tokens.tokens[i as usize].index;
    StageReport {
        entry: stage.entry,
        drop: stage.plan.drop,
        pruner: stage.name.clone(),
        site: stage.plan.site,
        before: tokens.len(),
        kept: after.len(),
        ms: time.as_secs_f64() * 1e3,
        notes: selection.notes.clone(),
        indices: selection.kept.iter().map(|&i| index(i)).collect(),
        recycled: selection.merges.iter().map(|m| index(m.target)).collect(),
        scores: selection.scores.clone().map(|s| (tokens.indices(), s)),
        tokens: after.clone(),
    }
}

/// Sites before the decoder, in order.
pub(crate) const EARLY_SITES: [Site; 2] = [Site::Encoder, Site::Input];
