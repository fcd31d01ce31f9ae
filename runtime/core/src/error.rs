//! Errors, one enum a boundary, variants by whose fault it is.
//!
//! Every message names the file or field, what was expected and what was found.

use std::path::PathBuf;

/// A checkpoint's files do not hold what they should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The file system refused.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a file of weights, or one that contradicts itself.
    #[error("{file}: not a valid file of weights: {reason}")]
    Format {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor that the model needs is in no file.
    #[error("{file}: no tensor `{name}` (expected {expected})")]
    Missing {
        /// The folder or file searched.
        file: String,
        /// Canonical name of the tensor.
        name: String,
        /// Its shape.
        expected: String,
    },
    /// A tensor that the model needs is in a shard that is not there.
    #[error("{file}: tensor `{name}` is in `{shard}`, which is missing; is the download whole?")]
    Shard {
        /// The index that names the shard.
        file: String,
        /// Canonical name of the tensor.
        name: String,
        /// The missing file.
        shard: String,
    },
    /// A weight that means nothing without what stands beside it.
    #[error(
        "{file}: tensor `{name}` is not to be read alone (`{beside}` stands beside it): the weights are {what}"
    )]
    Beside {
        /// The folder or file.
        file: String,
        /// Canonical name of the weight.
        name: String,
        /// The tensor beside it.
        beside: String,
        /// What that says of the weight, and what to do.
        what: &'static str,
    },
    /// A tensor of another shape than the configuration says.
    #[error("{file}: tensor `{name}` has shape {found}, the configuration needs {expected}")]
    Shape {
        /// The file.
        file: String,
        /// Name of the tensor in the file.
        name: String,
        /// What the configuration needs.
        expected: String,
        /// What the file holds.
        found: String,
    },
    /// A storage type that is not read.
    #[error("{file}: tensor `{name}` is {found}; read are F32, BF16 and F16")]
    DType {
        /// The file.
        file: String,
        /// Name of the tensor in the file.
        name: String,
        /// What the file holds.
        found: String,
    },
}

/// A configuration file is missing, malformed or contradicts itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file system refused.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not the format that the name promises.
    #[error("{file}: {reason}")]
    Format {
        /// The file.
        file: String,
        /// What is wrong, with the place.
        reason: String,
    },
    /// One field holds a value that cannot be.
    #[error("{file}: `{field}` is {found}, expected {expected}")]
    Field {
        /// The file.
        file: String,
        /// Path of the field.
        field: String,
        /// What would be right.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A `model_type`, tower or processor that is not known.
    #[error("{file}: {what} `{found}` is not supported; supported are {supported}")]
    Unsupported {
        /// The file.
        file: String,
        /// The kind of thing.
        what: &'static str,
        /// What stands there.
        found: String,
        /// The known ones.
        supported: String,
    },
}

/// A picture or video cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// No such file.
    #[error("{path}: not found")]
    NotFound {
        /// The file.
        path: String,
    },
    /// The file may not be read.
    #[error("{path}: {reason}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// Not a picture format that is read.
    #[error("{path}: not a picture that can be read (known formats: {known})")]
    UnsupportedFormat {
        /// The file.
        path: String,
        /// The known formats.
        known: String,
    },
    /// The data breaks the rules of its format.
    #[error("{path}: corrupt: {reason}")]
    Corrupt {
        /// The file.
        path: String,
        /// What the decoder said.
        reason: String,
    },
    /// Larger than a limit.
    #[error("{path}: {found} exceeds {limit}")]
    TooLarge {
        /// The file.
        path: String,
        /// What the file says.
        found: String,
        /// The limit and its flag.
        limit: String,
    },
    /// A side of zero.
    #[error("{path}: is empty ({width}x{height} pixels); expected a picture or a video")]
    Empty {
        /// The file.
        path: String,
        /// Width, pixels.
        width: u32,
        /// Height, pixels.
        height: u32,
    },
    /// The model's processor refuses the picture.
    #[error("{path}: {reason}")]
    Refused {
        /// The file.
        path: String,
        /// What is expected and what was found.
        reason: String,
    },
}

/// A chain cannot be read, or does not fit the model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// The text is not a chain.
    #[error("chain `{text}`: {reason}")]
    Parse {
        /// What was typed, or the file.
        text: String,
        /// What is wrong, with the place.
        reason: String,
    },
    /// No pruner of that name.
    #[error("no pruner `{found}`; known are {known}")]
    UnknownPruner {
        /// The name.
        found: String,
        /// The known ones, nearest first.
        known: String,
    },
    /// A parameter that the pruner does not have, or a value it cannot take.
    #[error("pruner `{pruner}`: `{field}` is {found}, expected {expected}")]
    Parameter {
        /// The pruner.
        pruner: String,
        /// The parameter.
        field: String,
        /// What would be right.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// The model does not offer what the pruner reads.
    #[error("pruner `{pruner}` needs signal `{signal}`, which {model} does not offer{fallback}")]
    MissingSignal {
        /// The pruner.
        pruner: String,
        /// The model.
        model: String,
        /// The signal.
        signal: String,
        /// A way out, empty or starting with `; `.
        fallback: String,
    },
    /// A layer that the model does not have.
    #[error("pruner `{pruner}`, layer {layer}: {part} has layers {first} to {last}")]
    Layer {
        /// The pruner.
        pruner: String,
        /// The layer asked for.
        layer: i64,
        /// `the decoder` or `the encoder`.
        part: &'static str,
        /// First layer that may be named.
        first: usize,
        /// Last layer that may be named.
        last: usize,
    },
    /// Stages in an order that cannot run.
    #[error("stage {index} (`{pruner}` at {site}) comes after {before}: {reason}")]
    Order {
        /// Index of the stage.
        index: usize,
        /// Its pruner.
        pruner: String,
        /// Its site.
        site: String,
        /// The stage before.
        before: String,
        /// What to do.
        reason: String,
    },
}

/// A run failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A chain that does not fit.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A picture that cannot be used.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A pruner returned what a selection must not be.
    #[error("pruner `{pruner}` at {site}: {reason}")]
    Selection {
        /// The pruner.
        pruner: String,
        /// The site.
        site: String,
        /// The broken rule.
        reason: String,
    },
    /// A head that cannot work with the model.
    #[error("head `{head}`: {reason}")]
    Head {
        /// The head.
        head: String,
        /// What it reads and the model lacks, or why it refuses.
        reason: String,
    },
    /// The prompt and the answer do not fit.
    #[error("the prompt has {need} tokens, the model's context is {have}")]
    Context {
        /// Tokens of the prompt (and of the answer asked for).
        need: usize,
        /// `max_position_embeddings`.
        have: usize,
    },
    /// The prompt does not fit the pictures, or a token id is outside the vocabulary.
    #[error("prompt: {0}")]
    Prompt(String),
    /// NaN or infinity where a number must be.
    #[error("`{signal}` of layer {layer} holds a value that is not finite")]
    NonFinite {
        /// The signal or tensor.
        signal: String,
        /// The layer.
        layer: usize,
    },
    /// A rule for the answer leaves no token to choose.
    #[error("no token may follow: {0}")]
    NoToken(&'static str),
    /// Cancelled or past its deadline.
    #[error("cancelled: {0}")]
    Cancelled(&'static str),
    /// Shapes of weights that cannot be packed together.
    #[error("{0}")]
    Shape(String),
    /// The device refused.
    #[error("device: {0}")]
    Device(String),
}
