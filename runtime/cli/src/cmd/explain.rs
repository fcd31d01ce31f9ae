//! `explain`: how a chain runs on a model, before anything is paid for.

use std::sync::Arc;

use anyhow::Result;
use serde::Serialize;

use crate::args::ExplainArgs;
use crate::hub::Needs;
use crate::job;
use crate::outcome::Outcome;
use crate::output::Console;

#[derive(Serialize)]
struct Explained<'a> {
    schema: &'static str,
    model: &'a secateur::ModelInfo,
    chain: String,
    stages: Vec<Stage>,
    notes: Vec<String>,
    floor: Option<usize>,
}

#[derive(Serialize)]
struct Stage {
    entry: usize,
    pruner: String,
    site: String,
    tokens_in: Option<usize>,
    tokens_kept: Option<usize>,
    budget: String,
    positions: secateur::prune::PositionPolicy,
    reads: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// A chain that does not fit the model, a model that cannot be opened.
pub(crate) fn run(args: &ExplainArgs, console: &Console) -> Result<Outcome> {
    let spec = job::chain(&args.chain)?;
    // Only an encoder that is loaded says which signals it gives.
    let (info, resolved) = if args.model.encoder.file.is_some() {
        let vlm = job::open(&args.model, console)?;
        (vlm.info().clone(), vlm.resolve(&spec)?)
    } else {
        let (name, shape) = (args.model.model.as_deref(), args.shape.as_deref());
        let builder = job::builder(&args.model, Needs::Description, console)?;
        let outline = job::outline(builder, name, shape)?;
        (outline.info().clone(), Arc::new(outline.resolve(&spec)?))
    };
    if !args.json {
        console.words(&resolved.explain(&info, info.visual_tokens))?;
        return Ok(Outcome::Done);
    }
    let counts = resolved.counts(info.visual_tokens);
    let stages = resolved.stages.iter().zip(counts);
    let stages = stages
        .map(|(stage, (tokens_in, tokens_kept))| Stage {
            entry: stage.entry,
            pruner: stage.name.clone(),
            site: stage.plan.site.to_string(),
            tokens_in,
            tokens_kept,
            budget: stage.plan.budget.clone(),
            positions: stage.plan.positions,
            reads: stage.plan.reads.iter().map(ToString::to_string).collect(),
        })
        .collect();
    console.json(&Explained {
        schema: "secateur.explain/1",
        model: &info,
        chain: spec.to_string(),
        stages,
        notes: resolved.notes_of(info.visual_tokens),
        floor: resolved.floor,
    })?;
    Ok(Outcome::Done)
}
