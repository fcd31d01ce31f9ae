//! `trace`: every tensor of one run in a safetensors file, to compare with a reference.

use std::path::PathBuf;

use anyhow::{Context, Result};
use secateur::image::{Limits, load};
use secateur::{Clip, Frame, Load, ModelOptions, Request, VideoAdvance, VideoInfo};

use crate::args::{Advance, Medium, TraceArgs};
use crate::hub::Needs;
use crate::job;
use crate::outcome::Outcome;
use crate::output::Console;
use crate::write::replace_one;

/// Runs the command.
///
/// # Errors
/// Anything that keeps the file from being written whole.
pub(crate) fn run(args: &TraceArgs, console: &Console) -> Result<Outcome> {
    let chain = job::chain(&args.chain)?;
    let limits = job::limits(&args.limits);
    let mut request = Request::new(&args.prompt).chain(chain).max_tokens(args.max_tokens);
    for medium in &args.media.0 {
        request = request.clip(match medium {
            Medium::File(path) | Medium::Word(path) => load(path, &limits)?,
            Medium::Frames(frames) => video(frames, args.fps, &limits)?,
        });
    }
    if args.raw_prompt {
        request = request.raw_prompt();
    }
    if args.ignore_eos {
        request = request.ignore_eos();
    }
    let histories = match &args.state {
        Some(path) => secateur::trace::read_histories(path)?,
        None => secateur::trace::Histories::default(),
    };
    let load = Load { max_tokens: args.max_tokens, ..Load::default() };
    let spec = job::chain(&args.chain)?;
    job::most_requests(&args.model, &args.limits, &spec, &load, console)?;
    let vlm = open(args, console)?;
    let tensors = vlm.trace(&request, &histories)?;
    let bytes = tensors.to_safetensors().context("the tensors cannot be written")?;
    replace_one(&args.out, &bytes)
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    console.note(&format!("{} tensors in {}", tensors.iter().count(), args.out.display()));
    Ok(Outcome::Done)
}

fn open(args: &TraceArgs, console: &Console) -> Result<secateur::Vlm> {
    let name = args.model.model.as_deref().unwrap_or("the built-in model");
    let video_advance = match args.mrope_video_advance {
        Advance::MaxPlusOne => VideoAdvance::MaxPlusOne,
        Advance::MaxHw => VideoAdvance::MaxHw,
    };
    job::builder(&args.model, Needs::Weights, console)?
        .model_options(ModelOptions { video_advance })
        .open()
        .with_context(|| format!("cannot open {name}"))
}

/// A video from its frames' files.
fn video(paths: &[PathBuf], fps: Option<f64>, limits: &Limits) -> Result<Clip> {
    let mut frames: Vec<Frame> = Vec::new();
    for path in paths {
        frames.extend(load(path, limits)?.frames().iter().cloned());
    }
    let duration_s = fps.map(|fps| frames.len() as f64 / fps);
    let label = paths.first().map_or_else(String::new, |p| p.display().to_string());
    Ok(Clip::from_frames(label, frames, VideoInfo { fps, duration_s })?)
}
