//! One layer of a vision transformer.
//!
//! Invariants
//! - `x += scale * attention(norm1 x)`, `x += scale * mlp(norm2 x)`; what differs between towers is
//!   a named variant of [`Config`].
//! - q, k and v are one product; columns `0..d` are q, `d..2d` k, `2d..3d` v.
//! - Scratch tensors belong to the caller and keep their memory over layers and batches.

use std::ops::Range;

use secateur_core::error::RunError;
use secateur_core::ops::{
    Activation, AttentionParams, Heads, Keys, Linear, Mask, Norm, NormKind, Ops, Rotation,
    ScoreRequest, Segment, Vector,
};
use secateur_core::tensor::Tensor;
use secateur_core::weights::Weights;

use super::EncoderLoadError;
use super::config::{Config, Layout, Mlp};

/// Most rows that pass the MLP at once: bounds its wide intermediate tensor.
const MLP_ROWS: usize = 8192;

/// A packed layer.
#[derive(Debug)]
pub(crate) struct Block {
    norm1: Norm,
    norm2: Norm,
    qkv: Linear,
    qk_norm: Option<[Norm; 2]>,
    out: Linear,
    scales: Option<[Vector; 2]>,
    mlp: Feed,
    heads: usize,
    head_dim: usize,
}

#[derive(Debug)]
enum Feed {
    Plain { up: Linear, act: Activation, down: Linear },
    Gated { gate_up: Linear, act: Activation, down: Linear },
}

/// Tensors that live from layer to layer.
#[derive(Debug)]
pub(crate) struct Scratch {
    normed: Tensor,
    qkv: Tensor,
    mixed: Tensor,
    delta: Tensor,
    wide: Tensor,
    part: Tensor,
    part_out: Tensor,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        let empty = || Tensor::zeros(0, 0);
        Self {
            normed: empty(),
            qkv: empty(),
            mixed: empty(),
            delta: empty(),
            wide: empty(),
            part: empty(),
            part_out: empty(),
        }
    }
}

/// What one pass through a layer reads and reports.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    /// Rows that attend to each other.
    pub(crate) segments: &'a [Range<usize>],
    /// Rotation of q and k, if the tower rotates.
    pub(crate) rope: Option<&'a Rotation>,
    /// Score rows to report of every segment.
    pub(crate) scores: &'a [ScoreRequest],
    /// Whether keys are asked for.
    pub(crate) wants_keys: bool,
}

/// What a layer reported.
#[derive(Debug, Default)]
pub(crate) struct Reported {
    /// Per segment, one vector a request.
    pub(crate) scores: Vec<Vec<Tensor>>,
    /// Keys with bias, mean over heads: `[rows, head_dim]`.
    pub(crate) keys: Option<Vec<f32>>,
}

/// A norm by the name of its parameters.
pub(crate) fn load_norm(
    ops: &dyn Ops,
    weights: &Weights,
    name: &str,
    width: usize,
    kind: NormKind,
    eps: f32,
) -> Result<Norm, EncoderLoadError> {
    let gain = weights.tensor(&format!("{name}.weight"), &[width])?.to_f32();
    let bias = match kind {
        NormKind::Rms => None,
        NormKind::Layer => Some(weights.tensor(&format!("{name}.bias"), &[width])?.to_f32()),
    };
    Ok(ops.pack_norm(kind, gain, bias, eps))
}

fn packed(
    ops: &dyn Ops,
    weights: &Weights,
    name: &str,
    shape: [usize; 2],
) -> Result<Linear, EncoderLoadError> {
    Ok(ops.pack_linear(&[weights.matrix(name, shape, true)?])?)
}

impl Block {
    pub(crate) fn load(
        config: &Config,
        index: usize,
        weights: &Weights,
        ops: &dyn Ops,
    ) -> Result<Self, EncoderLoadError> {
        let (d, f) = (config.width, config.mlp_width);
        let (prefix, norm1, norm2, attn, out) = match config.layout {
            Layout::Clip => {
                ("encoder.layers", "layer_norm1", "layer_norm2", "self_attn", "out_proj")
            }
            Layout::Intern => (
                "encoder.layer",
                "layernorm_before",
                "layernorm_after",
                "attention",
                "projection_layer",
            ),
            Layout::Qwen => ("blocks", "norm1", "norm2", "attn", "proj"),
        };
        let at = format!("tower.{prefix}.{index}");
        let qkv = match config.layout {
            Layout::Qwen => packed(ops, weights, &format!("{at}.{attn}.qkv"), [3 * d, d])?,
            Layout::Clip | Layout::Intern => {
                let one = |leaf: &str| {
                    weights.matrix(&format!("{at}.{attn}.{leaf}"), [d, d], config.qkv_bias)
                };
                ops.pack_linear(&[one("q_proj")?, one("k_proj")?, one("v_proj")?])?
            }
        };
        let norm = |name: &str, kind| {
            load_norm(ops, weights, &format!("{at}.{name}"), d, kind, config.eps)
        };
        let qk_norm = if config.qk_norm {
            let one = |leaf: &str| norm(&format!("{attn}.{leaf}"), NormKind::Rms);
            Some([one("q_norm")?, one("k_norm")?])
        } else {
            None
        };
        let scales = if config.layer_scale {
            let one = |leaf: &str| -> Result<Vector, EncoderLoadError> {
                Ok(ops.pack_vector(weights.tensor(&format!("{at}.{leaf}"), &[d])?.to_f32()))
            };
            Some([one("lambda_1")?, one("lambda_2")?])
        } else {
            None
        };
        let mlp = match config.mlp {
            Mlp::Plain(up, down) => Feed::Plain {
                up: packed(ops, weights, &format!("{at}.mlp.{up}"), [f, d])?,
                act: config.act,
                down: packed(ops, weights, &format!("{at}.mlp.{down}"), [d, f])?,
            },
            Mlp::Gated => {
                let wide = |leaf: &str| weights.matrix(&format!("{at}.mlp.{leaf}"), [f, d], true);
                Feed::Gated {
                    gate_up: ops.pack_gated(&wide("gate_proj")?, &wide("up_proj")?)?,
                    act: config.act,
                    down: packed(ops, weights, &format!("{at}.mlp.down_proj"), [d, f])?,
                }
            }
        };
        Ok(Self {
            norm1: norm(norm1, config.norm)?,
            norm2: norm(norm2, config.norm)?,
            qkv,
            qk_norm,
            out: packed(ops, weights, &format!("{at}.{attn}.{out}"), [d, d])?,
            scales,
            mlp,
            heads: config.heads,
            head_dim: config.head_dim(),
        })
    }

