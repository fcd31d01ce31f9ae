//! `config.json` and `preprocessor_config.json` from the metadata of a GGUF pair.
//!
//! Invariants
//! - A row of [`PROJECTORS`] is all there is to a family: which projector it has, how its tensors
//!   are called, and what its configuration says. What comes out is an ordinary configuration,
//!   which the family reads and checks as it does one of a folder.
//! - Sizes that converters are known to write wrongly are taken from the tensors' shapes.
//! - What neither file says is what the published checkpoints of the family say.

use secateur_core::error::ConfigError;
use serde_json::{Value, json};

use super::container::Metadata;
use super::names::{self, Names, Tensors};
use super::tokenizer::Vocabulary;

/// One kind of projector file.
pub(super) struct Projector {
    /// `clip.projector_type`
    pub(super) name: &'static str,
    /// Names of its tensors.
    pub(super) names: &'static [Names],
    /// Whether the tower takes q, k and v as one matrix.
    pub(super) joined_qkv: bool,
    /// Class of a decoder that is the family's own.
    text_kind: Option<&'static str>,
    /// The configuration beside `text_config`, and that of the processor.
    family: Family,
}

/// All kinds that are read.
pub(super) const PROJECTORS: &[Projector] = &[
    one("mlp", &[names::CLIP], llava),
    one("idefics3", &[names::CLIP], smolvlm),
    one("internvl", &[names::INTERN], internvl),
    qwen(
        "qwen2vl_merger",
        &[names::QWEN, names::QWEN2_MLP, names::QWEN2_MERGER],
        "qwen2_vl_text",
        qwen2,
    ),
    qwen(
        "qwen2.5vl_merger",
        &[names::QWEN, names::QWEN2_5_MLP, names::QWEN2_MERGER],
        "qwen2_5_vl_text",
        qwen2_5,
    ),
    qwen("qwen3vl_merger", &[names::QWEN, names::QWEN3], "qwen3_vl_text", qwen3),
];

type Family = fn(&Pair<'_>) -> Result<(Value, Value), ConfigError>;

const fn one(name: &'static str, names: &'static [Names], family: Family) -> Projector {
    Projector { name, names, joined_qkv: false, text_kind: None, family }
}

const fn qwen(
    name: &'static str,
    names: &'static [Names],
    text_kind: &'static str,
    family: Family,
) -> Projector {
    Projector { name, names, joined_qkv: true, text_kind: Some(text_kind), family }
}

/// A decoder's file and its projector's.
pub(super) struct Pair<'a> {
    pub(super) decoder: Metadata<'a>,
    pub(super) projector: Metadata<'a>,
    pub(super) decoder_tensors: &'a Tensors,
    pub(super) tower_tensors: &'a Tensors,
    pub(super) vocabulary: &'a Vocabulary<'a>,
}

