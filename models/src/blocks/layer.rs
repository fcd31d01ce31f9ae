//! One decoder layer: its weights and its pass over the rows of several sequences.
//!
//! Transitions are taken where the residual is added: `a` is the normalised input of a module,
//! `b` what is added (with four norms a layer, after the module's own output norm).

use secateur_core::error::RunError;
use secateur_core::model::{LayerPass, LayerSequence};
use secateur_core::ops::{
    Activation, AttentionParams, Heads, Keys, Linear, Mask, Norm, Ops, ScoreRequest, Segment,
    TransitionTap, Window,
};
use secateur_core::tensor::Tensor;
use secateur_core::weights::Weights;

use super::config::{DecoderConfig, LayerNorms};
use crate::error::LoadError;

/// Temporaries of one pass, kept between layers and tokens.
#[derive(Debug)]
pub(crate) struct Scratch {
    normed: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attended: Tensor,
    delta: Tensor,
    gated: Tensor,
    spare: Tensor,
    queries: Vec<i32>,
    keys: Vec<i32>,
}

impl Default for Scratch {
    fn default() -> Self {
        let empty = || Tensor::zeros(0, 0);
        Self {
            normed: empty(),
            q: empty(),
            k: empty(),
            v: empty(),
            attended: empty(),
            delta: empty(),
            gated: empty(),
            spare: empty(),
            queries: Vec::new(),
            keys: Vec::new(),
        }
    }
}

/// Norms around the two modules.
#[derive(Debug)]
struct Norms {
    /// In front of attention.
    attention: Norm,
    /// In front of the MLP.
    mlp: Norm,
    /// On the outputs of attention and MLP, before they are added.
    outputs: Option<[Norm; 2]>,
}

/// Weights of a layer.
#[derive(Debug)]
pub(crate) struct Layer {
    norms: Norms,
    q: Linear,
    k: Linear,
    v: Linear,
    output: Linear,
    head_norms: Option<[Norm; 2]>,
    gate_up: Linear,
    down: Linear,
}

impl Layer {
    /// Reads `decoder.layers.{index}.*`.
    pub(crate) fn load(
        config: &DecoderConfig,
        weights: &Weights,
        index: usize,
        ops: &dyn Ops,
    ) -> Result<Self, LoadError> {
        let at = |leaf: &str| format!("decoder.layers.{index}.{leaf}");
        let (hidden, inner) = (config.hidden, config.intermediate);
        let q_width = config.attn_heads * config.head_dim;
        let kv_width = config.kv_heads * config.head_dim;
        let rms = |leaf: &str| config.rms(ops, weights, &at(&format!("{leaf}.weight")), hidden);
        let norms = match config.norms {
            LayerNorms::Two => Norms {
                attention: rms("input_layernorm")?,
                mlp: rms("post_attention_layernorm")?,
                outputs: None,
            },
            LayerNorms::Four => Norms {
                attention: rms("input_layernorm")?,
                mlp: rms("pre_feedforward_layernorm")?,
                outputs: Some([
                    rms("post_attention_layernorm")?,
                    rms("post_feedforward_layernorm")?,
                ]),
            },
        };
        let head_norm = |leaf: &str| config.rms(ops, weights, &at(leaf), config.head_dim);
        let head_norms = if config.qk_norm {
            Some([head_norm("self_attn.q_norm.weight")?, head_norm("self_attn.k_norm.weight")?])
        } else {
            None
        };
        let linear = |leaf: &str, shape, bias| -> Result<Linear, LoadError> {
            Ok(ops.pack_linear(&[weights.matrix(&at(leaf), shape, bias)?])?)
        };
        let project = |leaf: &str, shape, bias| linear(&format!("self_attn.{leaf}"), shape, bias);
        let wide = |leaf: &str| weights.matrix(&at(leaf), [inner, hidden], config.mlp_bias);
        let (gate, up) = (wide("mlp.gate_proj")?, wide("mlp.up_proj")?);
        Ok(Self {
            norms,
            q: project("q_proj", [q_width, hidden], config.qkv_bias)?,
            k: project("k_proj", [kv_width, hidden], config.qkv_bias)?,
            v: project("v_proj", [kv_width, hidden], config.qkv_bias)?,
            output: project("o_proj", [hidden, q_width], config.output_bias)?,
            head_norms,
            gate_up: ops.pack_gated(&gate, &up)?,
            down: linear("mlp.down_proj", [hidden, inner], config.mlp_bias)?,
        })
    }

