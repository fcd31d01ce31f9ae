//! `calibrate`: the positional trend of a model's attention at a layer.
//!
//! Writes the trend file that `debias = { trend = { file = ".." } }` names, and a chart of curve
//! and fit beside it.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use secateur::prune::Pruner;
use secateur::{Params, Request};

use crate::args::{CalibrateArgs, RowsChoice, TrendForm};
use crate::calibrate::{Curve, Form, Reads, Recorder, Trend, fit};
use crate::hub::Needs;
use crate::job;
use crate::outcome::Outcome;
use crate::output::{Console, Progress};
use crate::plot::{Axis, Chart, Look, Series};
use crate::signals::Signals;
use crate::write::replace_one;

/// Name under which the recorder runs.
const RECORDER: &str = "calibrate_recorder";
/// Prompts below which the paper's advice (a hundred or more) is repeated.
const FEW: usize = 100;
/// Share of the curve's variance below which a fit is said to explain little: less than half is
/// not trend.
const LITTLE: f64 = 0.5;

/// Runs the command.
///
/// # Errors
/// Pictures or a layer that cannot be used, a curve that cannot be fitted, a file that cannot be
/// written.
pub(crate) fn run(args: &CalibrateArgs, console: &Console) -> Result<Outcome> {
    let mut questions = job::questions(&args.source)?;
    questions.truncate(args.limit.unwrap_or(usize::MAX).max(1));
    job::fetch(&args.model, console)?;
    job::requests_within(1, &args.model, &args.limits, 0, console)?;
    let signals = Signals::install()?;
    let curve = Arc::new(Mutex::new(Curve::new(2)));
    let shared = curve.clone();
    let (layer, reads) = (args.layer, reads(args.rows));
    let build = move |_: &Params<'_>| {
        Ok(Box::new(Recorder { layer, reads, curve: shared.clone() }) as Box<dyn Pruner>)
    };
    let name = args.model.model.as_deref().unwrap_or("the built-in model");
    let vlm = job::builder(&args.model, Needs::Weights, console)?
        .pruner(RECORDER, Arc::new(build))
        .open()
        .with_context(|| format!("cannot open {name}"))?;
    let places = vlm.info().visual_tokens;
    let lost = || anyhow::anyhow!("the curve was lost");
    *curve.lock().map_err(|_| lost())? = Curve::new(places);
    let chain = secateur::parse_chain(RECORDER)?;
    vlm.resolve(&chain)?;
    let mut progress = Progress::counting(console, args.progress, questions.len(), "prompts");
    let limits = job::limits(&args.limits);
    let mut failed = 0;
    for question in &questions {
        let outcome = question.picture.load(&limits).map_err(secateur::Error::from).and_then(|c| {
            vlm.last_hidden(&Request::new(&question.text).clip(c).chain(chain.clone()))
        });
        if let Err(error) = outcome {
            console.warn(&format!("{}: {error}", question.id));
            failed += 1;
            progress.advance(0, 1);
        } else {
            progress.advance(1, 0);
        }
        if let Some(outcome) = signals.stop() {
            return Ok(outcome);
        }
    }
    progress.finish();
    let curve = curve.lock().map_err(|_| lost())?.clone();
    if curve.prompts < FEW {
        console.warn(&format!(
            "{} prompts are few; a hundred or more give a steady curve",
            curve.prompts
        ));
    }
    let points = curve.points();
    let found = fit(&points, form(args))?;
    if let Some(warning) = explains_little(found.r_squared, args.form) {
        console.warn(&warning);
    }
    let text = format!(
        "# Positional trend of attention on visual tokens, by `secateur calibrate`.\n\
         # Model {}, before layer {}, rows: {}; {} prompts.\n\
         # The fit explains {:.1} % of the variance of the measured curve.\n\
         # Use: debias = {{ trend = {{ file = \"{}\" }} }}\n\n[trend]\n{}",
        vlm.info().name,
        args.layer,
        rows_name(args.rows),
        curve.prompts,
        100.0 * found.r_squared,
        args.out.display(),
        found.trend.toml()
    );
    replace_one(&args.out, text.as_bytes())
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    chart(args, &vlm.info().name, &points, found.scale, &found.trend, curve.prompts)
        .write(&args.out, args.theme.into())?;
    console.words(&format!(
        "{}trend={}\nthe fit explains {:.1} % of the variance of the curve\n\
         in a chain file: debias = {{ trend = {{ file = \"{}\" }} }}\n",
        if matches!(found.trend, Trend::Exp(rate) if rate.abs() < 0.05) {
            "hardly any trend: debiasing will change little\n"
        } else {
            ""
        },
        found.trend.inline(),
        100.0 * found.r_squared,
        args.out.display()
    ))?;
    Ok(if failed > 0 { Outcome::SomeFailed } else { Outcome::Done })
}

