//! What tells one decoder from another: sizes and named variants, checked by `config` of the crate.

use secateur_core::model::DecoderInfo;
use secateur_core::ops::{Activation, Norm, NormKind, Ops};
use secateur_core::weights::Weights;

use super::rope::{Rope, RopeAxes};
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
            mrope: self.rope.axes != RopeAxes::One,
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
        ops: &dyn Ops,
        weights: &Weights,
        name: &str,
        width: usize,
    ) -> Result<Norm, LoadError> {
        let mut gain = weights.tensor(name, &[width])?.to_f32();
        if self.gain == Gain::LessOne {
            gain.iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(ops.pack_norm(NormKind::Rms, gain, None, self.eps))
    }
}
