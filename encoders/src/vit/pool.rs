//! The attention of SigLIP's pooling head: which patches the learnt probe looks at.
//!
//! Source: `SiglipMultiheadAttentionPoolingHead` of transformers; its input is the post norm of the
//! last hidden state. Values, MLP and output projection are not needed for the probabilities and
//! are not loaded.
//!
//! Invariant: the probe is a constant, so its query is folded into the key projection once:
//! `q_h . (K_h x + b_h) / sqrt(e) = u_h . x + c_h`, and softmax drops `c_h`. What remains is one
//! product of the patches with `[heads, width]`.

use secateur_core::weights::Weights;

use super::block::load_norm;
use super::config::Config;
use secateur_core::ops::{Norm, Ops};

/// A tower's pooling head, as far as its attention goes.
#[derive(Debug)]
pub(crate) struct PoolingHead {
    /// The norm before the head.
    pub(crate) norm: Norm,
    /// Folded query of each head: `[heads, width]`.
    folded: Vec<f32>,
    width: usize,
}

impl PoolingHead {
    /// Loads the head, or says why its attention is not offered: tensors that are absent or of
    /// another shape do not stop a model that never asks for them.
    pub(crate) fn load(config: &Config, weights: &Weights, ops: &dyn Ops) -> Result<Self, String> {
        config.pooling_layers()?;
        let d = config.width;
        let tensor = |name: &str, shape: &[usize]| {
            let view = weights.tensor(name, shape);
            view.map(|v| v.to_f32())
                .map_err(|e| format!("the checkpoint holds no pooling head of the tower: {e}"))
        };
        let probe = tensor("tower.head.probe", &[1, 1, d])?;
        let matrix = tensor("tower.head.attention.in_proj_weight", &[3 * d, d])?;
        let bias = tensor("tower.head.attention.in_proj_bias", &[3 * d])?;
        let norm = format!("tower.{}", config.pooling_norm.unwrap_or_default());
        let norm = load_norm(ops, weights, &norm, d, config.norm, config.eps)
            .map_err(|e| format!("the norm before the pooling head: {e}"))?;
        let e = config.head_dim();
        let scale = (e as f64).powf(-0.5);
        let mut folded = vec![0.0f64; config.heads * d];
        for (row, query) in matrix.chunks_exact(d).take(d).enumerate() {
            let dot: f64 =
                query.iter().zip(&probe).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let q = (dot + f64::from(bias[row])) * scale;
            let key = &matrix[(d + row) * d..][..d];
            for (u, k) in folded[row / e * d..][..d].iter_mut().zip(key) {
                *u += q * f64::from(*k);
            }
        }
        let folded = folded.into_iter().map(|u| u as f32).collect();
        Ok(Self { norm, folded, width: d })
    }

    /// Probabilities of one crop's normed patches `[patches, width]`, mean over heads: `[patches]`.
    pub(crate) fn attention(&self, normed: &[f32]) -> Vec<f32> {
        let patches = normed.len() / self.width;
        let heads = self.folded.len() / self.width;
        let mut mean = vec![0.0f32; patches];
        let mut row = vec![0.0f32; patches];
        for query in self.folded.chunks_exact(self.width) {
            for (logit, x) in row.iter_mut().zip(normed.chunks_exact(self.width)) {
                *logit = query.iter().zip(x).map(|(a, b)| a * b).sum();
            }
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter_mut().for_each(|v| *v = (*v - top).exp());
            let sum: f32 = row.iter().sum::<f32>() * heads as f32;
            mean.iter_mut().zip(&row).for_each(|(m, v)| *m += v / sum);
        }
        mean
    }
}
