//! Tensors of a GGUF pair under the names of published checkpoints.
//!
//! Invariants
//! - A table row is a name with `{}` where a block's number stands, without `.weight` and `.bias`.
//! - What the converter of llama.cpp did to a tensor is undone here: rows of q and k that were
//!   permuted for another form of rotation, q, k and v that were parted, a convolution over two
//!   frames that was cut in two, the MLP matrices that older files name the wrong way round.
//! - Rows are put back in order by views; only what was parted is copied.
//!
//! Source: names of `gguf` 0.19 (`MODEL_TENSORS`), conversions of llama.cpp's converters.

use std::collections::BTreeMap;

use secateur_core::tensor::DType;
use secateur_core::weights::{Format, WeightFile, WeightView};

use crate::error::LoadError;

/// Name in the file, name in a checkpoint.
pub(super) type Names = &'static [(&'static str, &'static str)];

/// Decoders of all architectures.
pub(super) const DECODER: Names = &[
    ("token_embd", "language_model.model.embed_tokens"),
    ("output_norm", "language_model.model.norm"),
    ("output", "language_model.lm_head"),
    ("blk.{}.attn_norm", "language_model.model.layers.{}.input_layernorm"),
    ("blk.{}.attn_q", "language_model.model.layers.{}.self_attn.q_proj"),
    ("blk.{}.attn_k", "language_model.model.layers.{}.self_attn.k_proj"),
    ("blk.{}.attn_v", "language_model.model.layers.{}.self_attn.v_proj"),
    ("blk.{}.attn_output", "language_model.model.layers.{}.self_attn.o_proj"),
    ("blk.{}.attn_q_norm", "language_model.model.layers.{}.self_attn.q_norm"),
    ("blk.{}.attn_k_norm", "language_model.model.layers.{}.self_attn.k_norm"),
    ("blk.{}.ffn_norm", "language_model.model.layers.{}.post_attention_layernorm"),
    ("blk.{}.ffn_gate", "language_model.model.layers.{}.mlp.gate_proj"),
    ("blk.{}.ffn_up", "language_model.model.layers.{}.mlp.up_proj"),
    ("blk.{}.ffn_down", "language_model.model.layers.{}.mlp.down_proj"),
];

/// CLIP and SigLIP towers with the projectors of LLaVA and SmolVLM.
pub(super) const CLIP: Names = &[
    ("v.class_embd", "vision_tower.embeddings.class_embedding"),
    ("v.patch_embd", "vision_tower.embeddings.patch_embedding"),
    ("v.position_embd", "vision_tower.embeddings.position_embedding"),
    ("v.pre_ln", "vision_tower.pre_layrnorm"),
    ("v.post_ln", "vision_tower.post_layernorm"),
    ("v.blk.{}.ln1", "vision_tower.encoder.layers.{}.layer_norm1"),
    ("v.blk.{}.ln2", "vision_tower.encoder.layers.{}.layer_norm2"),
    ("v.blk.{}.attn_q", "vision_tower.encoder.layers.{}.self_attn.q_proj"),
    ("v.blk.{}.attn_k", "vision_tower.encoder.layers.{}.self_attn.k_proj"),
    ("v.blk.{}.attn_v", "vision_tower.encoder.layers.{}.self_attn.v_proj"),
    ("v.blk.{}.attn_out", "vision_tower.encoder.layers.{}.self_attn.out_proj"),
    ("v.blk.{}.ffn_up", "vision_tower.encoder.layers.{}.mlp.fc1"),
    ("v.blk.{}.ffn_down", "vision_tower.encoder.layers.{}.mlp.fc2"),
    ("mm.0", "multi_modal_projector.linear_1"),
    ("mm.2", "multi_modal_projector.linear_2"),
    ("mm.model.fc", "connector.modality_projection.proj"),
];

