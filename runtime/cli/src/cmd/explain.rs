//! `explain`: how a chain runs on a model, before anything is paid for.

use std::sync::Arc;

use anyhow::Result;
use secateur::{Cost, ResolvedChain};
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
    notes: &'a [String],
    floor: Option<usize>,
    costs: Costs,
}

/// What the decoder costs for a prompt with that much text; `pruned` is absent where the picture
/// decides.
#[derive(Serialize)]
struct Costs {
    text_tokens: usize,
    dense: Option<Cost>,
    pruned: Option<Cost>,
}

/// A line of what a chain saves.
fn costs(dense: Option<Cost>, pruned: Option<Cost>, text: usize) -> String {
    let Some(dense) = dense else { return String::new() };
    let flops = |n: u64| match n as f64 {
        n if n >= 1e12 => format!("{:.2} TFLOP", n / 1e12),
        n if n >= 1e9 => format!("{:.2} GFLOP", n / 1e9),
        n => format!("{:.2} MFLOP", n / 1e6),
    };
    let memory = |n: u64| format!("{:.1} MiB", n as f64 / 1_048_576.0);
    let change = |before: u64, after: u64, words: &dyn Fn(u64) -> String| {
        let less = 100.0 * (1.0 - after as f64 / before.max(1) as f64);
        match less {
            _ if before == after => words(before),
            less => format!("{} -> {} ({less:.0} % less)", words(before), words(after)),
        }
    };
    match pruned {
        Some(pruned) => format!(
            "costs      prefill {}; KV cache {}; with {text} tokens of text\n",
            change(dense.prefill_flops, pruned.prefill_flops, &flops),
            change(dense.kv_bytes, pruned.kv_bytes, &memory),
        ),
        None => format!(
            "costs      dense: prefill {}, KV cache {} with {text} tokens of text; what is saved, \
             the picture decides\n",
            flops(dense.prefill_flops),
            memory(dense.kv_bytes)
        ),
    }
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
    let (name, shape) = (args.model.model.as_deref(), args.shape.as_deref());
    let builder = job::builder(&args.model, Needs::Description, console)?;
    let outline = job::outline(builder, name, shape)?;
    // Only an encoder that is loaded says which signals it gives.
    let (info, resolved) = if args.model.encoder.file.is_some() {
        let vlm = job::open(&args.model, console)?;
        (vlm.info().clone(), vlm.resolve(&spec)?)
    } else {
        (outline.info().clone(), Arc::new(outline.resolve(&spec)?))
    };
    let cost = |chain| outline.cost(chain, args.text, job::precision(args.model.dtype));
    let (dense, pruned) = (cost(&ResolvedChain::default()), cost(&resolved));
    if !args.json {
        let page = resolved.explain(&info, info.visual_tokens);
        console.words(&(page + &costs(dense, pruned, args.text)))?;
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
        notes: &resolved.notes,
        floor: resolved.floor,
        costs: Costs { text_tokens: args.text, dense, pruned },
    })?;
    Ok(Outcome::Done)
}
