//! One canonical name for each tensor, whatever release of transformers wrote the file.
//!
//! | canonical | published before 4.52 (a) | module tree (b) | `save_pretrained` of 5.24 (c) |
//! | --- | --- | --- | --- |
//! | `decoder.*` | `language_model.model.*` | `model.language_model.*` | as (a) |
//! | `head.weight` | `language_model.lm_head.weight` | `lm_head.weight` | as (a) |
//! | `tower.*` | `vision_tower.vision_model.*` | `model.vision_tower.*` | `vision_tower.*` |
//! | `projector.*` | `multi_modal_projector.*` | `model.multi_modal_projector.*` | as (a) |
//! | `newline` | `image_newline` | `model.image_newline` | as (a) |
//!
//! Qwen: `visual.*` or `model.visual.*` is the tower, its `merger` and `deepstack_merger_list` are
//! projectors, `model.layers` or `model.language_model.layers` the decoder. SmolVLM and Idefics3:
//! `model.vision_model`, `model.connector.modality_projection`, `model.text_model`. No two of these
//! collide, so one table serves all families. Tensors that no family reads are dropped.

/// Prefixes after an optional `model.`, and what they become; the first that fits is taken.
const PREFIXES: &[(&str, &str)] = &[
    ("language_model.model.", "decoder."),
    ("language_model.lm_head.", "head."),
    ("lm_head.", "head."),
    ("language_model.", "decoder."),
    ("text_model.", "decoder."),
    ("vision_tower.vision_model.", "tower."),
    ("vision_tower.", "tower."),
    ("vision_model.", "tower."),
    ("visual.merger.", "projector."),
    ("visual.deepstack_merger_list.", "projector.deepstack."),
    ("visual.", "tower."),
    ("multi_modal_projector.", "projector."),
    ("connector.modality_projection.", "projector."),
    ("image_newline", "newline"),
    ("embed_tokens.", "decoder.embed_tokens."),
    ("layers.", "decoder.layers."),
    ("norm.", "decoder.norm."),
];

/// The canonical name of a tensor; `None` for those that no family reads.
pub fn canonical(name: &str) -> Option<String> {
    let name = name.strip_prefix("model.").unwrap_or(name);
    let (rest, canonical) = PREFIXES
        .iter()
        .find_map(|(prefix, canonical)| Some((name.strip_prefix(prefix)?, canonical)))?;
    let unread = rest.ends_with("position_ids") || rest.ends_with("rotary_emb.inv_freq");
    (!unread).then(|| format!("{canonical}{rest}"))
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn every_layout_becomes_one() {
        let same = [
            (
                "decoder.layers.3.mlp.up_proj.weight",
                vec![
                    "language_model.model.layers.3.mlp.up_proj.weight",
                    "model.language_model.layers.3.mlp.up_proj.weight",
                    "model.layers.3.mlp.up_proj.weight",
                    "model.text_model.layers.3.mlp.up_proj.weight",
                ],
            ),
            ("decoder.norm.weight", vec!["model.norm.weight", "language_model.model.norm.weight"]),
            ("head.weight", vec!["lm_head.weight", "language_model.lm_head.weight"]),
            (
                "tower.encoder.layers.0.layer_norm1.weight",
                vec![
                    "vision_tower.vision_model.encoder.layers.0.layer_norm1.weight",
                    "model.vision_tower.vision_model.encoder.layers.0.layer_norm1.weight",
                    "vision_tower.encoder.layers.0.layer_norm1.weight",
                    "model.vision_model.encoder.layers.0.layer_norm1.weight",
                ],
            ),
            (
                "tower.blocks.1.attn.qkv.bias",
                vec!["visual.blocks.1.attn.qkv.bias", "model.visual.blocks.1.attn.qkv.bias"],
            ),
            ("tower.head.probe", vec!["vision_tower.vision_model.head.probe"]),
            ("projector.mlp.0.weight", vec!["visual.merger.mlp.0.weight"]),
            (
                "projector.deepstack.1.norm.bias",
                vec!["model.visual.deepstack_merger_list.1.norm.bias"],
            ),
            (
                "projector.linear_1.bias",
                vec![
                    "multi_modal_projector.linear_1.bias",
                    "model.multi_modal_projector.linear_1.bias",
                ],
            ),
            ("newline", vec!["image_newline", "model.image_newline"]),
        ];
        for (want, names) in same {
            for name in names {
                assert_eq!(canonical(name).as_deref(), Some(want), "{name}");
            }
        }
    }

    #[test]
    fn unread_tensors_are_dropped() {
        for name in [
            "vision_tower.vision_model.embeddings.position_ids",
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "something.else",
        ] {
            assert_eq!(canonical(name), None, "{name}");
        }
    }
}
