//! `bench --captions N`: many captions of seeded lengths, by the engine and by batches that wait for
//! their longest.
//!
//! Invariants
//! - Both answer the same requests, and take turns within each round; the first round warms up and is
//!   not counted. Answers that differ end the measurement.

use std::time::Instant;

use anyhow::{Result, anyhow};
use secateur::{Clip, Request, Vlm};
use secateur_core::random::SplitMix64;
use serde::Serialize;

use super::bench::{chain, median, noise, words};
use crate::args::BenchArgs;
use crate::output::Console;

/// Shortest and longest caption, tokens.
const LENGTHS: [usize; 2] = [8, 512];

/// What was measured; times are medians over the rounds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Captions {
    schema: &'static str,
    model: String,
    device: String,
    chain: String,
    captions: usize,
    batch: usize,
    repeats: usize,
    tokens: usize,
    /// Tokens over batch: with fewer passes some caption has no token.
    ideal_passes: f64,
    engine: Way,
    waiting: Way,
    /// Median of the rounds' ratios, waiting over engine.
    ratio: f64,
}

/// One way to caption.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Way {
    passes: usize,
    seconds: f64,
    captions_per_minute: f64,
}

/// Runs the measurement.
///
/// # Errors
/// A chain that cannot be used; answers that differ.
pub(crate) fn measure(
    args: &BenchArgs,
    vlm: &Vlm,
    side: u32,
    captions: usize,
    console: &Console,
) -> Result<Captions> {
    let chain = chain(args, vlm, args.keep.first().copied())?;
    let requests = requests(args, side, captions)?;
    let requests: Vec<Request> = requests.into_iter().map(|r| r.chain(chain.clone())).collect();
    let mut seconds = [Vec::new(), Vec::new()];
    let (mut passes, mut tokens) = ([0; 2], 0);
    for round in 0..=args.repeats {
        console.detail(&format!("round {round} of {}", args.repeats));
        let started = Instant::now();
        let engine = by_engine(vlm, &requests, args.in_flight)?;
        let by_engine = started.elapsed().as_secs_f64();
        let started = Instant::now();
        let waiting = by_batches(vlm, &requests, args.in_flight)?;
        let by_batches = started.elapsed().as_secs_f64();
        if engine.ids != waiting.ids {
            return Err(anyhow!("a caption depends on what ran beside it"));
        }
        passes = [engine.passes, waiting.passes];
        tokens = engine.ids.iter().map(Vec::len).sum();
        if round > 0 {
            seconds[0].push(by_engine);
            seconds[1].push(by_batches);
        }
    }
    let ratios = seconds[0].iter().zip(&seconds[1]).map(|(engine, waiting)| waiting / engine);
    let ratio = median(ratios.collect());
    let [engine, waiting] = [0, 1].map(|i| {
        let seconds = median(seconds[i].clone());
        let captions_per_minute = captions as f64 * 60.0 / seconds.max(1e-9);
        Way { passes: passes[i], seconds, captions_per_minute }
    });
    Ok(Captions {
        schema: "secateur.bench.captions/1",
        model: vlm.info().name.clone(),
        device: vlm.describe(),
        chain: chain.to_string(),
        captions,
        batch: args.in_flight,
        repeats: args.repeats,
        tokens,
        ideal_passes: tokens as f64 / args.in_flight as f64,
        engine,
        waiting,
        ratio,
    })
}

impl Captions {
    /// For people.
    pub(crate) fn page(&self) -> String {
        let way = |name: &str, way: &Way| {
            format!(
                "{name:8}  {:6} passes ({:.3} of ideal)  {:8.2} s  {:8.1} captions a minute\n",
                way.passes,
                way.passes as f64 / self.ideal_passes.max(1e-9),
                way.seconds,
                way.captions_per_minute
            )
        };
        format!(
            "{} captions, {} tokens, batch {}, chain {}, {} rounds\n{}{}ratio {:.3}\n",
            self.captions,
            self.tokens,
            self.batch,
            self.chain,
            self.repeats,
            way("engine", &self.engine),
            way("waiting", &self.waiting),
            self.ratio
        )
    }
}

fn requests(args: &BenchArgs, side: u32, captions: usize) -> Result<Vec<Request>> {
    // As many pictures as a batch has are enough: what they show does not matter.
    let clips: Vec<Clip> =
        (0..args.in_flight as u64).map(|seed| noise(side, seed)).collect::<Result<_>>()?;
    let mut lengths = SplitMix64::new(1);
    let [least, most] = LENGTHS;
    let request = move |clip: &Clip| {
        let tokens = least + lengths.below(most - least + 1);
        let request = Request::new(words(args.text)).clip(clip.clone());
        request.max_tokens(tokens).ignore_eos()
    };
    Ok(clips.iter().cycle().take(captions).map(request).collect())
}

struct Run {
    ids: Vec<Vec<u32>>,
    passes: usize,
}

fn by_engine(vlm: &Vlm, requests: &[Request], width: usize) -> Result<Run> {
    let mut engine = vlm.engine(width);
    let tickets: Vec<_> = requests.iter().map(|r| engine.submit(r.clone())).collect();
    let mut ids = vec![Vec::new(); requests.len()];
    while !engine.is_idle() {
        for (ticket, answer) in engine.step() {
            if let Ok(place) = tickets.binary_search(&ticket) {
                ids[place] = answer?.ids;
            }
        }
    }
    Ok(Run { ids, passes: engine.progress().passes })
}

fn by_batches(vlm: &Vlm, requests: &[Request], width: usize) -> Result<Run> {
    let (mut ids, mut passes) = (Vec::new(), 0);
    for batch in requests.chunks(width) {
        let mut last = 0;
        for answer in vlm.batch_with(batch.to_vec(), |p| last = p.passes) {
            ids.push(answer?.ids);
        }
        passes += last;
    }
    Ok(Run { ids, passes })
}
