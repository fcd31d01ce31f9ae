//! The record of one picture, schema `secateur.caption/1`, and what is read back of it.

use serde::{Deserialize, Serialize};

use secateur_core::decode::FinishReason;

use crate::identity::FileInfo;

/// Name and version of the schema.
pub(crate) const SCHEMA: &str = "secateur.caption/1";

/// Why a picture has no caption: a closed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ErrorKind {
    /// No such file.
    NotFound,
    /// It may not be read.
    Permission,
    /// No picture format that is read.
    UnsupportedFormat,
    /// The data breaks the rules of its format.
    ImageCorrupt,
    /// Beyond a limit.
    ImageTooLarge,
    /// A side of zero, or a file of no bytes.
    EmptyImage,
    /// Prompt and picture do not fit the context.
    ContextOverflow,
    /// `--item-timeout` passed.
    Timeout,
    /// Memory ran out.
    OutOfMemory,
    /// NaN or infinity in the model.
    NonFinite,
    /// A bug, or a file system that fails.
    Internal,
}

impl ErrorKind {
    /// Whether the same picture may work another time.
    pub(crate) fn is_retryable(self) -> bool {
        matches!(self, ErrorKind::Timeout | ErrorKind::OutOfMemory | ErrorKind::Internal)
    }

    /// The name in records.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "not_found",
            ErrorKind::Permission => "permission",
            ErrorKind::UnsupportedFormat => "unsupported_format",
            ErrorKind::ImageCorrupt => "image_corrupt",
            ErrorKind::ImageTooLarge => "image_too_large",
            ErrorKind::EmptyImage => "empty_image",
            ErrorKind::ContextOverflow => "context_overflow",
            ErrorKind::Timeout => "timeout",
            ErrorKind::OutOfMemory => "out_of_memory",
            ErrorKind::NonFinite => "non_finite",
            ErrorKind::Internal => "internal",
        }
    }
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ErrorInfo {
    /// The kind.
    pub(crate) kind: ErrorKind,
    /// For people.
    pub(crate) message: String,
    /// Whether the same picture may work another time.
    pub(crate) retryable: bool,
}

impl ErrorInfo {
    /// An error of a kind.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retryable: kind.is_retryable() }
    }
}

/// The picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ImageInfo {
    /// Pixels across, upright.
    pub(crate) width: u32,
    /// Pixels down, upright.
    pub(crate) height: u32,
    /// Frames that the model saw.
    pub(crate) frames: usize,
    /// EXIF orientation, 1 to 8.
    pub(crate) exif_orientation: u8,
}

/// What one cut left.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Kept {
    /// Where it was.
    pub(crate) site: String,
    /// The pruner.
    pub(crate) stage: String,
    /// Visual tokens after it.
    pub(crate) kept: usize,
}

/// Token counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Tokens {
    /// Visual tokens before any cut.
    pub(crate) visual_in: usize,
    /// After each cut.
    pub(crate) visual_kept: Vec<Kept>,
    /// Tokens of the prompt that are text.
    pub(crate) prompt: usize,
    /// Generated tokens.
    pub(crate) output: usize,
}

/// Wall-clock shares of the batch, milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Milliseconds {
    /// Decoding the picture.
    pub(crate) decode_image: f64,
    /// Resizing and normalising.
    pub(crate) process: f64,
    /// Vision tower and projector.
    pub(crate) encode: f64,
    /// All cuts.
    pub(crate) prune: f64,
    /// Decoder layers over the prompt.
    pub(crate) prefill: f64,
    /// Generated tokens after the first.
    pub(crate) decode: f64,
    /// Everything.
    pub(crate) total: f64,
}

impl Milliseconds {
    /// With three decimals: a microsecond.
    pub(crate) fn rounded(self) -> Self {
        let round = |ms: f64| (ms * 1e3).round() / 1e3;
        Self {
            decode_image: round(self.decode_image),
            process: round(self.process),
            encode: round(self.encode),
            prune: round(self.prune),
            prefill: round(self.prefill),
            decode: round(self.decode),
            total: round(self.total),
        }
    }
}

