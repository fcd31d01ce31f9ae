//! What a folder is and how it loads: names of tensors, configurations that lie, unknown families,
//! templates, shapes without weights.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use secateur_core::error::ConfigError;
use secateur_core::files::ModelFiles;
use secateur_core::model::Decoder;
use secateur_core::ops::Ops;
use secateur_core::tensor::DType;
use secateur_core::weights::Weights;
use secateur_models::text::{ChatTemplate, Message, SpecialTokens, TextModel};
use secateur_models::weights::canonical;
use secateur_models::{FAMILIES, ModelOptions, describe, load, shapes};
use serde_json::{Value, json};
use support::{reference, root};

/// A folder that holds one configuration and nothing else.
fn folder(config: &Value) -> ModelFiles {
    let bytes: &'static [u8] = config.to_string().into_bytes().leak();
    let files: &'static [(&str, &[u8])] = vec![("config.json", bytes)].leak();
    ModelFiles::embedded("test", files)
}

fn config_of(model: &str) -> Value {
    let files = ModelFiles::folder(&root().join("models").join(model)).unwrap();
    files.required_json("config.json").unwrap()
}

/// Names of one layout, made from canonical ones.
fn named(prefixes: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<String> {
    move |name| {
        prefixes.iter().find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)))
    }
}

#[test]
fn one_model_under_every_layout_of_names() {
    const PUBLISHED: &[(&str, &str)] = &[
        ("decoder.", "language_model.model."),
        ("head.", "language_model.lm_head."),
        ("tower.", "vision_tower.vision_model."),
        ("projector.", "multi_modal_projector."),
        ("newline", "image_newline"),
    ];
    const MODULE_TREE: &[(&str, &str)] = &[
        ("decoder.", "model.language_model."),
        ("head.", "lm_head."),
        ("tower.", "model.vision_tower."),
        ("projector.", "model.multi_modal_projector."),
        ("newline", "model.image_newline"),
    ];
    const SAVED: &[(&str, &str)] = &[
        ("decoder.", "language_model.model."),
        ("head.", "language_model.lm_head."),
        ("tower.", "vision_tower."),
        ("projector.", "multi_modal_projector."),
        ("newline", "image_newline"),
    ];
    for model in ["llava-1.5-tiny", "llava-next-tiny", "llava-onevision-tiny", "internvl-tiny"] {
        let dir = root().join("models").join(model);
        let files = ModelFiles::folder(&dir).unwrap();
        let original = Weights::open(&dir).unwrap();
        let logits = |weights: Weights| {
            let model = load(&files, weights, &reference(), ModelOptions::default()).unwrap();
            let decoder: &dyn Decoder = model.family.decoder();
            let hidden = decoder.final_hidden(&decoder.embed(&[1, 7, 300]).unwrap()).unwrap();
            (decoder.logits(&hidden).unwrap().host().to_vec(), model.weights.names().len())
        };
        let (want, tensors) = logits(original.clone());
        for layout in [PUBLISHED, MODULE_TREE, SAVED] {
            let renamed = original.clone().renamed(canonical).renamed(named(layout));
            assert_eq!(renamed.names().len(), tensors, "{model}: every tensor got a name");
            assert_eq!(logits(renamed).0, want, "{model}: {layout:?}");
        }
    }
}

#[test]
fn a_head_that_is_absent_is_the_embedding() {
    let dir = root().join("models/llava-1.5-tiny");
    let files = ModelFiles::folder(&dir).unwrap();
    let headless = Weights::open(&dir)
        .unwrap()
        .renamed(canonical)
        .renamed(|name| (name != "head.weight").then(|| format!("model.{}", uncanonical(name))));
    let model = load(&files, headless, &reference(), ModelOptions::default()).unwrap();
    let decoder = model.family.decoder();
    let row = decoder.embed(&[42]).unwrap();
    let logits = decoder.logits(&row).unwrap();
    let own: f32 = row.host().iter().map(|x| x * x).sum();
    assert!((logits.row(0)[42] - own).abs() < 1e-4 * own);
}

