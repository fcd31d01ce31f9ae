//! The text configuration: which variants a decoder is made of.

use secateur_core::error::ConfigError;
use secateur_core::files::{Fields, short};
use secateur_core::ops::Activation;
use serde_json::Value;

use super::{MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, activation, list};
use crate::blocks::config::{DecoderConfig, Gain, LayerNorms, Windows};
use crate::blocks::rope::{Rope, RopeAxes, RopeScaling};

/// How the heads of M-RoPE split their frequencies, with the published default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Axes {
    One,
    Chunked([usize; 3]),
    Interleaved([usize; 3]),
}

/// Defaults and fixed traits of a decoder class.
#[derive(Clone, Copy, Debug)]
struct Class {
    name: &'static str,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    /// `None`: as many as query heads.
    kv_heads: Option<usize>,
    /// `None`: the width over the heads.
    head_dim: Option<usize>,
    vocab: usize,
    eps: f64,
    context: usize,
    theta: f64,
    /// q, k and v have a bias whatever the file says.
    qkv_bias: bool,
    qk_norm: bool,
    gemma: bool,
    axes: Axes,
}

const LLAMA: Class = Class {
    name: "llama",
    hidden: 4096,
    intermediate: 11008,
    layers: 32,
    heads: 32,
    kv_heads: None,
    head_dim: None,
    vocab: 32000,
    eps: 1e-6,
    context: 2048,
    theta: 1e4,
    qkv_bias: false,
    qk_norm: false,
    gemma: false,
    axes: Axes::One,
};
const MISTRAL: Class =
    Class { name: "mistral", intermediate: 14336, kv_heads: Some(8), context: 131_072, ..LLAMA };
const QWEN2: Class = Class {
    name: "qwen2",
    intermediate: 22016,
    kv_heads: Some(32),
    vocab: 151_936,
    context: 32768,
    qkv_bias: true,
    ..LLAMA
};
const QWEN3: Class =
    Class { name: "qwen3", head_dim: Some(128), qkv_bias: false, qk_norm: true, ..QWEN2 };
const GEMMA: Class = Class {
    name: "gemma",
    hidden: 3072,
    intermediate: 24576,
    layers: 28,
    heads: 16,
    kv_heads: Some(16),
    head_dim: Some(256),
    vocab: 256_000,
    context: 8192,
    gemma: true,
    ..LLAMA
};
const GEMMA2: Class = Class {
    name: "gemma2",
    hidden: 2304,
    intermediate: 9216,
    layers: 26,
    heads: 8,
    kv_heads: Some(4),
    ..GEMMA
};
const QWEN2_VL: Class = Class {
    name: "qwen2_vl_text",
    hidden: 8192,
    intermediate: 29568,
    layers: 80,
    heads: 64,
    kv_heads: None,
    vocab: 152_064,
    eps: 1e-5,
    theta: 1e6,
    axes: Axes::Chunked([16, 24, 24]),
    ..QWEN2
};
const QWEN2_5_VL: Class = Class { name: "qwen2_5_vl_text", ..QWEN2_VL };
const QWEN3_VL: Class = Class {
    name: "qwen3_vl_text",
    context: 128_000,
    theta: 5e5,
    axes: Axes::Interleaved([24, 20, 20]),
    ..QWEN3
};

const CLASSES: &[&Class] =
    &[&LLAMA, &MISTRAL, &QWEN2, &QWEN3, &GEMMA, &GEMMA2, &QWEN2_VL, &QWEN2_5_VL, &QWEN3_VL];

/// What a family says about its decoder where the files are silent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DecoderDefaults {
    /// `model_type` of an absent or nameless text configuration.
    pub(crate) kind: &'static str,
    /// The class, whatever name the text configuration gives itself.
    pub(crate) forced: bool,
    /// Added to the mean square; else that of the class.
    pub(crate) eps: Option<f64>,
}

