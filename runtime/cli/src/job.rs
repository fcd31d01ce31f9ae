//! From what was typed to what is run: everything resolved and checked before any work begins.
//!
//! Nothing below this module reads arguments, the terminal or, but for the hub's own variables
//! ([`crate::hub`]), the environment.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use secateur::image::Limits;
use secateur::{
    ChainSpec, Clip, GgufPair, ImageAspect, ImageBackend, Load, ModelSource, Outline, Precision,
    ProcessorOptions, ResolvedChain, Sampling, Vlm, VlmBuilder,
};

use crate::args::{
    AspectChoice, BackendChoice, CaptionArgs, ChainArgs, Dtype, EncoderArgs, Format, LimitArgs,
    ModelArgs, QuestionArgs, SamplingArgs,
};
use crate::eval::{Question, folder, load};
use crate::hub::{self, Needs};
use crate::outcome::usage;
use crate::output::Console;
use crate::video::Frames;

/// Arithmetic that was asked for.
pub(crate) fn precision(dtype: Dtype) -> Precision {
    match dtype {
        Dtype::F32 => Precision::F32,
        Dtype::Auto | Dtype::Bf16 => Precision::Bf16,
    }
}

/// Processor settings that were asked for.
pub(crate) fn processor_options(args: &ModelArgs) -> ProcessorOptions {
    ProcessorOptions {
        backend: match args.image_backend {
            BackendChoice::Torchvision => ImageBackend::Torchvision,
            BackendChoice::Pillow => ImageBackend::Pillow,
        },
        aspect: match args.image_aspect {
            AspectChoice::Model => ImageAspect::Model,
            AspectChoice::Pad => ImageAspect::Pad,
            AspectChoice::Crop => ImageAspect::Crop,
        },
        max_pixels: args.scale_max_pixels.and_then(|n| usize::try_from(n).ok()),
        min_pixels: args.scale_min_pixels.and_then(|n| usize::try_from(n).ok()),
        ..ProcessorOptions::default()
    }
}

/// Where a model comes from.
///
/// # Errors
/// A projector beside a model that is no GGUF file: a usage error.
pub(crate) fn source(model: Option<&str>, mmproj: Option<&Path>) -> Result<ModelSource> {
    let Some(projector) = mmproj else { return Ok(ModelSource::parse(model)) };
    let decoder = Path::new(model.unwrap_or_default());
    if decoder.extension().is_none_or(|e| !e.eq_ignore_ascii_case("gguf")) {
        return Err(usage("--mmproj goes with --model FILE.gguf"));
    }
    let (decoder, projector) = (decoder.to_path_buf(), projector.to_path_buf());
    Ok(GgufPair { decoder, projector }.into())
}

/// A model about to be opened, its files in place.
///
/// # Errors
/// A hub id whose files are not in the cache and cannot be downloaded; a projector beside a model that is no GGUF file, an ONNX encoder in a build without the feature
/// `onnx`: usage errors.
pub(crate) fn builder(args: &ModelArgs, needs: Needs, console: &Console) -> Result<VlmBuilder> {
    hub::fetch(args.model.as_deref(), needs, args.offline, console)?;
    let builder = Vlm::builder(source(args.model.as_deref(), args.mmproj.as_deref())?)
        .registry(args.pruners.clone())
        .precision(precision(args.dtype))
        .image_options(processor_options(args));
    let builder = match args.threads {
        Some(threads) => builder.threads(threads),
        None => builder,
    };
    let builder = match &args.adapter {
        Some(folder) => builder.adapter(folder),
        None => builder,
    };
    with_encoder(builder, &args.encoder, args.threads)
}

#[cfg(feature = "onnx")]
fn with_encoder(
    builder: VlmBuilder,
    args: &EncoderArgs,
    threads: Option<usize>,
) -> Result<VlmBuilder> {
    use crate::args::ProviderChoice;
    use secateur::onnx::{OnnxOptions, Provider};
    let Some(file) = &args.file else { return Ok(builder) };
    let provider = match args.onnx_provider {
        ProviderChoice::Cpu => Provider::Cpu,
        ProviderChoice::Cuda(device) => Provider::Cuda(device),
    };
    let options = OnnxOptions { library: args.onnx_library.clone(), provider, threads };
    Ok(builder.onnx_encoder(file, options))
}

#[cfg(not(feature = "onnx"))]
fn with_encoder(builder: VlmBuilder, args: &EncoderArgs, _: Option<usize>) -> Result<VlmBuilder> {
    match &args.file {
        None => Ok(builder),
        Some(file) => Err(usage(format!(
            "--encoder {}: this program was built without ONNX; build it with \
             `cargo build --release --features onnx`",
            file.display()
        ))),
    }
}

