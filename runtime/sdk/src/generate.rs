//! The token loop: sequences that were prefilled, one token a step each, until all have ended.
//!
//! Invariants
//! - A sequence that ends leaves the batch at once; the others' tokens do not change by it.
//! - Text is emitted only when it can no longer become part of a stop text, and never a half
//!   UTF-8 character.
//! - The first token comes from the prompt's last row; `decode` time counts from there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use secateur_core::batch::Sequence;
use secateur_core::decode::{Allowed, AllowedTokens, FinishReason, Sampler, decode_step};
use secateur_core::error::RunError;
use secateur_core::model::Control;
use secateur_core::tensor::Tensor;
use secateur_models::text::DecodeStream;

use crate::request::Request;
use crate::vlm::Model;

/// One sequence in the token loop.
pub(crate) struct Generation {
    pub sequence: Sequence,
    pub control: Control,
    sampler: Sampler,
    allowed: Option<Arc<dyn AllowedTokens>>,
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
    pub decode_time: Duration,
}

impl Generation {
    pub(crate) fn new(model: &Model, request: &Request, sequence: Sequence) -> Self {
        let room = sequence.room;
        Self {
            control: request.control.clone(),
            sampler: Sampler::new(request.sampling.clone(), &sequence.prompt_ids),
            allowed: request.allowed.clone(),
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

/// Chooses the first token of each generation from the prompt's last rows, `[alive, hidden]`.
pub(crate) fn first_tokens(
    model: &Model,
    generations: &mut [&mut Generation],
    hidden: &Tensor,
) -> Result<(), RunError> {
    let logits = model.family.decoder().logits(hidden)?;
    let values = model.ops.download(&logits)?;
    for (generation, row) in generations.iter_mut().zip(values.chunks(logits.cols())) {
        if generation.is_running() {
            generation.accept(model, row);
        }
    }
    Ok(())
}

/// Feeds the last token of every running generation and chooses the next one.
pub(crate) fn step(model: &Model, generations: &mut [&mut Generation]) -> Result<(), RunError> {
    for generation in generations.iter_mut() {
        if generation.is_running()
            && let Err(error) = generation.control.check()
        {
            generation.failed = Some(error);
        }
    }
    let mut running: Vec<&mut &mut Generation> =
        generations.iter_mut().filter(|g| g.is_running()).collect();
    if running.is_empty() {
        return Ok(());
    }
    let start = Instant::now();
    let tokens: Vec<u32> =
        running.iter().map(|g| *g.ids.last().expect("the first token was chosen")).collect();
    let steps: Vec<usize> = running.iter().map(|g| g.ids.len() - 1).collect();
    let mut sequences: Vec<&mut Sequence> = running.iter_mut().map(|g| &mut g.sequence).collect();
    let mut outcome = Ok(Vec::new());
    let mut width = 0;
    model.ops.scope(&mut || {
        outcome = (|| {
            let hidden = decode_step(&*model.family, &*model.ops, &mut sequences, &tokens, &steps)?;
            let logits = model.family.decoder().logits(&hidden)?;
            width = logits.cols();
            model.ops.download(&logits)
        })();
    });
    let values = outcome?;
    drop(sequences);
    let share = start.elapsed() / running.len() as u32;
    for (generation, row) in running.iter_mut().zip(values.chunks(width)) {
        generation.decode_time += share;
        generation.accept(model, row);
    }
    Ok(())
}
