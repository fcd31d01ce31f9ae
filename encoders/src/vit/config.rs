//! A tower's configuration, read and checked before any weight.
//!
//! Invariants
//! - A key that is absent takes the default of the tower's own class in transformers 5.24, as the
//!   hub's files rely on that (models-a 1.1, models-b).
//! - What is returned can be built: heads divide the width, a patch fits the picture, layers that
//!   are named exist.

use std::ops::RangeInclusive;

use secateur_core::error::ConfigError;
use secateur_core::files::{Fields, short};
use secateur_core::model::TowerSpec;
use secateur_core::ops::{Activation, NormKind};
use serde_json::Value;

/// Kinds of towers that can be built, by `model_type`.
pub const KINDS: &[&str] = &[
    "clip_vision_model",
    "siglip_vision_model",
    "internvl_vision",
    "idefics3_vision",
    "smolvlm_vision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
];

const WIDTHS: RangeInclusive<usize> = 1..=65_536;
const SIDES: RangeInclusive<usize> = 1..=16_384;

/// Which names a tower's tensors have, and what stands before its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// CLIP and SigLIP (and Idefics3): `encoder.layers.N.self_attn.q_proj`.
    Clip,
    /// InternViT: `encoder.layer.N.attention.q_proj`.
    Intern,
    /// Qwen: `blocks.N.attn.qkv`.
    Qwen,
}

/// How positions enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Positions {
    /// A learnt table over a `grid` x `grid` lattice, which inputs must have.
    Table,
    /// As `Table`, resampled bicubically for other lattices.
    Bicubic,
    /// As `Table`, other lattices read the cell that their patch falls in.
    Bucket,
    /// Rotation by row and column.
    Rope,
    /// Rotation by row and column, and a learnt table resampled bilinearly, corners aligned.
    RopeAndTable,
}

/// How the MLP is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mlp {
    /// Two layers, by these names.
    Plain(&'static str, &'static str),
    /// `down(act(gate x) * up x)`, with biases.
    Gated,
}

/// Windows of attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Windows {
    /// Side of a window in merged cells.
    pub(crate) side: usize,
    /// Blocks that see the whole frame.
    pub(crate) full: Vec<usize>,
}

/// Everything that shapes a tower.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) kind: String,
    pub(crate) layout: Layout,
    pub(crate) width: usize,
    pub(crate) mlp_width: usize,
    pub(crate) file_layers: usize,
    /// Layers that run.
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) patch: usize,
    /// Frames a patch spans.
    pub(crate) temporal: usize,
    /// Side of a merge block, which rows of patches follow; 1 for raster order.
    pub(crate) merge: usize,
    /// Side of the pictures the table was made for, pixels; 0 where there is none.
    pub(crate) image: usize,
    /// Side of the learnt table's lattice.
    pub(crate) table: usize,
    pub(crate) class_token: bool,
    pub(crate) patch_bias: bool,
    pub(crate) qkv_bias: bool,
    pub(crate) norm: NormKind,
    pub(crate) eps: f32,
    pub(crate) pre_norm: bool,
    /// Name of the norm after the layers, if the features pass it.
    pub(crate) final_norm: Option<&'static str>,
    /// Name of the norm before the pooling head, for classes of towers that have such a head.
    pub(crate) pooling_norm: Option<&'static str>,
    pub(crate) layer_scale: bool,
    /// RMS norm of q and k over the whole width.
    pub(crate) qk_norm: bool,
    pub(crate) act: Activation,
    pub(crate) mlp: Mlp,
    pub(crate) positions: Positions,
    pub(crate) rope_theta: f64,
    pub(crate) windows: Option<Windows>,
    /// Number of hidden state to return (0: embeddings), several for concatenation.
    pub(crate) features: Vec<usize>,
    /// Blocks whose output is returned beside the features.
    pub(crate) levels: Vec<usize>,
}

impl Config {
    pub(crate) fn head_dim(&self) -> usize {
        self.width / self.heads
    }

    /// Whether the layers allow a pooling head; `Err` says why not.
    pub(crate) fn pooling_layers(&self) -> Result<(), String> {
        if self.pooling_norm.is_none() {
            return Err(format!("the tower `{}` has no pooling head", self.kind));
        }
        if self.layers != self.file_layers {
            return Err(format!(
                "the pooling head reads the last of {} tower layers, the features need only {}",
                self.file_layers, self.layers
            ));
        }
        Ok(())
    }

    /// Rows a crop has beside its patches.
    pub(crate) fn class_rows(&self) -> usize {
        usize::from(self.class_token)
    }

    /// Width of a patch row: channels, frames, pixels.
    pub(crate) fn patch_width(&self) -> usize {
        3 * self.temporal * self.patch * self.patch
    }

