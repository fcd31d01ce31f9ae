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

use super::EncoderLoadError;
use super::block::load_norm;
use super::config::Config;
use secateur_core::ops::Norm;

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
    /// Loads the head, or says why its attention is not offered: absent tensors do not stop a
    /// model that never asks for them.
    ///
    /// # Errors
    /// Tensors that are there and have another shape.
    pub(crate) fn load(
        config: &Config,
        weights: &Weights,
    ) -> Result<Result<Self, String>, EncoderLoadError> {
        if let Err(reason) = config.pooling_layers() {
            return Ok(Err(reason));
        }
        let norm = config.pooling_norm.unwrap_or_default();
        let at = "tower.head.attention";
        let needed = [
            "tower.head.probe".to_owned(),
            format!("{at}.in_proj_weight"),
            format!("{at}.in_proj_bias"),
            format!("tower.{norm}.weight"),
            format!("tower.{norm}.bias"),
        ];
        if let Some(missing) = needed.iter().find(|name| !weights.contains(name)) {
            return Ok(Err(format!("the checkpoint has no pooling head: `{missing}` is missing")));
        }
        let d = config.width;
        let probe = weights.tensor(&needed[0], &[1, 1, d])?.to_f32();
        let matrix = weights.tensor(&needed[1], &[3 * d, d])?.to_f32();
        let bias = weights.tensor(&needed[2], &[3 * d])?.to_f32();
        let norm = load_norm(weights, &format!("tower.{norm}"), d, config.norm, config.eps)?;
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
        Ok(Ok(Self { norm, folded, width: d }))
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
