//! The next turn of a conversation: its prompt begins with what the caches of the last turn hold, so
//! the pass reads what is new alone.
//!
//! Allowed where the rows that are held are those that a pass over the whole prompt would make:
//! - chain and pictures are the same, and the text before and between the pictures;
//! - no stage reads the text or watches the answer, and no pruner carries state: else the cuts of the
//!   new prompt would be others;
//! - what was read does not see what follows.
//!
//! Invariants
//! - What is forgotten of the caches is text behind the last visual token, the same rows in every
//!   layer; the rest is read at the positions at which the whole prompt would have it.
//! - In f32 the answer has the bits of a run that reads everything (`tests/tests/reuse.rs`): the rows
//!   of an answer, which were made one by one, are read again, and no chunk is so short that its
//!   attention sums in another order ([`FEW_QUERIES`]). In bf16 they are held, equal within rounding.

use secateur_core::chain::ResolvedChain;
use secateur_core::ops::{FEW_QUERIES, Precision};
use secateur_core::prune::Memory;
use secateur_core::sequence::{Chunk, Pending, Sequence};

use crate::pipeline::{Account, Prepared};
use crate::reuse::{Encoding, Key, Reading, Reuse};
use crate::vlm::Model;

/// What a turn left.
#[derive(Debug)]
pub(crate) struct Held {
    sequence: Sequence,
    /// The prompt without any cut, and what of the answer was fed: what the caches hold, as ids.
    ids: Vec<u32>,
    /// How many of them were read at once with many others.
    exact: usize,
    pictures: Vec<Key>,
    /// What the tower took for the pictures, milliseconds.
    tower_ms: f64,
}

impl Held {
    /// What a generation that runs no further leaves; `None` if its caches are not whole.
    pub(crate) fn of(
        sequence: Sequence,
        answer: &[u32],
        account: &Account,
        layers: usize,
    ) -> Option<Self> {
        let is_whole = matches!(sequence.pending, Pending::Nothing)
            && sequence.failed.is_none()
            && sequence.cache.layers.len() == layers;
        let mut ids = sequence.prompt.ids.clone();
        let generated = answer.len().saturating_sub(1);
        let shortest = sequence.cache.layers.iter().map(|l| l.len).min().unwrap_or(0);
        // What a chain cut down to a few rows was read as a few.
        let is_exact = shortest > generated + FEW_QUERIES;
        let exact = if is_exact { ids.len() } else { 0 };
        // The last token was chosen and not fed.
        ids.extend(answer.iter().take(generated));
        let tower_ms = match account.reuse.encoded {
            Encoding::Reused => account.reuse.saved_ms,
            _ => account.times.encode,
        };
        let pictures = account.keys.clone();
        is_whole.then_some(Self { sequence, ids, exact, pictures, tower_ms })
    }

    /// Whether a prompt goes on from here: how many of its ids are held, or why none are.
    pub(crate) fn covers(&self, next: &Prepared, model: &Model) -> Result<usize, Reading> {
        if self.sequence.chain.spec != next.chain.spec {
            return Err(Reading::OtherChain);
        }
        if next.reads.iter().any(|reads| !reads.is_empty()) {
            return Err(Reading::ForHeads);
        }
        may_continue(&next.chain, &next.memories)?;
        if self.pictures != next.keys {
            return Err(Reading::OtherPictures);
        }
        let ids = &next.prompt.ids;
        let same = self.ids.iter().zip(ids).take_while(|(a, b)| a == b).count();
        let most = match model.ops.precision() {
            Precision::F32 => self.exact.min(ids.len().saturating_sub(FEW_QUERIES + 1)),
            // The last row is run in any case: it says the first token.
            Precision::Bf16 => ids.len() - 1,
        };
        let held = same.min(most);
        let behind = next.prompt.behind_visual();
        if !model.family.visibility(&next.prompt).splits_at(held) {
            return Err(Reading::SeesItself);
        }
        let rest = &next.positions.prompt[held..];
        let is_a_line = rest.iter().zip(rest[0][0]..).all(|(position, p)| *position == [p; 3]);
        if held == 0 || held < behind || !is_a_line { Err(Reading::OtherText) } else { Ok(held) }
    }

    /// The prompt's sequence with `held` of its ids in its caches ([`Held::covers`]) and the rest
    /// pending.
    pub(crate) fn resume(self, next: Prepared, held: usize) -> (Sequence, Account) {
        let gone = self.ids.len() - held;
        let mut sequence = self.sequence;
        let rest = Chunk { slots: next.prompt.slots[held..].to_vec(), ..Chunk::default() };
        for cache in &mut sequence.cache.layers {
            cache.truncate(cache.len - gone);
            cache.reserve(cache.len + rest.slots.len() + next.room);
        }
        for stage in &mut sequence.record.stages {
            stage.ms = 0.0;
        }
        let reuse = Reuse {
            encoded: if next.keys.is_empty() { Encoding::None } else { Encoding::Reused },
            clips: next.keys.len(),
            saved_ms: self.tower_ms,
            read: Reading::Continued,
            prompt_tokens: held,
        };
        let account = Account::of(&next, reuse);
        sequence.pending = Pending::Chunk(rest);
        sequence.prompt.ids = next.prompt.ids;
        sequence.room = next.room;
        sequence.reads.clear();
        sequence.memories = next.memories;
        sequence.record.prune_time = std::time::Duration::ZERO;
        (sequence, account)
    }
}

/// Whether the cuts of one prompt are those of another that begins with the same pictures.
fn may_continue(chain: &ResolvedChain, memories: &[Memory]) -> Result<(), Reading> {
    if chain.signals().iter().any(|signal| signal.depends_on_text()) || !chain.observes.is_empty() {
        return Err(Reading::ReadsText);
    }
    if memories.iter().any(Memory::is_carried) {
        return Err(Reading::CarriesState);
    }
    Ok(())
}
