//! One decoder stack for all families, made of named variants.
//!
//! Invariants
//! - Rows of several sequences lie below one another and share the matrix products only: a
//!   sequence's result does not depend on its neighbours.
//! - Keys are rotated at the positions of the pass, and those positions stand beside them in the
//!   cache. Causal order is order in the sequence, windows go by position.
//! - Temporaries come from a pool and keep their memory: a token allocates nothing that grows.
//!
//! Source: the decoder tables of Llama, Mistral, Qwen2, Qwen3, Gemma and Gemma2 in transformers
//! 5.24. Not here: which family has which variant (`config`), the loop over layers
//! (`secateur_core::prefill`).

use std::sync::{Arc, Mutex, PoisonError};

use secateur_core::cache::Position;
use secateur_core::error::RunError;
use secateur_core::model::{Decoder, DecoderInfo, LayerPass, Probe};
use secateur_core::ops::{
    Activation, AttentionParams, Embedding, Heads, Linear, Norm, NormKind, Ops, Precision,
};
use secateur_core::tensor::Tensor;
use secateur_core::weights::{WeightView, Weights};

use super::layer::{Layer, Scratch};
use super::rope::{Rope, RopeFrequencies};
use crate::error::LoadError;

/// How the gain of an RMS norm stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gain {
    /// The gain itself.
    Plain,
    /// The gain less one (Gemma).
    LessOne,
}

/// Norms of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerNorms {
    /// In front of attention and of the MLP.
    Two,
    /// In front of and behind each, the latter before the residual is added (Gemma2).
    Four,
}

/// Layers whose queries reach back a limited number of positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Windows {
    /// None.
    None,
    /// Those marked `true`.
    Layers {
        /// Positions that a query reaches back, itself included.
        window: i32,
        /// One entry a layer.
        layers: Vec<bool>,
    },
}

/// Everything that tells one decoder from another. Sizes are checked by `config`.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// `model_type` of the text configuration.
    pub kind: String,
    /// Number of layers.
    pub layers: usize,
    /// Width of a hidden state.
    pub hidden: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// Query heads.
    pub attn_heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Rows of the embedding table.
    pub vocab: usize,
    /// Positions that the model was made for.
    pub context: usize,
    /// Added to the mean square.
    pub eps: f32,
    /// Rotary positions.
    pub rope: Rope,
    /// Gains of all norms.
    pub gain: Gain,
    /// Norms of a layer.
    pub norms: LayerNorms,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection has one.
    pub output_bias: bool,
    /// Whether the MLP has biases.
    pub mlp_bias: bool,
    /// Whether each head of q and k is normalised before it is rotated.
    pub qk_norm: bool,
    /// Gate of the MLP.
    pub activation: Activation,
    /// Multiplied into `q · k`.
    pub scale: f32,
    /// Softcap of attention scores.
    pub attention_softcap: Option<f32>,
    /// Softcap of logits.
    pub logit_softcap: Option<f32>,
    /// Sliding windows.
    pub windows: Windows,
    /// Factor of embedded tokens (Gemma: the root of the width).
    pub embedding_scale: Option<f32>,
    /// Whether a whole prompt sees itself.
    pub prefix_lm: bool,
}

impl DecoderConfig {
    /// What the runtime is told.
    pub fn info(&self) -> DecoderInfo {
        DecoderInfo {
            kind: self.kind.clone(),
            layers: self.layers,
            hidden: self.hidden,
            attn_heads: self.attn_heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            vocab: self.vocab,
            context: self.context,
            mrope: self.rope.axes != super::rope::RopeAxes::One,
            prefix_lm: self.prefix_lm,
        }
    }

    /// Window of a layer.
    pub(crate) fn window(&self, layer: usize) -> Option<i32> {
        match &self.windows {
            Windows::Layers { window, layers } if layers[layer] => Some(*window),
            _ => None,
        }
    }