    /// Runs the layer in place over `x: [rows, hidden]`; the rotation of the pass is there.
    pub(crate) fn run(
        &self,
        ops: &dyn Ops,
        config: &DecoderConfig,
        index: usize,
        x: &mut Tensor,
        pass: &mut LayerPass<'_>,
        s: &mut Scratch,
    ) -> Result<(), RunError> {
        let [rope] = pass.rotations else { return Err(no_rotation()) };
        ops.norm(&self.norms.attention, x, &mut s.normed);
        ops.linear(&self.q, &s.normed, Activation::None, &mut s.q);
        ops.linear(&self.v, &s.normed, Activation::None, &mut s.v);
        self.keys(ops, &mut pass.sequences, config.kv_heads, s);
        if let Some([q_norm, _]) = &self.head_norms {
            ops.head_norm(q_norm, &mut s.q, 0, config.attn_heads);
        }
        ops.rope(rope, &mut s.q, 0, config.attn_heads);
        ops.rope(rope, &mut s.k, 0, config.kv_heads);
        let heads = |tensor, heads| Heads { tensor, offset: 0, heads, head_dim: config.head_dim };
        for sequence in &mut pass.sequences {
            let (k, v) = (heads(&s.k, config.kv_heads), heads(&s.v, config.kv_heads));
            ops.cache_append(sequence.cache, k, v, sequence.rows.clone());
            sequence.cache.positions.extend_from_slice(&pass.positions[sequence.rows.clone()]);
        }
        self.attend(ops, config, index, pass, s);
        ops.linear(&self.output, &s.attended, Activation::None, &mut s.delta);

        let taps = pass.wants_transitions;
        let (mut attention, mut mlp) = (Tensor::default(), Tensor::default());
        self.normed_output(ops, 0, s);
        let tap = taps.then_some(TransitionTap { input: &s.normed, out: &mut attention });
        ops.add_norm(x, &s.delta, tap, &self.norms.mlp, &mut s.spare);
        // `spare` now holds the normalised input of the MLP.
        std::mem::swap(&mut s.normed, &mut s.spare);
        ops.gated_linear(&self.gate_up, &s.normed, config.activation, &mut s.gated);
        ops.linear(&self.down, &s.gated, Activation::None, &mut s.delta);
        self.normed_output(ops, 1, s);
        let tap = taps.then_some(TransitionTap { input: &s.normed, out: &mut mlp });
        ops.add(x, &s.delta, None, tap);
        pass.transitions = taps.then_some([attention, mlp]);
        Ok(())
    }