/// Puts a model's files in place ahead of the handlers of signals, so that the first signal ends a
/// download; what came so far is kept.
///
/// # Errors
/// As [`builder`].
pub(crate) fn fetch(args: &ModelArgs, console: &Console) -> Result<()> {
    hub::fetch(args.model.as_deref(), Needs::Weights, args.offline, console)
}

/// Opens a model.
///
/// # Errors
/// As [`builder`]; what is wrong with its files.
pub(crate) fn open(args: &ModelArgs, console: &Console) -> Result<Vlm> {
    opened(builder(args, Needs::Weights, console)?, args)
}

fn opened(builder: VlmBuilder, args: &ModelArgs) -> Result<Vlm> {
    let name = args.model.as_deref().unwrap_or("the built-in model");
    builder.open().with_context(|| format!("cannot open {name}"))
}

/// The requests of a load that `--max-memory` has room for in one pass, by what a model's small
/// files say; `None` without the flag.
///
/// # Errors
/// Not even one fits: says what it needs. What is wrong with the model's files.
pub(crate) fn most_requests(
    model: &ModelArgs,
    limits: &LimitArgs,
    chain: &ChainSpec,
    load: &Load,
    console: &Console,
) -> Result<Option<usize>> {
    let Some(limit) = limits.max_memory else { return Ok(None) };
    let outline = builder(model, Needs::Description, console)?;
    let outline = self::outline(outline, model.model.as_deref(), None)?;
    // A chain that does not fit, or only with an encoder that is not loaded yet, is judged later.
    let none = ChainSpec::default();
    let chain = if outline.resolve(chain).is_ok() { chain } else { &none };
    // What a usual photo becomes, where the size of a picture decides.
    let photo = Clip::picture("a photo", 1600, 1200, vec![0u8; 1600 * 1200 * 3])?;
    let visual = outline.tokens(&[photo])?.len().max(outline.info().visual_tokens);
    let load = Load { visual_tokens: Some(load.visual_tokens.unwrap_or(visual)), ..*load };
    if let Some(most) = outline.most_requests(chain, &load, limit)? {
        return Ok(Some(most));
    }
    let need = outline.forecast(chain, &Load { requests: 1, ..load })?;
    anyhow::bail!(
        "--max-memory {:.0} MiB is not enough: one picture at a time needs about {need}; give it \
         more, decode fewer pictures at once (--jobs), or keep fewer tokens (--prune)",
        limit as f64 / 1048576.0
    )
}

/// [`most_requests`] of requests without a chain that are made `wanted` at a time: as many of them as
/// there is room for, with a note where that is fewer.
///
/// # Errors
/// As [`most_requests`].
pub(crate) fn requests_within(
    wanted: usize,
    model: &ModelArgs,
    limits: &LimitArgs,
    max_tokens: usize,
    console: &Console,
) -> Result<usize> {
    let load = Load { max_tokens, ..Load::default() };
    let most = most_requests(model, limits, &ChainSpec::default(), &load, console)?;
    let most = most.unwrap_or(wanted);
    if most < wanted {
        console.note(&format!("--max-memory: {most} in one pass instead of {wanted}"));
    }
    Ok(most.min(wanted))
}

/// Opens a model that holds that many bytes of tower rows ([`VlmBuilder::reuse`]).
///
/// # Errors
/// As [`open`].
pub(crate) fn open_holding(model: &ModelArgs, held: usize, console: &Console) -> Result<Vlm> {
    opened(builder(model, Needs::Weights, console)?.reuse(held), model)
}

/// Opens a model for a job to which every picture comes once.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_holding_nothing(model: &ModelArgs, console: &Console) -> Result<Vlm> {
    opened(builder(model, Needs::Weights, console)?.reuse(0), model)
}

/// Reads what a model, or a named shape, is; none of its weights.
///
/// # Errors
/// What is wrong with its files, an unknown shape.
pub(crate) fn outline(
    builder: VlmBuilder,
    model: Option<&str>,
    shape: Option<&str>,
) -> Result<Outline> {
    let (outline, name) = match shape {
        Some(shape) => (builder.outline_shape(shape), shape),
        None => (builder.outline(), model.unwrap_or("the built-in model")),
    };
    outline.with_context(|| format!("cannot read {name}"))
}

/// Reads a chain.
///
/// # Errors
/// A chain that cannot be read: a usage error.
pub(crate) fn chain(args: &ChainArgs) -> Result<ChainSpec> {
    secateur::parse_chain(&args.prune).map_err(|e| usage(e.to_string()))
}

