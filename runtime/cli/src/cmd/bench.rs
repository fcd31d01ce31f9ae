//! `bench`: what pruning saves, measured against the dense run and against the ideal.
//!
//! The *ideal* of a pruned run is the same model simply given as many tokens in each layer as the
//! pruned run has there, with nothing scored: text prompts of those lengths are run, and their
//! prefill and decode times are weighted by the share of layers that see each length. The tower's
//! time is the dense run's.
//!
//! The *ceiling* is Amdahl's: `1 / (1 - f (1 - 1/r))`, with `f` the dense run's share of time
//! that shrinks with the prompt (its prefill) and `r` how much shorter the prompt gets.
//!
//! Invariants
//! - All runs take turns within each round; the first round warms up and is not counted.
//! - Figures are medians; the spread is the largest deviation from them.

use anyhow::{Context, Result, anyhow};
use secateur::{ChainSpec, Clip, Report, Request, Vlm};
use serde::Serialize;

use super::{bench_captions, bench_turns};
use crate::args::BenchArgs;
use crate::hub::Needs;
use crate::job;
use crate::outcome::{Outcome, usage};
use crate::output::{Align, Console, table};

/// Median times of one run, milliseconds.
#[derive(Clone, Debug, Default, Serialize)]
struct Times {
    encode: f64,
    prune: f64,
    prefill: f64,
    decode: f64,
    /// Encode, prune and prefill.
    first_token: f64,
    total: f64,
    /// Largest relative deviation of `first_token` from its median; one round has none.
    spread: Option<f64>,
}

/// A run beside the dense one and its ideal.
#[derive(Clone, Debug, Serialize)]
struct Row {
    name: String,
    chain: String,
    visual_in: usize,
    visual_kept: usize,
    prompt_tokens: usize,
    ms: Times,
    kv_bytes: usize,
    /// The same tokens with nothing scored; the dense run is its own.
    ideal_ms: Times,
    /// Dense first token over this one's.
    first_token_ratio: f64,
    /// Dense total over this one's.
    total_ratio: f64,
    /// Ideal prefill over prefill and prune: 1 is perfect.
    of_ideal: f64,
    /// Amdahl's ceiling of `first_token_ratio`.
    first_token_ceiling: f64,
    /// Amdahl's ceiling of `total_ratio`.
    total_ceiling: f64,
}

#[derive(Serialize)]
struct Whole<'a> {
    schema: &'static str,
    model: &'a str,
    device: String,
    visual: usize,
    text: usize,
    decode: usize,
    repeats: usize,
    peak_bytes: u64,
    runs: &'a [Row],
}

/// Something that is timed.
struct Run {
    request: Request,
    reports: Vec<Report>,
}

impl Run {
    fn new(request: Request) -> Self {
        Self { request, reports: Vec::new() }
    }

    fn once(&mut self, vlm: &Vlm) -> Result<&Report> {
        let answer = vlm.session().ask(self.request.clone())?.finish()?;
        self.reports.push(answer.report);
        self.reports.last().ok_or_else(|| anyhow!("a run gave no report"))
    }

    fn times(&self) -> Times {
        let of = |f: &dyn Fn(&Report) -> f64| median(self.reports.iter().map(f).collect());
        let first = |r: &Report| r.ms.encode + r.ms.prune + r.ms.prefill;
        let first_token = of(&first);
        let deviation = |r: &Report| (first(r) - first_token).abs() / first_token.max(1e-9);
        let spread = (self.reports.len() > 1)
            .then(|| self.reports.iter().map(deviation).fold(0.0, f64::max));
        Times {
            encode: of(&|r| r.ms.encode),
            prune: of(&|r| r.ms.prune),
            prefill: of(&|r| r.ms.prefill),
            decode: of(&|r| r.ms.decode),
            first_token,
            total: of(&|r| first(r) + r.ms.decode),
            spread,
        }
    }
}