    /// Reads and checks a specification.
    pub(crate) fn read(spec: &TowerSpec) -> Result<Self, ConfigError> {
        let null = Value::Object(serde_json::Map::new());
        let value = if spec.config.is_null() { &null } else { &spec.config };
        let fields = Fields::root(format!("{} (vision_config)", spec.file), value)?;
        let mut config = match spec.kind.as_str() {
            "clip_vision_model" => clip(&fields)?,
            "siglip_vision_model" => siglip(&fields)?,
            "internvl_vision" => internvl(&fields, spec.final_norm)?,
            "idefics3_vision" | "smolvlm_vision" => idefics3(&fields)?,
            "qwen2_vl" => qwen2(&fields)?,
            "qwen2_5_vl" => qwen2_5(&fields)?,
            "qwen3_vl" => qwen3(&fields)?,
            other => {
                return Err(ConfigError::Unsupported {
                    file: spec.file.clone(),
                    what: "vision tower",
                    found: other.to_owned(),
                    supported: KINDS.join(", "),
                });
            }
        };
        config.kind = spec.kind.clone();
        if !spec.final_norm {
            config.final_norm = None;
        }
        config.choose_layers(spec, &fields)?;
        config.check(&fields)?;
        Ok(config)
    }

    fn choose_layers(&mut self, spec: &TowerSpec, fields: &Fields<'_>) -> Result<(), ConfigError> {
        let all = self.file_layers as i64;
        let listed = if spec.feature_layers.is_empty() { &[-1][..] } else { &spec.feature_layers };
        for &k in listed {
            let index = if k < 0 { all + 1 + k } else { k };
            if !(0..=all).contains(&index) {
                let expected = format!("from {} to {all}: the tower has {all} layers", -all - 1);
                return Err(ConfigError::Field {
                    file: spec.file.clone(),
                    field: "vision_feature_layer".into(),
                    expected,
                    found: k.to_string(),
                });
            }
            self.features.push(index as usize);
        }
        self.layers = self.features.iter().copied().max().unwrap_or(0);
        if self.final_norm.is_some() && self.features != [self.file_layers] {
            return Err(fields.error(
                "vision_feature_layer",
                "the last layer alone where the features pass the final norm",
                &format!("{:?}", spec.feature_layers),
            ));
        }
        for &level in &self.levels {
            if level >= self.layers {
                let expected = format!("blocks 0 to {}", self.layers.saturating_sub(1));
                return Err(fields.error(
                    "deepstack_visual_indexes",
                    &expected,
                    &level.to_string(),
                ));
            }
        }
        Ok(())
    }

    fn check(&self, fields: &Fields<'_>) -> Result<(), ConfigError> {
        let heads_key = match self.layout {
            Layout::Qwen => "num_heads",
            Layout::Clip | Layout::Intern => "num_attention_heads",
        };
        if !self.width.is_multiple_of(self.heads) {
            let expected = format!("a divisor of the width {}", self.width);
            return Err(fields.error(heads_key, &expected, &self.heads.to_string()));
        }
        let rotates = matches!(self.positions, Positions::Rope | Positions::RopeAndTable);
        if rotates && !self.head_dim().is_multiple_of(4) {
            let expected = format!("heads of a multiple of 4 (width {})", self.width);
            return Err(fields.error(heads_key, &expected, &self.heads.to_string()));
        }
        if self.image > 0 && self.patch > self.image {
            let expected = format!("at most the picture's side, {}", self.image);
            return Err(fields.error("patch_size", &expected, &self.patch.to_string()));
        }
        // 2^40 parameters are beyond any file; products of checked fields stay in usize.
        let table = self.table.saturating_mul(self.table).saturating_mul(self.width);
        let total = self
            .file_layers
            .saturating_mul(self.width)
            .saturating_mul(self.mlp_width.max(self.width).saturating_mul(4))
            .saturating_add(table);
        if total > 1 << 40 {
            let expected = "a tower of less than 2^40 parameters";
            return Err(fields.error("hidden_size", expected, &self.width.to_string()));
        }
        Ok(())
    }
}

/// A side that stands as one number or as a pair of equal numbers.
pub(crate) fn square_side(
    fields: &Fields<'_>,
    key: &str,
    default: usize,
) -> Result<usize, ConfigError> {
    let Some(Value::Array(pair)) = fields.get(key) else {
        return fields.size(key, SIDES, Some(default));
    };
    let sides: Vec<u64> = pair.iter().filter_map(Value::as_u64).collect();
    match sides.as_slice() {
        &[a, b] if pair.len() == 2 && a == b && SIDES.contains(&(a as usize)) => Ok(a as usize),
        _ => {
            let expected = "one number or two equal ones, from 1 to 16384";
            Err(fields.error(key, expected, &short(&Value::Array(pair.clone()))))
        }
    }
}