/// What stands in the place of the small files of a folder.
pub(super) struct Described {
    /// `config.json`
    pub(super) config: Value,
    /// `preprocessor_config.json`
    pub(super) processor: Value,
    /// A token that is to be spelled differently: the picture's, where the vocabulary has none.
    pub(super) spelled: Option<(usize, &'static str)>,
}

const PICTURE: &str = "<image>";

/// Writes the configurations of a pair.
///
/// # Errors
/// Keys that are missing or cannot be, an architecture that is not read.
pub(super) fn describe(projector: &Projector, pair: &Pair<'_>) -> Result<Described, ConfigError> {
    let (mut config, processor) = (projector.family)(pair)?;
    config["tie_word_embeddings"] = json!(!pair.decoder_tensors.contains_key("output.weight"));
    config["text_config"] = text(pair, projector.text_kind)?;
    let blocks = format!("{}.block_count", pair.decoder.text("general.architecture")?);
    check_blocks(pair.decoder, pair.decoder_tensors, "blk.", &blocks, 0)?;
    // Files of the first LLaVA may hold the tower's last block, which the model does not read.
    let unread = usize::from(projector.name == "mlp");
    check_blocks(pair.projector, pair.tower_tensors, "v.blk.", "clip.vision.block_count", unread)?;
    // Files of the first LLaVA have no token for a picture: the unknown token, which a vocabulary
    // with bytes never needs, takes its place.
    let is_spelled = projector.name == "mlp" && pair.vocabulary.id(PICTURE).is_none();
    let spelled = pair.vocabulary.unknown().filter(|_| is_spelled).map(|id| (id, PICTURE));
    Ok(Described { config, processor, spelled })
}

/// `text_config`; `kind` is the class of a family that has its own.
fn text(pair: &Pair<'_>, kind: Option<&str>) -> Result<Value, ConfigError> {
    let meta = pair.decoder;
    let arch = meta.text("general.architecture")?;
    let class = match arch {
        "llama" => "llama",
        "qwen2" => "qwen2",
        "qwen3" => "qwen3",
        "qwen2vl" | "qwen3vl" => kind.unwrap_or(arch),
        other => {
            return Err(ConfigError::Unsupported {
                file: meta.label().to_owned(),
                what: "general.architecture",
                found: other.to_owned(),
                supported: "llama, qwen2, qwen3, qwen2vl, qwen3vl".into(),
            });
        }
    };
    let key = |leaf: &str| format!("{arch}.{leaf}");
    let heads = meta.size(&key("attention.head_count"))?;
    let hidden = meta.size(&key("embedding_length"))?;
    let head_dim = head_dim(meta)?;
    let mut text = json!({
        "model_type": class,
        "hidden_size": hidden,
        "intermediate_size": meta.size(&key("feed_forward_length"))?,
        "num_hidden_layers": meta.size(&key("block_count"))?,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": head_dim,
        "max_position_embeddings": meta.size(&key("context_length"))?,
        "rms_norm_eps": meta.required(&key("attention.layer_norm_rms_epsilon"), "a number")?,
        "rope_theta": 10_000.0,
        "sliding_window": null,
    });
    if meta.get(&key("attention.head_count_kv")).is_some() {
        text["num_key_value_heads"] = json!(meta.size(&key("attention.head_count_kv"))?);
    }
    if let Some(theta) = meta.get(&key("rope.freq_base")) {
        text["rope_theta"] = theta.clone();
    }
    let rotated = key("rope.dimension_count");
    if meta.get(&rotated).is_some() && meta.size(&rotated)? != head_dim {
        return Err(meta.error(&rotated, &format!("the width of a head, {head_dim}")));
    }
    let rows = pair.decoder_tensors.get("token_embd.weight").and_then(|t| t.shape().first());
    text["vocab_size"] = json!(rows.copied().unwrap_or(pair.vocabulary.len()));
    text["rope_scaling"] = scaling(pair, arch)?;
    Ok(text)
}

/// A file that holds more blocks than its key says is damaged or was patched: half a model would
/// answer. Fewer are tensors that are missing. `unread` more are fine.
fn check_blocks(
    meta: Metadata<'_>,
    tensors: &Tensors,
    prefix: &str,
    key: &str,
    unread: usize,
) -> Result<(), ConfigError> {
    let said = meta.size(key)?;
    let number = |name: &String| name.strip_prefix(prefix)?.split('.').next()?.parse().ok();
    let held = tensors.keys().filter_map(number).max().map_or(0, |last: usize| last + 1);
    if held > said.saturating_add(unread) {
        return Err(meta.error(key, &format!("{held}, the blocks that the file holds tensors of")));
    }
    Ok(())
}

/// Width of a head.
///
/// # Errors
/// Keys that are missing.
pub(super) fn head_dim(meta: Metadata<'_>) -> Result<usize, ConfigError> {
    let arch = meta.text("general.architecture")?;
    let key = |leaf: &str| format!("{arch}.{leaf}");
    let own = key("attention.key_length");
    if meta.get(&own).is_some() {
        return meta.size(&own);
    }
    let heads = meta.size(&key("attention.head_count"))?;
    Ok(meta.size(&key("embedding_length"))? / heads.max(1))
}

/// `rope_scaling`: the sections of M-RoPE, a linear factor, or both.
fn scaling(pair: &Pair<'_>, arch: &str) -> Result<Value, ConfigError> {
    let meta = pair.decoder;
    if pair.decoder_tensors.contains_key("rope_freqs.weight") {
        return Err(ConfigError::Unsupported {
            file: meta.label().to_owned(),
            what: "rotation",
            found: "factors of its own (tensor `rope_freqs.weight`)".into(),
            supported: "plain and linear".into(),
        });
    }
    let kind = format!("{arch}.rope.scaling.type");
    let mut scaling = match meta.get(&kind).map(|_| meta.text(&kind)).transpose()? {
        None | Some("none") => json!({ "rope_type": "default" }),
        Some("linear") => {
            let factor = meta.required(&format!("{arch}.rope.scaling.factor"), "a number")?;
            json!({ "rope_type": "linear", "factor": factor })
        }
        Some(_) => return Err(meta.error(&kind, "`none` or `linear`")),
    };
    let sections = format!("{arch}.rope.dimension_sections");
    if meta.get(&sections).is_some() {
        let list = meta.list(&sections)?;
        let three = list.get(..3).ok_or_else(|| meta.error(&sections, "three numbers or more"))?;
        scaling["mrope_section"] = json!(three);
    }
    Ok(scaling)
}

impl Pair<'_> {
    fn vision(&self, leaf: &str) -> Result<usize, ConfigError> {
        self.projector.size(&format!("clip.vision.{leaf}"))
    }

