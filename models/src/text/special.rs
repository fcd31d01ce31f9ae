//! Special and added tokens as the files beside `tokenizer.json` list them.
//!
//! Method: `PreTrainedTokenizerBase._from_pretrained` and `TokenizersBackend.__init__` of
//! transformers 5.24. Where `tokenizer_config.json` has `added_tokens_decoder`, that is the list
//! and nothing else is read; otherwise `special_tokens_map.json` goes over the configuration, and
//! `added_tokens.json` lists further tokens. Named and extra special tokens that are in no list
//! are added last.

use std::collections::{BTreeMap, BTreeSet};

use secateur_core::error::ConfigError;
use secateur_core::files::{ModelFiles, short};
use serde_json::{Map, Value};
use tokenizers::AddedToken;

const CONFIG: &str = "tokenizer_config.json";
const MAP: &str = "special_tokens_map.json";
const LEGACY: &str = "added_tokens.json";
const DECODER: &str = "added_tokens_decoder";
/// Names that every tokenizer of the library has.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Far above any list.
const MOST_ADDED: usize = 1 << 18;

/// Named special tokens of a tokenizer configuration, as texts: `bos_token`, `eos_token`, and
/// whatever a family adds (`image_token`, `start_image_token`).
#[derive(Clone, Debug, Default)]
pub struct SpecialTokens(BTreeMap<String, String>);

impl SpecialTokens {
    /// Reads `tokenizer_config.json` and, where that one has no `added_tokens_decoder`,
    /// `special_tokens_map.json`, which wins.
    ///
    /// # Errors
    /// If a file is there and not JSON.
    pub fn load(files: &ModelFiles) -> Result<Self, ConfigError> {
        let mut tokens = BTreeMap::new();
        for object in sources(files)? {
            // A map of extra tokens names them whatever the name.
            for key in ["extra_special_tokens", "model_specific_special_tokens"] {
                let extra = object.get(key).and_then(Value::as_object).into_iter().flatten();
                tokens.extend(extra.filter_map(|(k, v)| Some((k.clone(), text(v)?.to_owned()))));
            }
            let named = object.iter().filter(|(key, _)| key.ends_with("_token"));
            tokens.extend(named.filter_map(|(k, v)| Some((k.clone(), text(v)?.to_owned()))));
        }
        Ok(Self(tokens))
    }

    /// The text of a token by its name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All names and texts, ascending by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }
}

/// A token as a text or as a map with its `content`.
fn text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// The objects that name special tokens; later ones win.
fn sources(files: &ModelFiles) -> Result<Vec<Map<String, Value>>, ConfigError> {
    let object = |file: &str| {
        Ok(match files.json(file)? {
            Some(Value::Object(object)) => Some(object),
            _ => None,
        })
    };
    let config = object(CONFIG)?;
    let map = match &config {
        Some(config) if config.contains_key(DECODER) => None,
        _ => object(MAP)?,
    };
    Ok(config.into_iter().chain(map).collect())
}

/// Tokens that a folder lists beside `tokenizer.json`.
pub(super) struct Added {
    /// Listed with all their properties; in the order of their ids.
    listed: Vec<AddedToken>,
    /// Named or extra special tokens.
    special: Vec<AddedToken>,
}

/// Reads the lists.
///
/// # Errors
/// A list that is none, or an entry without its text.
pub(super) fn added_tokens(
    files: &ModelFiles,
    named: &SpecialTokens,
) -> Result<Added, ConfigError> {
    let sources = sources(files)?;
    let mut extra: Vec<AddedToken> = Vec::new();
    for object in &sources {
        for key in ["extra_special_tokens", "additional_special_tokens"] {
            let list = object.get(key).and_then(Value::as_array).into_iter().flatten();
            extra.extend(list.filter_map(|value| token(value, true)));
        }
    }
    let first = NAMES.iter().filter_map(|name| named.get(name));
    let others = named.iter().filter(|(name, _)| !NAMES.contains(name)).map(|(_, text)| text);
    let own: Vec<String> = first.chain(others).map(str::to_owned).collect();
    let known: BTreeSet<&str> =
        own.iter().map(String::as_str).chain(extra.iter().map(|t| t.content.as_str())).collect();

    let config = sources.first().and_then(|object| object.get(DECODER));
    let mut listed: Vec<(u64, AddedToken)> = Vec::new();
    if let Some(list) = config.filter(|list| !list.is_null()) {
        let wrong = |field: String, expected: &str, found: &Value| ConfigError::Field {
            file: files.label(CONFIG),
            field,
            expected: expected.into(),
            found: short(found),
        };
        let entries = list.as_object().filter(|map| map.len() <= MOST_ADDED);
        let entries =
            entries.ok_or_else(|| wrong(DECODER.into(), "a map of ids to tokens", list))?;
        for (id, value) in entries {
            let field = || format!("{DECODER}.{id}");
            let number = id.parse().map_err(|_| wrong(field(), "an id as the key", value))?;
            let token = value.as_object().and_then(|_| token(value, false));
            let token = token.ok_or_else(|| wrong(field(), "a token with its `content`", value))?;
            listed.push((number, token));
        }
    } else if let Some(list) = files.json(LEGACY)? {
        let wrong = || ConfigError::Format {
            file: files.label(LEGACY),
            reason: format!("is {}, expected a map of tokens to ids", short(&list)),
        };
        let entries = list.as_object().filter(|map| map.len() <= MOST_ADDED).ok_or_else(wrong)?;
        for (content, id) in entries {
            let is_special = known.contains(content.as_str());
            let id = id.as_u64().ok_or_else(wrong)?;
            listed.push((id, AddedToken::from(content.clone(), is_special)));
        }
    }
    listed.sort_by_key(|(id, _)| *id);
    for (_, token) in &mut listed {
        token.special |= own.contains(&token.content);
    }
    let special = own.into_iter().map(|text| AddedToken::from(text, true)).chain(extra).collect();
    Ok(Added { listed: listed.into_iter().map(|(_, token)| token).collect(), special })
}

/// A token of a list; the library's defaults where a property is not said.
fn token(value: &Value, is_special: bool) -> Option<AddedToken> {
    let content = text(value)?;
    let flag =
        |key: &str, default: bool| value.get(key).and_then(Value::as_bool).unwrap_or(default);
    let special = flag("special", is_special);
    Some(
        AddedToken::from(content.to_owned(), special)
            .single_word(flag("single_word", false))
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .normalized(flag("normalized", !special)),
    )
}

/// Adds what the tokenizer does not have yet, in the order of transformers: the listed tokens, then
/// the special ones. A listed token that it has with other properties gets those of the list.
///
/// # Errors
/// What the library says.
pub(super) fn add(tokenizer: &mut tokenizers::Tokenizer, added: Added) -> Result<(), String> {
    let Added { listed, special } = added;
    let held = tokenizer.get_added_tokens_decoder();
    let mut contents: BTreeSet<String> = held
        .values()
        .map(|t| t.content.clone())
        .chain(listed.iter().map(|t| t.content.clone()))
        .collect();
    let mut wanted: Vec<AddedToken> = listed;
    for token in special {
        if contents.insert(token.content.clone()) {
            wanted.push(token);
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    tokenizer.add_tokens(wanted).map(|_| ()).map_err(|e| e.to_string())
}
