//! `tune`: a pruner's parameters for a model and a budget.
//!
//! Under `--out`: `log.jsonl`, `chain.toml` (the result, for `--prune`), `search.svg`,
//! `search.png`.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use secateur::{ChainSpec, Vlm};

use crate::args::TuneArgs;
use crate::eval::{Question, difference};
use crate::job;
use crate::lock::Lock;
use crate::outcome::{Outcome, usage};
use crate::output::{Console, Progress};
use crate::plot::{Axis, Chart, Level, Look, Series};
use crate::signals::Signals;
use crate::tune::{Log, Objective, Search, Space, Strategy, Tried, split};
use crate::write::replace_one;

/// Runs the command.
///
/// # Errors
/// Pictures, a pruner or a budget that cannot be used, a model that cannot be opened, a folder
/// that cannot be written.
pub(crate) fn run(args: &TuneArgs, console: &Console) -> Result<Outcome> {
    if !(0.0..1.0).contains(&args.holdout) {
        return Err(usage("--holdout is a share from 0 to below 1"));
    }
    let questions = job::questions(&args.source)?;
    let (searched, held) = split(&questions, args.holdout, args.limit.max(1));
    job::fetch(&args.model, console)?;
    let signals = Signals::install()?;
    job::requests_within(1, &args.model, &args.limits, 0, console)?;
    let vlm = job::open(&args.model, console)?;
    let budget = budget(&args.keep, vlm.info().visual_tokens)?;
    let space = Space::new(&vlm, &args.pruner, budget)?;
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make {}", args.out.display()))?;
    let _lock = Lock::take(&args.out.join(".lock"), &args.out)?;
    let strategy = if args.random_search { Strategy::Random } else { Strategy::Guided };
    let mut search = Search::new(space.start(), args.seed, strategy);
    let mut log = Log::open(&args.out.join("log.jsonl"), what(args, &searched)?, &mut search)?;
    console.note(&format!(
        "{} at {budget:.1} tokens: {} prompts to search on, {} held out, {} of {} evaluations done",
        args.pruner,
        searched.len(),
        held.len(),
        search.tried().len().min(args.evals),
        args.evals
    ));
    let total = searched.len() + held.len() + args.evals;
    let mut progress = Progress::counting(console, args.progress, total, "steps");
    let limits = job::limits(&args.limits);
    let objective = Objective::new(&vlm, &searched, &limits, || progress.advance(1, 0))?;
    progress.advance(search.tried().len().min(args.evals), 0);
    let untuned = space.untuned(&vlm)?;
    let mut chains: Vec<ChainSpec> = Vec::new();
    for tried in search.tried() {
        chains.push(space.chain(&vlm, &tried.point)?);
    }
    while search.tried().len() < args.evals.max(1) {
        let point = search.ask();
        let chain = space.chain(&vlm, &point)?;
        let value = objective.mean(&chain)?;
        search.tell(value);
        let best = search.best().map_or(value, |b| b.value);
        let eval = search.tried().len() - 1;
        log.add(&Tried { eval, point, chain: chain.to_string(), value, best })?;
        console.detail(&format!("{eval}: {value:.5} (best {best:.5}) {chain}"));
        chains.push(chain);
        progress.advance(1, 0);
        if let Some(outcome) = signals.stop() {
            log.finish(None)?;
            return Ok(outcome);
        }
    }
    let on_search = objective.mean(&untuned)?;
    let Some(best) = search.best() else { anyhow::bail!("nothing was tried") };
    let place = search.tried().iter().position(|t| t == best).unwrap_or_default();
    let mut tuned = chains.swap_remove(place);
    let mut found = best.value;
    // A setting that the search did not beat stays.
    if on_search >= found {
        (tuned, found) = (untuned.clone(), on_search);
    }
    let outcome =
        Found { args, budget, space: &space, untuned: &untuned, tuned: &tuned, on_search, found };
    let holdout = outcome.compare(&vlm, &held, &limits, || progress.advance(1, 0))?;
    progress.finish();
    log.finish(holdout.as_ref().map(|h| &h.record))?;
    let file = args.out.join("chain.toml");
    let best_point = search.best().map(|b| b.point.clone()).unwrap_or_default();
    let text = outcome.chain_file(&vlm, &best_point, search.tried().len(), holdout.as_ref())?;
    replace_one(&file, text.as_bytes())
        .with_context(|| format!("cannot write {}", file.display()))?;
    outcome.chart(&search, &vlm.info().name).write(&args.out.join("search"), args.theme.into())?;
    let mut said = format!("{tuned}\non the search's prompts: {on_search:.5} -> {found:.5}\n");
    if let Some(holdout) = &holdout {
        let _ = writeln!(said, "held out: {}", holdout.words);
    }
    let _ = writeln!(said, "use it with --prune {}", file.display());
    console.words(&said)?;
    Ok(Outcome::Done)
}

/// What the log's values depend on.
fn what(args: &TuneArgs, searched: &[&Question]) -> Result<serde_json::Value> {
    let mut hasher = blake3::Hasher::new();
    for question in searched {
        hasher.update(format!("{}\0{}\0", question.picture.name(), question.text).as_bytes());
    }
    Ok(serde_json::json!({
        "model": job::model_identity(&args.model)?,
        "pruner": args.pruner,
        "keep": args.keep,
        "seed": args.seed,
        "random": args.random_search,
        "prompts": &hasher.finalize().to_hex()[..16],
        "processor": job::processor_options(&args.model),
        "dtype": job::precision(args.model.dtype),
    }))
}