/// Reads a decoder. `text` is its own configuration; whether the head is tied is not read: the
/// tensors say.
///
/// # Errors
/// A field that cannot be, or a class or variant that is not supported.
pub(crate) fn decoder(
    text: &Fields<'_>,
    defaults: DecoderDefaults,
) -> Result<DecoderConfig, ConfigError> {
    let kind = if defaults.forced {
        defaults.kind.to_owned()
    } else {
        text.text("model_type", defaults.kind)?
    };
    let class =
        CLASSES.iter().find(|c| c.name == kind).ok_or_else(|| ConfigError::Unsupported {
            file: text.file().to_owned(),
            what: "decoder",
            found: kind.clone(),
            supported: CLASSES.iter().map(|c| c.name).collect::<Vec<_>>().join(", "),
        })?;
    let hidden = text.size("hidden_size", 1..=MAX_WIDTH, Some(class.hidden))?;
    let attn_heads = text.size("num_attention_heads", 1..=MAX_HEADS, Some(class.heads))?;
    let kv_default = class.kv_heads.unwrap_or(attn_heads);
    let kv_heads = text.size("num_key_value_heads", 1..=MAX_HEADS, Some(kv_default))?;
    if !attn_heads.is_multiple_of(kv_heads) {
        let expected = format!("a divisor of the {attn_heads} query heads");
        return Err(text.error("num_key_value_heads", &expected, &kv_heads.to_string()));
    }
    let head_dim = match (text.get("head_dim"), class.head_dim) {
        (None, None) if !hidden.is_multiple_of(attn_heads) => {
            let expected = format!("a divisor of `hidden_size` {hidden}, or `head_dim` beside it");
            return Err(text.error("num_attention_heads", &expected, &attn_heads.to_string()));
        }
        (None, None) => hidden / attn_heads,
        (_, default) => text.size("head_dim", 1..=MAX_WIDTH, default)?,
    };
    if head_dim % 2 == 1 {
        return Err(text.error("head_dim", "an even number", &head_dim.to_string()));
    }
    let layers = text.size("num_hidden_layers", 1..=MAX_LAYERS, Some(class.layers))?;
    let flag = |key: &str| text.flag(key, false);
    let attention_bias = flag("attention_bias")?;
    let gemma2 = class.name == GEMMA2.name;
    let softcap = |key: &str, default: f64| -> Result<Option<f32>, ConfigError> {
        // `null` turns it off, absence leaves the default.
        if !gemma2 || (text.has(key) && text.get(key).is_none()) {
            return Ok(None);
        }
        Ok(Some(text.number(key, 1e-3..=1e6, Some(default))? as f32))
    };
    let scale_base = if gemma2 {
        text.number("query_pre_attn_scalar", 1e-3..=1e6, Some(256.0))?
    } else {
        head_dim as f64
    };
    Ok(DecoderConfig {
        layers,
        hidden,
        intermediate: text.size("intermediate_size", 1..=MAX_WIDTH, Some(class.intermediate))?,
        attn_heads,
        kv_heads,
        head_dim,
        vocab: text.size("vocab_size", 1..=MAX_VOCAB, Some(class.vocab))?,
        context: text.size("max_position_embeddings", 1..=MAX_CONTEXT, Some(class.context))?,
        eps: text.number("rms_norm_eps", 0.0..=1.0, Some(defaults.eps.unwrap_or(class.eps)))?
            as f32,
        rope: rope(text, class, head_dim)?,
        gain: if class.gemma { Gain::LessOne } else { Gain::Plain },
        norms: if gemma2 { LayerNorms::Four } else { LayerNorms::Two },
        qkv_bias: class.qkv_bias || attention_bias,
        output_bias: attention_bias && !class.qkv_bias,
        mlp_bias: flag("mlp_bias")?,
        qk_norm: class.qk_norm,
        activation: gate_activation(text, class)?,
        scale: (1.0 / scale_base.sqrt()) as f32,
        attention_softcap: softcap("attn_logit_softcapping", 50.0)?,
        logit_softcap: softcap("final_logit_softcapping", 30.0)?,
        windows: windows(text, class, layers)?,
        embedding_scale: class.gemma.then(|| (hidden as f32).sqrt()),
        prefix_lm: false,
        kind,
    })
}

