//! One request on its way through the decoder: the rows of its prompt, its visual tokens, its caches,
//! what its pruners carry, and what became of it.
//!
//! Sequences of a pass share nothing but the matrix products: rows of all of them lie below one
//! another in one tensor, and whatever a stage decides for one is invisible to the others.
//!
//! Invariants
//! - While its prompt runs, [`PromptRows`] and the sequence's part of the tensor have the same rows,
//!   in their order; the visual ones among them are [`VisualTokens::tokens`], in that order.
//! - What is aligned to rows or to visual tokens is cut by `Sequence::cut` alone, all of it together.
//!   Rows of text and rows that the caller gave are never cut.
//! - A sequence that failed takes no further part and keeps its error; the others go on.

use std::sync::Arc;
use std::time::Duration;

use ndarray::Array2;

use crate::assemble::cut_rows;
use crate::cache::{KvCache, Origin, Position};
use crate::chain::ResolvedChain;
use crate::error::RunError;
use crate::head::AttentionRows;
use crate::model::{Control, DecoderInfo, Family, Slot};
use crate::ops::{Mask, Ops};
use crate::prune::{Memory, Observation, Selection};
use crate::signal::{Rows, Signal, Signals};
use crate::stage::StageReport;
use crate::tensor::Tensor;
use crate::tokens::TokenMap;
use crate::visibility::{Blocks, LayerKind, Visibility};

/// What a sequence brings to the next pass.
#[derive(Debug, Default)]
pub enum Pending {
    /// Nothing: it takes no part.
    #[default]
    Nothing,
    /// Its prompt, `[rows, hidden]`: the rows that the stages cut and that make its caches.
    Prompt(Tensor),
    /// Rows behind what its caches hold, for instance a later turn.
    Chunk(Chunk),
    /// The token that was chosen last.
    Token(u32),
}

/// Rows behind what the caches hold. None of them is ever cut.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chunk {
    /// What they are: text, or rows of `given`.
    pub slots: Vec<Slot>,
    /// Rows of the caller's, `[rows, hidden]`, for [`Slot::Given`].
    pub given: Array2<f32>,
    /// Which of its rows see one another, beside everything before them.
    pub blocks: Blocks,
}

impl From<Vec<u32>> for Chunk {
    /// Causal text.
    fn from(ids: Vec<u32>) -> Self {
        Self { slots: ids.into_iter().map(Slot::Text).collect(), ..Self::default() }
    }
}

/// Rows whose final hidden states a pass gives, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Outputs {
    /// The last one: it says the next token.
    #[default]
    Last,
    /// These: of a prompt as it entered the decoder, or of a chunk.
    Listed(Vec<u32>),
}

/// The rows of a prompt, as they stand in the decoder.
#[derive(Clone, Debug, Default)]
pub struct PromptRows {
    /// Ids of the unpruned prompt, placeholders included: what a repetition penalty looks at.
    pub ids: Vec<u32>,
    /// Which of the rows that entered the decoder each is, ascending.
    pub rows: Vec<u32>,
    /// What each stands for.
    pub origins: Vec<Origin>,
    /// Position ids of each.
    pub positions: Vec<Position>,
    /// Which of them see one another.
    pub visibility: Visibility,
    /// Position of the first generated token as things stand now.
    pub next: i32,
}

