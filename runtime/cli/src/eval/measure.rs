//! Asks every question of every run, and logs each answer as one line.
//!
//! Invariants
//! - One line an answer, appended when its batch is done; a torn last line is cut off when the log
//!   is opened again.
//! - The log begins with the model and the settings that made it; another model is refused.
//! - Runs take turns batch by batch, so that a machine that slows down slows all of them, and the
//!   rows of a batch's pictures need to be held for that long only.
//! - A picture is encoded once, with the signals of all chains; each run is charged what that took.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use secateur::image::Limits;
use secateur::signal::Signal;
use secateur::{Answer, Clip, Encoding, Request, Vlm};
use serde::{Deserialize, Serialize};

use super::questions::Question;
use super::runs::{Plan, Run, mean_tokens};
use crate::lines::LineFile;
use crate::outcome::Outcome;
use crate::output::{Console, Progress};
use crate::signals::Signals;

/// Name and version of the log's schema.
const SCHEMA: &str = "secateur.eval/1";
/// What pruners with a history are shown first.
const WARM_UP: &str = "Describe the image in one paragraph.";

/// Wall-clock shares of an answer, milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Milliseconds {
    /// Resizing, vision tower, projector.
    pub(crate) encode: f64,
    /// Scoring and cutting.
    pub(crate) prune: f64,
    /// The prompt in the decoder.
    pub(crate) prefill: f64,
    /// All tokens after the first.
    pub(crate) decode: f64,
}

impl Milliseconds {
    /// All of it.
    pub(crate) fn total(&self) -> f64 {
        self.encode + self.prune + self.prefill + self.decode
    }
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The chain as text.
    pub(crate) chain: String,
    /// Id of the question.
    pub(crate) id: String,
    /// Hash of what was asked, so that a changed question is asked again.
    pub(crate) asked: String,
    /// Its task.
    pub(crate) task: String,
    /// What was answered; empty if it failed.
    pub(crate) answer: String,
    /// In [0, 1]; absent where the truth is not known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) score: Option<f64>,
    /// Visual tokens before any cut.
    pub(crate) visual_in: usize,
    /// Mean of the visual tokens over decoder layers.
    pub(crate) visual_mean: f64,
    /// Generated tokens.
    pub(crate) output_tokens: usize,
    /// Where time went.
    pub(crate) ms: Milliseconds,
    /// Why there is no answer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) error: Option<String>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Head {
    schema: String,
    model: String,
    settings: serde_json::Value,
}

/// Answers so far, by chain and question.
#[derive(Debug)]
pub(crate) struct Log {
    file: LineFile,
    records: BTreeMap<(String, String), Record>,
}

impl Log {
    /// Opens or begins the log at `path`. `model` and `settings` are what answers depend on.
    ///
    /// # Errors
    /// The file system's; a log of another model or other settings.
    pub(crate) fn open(path: &Path, model: &str, settings: serde_json::Value) -> Result<Self> {
        let expected = Head { schema: SCHEMA.into(), model: model.into(), settings };
        let mut records = BTreeMap::new();
        let mut is_new = true;
        let file = LineFile::open(path, |line, _| {
            let line = serde_json::Value::Object(line);
            if std::mem::take(&mut is_new) {
                let found: Head = serde_json::from_value(line)?;
                if found != expected {
                    bail!(
                        "this log was made with another model or other settings ({}); name \
                         another folder with --out, or remove it",
                        serde_json::to_string(&found)?
                    );
                }
                return Ok(());
            }
            let record: Record = serde_json::from_value(line)?;
            records.insert((record.chain.clone(), record.id.clone()), record);
            Ok(())
        })?;
        let mut log = Self { file, records };
        if is_new {
            log.file.append(&expected)?;
        }
        Ok(log)
    }

    /// The answer of a run to a question.
    pub(crate) fn get(&self, run: &Run, question: &Question) -> Option<&Record> {
        let record = self.records.get(&(run.key(), question.id.clone()))?;
        (record.asked == asked(question)).then_some(record)
    }

    fn add(&mut self, record: Record) -> Result<()> {
        self.file.append(&record)?;
        self.records.insert((record.chain.clone(), record.id.clone()), record);
        Ok(())
    }
}