    /// Rows of a matrix of the first block; `key` of the metadata where it is not there.
    fn rows_of(&self, tensor: &str, key: &str) -> Result<usize, ConfigError> {
        match self.tower_tensors.get(&format!("v.blk.0.{tensor}.weight")).map(|t| t.shape()) {
            Some([rows, _]) => Ok(*rows),
            _ => self.vision(key),
        }
    }

    /// The fields of a tower like CLIP.
    fn tower(&self, kind: &str, activation: &str) -> Result<Value, ConfigError> {
        let eps = "clip.vision.attention.layer_norm_epsilon";
        Ok(json!({
            "model_type": kind,
            "hidden_size": self.vision("embedding_length")?,
            "intermediate_size": self.rows_of("ffn_up", "feed_forward_length")?,
            "num_hidden_layers": self.vision("block_count")?,
            "num_attention_heads": self.vision("attention.head_count")?,
            "image_size": self.vision("image_size")?,
            "patch_size": self.vision("patch_size")?,
            "layer_norm_eps": self.projector.required(eps, "a number")?,
            "hidden_act": activation,
        }))
    }

    /// The fields that the towers of Qwen share.
    fn qwen_tower(&self, width_key: &str, activation: &str) -> Result<Value, ConfigError> {
        let mut tower = json!({
            "depth": self.vision("block_count")?,
            "num_heads": self.vision("attention.head_count")?,
            "patch_size": self.vision("patch_size")?,
            "spatial_merge_size": self.optional("spatial_merge_size", 2)?,
            "temporal_patch_size": 2,
            "hidden_act": activation,
        });
        tower[width_key] = json!(self.vision("embedding_length")?);
        Ok(tower)
    }

    fn optional(&self, leaf: &str, default: usize) -> Result<usize, ConfigError> {
        let key = format!("clip.vision.{leaf}");
        self.projector.get(&key).map_or(Ok(default), |_| self.projector.size(&key))
    }