/// What to say of a fit that leaves most of the curve unexplained.
fn explains_little(r_squared: f64, form: TrendForm) -> Option<String> {
    // NaN explains nothing either.
    if r_squared >= LITTLE {
        return None;
    }
    let other = match form {
        TrendForm::Exp => "; --form cubic or --form table may follow it better",
        TrendForm::Cubic => "; --form table may follow it better",
        TrendForm::Table => "; more pictures or fewer --points may help",
    };
    Some(format!(
        "the fit explains {:.0} % of the variance of the measured curve: dividing by it may make \
         a ranking worse; compare with and without it (`secateur eval`){other}",
        100.0 * r_squared.max(0.0)
    ))
}

fn reads(choice: RowsChoice) -> Reads {
    match choice {
        RowsChoice::Last => Reads::Last,
        RowsChoice::Probe => Reads::Probe,
        RowsChoice::Instruction => Reads::Instruction,
    }
}

fn rows_name(choice: RowsChoice) -> &'static str {
    match choice {
        RowsChoice::Last => "last prompt token, layer before the cut",
        RowsChoice::Probe => "last prompt token, layer after the cut",
        RowsChoice::Instruction => "instruction, layer after the cut",
    }
}

fn form(args: &CalibrateArgs) -> Form {
    match args.form {
        TrendForm::Exp => Form::Exp,
        TrendForm::Cubic => Form::Cubic,
        TrendForm::Table => Form::Table(args.points),
    }
}

fn chart(
    args: &CalibrateArgs,
    model: &str,
    points: &[(f64, f64, f64)],
    scale: f64,
    trend: &Trend,
    prompts: usize,
) -> Chart {
    // In units of the mean, so that the axis has readable numbers.
    let mean = points.iter().map(|p| p.1).sum::<f64>() / points.len().max(1) as f64;
    let measured: Vec<(f64, f64)> = points.iter().map(|p| (p.0, p.1 / mean)).collect();
    let line = |i: u32| {
        let t = f64::from(i) / 200.0;
        (t, scale * trend.at(t) / mean)
    };
    let fitted: Vec<(f64, f64)> = (0..=200).map(line).collect();
    let mut heights: Vec<f64> = measured.iter().map(|p| p.1).collect();
    heights.sort_by(f64::total_cmp);
    // Single places that draw attention on every picture would flatten the rest.
    let top = heights.get(heights.len() * 99 / 100).copied().unwrap_or(1.0);
    let shown = fitted.iter().map(|p| p.1).chain([0.0, top]);
    Chart {
        title: format!("Attention by place, before layer {}", args.layer),
        subtitle: format!("{model}; {}; mean of {prompts} prompts", rows_name(args.rows)),
        x: Axis::linear("place in the raster, i / (v - 1)", [0.0, 1.0].into_iter()),
        y: Axis::linear("attention, mean = 1", shown),
        series: vec![
            Series {
                name: "measured".into(),
                points: measured,
                bars: Vec::new(),
                look: Look::Dots,
            },
            Series { name: "fit".into(), points: fitted, bars: Vec::new(), look: Look::Coloured },
        ],
        levels: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fit_that_explains_little_is_warned_of_and_a_good_one_is_not() {
        assert_eq!(explains_little(0.93, TrendForm::Exp), None);
        assert_eq!(explains_little(LITTLE, TrendForm::Exp), None);
        let said = explains_little(0.123, TrendForm::Exp).unwrap();
        assert!(said.contains("explains 12 %") && said.contains("--form table"), "{said}");
        let said = explains_little(-0.4, TrendForm::Table).unwrap();
        assert!(said.contains("explains 0 %") && said.contains("--points"), "{said}");
        assert!(explains_little(f64::NAN, TrendForm::Cubic).is_some());
    }
}