/// What is asked, as a short hash: question, picture, truth.
fn asked(question: &Question) -> String {
    let text = format!("{}\0{}\0{:?}", question.text, question.picture.name(), question.truth);
    blake3::hash(text.as_bytes()).to_hex()[..16].to_owned()
}

/// What is to be measured.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// The model.
    pub(crate) vlm: &'a Vlm,
    /// What is asked.
    pub(crate) questions: &'a [Question],
    /// Of which chains.
    pub(crate) plan: &'a Plan,
    /// Limits on pictures.
    pub(crate) limits: Limits,
    /// Most tokens of an answer.
    pub(crate) max_tokens: usize,
    /// Questions in one pass.
    pub(crate) batch: usize,
}

/// Asks what the log does not hold yet. Ends early with an outcome if a signal came.
///
/// # Errors
/// A log that cannot be written.
pub(crate) fn run(
    job: &Job<'_>,
    log: &mut Log,
    signals: &Signals,
    mut progress: Progress<'_>,
    console: &Console,
) -> Result<Option<Outcome>> {
    let mut pictures = Pictures { limits: job.limits, last: None, encoded: 0, reused: 0 };
    let mut reads = BTreeSet::new();
    for run in &job.plan.runs {
        reads.extend(job.vlm.resolve(&run.chain)?.signals());
    }
    for questions in job.questions.chunks(job.batch.max(1)) {
        for run in &job.plan.runs {
            let done = |q: &&Question| log.get(run, q).is_some_and(|r| r.error.is_none());
            let open: Vec<&Question> = questions.iter().filter(|q| !done(q)).collect();
            let skipped = questions.len() - open.len();
            let records = answer(job, run, &open, &reads, &mut pictures);
            let failed = records.iter().filter(|r| r.error.is_some()).count();
            for record in records {
                if let Some(error) = &record.error {
                    console.detail(&format!("{} `{}`: {error}", record.id, record.chain));
                }
                log.add(record)?;
            }
            progress.advance(skipped + open.len() - failed, failed);
            if let Some(outcome) = signals.stop() {
                log.file.sync()?;
                progress.finish();
                return Ok(Some(outcome));
            }
        }
        log.file.sync_if_due()?;
    }
    log.file.sync()?;
    progress.finish();
    let Pictures { encoded, reused, .. } = pictures;
    if encoded + reused > 0 {
        console.note(&format!("{encoded} pictures encoded, {reused} answers from the same rows"));
    }
    Ok(None)
}

/// The last picture, decoded: questions about one picture stand together. How many were encoded.
struct Pictures {
    limits: Limits,
    last: Option<(PathBuf, Clip)>,
    /// Answers whose picture went through the vision tower, and those that found its rows.
    encoded: usize,
    reused: usize,
}

impl Pictures {
    fn get(&mut self, question: &Question) -> Result<Clip, secateur::Error> {
        let name = PathBuf::from(question.picture.name());
        if let Some((last, clip)) = &self.last
            && *last == name
        {
            return Ok(clip.clone());
        }
        let clip = question.picture.load(&self.limits)?;
        self.last = Some((name, clip.clone()));
        Ok(clip)
    }
}

fn answer(
    job: &Job<'_>,
    run: &Run,
    open: &[&Question],
    reads: &BTreeSet<Signal>,
    pictures: &mut Pictures,
) -> Vec<Record> {
    let mut results: Vec<Option<Result<Answer, secateur::Error>>> = Vec::new();
    let mut requests = Vec::new();
    let mut warm_ups = Vec::new();
    for question in open {
        match pictures.get(question) {
            Ok(clip) => {
                let request = |text: &str| {
                    Request::new(text)
                        .clip(clip.clone())
                        .chain(run.chain.clone())
                        .also_read(reads.iter().copied())
                        .max_tokens(job.max_tokens)
                };
                requests.push(request(&question.text));
                warm_ups.push(request(WARM_UP));
                results.push(None);
            }
            Err(error) => results.push(Some(Err(error))),
        }
    }
    let answers: Vec<Result<Answer, secateur::Error>> = if run.warm_up > 0 {
        let pairs = warm_ups.into_iter().zip(requests);
        pairs.map(|(first, request)| after_warm_up(job.vlm, run.warm_up, first, request)).collect()
    } else {
        job.vlm.batch(requests)
    };
    for answer in answers.iter().flatten() {
        match answer.report.reuse.encoded {
            Encoding::Reused => pictures.reused += 1,
            _ => pictures.encoded += 1,
        }
    }
    let mut answers = answers.into_iter();
    let layers = job.vlm.info().decoder.layers;
    results
        .into_iter()
        .zip(open)
        .filter_map(|(result, question)| {
            let result = result.or_else(|| answers.next())?;
            Some(record(run, question, &result, layers))
        })
        .collect()
}