/// Gemma's files say `gelu` and mean the tanh form; Gemma2 has a key of its own.
fn gate_activation(text: &Fields<'_>, class: &Class) -> Result<Activation, ConfigError> {
    if !class.gemma {
        return activation(text, "hidden_act", "silu");
    }
    let key =
        if text.get("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
    Ok(match activation(text, key, "gelu_pytorch_tanh")? {
        Activation::GeluErf => Activation::GeluTanh,
        other => other,
    })
}

fn rope(text: &Fields<'_>, class: &Class, head_dim: usize) -> Result<Rope, ConfigError> {
    // As transformers 5.24: an old key with anything in it hides the new one, whole.
    let old = text.object("rope_scaling")?;
    let hides = old.keys().next().is_some();
    let params = if hides { old } else { text.object("rope_parameters")? };
    let unsupported = |found: &str| ConfigError::Unsupported {
        file: text.file().to_owned(),
        what: "rope type",
        found: found.to_owned(),
        supported: "default, linear, llama3, mrope".into(),
    };
    if let Some(of_layers) = ["full_attention", "sliding_attention"].iter().find(|k| params.has(k))
    {
        return Err(unsupported(&format!("one for each kind of layer, `{of_layers}`")));
    }
    const THETA: &str = "rope_theta";
    let holder = if params.get(THETA).is_some() { &params } else { text };
    let theta = holder.number(THETA, 1e-3..=1e12, Some(class.theta))? as f32;
    let key = if params.get("rope_type").is_some() { "rope_type" } else { "type" };
    let number = |key: &str| Ok::<f32, ConfigError>(params.number(key, 1e-3..=1e9, None)? as f32);
    let kind = params.text(key, "default")?;
    if kind != "default" && kind != "mrope" {
        const PARTIAL: &str = "partial_rotary_factor";
        let holder = if params.get(PARTIAL).is_some() { &params } else { text };
        holder.number(PARTIAL, 1.0..=1.0, Some(1.0))?;
    }
    let scaling = match kind.as_str() {
        "default" => RopeScaling::Default,
        "mrope" if class.axes != Axes::One => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: number("factor")? },
        "llama3" => {
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            if high <= low {
                let expected = format!("more than `low_freq_factor` {low}");
                return Err(params.error("high_freq_factor", &expected, &high.to_string()));
            }
            RopeScaling::Llama3 {
                factor: number("factor")?,
                low,
                high,
                original: original_context(text, &params, class)?,
            }
        }
        other => return Err(unsupported(other)),
    };
    let sections = |default: [usize; 3]| -> Result<[usize; 3], ConfigError> {
        const KEY: &str = "mrope_section";
        let given = list(&params, KEY, 0..=head_dim)?;
        let found = given.clone().unwrap_or_else(|| default.to_vec());
        <[usize; 3]>::try_from(found.clone())
            .ok()
            .filter(|s| s.iter().sum::<usize>() == head_dim / 2)
            .ok_or_else(|| {
                let expected = format!("three numbers with the sum {}", head_dim / 2);
                params.error(KEY, &expected, &format!("{found:?}"))
            })
    };
    let axes = match class.axes {
        Axes::One => RopeAxes::One,
        Axes::Chunked(default) => RopeAxes::Chunked(sections(default)?),
        Axes::Interleaved(default) => RopeAxes::Interleaved(sections(default)?),
    };
    Ok(Rope { theta, scaling, axes })
}

/// Positions that a decoder was first made for: beside the parameters of the rotation, among them,
/// or else its context.
fn original_context(
    text: &Fields<'_>,
    params: &Fields<'_>,
    class: &Class,
) -> Result<f32, ConfigError> {
    const KEY: &str = "original_max_position_embeddings";
    let (holder, key) = match (text.get(KEY), params.get(KEY)) {
        (Some(_), _) => (text, KEY),
        (None, Some(_)) => (params, KEY),
        (None, None) => (text, "max_position_embeddings"),
    };
    Ok(holder.number(key, 1e-3..=1e9, Some(class.context as f64))? as f32)
}

/// Which layers have a window. Mistral: absent means 4096, `null` means none.
fn windows(text: &Fields<'_>, class: &Class, layers: usize) -> Result<Windows, ConfigError> {
    const KEY: &str = "sliding_window";
    let off = text.has(KEY) && text.get(KEY).is_none();
    let window = || text.size(KEY, 1..=MAX_CONTEXT, Some(4096)).map(|w| w as i32);
    let marked = match class.name {
        "mistral" if !off => vec![true; layers],
        "gemma2" if !off => {
            layer_types(text, layers)?.unwrap_or_else(|| (0..layers).map(|i| i % 2 == 0).collect())
        }
        "qwen2" | "qwen3" | "qwen2_vl_text" | "qwen2_5_vl_text"
            if !off && text.flag("use_sliding_window", false)? =>
        {
            let first = text.size("max_window_layers", 0..=MAX_LAYERS, Some(28))?;
            layer_types(text, layers)?.unwrap_or_else(|| (0..layers).map(|i| i >= first).collect())
        }
        _ => return Ok(Windows::None),
    };
    Ok(Windows::Layers { window: window()?, layers: marked })
}

/// `layer_types`: which layers are `sliding_attention`.
fn layer_types(text: &Fields<'_>, layers: usize) -> Result<Option<Vec<bool>>, ConfigError> {
    const KEY: &str = "layer_types";
    let Some(value) = text.get(KEY) else { return Ok(None) };
    let sliding = |v: &Value| match v.as_str() {
        Some("sliding_attention") => Some(true),
        Some("full_attention") => Some(false),
        _ => None,
    };
    value
        .as_array()
        .filter(|list| list.len() == layers)
        .and_then(|list| list.iter().map(sliding).collect())
        .map(Some)
        .ok_or_else(|| {
            let expected =
                format!("{layers} entries, each `sliding_attention` or `full_attention`");
            text.error(KEY, &expected, &short(value))
        })
}