/// A name of the module tree, without `model.`.
fn uncanonical(name: &str) -> String {
    name.replacen("decoder.", "language_model.", 1).replacen("tower.", "vision_tower.", 1).replacen(
        "projector.",
        "multi_modal_projector.",
        1,
    )
}

#[test]
fn a_tensor_that_is_missing_or_misshapen_is_named() {
    let dir = root().join("models/llava-1.5-tiny");
    let files = ModelFiles::folder(&dir).unwrap();
    let error = |weights: Weights| {
        load(&files, weights, &reference(), ModelOptions::default()).unwrap_err().to_string()
    };
    let gone = Weights::open(&dir).unwrap().renamed(|name| {
        (!name.ends_with("layers.3.self_attn.k_proj.weight")).then(|| name.to_owned())
    });
    let message = error(gone);
    assert!(message.contains("decoder.layers.3.self_attn.k_proj.weight"), "{message}");
    let swapped = Weights::open(&dir).unwrap().renamed(|name| {
        Some(name.replace("layers.2.self_attn.k_proj", "layers.2.self_attn.swap"))
            .map(|n| n.replace("layers.2.self_attn.q_proj", "layers.2.self_attn.k_proj"))
            .map(|n| n.replace("layers.2.self_attn.swap", "layers.2.self_attn.q_proj"))
    });
    let message = error(swapped);
    assert!(message.contains("layers.2.self_attn") && message.contains("[64, 64]"), "{message}");
}

#[test]
fn a_configuration_that_lies_is_refused_by_field() {
    // Model, place, value, the field that the error must name.
    let cases: &[(&str, &str, Value, &str)] = &[
        ("llava-1.5-tiny", "/text_config/num_attention_heads", json!(0), "num_attention_heads"),
        ("llava-1.5-tiny", "/text_config/num_key_value_heads", json!(3), "num_key_value_heads"),
        ("llava-1.5-tiny", "/text_config/num_hidden_layers", json!(1_000_000), "num_hidden_layers"),
        ("llava-1.5-tiny", "/text_config/hidden_size", json!(u64::MAX), "hidden_size"),
        ("llava-1.5-tiny", "/text_config/hidden_size", json!("64"), "hidden_size"),
        ("llava-1.5-tiny", "/text_config/intermediate_size", json!(-1), "intermediate_size"),
        ("llava-1.5-tiny", "/text_config/vocab_size", json!(0), "vocab_size"),
        ("llava-1.5-tiny", "/text_config/vocab_size", json!(3), "image_token_index"),
        ("llava-1.5-tiny", "/text_config/head_dim", json!(15), "head_dim"),
        ("llava-next-tiny", "/text_config/rope_theta", json!(0), "rope_theta"),
        ("llava-1.5-tiny", "/text_config/rms_norm_eps", json!("tiny"), "rms_norm_eps"),
        ("llava-1.5-tiny", "/text_config/model_type", json!("mamba"), "llama, mistral, qwen2"),
        ("llava-1.5-tiny", "/text_config/hidden_act", json!("sine"), "activation"),
        ("llava-1.5-tiny", "/text_config", json!([1]), "text_config"),
        ("llava-1.5-tiny", "/image_token_index", json!(600), "image_token_index"),
        ("llava-1.5-tiny", "/vision_feature_layer", json!(-9), "vision_feature_layer"),
        ("llava-1.5-tiny", "/vision_feature_layer", json!([]), "vision_feature_layer"),
        (
            "llava-1.5-tiny",
            "/vision_feature_select_strategy",
            json!("none"),
            "vision_feature_select_strategy",
        ),
        ("llava-1.5-tiny", "/vision_config/image_size", json!(7), "vision_config.patch_size"),
        ("llava-1.5-tiny", "/vision_config/num_attention_heads", json!(5), "num_attention_heads"),
        ("llava-1.5-tiny", "/vision_config/model_type", json!("dino"), "vision tower"),
        ("llava-next-tiny", "/image_grid_pinpoints", json!([[1, 2, 3]]), "image_grid_pinpoints"),
        ("llava-onevision-tiny", "/vision_aspect_ratio", json!("pad"), "vision_aspect_ratio"),
        ("internvl-tiny", "/downsample_ratio", json!(0.4), "downsample_ratio"),
        ("internvl-tiny", "/vision_config/image_size", json!([36, 48]), "image_size"),
        ("paligemma2-tiny", "/text_config/layer_types", json!(["full_attention"]), "layer_types"),
        ("paligemma2-tiny", "/text_config/sliding_window", json!(0), "sliding_window"),
        ("qwen2-vl-tiny", "/rope_scaling/mrope_section", json!([2, 3, 4]), "mrope_section"),
        ("qwen2-vl-tiny", "/vision_config/hidden_size", json!(65), "vision_config.hidden_size"),
        ("qwen2-vl-tiny", "/vision_config/depth", json!(0), "vision_config.depth"),
        ("qwen2.5-vl-tiny", "/vision_config/fullatt_block_indexes", json!([9]), "fullatt"),
        ("qwen3-vl-tiny", "/vision_config/deepstack_visual_indexes", json!([0, 4]), "deepstack"),
        ("smolvlm-tiny", "/scale_factor", json!(5), "scale_factor"),
        ("smolvlm-tiny", "/image_token_id", json!(480), "image_token_id"),
    ];
    for (model, place, value, field) in cases {
        let mut config = config_of(model);
        let (parent, key) = place.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[key] = value.clone();
        match describe(&folder(&config), ModelOptions::default()) {
            Ok(_) => panic!("{model}: {place} = {value} was taken"),
            Err(error) => {
                let message = error.to_string();
                assert!(message.contains(field), "{place} = {value}: {message}");
                assert!(message.contains("config.json"), "{place}: names the file: {message}");
            }
        }
    }
}