impl PromptRows {
    /// Text at positions 0, 1, 2 and so on, causal.
    pub fn text(ids: Vec<u32>) -> Self {
        let next = ids.len() as i32;
        Self {
            rows: (0..ids.len() as u32).collect(),
            origins: vec![Origin::Text; ids.len()],
            positions: (0..next).map(|p| [p; 3]).collect(),
            visibility: Visibility::default(),
            next,
            ids,
        }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Where the visual tokens stand, ascending.
    pub fn visual(&self) -> Vec<u32> {
        let is_visual = |r: &u32| matches!(self.origins[*r as usize], Origin::Visual(_));
        (0..self.len() as u32).filter(is_visual).collect()
    }

    /// Rows of the prompt that `rows` names. Rows that the caller gave are no instruction.
    pub(crate) fn queries(&self, rows: Rows) -> Vec<u32> {
        let last = self.len() as u32 - 1;
        let behind = self.visual().last().map_or(0, |v| v + 1);
        let is_text = |r: &u32| self.origins[*r as usize] == Origin::Text;
        let text = || (behind..=last).filter(is_text).collect::<Vec<u32>>();
        match rows {
            Rows::All => return (0..=last).collect(),
            Rows::Last => {}
            Rows::Instruction => {
                let text = text();
                if !text.is_empty() {
                    return text;
                }
            }
            Rows::InnerInstruction => {
                if let [_, inner @ .., _] = text().as_slice()
                    && !inner.is_empty()
                {
                    return inner.to_vec();
                }
            }
        }
        vec![last]
    }

    /// Rows that stay when of the visual ones `kept` do.
    fn kept(&self, kept: &[u32]) -> Vec<u32> {
        let mut stays: Vec<bool> =
            self.origins.iter().map(|o| !matches!(o, Origin::Visual(_))).collect();
        let visual = self.visual();
        for &k in kept {
            stays[visual[k as usize] as usize] = true;
        }
        (0..self.len() as u32).filter(|&r| stays[r as usize]).collect()
    }

    fn cut(&mut self, rows: &[u32]) {
        self.visibility = self.visibility.of_rows(rows);
        self.positions = rows.iter().map(|&r| self.positions[r as usize]).collect();
        self.origins = rows.iter().map(|&r| self.origins[r as usize]).collect();
        self.rows = rows.iter().map(|&r| self.rows[r as usize]).collect();
    }

    /// Positions count anew from `base`.
    pub(crate) fn renumber(&mut self, base: i32) {
        for (i, position) in self.positions.iter_mut().enumerate() {
            *position = [base + i as i32; 3];
        }
        self.next = base + self.positions.len() as i32;
    }
}

/// The visual tokens of a sequence, as they stand.
#[derive(Debug, Default)]
pub struct VisualTokens {
    /// Those that are there.
    pub tokens: TokenMap,
    /// Rows that early decoder layers add to theirs, `[visual tokens, hidden]` each.
    pub levels: Vec<Tensor>,
    /// How many entered the decoder.
    pub entered: usize,
    /// How many there were before any cut (anew after a stage that adds rows): length of vectors that
    /// are indexed by original index.
    pub indices: usize,
}

impl VisualTokens {
    /// Returns the tokens that were there.
    fn cut(&mut self, ops: &dyn Ops, selection: &Selection) -> TokenMap {
        for level in &mut self.levels {
            *level = cut_rows(ops, level, selection);
        }
        let after = self.tokens.compose(selection);
        std::mem::replace(&mut self.tokens, after)
    }
}

/// What became of a sequence.
#[derive(Debug, Default)]
pub struct Record {
    /// What each cut did.
    pub stages: Vec<StageReport>,
    /// Time spent in cuts.
    pub prune_time: Duration,
    /// Sums over generated rows of each observed layer, and how many rows.
    pub observed: Vec<(usize, Vec<f32>, usize)>,
}

/// One request on its way.
#[derive(Debug, Default)]
pub struct Sequence {
    /// What the next pass runs of it; [`crate::pass::pass`] leaves nothing.
    pub pending: Pending,
    /// What the next pass gives of it; the last row again after that.
    pub outputs: Outputs,
    /// Looked at between the layers of its prompt.
    pub control: Control,
    /// Its chain, planned for the model.
    pub chain: Arc<ResolvedChain>,
    /// What its pruners carry: one memory an entry of the chain.
    pub memories: Vec<Memory>,
    /// The rows of its prompt.
    pub prompt: PromptRows,
    /// Its visual tokens.
    pub visual: VisualTokens,
    /// Keys and values.
    pub cache: KvCache,
    /// Rows that may follow the prompt: cache room.
    pub room: usize,
    /// Signals read so far, those of the decoder aligned to the visual tokens.
    pub signals: Signals,
    /// What heads read of it: filed as its layers run.
    pub reads: Vec<AttentionRows>,
    /// What became of it.
    pub record: Record,
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
        match &self.pending {
            Pending::Nothing => 0,
            Pending::Prompt(_) => self.prompt.len(),
            Pending::Chunk(chunk) => chunk.slots.len(),
            Pending::Token(_) => 1,
        }
    }

