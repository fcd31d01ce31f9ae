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
//! (`secateur_core::pass`).

use std::sync::{Arc, Mutex, PoisonError};

use secateur_core::cache::Position;
use secateur_core::error::RunError;
use secateur_core::model::{Decoder, DecoderInfo, LayerPass, Probe};
use secateur_core::ops::{
    Activation, AttentionParams, Embedding, Frequencies, Heads, Linear, Mask, Norm, Ops, Precision,
    Rotation,
};
use secateur_core::tensor::Tensor;
use secateur_core::visibility::LayerKind;
use secateur_core::weights::{WeightView, Weights};

use super::config::DecoderConfig;
use super::layer::{Layer, Scratch};
use crate::error::LoadError;

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
    frequencies: [Frequencies; 1],
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
        let head = ops.pack_linear(&[head.into()])?;
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
            embedding: ops.pack_embedding(table)?,
            embedding_scale,
            layers,
            norm: config.rms(ops.as_ref(), weights, "decoder.norm.weight", config.hidden)?,
            head,
            frequencies: [config.rope.frequencies(config.head_dim)],
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

    fn kind(&self, layer: usize) -> LayerKind {
        match self.config.window(layer) {
            Some(_) => LayerKind::Sliding,
            None => LayerKind::Full,
        }
    }

    fn frequencies(&self) -> &[Frequencies] {
        &self.frequencies
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
        self.with_scratch(|scratch| {
            self.layers[layer].run(self.ops.as_ref(), &self.config, layer, x, pass, scratch)
        })
    }

    fn probe(
        &self,
        layer: usize,
        x: &Tensor,
        positions: &[Position],
        rotations: &[Rotation],
        mask: Mask<'_>,
        queries: &[u32],
    ) -> Result<Probe, RunError> {
        let [rotation] = rotations else { return Err(super::layer::no_rotation()) };
        let (ops, config) = (self.ops.as_ref(), &self.config);
        let mut keys = Tensor::zeros(0, 0);
        let mut q = Tensor::zeros(0, 0);
        self.with_scratch(|s| {
            self.layers[layer].probe(ops, config, x, queries, s, &mut keys, &mut q)
        });
        ops.rope(&ops.rotation_rows(rotation, queries), &mut q, 0, config.attn_heads);
        let mut rotated = keys.clone();
        ops.rope(rotation, &mut rotated, 0, config.kv_heads);
        let params = self.attention_params();
        let q_heads = self.heads(&q, config.attn_heads);
        let k_heads = self.heads(&rotated, config.kv_heads);
        let reach = config.window(layer).filter(|_| mask != Mask::Full);
        let rows = (x.rows(), x.rows());
        let visible: Vec<u32> =
            queries.iter().map(|&r| mask.until(rows, r as usize) as u32).collect();
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
                &visible,
                reach.unwrap_or(i32::MAX),
            )?
        } else {
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

/// Mean attention of rows that each see a window of the first `visible` keys: one product a query
/// over the keys in its reach, which are contiguous since positions ascend.
#[allow(clippy::too_many_arguments, reason = "what `score_rows` takes, and the window")]
fn windowed_mean(
    ops: &dyn Ops,
    params: AttentionParams,
    q: Heads<'_>,
    keys: Heads<'_>,
    positions: &[Position],
    queries: &[u32],
    visible: &[u32],
    window: i32,
) -> Result<Tensor, RunError> {
    let mut mean = vec![0.0; positions.len()];
    let (mut one, mut near) = (Tensor::zeros(0, 0), Tensor::zeros(0, 0));
    for (i, &row) in queries.iter().enumerate() {
        let end = visible[i] as usize;
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
        for (m, s) in mean[from..end].iter_mut().zip(ops.download(&seen)?) {
            *m += s / queries.len() as f32;
        }
    }
    ops.upload(1, mean.len(), &mean)
}
