//! What can be typed: the commands and their flags, as clap reads them.
//!
//! Invariants
//! - Every flag but `--config` can be set by `SECATEUR_<FLAG>` and by a configuration file; the
//!   names are derived from the flags here, in [`command`], and nowhere else.
//! - Nothing here looks at files or models: that is [`crate::job`]'s.

mod caption;
mod judge;
mod media;
mod tools;
pub(crate) mod values;
mod video;

use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use secateur::Registry;

pub(crate) use caption::{CaptionArgs, Fingerprint, Format, OnExisting, Order, ProgressMode};
pub(crate) use judge::{CalibrateArgs, EvalArgs, QuestionArgs, RowsChoice, TrendForm, TuneArgs};
pub(crate) use media::{AskMedia, Medium, TraceMedia};
pub(crate) use tools::{
    Advance, AskArgs, BenchArgs, ChatArgs, CompletionsArgs, ConfigAction, ConfigArgs, DoctorArgs,
    ExplainArgs, InspectArgs, ManArgs, ModelsArgs, PresetsArgs, PrunersArgs, TokensArgs, TraceArgs,
};
#[cfg(feature = "onnx")]
pub(crate) use video::ProviderChoice;
pub(crate) use video::{EncoderArgs, FrameChoice, VideoArgs};

const AFTER_HELP: &str = "\
The two commands most people want:
  secateur caption PICTURES/            a caption beside every picture; run it again to go on
  secateur ask cat.jpg \"What is it?\"

Every flag can be set by an environment variable SECATEUR_<FLAG> (SECATEUR_MODEL, SECATEUR_BATCH_SIZE)
and in secateur.toml; a flag wins over the environment, the environment over files.
`secateur config show --origin` says which value holds and where it came from.";