/// What a caption is made of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Caption {
    /// The text, or what it was joined to under append and prepend.
    pub(crate) caption: String,
    /// Why it ended.
    pub(crate) finish_reason: FinishReason,
    /// The model.
    pub(crate) model: String,
    /// The chain.
    pub(crate) prune: String,
    /// Settings that made it.
    pub(crate) fingerprint: String,
    /// Settings that made the parts it was joined to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) joined: Vec<String>,
    /// Start of the random numbers.
    pub(crate) seed: u64,
    /// The picture.
    pub(crate) image: ImageInfo,
    /// Token counts.
    pub(crate) tokens: Tokens,
    /// Times.
    pub(crate) ms: Milliseconds,
    /// Pictures in the same pass.
    pub(crate) batch: usize,
}

/// One line about one picture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Record {
    /// [`SCHEMA`].
    pub(crate) schema: &'static str,
    /// Place in the selection.
    pub(crate) index: usize,
    /// Path below the root.
    pub(crate) path: String,
    /// `percent` if bytes of the path are percent-encoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path_encoding: Option<&'static str>,
    /// Not computed.
    pub(crate) sha256: Option<String>,
    /// `ok` or `error`.
    pub(crate) status: &'static str,
    /// If it is `ok`.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) caption: Option<Caption>,
    /// If it is `error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<ErrorInfo>,
    /// Where the picture lies, and its content, as it was when it was read.
    pub(crate) file: FileInfo,
    /// The text file, below the folder of the journal (journals only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<String>,
    /// Hash of the text file that this line announces (journals only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<String>,
}

impl Record {
    /// A caption.
    pub(crate) fn ok(index: usize, path: (String, bool), file: FileInfo, caption: Caption) -> Self {
        Self { status: "ok", caption: Some(caption), ..Self::empty(index, path, file) }
    }

    /// A failure.
    pub(crate) fn error(
        index: usize,
        path: (String, bool),
        file: FileInfo,
        error: ErrorInfo,
    ) -> Self {
        Self { status: "error", error: Some(error), ..Self::empty(index, path, file) }
    }

    fn empty(index: usize, (path, is_encoded): (String, bool), file: FileInfo) -> Self {
        Self {
            schema: SCHEMA,
            index,
            path,
            path_encoding: is_encoded.then_some("percent"),
            sha256: None,
            status: "",
            caption: None,
            error: None,
            file,
            text: None,
            content: None,
        }
    }

    /// The same in the shape of a line of OpenAI's batch output.
    pub(crate) fn to_messages(&self) -> serde_json::Value {
        let response = self.caption.as_ref().map(|c| {
            serde_json::json!({"status_code": 200, "body": {
                "object": "chat.completion", "model": c.model,
                "choices": [{"index": 0, "finish_reason": c.finish_reason,
                    "message": {"role": "assistant", "content": c.caption}}],
                "usage": {"prompt_tokens": c.tokens.prompt + c.tokens.visual_in,
                    "completion_tokens": c.tokens.output,
                    "total_tokens": c.tokens.prompt + c.tokens.visual_in + c.tokens.output},
            }})
        });
        let error = self
            .error
            .as_ref()
            .map(|e| serde_json::json!({"code": e.kind.name(), "message": e.message}));
        serde_json::json!({
            "custom_id": self.path, "response": response, "error": error, "secateur": self,
        })
    }
}

/// What is read back of a line.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ReadBack {
    /// Path below the root.
    pub(crate) path: String,
    /// Whether bytes of paths are percent-encoded.
    pub(crate) path_encoding: Option<String>,
    /// `ok` or `error`.
    pub(crate) status: String,
    /// The text.
    pub(crate) caption: Option<String>,
    /// Settings that made it.
    pub(crate) fingerprint: Option<String>,
    /// Settings of the parts that it was joined to.
    #[serde(default)]
    pub(crate) joined: Vec<String>,
    /// If it is `error`.
    pub(crate) error: Option<ErrorInfo>,
    /// The picture.
    pub(crate) file: Option<FileInfo>,
    /// The text file that the line is about.
    pub(crate) text: Option<String>,
    /// Hash of the text file that the line announces.
    pub(crate) content: Option<String>,
}
