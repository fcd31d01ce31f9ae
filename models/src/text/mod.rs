//! Text in and out of a model: tokenizer, chat template, generation defaults.
//!
//! Invariants
//! - A prompt is expanded as *text* and tokenised once: neighbours of a placeholder tokenise as
//!   they do with the expanded text.
//! - Beginning-of-sequence tokens come from the tokenizer's post-processor, as in transformers;
//!   a text that already begins with that token gets no second one.
//! - Every error names the file.

pub mod generation;
mod guard;
mod jinja;
mod special;
pub mod template;
pub mod tokenizer;

use secateur_core::error::ConfigError;
use secateur_core::files::ModelFiles;

pub use generation::{Generation, SamplingDefaults};
pub use special::SpecialTokens;
pub use template::{ChatTemplate, Message, Part};
pub use tokenizer::{DecodeStream, Tokenizer};

/// The text side of a model.
#[derive(Debug)]
pub struct TextModel {
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Messages to a prompt.
    pub template: ChatTemplate,
    /// End tokens and sampling defaults.
    pub generation: Generation,
}

impl TextModel {
    /// Reads tokenizer, template and generation defaults of a folder. `fallback` is the template
    /// of the family, for folders that have none.
    ///
    /// # Errors
    /// A file that is missing or malformed.
    pub fn load(files: &ModelFiles, fallback: &str) -> Result<Self, ConfigError> {
        let tokenizer = Tokenizer::load(files)?;
        let template = ChatTemplate::load(files, fallback, tokenizer.special())?;
        let generation = Generation::load(files, &tokenizer)?;
        Ok(Self { tokenizer, template, generation })
    }
}