/// InternViT with its projector.
pub(super) const INTERN: Names = &[
    ("v.class_embd", "vision_tower.embeddings.cls_token"),
    ("v.patch_embd", "vision_tower.embeddings.patch_embeddings.projection"),
    ("v.position_embd", "vision_tower.embeddings.position_embeddings"),
    ("v.blk.{}.ln1", "vision_tower.encoder.layer.{}.layernorm_before"),
    ("v.blk.{}.ln2", "vision_tower.encoder.layer.{}.layernorm_after"),
    ("v.blk.{}.ls1", "vision_tower.encoder.layer.{}.lambda_1"),
    ("v.blk.{}.ls2", "vision_tower.encoder.layer.{}.lambda_2"),
    ("v.blk.{}.attn_q", "vision_tower.encoder.layer.{}.attention.q_proj"),
    ("v.blk.{}.attn_k", "vision_tower.encoder.layer.{}.attention.k_proj"),
    ("v.blk.{}.attn_v", "vision_tower.encoder.layer.{}.attention.v_proj"),
    ("v.blk.{}.attn_out", "vision_tower.encoder.layer.{}.attention.projection_layer"),
    ("v.blk.{}.attn_q_norm", "vision_tower.encoder.layer.{}.attention.q_norm"),
    ("v.blk.{}.attn_k_norm", "vision_tower.encoder.layer.{}.attention.k_norm"),
    ("v.blk.{}.ffn_up", "vision_tower.encoder.layer.{}.mlp.fc1"),
    ("v.blk.{}.ffn_down", "vision_tower.encoder.layer.{}.mlp.fc2"),
    ("mm.model.mlp.0", "multi_modal_projector.layer_norm"),
    ("mm.model.mlp.1", "multi_modal_projector.linear_1"),
    ("mm.model.mlp.3", "multi_modal_projector.linear_2"),
];

/// The towers of all Qwen families.
pub(super) const QWEN: Names = &[
    ("v.patch_embd", "visual.patch_embed.proj"),
    ("v.blk.{}.ln1", "visual.blocks.{}.norm1"),
    ("v.blk.{}.ln2", "visual.blocks.{}.norm2"),
    ("v.blk.{}.attn_qkv", "visual.blocks.{}.attn.qkv"),
    ("v.blk.{}.attn_out", "visual.blocks.{}.attn.proj"),
];

/// The merger of Qwen2-VL and Qwen2.5-VL.
pub(super) const QWEN2_MERGER: Names = &[
    ("v.post_ln", "visual.merger.ln_q"),
    ("mm.0", "visual.merger.mlp.0"),
    ("mm.2", "visual.merger.mlp.2"),
];

/// The MLP of Qwen2-VL.
pub(super) const QWEN2_MLP: Names = &[
    ("v.blk.{}.ffn_up", "visual.blocks.{}.mlp.fc1"),
    ("v.blk.{}.ffn_down", "visual.blocks.{}.mlp.fc2"),
];

/// The MLP of Qwen2.5-VL.
pub(super) const QWEN2_5_MLP: Names = &[
    ("v.blk.{}.ffn_gate", "visual.blocks.{}.mlp.gate_proj"),
    ("v.blk.{}.ffn_up", "visual.blocks.{}.mlp.up_proj"),
    ("v.blk.{}.ffn_down", "visual.blocks.{}.mlp.down_proj"),
];

/// What Qwen3-VL has of its own; its deepstack mergers are numbered by their block, which
/// [`renamed`] counts off.
pub(super) const QWEN3: Names = &[
    ("v.position_embd", "visual.pos_embed"),
    ("v.blk.{}.ffn_up", "visual.blocks.{}.mlp.linear_fc1"),
    ("v.blk.{}.ffn_down", "visual.blocks.{}.mlp.linear_fc2"),
    ("v.deepstack.{}.norm", "visual.deepstack_merger_list.{}.norm"),
    ("v.deepstack.{}.fc1", "visual.deepstack_merger_list.{}.linear_fc1"),
    ("v.deepstack.{}.fc2", "visual.deepstack_merger_list.{}.linear_fc2"),
    ("v.post_ln", "visual.merger.norm"),
    ("mm.0", "visual.merger.linear_fc1"),
    ("mm.2", "visual.merger.linear_fc2"),
];

/// Tensors under their names in the file.
pub(super) type Tensors = BTreeMap<String, WeightView>;

