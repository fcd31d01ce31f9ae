//! The one error of the SDK: what went wrong, whose fault it is, and what was done until then.

use secateur_core::error::{ChainError, ConfigError, InputError, RunError, WeightsError};

use crate::answer::Answer;

/// Why a call failed. Match on the variant to know whose fault it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model's configuration, tokenizer or template.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A model's weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// An encoder in place of the model's own cannot be used.
    #[error("{0}")]
    Encoder(String),
    /// A hub id that is not in the cache, or a folder that does not exist.
    #[error("model `{model}`: {reason}")]
    Model {
        /// What was asked for.
        model: String,
        /// What was looked for, and what to do.
        reason: String,
    },
    /// A picture or video.
    #[error(transparent)]
    Image(#[from] InputError),
    /// A chain that cannot be read or does not fit the model.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A prompt longer than the context.
    #[error("the prompt has {need} tokens, the model's context is {have}")]
    Context {
        /// Tokens of the prompt.
        need: usize,
        /// Positions the model has.
        have: usize,
    },
    /// NaN or infinity in a layer.
    #[error("`{signal}` of layer {layer} holds a value that is not finite")]
    NonFinite {
        /// The signal or tensor.
        signal: String,
        /// The layer.
        layer: usize,
    },
    /// Cancelled, or past the deadline; what was done stands in `partial`.
    #[error("cancelled: {reason}")]
    Cancelled {
        /// Who stopped it.
        reason: String,
        /// Text and report up to then, if the prompt had been read.
        partial: Option<Box<Answer>>,
    },
    /// Anything else that a run reports.
    #[error(transparent)]
    Run(RunError),
    /// A bug: a panic was caught at the boundary of a request.
    #[error("internal error: {0}")]
    Internal(String),
}

impl From<secateur_models::LoadError> for Error {
    fn from(error: secateur_models::LoadError) -> Self {
        use secateur_models::LoadError;
        match error {
            LoadError::Config(e) => Error::Config(e),
            LoadError::Weights(e) => Error::Weights(e),
            LoadError::Pack(e) => e.into(),
            other => Error::Internal(other.to_string()),
        }
    }
}

impl From<secateur_encoders::vit::EncoderLoadError> for Error {
    fn from(error: secateur_encoders::vit::EncoderLoadError) -> Self {
        use secateur_encoders::vit::EncoderLoadError;
        match error {
            EncoderLoadError::Config(e) => Error::Config(e),
            EncoderLoadError::Weights(e) => Error::Weights(e),
            EncoderLoadError::Run(e) => e.into(),
            onnx @ EncoderLoadError::Onnx { .. } => Error::Encoder(onnx.to_string()),
            other => Error::Internal(other.to_string()),
        }
    }
}

impl From<RunError> for Error {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Chain(e) => Error::Chain(e),
            RunError::Input(e) => Error::Image(e),
            RunError::Context { need, have } => Error::Context { need, have },
            RunError::NonFinite { signal, layer } => Error::NonFinite { signal, layer },
            RunError::Cancelled(reason) => {
                Error::Cancelled { reason: reason.to_owned(), partial: None }
            }
            other => Error::Run(other),
        }
    }
}
