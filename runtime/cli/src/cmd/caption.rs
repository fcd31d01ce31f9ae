//! `caption`: a caption for every picture, restartable, one bad file never stops the job.
//!
//! Invariants
//! - A caption is written as soon as it is there; what is in flight when a first signal or too many
//!   failures stop the job is finished and written.
//! - At most `--batch-size` pictures are in flight; the next one in the list enters when one has
//!   ended. Who runs beside whom does not depend on which thread decodes faster.
//! - A picture that cannot be decoded never reaches the model; one that the model refuses does
//!   not touch those beside it.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, anyhow};
use secateur::{Answer, Load, Request, Ticket, Vlm};

use crate::args::CaptionArgs;
use crate::args::values::Auto;
use crate::failure::of_run;
use crate::feed::{Decoded, Feed, Ready};
use crate::identity::{FileInfo, Stamp};
use crate::job::{self, CaptionJob, Target};
use crate::journal::Access;
use crate::outcome::Outcome;
use crate::output::{
    Console, Finished, Lines, Naming, Progress, Rules, Sidecars, Sink, Stdout, Summary, Verdict,
    clean_line,
};
use crate::record::{Caption, ErrorInfo, ErrorKind, ImageInfo, Kept, Milliseconds, Record, Tokens};
use crate::signals::Signals;
use crate::video::{Frames, advice};
use crate::walk::{self, Item, Selection};

/// Runs the command.
///
/// # Errors
/// What keeps the job from starting or going on.
pub(crate) fn run(args: &CaptionArgs, console: &Console) -> Result<Outcome> {
    let job = CaptionJob::new(args)?;
    let selection = select(args)?;
    for warning in &selection.warnings {
        console.warn(warning);
    }
    let skipped = selection.skipped.to_string();
    if !skipped.is_empty() {
        console.warn(&skipped);
    }
    if selection.items.is_empty() {
        if args.error_on_empty {
            return Err(anyhow!("no picture was selected"));
        }
        console.warn("no picture was selected");
        return Ok(Outcome::Done);
    }
    job::fetch(&args.model, console)?;
    let signals = Signals::install()?;
    let load = Load {
        max_tokens: job.max_tokens,
        // What is decoded at once is bounded, however many threads do it.
        decoding_pixels: (job.jobs as u64 * 12_000_000).min(64_000_000),
        ..Load::default()
    };
    let most = job::most_requests(&args.model, &args.limits, &job.chain, &load, console)?;
    let vlm = job::open_holding_nothing(&args.model, console)?;
    let chain = vlm.resolve(&job.chain)?;
    let frames = Frames::new(&args.video, &vlm, job.max_tokens, job.limits);
    let settings = job.settings(&args.model, &chain, &frames);
    let fingerprint =
        crate::fingerprint::fingerprint(&job::model_identity(&args.model)?, &settings);
    console.detail(&format!("model {} on {}", vlm.info().name, vlm.describe()));
    console.detail(&format!("settings {settings}, fingerprint {fingerprint}"));

    let rules = Rules {
        on_existing: args.on_existing,
        force: args.force,
        fingerprint_mode: args.fingerprint,
        retry_failed: args.retry_failed,
        fingerprint: fingerprint.clone(),
        separator: args.separator.clone(),
    };
    let mut sink = sink(args, &job, &selection, rules, console)?;
    let plan = Plan::new(&selection, &*sink)?;
    if args.dry_run {
        return plan.show(&selection, &*sink, console);
    }
    let batch_size = match args.batch_size {
        Auto::Number(size) => size,
        // Larger passes stop paying once the weights are read once for several pictures.
        Auto::Auto if vlm.info().decoder.hidden <= 1024 => 8,
        Auto::Auto => 4,
    };
    let batch_size = match most {
        Some(most) if most < batch_size => {
            console.note(&format!("--max-memory: {most} in flight instead of {batch_size}"));
            most
        }
        _ => batch_size,
    };
    let worker = Worker { args, job: &job, vlm: &vlm, frames, fingerprint, batch_size, signals };
    worker.run(&selection, plan, &mut *sink, console)
}

fn select(args: &CaptionArgs) -> Result<Selection> {
    let rules = walk::Rules::new(args)?;
    let mut paths = Vec::new();
    for path in &args.paths {
        if path == "-" {
            paths.extend(walk::read_paths(std::io::stdin().lock(), args.null)?);
        } else {
            paths.push(path.clone());
        }
    }
    walk::select(&paths, &rules)
}