    /// Whether what it pends can run: a prompt once, and what follows in caches that are there and
    /// have room.
    pub(crate) fn check_pending(&self, info: &DecoderInfo) -> Result<(), RunError> {
        let fail = |reason: String| Err(RunError::Prompt(reason));
        let caches = &self.cache.layers;
        if caches.len() != if self.reads_prompt() { 0 } else { info.layers } {
            return fail("a prompt runs once, and before what follows it".into());
        }
        let blocks_fit = match &self.pending {
            Pending::Prompt(_) => self.prompt.visibility.is_of(self.prompt.len()),
            Pending::Chunk(chunk) => chunk.blocks.is_of(chunk.slots.len()),
            Pending::Nothing | Pending::Token(_) => true,
        };
        if !blocks_fit {
            return fail("its blocks are not those of its rows".into());
        }
        match &self.pending {
            Pending::Nothing | Pending::Prompt(_) => {}
            Pending::Token(id) => check_slot(Slot::Text(*id), info.vocab)?,
            Pending::Chunk(chunk) => {
                chunk.slots.iter().try_for_each(|&slot| check_slot(slot, info.vocab))?;
                check_given(&chunk.slots, &chunk.given, info.hidden)?;
            }
        }
        let rows = self.pending_rows();
        match caches.iter().find(|c| c.len + rows > c.capacity) {
            Some(full) => Err(RunError::Context { need: full.len + rows, have: full.capacity }),
            None => Ok(()),
        }
    }

    /// Which keys its rows see in a layer.
    pub(crate) fn mask<'a>(
        &self,
        layer: usize,
        kind: LayerKind,
        room: &'a mut Vec<u32>,
    ) -> Mask<'a> {
        match &self.pending {
            Pending::Prompt(_) => self.prompt.visibility.of(kind).mask(0, room),
            Pending::Chunk(chunk) => chunk.blocks.mask(self.cache.layers[layer].len, room),
            Pending::Nothing | Pending::Token(_) => Mask::Causal,
        }
    }

    /// The rows it brings whose final hidden states are wanted.
    ///
    /// # Errors
    /// If one was cut, or never was.
    pub(crate) fn output_rows(&self) -> Result<Vec<u32>, RunError> {
        let rows = self.pending_rows();
        let Outputs::Listed(listed) = &self.outputs else { return Ok(vec![rows as u32 - 1]) };
        let place = |&row: &u32| {
            let at = match self.pending {
                Pending::Prompt(_) => self.prompt.rows.binary_search(&row).ok(),
                _ => Some(row as usize).filter(|&r| r < rows),
            };
            let gone = || RunError::Prompt(format!("row {row} is wanted and is not there"));
            at.map(|r| r as u32).ok_or_else(gone)
        };
        listed.iter().map(place).collect()
    }

    /// Says of the rows that ran through `layer` what they stand for.
    pub(crate) fn file_rows(&mut self, layer: usize) {
        let cache = &mut self.cache.layers[layer];
        match &self.pending {
            Pending::Nothing => {}
            Pending::Prompt(_) => cache.origins.extend(&self.prompt.origins),
            Pending::Chunk(chunk) => {
                cache.origins.extend(chunk.slots.iter().map(|&slot| Origin::from(slot)));
                cache.next += chunk.slots.len() as i32;
            }
            Pending::Token(_) => {
                cache.origins.push(Origin::Generated);
                cache.next += 1;
            }
        }
    }

    /// Restricts everything that is aligned to rows or to visual tokens to what a selection keeps.
    /// Returns the rows that stayed and the tokens that were there.
    pub(crate) fn cut(&mut self, ops: &dyn Ops, selection: &Selection) -> (Vec<u32>, TokenMap) {
        let rows = self.prompt.kept(&selection.kept);
        self.prompt.cut(&rows);
        let before = self.visual.cut(ops, selection);
        let index: Vec<usize> = selection.kept.iter().map(|&k| k as usize).collect();
        for values in self.signals.vectors.values_mut() {
            *values = index.iter().map(|&k| values[k]).collect();
        }
        let signals = &mut self.signals;
        for rows in signals.hidden.values_mut().chain(signals.embeddings.as_mut()) {
            *rows = rows.select(ndarray::Axis(0), &index);
        }
        (rows, before)
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
        for (layer, sums, rows) in &self.record.observed {
            let mean = sums.iter().map(|s| s / (*rows).max(1) as f32).collect();
            self.signals.vectors.insert(Signal::GeneratedRows { layer: *layer }, mean);
        }
        for (entry, reads) in &self.chain.observes {
            if let Some(stage) = self.chain.stages.iter().find(|s| s.entry == *entry) {
                let entered = self.visual.entered;
                let seen = Observation { reads, signals: &self.signals, entered };
                stage.pruner.observe(&seen, &mut self.memories[*entry]);
            }
        }
    }
}

