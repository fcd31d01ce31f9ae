//! `tokenizer.json` around the `tokenizers` crate: encode, decode, and decode as a stream.
//!
//! Invariants
//! - Truncation and padding that a file asks for are off: the runtime checks the context itself.
//! - The stream never gives half a character, and the concatenation of its pieces equals the
//!   decoded whole up to a tail that [`DecodeStream::finish`] gives.

use std::collections::BTreeMap;
use std::sync::Arc;

use secateur_core::error::{ConfigError, RunError};
use secateur_core::files::ModelFiles;
use serde_json::Value;

const FILE: &str = "tokenizer.json";

/// Named special tokens of a tokenizer configuration, as texts: `bos_token`, `eos_token`, and
/// whatever a family adds (`image_token`, `start_image_token`).
#[derive(Clone, Debug, Default)]
pub struct SpecialTokens(BTreeMap<String, String>);

impl SpecialTokens {
    /// Reads `special_tokens_map.json` and `tokenizer_config.json`; the latter wins.
    ///
    /// # Errors
    /// If a file is there and not JSON.
    pub fn load(files: &ModelFiles) -> Result<Self, ConfigError> {
        let mut tokens = BTreeMap::new();
        for file in ["special_tokens_map.json", "tokenizer_config.json"] {
            let Some(Value::Object(object)) = files.json(file)? else { continue };
            let extra = object.get("extra_special_tokens").and_then(Value::as_object);
            for (key, value) in object.iter().chain(extra.into_iter().flatten()) {
                let text = value.as_str().or_else(|| value.get("content")?.as_str());
                if let Some(text) = text.filter(|_| key.ends_with("_token")) {
                    tokens.insert(key.clone(), text.to_owned());
                }
            }
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

/// Text to token ids and back. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    special: SpecialTokens,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and the names of special tokens.
    ///
    /// # Errors
    /// If the file is missing or not a tokenizer.
    pub fn load(files: &ModelFiles) -> Result<Self, ConfigError> {
        let format = |reason: String| ConfigError::Format { file: files.label(FILE), reason };
        let bytes = files.bytes(FILE)?.ok_or_else(|| {
            format("the file is missing; a model folder needs it (slow tokenizers without it are not read)".into())
        })?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|e| format(format!("not a tokenizer: {e}")))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| format(e.to_string()))?;
        Ok(Self { inner: Arc::new(inner), special: SpecialTokens::load(files)? })
    }

    /// Named special tokens.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// Token ids of a text; `specials` lets the post-processor add its tokens (BOS), unless the
    /// text already begins with the BOS token.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn encode(&self, text: &str, specials: bool) -> Result<Vec<u32>, RunError> {
        let doubled = self.special.get("bos_token").is_some_and(|bos| text.starts_with(bos));
        let encoding = self
            .inner
            .encode_fast(text, specials && !doubled)
            .map_err(|e| RunError::Prompt(format!("cannot be tokenised: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of token ids.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, RunError> {
        self.inner
            .decode(ids, skip_special)
            .map_err(|e| RunError::Prompt(format!("answer cannot be decoded: {e}")))
    }

    /// The id of a token by its exact text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The exact text of a token.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The text of a token that a configuration names by id.
    ///
    /// # Errors
    /// If the tokenizer has no such id; `what` says which token it was.
    pub fn require(&self, id: u32, what: &str) -> Result<String, RunError> {
        self.token(id)
            .ok_or_else(|| RunError::Prompt(format!("{FILE} has no token {id}, the {what}")))
    }

    /// Number of tokens, added ones included.
    pub fn len(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A stream that turns ids into pieces of text as they come.
    pub fn stream(&self, skip_special: bool) -> DecodeStream {
        DecodeStream { tokenizer: self.clone(), skip_special, ids: Vec::new(), read: 0 }
    }
}

/// Ids to text, one id at a time.
///
/// Keeps only the ids since the last piece but one: what a decoder needs to see in front of a new
/// token in order to place spaces as it would in the whole.
#[derive(Debug)]
pub struct DecodeStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    ids: Vec<u32>,
    read: usize,
}

impl DecodeStream {
    /// The text that id `id` adds; `None` while a character is incomplete.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn step(&mut self, id: u32) -> Result<Option<String>, RunError> {
        self.ids.push(id);
        let Some(piece) = self.pending()? else { return Ok(None) };
        if piece.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(None);
        }
        self.ids.drain(..self.read);
        self.read = self.ids.len();
        Ok(Some(piece))
    }

    /// What is left at the end: the bytes of a character that was never completed.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn finish(self) -> Result<String, RunError> {
        Ok(self.pending()?.unwrap_or_default())
    }

    fn pending(&self) -> Result<Option<String>, RunError> {
        let before = self.tokenizer.decode(&self.ids[..self.read], self.skip_special)?;
        let all = self.tokenizer.decode(&self.ids, self.skip_special)?;
        Ok(all.get(before.len()..).filter(|p| !p.is_empty()).map(str::to_owned))
    }
}
