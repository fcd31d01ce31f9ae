//! Decoding: how the next token is chosen, and why an answer ends. The loop is
//! [`crate::pass::pass`].

pub use crate::sample::{Allowed, AllowedTokens, Sampler, Sampling};

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// An end token, or a stop text.
    Stop,
    /// The number of tokens asked for, or the context is full.
    Length,
}