/// The questions that `tune` and `calibrate` run on.
///
/// # Errors
/// As [`load`] and [`folder`]; a usage error if it was pointed at nothing.
pub(crate) fn questions(args: &QuestionArgs) -> Result<Vec<Question>> {
    match (&args.questions, &args.images) {
        (Some(file), images) => load(file, images.as_deref()),
        (None, Some(images)) => folder(images, &args.prompt),
        (None, None) => Err(usage("name --images DIR or --questions FILE")),
    }
}

/// Sampling that was asked for.
pub(crate) fn sampling(args: &SamplingArgs) -> Sampling {
    Sampling {
        temperature: args.temperature,
        top_p: args.top_p,
        top_k: args.top_k,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        seed: args.seed,
    }
}

/// Limits that were asked for.
pub(crate) fn limits(args: &LimitArgs) -> Limits {
    Limits {
        max_pixels: args.max_pixels,
        max_file_bytes: args.max_file_size,
        max_alloc_bytes: args.max_decode_memory,
        ..Limits::default()
    }
}

/// Largest text that `@FILE` reads.
const MAX_TEXT: u64 = 1 << 20;

/// `@FILE` is the content of a file, anything else stands for itself.
///
/// # Errors
/// A file that cannot be read: a usage error.
pub(crate) fn text(typed: &str) -> Result<String> {
    let Some(file) = typed.strip_prefix('@') else { return Ok(typed.to_owned()) };
    read_text(Path::new(file), MAX_TEXT)
        .map(|text| text.trim_end().to_owned())
        .map_err(|e| usage(format!("cannot read the text in {file}: {e}")))
}

/// The text in a file that somebody named. It may be a pipe (`<(command)`), and ends somewhere.
///
/// # Errors
/// The file system's; more than `most` bytes; bytes that are no text.
pub(crate) fn read_text(path: &Path, most: u64) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(most + 1).read_to_string(&mut text)?;
    if text.len() as u64 > most {
        return Err(std::io::Error::other(format!("more than {most} bytes")));
    }
    Ok(text)
}

/// Where captions go.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Target {
    /// A text file beside each picture.
    Beside,
    /// Text files in a mirror of the tree.
    Mirror(PathBuf),
    /// JSON lines in a file.
    File(PathBuf),
    /// JSON lines on standard output.
    Stdout,
}

impl Target {
    /// The target that `--output` and `--format` name together.
    ///
    /// # Errors
    /// A pair that has no meaning.
    pub(crate) fn new(output: Option<&PathBuf>, format: Option<Format>) -> Result<Self> {
        let Some(output) = output else {
            return Ok(match format {
                Some(Format::Jsonl) => Target::Stdout,
                _ => Target::Beside,
            });
        };
        let is_stdout = output.as_os_str() == "-";
        let is_lines = output.extension().is_some_and(|e| e == "jsonl" || e == "ndjson");
        match format {
            Some(Format::Txt) if is_stdout => Err(usage(
                "--format txt writes one file a picture; standard output takes --format jsonl",
            )),
            None | Some(Format::Jsonl) if is_stdout => Ok(Target::Stdout),
            None if !is_lines => match looks_like_a_file(output) {
                None => Ok(Target::Mirror(output.clone())),
                Some(ending) => Err(usage(format!(
                    "--output {}: captions are not written as .{ending}; name a FILE.jsonl for \
                     records, or a folder for text files (one of that name with a `/` at its end)",
                    output.display()
                ))),
            },
            Some(Format::Txt) => Ok(Target::Mirror(output.clone())),
            Some(Format::Jsonl) if output.is_dir() => Err(usage(format!(
                "{} is a folder; --format jsonl writes one file: name it, for instance {}",
                output.display(),
                output.join("captions.jsonl").display()
            ))),
            _ => Ok(Target::File(output.clone())),
        }
    }
}

/// The ending of a path that looks like a file's and is no folder: a letter stands in it, and
/// neither a folder of that name nor a `/` at the end says otherwise.
fn looks_like_a_file(path: &Path) -> Option<&str> {
    let is_folder = path.is_dir()
        || path.as_os_str().as_encoded_bytes().ends_with(std::path::MAIN_SEPARATOR_STR.as_bytes());
    let ending = path.extension()?.to_str()?;
    let is_ending = ending.len() <= 8
        && ending.bytes().all(|b| b.is_ascii_alphanumeric())
        && ending.bytes().any(|b| b.is_ascii_alphabetic());
    (is_ending && !is_folder).then_some(ending)
}