fn activation(fields: &Fields<'_>, default: &str) -> Result<Activation, ConfigError> {
    let name = fields.text("hidden_act", default)?;
    Ok(match name.as_str() {
        "quick_gelu" => Activation::QuickGelu,
        "gelu" => Activation::GeluErf,
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Activation::GeluTanh,
        "silu" | "swish" => Activation::Silu,
        "relu" => Activation::Relu,
        other => {
            let expected = "quick_gelu, gelu, gelu_pytorch_tanh, silu or relu";
            return Err(fields.error("hidden_act", expected, other));
        }
    })
}

fn eps(fields: &Fields<'_>, key: &str, default: f64) -> Result<f32, ConfigError> {
    Ok(fields.number(key, 0.0..=1.0, Some(default))? as f32)
}

fn check_channels(fields: &Fields<'_>) -> Result<(), ConfigError> {
    for key in ["num_channels", "in_channels", "in_chans"] {
        fields.size(key, 3..=3, Some(3))?;
    }
    Ok(())
}

/// The fields that CLIP, SigLIP, InternViT and Idefics3 share.
struct Common {
    width: usize,
    mlp_width: usize,
    layers: usize,
    heads: usize,
    image: usize,
    patch: usize,
}

fn common(fields: &Fields<'_>, defaults: Common) -> Result<Common, ConfigError> {
    check_channels(fields)?;
    Ok(Common {
        width: fields.size("hidden_size", WIDTHS, Some(defaults.width))?,
        mlp_width: fields.size("intermediate_size", 1..=1 << 20, Some(defaults.mlp_width))?,
        layers: fields.size("num_hidden_layers", 1..=1024, Some(defaults.layers))?,
        heads: fields.size("num_attention_heads", 1..=4096, Some(defaults.heads))?,
        image: square_side(fields, "image_size", defaults.image)?,
        patch: square_side(fields, "patch_size", defaults.patch)?,
    })
}

fn tower(layout: Layout, c: Common, act: Activation, eps: f32) -> Config {
    Config {
        kind: String::new(),
        layout,
        width: c.width,
        mlp_width: c.mlp_width,
        file_layers: c.layers,
        layers: 0,
        heads: c.heads,
        patch: c.patch,
        temporal: 1,
        merge: 1,
        image: c.image,
        table: c.image / c.patch,
        class_token: false,
        patch_bias: true,
        qkv_bias: true,
        norm: NormKind::Layer,
        eps,
        pre_norm: false,
        final_norm: None,
        pooling_norm: None,
        layer_scale: false,
        qk_norm: false,
        act,
        mlp: Mlp::Plain("fc1", "fc2"),
        positions: Positions::Table,
        rope_theta: 10_000.0,
        windows: None,
        features: Vec::new(),
        levels: Vec::new(),
    }
}

fn clip(fields: &Fields<'_>) -> Result<Config, ConfigError> {
    let defaults =
        Common { width: 768, mlp_width: 3072, layers: 12, heads: 12, image: 224, patch: 32 };
    let common = common(fields, defaults)?;
    let (act, eps) = (activation(fields, "quick_gelu")?, eps(fields, "layer_norm_eps", 1e-5)?);
    let base = tower(Layout::Clip, common, act, eps);
    Ok(Config { class_token: true, patch_bias: false, pre_norm: true, ..base })
}

fn siglip(fields: &Fields<'_>) -> Result<Config, ConfigError> {
    let defaults =
        Common { width: 768, mlp_width: 3072, layers: 12, heads: 12, image: 224, patch: 16 };
    let common = common(fields, defaults)?;
    let act = activation(fields, "gelu_pytorch_tanh")?;
    let base = tower(Layout::Clip, common, act, eps(fields, "layer_norm_eps", 1e-6)?);
    Ok(Config { final_norm: Some("post_layernorm"), pooling_norm: Some("post_layernorm"), ..base })
}

fn internvl(fields: &Fields<'_>, final_norm: bool) -> Result<Config, ConfigError> {
    let defaults =
        Common { width: 1024, mlp_width: 4096, layers: 24, heads: 16, image: 448, patch: 14 };
    let common = common(fields, defaults)?;
    let norm = match fields.text("norm_type", "layer_norm")?.as_str() {
        "layer_norm" => NormKind::Layer,
        "rms_norm" => NormKind::Rms,
        other => return Err(fields.error("norm_type", "layer_norm or rms_norm", other)),
    };
    let act = activation(fields, "gelu")?;
    let base = tower(Layout::Intern, common, act, eps(fields, "layer_norm_eps", 1e-6)?);
    let pooled = fields.flag("use_mean_pooling", true)?;
    Ok(Config {
        class_token: true,
        qkv_bias: fields.flag("attention_bias", false)?,
        norm,
        final_norm: (final_norm && !pooled).then_some("layernorm"),
        layer_scale: true,
        qk_norm: fields.flag("use_qk_norm", false)?,
        positions: Positions::Bicubic,
        ..base
    })
}

