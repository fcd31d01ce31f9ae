//! Decoding: one token a step for every sequence of a batch, sampling, stop rules.
//!
//! Invariants
//! - A sequence's position counter is its own in every layer: after a renumbering cut the layers
//!   behind it go on from a shorter length.
//! - With temperature 0 the token is the one of the largest logit, the lower id on ties.
//! - A seeded run gives the same tokens whatever else is in the batch.

use crate::batch::Sequence;
use crate::cache::Position;
use crate::error::RunError;
use crate::model::{Family, LayerPass, LayerSequence};
use crate::ops::{Mask, Queries, ScoreRequest};
use crate::tensor::Tensor;

/// Feeds one token to each sequence and returns the final hidden states of those rows,
/// `[sequences, hidden]`. `step` is 0 for the first generated token that is fed.
///
/// # Errors
/// The device's, or a full cache.
pub fn decode_step(
    family: &dyn Family,
    sequences: &mut [&mut Sequence],
    tokens: &[u32],
    steps: &[usize],
) -> Result<Tensor, RunError> {
    let decoder = family.decoder();
    let mut x = decoder.embed(tokens)?;
    let mut rope = None;
    let mut last_positions: Vec<Position> = Vec::new();
    let last_row = [ScoreRequest { queries: Queries::Listed(vec![0]), mean: true }];
    for layer in 0..family.info().decoder.layers {
        let positions: Vec<Position> = sequences
            .iter()
            .zip(steps)
            .map(|(s, &step)| [s.next_position[layer] + step as i32; 3])
            .collect();
        if positions != last_positions {
            rope = None;
            last_positions.clone_from(&positions);
        }
        let observed: Vec<bool> =
            sequences.iter().map(|s| s.observed_layers().any(|l| l == layer)).collect();
        let mut pass = LayerPass { positions: &positions, rope: &mut rope, sequences: Vec::new() };
        for (i, sequence) in sequences.iter_mut().enumerate() {
            let cache = &mut sequence.cache.layers[layer];
            if cache.len >= cache.capacity {
                return Err(RunError::Context { need: cache.len + 1, have: cache.capacity });
            }
            pass.sequences.push(LayerSequence {
                rows: i..i + 1,
                cache,
                mask: Mask::Causal,
                scores: if observed[i] { &last_row } else { &[] },
                score_out: Vec::new(),
                wants_transitions: false,
                transitions: None,
                keys: None,
            });
        }
        decoder.layer(layer, &mut x, &mut pass)?;
        let rows: Vec<Option<Vec<f32>>> =
            pass.sequences.into_iter().map(|s| s.score_out.into_iter().next()).collect();
        for (sequence, row) in sequences.iter_mut().zip(rows) {
            if let Some(row) = row {
                sequence.add_generated_row(layer, &row);
            }
        }
    }
    decoder.final_hidden(&x)
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// An end token, or a stop text.
    Stop,
    /// The number of tokens asked for, or the context is full.
    Length,
}

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Sampling {
    /// 0: the largest logit. Else logits are divided by it.
    pub temperature: f32,
    /// Only the most probable tokens that together have this share; 1: all.
    pub top_p: f32,
    /// Only that many most probable tokens; 0: all.
    pub top_k: usize,
    /// Only tokens with at least this share of the best one's probability; 0: all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or answer; 1: off.
    pub repetition_penalty: f32,
    /// Start of the random sequence.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

/// Chooses tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    state: u64,
    seen: Vec<u32>,
}

