//! The token loop: one pass over all generations at hand, of which those that are new read their
//! prompt and the others feed their last token; each chooses its next token.
//!
//! Invariants
//! - A generation that has ended takes no further part; the others' tokens do not change by it.
//! - Text is emitted only when it can no longer become part of a stop text, and never a half
//!   UTF-8 character.
//! - The first token comes from the prompt's last row; `decode` time counts from there. Layers of a
//!   pass are shared out by rows, cuts belong to whose rows they cut.

use std::sync::Arc;
use std::time::{Duration, Instant};

use secateur_core::decode::{Allowed, AllowedTokens, FinishReason, Sampler};
use secateur_core::error::RunError;
use secateur_core::head::Head;
use secateur_core::model::Control;
use secateur_core::pass::pass;
use secateur_core::sequence::{Pending, Sequence};
use secateur_core::tensor::Tensor;
use secateur_core::trace::Trace;
use secateur_models::text::DecodeStream;

use crate::request::Request;
use crate::vlm::Model;

/// One sequence in the token loop.
pub(crate) struct Generation {
    pub sequence: Sequence,
    pub control: Control,
    sampler: Sampler,
    allowed: Option<Arc<dyn AllowedTokens>>,
    pub heads: Vec<Arc<dyn Head>>,
    /// Probability of each token; kept for heads.
    pub probabilities: Vec<f32>,
    stream: Option<DecodeStream>,
    pub ids: Vec<u32>,
    /// Logits that chose each token, if they are asked for.
    pub logits: Option<Vec<Vec<f32>>>,
    pub text: String,
    /// Bytes of `text` that were handed out.
    emitted: usize,
    stop: Vec<String>,
    ignore_eos: bool,
    max_tokens: usize,
    pub finish: Option<FinishReason>,
    pub failed: Option<RunError>,
    /// Layers over the prompt.
    pub prefill_time: Duration,
    pub decode_time: Duration,
}