/// The tensors that some tables know, under their names in a checkpoint.
pub(super) fn renamed(tensors: &Tensors, names: &[Names]) -> Vec<(String, WeightView)> {
    // Deepstack mergers count from 0 in a checkpoint.
    let mut deep: Vec<usize> = tensors
        .keys()
        .filter_map(|name| name.strip_prefix("v.deepstack.")?.split('.').next()?.parse().ok())
        .collect();
    deep.sort_unstable();
    deep.dedup();
    let mut found = Vec::new();
    for (name, view) in tensors {
        let Some((stem, leaf)) = name.rsplit_once('.') else { continue };
        let (stem, leaf) = match leaf {
            "weight" | "bias" => (stem, Some(leaf)),
            // A class token is a tensor of its own, without a leaf.
            _ => (name.as_str(), None),
        };
        let fit = names
            .iter()
            .copied()
            .flatten()
            .find_map(|(from, to)| Some((matches(stem, from)?, *to)));
        let Some((block, to)) = fit else { continue };
        let block = match block {
            Some(block) if stem.starts_with("v.deepstack.") => deep.binary_search(&block).ok(),
            other => other,
        };
        let to = block.map_or_else(|| to.to_owned(), |n| to.replace("{}", &n.to_string()));
        let to = match leaf {
            Some(leaf) if has_leaf(&to) => format!("{to}.{leaf}"),
            _ => to,
        };
        // Sides of 1 in front are dropped by some converters and kept by others.
        let width = view.shape().last().copied().unwrap_or(1).max(1);
        let view = if to.ends_with("class_embedding") {
            view.reshaped(&[view.len()])
        } else if to.ends_with("cls_token") {
            view.reshaped(&[1, 1, view.len()])
        } else if to.ends_with("position_embeddings") {
            view.reshaped(&[1, view.len() / width, width])
        } else {
            view.clone()
        };
        found.push((to, view));
    }
    found
}

/// Whether a checkpoint writes `.weight` behind this name.
fn has_leaf(name: &str) -> bool {
    !["class_embedding", "cls_token", "position_embeddings", "lambda_1", "lambda_2"]
        .iter()
        .any(|bare| name.ends_with(bare))
}

/// Whether a name fits a pattern, and the number that stands for its `{}`.
fn matches(name: &str, pattern: &str) -> Option<Option<usize>> {
    let Some((before, after)) = pattern.split_once("{}") else {
        return (name == pattern).then_some(None);
    };
    let number = name.strip_prefix(before)?.strip_suffix(after)?;
    Some(Some(number.parse().ok()?))
}

/// q and k of the `llama` architecture, whose heads the converter wrote as pairs of neighbours:
/// half `s`, place `j` of a head of width `d` stands in row `2 j + s`.
pub(super) fn unpermute(tensors: &mut Tensors, head_dim: usize) {
    for (name, view) in tensors.iter_mut() {
        let is_rotated = ["attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias"]
            .iter()
            .any(|leaf| name.strip_suffix(leaf).is_some_and(|n| n.starts_with("blk.")));
        let rows = view.shape()[0];
        if is_rotated && head_dim >= 2 && rows.is_multiple_of(head_dim) {
            let half = head_dim / 2;
            let source = |row: usize| {
                let (head, at) = (row / head_dim, row % head_dim);
                (head * head_dim + 2 * (at % half) + at / half) as u32
            };
            *view = view.reordered((0..rows).map(source).collect());
        }
    }
}

/// Older files of CLIP towers call the first matrix of an MLP `ffn_down`: shapes tell.
pub(super) fn swap_mlp(tensors: &mut Tensors, width: usize) {
    let first = "v.blk.0.ffn_down.weight";
    let is_swapped = tensors
        .get(first)
        .is_some_and(|w| w.shape().len() == 2 && w.shape()[1] == width && w.shape()[0] != width);
    if is_swapped {
        let swap = |name: &str| {
            if name.contains(".ffn_down.") {
                name.replace(".ffn_down.", ".ffn_up.")
            } else {
                name.replace(".ffn_up.", ".ffn_down.")
            }
        };
        *tensors = std::mem::take(tensors).into_iter().map(|(n, v)| (swap(&n), v)).collect();
    }
}