/// A caption job, resolved.
#[derive(Clone, Debug)]
pub(crate) struct CaptionJob {
    /// Where captions go.
    pub(crate) target: Target,
    /// The question; `{stem}` and `{dir}` are filled in per picture.
    pub(crate) prompt: String,
    /// The system message.
    pub(crate) system: Option<String>,
    /// The chain.
    pub(crate) chain: ChainSpec,
    /// How tokens are chosen.
    pub(crate) sampling: Sampling,
    /// Most tokens of a caption.
    pub(crate) max_tokens: usize,
    /// Texts that end a caption.
    pub(crate) stop: Vec<String>,
    /// Limits on pictures.
    pub(crate) limits: Limits,
    /// Time for one picture.
    pub(crate) item_timeout: Duration,
    /// Threads that decode pictures.
    pub(crate) jobs: usize,
}

impl CaptionJob {
    /// Resolves what was typed.
    ///
    /// # Errors
    /// Usage errors.
    pub(crate) fn new(args: &CaptionArgs) -> Result<Self> {
        let target = Target::new(args.output.as_ref(), args.format)?;
        if args.messages && !matches!(target, Target::File(_) | Target::Stdout) {
            return Err(usage("--messages is a shape of JSON lines; add --format jsonl"));
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            target,
            prompt: text(&args.prompt)?,
            system: args.system.as_deref().map(text).transpose()?,
            chain: chain(&args.chain)?,
            sampling: sampling(&args.sampling),
            max_tokens: args.sampling.max_tokens,
            stop: args.sampling.stop.clone(),
            limits: limits(&args.limits),
            item_timeout: args.item_timeout,
            jobs: args.jobs.unwrap_or(cores).max(1),
        })
    }

    /// Everything that can change a caption, for the fingerprint.
    pub(crate) fn settings(
        &self,
        model: &ModelArgs,
        chain: &ResolvedChain,
        frames: &Frames,
    ) -> serde_json::Value {
        let stages: Vec<String> =
            chain.stages.iter().map(|s| format!("{}: {:?}", s.name, s.plan)).collect();
        serde_json::json!({
            "prompt": self.prompt,
            "system": self.system,
            "chain": self.chain.to_string(),
            "stages": stages,
            "sampling": self.sampling,
            "max_tokens": self.max_tokens,
            "stop": self.stop,
            "processor": processor_options(model),
            "dtype": precision(model.dtype),
            "frames": frames.identity(),
        })
    }
}

/// Identity of a model, of the adapter merged into it, and of the tower in place of its own, for
/// fingerprints.
///
/// # Errors
/// Files that cannot be read.
pub(crate) fn model_identity(args: &ModelArgs) -> Result<String> {
    let source = source(args.model.as_deref(), args.mmproj.as_deref())?;
    let model = match (source.gguf()?, source.path()?) {
        (Some(pair), _) => crate::fingerprint::gguf(&pair)?,
        (None, Some(folder)) => crate::fingerprint::model_folder(&folder)?,
        (None, None) => crate::fingerprint::built_in(),
    };
    let model = match &args.adapter {
        Some(folder) => format!("{model}, adapter {}", crate::fingerprint::model_folder(folder)?),
        None => model,
    };
    let Some(file) = &args.encoder.file else { return Ok(model) };
    let tower = crate::fingerprint::weights_file(file)?;
    Ok(format!("{model}, tower {tower} on {:?}", args.encoder.onnx_provider))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_format_say_together_where_captions_go() {
        let path = |text: &str| Some(PathBuf::from(text));
        let target =
            |output: Option<&str>, format| Target::new(output.and_then(path).as_ref(), format).ok();
        assert_eq!(target(None, None), Some(Target::Beside));
        assert_eq!(target(None, Some(Format::Txt)), Some(Target::Beside));
        assert_eq!(target(None, Some(Format::Jsonl)), Some(Target::Stdout));
        assert_eq!(target(Some("-"), None), Some(Target::Stdout));
        assert_eq!(target(Some("-"), Some(Format::Txt)), None);
        assert_eq!(target(Some("o.jsonl"), None), Some(Target::File("o.jsonl".into())));
        assert_eq!(target(Some("o"), None), Some(Target::Mirror("o".into())));
        assert_eq!(target(Some("o"), Some(Format::Jsonl)), Some(Target::File("o".into())));
        assert_eq!(
            target(Some("o.jsonl"), Some(Format::Txt)),
            Some(Target::Mirror("o.jsonl".into()))
        );
        assert_eq!(target(Some("/"), Some(Format::Jsonl)), None);
        for file in ["x.csv", "a/x.json", "x.txt", "x.parquet"] {
            assert_eq!(target(Some(file), None), None, "{file}");
        }
        for folder in ["x.csv/", "2026.12", "out.with words"] {
            assert_eq!(target(Some(folder), None), Some(Target::Mirror(folder.into())));
        }
    }
}
