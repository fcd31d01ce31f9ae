//! The ragged batch: requests of different lengths, pictures and chains in one pass.
//!
//! A [`Sequence`] is one request on its way through the model. Sequences of a batch share nothing
//! but the matrix products: rows of all of them lie below one another in one tensor, and whatever
//! a stage decides for one is invisible to the others.
//!
//! Invariants
//! - While its prompt runs, `rows`, `positions` and the sequence's part of the tensor have the same
//!   length; `rows` is ascending.
//! - `visual[i]` is the place (within the sequence) of `tokens.tokens[i]`.
//! - A sequence that failed takes no further part and keeps its error; the others go on.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::{KvCache, Position};
use crate::chain::{ResolvedChain, ResolvedStage};
use crate::error::RunError;
use crate::model::{Control, Family};
use crate::ops::Ops;
use crate::prune::{Cut, Memory, Observation, Selection, Site};
use crate::signal::{Signal, Signals};
use crate::tensor::Tensor;
use crate::tokens::TokenMap;
use crate::visibility::{Blocks, Visibility};

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

/// What a sequence brings to the next pass.
#[derive(Debug, Default)]
pub enum Pending {
    /// Nothing: it takes no part.
    #[default]
    Nothing,
    /// Its prompt, `[rows, hidden]`: the rows that the stages cut and that make its caches.
    Prompt(Tensor),
    /// Text behind what its caches hold, for instance a later turn.
    Chunk(Chunk),
    /// The token that was chosen last.
    Token(u32),
}

/// Rows behind what the caches hold. None of them is ever cut.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chunk {
    /// Its text.
    pub ids: Vec<u32>,
    /// Which of its rows see one another, beside everything before them.
    pub blocks: Blocks,
}

impl From<Vec<u32>> for Chunk {
    /// Causal text.
    fn from(ids: Vec<u32>) -> Self {
        Self { ids, blocks: Blocks::Causal }
    }
}

impl Pending {
    /// The ids behind what the caches hold; a prompt has none.
    pub(crate) fn ids(&self) -> &[u32] {
        match self {
            Pending::Chunk(chunk) => &chunk.ids,
            Pending::Token(id) => std::slice::from_ref(id),
            Pending::Nothing | Pending::Prompt(_) => &[],
        }
    }
}

/// One request on its way.
#[derive(Debug, Default)]
pub struct Sequence {
    /// What the next pass runs of it; [`crate::pass::pass`] leaves nothing.
    pub pending: Pending,
    /// Looked at between the layers of its prompt.
    pub control: Control,
    /// Its chain, planned for the model.
    pub chain: Arc<ResolvedChain>,
    /// One memory an entry of the chain.
    pub memories: Vec<Memory>,
    /// Unpruned prompt ids, placeholders included: what a repetition penalty looks at.
    pub prompt_ids: Vec<u32>,
    /// Visual tokens before any cut (anew after a stage that adds rows): length of vectors that
    /// are indexed by original index.
    pub indices: usize,
    /// Visual tokens that entered the decoder.
    pub entered: usize,
    /// Visual tokens that are there.
    pub tokens: TokenMap,
    /// Place within the sequence of each of them, ascending.
    pub visual: Vec<u32>,
    /// Index within the sequence that entered the decoder of each row.
    pub rows: Vec<u32>,
    /// Position ids of each row.
    pub positions: Vec<Position>,
    /// Which rows of the prompt see one another.
    pub visibility: Visibility,
    /// Rows that early decoder layers add to the visual ones, `[visual tokens, hidden]` each.
    pub levels: Vec<Tensor>,
    /// Position of the first generated token as things stand now.
    pub next: i32,
    /// Keys and values.
    pub cache: KvCache,
    /// Tokens that may be generated: cache room.
    pub room: usize,
    /// Signals read so far.
    pub signals: Signals,
    /// Sums over generated rows of each observed layer, and how many rows.
    pub observed: Vec<(usize, Vec<f32>, usize)>,
    /// What each cut did.
    pub stages: Vec<StageReport>,
    /// Time spent in cuts.
    pub prune_time: Duration,
    /// Why it takes no further part.
    pub failed: Option<RunError>,
}

impl Sequence {
    /// Whether it still takes part.
    pub fn is_alive(&self) -> bool {
        self.failed.is_none()
    }

