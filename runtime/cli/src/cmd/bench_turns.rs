//! `bench --turns N`: a chat about one picture, by a session that holds what earlier turns read and by
//! one that reads everything anew in every turn.
//!
//! Invariants
//! - Both are asked the same turns, with the same earlier answers in front, and take turns within each
//!   round; the first round warms up and is not counted.
//! - The one that reads anew is shown another picture of that size in each turn: nothing about it is
//!   held anywhere.
//! - The first turn counts for neither: both read the whole prompt there.

use anyhow::Result;
use secateur::{Clip, Report, Request, Vlm};
use serde::Serialize;

use super::bench::{chain, median, noise, words};
use crate::args::BenchArgs;
use crate::outcome::usage;
use crate::output::Console;

/// What was measured: medians over later turns of all rounds, milliseconds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Turns {
    schema: &'static str,
    model: String,
    device: String,
    chain: String,
    turns: usize,
    repeats: usize,
    held: Way,
    anew: Way,
    /// Median of the turns' ratios of first tokens, held over anew.
    ratio: f64,
}

/// Later turns of one way.
#[derive(Clone, Copy, Debug, Serialize)]
struct Way {
    encode: f64,
    /// Encode, prune and prefill.
    first_token: f64,
}

impl Way {
    fn of(reports: &[Report]) -> Self {
        let median_of = |f: fn(&Report) -> f64| median(reports.iter().map(f).collect());
        Self { encode: median_of(|r| r.ms.encode), first_token: median_of(first_token) }
    }
}

fn first_token(report: &Report) -> f64 {
    report.ms.encode + report.ms.prune + report.ms.prefill
}

/// Runs the measurement.
///
/// # Errors
/// A chain that cannot be used; fewer than two turns.
pub(crate) fn measure(
    args: &BenchArgs,
    vlm: &Vlm,
    side: u32,
    turns: usize,
    console: &Console,
) -> Result<Turns> {
    if turns < 2 {
        return Err(usage("--turns must be at least 2: the first reads everything in any case"));
    }
    let chain = chain(args, vlm, args.keep.first().copied())?;
    let mut seeds = 0..;
    let mut picture = || noise(side, seeds.next().unwrap_or_default());
    let (mut held, mut anew) = (Vec::new(), Vec::new());
    for round in 0..=args.repeats {
        console.detail(&format!("round {round} of {}", args.repeats));
        let mut session = vlm.session().chain(chain.clone());
        let mut said: Vec<(String, String)> = Vec::new();
        let clip = picture()?;
        for turn in 0..turns {
            let answer = session.ask(request(args, &clip, &said))?.finish()?;
            let other = request(args, &picture()?, &said).chain(chain.clone());
            let again = vlm.session().ask(other)?.finish()?;
            if round > 0 && turn > 0 {
                held.push(answer.report);
                anew.push(again.report);
            }
            said.push((words(args.text), answer.text));
        }
    }
    let ratios = held.iter().zip(&anew).map(|(held, anew)| first_token(held) / first_token(anew));
    Ok(Turns {
        schema: "secateur.bench.turns/1",
        model: vlm.info().name.clone(),
        device: vlm.describe(),
        chain: chain.to_string(),
        turns,
        repeats: args.repeats,
        ratio: median(ratios.collect()),
        held: Way::of(&held),
        anew: Way::of(&anew),
    })
}

impl Turns {
    /// For people.
    pub(crate) fn page(&self) -> String {
        let way = |name: &str, way: &Way| {
            format!(
                "{name}  encode {:8.2} ms  first token {:8.2} ms\n",
                way.encode, way.first_token
            )
        };
        format!(
            "{} turns about one picture, chain {}, {} rounds; turns after the first\n{}{}ratio {:.3}\n",
            self.turns,
            self.chain,
            self.repeats,
            way("held", &self.held),
            way("anew", &self.anew),
            self.ratio
        )
    }
}

fn request(args: &BenchArgs, clip: &Clip, said: &[(String, String)]) -> Request {
    let request = Request::new(words(args.text)).clip(clip.clone());
    let request = said.iter().fold(request, |r, (question, answer)| r.turn(question, answer));
    request.max_tokens(args.decode.max(1)).ignore_eos()
}
