//! `trace`: every tensor of one run in a safetensors file, to compare with a reference.

use std::path::PathBuf;

use anyhow::{Context, Result};
use secateur::image::{Limits, load};
use secateur::video::is_video;
use secateur::{Clip, Frame, Load, ModelOptions, Request, VideoAdvance, VideoInfo};

use crate::args::{Advance, Medium, TraceArgs};
use crate::hub::Needs;
use crate::job;
use crate::outcome::{Outcome, usage};
use crate::output::Console;
use crate::video::Frames;
use crate::write::replace_one;

/// Runs the command.
///
/// # Errors
/// Anything that keeps the file from being written whole.
pub(crate) fn run(args: &TraceArgs, console: &Console) -> Result<Outcome> {
    let chain = job::chain(&args.chain)?;
    let limits = job::limits(&args.limits);
    let is_moving = |medium: &Medium| match medium {
        Medium::Frames(_) => true,
        Medium::File(path) | Medium::Word(path) => is_video(path),
    };
    if args.video.fps.is_some() && !args.media.0.iter().any(is_moving) {
        return Err(usage("--fps: there is no video; name one with --image or --frames"));
    }
    let load_of_run = Load { max_tokens: args.max_tokens, ..Load::default() };
    job::most_requests(&args.model, &args.limits, &chain, &load_of_run, console)?;
    let vlm = open(args, console)?;
    let mut request = Request::new(&args.prompt).chain(chain).max_tokens(args.max_tokens);
    let frames = Frames::new(&args.video, &vlm, args.max_tokens, limits);
    for medium in &args.media.0 {
        let clip = match medium {
            Medium::Frames(paths) => video(paths, args.video.fps, &limits)?,
            Medium::File(path) | Medium::Word(path) if is_video(path) => frames.load(path)?,
            Medium::File(path) | Medium::Word(path) => load(path, &limits)?,
        };
        request = match medium {
            // Frames that were listed are the video that is traced, whatever the family.
            Medium::Frames(_) => request.clip(clip),
            _ => vlm.fitted(clip)?.into_iter().fold(request, Request::clip),
        };
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