/// Whether a slot may stand behind a prompt.
fn check_slot(slot: Slot, vocab: usize) -> Result<(), RunError> {
    match slot {
        Slot::Text(id) if id as usize >= vocab => {
            Err(RunError::Prompt(format!("token id {id} is outside the vocabulary of {vocab}")))
        }
        Slot::Visual(_) => Err(RunError::Prompt("visual tokens stand in a prompt alone".into())),
        Slot::Text(_) | Slot::Given(_) => Ok(()),
    }
}

/// Whether the caller gave the rows that slots name.
///
/// # Errors
/// Says which is missing, or which width they have.
pub(crate) fn check_given(
    slots: &[Slot],
    given: &Array2<f32>,
    hidden: usize,
) -> Result<(), RunError> {
    let Some(last) = slots.iter().filter_map(Slot::given).max() else { return Ok(()) };
    let (rows, width) = given.dim();
    if (last as usize) < rows && width == hidden {
        return Ok(());
    }
    Err(RunError::Shape(format!(
        "the prompt names given row {last}, {rows} rows of width {width} were given; the decoder is \
         {hidden} wide"
    )))
}

/// The rows of all sequences, one below the other, as they enter layer 0. Those of prompts are moved
/// out of their sequences.
pub(crate) fn pending(
    family: &dyn Family,
    ops: &dyn Ops,
    sequences: &mut [&mut Sequence],
) -> Result<Tensor, RunError> {
    if let [only] = sequences
        && let Pending::Prompt(rows) = &mut only.pending
    {
        return Ok(std::mem::take(rows));
    }
    let all = sequences.iter().map(|s| s.pending_rows()).sum();
    let mut rows = Joined { family, ops, x: None, all, at: 0, text: Vec::new() };
    for sequence in sequences {
        match &mut sequence.pending {
            Pending::Nothing => {}
            Pending::Prompt(prompt) => rows.push(&std::mem::take(prompt))?,
            Pending::Token(id) => rows.text.push(*id),
            Pending::Chunk(chunk) => rows.push_chunk(chunk)?,
        }
    }
    rows.finish()
}

/// Rows on their way into one tensor, from its first to its last.
struct Joined<'a> {
    family: &'a dyn Family,
    ops: &'a dyn Ops,
    /// `[all, hidden]`, once there is anything but text.
    x: Option<Tensor>,
    all: usize,
    /// Rows that are in place.
    at: usize,
    /// Text behind them: that of several sequences in a row is embedded at once.
    text: Vec<u32>,
}

impl Joined<'_> {
    fn push(&mut self, rows: &Tensor) -> Result<(), RunError> {
        let hidden = self.family.info().decoder.hidden;
        let mut x = match self.x.take() {
            Some(x) => x,
            None => self.ops.zeros(self.all, hidden)?,
        };
        if !self.text.is_empty() {
            self.ops.write_rows(&mut x, self.at, &self.family.decoder().embed(&self.text)?);
            self.at += std::mem::take(&mut self.text).len();
        }
        self.ops.write_rows(&mut x, self.at, rows);
        self.at += rows.rows();
        self.x = Some(x);
        Ok(())
    }

    fn push_chunk(&mut self, chunk: &Chunk) -> Result<(), RunError> {
        for run in chunk.slots.chunk_by(|a, b| a.given().is_some() == b.given().is_some()) {
            if run[0].given().is_some() {
                self.push(&given_rows(self.ops, run, &chunk.given)?)?;
            } else {
                self.text.extend(run.iter().filter_map(Slot::text));
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Tensor, RunError> {
        match self.x.take() {
            None => self.family.decoder().embed(&self.text),
            Some(x) if self.text.is_empty() => Ok(x),
            Some(mut x) => {
                let rows = self.family.decoder().embed(&self.text)?;
                self.ops.write_rows(&mut x, self.at, &rows);
                Ok(x)
            }
        }
    }
}

/// The given rows that slots name, in their order.
pub(crate) fn given_rows(
    ops: &dyn Ops,
    slots: &[Slot],
    given: &Array2<f32>,
) -> Result<Tensor, RunError> {
    let named: Vec<usize> = slots.iter().filter_map(Slot::given).map(|i| i as usize).collect();
    let rows = given.select(ndarray::Axis(0), &named);
    let (count, width) = rows.dim();
    ops.upload(count, width, &rows.into_iter().collect::<Vec<f32>>())
}