#[test]
fn rope_kinds_that_are_not_supported_are_refused_by_name() {
    for (kind, refused) in
        [("yarn", true), ("dynamic", true), ("linear", false), ("default", false)]
    {
        let mut config = config_of("llava-1.5-tiny");
        config["text_config"]["rope_parameters"] = json!({ "rope_type": kind, "factor": 2.0 });
        match describe(&folder(&config), ModelOptions::default()) {
            Err(ConfigError::Unsupported { what: "rope type", found, .. }) if refused => {
                assert_eq!(found, kind);
            }
            Ok(_) if !refused => {}
            other => panic!("{kind}: {other:?}"),
        }
    }
    let mut config = config_of("llava-1.5-tiny");
    config["text_config"]["rope_parameters"] = json!({ "type": "linear", "factor": 0.0 });
    let error = describe(&folder(&config), ModelOptions::default()).unwrap_err().to_string();
    assert!(error.contains("text_config.rope_parameters.factor"), "{error}");
}

#[test]
fn an_unknown_family_lists_the_known() {
    let error = describe(&folder(&json!({ "model_type": "blip" })), ModelOptions::default());
    let message = error.unwrap_err().to_string();
    assert!(message.contains("blip") && message.contains("qwen2_5_vl"), "{message}");
    assert!(describe(&folder(&json!([1])), ModelOptions::default()).is_err());
    assert!(describe(&folder(&json!({})), ModelOptions::default()).is_err());
}

#[test]
fn a_part_given_takes_the_defaults_of_its_own_class() {
    let config = json!({
        "model_type": "llava",
        "text_config": {
            "model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5
        },
        "vision_config": { "model_type": "clip_vision_model", "image_size": 336 }
    });
    let found = describe(&folder(&config), ModelOptions::default()).unwrap();
    let (decoder, encoder) = (&found.info().decoder, &found.info().encoder);
    assert_eq!((decoder.hidden, decoder.layers, decoder.kv_heads), (4096, 32, 32));
    // CLIP's class default, not that of LLaVA's own tower: 336 / 32 = 10.
    assert_eq!((encoder.width, found.info().visual_tokens), (768, 100));
    let absent = json!({ "model_type": "llava", "text_config": { "vocab_size": 32064 } });
    let found = describe(&folder(&absent), ModelOptions::default()).unwrap();
    assert_eq!((found.info().encoder.width, found.info().visual_tokens), (1024, 576));
    assert_eq!((found.info().encoder.layers, found.info().encoder.file_layers), (23, 24));
}

