//! Why a model cannot be loaded.

use secateur_core::error::{ConfigError, RunError, WeightsError};

/// A model folder that cannot become a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A configuration, tokenizer or template file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The checkpoint.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The operation set refused a matrix.
    #[error(transparent)]
    Pack(#[from] RunError),
}