    /// Whether the next pass reads its prompt.
    pub fn reads_prompt(&self) -> bool {
        matches!(self.pending, Pending::Prompt(_))
    }

    /// Rows that it brings to the next pass.
    pub fn pending_rows(&self) -> usize {
        if self.reads_prompt() { self.rows.len() } else { self.pending.ids().len() }
    }

    /// Whether what it pends can run: a prompt once, and what follows in caches that are there and
    /// have room.
    pub(crate) fn check_pending(&self, layers: usize, vocab: usize) -> Result<(), RunError> {
        let (caches, ids) = (&self.cache.layers, self.pending.ids());
        if caches.len() != if self.reads_prompt() { 0 } else { layers } {
            let reason = "a prompt runs once, and before what follows it";
            return Err(RunError::Prompt(reason.into()));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            let reason = format!("token id {id} is outside the vocabulary of {vocab}");
            return Err(RunError::Prompt(reason));
        }
        let is_whole = match &self.pending {
            Pending::Prompt(_) => self.visibility.is_of(self.rows.len()),
            Pending::Chunk(chunk) => chunk.blocks.is_of(ids.len()),
            Pending::Nothing | Pending::Token(_) => true,
        };
        if !is_whole {
            let reason = "its blocks are not those of its rows";
            return Err(RunError::Prompt(reason.into()));
        }
        match caches.iter().find(|c| c.len + ids.len() > c.capacity) {
            Some(full) => {
                Err(RunError::Context { need: full.len + ids.len(), have: full.capacity })
            }
            None => Ok(()),
        }
    }

    /// Decoder layers whose generated rows the chain wants to see.
    pub(crate) fn observed_layers(&self) -> impl Iterator<Item = usize> + '_ {
        self.chain.observes.iter().flat_map(|(_, reads)| reads).filter_map(|signal| match signal {
            Signal::GeneratedRows { layer } => Some(*layer),
            _ => None,
        })
    }

    /// Runs [`crate::prune::Pruner::observe`] of every entry that asked, once the answer is there.
    pub fn observe(&mut self) {
        for (layer, sums, rows) in &self.observed {
            let mean = sums.iter().map(|s| s / (*rows).max(1) as f32).collect();
            self.signals.vectors.insert(Signal::GeneratedRows { layer: *layer }, mean);
        }
        for (entry, reads) in &self.chain.observes {
            if let Some(stage) = self.chain.stages.iter().find(|s| s.entry == *entry) {
                let seen = Observation { reads, signals: &self.signals, entered: self.entered };
                stage.pruner.observe(&seen, &mut self.memories[*entry]);
            }
        }
    }
}

/// The rows of all sequences, one below the other, as they enter layer 0. Those of prompts are moved
/// out of their sequences.
pub(crate) fn pending(
    family: &dyn Family,
    ops: &dyn Ops,
    sequences: &mut [&mut Sequence],
) -> Result<Tensor, RunError> {
    let decoder = family.decoder();
    if let [only] = sequences
        && let Pending::Prompt(rows) = &mut only.pending
    {
        return Ok(std::mem::take(rows));
    }
    if !sequences.iter().any(|s| s.reads_prompt()) {
        let ids: Vec<u32> = sequences.iter().flat_map(|s| s.pending.ids()).copied().collect();
        return decoder.embed(&ids);
    }
    let all = sequences.iter().map(|s| s.pending_rows()).sum();
    let mut x = ops.zeros(all, family.info().decoder.hidden)?;
    let mut first = 0;
    // Text of several sequences in a row is embedded at once.
    let mut ids: Vec<u32> = Vec::new();
    for sequence in sequences {
        let count = sequence.pending_rows();
        ids.extend(sequence.pending.ids());
        if let Pending::Prompt(rows) = &mut sequence.pending {
            if !ids.is_empty() {
                ops.write_rows(&mut x, first - ids.len(), &decoder.embed(&ids)?);
                ids.clear();
            }
            ops.write_rows(&mut x, first, &std::mem::take(rows));
        }
        first += count;
    }
    if !ids.is_empty() {
        ops.write_rows(&mut x, first - ids.len(), &decoder.embed(&ids)?);
    }
    Ok(x)
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
