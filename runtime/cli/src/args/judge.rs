//! Flags of the commands that judge chains: `eval`, `tune`, `calibrate`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{LimitArgs, ModelArgs, ProgressMode};
use crate::plot::Theme;

/// Short questions whose first answer token depends on the picture.
const PROMPTS: [&str; 3] = [
    "How many objects are there?",
    "What is in the picture? Answer in one word.",
    "What colour is the largest object?",
];

/// Flags of `eval`.
#[derive(Clone, Debug, Args)]
pub(crate) struct EvalArgs {
    /// Folder of pictures without known answers: agreement with the unpruned model is measured
    #[arg(value_name = "DIR", conflicts_with = "questions", required_unless_present = "questions")]
    pub(crate) pictures: Option<PathBuf>,
    /// Questions with answers: our JSONL, POPE's JSONL, or a VLMEvalKit table (.tsv)
    #[arg(long, value_name = "FILE", help_heading = "Questions")]
    pub(crate) questions: Option<PathBuf>,
    /// Where the pictures of --questions lie [default: beside the file]
    #[arg(long, value_name = "DIR", help_heading = "Questions")]
    pub(crate) images: Option<PathBuf>,
    /// What is asked about the pictures of DIR (may be repeated)
    #[arg(short, long, value_name = "TEXT", default_value = super::caption::PROMPT, help_heading = "Questions")]
    pub(crate) prompt: Vec<String>,
    /// Only the first N questions
    #[arg(short = 'n', long, value_name = "N", help_heading = "Questions")]
    pub(crate) limit: Option<usize>,
    /// Chain to compare; {keep} is filled in with each budget (may be repeated)
    #[arg(long, value_name = "SPEC", num_args = 1.., help_heading = "Pruning")]
    pub(crate) chains: Vec<String>,
    /// File with one chain a line, as for --chains
    #[arg(long, value_name = "FILE", help_heading = "Pruning")]
    pub(crate) chain_file: Option<PathBuf>,
    /// Pruners to compare [default: all, unless chains are given]
    #[arg(long, value_name = "A,B", value_delimiter = ',', help_heading = "Pruning")]
    pub(crate) pruners: Vec<String>,
    /// Visual tokens, mean over decoder layers [default: powers of two from the model's down to 16]
    #[arg(long, value_name = "A,B", value_delimiter = ',', help_heading = "Pruning")]
    pub(crate) keep: Vec<usize>,
    /// Seeds of `random`
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "Pruning")]
    pub(crate) seeds: usize,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 96, help_heading = "Answer")]
    pub(crate) max_tokens: usize,
    /// Questions in one pass
    #[arg(short, long, value_name = "N", default_value_t = 8, help_heading = "Speed")]
    pub(crate) batch_size: usize,
    /// Folder for answers, tables and chart; the same command goes on there
    #[arg(
        short,
        long,
        value_name = "DIR",
        default_value = "secateur-eval",
        help_heading = "Output"
    )]
    pub(crate) out: PathBuf,
    /// Ground of the chart's PNG (the SVG follows the reader's)
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    pub(crate) theme: ThemeChoice,
    /// Print one JSON object instead of a table
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
    /// How progress is shown on stderr
    #[arg(long, value_enum, default_value_t, help_heading = "Everywhere")]
    pub(crate) progress: ProgressMode,
}

/// What `tune` and `calibrate` run on: pictures, and what is asked about them.
#[derive(Clone, Debug, Args)]
pub(crate) struct QuestionArgs {
    /// Folder of pictures, best a hundred or more
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present = "questions",
        help_heading = "Questions"
    )]
    pub(crate) images: Option<PathBuf>,
    /// Take pictures and prompts from a file of questions (as for eval)
    #[arg(long, value_name = "FILE", help_heading = "Questions")]
    pub(crate) questions: Option<PathBuf>,
    /// What is asked about each picture of --images (may be repeated)
    #[arg(short, long, value_name = "TEXT", default_values = PROMPTS, help_heading = "Questions")]
    pub(crate) prompt: Vec<String>,
}

