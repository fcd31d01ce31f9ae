//! The contract of secateur and the loop that runs it.
//!
//! A picture becomes a [`clip`] with a geometry, an encoder turns it into visual tokens with a
//! token map, a chain of pruners cuts them at its sites, and one loop ([`mod@pass`]) runs decoder
//! layers and stages in turn. This crate defines those words and owns the loop and the operation set; it
//! depends on no other crate of the workspace, so that a pruner can depend on it alone.
#![deny(unsafe_code)]

pub mod assemble;
pub mod cache;
pub mod chain;
pub mod clip;
pub mod cut;
pub mod decode;
pub mod episode;
pub mod error;
pub mod files;
mod floor;
pub mod head;
pub mod memory;
pub mod model;
pub mod ops;
mod params;
pub mod pass;
pub mod plan;
pub mod prune;
pub mod random;
mod reports;
mod sample;
pub mod sequence;
pub mod signal;
pub mod stage;
pub mod tensor;
pub mod testkit;
pub mod tokens;
pub mod trace;
pub mod visibility;
pub mod weights;

/// The values that heads give ([`head::Head`]).
pub use serde_json;
