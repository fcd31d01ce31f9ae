//! `ask`: one answer about some pictures, streamed as it is made.

use std::io::Read;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use secateur::image::{Limits, decode, load};
use secateur::{Answer, Clip, Encoding, Load, Reading, Report, Request, Stream};
use serde::Serialize;

use crate::args::{AskArgs, Medium};
use crate::job;
use crate::outcome::{Outcome, usage};
use crate::output::{Align, Console, table};
use crate::video::{Frames, advice, is_video};

/// Answers with more or fewer pictures are told apart by this.
const SCHEMA: &str = "secateur.answer/1";

#[derive(Serialize)]
struct Line<'a> {
    schema: &'static str,
    model: &'a str,
    question: &'a str,
    #[serde(flatten)]
    answer: &'a Answer,
}

/// Runs the command.
///
/// # Errors
/// What keeps it from answering.
pub(crate) fn run(args: &AskArgs, console: &Console) -> Result<Outcome> {
    let (question, media) = question(&args.media.0)?;
    let question = job::text(&question)?;
    let chain = job::chain(&args.chain)?;
    let limits = job::limits(&args.limits);
    let load = Load { max_tokens: args.sampling.max_tokens, ..Load::default() };
    job::most_requests(&args.model, &args.limits, &chain, &load, console)?;
    let vlm = job::open(&args.model, console)?;
    vlm.resolve(&chain)?;
    let start = Instant::now();
    let mut request = Request::new(&question)
        .chain(chain)
        .sampling(job::sampling(&args.sampling))
        .max_tokens(args.sampling.max_tokens);
    let frames = Frames::new(&args.video, &vlm, args.sampling.max_tokens, limits);
    let mut most = 0;
    for medium in media {
        let (path, is_video) = match medium {
            Medium::File(path) | Medium::Word(path) => (path, secateur::video::is_video(path)),
            Medium::Frames(folder) => {
                let [path] = folder.as_slice() else { continue };
                if !path.is_dir() {
                    return Err(usage(format!("--frames {}: expected a folder", path.display())));
                }
                (path, true)
            }
        };
        let clip = if is_video { frames.load(path)? } else { picture(path, &limits)? };
        most += if is_video { clip.frames().len() } else { 0 };
        request = vlm.fitted(clip)?.into_iter().fold(request, Request::clip);
    }
    request = request.decode_image_ms(start.elapsed().as_secs_f64() * 1e3);
    if let Some(system) = &args.system {
        request = request.system(job::text(system)?);
    }
    for stop in &args.sampling.stop {
        request = request.stop(stop);
    }
    let mut session = vlm.session();
    let mut stream = session.ask(request).map_err(|error| match advice(&error, most) {
        Some(advice) => anyhow::Error::from(error).context(advice),
        None => error.into(),
    })?;
    if !args.json && !args.no_stream {
        say(&mut stream, console)?;
    }
    let answer = stream.finish()?;
    if args.json {
        let model = &vlm.info().name;
        console.json(&Line { schema: SCHEMA, model, question: &question, answer: &answer })?;
    } else if args.no_stream {
        console.words(&format!("{}\n", answer.text))?;
    }
    if args.stats {
        console.note(stats(&answer.report, &vlm.describe()).trim_end());
    }
    Ok(Outcome::Done)
}

/// The question among what was typed, and the pictures and videos, in their order: of arguments
/// without a flag, the one that is no file is the question.
///
/// # Errors
/// No question, or several: a usage error that says what to type.
fn question(typed: &[Medium]) -> Result<(String, Vec<&Medium>)> {
    let is_named_so = |path: &Path| {
        let has_space = path.to_string_lossy().contains(char::is_whitespace);
        !has_space && (is_video(path) || crate::named::is_picture(path))
    };
    let is_file = |path: &Path| path.as_os_str() == "-" || path.exists() || is_named_so(path);
    let words: Vec<&Path> = typed
        .iter()
        .filter_map(|medium| match medium {
            Medium::Word(path) => Some(path.as_path()),
            _ => None,
        })
        .collect();
    let asked: Vec<&Path> = match words[..] {
        // A word that happens to be a file's name as well.
        [word] if !is_named_so(word) => vec![word],
        _ => words.into_iter().filter(|word| !is_file(word)).collect(),
    };
    let example = "for instance `secateur ask cat.jpg \"What is it?\"`";
    match asked[..] {
        [one] => {
            let question = one.to_str().ok_or_else(|| usage("the question is not UTF-8"))?;
            let is_medium = |m: &&Medium| !matches!(m, Medium::Word(path) if path.as_path() == one);
            let media = typed.iter().filter(is_medium);
            Ok((question.to_owned(), media.collect()))
        }
        [] => Err(usage(format!("a question is missing: type it behind the files, {example}"))),
        [first, second, ..] => Err(usage(format!(
            "`{}` and `{}` are no files, and one question is asked: put it in quotes, {example}",
            first.display(),
            second.display()
        ))),
    }
}