/// An episode of its own for each question: what a pruner remembers is the same whatever was asked
/// before.
fn after_warm_up(
    vlm: &Vlm,
    steps: usize,
    first: Request,
    request: Request,
) -> Result<Answer, secateur::Error> {
    let mut session = vlm.session();
    for _ in 0..steps {
        session.ask(first.clone())?.finish()?;
    }
    session.ask(request)?.finish()
}

fn record(
    run: &Run,
    question: &Question,
    result: &Result<Answer, secateur::Error>,
    layers: usize,
) -> Record {
    let mut record = Record {
        chain: run.key(),
        id: question.id.clone(),
        asked: asked(question),
        task: question.task.clone(),
        answer: String::new(),
        score: None,
        visual_in: 0,
        visual_mean: 0.0,
        output_tokens: 0,
        ms: Milliseconds::default(),
        error: None,
    };
    match result {
        Err(error) => record.error = Some(error.to_string()),
        Ok(answer) => {
            let report = &answer.report;
            record.answer.clone_from(&answer.text);
            record.score = question.truth.score(&answer.text);
            record.visual_in = report.visual_in;
            record.visual_mean = measured_mean(report, layers);
            record.output_tokens = report.output_tokens;
            record.ms = Milliseconds {
                encode: report.ms.process + report.ms.encode + report.reuse.saved_ms,
                prune: report.ms.prune,
                prefill: report.ms.prefill,
                decode: report.ms.decode,
            };
        }
    }
    record
}

/// Mean of the visual tokens over decoder layers, as it came out.
fn measured_mean(report: &secateur::Report, layers: usize) -> f64 {
    let mut entered = report.visual_in;
    let mut cuts = Vec::new();
    for stage in &report.stages {
        match stage.site.layer() {
            Some(layer) => cuts.push((layer, stage.kept)),
            None => entered = stage.kept,
        }
    }
    mean_tokens(entered, &cuts, layers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::questions::Picture;
    use crate::eval::score::Truth;

    fn question(text: &str) -> Question {
        Question {
            id: "1".into(),
            picture: Picture::File("a.png".into()),
            task: "t".into(),
            text: text.into(),
            truth: Truth::YesNo(true),
        }
    }

    #[test]
    fn a_log_goes_on_where_it_was_torn_and_refuses_another_model() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.jsonl");
        let run = Run {
            name: "none".into(),
            keep: None,
            rule: crate::eval::runs::Rule::Given,
            chain: secateur::ChainSpec::default(),
            warm_up: 0,
            keeps_all: true,
        };
        let settings = serde_json::json!({"max_tokens": 8});
        let failed = Err(secateur::Error::Internal("x".into()));
        let mut log = Log::open(&path, "m", settings.clone()).unwrap();
        log.add(record(&run, &question("q"), &failed, 4)).unwrap();
        drop(log);
        let whole = std::fs::read(&path).unwrap();
        let torn = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        torn.set_len(whole.len() as u64 - 9).unwrap();
        let log = Log::open(&path, "m", settings.clone()).unwrap();
        assert!(log.get(&run, &question("q")).is_none());
        drop(log);
        let mut log = Log::open(&path, "m", settings.clone()).unwrap();
        log.add(record(&run, &question("q"), &failed, 4)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        assert!(log.get(&run, &question("q")).is_some());
        assert!(log.get(&run, &question("changed")).is_none());
        drop(log);
        let error = format!("{:#}", Log::open(&path, "other", settings).unwrap_err());
        assert!(error.contains("another model"), "{error}");
    }
}