fn idefics3(fields: &Fields<'_>) -> Result<Config, ConfigError> {
    let defaults =
        Common { width: 1152, mlp_width: 3072, layers: 12, heads: 16, image: 224, patch: 32 };
    let common = common(fields, defaults)?;
    let act = activation(fields, "gelu_pytorch_tanh")?;
    let base = tower(Layout::Clip, common, act, eps(fields, "layer_norm_eps", 1e-6)?);
    Ok(Config { final_norm: Some("post_layernorm"), positions: Positions::Bucket, ..base })
}

/// The fields that the Qwen towers share; `width_key` names the tower's own width.
fn qwen(
    fields: &Fields<'_>,
    width_key: &str,
    (width, layers, patch): (usize, usize, usize),
    act: &str,
) -> Result<Config, ConfigError> {
    check_channels(fields)?;
    let common = Common {
        width: fields.size(width_key, WIDTHS, Some(width))?,
        mlp_width: 1,
        layers: fields.size("depth", 1..=1024, Some(layers))?,
        heads: fields.size("num_heads", 1..=4096, Some(16))?,
        image: 0,
        patch: square_side(fields, "patch_size", patch)?,
    };
    let rope = fields.object("rope_parameters")?;
    Ok(Config {
        temporal: fields.size("temporal_patch_size", 1..=16, Some(2))?,
        merge: fields.size("spatial_merge_size", 1..=16, Some(2))?,
        table: 0,
        patch_bias: false,
        positions: Positions::Rope,
        rope_theta: rope.number("rope_theta", 1.0..=1e12, Some(10_000.0))?,
        ..tower(Layout::Qwen, common, activation(fields, act)?, 1e-6)
    })
}

fn qwen2(fields: &Fields<'_>) -> Result<Config, ConfigError> {
    // In this generation `hidden_size` is the decoder's width.
    let base = qwen(fields, "embed_dim", (1280, 32, 14), "quick_gelu")?;
    let ratio = fields.number("mlp_ratio", 1e-3..=1e3, Some(4.0))?;
    Ok(Config { mlp_width: (base.width as f64 * ratio) as usize, ..base })
}

fn qwen2_5(fields: &Fields<'_>) -> Result<Config, ConfigError> {
    let base = qwen(fields, "hidden_size", (3584, 32, 14), "silu")?;
    let window = fields.size("window_size", SIDES, Some(112))?;
    let side = window / base.merge / base.patch;
    if side == 0 {
        let expected = format!("at least one merged cell of {} pixels", base.merge * base.patch);
        return Err(fields.error("window_size", &expected, &window.to_string()));
    }
    let full = indexes(fields, "fullatt_block_indexes", &[7, 15, 23, 31])?;
    Ok(Config {
        mlp_width: fields.size("intermediate_size", 1..=1 << 20, Some(3420))?,
        norm: NormKind::Rms,
        mlp: Mlp::Gated,
        windows: Some(Windows { side, full }),
        ..base
    })
}

fn qwen3(fields: &Fields<'_>) -> Result<Config, ConfigError> {
    let base = qwen(fields, "hidden_size", (1152, 27, 16), "gelu_pytorch_tanh")?;
    let cells = fields.size("num_position_embeddings", 1..=1 << 24, Some(2304))?;
    let table = cells.isqrt();
    if table * table != cells {
        return Err(fields.error("num_position_embeddings", "a square number", &cells.to_string()));
    }
    Ok(Config {
        mlp_width: fields.size("intermediate_size", 1..=1 << 20, Some(4304))?,
        table,
        patch_bias: true,
        mlp: Mlp::Plain("linear_fc1", "linear_fc2"),
        positions: Positions::RopeAndTable,
        levels: indexes(fields, "deepstack_visual_indexes", &[8, 16, 24])?,
        ..base
    })
}

fn indexes(fields: &Fields<'_>, key: &str, default: &[usize]) -> Result<Vec<usize>, ConfigError> {
    let Some(value) = fields.get(key) else { return Ok(default.to_vec()) };
    let list: Option<Vec<usize>> = value.as_array().and_then(|list| {
        list.iter().map(|v| v.as_u64().map(|n| n as usize).filter(|n| *n < 1024)).collect()
    });
    list.ok_or_else(|| fields.error(key, "a list of block numbers below 1024", &short(value)))
}
