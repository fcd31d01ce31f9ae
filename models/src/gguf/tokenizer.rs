//! `tokenizer.json` and its companions from the vocabulary of a GGUF file.
//!
//! Two kinds of vocabulary are read: `gpt2` (byte-level BPE with its merges; the split into words
//! is named by `tokenizer.ggml.pre`) and `llama` (SentencePiece BPE, whose merges follow from the
//! scores: of two neighbours, those whose union has the highest score are joined first).
//!
//! Where a `tokenizer.json` lies beside the file, that one is read instead; it also serves a file
//! that holds no vocabulary.

use std::collections::HashMap;

use secateur_core::error::ConfigError;
use serde_json::{Map, Value, json};

use super::container::Metadata;

/// Kinds of tokens, as `tokenizer.ggml.token_type` numbers them.
mod kind {
    pub(super) const UNKNOWN: i64 = 2;
    pub(super) const CONTROL: i64 = 3;
    pub(super) const USER_DEFINED: i64 = 4;
    /// Rows of the embedding table that no token has.
    pub(super) const UNUSED: i64 = 5;
}

const TOKENS: &str = "tokenizer.ggml.tokens";
/// Far above any vocabulary.
const MOST_TOKENS: usize = 1 << 22;

/// How a byte-level vocabulary splits words.
struct Split {
    /// `tokenizer.ggml.pre`
    name: &'static str,
    /// Expression whose matches are words; none: that of GPT-2, which byte-level splitting has.
    pattern: Option<&'static str>,
    /// Each digit is a word.
    digits: bool,
    /// Text is composed first.
    composed: bool,
    /// A word that is a token is not split further.
    whole_words: bool,
}

const LLAMA3: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}\
    | ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const QWEN2: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}\
    | ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

const SPLITS: &[Split] = &[
    split("gpt-2", None),
    split("default", None),
    Split { digits: true, ..split("smollm", None) },
    Split { composed: true, ..split("qwen2", Some(QWEN2)) },
    Split { whole_words: true, ..split("llama-bpe", Some(LLAMA3)) },
    Split { whole_words: true, ..split("llama3", Some(LLAMA3)) },
];

const fn split(name: &'static str, pattern: Option<&'static str>) -> Split {
    Split { name, pattern, digits: false, composed: false, whole_words: false }
}

/// The vocabulary of a file.
pub(super) struct Vocabulary<'a> {
    metadata: Metadata<'a>,
    tokens: Vec<&'a str>,
    kinds: Vec<i64>,
}

