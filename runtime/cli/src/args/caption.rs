//! Flags of `caption`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::values::{self, Auto, MaxFailures};
use super::{ChainArgs, LimitArgs, ModelArgs, SamplingArgs, VideoArgs};

/// What is asked when nothing else is.
pub(crate) const PROMPT: &str = "Describe the image in one paragraph.";

/// Flags of `caption`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CaptionArgs {
    /// Files, folders, globs, or - to read paths from stdin
    #[arg(value_name = "PATH", required = true)]
    pub(crate) paths: Vec<OsString>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
    /// What to ask about each picture; @FILE reads a file, {stem} and {dir} are filled in
    #[arg(short, long, value_name = "TEXT|@FILE", default_value = PROMPT, help_heading = "Answer")]
    pub(crate) prompt: String,
    /// System message; @FILE reads a file
    #[arg(short, long, value_name = "TEXT|@FILE", help_heading = "Answer")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) video: VideoArgs,
    /// Each folder that holds pictures is one video: its pictures are the frames, by name
    #[arg(long, help_heading = "Video")]
    pub(crate) frames: bool,
    /// Where captions go: a folder that mirrors the tree, a file FILE.jsonl, or - for stdout
    /// [default: beside the picture]
    #[arg(short, long, value_name = "DIR|FILE.jsonl|-", help_heading = "Output")]
    pub(crate) output: Option<PathBuf>,
    /// One text file a picture, or one JSON object a line
    /// [default: txt; jsonl when --output ends so or is -]
    #[arg(short, long, value_enum, help_heading = "Output")]
    pub(crate) format: Option<Format>,
    /// End of the names of text files
    #[arg(long, value_name = "EXT", default_value = ".txt", help_heading = "Output")]
    pub(crate) extension: String,
    /// JSON lines in the shape of OpenAI's batch output
    #[arg(long, help_heading = "Output")]
    pub(crate) messages: bool,
    /// What to do where there is a caption already
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    pub(crate) on_existing: OnExisting,
    /// Make every caption anew, also those that are done
    #[arg(long, help_heading = "Output")]
    pub(crate) force: bool,
    /// Text between the parts under append and prepend
    #[arg(long, value_name = "TEXT", default_value = " ", help_heading = "Output")]
    pub(crate) separator: String,
    /// Whether captions made with other settings count as done (ignore) or are told apart (strict)
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    pub(crate) fingerprint: Fingerprint,
    /// Go into folders
    #[arg(short, long, help_heading = "Selection")]
    pub(crate) recursive: bool,
    /// Take files that match, instead of the known types (may be repeated)
    #[arg(short = 'I', long, value_name = "GLOB", help_heading = "Selection")]
    pub(crate) include: Vec<String>,
    /// Leave out files and folders that match (may be repeated)
    #[arg(short = 'E', long, value_name = "GLOB", help_heading = "Selection")]
    pub(crate) exclude: Vec<String>,
    /// Take hidden files and folders too
    #[arg(long, help_heading = "Selection")]
    pub(crate) hidden: bool,
    /// Follow symbolic links
    #[arg(long, help_heading = "Selection")]
    pub(crate) follow: bool,
    /// Paths on stdin end with a NUL byte, not a newline
    #[arg(short = '0', long = "null", help_heading = "Selection")]
    pub(crate) null: bool,
    /// Only the first N pictures
    #[arg(short = 'n', long, value_name = "N", help_heading = "Selection")]
    pub(crate) limit: Option<usize>,
    /// Sorted by path, or as the file system lists them
    #[arg(long, value_enum, default_value_t, help_heading = "Selection")]
    pub(crate) order: Order,
    /// Say what would be done, and do nothing
    #[arg(long, help_heading = "Selection")]
    pub(crate) dry_run: bool,
    /// Pictures in flight at a time
    #[arg(short, long, value_name = "auto|N", default_value = "auto", value_parser = values::auto, help_heading = "Speed")]
    pub(crate) batch_size: Auto,
    /// Threads that decode pictures [default: cores]
    #[arg(short, long, value_name = "N", help_heading = "Speed")]
    pub(crate) jobs: Option<usize>,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    /// Give up on a picture after that time
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = values::duration, help_heading = "Limits")]
    pub(crate) item_timeout: Duration,
    /// Try pictures again that failed in an earlier run
    #[arg(long, help_heading = "Failures")]
    pub(crate) retry_failed: bool,
    /// Stop when more pictures have failed [default: never]
    #[arg(long, value_name = "N|P%", value_parser = values::max_failures, help_heading = "Failures")]
    pub(crate) max_failures: Option<MaxFailures>,
    /// Stop at the first picture that fails
    #[arg(long, help_heading = "Failures")]
    pub(crate) fail_fast: bool,
    /// Exit 1 when no picture was selected
    #[arg(long, help_heading = "Failures")]
    pub(crate) error_on_empty: bool,
    /// How progress is shown on stderr
    #[arg(long, value_enum, default_value_t, help_heading = "Everywhere")]
    pub(crate) progress: ProgressMode,
}

/// How captions are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// One text file a picture
    Txt,
    /// One JSON object a line
    Jsonl,
}

/// What to do where there is a caption already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnExisting {
    /// Leave it
    #[default]
    Skip,
    /// Make it anew, unless it was made with these settings
    Overwrite,
    /// Put the new caption behind it, once
    Append,
    /// Put the new caption before it, once
    Prepend,
    /// Refuse to start
    Error,
}

impl OnExisting {
    /// Whether the new caption is joined with the old one.
    pub(crate) fn is_joining(self) -> bool {
        matches!(self, OnExisting::Append | OnExisting::Prepend)
    }
}

/// Whether settings count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fingerprint {
    /// Captions of other settings are told apart
    #[default]
    Strict,
    /// Any caption of an earlier run is as good
    Ignore,
}

/// In which order pictures are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Order {
    /// By path
    #[default]
    Path,
    /// As the file system lists them
    None,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// A bar on terminals, nothing elsewhere
    #[default]
    Auto,
    /// A line every ten seconds
    Plain,
    /// One JSON object a line
    Json,
    /// Nothing
    None,
}