#[test]
fn a_window_that_is_absent_and_one_that_is_null_differ() {
    use secateur_models::blocks::config::Windows;
    let windows = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let mut config = config_of("llava-next-tiny");
        change(config["text_config"].as_object_mut().unwrap());
        describe(&folder(&config), ModelOptions::default()).unwrap().decoder().windows.clone()
    };
    assert_eq!(windows(&|_| ()), Windows::None);
    let absent = windows(&|text| {
        text.remove("sliding_window");
    });
    assert_eq!(absent, Windows::Layers { window: 4096, layers: vec![true; 3] });
}

#[test]
fn counts_of_the_published_sizes() {
    // Hub configurations: visual tokens of a square picture of the model's own size.
    let counts = [
        (json!({ "model_type": "llava_next", "text_config": { "vocab_size": 32064 } }), 1176),
        (json!({ "model_type": "llava_onevision" }), 1485),
        (json!({ "model_type": "internvl" }), 256),
        (
            json!({
                "model_type": "paligemma", "text_config": { "vocab_size": 257_216 },
                "vision_config": { "patch_size": 14, "hidden_size": 1152, "num_attention_heads": 16 }
            }),
            256,
        ),
    ];
    for (config, tokens) in counts {
        let found = describe(&folder(&config), ModelOptions::default()).unwrap();
        assert_eq!(found.info().visual_tokens, tokens, "{config}");
    }
}

#[test]
fn every_family_has_a_template_that_renders() {
    for entry in FAMILIES {
        let special = SpecialTokens::default();
        let template = ChatTemplate::compile(entry.name.into(), entry.template, &special).unwrap();
        let videos = usize::from(entry.video);
        let prompt = template.render(&[Message::user(1, videos, "Why?")], true).unwrap();
        assert!(prompt.contains("Why?"), "{}: {prompt}", entry.name);
        assert_eq!(prompt.matches("video").count(), videos, "{}: {prompt}", entry.name);
    }
    let render = |family: &str, message: Message| {
        let entry = FAMILIES.iter().find(|f| f.model_type == family).unwrap();
        let special = SpecialTokens::default();
        let template = ChatTemplate::compile(family.into(), entry.template, &special).unwrap();
        template.render(&[message], true).unwrap()
    };
    for (family, want) in [
        ("llava", "USER: <image>\nWhy? ASSISTANT:"),
        ("llava_next", "[INST] <image>\nWhy? [/INST]"),
        ("llava_onevision", "<|im_start|>user\n<image>\nWhy?<|im_end|>\n<|im_start|>assistant\n"),
        (
            "qwen2_5_vl",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n\
             <|vision_start|><|image_pad|><|vision_end|>Why?<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("smolvlm", "<|im_start|>User:<image>Why?<end_of_utterance>\nAssistant:"),
        ("internvl", "<|im_start|>user\n<IMG_CONTEXT>\nWhy?<|im_end|>\n<|im_start|>assistant\n"),
        ("paligemma", "<image>Why?"),
    ] {
        assert_eq!(render(family, Message::user(1, 0, "Why?")), want);
    }
    let words = render("smolvlm", Message::words("user", "Why?"));
    assert_eq!(words, "<|im_start|>User: Why?<end_of_utterance>\nAssistant:");
}

#[test]
fn texts_of_the_golden_folders() {
    let files = ModelFiles::folder(&root().join("models/llava-1.5-tiny")).unwrap();
    let text = TextModel::load(&files, "").unwrap();
    assert_eq!(text.generation.eos, [2]);
    assert_eq!((text.generation.bos, text.generation.pad), (Some(1), Some(0)));
    let prompt = text.template.render(&[Message::user(1, 0, "How many?")], true).unwrap();
    assert_eq!(prompt, "USER: <image>\nHow many? ASSISTANT:");
    // BOS once, whether the text has it or not.
    let ids = text.tokenizer.encode("Hello", true).unwrap();
    assert_eq!(ids[0], 1);
    assert_eq!(text.tokenizer.encode("<s>Hello", true).unwrap(), ids);
    let files = ModelFiles::folder(&root().join("models/qwen2-vl-tiny")).unwrap();
    let text = TextModel::load(&files, "x").unwrap();
    assert_eq!(text.generation.eos, [468]);
    assert_eq!(text.generation.sampling.do_sample, Some(false));
    assert_eq!(text.template.origin(), "the template of the family");
}

/// The folder of a tiny model where `change` puts other small files.
fn texts_with(change: impl Fn(&mut BTreeMap<&str, Value>)) -> Result<TextModel, ConfigError> {
    let model = root().join("models/llava-1.5-tiny");
    let mut files: BTreeMap<&str, Value> = BTreeMap::new();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let bytes = std::fs::read(model.join(name)).unwrap();
        files.insert(name, serde_json::from_slice(&bytes).unwrap());
    }
    // The placeholder is a token of the vocabulary that nothing lists as added.
    let added = files.get_mut("tokenizer.json").unwrap()["added_tokens"].as_array_mut().unwrap();
    added.retain(|token| token["content"] != "<image>");
    let config = files.get_mut("tokenizer_config.json").unwrap().as_object_mut().unwrap();
    config.remove("image_token");
    config.remove("extra_special_tokens");
    change(&mut files);
    let made = files.into_iter().map(|(n, v)| (n.to_owned(), v.to_string().into_bytes()));
    let files = ModelFiles::described("made", Path::new("nowhere/made.x"), made.collect());
    TextModel::load(&files, "")
}