impl<'a> Vocabulary<'a> {
    /// Reads tokens and their kinds; of a file that has none, from `beside`, the `tokenizer.json`
    /// that lies beside it.
    ///
    /// # Errors
    /// Lists that are missing or disagree.
    pub(super) fn read(
        metadata: Metadata<'a>,
        beside: Option<(&str, &'a Value)>,
    ) -> Result<Self, ConfigError> {
        const KINDS: &str = "tokenizer.ggml.token_type";
        if metadata.get(TOKENS).is_none() {
            let (file, json) = beside.ok_or_else(|| ConfigError::Format {
                file: metadata.label().to_owned(),
                reason: "holds no vocabulary; put the model's tokenizer.json beside it".into(),
            })?;
            return Self::of_json(metadata, file, json);
        }
        let text = |v: &'a Value| v.as_str();
        let tokens: Option<Vec<&str>> = metadata.list(TOKENS)?.iter().map(text).collect();
        let tokens = tokens.ok_or_else(|| metadata.error(TOKENS, "a list of texts"))?;
        let kinds = match metadata.get(KINDS) {
            None => vec![1; tokens.len()],
            Some(_) => metadata
                .list(KINDS)?
                .iter()
                .map(Value::as_i64)
                .collect::<Option<Vec<_>>>()
                .filter(|kinds| kinds.len() == tokens.len())
                .ok_or_else(|| {
                    metadata.error(KINDS, &format!("{} whole numbers, one a token", tokens.len()))
                })?,
        };
        Ok(Self { metadata, tokens, kinds })
    }

    /// The vocabulary of a `tokenizer.json`: that of its model, then the added tokens.
    fn of_json(metadata: Metadata<'a>, file: &str, json: &'a Value) -> Result<Self, ConfigError> {
        let wrong = |field: &str, expected: &str, found: &Value| ConfigError::Field {
            file: file.to_owned(),
            field: field.to_owned(),
            expected: expected.to_owned(),
            found: secateur_core::files::short(found),
        };
        let id = |value: &Value| {
            let id = value.as_u64().and_then(|id| usize::try_from(id).ok());
            id.filter(|id| *id < MOST_TOKENS)
        };
        let vocab = &json["model"]["vocab"];
        let own: Option<Vec<(usize, &str, i64)>> = match vocab {
            Value::Object(map) => {
                map.iter().map(|(token, value)| Some((id(value)?, token.as_str(), 1))).collect()
            }
            // Unigram models list tokens with their scores.
            Value::Array(list) if list.len() <= MOST_TOKENS => {
                list.iter().enumerate().map(|(i, row)| Some((i, row[0].as_str()?, 1))).collect()
            }
            _ => None,
        };
        let own = own.ok_or_else(|| wrong("model.vocab", "tokens with their ids", vocab))?;
        let added = &json["added_tokens"];
        let rows = added.as_array().map_or(&[][..], Vec::as_slice).iter();
        let more: Option<Vec<(usize, &str, i64)>> = rows
            .map(|row| Some((id(&row["id"])?, row["content"].as_str()?, kind::CONTROL)))
            .collect();
        let more = more.ok_or_else(|| wrong("added_tokens", "tokens with their ids", added))?;
        let count = own.iter().chain(&more).map(|(id, ..)| id + 1).max().unwrap_or(0);
        let (mut tokens, mut kinds) = (vec![""; count], vec![kind::UNUSED; count]);
        for (id, token, kind) in own.into_iter().chain(more) {
            (tokens[id], kinds[id]) = (token, kind);
        }
        Ok(Self { metadata, tokens, kinds })
    }

    /// Number of tokens.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The id of a token.
    pub(super) fn id(&self, token: &str) -> Option<usize> {
        self.tokens.iter().position(|t| *t == token)
    }

    /// The id of a token that a family needs.
    pub(super) fn require(&self, token: &str) -> Result<usize, ConfigError> {
        self.id(token).ok_or_else(|| {
            let expected = format!("a vocabulary with the token `{token}`");
            self.metadata.error(TOKENS, &expected)
        })
    }

    /// The id under `tokenizer.ggml.{name}_token_id`, if it is a token's.
    pub(super) fn named(&self, name: &str) -> Option<usize> {
        let id = self.metadata.get(&format!("tokenizer.ggml.{name}_token_id"))?.as_u64()?;
        usize::try_from(id).ok().filter(|id| *id < self.tokens.len())
    }

    /// The unknown token: where a vocabulary has no word for a picture, its place serves.
    pub(super) fn unknown(&self) -> Option<usize> {
        self.named("unknown").or_else(|| self.kinds.iter().position(|k| *k == kind::UNKNOWN))
    }

    /// `tokenizer.json`. `spelled` gives a token another text.
    ///
    /// # Errors
    /// A kind of vocabulary that is not read, lists that disagree.
    pub(super) fn tokenizer(&self, spelled: Option<(usize, &str)>) -> Result<Value, ConfigError> {
        let content = |id: usize| match spelled {
            Some((other, text)) if other == id => text,
            _ => self.tokens[id],
        };
        let is_added = |id: usize| {
            spelled.is_some_and(|s| s.0 == id)
                || matches!(self.kinds[id], kind::CONTROL | kind::USER_DEFINED)
        };
        let added: Vec<Value> = (0..self.tokens.len())
            .filter(|id| is_added(*id))
            .map(|id| {
                json!({
                    "id": id, "content": content(id), "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false,
                    "special": self.kinds[id] != kind::USER_DEFINED
                })
            })
            .collect();
        let vocab: Map<String, Value> = (0..self.tokens.len())
            .filter(|id| self.kinds[*id] != kind::UNUSED)
            .map(|id| (content(id).to_owned(), json!(id)))
            .collect();
        let model = self.metadata.text("tokenizer.ggml.model")?;
        let mut tokenizer = match model {
            "gpt2" => self.byte_level(vocab)?,
            "llama" => self.sentence_piece(vocab)?,
            _ => {
                return Err(ConfigError::Unsupported {
                    file: self.metadata.label().to_owned(),
                    what: "tokenizer.ggml.model",
                    found: model.to_owned(),
                    supported: format!("gpt2, llama; {BESIDE}"),
                });
            }
        };
        tokenizer["version"] = json!("1.0");
        tokenizer["added_tokens"] = json!(added);
        tokenizer["post_processor"] = self.post_processor(model == "llama", content);
        Ok(tokenizer)
    }

    /// `tokenizer_config.json`: names of special tokens and the chat template.
    pub(super) fn tokenizer_config(&self) -> Value {
        let mut config = Map::new();
        for (key, name) in [
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("unk_token", "unknown"),
            ("pad_token", "padding"),
        ] {
            if let Some(id) = self.named(name) {
                config.insert(key.into(), json!(self.tokens[id]));
            }
        }
        if let Some(template) = self.metadata.get("tokenizer.chat_template") {
            config.insert("chat_template".into(), template.clone());
        }
        Value::Object(config)
    }

    /// `generation_config.json`: where an answer ends.
    pub(super) fn generation_config(&self) -> Value {
        let mut ends: Vec<usize> =
            ["eos", "eot", "eom"].iter().filter_map(|name| self.named(name)).collect();
        ends.dedup();
        json!({
            "eos_token_id": ends,
            "bos_token_id": self.named("bos"),
            "pad_token_id": self.named("padding"),
        })
    }

    fn byte_level(&self, vocab: Map<String, Value>) -> Result<Value, ConfigError> {
        const MERGES: &str = "tokenizer.ggml.merges";
        const PRE: &str = "tokenizer.ggml.pre";
        let name = self.metadata.get(PRE).map_or(Ok("default"), |_| self.metadata.text(PRE))?;
        let split = SPLITS.iter().find(|s| s.name == name).ok_or_else(|| {
            let known: Vec<&str> = SPLITS.iter().map(|s| s.name).collect();
            ConfigError::Unsupported {
                file: self.metadata.label().to_owned(),
                what: PRE,
                found: name.to_owned(),
                supported: format!("{}; {BESIDE}", known.join(", ")),
            }
        })?;
        let merges: Option<Vec<[&str; 2]>> = self
            .metadata
            .list(MERGES)?
            .iter()
            .map(|merge| merge.as_str()?.split_once(' ').map(|(a, b)| [a, b]))
            .collect();
        let merges = merges
            .filter(|m| m.iter().all(|[a, b]| vocab.contains_key(&format!("{a}{b}"))))
            .ok_or_else(|| self.metadata.error(MERGES, "pairs of tokens whose union is a token"))?;
        let byte_level = |regex: bool| {
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                "use_regex": regex})
        };
        let mut words = Vec::new();
        if split.digits {
            words.push(json!({"type": "Digits", "individual_digits": true}));
        }
        if let Some(pattern) = split.pattern {
            words.push(json!({"type": "Split", "pattern": {"Regex": pattern},
                "behavior": "Isolated", "invert": false}));
        }
        words.push(byte_level(split.pattern.is_none()));
        Ok(json!({
            "normalizer": if split.composed { json!({"type": "NFC"}) } else { Value::Null },
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": words},
            "decoder": byte_level(true),
            "model": {
                "type": "BPE", "unk_token": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": split.whole_words, "vocab": vocab, "merges": merges
            }
        }))
    }

    fn sentence_piece(&self, vocab: Map<String, Value>) -> Result<Value, ConfigError> {
        const SCORES: &str = "tokenizer.ggml.scores";
        let count = self.tokens.len();
        let scores = self
            .metadata
            .list(SCORES)?
            .iter()
            .map(Value::as_f64)
            .collect::<Option<Vec<f64>>>()
            .filter(|s| s.len() == count)
            .ok_or_else(|| self.metadata.error(SCORES, &format!("{count} numbers, one a token")))?;
        let prefix = self.metadata.flag("tokenizer.ggml.add_space_prefix", true);
        let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "},
            "content": "\u{2581}"})];
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if prefix {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": "\u{2581}"}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let unknown = self.unknown().map(|id| self.tokens[id]).filter(|t| vocab.contains_key(*t));
        Ok(json!({
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": null,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "BPE", "unk_token": unknown, "fuse_unk": true, "byte_fallback": true,
                "ignore_merges": false, "merges": merges(&self.tokens, &scores), "vocab": vocab
            }
        }))
    }

    /// BOS in front and EOS behind, where the file asks for them.
    fn post_processor<'c>(&self, bos_default: bool, content: impl Fn(usize) -> &'c str) -> Value {
        let wanted = |name: &str, default: bool| {
            let key = format!("tokenizer.ggml.add_{name}_token");
            self.named(name).filter(|_| self.metadata.flag(&key, default))
        };
        let (bos, eos) = (wanted("bos", bos_default), wanted("eos", false));
        if bos.is_none() && eos.is_none() {
            return json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false,
                "use_regex": true});
        }
        let special =
            |id: usize, kind: usize| json!({"SpecialToken": {"id": content(id), "type_id": kind}});
        let sequence = |name: &str, kind: usize| {
            let text = json!({"Sequence": {"id": name, "type_id": kind}});
            let before = bos.map(|id| special(id, kind));
            let after = eos.map(|id| special(id, kind));
            before.into_iter().chain([text]).chain(after).collect::<Vec<_>>()
        };
        let entries: Map<String, Value> = [bos, eos]
            .into_iter()
            .flatten()
            .map(|id| {
                let token = content(id);
                (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}))
            })
            .collect();
        let pair = [sequence("A", 0), sequence("B", 1)].concat();
        json!({
            "type": "TemplateProcessing",
            "single": sequence("A", 0),
            "pair": pair,
            "special_tokens": entries
        })
    }
}