fn sink<'a>(
    args: &CaptionArgs,
    job: &CaptionJob,
    selection: &Selection,
    rules: Rules,
    console: &'a Console,
) -> Result<Box<dyn Sink + 'a>> {
    let naming = Naming { is_one_tree: selection.is_one_tree };
    let access = if args.dry_run { Access::Look } else { Access::Write };
    let sidecars = |mirror: Option<&Path>, rules| {
        Sidecars::open(console, selection, mirror, &args.extension, access, rules)
    };
    Ok(match &job.target {
        Target::Beside => Box::new(sidecars(None, rules)?),
        Target::Mirror(folder) => Box::new(sidecars(Some(folder), rules)?),
        Target::File(path) => {
            Box::new(Lines::open(path, access, rules, naming, args.messages, console)?)
        }
        Target::Stdout => Box::new(Stdout::new(console, naming, args.messages)),
    })
}

/// What is to be done, and what earlier runs did.
#[derive(Debug, Default)]
struct Plan {
    /// Indices into the selection.
    todo: Vec<usize>,
    done: usize,
    done_otherwise: usize,
    changed: usize,
    failed_before: Vec<(usize, ErrorInfo)>,
}

impl Plan {
    fn new(selection: &Selection, sink: &dyn Sink) -> Result<Self> {
        let mut plan = Self::default();
        let mut refused = Vec::new();
        for (index, item) in selection.items.iter().enumerate() {
            match sink.verdict(item)? {
                Verdict::Todo => plan.todo.push(index),
                Verdict::Done => plan.done += 1,
                Verdict::DoneOtherwise => plan.done_otherwise += 1,
                Verdict::Changed => plan.changed += 1,
                Verdict::FailedBefore(error) => plan.failed_before.push((index, error)),
                Verdict::Refused => refused.push(clean_line(&item.path.display().to_string())),
            }
        }
        if !refused.is_empty() {
            let more = if refused.len() > 3 { ", ..." } else { "" };
            return Err(anyhow!(
                "{} of {} pictures have a caption already ({}{more}); --on-existing says what to \
                 do with them",
                refused.len(),
                selection.items.len(),
                refused[..refused.len().min(3)].join(", ")
            ));
        }
        Ok(plan)
    }

    fn show(&self, selection: &Selection, sink: &dyn Sink, console: &Console) -> Result<Outcome> {
        for &index in &self.todo {
            console.result(&format!("{}\n", sink.record_path(&selection.items[index]).0))?;
        }
        console.note(&format!(
            "{} to caption, {} done, {} done with other settings, {} changed since, {} failed \
             before (dry run: nothing was written)",
            self.todo.len(),
            self.done,
            self.done_otherwise,
            self.changed,
            self.failed_before.len()
        ));
        Ok(Outcome::Done)
    }
}

/// A picture on its way to the model.
struct Prepared {
    request: Request,
    info: ImageInfo,
    /// The file as it was before it was read.
    stamp: Option<Stamp>,
}

/// A picture that the model works on.
struct Flying {
    index: usize,
    info: ImageInfo,
    stamp: Option<Stamp>,
}

impl Ready for Prepared {
    fn bytes(&self) -> usize {
        self.request.picture_bytes()
    }
}

struct Worker<'a> {
    args: &'a CaptionArgs,
    job: &'a CaptionJob,
    vlm: &'a Vlm,
    frames: Frames,
    fingerprint: String,
    batch_size: usize,
    signals: Signals,
}