/// `--keep` as tokens: a whole number of them, or a share of the model's.
fn budget(text: &str, visual_tokens: usize) -> Result<f64> {
    let expected =
        || usage(format!("--keep {text}: expected a number of tokens or a share below 1"));
    let number: f64 = text.trim().parse().map_err(|_| expected())?;
    let tokens = if number > 0.0 && number < 1.0 { number * visual_tokens as f64 } else { number };
    if tokens.is_finite() && tokens >= 1.0 && tokens <= visual_tokens as f64 {
        Ok(tokens)
    } else {
        Err(expected())
    }
}

/// A result.
struct Found<'a> {
    args: &'a TuneArgs,
    /// Visual tokens, mean over decoder layers.
    budget: f64,
    space: &'a Space,
    untuned: &'a ChainSpec,
    tuned: &'a ChainSpec,
    /// Of the untuned setting.
    on_search: f64,
    found: f64,
}

/// The comparison on held-out pictures.
struct Holdout {
    record: serde_json::Value,
    words: String,
}

impl Found<'_> {
    fn compare(
        &self,
        vlm: &Vlm,
        held: &[&Question],
        limits: &secateur::image::Limits,
        each: impl FnMut(),
    ) -> Result<Option<Holdout>> {
        if held.is_empty() {
            return Ok(None);
        }
        let objective = Objective::new(vlm, held, limits, each)?;
        let before = objective.cosines(self.untuned)?;
        let after = objective.cosines(self.tuned)?;
        let differences: Vec<(usize, f64)> =
            before.iter().zip(&after).map(|(b, a)| (b.0, a.1 - b.1)).collect();
        let mean = |v: &[(usize, f64)]| v.iter().map(|c| c.1).sum::<f64>() / objective.len() as f64;
        let (untuned, tuned) = (mean(&before), mean(&after));
        let gain = difference(&differences).map(|e| [e.low, e.high]).unwrap_or_default();
        let record = serde_json::json!({"holdout": {
            "prompts": objective.len(), "untuned": untuned, "tuned": tuned,
            "gain": tuned - untuned, "gain_95": gain,
            "untuned_chain": self.untuned.to_string(), "tuned_chain": self.tuned.to_string(),
        }});
        let words = format!(
            "{untuned:.5} untuned, {tuned:.5} tuned, gain {:+.5} [{:+.5}, {:+.5}] on {} prompts",
            tuned - untuned,
            gain[0],
            gain[1],
            objective.len()
        );
        Ok(Some(Holdout { record, words }))
    }

    fn chain_file(
        &self,
        vlm: &Vlm,
        point: &[f64],
        tried: usize,
        holdout: Option<&Holdout>,
    ) -> Result<String> {
        let mut text = format!(
            "# Made by `secateur tune`: {} at {:.1} visual tokens a decoder layer (mean).\n\
             # Model {}; {tried} evaluations, seed {}.\n\
             # Mean cosine of the last prompt token's final state with the unpruned run:\n\
             # {:.5} untuned, {:.5} tuned on the search's prompts.\n",
            self.args.pruner,
            self.budget,
            vlm.info().name,
            self.args.seed,
            self.on_search,
            self.found
        );
        if let Some(holdout) = holdout {
            let _ = writeln!(text, "# Held-out pictures: {}.", holdout.words);
        }
        let values: Vec<String> =
            self.space.values(point).iter().map(|(n, v)| format!("{n} {v:.4}")).collect();
        let _ = writeln!(text, "# Best point: {}.", values.join(", "));
        for stage in &self.tuned.stages {
            let _ = write!(text, "\n[[stage]]\ntype = \"{}\"\n", stage.pruner);
            // Values on one line each, tables inline: sub-tables would need the entry's name.
            for (key, value) in &stage.params {
                let _ = writeln!(text, "{key} = {value}");
            }
        }
        // What is written must be what was found.
        let read = ChainSpec::from_toml("chain.toml", &text)?;
        anyhow::ensure!(read == *self.tuned, "the chain file does not read back: {text}");
        Ok(text)
    }

    fn chart(&self, search: &Search, model: &str) -> Chart {
        let values = || search.tried().iter().map(|t| t.value);
        let dots = values().enumerate().map(|(i, v)| (i as f64, v)).collect();
        let mut best = f64::NEG_INFINITY;
        let mut line = Vec::new();
        for (i, value) in values().enumerate() {
            // Two points where it rises: a step.
            if i > 0 && value > best {
                line.push((i as f64, best));
            }
            best = best.max(value);
            line.push((i as f64, best));
        }
        let mut sorted: Vec<f64> = values().filter(|v| v.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        // The worst proposals would flatten everything else.
        let low = sorted.get(sorted.len() / 10).copied().unwrap_or(0.0);
        let shown = [low.min(self.on_search), self.found, self.on_search];
        Chart {
            title: format!("Tuning {} at {:.1} visual tokens", self.args.pruner, self.budget),
            subtitle: format!("{model}; dots: single evaluations (the worst tenth lies below)"),
            x: Axis::linear("evaluation", [0.0, search.tried().len() as f64].into_iter()),
            y: Axis::linear("mean cosine with the unpruned final state", shown.into_iter()),
            series: vec![
                Series { name: "tried".into(), points: dots, bars: Vec::new(), look: Look::Dots },
                Series {
                    name: "best so far".into(),
                    points: line,
                    bars: Vec::new(),
                    look: Look::Coloured,
                },
            ],
            levels: vec![Level { name: "untuned".into(), value: self.on_search, band: None }],
        }
    }
}
