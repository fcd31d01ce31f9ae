//! `eval`: score and time of chains against the visual tokens they keep.
//!
//! Under `--out`: `answers.jsonl` (the log), `summary.json`, `summary.md`, `score.svg`, `score.png`.

use std::path::Path;

use anyhow::{Context, Result};

use crate::args::EvalArgs;
use crate::eval::{Job, Log, Plan, Question, Report, folder, load, run as measure};
use crate::job;
use crate::lock::Lock;
use crate::outcome::{Outcome, usage};
use crate::output::{Console, Progress};
use crate::signals::Signals;
use crate::write::replace_one;

/// Fewest tokens among the budgets that are compared by default.
const LEAST: usize = 16;
/// Bytes of tower rows and signals that are held for each picture of a pass, at most.
const PER_PICTURE: usize = 64 << 20;

/// Runs the command.
///
/// # Errors
/// Questions or chains that cannot be used, a model that cannot be opened, a folder that cannot be
/// written.
pub(crate) fn run(args: &EvalArgs, console: &Console) -> Result<Outcome> {
    let questions = questions(args)?;
    let chains = chains(args)?;
    job::fetch(&args.model, console)?;
    let signals = Signals::install()?;
    let model = &args.model;
    let batch =
        job::requests_within(args.batch_size, model, &args.limits, args.max_tokens, console)?;
    let limit = args.limits.max_memory.and_then(|limit| usize::try_from(limit / 8).ok());
    let held = batch.saturating_mul(PER_PICTURE).min(limit.unwrap_or(usize::MAX));
    let vlm = job::open_holding(model, held, console)?;
    let keep = budgets(&args.keep, vlm.info().visual_tokens);
    let plan = Plan::new(&vlm, &args.pruners, &chains, &keep, args.seeds)?;
    for note in &plan.notes {
        console.note(note);
    }
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make {}", args.out.display()))?;
    let _lock = Lock::take(&args.out.join(".lock"), &args.out)?;
    let settings = serde_json::json!({
        "max_tokens": args.max_tokens,
        "processor": job::processor_options(&args.model),
        "dtype": job::precision(args.model.dtype),
    });
    let identity = job::model_identity(&args.model)?;
    let mut log = Log::open(&args.out.join("answers.jsonl"), &identity, settings)?;
    let total = questions.len() * plan.runs.len();
    console.note(&format!(
        "{} questions, {} chains: {total} answers, in {}",
        questions.len(),
        plan.runs.len(),
        args.out.display()
    ));
    let progress = Progress::counting(console, args.progress, total, "answers");
    let job = Job {
        vlm: &vlm,
        questions: &questions,
        plan: &plan,
        limits: job::limits(&args.limits),
        max_tokens: args.max_tokens,
        batch,
    };
    if let Some(outcome) = measure(&job, &mut log, &signals, progress, console)? {
        return Ok(outcome);
    }
    let report = Report::new(&plan, &questions, &log);
    if report.questions == 0 {
        anyhow::bail!("no question was answered by every chain; --verbose shows why");
    }
    write(args, &report, &vlm.info().name)?;
    if args.json {
        console.json(&report)?;
    } else {
        console.words(&report.text())?;
    }
    Ok(if report.failed > 0 { Outcome::SomeFailed } else { Outcome::Done })
}

fn questions(args: &EvalArgs) -> Result<Vec<Question>> {
    let mut questions = match (&args.questions, &args.pictures) {
        (Some(file), _) => load(file, args.images.as_deref())?,
        (None, Some(pictures)) => folder(pictures, &args.prompt)?,
        (None, None) => return Err(usage("name a folder of pictures, or --questions FILE")),
    };
    questions.truncate(args.limit.unwrap_or(usize::MAX).max(1));
    Ok(questions)
}

fn chains(args: &EvalArgs) -> Result<Vec<String>> {
    let mut chains = args.chains.clone();
    if let Some(file) = &args.chain_file {
        let text = std::fs::read_to_string(file)
            .map_err(|e| usage(format!("cannot read {}: {e}", file.display())))?;
        let lines = text.lines().map(str::trim);
        chains.extend(lines.filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned));
    }
    Ok(chains)
}

/// The budgets that were named, falling; else powers of two from the model's own number down.
fn budgets(named: &[usize], visual_tokens: usize) -> Vec<usize> {
    let mut keep: Vec<usize> = named.iter().copied().filter(|&k| k > 0).collect();
    if keep.is_empty() {
        let mut power = 1usize << visual_tokens.max(1).ilog2();
        while keep.is_empty() || power >= LEAST {
            keep.push(power);
            power /= 2;
        }
    }
    keep.sort_unstable_by(|a, b| b.cmp(a));
    keep.dedup();
    keep
}

fn write(args: &EvalArgs, report: &Report, model: &str) -> Result<()> {
    let out: &Path = &args.out;
    let put = |name: &str, content: &[u8]| {
        let path = out.join(name);
        replace_one(&path, content).with_context(|| format!("cannot write {}", path.display()))
    };
    put("summary.json", &serde_json::to_vec_pretty(report)?)?;
    put("summary.md", report.markdown().as_bytes())?;
    report.chart(model).write(&out.join("score"), args.theme.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_default_to_powers_of_two() {
        assert_eq!(budgets(&[], 256), [256, 128, 64, 32, 16]);
        assert_eq!(budgets(&[], 576), [512, 256, 128, 64, 32, 16]);
        assert_eq!(budgets(&[], 9), [8]);
        assert_eq!(budgets(&[16, 64, 16, 0], 256), [64, 16]);
    }
}
