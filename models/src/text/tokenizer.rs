//! `tokenizer.json` around the `tokenizers` crate: encode, decode, and decode as a stream.
//!
//! Invariants
//! - Truncation and padding that a file asks for are off: the runtime checks the context itself.
//! - Added tokens are those of `tokenizer.json` and, as in transformers, those that only
//!   `tokenizer_config.json` and its companions list (module `special`).
//! - A panic inside the library is an error that names the file.
//! - The stream never gives half a character, and the concatenation of its pieces equals the
//!   decoded whole up to a tail that [`DecodeStream::finish`] gives.

use std::fmt;
use std::sync::Arc;

use secateur_core::error::{ConfigError, RunError};
use secateur_core::files::ModelFiles;

use super::guard::guarded;
use super::special::{self, SpecialTokens};

const FILE: &str = "tokenizer.json";

/// What is asked of the library.
trait Library: Send + Sync + fmt::Debug {
    fn encode(&self, text: &str, specials: bool) -> Result<Vec<u32>, String>;
    fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, String>;
    fn id(&self, token: &str) -> Option<u32>;
    fn token(&self, id: u32) -> Option<String>;
    fn len(&self) -> usize;
}

impl Library for tokenizers::Tokenizer {
    fn encode(&self, text: &str, specials: bool) -> Result<Vec<u32>, String> {
        let encoding = self.encode_fast(text, specials).map_err(|e| e.to_string())?;
        Ok(encoding.get_ids().to_vec())
    }

    fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, String> {
        (**self).decode(ids, skip_special).map_err(|e| e.to_string())
    }

    fn id(&self, token: &str) -> Option<u32> {
        self.token_to_id(token)
    }

    fn token(&self, id: u32) -> Option<String> {
        self.id_to_token(id)
    }

    fn len(&self) -> usize {
        self.get_vocab_size(true)
    }
}

/// Text to token ids and back. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Arc<dyn Library>,
    special: SpecialTokens,
    /// The file, for errors.
    file: Arc<str>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, the added tokens of its companions, and the names of special tokens.
    ///
    /// # Errors
    /// If the file is missing or not a tokenizer, or a companion is malformed.
    pub fn load(files: &ModelFiles) -> Result<Self, ConfigError> {
        let file = files.label(FILE);
        let format = |reason: String| ConfigError::Format { file: file.clone(), reason };
        let bytes = files.bytes(FILE)?.ok_or_else(|| {
            format("the file is missing; a model folder needs it (slow tokenizers without it are not read)".into())
        })?;
        let special = SpecialTokens::load(files)?;
        let added = special::added_tokens(files, &special)?;
        let read = || -> Result<tokenizers::Tokenizer, String> {
            let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)
                .map_err(|e| format!("not a tokenizer: {e}"))?;
            inner.with_padding(None);
            inner.with_truncation(None).map_err(|e| e.to_string())?;
            special::add(&mut inner, added)?;
            Ok(inner)
        };
        let inner = guarded(read).map_err(|panic| format(panicked(&panic)))?.map_err(format)?;
        Ok(Self { inner: Arc::new(inner), special, file: file.into() })
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
        self.ask(|inner| inner.encode(text, specials && !doubled))?
            .map_err(|e| RunError::Prompt(format!("cannot be tokenised: {e}")))
    }

    /// The text of token ids.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, RunError> {
        self.ask(|inner| inner.decode(ids, skip_special))?
            .map_err(|e| RunError::Prompt(format!("answer cannot be decoded: {e}")))
    }

    /// Runs the library.
    fn ask<T>(&self, run: impl FnOnce(&dyn Library) -> T) -> Result<T, RunError> {
        guarded(|| run(&*self.inner))
            .map_err(|panic| RunError::Prompt(format!("{}: {}", self.file, panicked(&panic))))
    }

    /// The id of a token by its exact text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.id(token)
    }

    /// The exact text of a token.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.token(id)
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
        self.inner.len()
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

fn panicked(words: &str) -> String {
    format!("damaged: the library of tokenizers gave up on it ({words})")
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A library that gives up.
    #[derive(Debug)]
    struct Stub;

    impl Library for Stub {
        fn encode(&self, text: &str, _: bool) -> Result<Vec<u32>, String> {
            panic!("encode {text}")
        }
        fn decode(&self, ids: &[u32], _: bool) -> Result<String, String> {
            panic!("decode {ids:?}")
        }
        fn id(&self, _: &str) -> Option<u32> {
            None
        }
        fn token(&self, _: u32) -> Option<String> {
            None
        }
        fn len(&self) -> usize {
            0
        }
    }

    #[test]
    fn a_panic_of_the_library_is_an_error_that_names_the_file() {
        let special = SpecialTokens::default();
        let tokenizer =
            Tokenizer { inner: Arc::new(Stub), special, file: "m/tokenizer.json".into() };
        let encode = tokenizer.encode("a", true).unwrap_err().to_string();
        let decode = tokenizer.decode(&[7], true).unwrap_err().to_string();
        let stream = tokenizer.stream(true).step(7).unwrap_err().to_string();
        for (error, words) in [(encode, "encode a"), (decode, "decode []"), (stream, "decode []")] {
            let words = words.replace("[]", "");
            assert!(error.contains("m/tokenizer.json") && error.contains(&words), "{error}");
        }
    }
}