/// Captions pictures and answers questions about them, and prunes the visual tokens that the
/// model does not need.
#[derive(Debug, Parser)]
#[command(name = "secateur", after_help = AFTER_HELP, max_term_width = 100)]
#[command(disable_version_flag = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// Version, features and the kernels in use
    #[arg(short = 'V', long)]
    pub(crate) version: bool,
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Flags of every command.
#[derive(Clone, Debug, Args)]
pub(crate) struct GlobalArgs {
    /// Configuration file, before ./secateur.toml and the one in the user's folder
    #[arg(long, value_name = "FILE", global = true, help_heading = "Everywhere")]
    pub(crate) config: Option<PathBuf>,
    /// Nothing on stderr but errors
    #[arg(short, long, global = true, help_heading = "Everywhere")]
    pub(crate) quiet: bool,
    /// More on stderr
    #[arg(short, long, global = true, help_heading = "Everywhere")]
    pub(crate) verbose: bool,
    /// Colours on terminals
    #[arg(long, value_enum, default_value_t, global = true, help_heading = "Everywhere")]
    pub(crate) color: ColorChoice,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On terminals, unless NO_COLOR is set or TERM is dumb
    #[default]
    Auto,
    /// Everywhere
    Always,
    /// Nowhere
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Caption pictures and videos: files, folders, globs, or - for paths on stdin
    Caption(Box<CaptionArgs>),
    /// Answer one question about pictures or a video, streamed
    #[command(override_usage = "secateur ask [OPTIONS] [FILE]... <QUESTION>")]
    Ask(Box<AskArgs>),
    /// Talk about pictures or a video, question by question; /help lists what can be typed
    Chat(Box<ChatArgs>),
    /// Print how a chain of pruners runs on a model
    Explain(Box<ExplainArgs>),
    /// Draw what each stage of a chain kept, dropped and merged, as PNG or HTML
    Inspect(Box<InspectArgs>),
    /// Write every tensor of one run, to compare with a reference
    Trace(Box<TraceArgs>),
    /// Measure dense, pruned and ideal runs
    Bench(Box<BenchArgs>),
    /// Compare chains on questions: score and time against kept tokens
    Eval(Box<EvalArgs>),
    /// Search a pruner's parameters for a model and a budget
    Tune(Box<TuneArgs>),
    /// Fit the positional trend of a model's attention, for `debias`
    Calibrate(Box<CalibrateArgs>),
    /// Count the visual tokens of pictures without loading weights
    Tokens(Box<TokensArgs>),
    /// List model families, or say what a folder holds
    Models(Box<ModelsArgs>),
    /// List pruners, or say what one does, where it comes from and what it takes
    Pruners(PrunersArgs),
    /// List published settings, or print one as a chain file
    Presets(PresetsArgs),
    /// Say what this machine and this build offer
    Doctor(DoctorArgs),
    /// Show the settings in force
    Config(ConfigArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print a manual page, or write all of them into a folder
    Man(ManArgs),
}

impl Command {
    /// Where the pruners go that its chains may name, if it takes chains.
    pub(crate) fn pruners_mut(&mut self) -> Option<&mut Registry> {
        Some(match self {
            Command::Caption(args) => &mut args.model.pruners,
            Command::Ask(args) => &mut args.model.pruners,
            Command::Chat(args) => &mut args.model.pruners,
            Command::Explain(args) => &mut args.model.pruners,
            Command::Inspect(args) => &mut args.model.pruners,
            Command::Trace(args) => &mut args.model.pruners,
            Command::Bench(args) => &mut args.model.pruners,
            Command::Eval(args) => &mut args.model.pruners,
            Command::Tune(args) => &mut args.model.pruners,
            Command::Calibrate(args) => &mut args.model.pruners,
            Command::Pruners(args) => &mut args.pruners,
            Command::Tokens(_)
            | Command::Models(_)
            | Command::Presets(_)
            | Command::Doctor(_)
            | Command::Config(_)
            | Command::Completions(_)
            | Command::Man(_) => return None,
        })
    }
}

/// Which model, and how it computes.
#[derive(Clone, Debug, Args)]
pub(crate) struct ModelArgs {
    /// Model: a folder in the Hugging Face layout, a GGUF file, or a hub id OWNER/NAME[@REV]
    /// [default: the built-in model]
    #[arg(short, long, value_name = "DIR|GGUF|REPO", help_heading = "Model")]
    pub(crate) model: Option<String>,
    /// Projector of a GGUF model [default: mmproj*.gguf beside it]
    #[arg(long, value_name = "GGUF", requires = "model", help_heading = "Model")]
    pub(crate) mmproj: Option<PathBuf>,
    /// Folder of an adapter (LoRA, as PEFT saves it) to merge into the model
    #[arg(long, value_name = "DIR", requires = "model", help_heading = "Model")]
    pub(crate) adapter: Option<PathBuf>,
    /// Nothing from the network: hub ids from the cache only (as HF_HUB_OFFLINE=1)
    #[arg(long, help_heading = "Model")]
    pub(crate) offline: bool,
    /// Arithmetic of matrix products (auto is bf16)
    #[arg(long, value_enum, default_value_t, help_heading = "Model")]
    pub(crate) dtype: Dtype,
    /// Where to compute
    #[arg(long, value_enum, default_value_t, help_heading = "Model")]
    pub(crate) device: DeviceChoice,
    /// Threads of the model [default: physical cores]
    #[arg(long, value_name = "N", value_parser = at_least_one, help_heading = "Model")]
    pub(crate) threads: Option<usize>,
    /// Whose resampling makes the pixels
    #[arg(long, value_enum, default_value_t, help_heading = "Model")]
    pub(crate) image_backend: BackendChoice,
    /// How pictures of another shape are made to fit
    #[arg(long, value_enum, default_value_t, help_heading = "Model")]
    pub(crate) image_aspect: AspectChoice,
    /// Scale pictures down to that many pixels, for families that scale by area
    #[arg(long, value_name = "N", value_parser = values::count, help_heading = "Model")]
    pub(crate) scale_max_pixels: Option<u64>,
    /// Scale pictures up to that many pixels, for families that scale by area
    #[arg(long, value_name = "N", value_parser = values::count, help_heading = "Model")]
    pub(crate) scale_min_pixels: Option<u64>,
    #[command(flatten)]
    pub(crate) encoder: EncoderArgs,
    /// What chains may name. Not typed: the program that runs the command gives it.
    #[arg(skip = secateur::pruners::registry())]
    pub(crate) pruners: Registry,
}

/// Arithmetic of matrix products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    /// bf16
    #[default]
    Auto,
    /// f32 weights and sums
    F32,
    /// bf16 weights, f32 sums
    Bf16,
}

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceChoice {
    /// The best there is
    #[default]
    Auto,
    /// The processor
    Cpu,
}

/// Whose resampling makes the pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendChoice {
    /// The default of transformers
    #[default]
    Torchvision,
    /// Pillow's
    Pillow,
}