impl Sampler {
    /// A sampler whose penalty looks at `prompt` (the unpruned ids) and at what it chose.
    pub fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        let state = sampling.seed;
        let mut seen = prompt.to_vec();
        seen.sort_unstable();
        seen.dedup();
        Self { sampling, state, seen }
    }

    /// The next token for logits `[vocab]`.
    ///
    /// # Errors
    /// [`RunError::NonFinite`] if no logit is a number.
    pub fn next(&mut self, logits: &[f32]) -> Result<u32, RunError> {
        let mut logits = logits.to_vec();
        let penalty = self.sampling.repetition_penalty;
        if penalty != 1.0 {
            for &id in &self.seen {
                if let Some(l) = logits.get_mut(id as usize) {
                    *l = if *l > 0.0 { *l / penalty } else { *l * penalty };
                }
            }
        }
        let token =
            if self.sampling.temperature <= 0.0 { argmax(&logits)? } else { self.draw(&logits)? };
        if let Err(at) = self.seen.binary_search(&token) {
            self.seen.insert(at, token);
        }
        Ok(token)
    }

    fn draw(&mut self, logits: &[f32]) -> Result<u32, RunError> {
        let best = logits[argmax(logits)? as usize];
        let mut kept: Vec<(u32, f64)> = logits
            .iter()
            .enumerate()
            .filter(|(_, l)| l.is_finite())
            .map(|(i, &l)| {
                (i as u32, (f64::from(l - best) / f64::from(self.sampling.temperature)).exp())
            })
            .collect();
        kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if self.sampling.top_k > 0 {
            kept.truncate(self.sampling.top_k);
        }
        if self.sampling.min_p > 0.0 {
            let bar = kept[0].1 * f64::from(self.sampling.min_p);
            kept.retain(|&(_, p)| p >= bar);
        }
        if self.sampling.top_p < 1.0 {
            let total: f64 = kept.iter().map(|k| k.1).sum();
            let mut sum = 0.0;
            let cut = kept.iter().position(|&(_, p)| {
                sum += p;
                sum >= total * f64::from(self.sampling.top_p)
            });
            kept.truncate(cut.map_or(kept.len(), |c| c + 1));
        }
        let total: f64 = kept.iter().map(|k| k.1).sum();
        let mut left = self.uniform() * total;
        for &(token, p) in &kept {
            left -= p;
            if left < 0.0 {
                return Ok(token);
            }
        }
        Ok(kept[kept.len() - 1].0)
    }

    /// A number in [0, 1) from SplitMix64.
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn argmax(logits: &[f32]) -> Result<u32, RunError> {
    let mut best: Option<(usize, f32)> = None;
    for (i, &l) in logits.iter().enumerate() {
        if !l.is_nan() && best.is_none_or(|(_, b)| l > b) {
            best = Some((i, l));
        }
    }
    match best {
        Some((i, l)) if l.is_finite() => Ok(i as u32),
        _ => Err(RunError::NonFinite { signal: "logits".into(), layer: 0 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_lower_id_on_ties() {
        let mut sampler = Sampler::new(Sampling::default(), &[]);
        assert_eq!(sampler.next(&[0.0, 3.0, 3.0]).unwrap(), 1);
    }

    #[test]
    fn a_penalty_turns_away_from_what_was_said() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling, &[1]);
        assert_eq!(sampler.next(&[1.9, 3.0]).unwrap(), 0);
    }

    #[test]
    fn filters_leave_only_what_they_say() {
        let logits = [5.0, 4.0, 0.0, -3.0];
        for sampling in [
            Sampling { temperature: 1.0, top_k: 2, ..Sampling::default() },
            Sampling { temperature: 1.0, top_p: 0.9, ..Sampling::default() },
            Sampling { temperature: 1.0, min_p: 0.3, ..Sampling::default() },
        ] {
            let mut sampler = Sampler::new(sampling.clone(), &[]);
            let drawn: Vec<u32> = (0..200).map(|_| sampler.next(&logits).unwrap()).collect();
            assert!(drawn.iter().all(|&t| t < 2), "{sampling:?}");
            assert!(drawn.contains(&1), "{sampling:?}");
        }
    }

    #[test]
    fn a_seed_repeats_itself() {
        let draw = |seed| {
            let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
            let mut sampler = Sampler::new(sampling, &[]);
            (0..20).map(|_| sampler.next(&[0.0; 50]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn logits_that_are_not_numbers_are_an_error() {
        let mut sampler = Sampler::new(Sampling::default(), &[]);
        assert!(sampler.next(&[f32::NAN, f32::NAN]).is_err());
    }
}