impl Generation {
    pub(crate) fn new(model: &Model, request: &Request, mut sequence: Sequence) -> Self {
        sequence.control = request.control.clone();
        let room = sequence.room;
        Self {
            control: request.control.clone(),
            sampler: Sampler::new(request.sampling.clone(), &sequence.prompt.ids),
            allowed: request.allowed.clone(),
            heads: request.heads.clone(),
            probabilities: Vec::new(),
            stream: Some(model.text.tokenizer.stream(true)),
            ids: Vec::new(),
            logits: request.detail.then(Vec::new),
            text: String::new(),
            emitted: 0,
            stop: request.stop.iter().filter(|s| !s.is_empty()).cloned().collect(),
            ignore_eos: request.ignore_eos,
            max_tokens: request.max_tokens.min(room),
            finish: if request.max_tokens == 0 { Some(FinishReason::Length) } else { None },
            failed: None,
            prefill_time: Duration::ZERO,
            decode_time: Duration::ZERO,
            sequence,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.finish.is_none() && self.failed.is_none()
    }

    /// Chooses the next token from logits `[vocab]` and decides whether it is the last.
    pub(crate) fn accept(&mut self, model: &Model, logits: &[f32]) {
        let allowed = self.allowed.as_ref().map_or(Allowed::All, |rule| rule.after(&self.ids));
        let id = match self.sampler.next_of(logits, &allowed) {
            Ok(id) => id,
            Err(error) => {
                self.failed = Some(error);
                return;
            }
        };
        self.ids.push(id);
        if !self.heads.is_empty() {
            self.probabilities.push(probability(logits, id));
        }
        if let Some(kept) = &mut self.logits {
            kept.push(logits.to_vec());
        }
        if !self.ignore_eos && model.text.generation.eos.contains(&id) {
            self.finish = Some(FinishReason::Stop);
        } else if let Some(stream) = &mut self.stream {
            match stream.step(id) {
                Ok(piece) => self.text.push_str(&piece.unwrap_or_default()),
                Err(error) => self.failed = Some(error),
            }
            if let Some(at) = self.stop.iter().filter_map(|s| self.text.find(s.as_str())).min() {
                self.text.truncate(at);
                self.finish = Some(FinishReason::Stop);
                self.stream = None;
            } else if self.ids.len() >= self.max_tokens {
                self.finish = Some(FinishReason::Length);
            }
        }
        if self.finish.is_some()
            && let Some(stream) = self.stream.take()
        {
            match stream.finish() {
                Ok(rest) => self.text.push_str(&rest),
                Err(error) => self.failed = Some(error),
            }
        }
    }

    /// Text that is new and can no longer become part of a stop text.
    pub(crate) fn take_piece(&mut self) -> Option<String> {
        let mut end = self.text.len();
        if self.is_running() {
            let held = self
                .stop
                .iter()
                .map(|s| {
                    (1..s.len())
                        .rev()
                        .find(|&n| s.is_char_boundary(n) && self.text.ends_with(&s[..n]))
                        .unwrap_or(0)
                })
                .max()
                .unwrap_or(0);
            end -= held;
        }
        if end <= self.emitted {
            return None;
        }
        let piece = self.text[self.emitted..end].to_owned();
        self.emitted = end;
        Some(piece)
    }
}

/// One pass: generations that are new read their prompt, those that run feed their last token, and
/// each chooses its next one. Returns the final hidden states of the rows that chose,
/// `[those that took part and did not fail, hidden]`.
///
/// # Errors
/// What concerns the whole pass: the device.
pub(crate) fn step(
    model: &Model,
    generations: &mut [&mut Generation],
    mut trace: Option<&mut dyn Trace>,
) -> Result<Tensor, RunError> {
    for generation in generations.iter_mut() {
        // The pass looks at the control of those that read their prompt.
        if generation.sequence.reads_prompt() || !generation.is_running() {
            continue;
        }
        generation.failed = generation.control.check().err();
        if let (None, Some(&id)) = (&generation.failed, generation.ids.last()) {
            generation.sequence.pending = Pending::Token(id);
        }
    }
    let mut taking: Vec<&mut &mut Generation> = generations
        .iter_mut()
        .filter(|g| g.failed.is_none() && g.sequence.pending_rows() > 0)
        .collect();
    if taking.is_empty() {
        return Ok(Tensor::default());
    }
    let start = Instant::now();
    let before: Vec<Share> = taking.iter().map(|g| Share::before(&g.sequence)).collect();
    let is_wanted = taking.iter().any(|g| g.is_running());
    let mut sequences: Vec<&mut Sequence> = taking.iter_mut().map(|g| &mut g.sequence).collect();
    let mut outcome: Result<(Tensor, Vec<f32>, usize), RunError> =
        Err(RunError::Cancelled("the pass did not run"));
    let mut layers = Duration::ZERO;
    model.ops.scope(&mut || {
        outcome = (|| {
            let hidden = pass(&*model.family, &*model.ops, &mut sequences, trace.take())?;
            layers = start.elapsed();
            if !is_wanted || hidden.rows() == 0 {
                return Ok((hidden, Vec::new(), 1));
            }
            let logits = model.family.decoder().logits(&hidden)?;
            let values = model.ops.download(&logits)?;
            Ok((hidden, values, logits.cols()))
        })();
    });
    let (hidden, values, width) = outcome?;
    drop(sequences);
    share_out(&mut taking, &before, layers, start.elapsed().saturating_sub(layers));
    let mut rows = values.chunks(width.max(1));
    for generation in taking {
        generation.failed = generation.sequence.failed.take();
        if generation.failed.is_some() {
            continue;
        }
        if let Some(row) = rows.next()
            && generation.is_running()
        {
            generation.accept(model, row);
        }
    }
    Ok(hidden)
}

/// Softmax of `logits` at `id`.
fn probability(logits: &[f32], id: u32) -> f32 {
    let of = |logit: f32| f64::from(logit);
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| (of(l) - of(most)).exp()).sum();
    logits.get(id as usize).map_or(0.0, |&l| ((of(l) - of(most)).exp() / sum) as f32)
}

/// What a generation brings to a pass.
struct Share {
    rows: usize,
    is_prompt: bool,
    /// Time that its cuts took before.
    cuts: Duration,
}

impl Share {
    fn before(sequence: &Sequence) -> Self {
        Self {
            rows: sequence.pending_rows(),
            // A later turn reads its text as a chunk.
            is_prompt: !matches!(sequence.pending, Pending::Token(_)),
            cuts: sequence.record.prune_time,
        }
    }
}

/// Shares out the time of a pass: its layers by rows, its head to those that fed a token.
fn share_out(
    generations: &mut [&mut &mut Generation],
    before: &[Share],
    layers: Duration,
    head: Duration,
) {
    let pairs = generations.iter().zip(before);
    let cuts: Duration =
        pairs.map(|(g, share)| g.sequence.record.prune_time.saturating_sub(share.cuts)).sum();
    let layers = layers.saturating_sub(cuts);
    let rows: usize = before.iter().map(|share| share.rows).sum();
    let tokens = before.iter().filter(|share| !share.is_prompt).count();
    for (generation, share) in generations.iter_mut().zip(before) {
        let own = layers.mul_f64(share.rows as f64 / rows.max(1) as f64);
        if share.is_prompt {
            generation.prefill_time += own;
        } else {
            generation.decode_time += own + head / tokens.max(1) as u32;
        }
    }
}