    /// The activation that the file's flags name.
    fn activation(&self) -> &'static str {
        let says = |key: &str| self.projector.flag(key, false);
        match (says("clip.use_silu"), says("clip.use_gelu")) {
            (true, _) => "silu",
            (false, true) => "gelu",
            (false, false) => "quick_gelu",
        }
    }

    /// A processor's configuration: means and deviations with what `rest` adds.
    fn processor(&self, rest: Value) -> Result<Value, ConfigError> {
        let mut all = json!({
            "image_mean": self.projector.list("clip.vision.image_mean")?,
            "image_std": self.projector.list("clip.vision.image_std")?,
        });
        if let (Some(all), Value::Object(rest)) = (all.as_object_mut(), rest) {
            all.extend(rest);
        }
        Ok(all)
    }

    /// Fewest and most pixels of a picture, where the file says them.
    fn qwen_processor(&self, patch: usize, class: &str) -> Result<Value, ConfigError> {
        let mut all = self.processor(json!({
            "image_processor_type": class,
            "patch_size": patch, "temporal_patch_size": 2,
            "merge_size": self.optional("spatial_merge_size", 2)?,
        }))?;
        for (key, name) in [("image_min_pixels", "min_pixels"), ("image_max_pixels", "max_pixels")]
        {
            if self.projector.get(&format!("clip.vision.{key}")).is_some() {
                all[name] = json!(self.vision(key)?);
            }
        }
        Ok(all)
    }
}

/// LLaVA-1.5.
fn llava(pair: &Pair<'_>) -> Result<(Value, Value), ConfigError> {
    const LAYERS: &str = "clip.vision.feature_layer";
    let layers = match pair.projector.get(LAYERS) {
        Some(_) => json!(pair.projector.list(LAYERS)?),
        None => json!(pair.vision("block_count")?),
    };
    let image = pair.vocabulary.id(PICTURE).or_else(|| pair.vocabulary.unknown());
    let side = pair.vision("image_size")?;
    let config = json!({
        "model_type": "llava",
        "vision_config": pair.tower("clip_vision_model", pair.activation())?,
        "vision_feature_layer": layers,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "image_token_index": image.map_or_else(|| pair.vocabulary.require(PICTURE), Ok)?,
    });
    let processor = pair.processor(json!({
        "image_processor_type": "CLIPImageProcessor", "resample": 3,
        "size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side},
        "do_center_crop": true,
    }))?;
    Ok((config, processor))
}

/// SmolVLM, SmolVLM2 and Idefics3, which differ in the beginning of a prompt.
fn smolvlm(pair: &Pair<'_>) -> Result<(Value, Value), ConfigError> {
    let is_idefics = pair.vocabulary.id("<|begin_of_text|>").is_some();
    let (family, tower) =
        if is_idefics { ("idefics3", "idefics3_vision") } else { ("smolvlm", "smolvlm_vision") };
    let side = pair.vision("image_size")?;
    let config = json!({
        "model_type": family,
        // Files say `use_gelu` of both forms; this tower has the one with tanh.
        "vision_config": pair.tower(tower, "gelu_pytorch_tanh")?,
        "scale_factor": pair.vision("projector.scale_factor")?,
        "image_token_id": pair.vocabulary.require(PICTURE)?,
    });
    let processor = pair.processor(json!({
        "image_processor_type": "SmolVLMImageProcessor", "resample": 1,
        "size": {"longest_edge": pair.optional("preproc_image_size", 4 * side)?},
        "max_image_size": {"longest_edge": side},
        "do_image_splitting": true, "do_pad": true,
    }))?;
    Ok((config, processor))
}

/// InternVL 2.5 and 3.
fn internvl(pair: &Pair<'_>) -> Result<(Value, Value), ConfigError> {
    let side = pair.vision("image_size")?;
    let factor = pair.vision("projector.scale_factor")?.max(1);
    let mut tower = pair.tower("internvl_vision", pair.activation())?;
    let has = |tensor: &str| pair.tower_tensors.contains_key(&format!("v.blk.0.{tensor}"));
    tower["attention_bias"] = json!(has("attn_q.bias"));
    tower["use_qk_norm"] = json!(has("attn_q_norm.weight"));
    tower["norm_type"] = json!(if has("ln1.bias") { "layer_norm" } else { "rms_norm" });
    let config = json!({
        "model_type": "internvl",
        "vision_config": tower,
        "downsample_ratio": 1.0 / factor as f64,
        "vision_feature_layer": -1,
        "image_seq_length": (side / pair.vision("patch_size")?.max(1) / factor).pow(2),
        "image_token_id": pair.vocabulary.require("<IMG_CONTEXT>")?,
    });
    let processor = pair.processor(json!({
        "image_processor_type": "GotOcr2ImageProcessor", "resample": 3,
        "size": {"height": side, "width": side},
        "crop_to_patches": true,
        "min_patches": pair.optional("preproc_min_tiles", 1)?,
        "max_patches": pair.optional("preproc_max_tiles", 12)?,
    }))?;
    Ok((config, processor))
}