    /// Unrotated keys of all rows into `s.k`; those that a probe made are taken over.
    fn keys(
        &self,
        ops: &dyn Ops,
        sequences: &mut [LayerSequence<'_>],
        kv_heads: usize,
        s: &mut Scratch,
    ) {
        if sequences.iter().all(|q| q.keys.is_none()) {
            ops.linear(&self.k, &s.normed, Activation::None, &mut s.k);
            self.normed_keys(ops, &mut s.k, kv_heads);
            return;
        }
        s.k.resize(s.normed.rows(), self.k.outputs);
        for sequence in sequences {
            let first = sequence.rows.start;
            if let Some(keys) = sequence.keys.take() {
                ops.write_rows(&mut s.k, first, &keys);
                continue;
            }
            let index: Vec<u32> = sequence.rows.clone().map(|r| r as u32).collect();
            ops.gather_rows(&s.normed, &index, &mut s.spare);
            ops.linear(&self.k, &s.spare, Activation::None, &mut s.delta);
            self.normed_keys(ops, &mut s.delta, kv_heads);
            ops.write_rows(&mut s.k, first, &s.delta);
        }
    }

    fn normed_keys(&self, ops: &dyn Ops, keys: &mut Tensor, kv_heads: usize) {
        if let Some([_, k_norm]) = &self.head_norms {
            ops.head_norm(k_norm, keys, 0, kv_heads);
        }
    }

    /// The norm on a module's output, where the layer has one: `delta = norm(delta)`.
    fn normed_output(&self, ops: &dyn Ops, module: usize, s: &mut Scratch) {
        if let Some(norms) = &self.norms.outputs {
            ops.norm(&norms[module], &s.delta, &mut s.spare);
            std::mem::swap(&mut s.delta, &mut s.spare);
        }
    }

    /// Attention of all sequences from `s.q` and their caches into `s.attended`.
    fn attend(
        &self,
        ops: &dyn Ops,
        config: &DecoderConfig,
        index: usize,
        pass: &mut LayerPass<'_>,
        s: &mut Scratch,
    ) {
        let window = config.window(index);
        s.queries.clear();
        s.keys.clear();
        // First axes of the positions of windowed sequences, one run after another.
        let runs: Vec<Option<(usize, usize)>> = pass
            .sequences
            .iter()
            .map(|sequence| {
                window.filter(|&w| hides_keys(w, sequence, pass.positions))?;
                let run = (s.queries.len(), s.keys.len());
                s.queries.extend(pass.positions[sequence.rows.clone()].iter().map(|p| p[0]));
                s.keys.extend(sequence.cache.positions.iter().map(|p| p[0]));
                Some(run)
            })
            .collect();
        let segments: Vec<Segment<'_>> = pass
            .sequences
            .iter()
            .zip(&runs)
            .map(|(sequence, run)| Segment {
                rows: sequence.rows.clone(),
                keys: Keys::Cached(&*sequence.cache),
                mask: sequence.mask,
                window: run.zip(window).map(|((q, k), window)| Window {
                    window,
                    queries: &s.queries[q..q + sequence.rows.len()],
                    keys: &s.keys[k..k + sequence.cache.positions.len()],
                }),
                scores: scores_of(sequence),
            })
            .collect();
        let params = AttentionParams { scale: config.scale, softcap: config.attention_softcap };
        let q =
            Heads { tensor: &s.q, offset: 0, heads: config.attn_heads, head_dim: config.head_dim };
        let scores = ops.attention(params, q, &segments, &mut s.attended);
        drop(segments);
        for (sequence, scores) in pass.sequences.iter_mut().zip(scores) {
            sequence.score_out = scores;
        }
    }

    /// Unrotated keys of the rows of `x`, and unrotated queries of the rows `queries`. Projections
    /// are what costs, and the keys' goes into the pass; norms are made there again, since a norm
    /// reads and writes each row once, and so would a gather of the normed rows that were kept.
    #[allow(clippy::too_many_arguments, reason = "two outputs beside the inputs of a layer")]
    pub(crate) fn probe(
        &self,
        ops: &dyn Ops,
        config: &DecoderConfig,
        x: &Tensor,
        queries: &[u32],
        s: &mut Scratch,
        keys: &mut Tensor,
        q: &mut Tensor,
    ) {
        ops.norm(&self.norms.attention, x, &mut s.normed);
        ops.linear(&self.k, &s.normed, Activation::None, keys);
        self.normed_keys(ops, keys, config.kv_heads);
        ops.gather_rows(&s.normed, queries, &mut s.spare);
        ops.linear(&self.q, &s.spare, Activation::None, q);
        if let Some([q_norm, _]) = &self.head_norms {
            ops.head_norm(q_norm, q, 0, config.attn_heads);
        }
    }
}

/// The stack has one kind of layer as far as frequencies go.
pub(crate) fn no_rotation() -> RunError {
    RunError::Shape("a pass needs one rotation".into())
}

fn scores_of<'a>(sequence: &LayerSequence<'a>) -> &'a [ScoreRequest] {
    sequence.scores
}

/// Whether a window hides any key of a sequence; rows that all see all others have none.
fn hides_keys(
    window: i32,
    sequence: &LayerSequence<'_>,
    positions: &[secateur_core::cache::Position],
) -> bool {
    let oldest = sequence.cache.positions.first().map_or(0, |p| p[0]);
    let newest = positions[sequence.rows.clone()].last().map_or(0, |p| p[0]);
    sequence.mask != Mask::Full && newest - oldest >= window
}
