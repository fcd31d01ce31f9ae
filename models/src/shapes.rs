//! Named shapes for benchmarks: folders that exist in the program alone, for random weights
//! ([`secateur_core::weights::Weights::random`]).
//!
//! Each has the configuration of a published model, its processor's settings, and a tokenizer of
//! single bytes with the model's placeholders at their ids, so that everything but the answer is
//! as in the real model.
//!
//! `tinyllava-1b` is the shape that the project's figures are given for: the tower of LLaVA-1.5
//! (CLIP-L/14-336) and a decoder of 22 layers, 2048 wide, 32 query and 4 key heads of 64.

use std::sync::OnceLock;

use secateur_core::files::ModelFiles;
use serde_json::{Map, Value, json};

/// Names of the shapes.
pub const SHAPES: &[&str] = &["llava-1.5-7b", "tinyllava-1b", "qwen2.5-vl-3b", "smolvlm-256m"];

type Files = Vec<(&'static str, &'static [u8])>;

/// The folder of a shape; `None` if there is none of that name.
pub fn shape(name: &str) -> Option<ModelFiles> {
    static FILES: OnceLock<Vec<Files>> = OnceLock::new();
    let at = SHAPES.iter().position(|s| *s == name)?;
    let all = FILES.get_or_init(|| vec![llava_7b(), tinyllava(), qwen_3b(), smolvlm()]);
    Some(ModelFiles::embedded(SHAPES[at], &all[at]))
}

/// Files that live as long as the program.
fn files(
    config: Value,
    preprocessor: Value,
    bos: Option<&str>,
    special: &[(u32, String)],
) -> Files {
    let named = bos.map_or_else(|| json!({}), |bos| json!({ "bos_token": bos }));
    let leak = |value: Value| -> &'static [u8] { value.to_string().into_bytes().leak() };
    vec![
        ("config.json", leak(config)),
        ("preprocessor_config.json", leak(preprocessor)),
        ("tokenizer_config.json", leak(named)),
        ("tokenizer.json", leak(byte_tokenizer(bos, special))),
    ]
}

/// A tokenizer whose tokens are the 256 bytes (ids from 3) and `special` ones; `bos` is put in
/// front of every text.
fn byte_tokenizer(bos: Option<&str>, special: &[(u32, String)]) -> Value {
    let mut vocab = Map::new();
    for (byte, letter) in byte_letters() {
        vocab.insert(letter.to_string(), json!(3 + u32::from(byte)));
    }
    let mut added = Vec::new();
    for (id, text) in special {
        vocab.insert(text.clone(), json!(id));
        added.push(json!({
            "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        }));
    }
    let post = match bos.and_then(|b| special.iter().find(|s| s.1 == b)) {
        None => Value::Null,
        Some((id, text)) => json!({
            "type": "TemplateProcessing",
            "single": [
                { "SpecialToken": { "id": text, "type_id": 0 } },
                { "Sequence": { "id": "A", "type_id": 0 } }
            ],
            "pair": [
                { "Sequence": { "id": "A", "type_id": 0 } },
                { "Sequence": { "id": "B", "type_id": 1 } }
            ],
            "special_tokens": { text: { "id": text, "ids": [id], "tokens": [text] } }
        }),
    };
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
        },
        "post_processor": post,
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
        },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab, "merges": []
        }
    })
}

/// The letters that byte-level tokenizers write bytes with: printable ones are themselves, the
/// others follow from U+0100 on.
fn byte_letters() -> Vec<(u8, char)> {
    let mut next = 0x100;
    (0..=255u8)
        .map(|byte| {
            let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
            let letter = if printable {
                char::from(byte)
            } else {
                next += 1;
                char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
            };
            (byte, letter)
        })
        .collect()
}

fn special(tokens: &[(u32, &str)]) -> Vec<(u32, String)> {
    tokens.iter().map(|(id, text)| (*id, (*text).to_owned())).collect()
}