/// Flags of `tune`.
#[derive(Clone, Debug, Args)]
pub(crate) struct TuneArgs {
    /// Pruner whose parameters are searched, or a chain with ranges: 'NAME:a={a:0.5..4}:keep={keep}'
    #[arg(long, value_name = "NAME|CHAIN", default_value = "vflowopt", help_heading = "Pruning")]
    pub(crate) pruner: String,
    /// Visual tokens to keep, mean over decoder layers: a number, or a share of the model's
    #[arg(long, value_name = "N|SHARE", default_value = "0.1", help_heading = "Pruning")]
    pub(crate) keep: String,
    #[command(flatten)]
    pub(crate) source: QuestionArgs,
    /// Most prompts to search on, spread over all of them; as many more are held out
    #[arg(short = 'n', long, value_name = "N", default_value_t = 48, help_heading = "Questions")]
    pub(crate) limit: usize,
    /// Share of the pictures that is held out to compare the result with the untuned setting
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, help_heading = "Questions")]
    pub(crate) holdout: f64,
    /// Parameter sets to try
    #[arg(long, value_name = "N", default_value_t = 300, help_heading = "Search")]
    pub(crate) evals: usize,
    /// Start of the random numbers
    #[arg(long, value_name = "N", default_value_t = 42, help_heading = "Search")]
    pub(crate) seed: u64,
    /// Draw every set at random instead of searching, to compare
    #[arg(long, help_heading = "Search")]
    pub(crate) random_search: bool,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    /// Folder for the log, the chain file and the chart; the same command goes on there
    #[arg(
        short,
        long,
        value_name = "DIR",
        default_value = "secateur-tune",
        help_heading = "Output"
    )]
    pub(crate) out: PathBuf,
    /// Ground of the chart's PNG (the SVG follows the reader's)
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    pub(crate) theme: ThemeChoice,
    /// How progress is shown on stderr
    #[arg(long, value_enum, default_value_t, help_heading = "Everywhere")]
    pub(crate) progress: ProgressMode,
}

/// Flags of `calibrate`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CalibrateArgs {
    #[command(flatten)]
    pub(crate) source: QuestionArgs,
    /// Only the first N prompts
    #[arg(short = 'n', long, value_name = "N", help_heading = "Questions")]
    pub(crate) limit: Option<usize>,
    /// The layer before which the pruner to be debiased cuts
    #[arg(long, value_name = "K", default_value_t = 2, help_heading = "Trend")]
    pub(crate) layer: usize,
    /// Attention of the layer that has just run (FastV), or of the one about to run (PyramidDrop)
    #[arg(long, value_enum, default_value_t, help_heading = "Trend")]
    pub(crate) rows: RowsChoice,
    /// Form of the trend
    #[arg(long, value_enum, default_value_t, help_heading = "Trend")]
    pub(crate) form: TrendForm,
    /// Values of a table
    #[arg(long, value_name = "N", default_value_t = 33, help_heading = "Trend")]
    pub(crate) points: usize,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    /// The trend file to write; a chart is written beside it
    #[arg(short, long, value_name = "FILE", default_value = "trend.toml", help_heading = "Output")]
    pub(crate) out: PathBuf,
    /// Ground of the chart's PNG (the SVG follows the reader's)
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    pub(crate) theme: ThemeChoice,
    /// How progress is shown on stderr
    #[arg(long, value_enum, default_value_t, help_heading = "Everywhere")]
    pub(crate) progress: ProgressMode,
}

/// Ground of a chart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ThemeChoice {
    /// White
    #[default]
    Light,
    /// Near black
    Dark,
}

impl From<ThemeChoice> for Theme {
    fn from(choice: ThemeChoice) -> Self {
        match choice {
            ThemeChoice::Light => Theme::Light,
            ThemeChoice::Dark => Theme::Dark,
        }
    }
}

/// Which attention a trend is fitted to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum RowsChoice {
    /// The last prompt token in layer K - 1
    #[default]
    Last,
    /// The last prompt token in layer K, from its input
    Probe,
    /// The instruction's rows in layer K, from its input
    Instruction,
}

/// Form of a trend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum TrendForm {
    /// a exp(rate t)
    #[default]
    Exp,
    /// a (1 + c1 t + c2 t^2 + c3 t^3)
    Cubic,
    /// The measured curve itself, smoothed
    Table,
}