/// Expected ids and texts are those of transformers 5.24.0.
#[test]
fn added_tokens_are_those_of_every_file_that_lists_them() {
    const CONFIG: &str = "tokenizer_config.json";
    let token = json!({"content": "<image>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true});
    let stripped = json!({"content": "<image>", "lstrip": true, "normalized": false,
        "special": true});
    let ids = |change: &dyn Fn(&mut BTreeMap<&str, Value>)| {
        texts_with(change).unwrap().tokenizer.encode("a <image> b", false).unwrap()
    };
    let config = |key: &'static str, value: Value| {
        ids(&|files| files.get_mut(CONFIG).unwrap()[key] = value.clone())
    };
    let one = [69, 225, 4, 287];
    assert_eq!(ids(&|_| ()), [69, 225, 32, 77, 271, 75, 73, 34, 287], "listed nowhere");
    assert_eq!(config("added_tokens_decoder", json!({"4": token})), one);
    assert_eq!(config("added_tokens_decoder", json!({"650": token})), one, "the text decides");
    assert_eq!(config("additional_special_tokens", json!(["<image>"])), one);
    assert_eq!(config("extra_special_tokens", json!(["<image>"])), one);
    assert_eq!(config("extra_special_tokens", json!({"image_token": "<image>"})), one);
    assert_eq!(config("image_token", json!("<image>")), one);
    assert_eq!(config("added_tokens_decoder", json!({"4": stripped})), [69, 4, 287]);
    let file = |name: &'static str, value: Value| {
        ids(&|files| {
            files.insert(name, value.clone());
        })
    };
    assert_eq!(file("added_tokens.json", json!({"<image>": 4})), one);
    let map = json!({"additional_special_tokens": ["<image>"]});
    assert_eq!(file("special_tokens_map.json", map), one);

    for (list, words) in [
        (json!([1]), "a map of ids"),
        (json!({"x": token}), "an id as the key"),
        (json!({"4": {"special": true}}), "its `content`"),
    ] {
        let error = texts_with(|files| {
            files.get_mut(CONFIG).unwrap()["added_tokens_decoder"] = list.clone();
        })
        .unwrap_err()
        .to_string();
        assert!(error.contains(CONFIG) && error.contains(words), "{error}");
    }
}