/// What the Qwen families share beside their tower.
fn qwen_config(pair: &Pair<'_>, family: &str, tower: Value) -> Result<Value, ConfigError> {
    let id = |token: &str| pair.vocabulary.require(token);
    Ok(json!({
        "model_type": family,
        "vision_config": tower,
        "image_token_id": id("<|image_pad|>")?,
        "video_token_id": id("<|video_pad|>")?,
        "vision_start_token_id": id("<|vision_start|>")?,
        "vision_end_token_id": id("<|vision_end|>")?,
    }))
}

fn qwen2(pair: &Pair<'_>) -> Result<(Value, Value), ConfigError> {
    let mut tower = pair.qwen_tower("embed_dim", "quick_gelu")?;
    // The converter writes the decoder's width as that of the MLP.
    let width = pair.vision("embedding_length")?.max(1);
    let inner = pair.rows_of("ffn_up", "feed_forward_length")?;
    tower["mlp_ratio"] = json!(inner as f64 / width as f64);
    tower["hidden_size"] = json!(pair.vision("projection_dim")?);
    let config = qwen_config(pair, "qwen2_vl", tower)?;
    Ok((config, pair.qwen_processor(pair.vision("patch_size")?, "Qwen2VLImageProcessor")?))
}

fn qwen2_5(pair: &Pair<'_>) -> Result<(Value, Value), ConfigError> {
    let mut tower = pair.qwen_tower("hidden_size", "silu")?;
    tower["intermediate_size"] = json!(pair.rows_of("ffn_up", "feed_forward_length")?);
    tower["out_hidden_size"] = json!(pair.vision("projection_dim")?);
    tower["window_size"] = json!(pair.optional("window_size", 112)?);
    // Every n-th block sees the whole frame.
    let every = pair.optional("n_wa_pattern", 8)?.max(1);
    let depth = pair.vision("block_count")?.min(1024);
    let full: Vec<usize> = (1..=depth).filter(|n| n.is_multiple_of(every)).map(|n| n - 1).collect();
    tower["fullatt_block_indexes"] = json!(full);
    let config = qwen_config(pair, "qwen2_5_vl", tower)?;
    Ok((config, pair.qwen_processor(pair.vision("patch_size")?, "Qwen2VLImageProcessor")?))
}

fn qwen3(pair: &Pair<'_>) -> Result<(Value, Value), ConfigError> {
    const DEEP: &str = "clip.vision.is_deepstack_layers";
    let mut tower = pair.qwen_tower("hidden_size", "gelu_pytorch_tanh")?;
    tower["intermediate_size"] = json!(pair.rows_of("ffn_up", "feed_forward_length")?);
    tower["out_hidden_size"] = json!(pair.vision("projection_dim")?);
    let cells = pair.vision("image_size")? / pair.vision("patch_size")?.max(1);
    tower["num_position_embeddings"] = json!(cells * cells);
    let marks = pair.projector.list(DEEP)?.iter().enumerate();
    let deep: Vec<usize> = marks.filter(|(_, m)| **m == json!(true)).map(|(i, _)| i).collect();
    tower["deepstack_visual_indexes"] = json!(deep);
    let config = qwen_config(pair, "qwen3_vl", tower)?;
    Ok((config, pair.qwen_processor(pair.vision("patch_size")?, "Qwen2VLImageProcessorFast")?))
}
