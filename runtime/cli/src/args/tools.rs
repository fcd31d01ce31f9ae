//! Flags of the commands that look at one run: `ask`, `chat`, `explain`, `inspect`, `trace`, `bench`,
//! `tokens`, `models`, `pruners`, `presets`, `doctor`, `config`, `completions`, `man`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::{AskMedia, ChainArgs, LimitArgs, ModelArgs, SamplingArgs, TraceMedia, VideoArgs};

/// Flags of `ask`.
#[derive(Clone, Debug, Args)]
pub(crate) struct AskArgs {
    #[command(flatten)]
    pub(crate) media: AskMedia,
    #[command(flatten)]
    pub(crate) video: VideoArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
    /// System message; @FILE reads a file
    #[arg(short, long, value_name = "TEXT|@FILE", help_heading = "Answer")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    /// Print the answer when it is whole
    #[arg(long, help_heading = "Output")]
    pub(crate) no_stream: bool,
    /// Times, tokens and memory on stderr
    #[arg(long, help_heading = "Output")]
    pub(crate) stats: bool,
    /// One JSON object instead of text
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// Flags of `chat`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ChatArgs {
    /// Picture, video, or folder of frames (may be repeated)
    #[arg(short = 'i', long, value_name = "FILE")]
    pub(crate) image: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) video: VideoArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
    /// System message; @FILE reads a file
    #[arg(short, long, value_name = "TEXT|@FILE", help_heading = "Answer")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

/// Flags of `explain`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// A named shape instead of a model (a wrong name lists the known ones)
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    pub(crate) shape: Option<String>,
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
    /// Text tokens of the prompt that costs are computed for
    #[arg(long, value_name = "N", default_value_t = 60, help_heading = "Pruning")]
    pub(crate) text: usize,
    /// One JSON object instead of a table
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// Flags of `inspect`.
#[derive(Clone, Debug, Args)]
pub(crate) struct InspectArgs {
    /// Picture or video (may be repeated)
    #[arg(short = 'i', long, value_name = "FILE", required = true)]
    pub(crate) image: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) video: VideoArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
    /// Question that the model is asked
    #[arg(short, long, value_name = "TEXT", default_value = super::caption::PROMPT, help_heading = "Answer")]
    pub(crate) prompt: String,
    /// Most tokens of the answer
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Answer")]
    pub(crate) max_tokens: usize,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    /// Where to: map.png or map.html
    #[arg(short, long = "out", value_name = "FILE", required = true, help_heading = "Output")]
    pub(crate) out: PathBuf,
}

/// Flags of `trace`.
#[derive(Clone, Debug, Args)]
pub(crate) struct TraceArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
    #[command(flatten)]
    pub(crate) media: TraceMedia,
    #[command(flatten)]
    pub(crate) video: VideoArgs,
    /// The prompt
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) prompt: String,
    /// The prompt holds the placeholders: no chat template
    #[arg(long)]
    pub(crate) raw_prompt: bool,
    /// What an episode carries into this step: `stage.K.history` tensors
    #[arg(long, value_name = "FILE")]
    pub(crate) state: Option<PathBuf>,
    /// Generate on past end tokens
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Tokens to generate
    #[arg(long, value_name = "M", default_value_t = 0)]
    pub(crate) max_tokens: usize,
    /// Where positions go on after a video (Qwen2-VL, Qwen2.5-VL)
    #[arg(long, value_enum, default_value_t)]
    pub(crate) mrope_video_advance: Advance,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    /// The safetensors file to write
    #[arg(short, long = "out", value_name = "FILE")]
    pub(crate) out: PathBuf,
}

/// Where the text behind a video starts under M-RoPE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Advance {
    /// One after the largest position so far: what the weights were trained with
    #[value(name = "max-plus-one", aliases = ["max_plus_one", "max+1"])]
    MaxPlusOne,
    /// After the larger side of a frame, as transformers 5.24 counts
    #[value(name = "max-hw", aliases = ["max_hw"])]
    #[default]
    MaxHw,
}

/// Flags of `bench`.
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Random weights of a named shape instead of a model (a wrong name lists the known ones)
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    pub(crate) shape: Option<String>,
    /// Pictures of the prompt
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) pictures: usize,
    /// Visual tokens of a picture in the dense run [default: the model's own]
    #[arg(long, value_name = "N")]
    pub(crate) visual: Option<usize>,
    /// Tokens to keep in the pruned runs
    #[arg(long, value_name = "A,B,C", value_delimiter = ',', default_value = "192,64")]
    pub(crate) keep: Vec<usize>,
    /// Chain of the pruned runs; {keep} is filled in
    #[arg(long, value_name = "SPEC", default_value = "vtc_cls:keep={keep}")]
    pub(crate) prune: String,
    /// Text tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub(crate) text: usize,
    /// Tokens to generate
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) decode: usize,
    /// Measured rounds; the runs take turns within each
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = super::at_least_one)]
    pub(crate) repeats: usize,
    /// Caption that many pictures instead, lengths of 8 to 512 tokens, side by side and in batches
    /// that wait for their longest
    #[arg(long, value_name = "N", value_parser = super::at_least_one)]
    pub(crate) captions: Option<usize>,
    /// Captions in flight at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = super::at_least_one)]
    pub(crate) in_flight: usize,
    /// Chat that many turns about one picture instead, by a session that holds what earlier turns
    /// read and by one that reads all of it in every turn
    #[arg(long, value_name = "N", conflicts_with = "captions")]
    pub(crate) turns: Option<usize>,
    /// One JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `tokens`.
