//! One configurable vision transformer for every tower of the field.
//!
//! Invariants
//! - Towers differ in data: a `vision_config` becomes named variants (norm kind, class token, layer
//!   scale, positions, windows, ...), and one tower runs them all against
//!   [`secateur_core::ops::Ops`].
//! - Only the layers that the features need are loaded and run.
//! - A crop's rows do not depend on what else is in the batch.
//!
//! Names: weights arrive under `tower.` and the leaf names of the published checkpoints
//! (`tower.encoder.layers.0.self_attn.q_proj.weight`, `tower.blocks.0.attn.qkv.weight`).
//!
//! Not here: projectors and mergers (the models crate).

mod block;
pub(crate) mod config;
mod embed;
mod pool;
pub(crate) mod signals;
mod tower;
mod window;

use std::sync::Arc;

use secateur_core::error::{ConfigError, RunError, WeightsError};
use secateur_core::model::{Encoder, TowerSpec};
use secateur_core::ops::Ops;
use secateur_core::weights::Weights;

pub use config::KINDS;

/// A tower cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncoderLoadError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The checkpoint does not hold what the configuration needs.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The operation set cannot pack the weights.
    #[error(transparent)]
    Run(#[from] RunError),
    /// An ONNX file, or the library that runs it, cannot be used.
    #[error("{file}: {reason}")]
    Onnx {
        /// The file.
        file: String,
        /// What is wrong, and what to do.
        reason: String,
    },
}

/// Builds the tower that a family asks for.
///
/// # Errors
/// [`EncoderLoadError::Config`] before any weight is read, then [`EncoderLoadError::Weights`].
pub fn build(
    spec: &TowerSpec,
    weights: &Weights,
    ops: Arc<dyn Ops>,
) -> Result<Box<dyn Encoder>, EncoderLoadError> {
    let config = config::Config::read(spec)?;
    Ok(Box::new(tower::Tower::load(config, weights, ops)?))
}