/// A picture from a file or, for `-`, from standard input.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn picture(path: &Path, limits: &Limits) -> Result<Clip> {
    if path.as_os_str() != "-" {
        return Ok(load(path, limits)?);
    }
    let mut bytes = Vec::new();
    // One more than is allowed, so that the limit is seen to be passed.
    std::io::stdin()
        .lock()
        .take(limits.max_file_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .context("cannot read the picture from stdin")?;
    Ok(decode("stdin", &bytes, limits)?)
}

/// Prints an answer as it is made, and ends its line however it ends.
///
/// # Errors
/// What stopped it; a closed stdout.
pub(crate) fn say(stream: &mut Stream<'_>, console: &Console) -> Result<()> {
    let mut is_start = true;
    for piece in stream.by_ref() {
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => {
                if !is_start {
                    console.result("\n")?;
                }
                return Err(error.into());
            }
        };
        // The first token of many tokenizers brings a space.
        let piece = if is_start { piece.trim_start() } else { &piece };
        is_start &= piece.is_empty();
        console.words(piece)?;
    }
    console.result("\n")
}

/// What became of the pictures in the vision tower, in words.
fn encoding(report: &Report) -> String {
    let reuse = &report.reuse;
    let all = report.pictures.len();
    match reuse.encoded {
        Encoding::None => "no picture".to_owned(),
        Encoding::Reused => format!("not again: held rows, which took {:.1} ms", reuse.saved_ms),
        Encoding::MoreSignals => "again: this chain reads signals that were not held".to_owned(),
        Encoding::New if reuse.clips > 0 => {
            format!("{} of {all}: the others' rows were held", all - reuse.clips)
        }
        Encoding::New => "all: no rows of them were held".to_owned(),
        _ => "all: no rows are held".to_owned(),
    }
}

/// What of the prompt the decoder read, in words.
fn reading(report: &Report) -> String {
    let why = match report.reuse.read {
        Reading::Continued => {
            let (all, held) = (report.prompt_tokens, report.reuse.prompt_tokens);
            return format!("the last {} tokens of {all}, behind held keys", all - held);
        }
        Reading::First => "nothing was asked before",
        Reading::ReadsText => "this chain reads the text, and keeps other tokens for other words",
        Reading::CarriesState => "a pruner carries state from answer to answer",
        Reading::OtherChain => "the chain is another one",
        Reading::OtherPictures => "the pictures are others",
        Reading::OtherText => "the text differs before the end of the pictures",
        Reading::SeesItself => "in this model the whole prompt sees itself",
        Reading::ForHeads => "a head reads the prompt",
        Reading::Failed => "the answer before failed",
        _ => "nothing is held",
    };
    format!("all of it: {why}")
}

/// Where tokens and time went, for people.
pub(crate) fn stats(report: &Report, device: &str) -> String {
    let mut out = format!("device         {device}\n");
    let text = report.prompt_tokens - report.visual_in;
    out.push_str(&format!(
        "tokens         {} visual + {text} text in, {} out\n",
        report.visual_in, report.output_tokens
    ));
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / 1048576.0);
    out.push_str(&format!(
        "memory         {} at most, {} of it keys and values\n",
        mib(report.peak_bytes),
        mib(report.kv_bytes as u64)
    ));
    out.push_str(&format!("encoded        {}\n", encoding(report)));
    out.push_str(&format!("prompt read    {}\n", reading(report)));
    if !report.stages.is_empty() {
        out.push('\n');
        let mut rows = vec![["stage", "site", "in", "kept", "ms"].map(str::to_owned).to_vec()];
        for stage in &report.stages {
            rows.push(vec![
                stage.pruner.clone(),
                stage.site.to_string(),
                stage.before.to_string(),
                stage.kept.to_string(),
                format!("{:.2}", stage.ms),
            ]);
        }
        let align = [Align::Left, Align::Left, Align::Right, Align::Right, Align::Right];
        out.push_str(&table(&rows, &align));
    }
    for note in &report.notes {
        out.push_str(&format!("note           {note}\n"));
    }
    out.push('\n');
    let ms = &report.ms;
    let mut rows = Vec::new();
    for (name, ms) in [
        ("decode image", ms.decode_image),
        ("resize", ms.process),
        ("encode", ms.encode),
        ("prune", ms.prune),
        ("prefill", ms.prefill),
        ("decode", ms.decode),
        ("total", ms.total),
    ] {
        rows.push(vec![name.to_owned(), format!("{ms:.1} ms")]);
    }
    let after_first = report.output_tokens.saturating_sub(1);
    if after_first > 0 && ms.decode > 0.0 {
        let per_second = after_first as f64 * 1e3 / ms.decode;
        rows[5].push(format!("{per_second:.1} tokens/s"));
    }
    out.push_str(&table(&rows, &[Align::Left, Align::Right, Align::Right]));
    out
}