/// Puts `attn_q`, `attn_k` and `attn_v` of a tower below one another as `attn_qkv`.
///
/// # Errors
/// If they are stored in different formats.
pub(super) fn join_qkv(tensors: &mut Tensors) -> Result<(), LoadError> {
    for leaf in ["weight", "bias"] {
        for block in 0.. {
            let name = |part: &str| format!("v.blk.{block}.attn_{part}.{leaf}");
            let parts: Vec<WeightView> =
                ["q", "k", "v"].iter().filter_map(|p| tensors.get(&name(p)).cloned()).collect();
            if parts.len() != 3 {
                break;
            }
            tensors.insert(name("qkv"), stacked(&name("qkv"), &parts)?);
        }
    }
    Ok(())
}

/// Tensors that differ in their number of rows alone, below one another.
fn stacked(name: &str, parts: &[WeightView]) -> Result<WeightView, LoadError> {
    let first = &parts[0];
    let same = |p: &WeightView| p.shape()[1..] == first.shape()[1..];
    let mut shape = first.shape().to_vec();
    shape[0] = parts.iter().map(|p| p.shape()[0]).sum();
    if parts.iter().all(|p| same(p) && p.format() == first.format()) {
        let bytes: Vec<u8> = parts.iter().flat_map(|p| p.bytes()).copied().collect();
        return Ok(WeightFile::in_memory(first.file(), bytes).view(
            name,
            first.format(),
            &shape,
            0,
        )?);
    }
    let values: Vec<f32> = parts.iter().flat_map(WeightView::to_f32).collect();
    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let f32 = Format::Plain(DType::F32);
    Ok(WeightFile::in_memory(first.file(), bytes).view(name, f32, &shape, 0)?)
}

/// Puts the two frames of a patch embedding, `[width, 3, y, x]` each, side by side as
/// `[width, 3, 2, y, x]`.
///
/// # Errors
/// If the two halves have different shapes.
pub(super) fn join_frames(tensors: &mut Tensors) -> Result<(), LoadError> {
    const FIRST: &str = "v.patch_embd.weight";
    const SECOND: &str = "v.patch_embd.weight.1";
    let (Some(first), Some(second)) = (tensors.get(FIRST).cloned(), tensors.remove(SECOND)) else {
        return Ok(());
    };
    let &[width, channels, y, x] = first.shape() else { return Ok(()) };
    let (a, b) = (first.to_f32(), second.to_f32());
    let frame = (y * x).max(1);
    let bytes: Vec<u8> = a
        .chunks(frame)
        .zip(b.chunks(frame))
        .flat_map(|(a, b)| a.iter().chain(b))
        .flat_map(|v| v.to_le_bytes())
        .collect();
    let shape = [width, channels, 2, y, x];
    let f32 = Format::Plain(DType::F32);
    let joined = WeightFile::in_memory(first.file(), bytes).view(FIRST, f32, &shape, 0)?;
    tensors.insert(FIRST.into(), joined);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(names: &[&str]) -> Tensors {
        let view = |n: &str| (n.to_owned(), WeightView::from_f32(n, &[1, 1], &[0.0]));
        names.iter().map(|n| view(n)).collect()
    }

    #[test]
    fn names_become_those_of_a_checkpoint() {
        let found = renamed(
            &tensors(&["v.blk.12.ln1.bias", "v.class_embd", "mm.2.weight", "v.unknown.weight"]),
            &[CLIP],
        );
        let names: Vec<&str> = found.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(
            names,
            [
                "multi_modal_projector.linear_2.weight",
                "vision_tower.encoder.layers.12.layer_norm1.bias",
                "vision_tower.embeddings.class_embedding"
            ]
        );
        let found =
            renamed(&tensors(&["v.deepstack.16.fc1.bias", "v.deepstack.8.fc1.bias"]), &[QWEN3]);
        let mut names: Vec<&str> = found.iter().map(|(n, _)| n.as_str()).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "visual.deepstack_merger_list.0.linear_fc1.bias",
                "visual.deepstack_merger_list.1.linear_fc1.bias"
            ]
        );
    }

    #[test]
    fn rotated_rows_come_back_in_halves() {
        // A head of width 4 as the converter writes it: place 0 of both halves, then place 1.
        let written = WeightView::from_f32("w", &[4, 1], &[0.0, 2.0, 1.0, 3.0]);
        let mut all = Tensors::from([("blk.0.attn_q.weight".to_owned(), written)]);
        unpermute(&mut all, 4);
        assert_eq!(all["blk.0.attn_q.weight"].to_f32(), [0.0, 1.0, 2.0, 3.0]);
    }
}
