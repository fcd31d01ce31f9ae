//! Decoding: one token a step for every sequence of a batch.
//!
//! Invariants
//! - A sequence's position counter is its own in every layer: after a renumbering cut the layers
//!   behind it go on from a shorter length.

use crate::batch::Sequence;
use crate::cache::{Origin, Position};
use crate::error::RunError;
use crate::model::{Family, LayerPass, LayerSequence};
use crate::ops::{Mask, Ops, Queries, ScoreRequest};
use crate::tensor::Tensor;

pub use crate::sample::{Allowed, AllowedTokens, Sampler, Sampling};

/// Feeds one token to each sequence and returns the final hidden states of those rows,
/// `[sequences, hidden]`. `step` is 0 for the first generated token that is fed.
///
/// # Errors
/// The device's, or a full cache.
pub fn decode_step(
    family: &dyn Family,
    ops: &dyn Ops,
    sequences: &mut [&mut Sequence],
    tokens: &[u32],
    steps: &[usize],
) -> Result<Tensor, RunError> {
    let decoder = family.decoder();
    let mut x = decoder.embed(tokens)?;
    let mut rotations = Vec::new();
    // Attention rows that pruners want to see: sequence, layer, `[1, keys]`.
    let mut seen: Vec<(usize, usize, Tensor)> = Vec::new();
    let mut last_positions: Vec<Position> = Vec::new();
    let last_row = [ScoreRequest { queries: Queries::Listed(vec![0]), mean: true }];
    for layer in 0..family.info().decoder.layers {
        let positions: Vec<Position> = sequences
            .iter()
            .zip(steps)
            .map(|(s, &step)| [s.next_position[layer] + step as i32; 3])
            .collect();
        if positions != last_positions {
            let of = |f| ops.rotation(f, &positions);
            rotations = decoder.frequencies().iter().map(of).collect();
            last_positions.clone_from(&positions);
        }
        let observed: Vec<bool> =
            sequences.iter().map(|s| s.observed_layers().any(|l| l == layer)).collect();
        let mut pass = LayerPass {
            positions: &positions,
            rotations: &rotations,
            sequences: Vec::new(),
            wants_transitions: false,
            transitions: None,
        };
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
                keys: None,
            });
        }
        decoder.layer(layer, &mut x, &mut pass)?;
        for sequence in &mut pass.sequences {
            sequence.cache.origins.push(Origin::Generated);
        }
        let rows = pass.sequences.into_iter().enumerate();
        seen.extend(rows.flat_map(|(i, s)| s.score_out.into_iter().map(move |t| (i, layer, t))));
    }
    if !seen.is_empty() {
        let rows = ops.download_all(&seen.iter().map(|s| &s.2).collect::<Vec<_>>())?;
        for ((i, layer, _), row) in seen.iter().zip(rows) {
            sequences[*i].add_generated_row(*layer, &row);
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