    /// Reads an RMS norm of `width`.
    pub(crate) fn rms(
        &self,
        weights: &Weights,
        name: &str,
        width: usize,
    ) -> Result<Norm, LoadError> {
        let mut gain = weights.tensor(name, &[width])?.to_f32();
        if self.gain == Gain::LessOne {
            gain.iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(Norm { kind: NormKind::Rms, gain: gain.into(), bias: None, eps: self.eps })
    }
}

/// A decoder with its weights.
#[derive(Debug)]
pub struct DecoderStack {
    config: DecoderConfig,
    info: DecoderInfo,
    ops: Arc<dyn Ops>,
    embedding: Embedding,
    embedding_scale: Option<f32>,
    layers: Vec<Layer>,
    norm: Norm,
    head: Linear,
    frequencies: RopeFrequencies,
    pool: Mutex<Vec<Scratch>>,
}

impl DecoderStack {
    /// Reads `decoder.*` and `head.weight`.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape than the configuration says.
    pub fn load(
        config: DecoderConfig,
        weights: &Weights,
        ops: Arc<dyn Ops>,
    ) -> Result<Self, LoadError> {
        let (table, head) = table_and_head(&config, weights)?;
        let head = ops.pack_linear(&[&head], &[])?;
        let layers = (0..config.layers)
            .map(|i| Layer::load(&config, weights, i, ops.as_ref()))
            .collect::<Result<_, _>>()?;
        let embedding_scale = config.embedding_scale.map(|s| match ops.precision() {
            Precision::F32 => s,
            // The reference keeps the factor in the type of the weights.
            Precision::Bf16 => round_to_bf16(s),
        });
        Ok(Self {
            info: config.info(),
            embedding: Embedding::new(table)?,
            embedding_scale,
            layers,
            norm: config.rms(weights, "decoder.norm.weight", config.hidden)?,
            head,
            frequencies: config.rope.frequencies(config.head_dim),
            pool: Mutex::new(Vec::new()),
            config,
            ops,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    fn attention_params(&self) -> AttentionParams {
        AttentionParams { scale: self.config.scale, softcap: self.config.attention_softcap }
    }

    /// Runs `f` with temporaries of the pool.
    fn with_scratch<T>(&self, f: impl FnOnce(&mut Scratch) -> T) -> T {
        let taken = self.pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut scratch = taken.unwrap_or_default();
        let result = f(&mut scratch);
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).push(scratch);
        result
    }

    fn heads<'a>(&self, tensor: &'a Tensor, heads: usize) -> Heads<'a> {
        Heads { tensor, offset: 0, heads, head_dim: self.config.head_dim }
    }
}

/// Embedding table and head. The tensors decide, not `tie_word_embeddings`: two that are there are
/// two (if they are tied their values are equal), and one that is there is both, whichever it is.
fn table_and_head(
    config: &DecoderConfig,
    weights: &Weights,
) -> Result<(WeightView, WeightView), LoadError> {
    const TABLE: &str = "decoder.embed_tokens.weight";
    let shape = [config.vocab, config.hidden];
    let table = weights.optional(TABLE, &shape)?;
    let head = weights.optional("head.weight", &shape)?;
    Ok(match (table, head) {
        (Some(table), Some(head)) => (table, head),
        (Some(one), None) | (None, Some(one)) => (one.clone(), one),
        (None, None) => weights.tensor(TABLE, &shape).map(|table| (table.clone(), table))?,
    })
}

/// Upper half of an f32, nearest even.
fn round_to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF_0000)
}

