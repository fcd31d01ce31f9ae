//! The one error of the SDK: what went wrong, whose fault it is, and what was done until then.

use secateur_core::error::{ChainError, ConfigError, InputError, RunError, WeightsError};
use secateur_core::memory::OutOfMemory;

use crate::answer::Answer;

/// Why a call failed: [`Error::kind`] says whose fault it is, the variant holds the details.
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
    /// The system refused memory: a smaller batch, picture or model may fit.
    #[error("{}: a smaller batch, a smaller picture or fewer tokens may fit", .0)]
    Memory(OutOfMemory),
    /// Anything else that a run reports.
    #[error(transparent)]
    Run(RunError),
    /// A bug: a panic was caught at the boundary of a request.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Whose fault an error is: what a program decides by. Every [`Error`] has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The model's files, or an encoder in place of its own. Other requests fail as well.
    Model,
    /// A picture or video of the request.
    Picture,
    /// The chain: it cannot be read, or does not fit the model.
    Chain,
    /// The prompt does not fit the pictures or the model.
    Prompt,
    /// Prompt and pictures are longer than the model's context: fewer tokens may fit.
    Context,
    /// Memory ran out, or a limit on it was reached: a smaller batch or picture may fit.
    Memory,
    /// A pruner (of this crate or the caller's) broke a rule at a cut.
    Pruner,
    /// A head cannot work with the model, or with the chain.
    Head,
    /// A layer gave NaN or infinity.
    NotFinite,
    /// Cancelled, or past the deadline.
    Cancelled,
    /// The device refused.
    Device,
    /// A bug of this crate.
    Internal,
}

impl Error {
    /// Whose fault it is.
    ///
    /// ```
    /// use secateur::{ErrorKind, Request};
    /// let error = Request::new("What?").encoded("upload", b"no picture").unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Picture);
    /// ```
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Config(_) | Error::Weights(_) | Error::Encoder(_) | Error::Model { .. } => {
                ErrorKind::Model
            }
            Error::Image(_) => ErrorKind::Picture,
            Error::Chain(_) => ErrorKind::Chain,
            Error::Context { .. } => ErrorKind::Context,
            Error::NonFinite { .. } => ErrorKind::NotFinite,
            Error::Cancelled { .. } => ErrorKind::Cancelled,
            Error::Memory(_) => ErrorKind::Memory,
            Error::Run(RunError::Prompt(_)) => ErrorKind::Prompt,
            Error::Run(RunError::Selection { .. }) => ErrorKind::Pruner,
            Error::Run(RunError::Head { .. }) => ErrorKind::Head,
            Error::Run(RunError::Device(_)) => ErrorKind::Device,
            Error::Run(_) | Error::Internal(_) => ErrorKind::Internal,
        }
    }
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