const BESIDE: &str = "for others, put the model's tokenizer.json beside the file";

/// Merges of a SentencePiece vocabulary: every way to part a piece into two pieces, by falling
/// score of the whole, then as the parts stand in the vocabulary.
fn merges<'a>(tokens: &[&'a str], scores: &[f64]) -> Vec<[&'a str; 2]> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(i, t)| (*t, i)).collect();
    let mut found: Vec<(usize, [&'a str; 2])> = Vec::new();
    for (whole, token) in tokens.iter().enumerate() {
        let parts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let known = parts.filter(|(a, b)| ids.contains_key(a) && ids.contains_key(b));
        found.extend(known.map(|(a, b)| (whole, [a, b])));
    }
    let order = |&(whole, [a, b]): &(usize, [&str; 2])| (whole, ids[a], ids[b]);
    found.sort_by(|x, y| scores[y.0].total_cmp(&scores[x.0]).then_with(|| order(x).cmp(&order(y))));
    found.into_iter().map(|(_, parts)| parts).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// SentencePiece's own rule, in the plain: join the neighbours whose union scores highest, the
    /// leftmost of equals, until none is left.
    fn joined(text: &str, scores: &HashMap<&str, f64>) -> Vec<String> {
        let mut parts: Vec<String> = text.chars().map(String::from).collect();
        loop {
            let score = |i: usize| scores.get(format!("{}{}", parts[i], parts[i + 1]).as_str());
            let pairs = (0..parts.len().saturating_sub(1)).filter_map(|i| Some((i, *score(i)?)));
            let best = pairs.fold(None, |best: Option<(usize, f64)>, (i, s)| match best {
                Some((_, most)) if most >= s => best,
                _ => Some((i, s)),
            });
            let Some((i, _)) = best else { return parts };
            let right = parts.remove(i + 1);
            parts[i].push_str(&right);
        }
    }

    fn sentence_piece() -> BTreeMap<String, Value> {
        let pieces = [
            "<unk>",
            "<s>",
            "</s>",
            "\u{2581}",
            "a",
            "b",
            "c",
            "ab",
            "bc",
            "abc",
            "ca",
            "\u{2581}a",
            "\u{2581}ab",
            "cab",
        ];
        let scores =
            [0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -9.0, -3.0, -2.0, -5.0, -1.0, -4.0, -6.0, -7.0];
        let kinds = [2, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1];
        BTreeMap::from([
            ("tokenizer.ggml.model".into(), json!("llama")),
            ("tokenizer.ggml.tokens".into(), json!(pieces)),
            ("tokenizer.ggml.scores".into(), json!(scores)),
            ("tokenizer.ggml.token_type".into(), json!(kinds)),
            ("tokenizer.ggml.bos_token_id".into(), json!(1)),
            ("tokenizer.ggml.eos_token_id".into(), json!(2)),
        ])
    }

    fn load(value: &Value) -> tokenizers::Tokenizer {
        tokenizers::Tokenizer::from_bytes(value.to_string()).expect("a tokenizer")
    }

    #[test]
    fn merges_of_scores_join_as_sentence_piece_does() {
        let keys = sentence_piece();
        let vocabulary = Vocabulary::read(Metadata::new("x.gguf", &keys), None).expect("lists");
        let tokenizer = load(&vocabulary.tokenizer(None).expect("a tokenizer"));
        let scores = keys["tokenizer.ggml.scores"].as_array().expect("a list");
        let scores: HashMap<&str, f64> = vocabulary
            .tokens
            .iter()
            .zip(scores)
            .map(|(token, score)| (*token, score.as_f64().expect("a number")))
            .collect();
        for text in ["abc", "aabc", "bca", "cab abc", "abcabcab", "a b c", "ccab"] {
            let encoding = tokenizer.encode(text, true).expect("it encodes");
            let spaced = format!("\u{2581}{}", text.replace(' ', "\u{2581}"));
            let mut want = vec!["<s>".to_owned()];
            want.extend(joined(&spaced, &scores));
            assert_eq!(encoding.get_tokens(), want, "{text}");
            assert_eq!(tokenizer.decode(encoding.get_ids(), true).expect("it decodes"), text);
        }
    }

    #[test]
    fn the_unknown_token_may_stand_for_a_picture() {
        let keys = sentence_piece();
        let vocabulary = Vocabulary::read(Metadata::new("x.gguf", &keys), None).expect("lists");
        let tokenizer = load(&vocabulary.tokenizer(Some((0, "<image>"))).expect("a tokenizer"));
        let ids = tokenizer.encode("<image><image>", false).expect("it encodes");
        assert_eq!(ids.get_ids(), [0, 0]);
    }

    #[test]
    fn a_file_without_a_vocabulary_takes_that_of_the_tokenizer_beside_it() {
        let keys = BTreeMap::from([("tokenizer.ggml.model".into(), json!("no_vocab"))]);
        let metadata = Metadata::new("x.gguf", &keys);
        let error = Vocabulary::read(metadata, None).err().expect("refused").to_string();
        assert!(error.contains("x.gguf") && error.contains("tokenizer.json"), "{error}");
        let json = json!({
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 2}},
            "added_tokens": [{"id": 3, "content": "<image>", "special": true}]
        });
        let vocabulary = Vocabulary::read(metadata, Some(("tokenizer.json", &json)));
        let vocabulary = vocabulary.expect("the one beside");
        assert_eq!((vocabulary.len(), vocabulary.id("b")), (4, Some(2)));
        assert_eq!(vocabulary.require("<image>").expect("added"), 3);
        for (field, json) in [
            ("model.vocab", json!({"model": {"vocab": {"a": 1u64 << 40}}})),
            ("model.vocab", json!({"model": 3})),
            ("added_tokens", json!({"model": {"vocab": {}}, "added_tokens": [{"id": -1}]})),
        ] {
            let error = Vocabulary::read(metadata, Some(("t.json", &json))).err().expect("refused");
            let error = error.to_string();
            assert!(error.contains("t.json") && error.contains(field), "{error}");
        }
    }

    #[test]
    fn a_vocabulary_that_is_not_read_says_what_to_do() {
        let mut keys = sentence_piece();
        for (key, value) in [
            ("tokenizer.ggml.model", json!("t5")),
            ("tokenizer.ggml.scores", json!([1.0])),
            ("tokenizer.ggml.token_type", json!([1])),
        ] {
            let old = keys.insert(key.into(), value).expect("the key was there");
            let read =
                |keys| Vocabulary::read(Metadata::new("x.gguf", keys), None)?.tokenizer(None);
            let error = read(&keys).expect_err("refused").to_string();
            assert!(error.contains("x.gguf") && error.contains(key), "{error}");
            keys.insert(key.into(), old);
        }
    }
}