    /// Runs the layer in place on `x: [rows, width]`.
    pub(crate) fn run(
        &self,
        ops: &dyn Ops,
        x: &mut Tensor,
        pass: &Pass<'_>,
        s: &mut Scratch,
    ) -> Result<Reported, RunError> {
        let width = x.cols();
        ops.norm(&self.norm1, x, &mut s.normed);
        ops.linear(&self.qkv, &s.normed, Activation::None, &mut s.qkv);
        let keys = if pass.wants_keys { Some(self.mean_keys(ops, &s.qkv)?) } else { None };
        if let Some([q, k]) = &self.qk_norm {
            ops.head_norm(q, &mut s.qkv, 0, 1);
            ops.head_norm(k, &mut s.qkv, width, 1);
        }
        if let Some(rope) = pass.rope {
            ops.rope(rope, &mut s.qkv, 0, self.heads);
            ops.rope(rope, &mut s.qkv, width, self.heads);
        }
        let part = |offset: usize| Heads {
            tensor: &s.qkv,
            offset,
            heads: self.heads,
            head_dim: self.head_dim,
        };
        let segments: Vec<Segment<'_>> = pass
            .segments
            .iter()
            .map(|rows| Segment {
                rows: rows.clone(),
                keys: Keys::Rows {
                    keys: part(width),
                    values: part(2 * width),
                    first: rows.start,
                    len: rows.len(),
                },
                mask: Mask::Full,
                window: None,
                scores: pass.scores,
            })
            .collect();
        let params = AttentionParams { scale: (self.head_dim as f32).powf(-0.5), softcap: None };
        let scores = ops.attention(params, part(0), &segments, &mut s.mixed);
        ops.linear(&self.out, &s.mixed, Activation::None, &mut s.delta);
        let [first, second] =
            self.scales.as_ref().map_or([None, None], |[a, b]| [Some(a), Some(b)]);
        if first.is_some() {
            ops.add(x, &s.delta, first, None);
            ops.norm(&self.norm2, x, &mut s.normed);
        } else {
            ops.add_norm(x, &s.delta, None, &self.norm2, &mut s.normed);
        }
        self.feed(ops, s);
        ops.add(x, &s.delta, second, None);
        Ok(Reported { scores, keys })
    }

    /// `delta = mlp(normed)`, some rows at a time.
    fn feed(&self, ops: &dyn Ops, s: &mut Scratch) {
        let rows = s.normed.rows();
        if rows <= MLP_ROWS {
            return self.mlp.run(ops, &s.normed, &mut s.wide, &mut s.delta);
        }
        let index: Vec<u32> = (0..rows as u32).collect();
        for chunk in index.chunks(MLP_ROWS) {
            ops.gather_rows(&s.normed, chunk, &mut s.part);
            self.mlp.run(ops, &s.part, &mut s.wide, &mut s.part_out);
            ops.write_rows(&mut s.delta, chunk[0] as usize, &s.part_out);
        }
    }

    /// Keys as they leave their projection, mean over heads: `[rows, head_dim]`.
    fn mean_keys(&self, ops: &dyn Ops, qkv: &Tensor) -> Result<Vec<f32>, RunError> {
        let all = ops.download(qkv)?;
        let (width, e) = (self.heads * self.head_dim, self.head_dim);
        let mut out = vec![0.0f32; qkv.rows() * e];
        for (row, mean) in all.chunks_exact(3 * width).zip(out.chunks_exact_mut(e)) {
            for head in row[width..2 * width].chunks_exact(e) {
                for (m, k) in mean.iter_mut().zip(head) {
                    *m += k;
                }
            }
            for m in mean {
                *m /= self.heads as f32;
            }
        }
        Ok(out)
    }
}

impl Feed {
    fn run(&self, ops: &dyn Ops, x: &Tensor, wide: &mut Tensor, out: &mut Tensor) {
        let down = match self {
            Feed::Plain { up, act, down } => {
                ops.linear(up, x, *act, wide);
                down
            }
            Feed::Gated { gate_up, act, down } => {
                ops.gated_linear(gate_up, x, *act, wide);
                down
            }
        };
        ops.linear(down, wide, Activation::None, out);
    }
}