impl Worker<'_> {
    fn run(
        &self,
        selection: &Selection,
        plan: Plan,
        sink: &mut dyn Sink,
        console: &Console,
    ) -> Result<Outcome> {
        let mut summary = Summary::start();
        summary.add_done_before(plan.done + plan.done_otherwise, plan.done_otherwise);
        summary.add_changed(plan.changed);
        for (_, error) in &plan.failed_before {
            summary.add_failure(error);
        }
        if !plan.failed_before.is_empty() {
            console.note(&format!(
                "{} pictures failed before and are left out; --retry-failed tries them again",
                plan.failed_before.len()
            ));
        }
        let paths = plan.todo.iter().map(|&i| &*selection.items[i].path).collect();
        let feed = Feed::new(paths, self.frames, 2 * self.batch_size, |at, picture| {
            self.prepared(&selection.items[plan.todo[at]], picture)
        });
        let mut progress = Progress::start(console, self.args.progress, plan.todo.len());
        let ended = std::thread::scope(|scope| {
            for _ in 0..self.job.jobs.min(plan.todo.len()) {
                scope.spawn(|| feed.work());
            }
            let ended =
                self.captions(selection, &plan.todo, &feed, sink, &mut summary, &mut progress);
            feed.stop();
            ended
        });
        progress.finish();
        // What is done is made durable even if the job cannot go on.
        let tidied = sink.finish();
        let stopped = ended?;
        tidied?;
        summary.show(console);
        Ok(match stopped {
            Some((outcome, left)) => {
                match (outcome, self.args.max_failures.filter(|_| !self.args.fail_fast)) {
                    (Outcome::Stopped, Some(most)) => {
                        console.note(&format!("stopped by --max-failures {most}; {left} not tried"))
                    }
                    (Outcome::Stopped, None) => {
                        console.note(&format!("stopped by --fail-fast; {left} not tried"));
                    }
                    _ => console.note("interrupted; run the same command again to go on"),
                }
                outcome
            }
            None if summary.failures() > 0 => Outcome::SomeFailed,
            None => Outcome::Done,
        })
    }

    /// Captions picture after picture, several in flight; gives the reason if it stopped before the
    /// end, and how many pictures were not tried.
    fn captions(
        &self,
        selection: &Selection,
        todo: &[usize],
        feed: &Feed<'_, Prepared>,
        sink: &mut dyn Sink,
        summary: &mut Summary,
        progress: &mut Progress<'_>,
    ) -> Result<Option<(Outcome, usize)>> {
        let mut engine = self.vlm.engine(self.batch_size);
        let mut flying: HashMap<Ticket, Flying> = HashMap::new();
        let mut stopped = None;
        let (mut taken, mut through, mut failed) = (0, 0, 0);
        loop {
            stopped = stopped.or_else(|| self.signals.stop());
            let mut finished = Vec::new();
            while stopped.is_none() && finished.is_empty() && engine.has_room() {
                let waited = Instant::now();
                let Some(picture) = feed.take() else { break };
                // Nothing ran while the next picture was not there.
                engine.extend_deadlines(waited.elapsed());
                let index = todo[taken];
                taken += 1;
                match picture {
                    Ok(Prepared { request, info, stamp }) => {
                        let ticket = engine.submit(request.deadline(self.deadline(todo.len())));
                        flying.insert(ticket, Flying { index, info, stamp });
                    }
                    Err(error) => {
                        // Of one that could not be read, as it is.
                        let stamp = Stamp::of(&selection.items[index].path);
                        finished.push(finish(selection, index, stamp, sink, Err(error)));
                    }
                }
            }
            for (ticket, answer) in engine.step() {
                let Some(Flying { index, info, stamp }) = flying.remove(&ticket) else { continue };
                let outcome = self.outcome(&selection.items[index], info, answer);
                finished.push(finish(selection, index, stamp, sink, outcome));
            }
            if !finished.is_empty() {
                let failed_now = finished.iter().filter(|f| f.record.error.is_some()).count();
                let through_now = finished.len();
                for done in &finished {
                    summary.add(&done.record);
                }
                sink.write(finished)?;
                progress.advance(through_now - failed_now, failed_now);
                through += through_now;
                failed += failed_now;
                let is_over = self.args.fail_fast && failed > 0
                    || self.args.max_failures.is_some_and(|m| m.is_exceeded(failed, through));
                if is_over {
                    stopped = stopped.or(Some(Outcome::Stopped));
                }
            }
            if engine.is_idle() && (stopped.is_some() || taken == todo.len()) {
                return Ok(stopped.map(|outcome| (outcome, todo.len() - taken)));
            }
        }
    }

    /// Until when a picture that enters now may take. It has the time that was asked for, and so has
    /// each of those that may run beside it.
    fn deadline(&self, pictures: usize) -> Instant {
        Instant::now() + self.job.item_timeout * self.batch_size.min(pictures) as u32
    }

    /// What became of a picture that was in flight.
    fn outcome(
        &self,
        item: &Item,
        info: ImageInfo,
        answer: Result<Answer, secateur::Error>,
    ) -> Result<Caption, ErrorInfo> {
        let error = match answer {
            Ok(answer) => return Ok(self.caption(answer, info)),
            Err(error) => error,
        };
        let mut failed = of_run(&error, &item.path);
        if failed.kind == ErrorKind::Timeout {
            failed.message = format!(
                "{}: no caption within --item-timeout {:?}",
                item.path.display(),
                self.job.item_timeout
            );
        }
        if let Some(advice) = advice(&error, info.frames) {
            failed.message = format!("{}; {advice}", failed.message);
        }
        Err(failed)
    }

    /// A picture as the model takes it, with what is asked about it; any thread may do this.
    fn prepared(&self, item: &Item, picture: Decoded) -> Result<Prepared, ErrorInfo> {
        let info = ImageInfo {
            width: picture.clip.width(),
            height: picture.clip.height(),
            frames: picture.clip.frames().len(),
            exif_orientation: picture.orientation,
        };
        let stamp = picture.stamp.clone();
        let request = self.request(item, picture)?;
        let request = self.vlm.prepared(request).map_err(|e| of_run(&e, &item.path))?;
        Ok(Prepared { request, info, stamp })
    }

    fn request(&self, item: &Item, picture: Decoded) -> Result<Request, ErrorInfo> {
        let clips = self.vlm.fitted(picture.clip).map_err(|e| of_run(&e, &item.path))?;
        let request = Request::new(fill_in(&self.job.prompt, &item.path));
        let mut request = clips
            .into_iter()
            .fold(request, Request::clip)
            .decode_image_ms(picture.ms)
            .chain(self.job.chain.clone())
            .sampling(self.job.sampling.clone())
            .max_tokens(self.job.max_tokens);
        if let Some(system) = &self.job.system {
            request = request.system(system);
        }
        Ok(self.job.stop.iter().fold(request, |request, stop| request.stop(stop)))
    }

    fn caption(&self, answer: Answer, image: ImageInfo) -> Caption {
        let report = answer.report;
        let ms = report.ms;
        Caption {
            caption: answer.text,
            finish_reason: answer.finish,
            model: self.vlm.info().name.clone(),
            prune: report.chain,
            fingerprint: self.fingerprint.clone(),
            joined: Vec::new(),
            seed: self.job.sampling.seed,
            image,
            tokens: Tokens {
                visual_in: report.visual_in,
                visual_kept: report
                    .stages
                    .iter()
                    .map(|s| Kept {
                        site: s.site.to_string(),
                        stage: s.pruner.clone(),
                        kept: s.kept,
                    })
                    .collect(),
                prompt: report.prompt_tokens - report.visual_in,
                output: report.output_tokens,
            },
            ms: Milliseconds {
                decode_image: ms.decode_image,
                process: ms.process,
                encode: ms.encode,
                prune: ms.prune,
                prefill: ms.prefill,
                decode: ms.decode,
                // Its share of what ran beside it, not how long that took.
                total: ms.decode_image + ms.process + ms.encode + ms.prune + ms.prefill + ms.decode,
            }
            .rounded(),
            batch: report.batch,
        }
    }
}

/// The record of a picture that is through; `stamp` is its file as it was read.
fn finish(
    selection: &Selection,
    index: usize,
    stamp: Option<Stamp>,
    sink: &dyn Sink,
    outcome: Result<Caption, ErrorInfo>,
) -> Finished {
    let item = selection.items[index].clone();
    let path = sink.record_path(&item);
    let file = FileInfo::new(&item, &selection.root_places[item.root], &path, stamp);
    let record = match outcome {
        Ok(caption) => Record::ok(index, path, file, caption),
        Err(error) => Record::error(index, path, file, error),
    };
    Finished { item, record }
}

/// `{stem}` and `{dir}` of a prompt.
fn fill_in(prompt: &str, path: &Path) -> String {
    if !prompt.contains('{') {
        return prompt.to_owned();
    }
    let text =
        |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    prompt
        .replace("{stem}", &text(path.file_stem()))
        .replace("{dir}", &text(path.parent().and_then(Path::file_name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_may_speak_of_the_file() {
        let path = Path::new("birds/robin_01.jpg");
        assert_eq!(fill_in("{dir}: {stem}?", path), "birds: robin_01?");
        assert_eq!(fill_in("plain", path), "plain");
    }
}
