//! What several families share: the decoder stack, projectors, layouts, prompt expansion.
//!
//! A block has named variants, never booleans of a family; a family file says which variants it
//! is made of and adds what is particular to it.

pub(crate) mod anyres;
pub mod config;
pub mod decoder;
pub(crate) mod family;
mod layer;
pub mod layout;
pub(crate) mod mrope;
pub(crate) mod projector;
pub(crate) mod prompt;
pub mod rope;