/// The middle of some values; 0 of none.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// Runs the command.
///
/// # Errors
/// A model, shape or chain that cannot be used.
pub(crate) fn run(args: &BenchArgs, console: &Console) -> Result<Outcome> {
    if args.repeats == 0 || args.pictures == 0 {
        return Err(usage("--repeats and --pictures must be at least 1"));
    }
    let vlm = open(args, console)?;
    console.note(&format!("{} on {}", vlm.info().name, vlm.describe()));
    let side = side_of(&vlm, args.visual)?;
    if let Some(captions) = args.captions {
        let measured = bench_captions::measure(args, &vlm, side, captions, console)?;
        return say(args, console, &measured, || measured.page());
    }
    if let Some(turns) = args.turns {
        let measured = bench_turns::measure(args, &vlm, side, turns, console)?;
        return say(args, console, &measured, || measured.page());
    }
    let clips = (0..args.pictures as u64).map(|seed| noise(side, seed)).collect::<Result<_>>()?;
    let measured = measure(args, &vlm, clips, console)?;
    let rows = rows(&vlm, &measured);
    let peak_bytes = measured.pruned.iter().chain([&measured.dense]).flat_map(|r| &r.1.reports);
    let peak_bytes = peak_bytes.map(|r| r.peak_bytes).max().unwrap_or(0);
    let whole = Whole {
        schema: "secateur.bench/1",
        model: &vlm.info().name,
        device: vlm.describe(),
        visual: rows[0].visual_in,
        text: args.text,
        decode: args.decode,
        repeats: args.repeats,
        peak_bytes,
        runs: &rows,
    };
    say(args, console, &whole, || page(&rows, peak_bytes, args))
}

/// Prints what was measured, for programs or for people.
fn say(
    args: &BenchArgs,
    console: &Console,
    measured: &impl Serialize,
    page: impl FnOnce() -> String,
) -> Result<Outcome> {
    if args.json {
        console.json(measured)?;
    } else {
        console.result(&page())?;
    }
    Ok(Outcome::Done)
}

fn open(args: &BenchArgs, console: &Console) -> Result<Vlm> {
    let holds = args.turns.is_some();
    let Some(shape) = &args.shape else {
        let open = if holds { job::open } else { job::open_holding_nothing };
        return open(&args.model, console);
    };
    let mut builder = job::builder(&args.model, Needs::Description, console)?;
    if !holds {
        // Every round encodes.
        builder = builder.reuse(0);
    }
    builder.open_random(shape, 0).with_context(|| format!("shape {shape}"))
}

/// Side of a square picture that becomes `visual` tokens, pixels.
fn side_of(vlm: &Vlm, visual: Option<usize>) -> Result<u32> {
    let mut side = 336u32;
    let Some(wanted) = visual else { return Ok(side) };
    let mut found = Vec::new();
    for _ in 0..6 {
        let request = Request::new("x").clip(noise(side, 0)?).max_tokens(0);
        let visual = vlm.session().ask(request)?.finish()?.report.visual_in;
        if visual == wanted {
            return Ok(side);
        }
        if found.contains(&visual) {
            break;
        }
        found.push(visual);
        let scaled = f64::from(side) * (wanted as f64 / visual.max(1) as f64).sqrt();
        side = (scaled.round() as u32).clamp(14, 8192);
    }
    Err(usage(format!(
        "--visual {wanted}: square pictures become {found:?} visual tokens with this model"
    )))
}