/// How pictures of another shape are made to fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum AspectChoice {
    /// As the model's files say
    #[default]
    Model,
    /// Pad to a square
    Pad,
    /// Crop the centre
    Crop,
}

/// Which chain of pruners.
#[derive(Clone, Debug, Args)]
pub(crate) struct ChainArgs {
    /// Chain of pruners: inline (vtc_cls:keep=64), a TOML file, preset:NAME, or none
    #[arg(long, value_name = "SPEC", default_value = "none", help_heading = "Pruning")]
    pub(crate) prune: String,
}

/// How the next token is chosen.
#[derive(Clone, Debug, Args)]
pub(crate) struct SamplingArgs {
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = "Answer")]
    pub(crate) max_tokens: usize,
    /// 0 takes the most probable token every time
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = not_negative, help_heading = "Answer")]
    pub(crate) temperature: f32,
    /// Only the most probable tokens that together have this share
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = share, help_heading = "Answer")]
    pub(crate) top_p: f32,
    /// Only that many most probable tokens; 0 is all
    #[arg(long, value_name = "K", default_value_t = 0, help_heading = "Answer")]
    pub(crate) top_k: usize,
    /// Only tokens with this share of the best one's probability; 0 is all
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = share_or_zero, help_heading = "Answer")]
    pub(crate) min_p: f32,
    /// Weakens what was said before; 1 is off
    #[arg(long, value_name = "R", default_value_t = 1.0, value_parser = positive, help_heading = "Answer")]
    pub(crate) repetition_penalty: f32,
    /// Start of the random numbers
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Answer")]
    pub(crate) seed: u64,
    /// Text that ends the answer (may be repeated)
    #[arg(long, value_name = "TEXT", help_heading = "Answer")]
    pub(crate) stop: Vec<String>,
}

/// How large a picture may be.
#[derive(Clone, Debug, Args)]
pub(crate) struct LimitArgs {
    /// Refuse pictures of more pixels
    #[arg(long, value_name = "N", default_value = "100M", value_parser = values::count, help_heading = "Limits")]
    pub(crate) max_pixels: u64,
    /// Refuse larger files
    #[arg(long, value_name = "BYTES", default_value = "256MiB", value_parser = values::bytes, help_heading = "Limits")]
    pub(crate) max_file_size: u64,
    /// Use no more memory: smaller batches, or exit 1 with what is needed [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = values::bytes, help_heading = "Limits")]
    pub(crate) max_memory: Option<u64>,
    /// Refuse pictures whose decoding would hold more
    #[arg(long, value_name = "BYTES", default_value = "300MB", value_parser = values::bytes, help_heading = "Limits")]
    pub(crate) max_decode_memory: u64,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number, 1 or more".into()),
        Ok(number) => Ok(number),
    }
}

fn float(text: &str, is_right: impl Fn(f32) -> bool, expected: &str) -> Result<f32, String> {
    text.parse().ok().filter(|&x: &f32| x.is_finite() && is_right(x)).ok_or(expected.to_owned())
}

fn not_negative(text: &str) -> Result<f32, String> {
    float(text, |x| x >= 0.0, "expected a number, 0 or more")
}

fn positive(text: &str) -> Result<f32, String> {
    float(text, |x| x > 0.0, "expected a number above 0")
}

fn share(text: &str) -> Result<f32, String> {
    float(text, |x| x > 0.0 && x <= 1.0, "expected a share above 0 and up to 1")
}

fn share_or_zero(text: &str) -> Result<f32, String> {
    float(text, |x| (0.0..=1.0).contains(&x), "expected a share from 0 to 1")
}

/// The command line with the environment variable of every flag.
pub(crate) fn command() -> clap::Command {
    let with_env = |arg: clap::Arg| {
        let Some(long) = arg.get_long().map(str::to_owned) else { return arg };
        if matches!(&*long, "help" | "version") {
            return arg;
        }
        let arg = if matches!(arg.get_action(), ArgAction::SetTrue) {
            arg.value_parser(FalseyValueParser::new())
        } else {
            arg
        };
        let name = format!("SECATEUR_{}", long.replace('-', "_").to_uppercase());
        arg.env(name).hide_env(true)
    };
    let mut command = Cli::command().mut_args(with_env);
    let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    for name in names {
        command = command.mut_subcommand(name, |c| c.mut_args(with_env));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_flag_has_one_line_of_help() {
        for sub in command().get_subcommands() {
            for arg in sub.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {}", sub.get_name(), arg.get_id());
            }
        }
    }
}
