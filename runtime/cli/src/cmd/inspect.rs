//! `inspect`: draws what each stage of a chain kept, dropped and merged.

use anyhow::{Context, Result};
use secateur::Request;

use crate::args::InspectArgs;
use crate::cmd::ask::picture;
use crate::inspect::{Scene, html, png};
use crate::job;
use crate::outcome::{Outcome, usage};
use crate::output::Console;
use crate::video::Frames;
use crate::write::replace_one;

#[derive(Clone, Copy)]
enum Form {
    Png,
    Html,
}

/// Runs the command.
///
/// # Errors
/// Anything that keeps the drawing from being written whole.
pub(crate) fn run(args: &InspectArgs, console: &Console) -> Result<Outcome> {
    let form = match args.out.extension().and_then(|e| e.to_str()) {
        Some("png") => Form::Png,
        Some("html" | "htm") => Form::Html,
        _ => {
            return Err(usage(format!(
                "--out {}: the name must end in .png or .html",
                args.out.display()
            )));
        }
    };
    let chain = job::chain(&args.chain)?;
    if chain.stages.is_empty() {
        console.warn("there is no chain: every token stays; --prune names one");
    }
    let limits = job::limits(&args.limits);
    job::requests_within(1, &args.model, &args.limits, args.max_tokens, console)?;
    let vlm = job::open(&args.model, console)?;
    let frames = Frames::new(&args.video, &vlm, args.max_tokens, limits);
    let mut clips = Vec::new();
    for path in &args.image {
        let is_video = secateur::video::is_video(path);
        let clip = if is_video { frames.load(path)? } else { picture(path, &limits)? };
        clips.extend(vlm.fitted(clip)?);
    }
    let prompt = job::text(&args.prompt)?;
    let request = clips.iter().cloned().fold(Request::new(&prompt), Request::clip);
    let pruned = request.clone().chain(chain.clone());
    // Unmeasured: the first pass through fresh weights is slower than any later one.
    vlm.session().ask(pruned.clone().max_tokens(1))?.finish()?;
    let dense = if chain.stages.is_empty() {
        None
    } else {
        Some(vlm.session().ask(request.max_tokens(args.max_tokens))?.finish()?)
    };
    let answer = vlm.session().ask(pruned.max_tokens(args.max_tokens).detail())?.finish()?;
    let scene = Scene::new(clips, &prompt, &vlm.info().name, &answer, dense.as_ref());
    let bytes = match form {
        Form::Png => png::montage(&scene)?,
        Form::Html => html::page(&scene)?.into_bytes(),
    };
    replace_one(&args.out, &bytes)
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    for stage in &answer.report.stages {
        console.note(&format!(
            "{} at {}: {} of {} tokens kept",
            stage.pruner, stage.site, stage.kept, stage.before
        ));
    }
    Ok(Outcome::Done)
}