/// A picture without structure, so that no pruner sees ties.
pub(super) fn noise(side: u32, seed: u64) -> Result<Clip> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64 ^ seed;
    let bytes: Vec<u8> = (0..side as usize * side as usize * 3)
        .map(|_| {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect();
    Ok(Clip::picture("noise", side, side, bytes)?)
}

/// A question of about that many tokens.
pub(super) fn words(tokens: usize) -> String {
    // A letter a token in the tokenizers of shapes; near enough in trained ones.
    "e".repeat(tokens.max(1))
}

/// The chain of the flags with `keep` filled in.
pub(super) fn chain(args: &BenchArgs, vlm: &Vlm, keep: Option<usize>) -> Result<ChainSpec> {
    let keep = keep.map_or_else(String::new, |keep| keep.to_string());
    let text = args.prune.replace("{keep}", &keep);
    let chain = secateur::parse_chain(&text).map_err(|e| usage(e.to_string()))?;
    vlm.resolve(&chain)?;
    Ok(chain)
}

struct Measured {
    dense: (ChainSpec, Run),
    pruned: Vec<(ChainSpec, Run)>,
    /// Text prompts by length.
    ideal: Vec<(usize, Run)>,
}

fn measure(args: &BenchArgs, vlm: &Vlm, clips: Vec<Clip>, console: &Console) -> Result<Measured> {
    let asked = clips.into_iter().fold(Request::new(words(args.text)), Request::clip);
    let request = |chain: &ChainSpec| {
        asked.clone().chain(chain.clone()).max_tokens(args.decode.max(1)).ignore_eos()
    };
    let mut pruned = Vec::new();
    for keep in &args.keep {
        let chain = chain(args, vlm, Some(*keep))?;
        pruned.push((chain.clone(), Run::new(request(&chain))));
        if !args.prune.contains("{keep}") {
            break;
        }
    }
    let none = ChainSpec::default();
    let mut dense = (none.clone(), Run::new(request(&none)));
    // The first round says which lengths the ideal runs need; nothing of it is counted.
    dense.1.once(vlm)?;
    let mut lengths = Vec::new();
    for (_, run) in &mut pruned {
        let report = run.once(vlm)?;
        lengths.extend(segments(report, vlm.info().decoder.layers).iter().map(|s| s.1));
    }
    lengths.sort_unstable();
    lengths.dedup();
    let mut ideal = Vec::new();
    for length in lengths {
        let mut run = Run::new(text_only(vlm, length, args.decode)?);
        run.once(vlm)?;
        ideal.push((length, run));
    }
    let mut measured = Measured { dense, pruned, ideal };
    for run in measured.runs() {
        run.reports.clear();
    }
    for round in 0..args.repeats {
        console.detail(&format!("round {} of {}", round + 1, args.repeats));
        for run in measured.runs() {
            run.once(vlm)?;
        }
    }
    Ok(measured)
}

impl Measured {
    fn runs(&mut self) -> impl Iterator<Item = &mut Run> {
        let ideal = self.ideal.iter_mut().map(|(_, run)| run);
        let pruned = self.pruned.iter_mut().map(|(_, run)| run);
        std::iter::once(&mut self.dense.1).chain(pruned).chain(ideal)
    }

    /// Times of a text prompt of that length.
    fn text(&self, length: usize) -> Times {
        let run = self.ideal.iter().find(|(l, _)| *l == length);
        run.map(|(_, run)| run.times()).unwrap_or_default()
    }
}

/// A prompt without pictures of that many tokens: what stands around it is found by trying.
fn text_only(vlm: &Vlm, length: usize, decode: usize) -> Result<Request> {
    let request = |letters: usize| {
        Request::new("e".repeat(letters)).raw_prompt().max_tokens(decode.max(1)).ignore_eos()
    };
    let mut letters = length.max(1);
    for _ in 0..4 {
        let tried = request(letters).max_tokens(0);
        let tokens = vlm.session().ask(tried)?.finish()?.report.prompt_tokens;
        if tokens == length {
            break;
        }
        // Trained tokenizers join letters: several a token.
        let per_token = letters as f64 / tokens.max(1) as f64;
        letters = (length as f64 * per_token).round().max(1.0) as usize
            - usize::from(tokens == length + 1 && per_token < 1.01);
    }
    Ok(request(letters))
}

/// Number of layers and prompt tokens in them, from the first layer to the last.
fn segments(report: &Report, layers: usize) -> Vec<(usize, usize)> {
    let mut cuts = vec![(0, report.entered_tokens)];
    let mut tokens = report.entered_tokens;
    for stage in &report.stages {
        if let Some(layer) = stage.site.layer() {
            tokens = (tokens + stage.kept).saturating_sub(stage.before);
            cuts.push((layer, tokens));
        }
    }
    let mut segments = Vec::new();
    for (i, &(start, tokens)) in cuts.iter().enumerate() {
        let end = cuts.get(i + 1).map_or(layers, |next| next.0);
        segments.push((end.saturating_sub(start), tokens));
    }
    segments
}

fn ceiling(share: f64, ratio: f64) -> f64 {
    1.0 / (1.0 - share * (1.0 - 1.0 / ratio.max(1e-9)))
}

fn rows(vlm: &Vlm, measured: &Measured) -> Vec<Row> {
    let layers = vlm.info().decoder.layers;
    let dense_ms = measured.dense.1.times();
    let named = std::iter::once(&measured.dense).chain(&measured.pruned);
    let mut rows = Vec::new();
    for (i, (chain, run)) in named.enumerate() {
        let Some(report) = run.reports.last() else { continue };
        let ms = run.times();
        let mut ideal = Times { encode: dense_ms.encode, ..Times::default() };
        let segments = segments(report, layers);
        for (count, tokens) in &segments {
            let share = *count as f64 / layers.max(1) as f64;
            let at = measured.text(*tokens);
            ideal.prefill += share * at.prefill;
            ideal.decode += share * at.decode;
        }
        if i == 0 {
            ideal = ms.clone();
        }
        ideal.first_token = ideal.encode + ideal.prune + ideal.prefill;
        ideal.total = ideal.first_token + ideal.decode;
        let mean: f64 =
            segments.iter().map(|(c, t)| (*c * *t) as f64).sum::<f64>() / layers.max(1) as f64;
        let ratio = report.prompt_tokens as f64 / mean.max(1.0);
        rows.push(Row {
            name: if i == 0 { "dense".into() } else { chain.to_string() },
            chain: chain.to_string(),
            visual_in: report.visual_in,
            visual_kept: report.visual_kept,
            prompt_tokens: report.prompt_tokens,
            kv_bytes: report.kv_bytes,
            first_token_ratio: dense_ms.first_token / ms.first_token.max(1e-9),
            total_ratio: dense_ms.total / ms.total.max(1e-9),
            of_ideal: ideal.prefill / (ms.prefill + ms.prune).max(1e-9),
            first_token_ceiling: ceiling(dense_ms.prefill / dense_ms.first_token.max(1e-9), ratio),
            total_ceiling: ceiling(dense_ms.prefill / dense_ms.total.max(1e-9), ratio),
            ideal_ms: ideal,
            ms,
        });
    }
    rows
}

fn page(rows: &[Row], peak_bytes: u64, args: &BenchArgs) -> String {
    let mib = |bytes: f64| format!("{:.1}", bytes / 1048576.0);
    let head = [
        "run",
        "visual",
        "encode",
        "prune",
        "prefill",
        "decode",
        "first token",
        "x",
        "ceiling",
        "total",
        "x",
        "ceiling",
        "of ideal",
        "KV MiB",
        "spread",
    ];
    let mut cells = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        let ms = |x: f64| format!("{x:.1}");
        let ratio = |x: f64| format!("{x:.2}");
        cells.push(vec![
            row.name.clone(),
            row.visual_kept.to_string(),
            ms(row.ms.encode),
            format!("{:.2}", row.ms.prune),
            ms(row.ms.prefill),
            ms(row.ms.decode),
            ms(row.ms.first_token),
            ratio(row.first_token_ratio),
            ratio(row.first_token_ceiling),
            ms(row.ms.total),
            ratio(row.total_ratio),
            ratio(row.total_ceiling),
            if row.name == "dense" { "-".into() } else { ratio(row.of_ideal) },
            mib(row.kv_bytes as f64),
            row.ms.spread.map_or_else(|| "-".into(), |s| format!("{:.0} %", s * 100.0)),
        ]);
    }
    let mut align = vec![Align::Left];
    align.extend([Align::Right; 14]);
    format!(
        "{}\nms, {}; prompt {} tokens, {} generated; at most {} MiB resident\n\
         x: dense over this run; ceiling: what it could be by Amdahl's law; of ideal: prefill of \
         the same tokens with nothing scored, over prefill and prune\n",
        table(&cells, &align),
        match args.repeats {
            1 => "one round, so no spread".to_owned(),
            n => format!("medians of {n} rounds"),
        },
        rows.first().map_or(0, |r| r.prompt_tokens),
        args.decode,
        mib(peak_bytes as f64),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use secateur::StageReport;

    fn stage(site: &str, before: usize, kept: usize) -> StageReport {
        StageReport {
            entry: 0,
            drop: None,
            pruner: "p".into(),
            site: site.parse().unwrap(),
            before,
            kept,
            ms: 0.0,
            indices: Vec::new(),
            recycled: Vec::new(),
            scores: None,
            tokens: secateur::TokenMap::default(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn layers_are_shared_out_by_what_they_see() {
        let report = Report {
            entered_tokens: 110,
            stages: vec![
                stage("encoder", 576, 50),
                stage("decoder(2)", 50, 20),
                stage("decoder(8)", 20, 5),
            ],
            ..Report::default()
        };
        assert_eq!(segments(&report, 32), [(2, 110), (6, 80), (24, 65)]);
        assert_eq!(segments(&Report { entered_tokens: 7, ..Report::default() }, 4), [(4, 7)]);
    }

    #[test]
    fn the_ceiling_is_amdahls() {
        assert!((ceiling(0.5, 2.0) - 4.0 / 3.0).abs() < 1e-12);
        assert!((ceiling(1.0, 9.0) - 9.0).abs() < 1e-12);
        assert!((ceiling(0.0, 9.0) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn one_round_has_no_spread() {
        let mut run = Run::new(Request::new("x"));
        run.reports.push(Report::default());
        assert_eq!(run.times().spread, None);
        run.reports.push(Report::default());
        assert_eq!(run.times().spread, Some(0.0));
    }

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