#[derive(Clone, Debug, Args)]
pub(crate) struct TokensArgs {
    /// Picture or video (may be repeated)
    #[arg(short = 'i', long, value_name = "FILE")]
    pub(crate) image: Vec<PathBuf>,
    /// Folder whose pictures are the frames of one video, by name (may be repeated)
    #[arg(long, value_name = "DIR")]
    pub(crate) frames: Vec<PathBuf>,
    /// Size of a picture instead of a file, or of a video with its number of frames (may be
    /// repeated)
    #[arg(long, value_name = "WxH[xFRAMES]")]
    pub(crate) size: Vec<String>,
    #[command(flatten)]
    pub(crate) video: VideoArgs,
    /// Model: a folder, a GGUF file or a hub id [default: the built-in model]
    #[arg(short, long, value_name = "DIR|GGUF|REPO")]
    pub(crate) model: Option<String>,
    /// Nothing from the network: hub ids from the cache only (as HF_HUB_OFFLINE=1)
    #[arg(long)]
    pub(crate) offline: bool,
    /// Projector of a GGUF model [default: mmproj*.gguf beside it]
    #[arg(long, value_name = "GGUF", requires = "model")]
    pub(crate) mmproj: Option<PathBuf>,
    /// A named shape instead of a model (a wrong name lists the known ones)
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    pub(crate) shape: Option<String>,
    /// Scale pictures down to that many pixels, for families that scale by area
    #[arg(long, value_name = "N", value_parser = super::values::count)]
    pub(crate) max_pixels: Option<u64>,
    /// Scale pictures up to that many pixels, for families that scale by area
    #[arg(long, value_name = "N", value_parser = super::values::count)]
    pub(crate) min_pixels: Option<u64>,
    /// One JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `models`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ModelsArgs {
    /// A model folder, GGUF file or hub id to describe [default: list the families]
    #[arg(value_name = "DIR|GGUF|REPO")]
    pub(crate) model: Option<String>,
    /// Nothing from the network: hub ids from the cache only (as HF_HUB_OFFLINE=1)
    #[arg(long)]
    pub(crate) offline: bool,
    /// Projector of a GGUF model [default: mmproj*.gguf beside it]
    #[arg(long, value_name = "GGUF", requires = "model")]
    pub(crate) mmproj: Option<PathBuf>,
    /// One JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `doctor`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DoctorArgs {
    /// One JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `config`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub(crate) action: ConfigAction,
}

/// What to do with the configuration.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ConfigAction {
    /// Print every setting that is in force
    Show {
        /// Say where each value came from
        #[arg(long)]
        origin: bool,
        /// The command whose settings are shown
        #[arg(long = "for", value_name = "COMMAND", default_value = "caption")]
        command: String,
        /// One JSON object instead of a table
        #[arg(long)]
        json: bool,
    },
}

/// Flags of `pruners`.
#[derive(Clone, Debug, Args)]
pub(crate) struct PrunersArgs {
    /// The pruner to describe, with its parameters [default: list all]
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Model that they are to run on (a folder, a GGUF file or a hub id): says which fit
    #[arg(short, long, value_name = "DIR|GGUF|REPO")]
    pub(crate) model: Option<String>,
    /// Nothing from the network: hub ids from the cache only (as HF_HUB_OFFLINE=1)
    #[arg(long)]
    pub(crate) offline: bool,
    /// Projector of a GGUF model [default: mmproj*.gguf beside it]
    #[arg(long, value_name = "GGUF", requires = "model")]
    pub(crate) mmproj: Option<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
    /// Those of the program that runs the command.
    #[arg(skip = secateur::pruners::registry())]
    pub(crate) pruners: secateur::Registry,
}

/// Flags of `presets`.
#[derive(Clone, Debug, Args)]
pub(crate) struct PresetsArgs {
    /// The preset whose chain file is printed [default: list all]
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `man`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ManArgs {
    /// The command whose page is printed [default: secateur itself]
    #[arg(value_name = "COMMAND", conflicts_with = "out")]
    pub(crate) command: Option<String>,
    /// Write all pages into that folder instead: secateur.1, secateur-caption.1, ...
    #[arg(short, long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

/// Flags of `completions`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: Shell,
}