impl Decoder for DecoderStack {
    fn info(&self) -> &DecoderInfo {
        &self.info
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor, RunError> {
        let mut rows = Tensor::zeros(0, 0);
        self.ops.embed(&self.embedding, ids, &mut rows)?;
        if let Some(scale) = self.embedding_scale {
            self.ops.scale(&mut rows, scale);
        }
        Ok(rows)
    }

    fn layer(
        &self,
        layer: usize,
        x: &mut Tensor,
        pass: &mut LayerPass<'_>,
    ) -> Result<(), RunError> {
        if pass.rope.is_none() {
            *pass.rope = Some(self.frequencies.table(pass.positions));
        }
        self.with_scratch(|scratch| {
            self.layers[layer].run(self.ops.as_ref(), &self.config, layer, x, pass, scratch)
        })
    }

    fn probe(
        &self,
        layer: usize,
        x: &Tensor,
        positions: &[Position],
        queries: &[u32],
    ) -> Result<Probe, RunError> {
        let (ops, config) = (self.ops.as_ref(), &self.config);
        let mut keys = Tensor::zeros(0, 0);
        let mut q = Tensor::zeros(0, 0);
        self.with_scratch(|s| {
            self.layers[layer].probe(ops, config, x, queries, s, &mut keys, &mut q)
        });
        let of_queries: Vec<Position> = queries.iter().map(|&r| positions[r as usize]).collect();
        ops.rope(&self.frequencies.table(&of_queries), &mut q, 0, config.attn_heads);
        let mut rotated = keys.clone();
        ops.rope(&self.frequencies.table(positions), &mut rotated, 0, config.kv_heads);
        let params = self.attention_params();
        let q_heads = self.heads(&q, config.attn_heads);
        let k_heads = self.heads(&rotated, config.kv_heads);
        let reach = config.window(layer).filter(|_| !config.prefix_lm);
        let first = positions.first().map_or(0, |p| p[0]);
        let hides = |&q: &u32| reach.is_some_and(|w| positions[q as usize][0] - first >= w);
        let scores = if queries.iter().any(hides) {
            windowed_mean(
                ops,
                params,
                q_heads,
                k_heads,
                positions,
                queries,
                reach.unwrap_or(i32::MAX),
            )
        } else {
            let visible: Vec<u32> = queries
                .iter()
                .map(|&r| if config.prefix_lm { x.rows() as u32 } else { r + 1 })
                .collect();
            ops.score_rows(params, q_heads, &visible, k_heads, true)
        };
        Ok(Probe { scores, keys })
    }

    fn final_hidden(&self, x: &Tensor) -> Result<Tensor, RunError> {
        let mut out = Tensor::zeros(0, 0);
        self.ops.norm(&self.norm, x, &mut out);
        Ok(out)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor, RunError> {
        let mut out = Tensor::zeros(0, 0);
        self.ops.linear(&self.head, hidden, Activation::None, &mut out);
        if let Some(cap) = self.config.logit_softcap {
            let mut values = self.ops.download(&out)?;
            values.iter_mut().for_each(|l| *l = cap * (*l / cap).tanh());
            out = self.ops.upload(out.rows(), out.cols(), &values)?;
        }
        Ok(out)
    }
}

/// Mean attention of rows that each see a window of keys: one product a query over the keys in
/// its reach, which are contiguous since positions ascend.
fn windowed_mean(
    ops: &dyn Ops,
    params: AttentionParams,
    q: Heads<'_>,
    keys: Heads<'_>,
    positions: &[Position],
    queries: &[u32],
    window: i32,
) -> Vec<f32> {
    let mut mean = vec![0.0; positions.len()];
    let (mut one, mut near) = (Tensor::zeros(0, 0), Tensor::zeros(0, 0));
    for (i, &row) in queries.iter().enumerate() {
        let end = row as usize + 1;
        let from =
            positions[..end].partition_point(|p| positions[row as usize][0] - p[0] >= window);
        ops.gather_rows(q.tensor, &[i as u32], &mut one);
        let index: Vec<u32> = (from as u32..end as u32).collect();
        ops.gather_rows(keys.tensor, &index, &mut near);
        let seen = ops.score_rows(
            params,
            Heads { tensor: &one, ..q },
            &[index.len() as u32],
            Heads { tensor: &near, ..keys },
            true,
        );
        for (m, s) in mean[from..end].iter_mut().zip(seen) {
            *m += s / queries.len() as f32;
        }
    }
    mean
}