#[test]
fn special_tokens_are_named_by_the_files_that_transformers_reads() {
    let named = |config: Value| {
        let text = texts_with(|files| {
            let own = files.get_mut("tokenizer_config.json").unwrap().as_object_mut().unwrap();
            own.extend(config.as_object().unwrap().clone());
            let map = json!({"bos_token": {"content": "<s>"}, "sep_token": "<unk>"});
            files.insert("special_tokens_map.json", map);
        });
        let special = text.unwrap().tokenizer.special().clone();
        ["bos_token", "sep_token", "boi"].map(|name| special.get(name).map(str::to_owned))
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(named(json!({"bos_token": "<pad>"})), [some("<s>"), some("<unk>"), None]);
    let listed = json!({"bos_token": "<pad>", "added_tokens_decoder": {}});
    assert_eq!(named(listed), [some("<pad>"), None, None], "the map is not read then");
    let extra = json!({"extra_special_tokens": {"boi": {"content": "<pad>"}}});
    assert_eq!(named(extra)[2], some("<pad>"), "whatever the name");
}

#[test]
fn a_stream_of_ids_gives_the_text_of_the_whole() {
    for model in ["llava-1.5-tiny", "qwen2-vl-tiny", "paligemma-tiny", "smolvlm-tiny"] {
        let files = ModelFiles::folder(&root().join("models").join(model)).unwrap();
        let tokenizer = TextModel::load(&files, "").unwrap().tokenizer;
        let said = "A naïve café — 東京 🍣, then  two spaces.\nEnd";
        let ids = tokenizer.encode(said, false).unwrap();
        let mut stream = tokenizer.stream(true);
        let mut text = String::new();
        for &id in &ids {
            let piece = stream.step(id).unwrap().unwrap_or_default();
            assert!(!piece.contains(char::REPLACEMENT_CHARACTER), "{model}: {piece:?}");
            text.push_str(&piece);
        }
        text.push_str(&stream.finish().unwrap());
        assert_eq!(text, tokenizer.decode(&ids, true).unwrap(), "{model}");
    }
}

#[test]
fn shapes_describe_themselves_without_weights() {
    for (name, layers, hidden, tokens) in [
        ("llava-1.5-7b", 32, 4096, 576),
        ("tinyllava-1b", 22, 2048, 576),
        ("qwen2.5-vl-3b", 36, 2048, 256),
        ("smolvlm-256m", 30, 576, 1088),
    ] {
        let files = shapes::shape(name).unwrap();
        let found = describe(&files, ModelOptions::default()).unwrap();
        let info = found.info();
        assert_eq!((info.decoder.layers, info.decoder.hidden), (layers, hidden), "{name}");
        assert_eq!(info.visual_tokens, tokens, "{name}");
        let text = TextModel::load(&files, found.entry.template).unwrap();
        let prompt = text.template.render(&[Message::user(1, 0, "Why?")], true).unwrap();
        let ids = text.tokenizer.encode(&prompt, true).unwrap();
        let config = files.required_json("config.json").unwrap();
        let key = if config.get("image_token_id").is_some() {
            "image_token_id"
        } else {
            "image_token_index"
        };
        let image = config[key].as_u64().unwrap() as u32;
        assert_eq!(ids.iter().filter(|&&id| id == image).count(), 1, "{name}: {ids:?}");
        assert_eq!(text.tokenizer.decode(&ids[ids.len() - 3..], true).unwrap().len(), 3, "{name}");
    }
    assert!(shapes::shape("llava-99").is_none());
    assert_eq!(shapes::SHAPES.len(), 4);
}

#[test]
fn random_weights_load_under_any_family() {
    // A small configuration of each kind of projector.
    for model in ["llava-1.5-tiny", "internvl-tiny", "qwen3-vl-tiny", "paligemma2-tiny"] {
        let files = ModelFiles::folder(&root().join("models").join(model)).unwrap();
        let weights = Weights::random(7, DType::Bf16);
        let ops: Arc<dyn Ops> = reference();
        load(&files, weights, &ops, ModelOptions::default()).unwrap();
    }
}

#[test]
fn the_built_in_model_loads() {
    use secateur_models::embedded::{FILES, WEIGHTS};
    let files = ModelFiles::embedded("embedded", FILES);
    let weights = Weights::from_static("embedded", WEIGHTS).unwrap();
    let model = load(&files, weights, &reference(), ModelOptions::default()).unwrap();
    assert_eq!(model.entry.model_type, "llava");
    assert!(!model.text.generation.eos.is_empty());
}