fn clip() -> Value {
    json!({
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": true, "do_resize": true,
        "size": { "shortest_edge": 336 }, "resample": 3, "do_center_crop": true,
        "crop_size": { "height": 336, "width": 336 }, "do_rescale": true,
        "rescale_factor": 0.00392156862745098, "do_normalize": true,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711]
    })
}

fn clip_tower() -> Value {
    let mut tower = crate::llava::default_vision();
    tower["model_type"] = json!("clip_vision_model");
    tower
}

fn llava_7b() -> Files {
    let config = json!({
        "model_type": "llava", "image_token_index": 32000, "eos_token_id": 2, "bos_token_id": 1,
        "text_config": {
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
            "vocab_size": 32064, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096
        },
        "vision_config": clip_tower()
    });
    files(config, clip(), Some("<s>"), &special(&[(1, "<s>"), (2, "</s>"), (32000, "<image>")]))
}

fn tinyllava() -> Files {
    let config = json!({
        "model_type": "llava", "image_token_index": 31999, "eos_token_id": 2, "bos_token_id": 1,
        "text_config": {
            "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632,
            "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
            "vocab_size": 32000, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096
        },
        "vision_config": clip_tower()
    });
    files(config, clip(), Some("<s>"), &special(&[(1, "<s>"), (2, "</s>"), (31999, "<image>")]))
}

fn qwen_3b() -> Files {
    let config = json!({
        "model_type": "qwen2_5_vl", "tie_word_embeddings": true, "eos_token_id": 151_645,
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151_936,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 128_000,
        "rope_scaling": { "type": "mrope", "mrope_section": [16, 24, 24] },
        "image_token_id": 151_655, "video_token_id": 151_656,
        "vision_start_token_id": 151_652, "vision_end_token_id": 151_653,
        "vision_config": {
            "model_type": "qwen2_5_vl", "depth": 32, "hidden_act": "silu", "hidden_size": 1280,
            "intermediate_size": 3420, "num_heads": 16, "in_channels": 3, "out_hidden_size": 2048,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2
        }
    });
    let preprocessor = json!({
        "image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136,
        "max_pixels": 12_845_056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711]
    });
    let tokens = special(&[
        (151_643, "<|endoftext|>"),
        (151_644, "<|im_start|>"),
        (151_645, "<|im_end|>"),
        (151_652, "<|vision_start|>"),
        (151_653, "<|vision_end|>"),
        (151_655, "<|image_pad|>"),
        (151_656, "<|video_pad|>"),
    ]);
    files(config, preprocessor, None, &tokens)
}

fn smolvlm() -> Files {
    let config = json!({
        "model_type": "smolvlm", "image_token_id": 49190, "scale_factor": 4,
        "tie_word_embeddings": true, "eos_token_id": 49279,
        "text_config": {
            "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
            "head_dim": 64, "vocab_size": 49280, "rms_norm_eps": 1e-5, "rope_theta": 1e5,
            "max_position_embeddings": 8192
        },
        "vision_config": {
            "model_type": "smolvlm_vision", "hidden_size": 768, "intermediate_size": 3072,
            "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 512,
            "patch_size": 16, "hidden_act": "gelu_pytorch_tanh"
        }
    });
    let preprocessor = json!({
        "image_processor_type": "SmolVLMImageProcessor", "do_resize": true, "do_rescale": true,
        "rescale_factor": 0.00392156862745098, "do_normalize": true, "do_convert_rgb": true,
        "do_pad": true, "resample": 1, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        "size": { "longest_edge": 2048 }, "max_image_size": { "longest_edge": 512 },
        "do_image_splitting": true
    });
    let mut tokens = special(&[
        (1, "<|im_start|>"),
        (49152, "<global-img>"),
        (49189, "<fake_token_around_image>"),
        (49190, "<image>"),
        (49279, "<end_of_utterance>"),
    ]);
    let tags = (1..=6).flat_map(|r| (1..=6).map(move |c| format!("<row_{r}_col_{c}>")));
    tokens.extend((49153..).zip(tags));
    files(config, preprocessor, None, &tokens)
}
