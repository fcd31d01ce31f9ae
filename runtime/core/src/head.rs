//! Heads: what reads a finished run and makes boxes, masks or actions of it, in the words in which
//! pruners read: attention of decoder layers, reduced over attention heads.
//!
//! Invariants
//! - Reads are declared before the run; the rows come from the pass itself, beside the attention, and
//!   change no bit of the answer. Readers that want the same rows share them.
//! - Values stand at the *original* index of their visual token. A token that had been cut before the
//!   layer ran is unknown, which is not 0.
//! - A head that cannot read an answer costs its own output, never the answer.

use std::fmt;

use ndarray::Array2;

use crate::cache::Origin;
use crate::error::RunError;
use crate::model::{DecoderInfo, ModelInfo};
use crate::ops::Reduction;
use crate::signal::Rows;
use crate::tokens::TokenMap;

/// Whose attention is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Queried {
    /// Rows of the prompt, their mean.
    Prompt(Rows),
    /// The rows that produced the tokens of the answer, each apart: row `i` produced token `i`.
    Generated,
}

/// Post-softmax attention of a decoder layer to the visual tokens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AttentionRead {
    /// Decoder layer, 0-based.
    pub layer: usize,
    /// Its queries.
    pub queries: Queried,
    /// What becomes of the attention heads.
    pub heads: Reduction,
}

impl AttentionRead {
    /// Whether a decoder has such rows.
    ///
    /// # Errors
    /// The layer or attention head that it lacks.
    pub fn check(&self, decoder: &DecoderInfo) -> Result<(), String> {
        let (layers, heads) = (decoder.layers, decoder.attn_heads);
        if self.layer >= layers {
            return Err(format!(
                "layer {} is read; the decoder has layers 0 to {}",
                self.layer,
                layers - 1
            ));
        }
        let Reduction::Listed(listed) = &self.heads else { return Ok(()) };
        match listed.iter().find(|&&head| head as usize >= heads) {
            Some(head) => {
                Err(format!("attention head {head} is read; the decoder has {heads} a layer"))
            }
            None => Ok(()),
        }
    }
}

/// What a read gave.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionRows {
    /// What was read.
    pub read: AttentionRead,
    /// `[queries * reduction's rows, original visual tokens]`, not renormalised: 0 where a token is
    /// not known.
    pub rows: Array2<f32>,
    /// `[original visual tokens]`: whether the token was there when the layer ran.
    pub known: Vec<bool>,
    /// Of each row what falls on everything else: text, and rows that the caller gave.
    pub elsewhere: Vec<f32>,
}

impl AttentionRows {
    /// A read of a request with so many visual tokens, before anything ran.
    pub fn new(read: AttentionRead, visual: usize) -> Self {
        let (rows, known) = (Array2::zeros((0, visual)), vec![false; visual]);
        Self { read, rows, known, elsewhere: Vec::new() }
    }

    /// Files rows over the keys of a cache, `[rows, keys]`.
    pub(crate) fn file(&mut self, origins: &[Origin], values: &[f32]) {
        for row in values.chunks_exact(origins.len().max(1)) {
            let mut placed = vec![0.0; self.known.len()];
            let mut elsewhere = 0.0;
            for (origin, value) in origins.iter().zip(row) {
                match *origin {
                    Origin::Visual(index) => {
                        placed[index as usize] = *value;
                        self.known[index as usize] = true;
                    }
                    Origin::Text | Origin::Given(_) | Origin::Generated => elsewhere += value,
                }
            }
            self.elsewhere.push(elsewhere);
            self.rows.push_row(ndarray::ArrayView1::from(&placed)).expect("as wide as all others");
        }
    }
}

/// What a head sees of a run that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Finished<'a> {
    /// The answer.
    pub text: &'a str,
    /// Its token ids, an end token included.
    pub ids: &'a [u32],
    /// Probability of each token among all of the vocabulary, before temperature and penalties.
    pub probabilities: &'a [f32],
    /// The visual tokens before any cut, with the place of each in its picture.
    pub tokens: &'a TokenMap,
    /// Width and height of each picture, pixels.
    pub sizes: &'a [[u32; 2]],
    /// What was read, in the order of [`Head::reads`].
    pub reads: &'a [AttentionRows],
}

/// Turns a finished run into boxes, masks or actions.
pub trait Head: Send + Sync + fmt::Debug {
    /// Name in answers and errors.
    fn name(&self) -> &str;

    /// What it reads of a run of that model.
    ///
    /// # Errors
    /// Why it cannot work with the model.
    fn reads(&self, model: &ModelInfo) -> Result<Vec<AttentionRead>, String>;

    /// Its result.
    ///
    /// # Errors
    /// If the answer is not of the head's form.
    fn read(&self, run: &Finished<'_>) -> Result<serde_json::Value, String>;
}

/// What a head made of an answer.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct HeadOutput {
    /// Name of the head.
    pub head: String,
    /// Its result; null if there is none.
    pub output: serde_json::Value,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The reads of some heads, one head after the other.
///
/// # Errors
/// The head that cannot work with the model, and why.
pub fn reads_of<'h>(
    heads: impl IntoIterator<Item = &'h dyn Head>,
    model: &ModelInfo,
) -> Result<Vec<Vec<AttentionRead>>, RunError> {
    let one = |head: &dyn Head| {
        let reads = head.reads(model)?;
        reads.iter().try_for_each(|read| read.check(&model.decoder))?;
        Ok(reads)
    };
    let named = |head: &'h dyn Head| {
        one(head).map_err(|reason| RunError::Head { head: head.name().to_owned(), reason })
    };
    heads.into_iter().map(named).collect()
}
