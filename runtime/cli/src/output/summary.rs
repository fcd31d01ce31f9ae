//! What a job did, in a few lines on stderr.

use std::collections::BTreeMap;
use std::time::Instant;

use super::table::{Align, table};
use super::{Console, clean};
use crate::record::{ErrorInfo, ErrorKind, Milliseconds, Record};

/// Sums over the pictures of a job.
#[derive(Debug)]
pub(crate) struct Summary {
    started: Instant,
    captioned: usize,
    done_before: usize,
    other_settings: usize,
    changed: usize,
    failed: BTreeMap<ErrorKind, (usize, String)>,
    visual_in: usize,
    visual_kept: usize,
    output: usize,
    ms: Milliseconds,
}

impl Summary {
    /// Of a job that begins now.
    pub(crate) fn start() -> Self {
        Self {
            started: Instant::now(),
            captioned: 0,
            done_before: 0,
            other_settings: 0,
            changed: 0,
            failed: BTreeMap::new(),
            visual_in: 0,
            visual_kept: 0,
            output: 0,
            ms: Milliseconds::default(),
        }
    }

    /// Pictures that had their caption.
    pub(crate) fn add_done_before(&mut self, pictures: usize, other_settings: usize) {
        self.done_before += pictures;
        self.other_settings += other_settings;
    }

    /// Pictures that changed since they had their caption.
    pub(crate) fn add_changed(&mut self, pictures: usize) {
        self.done_before += pictures;
        self.changed += pictures;
    }

    /// A picture that failed, in this run or before.
    pub(crate) fn add_failure(&mut self, error: &ErrorInfo) {
        let entry = self.failed.entry(error.kind).or_insert_with(|| (0, error.message.clone()));
        entry.0 += 1;
    }

    /// A picture that is through.
    pub(crate) fn add(&mut self, record: &Record) {
        if let Some(error) = &record.error {
            self.add_failure(error);
        }
        let Some(caption) = &record.caption else { return };
        self.captioned += 1;
        let tokens = &caption.tokens;
        self.visual_in += tokens.visual_in;
        self.visual_kept += tokens.visual_kept.last().map_or(tokens.visual_in, |k| k.kept);
        self.output += tokens.output;
        let (sum, ms) = (&mut self.ms, &caption.ms);
        sum.decode_image += ms.decode_image;
        sum.process += ms.process;
        sum.encode += ms.encode;
        sum.prune += ms.prune;
        sum.prefill += ms.prefill;
        sum.decode += ms.decode;
        sum.total += ms.total;
    }

    /// Pictures without a caption.
    pub(crate) fn failures(&self) -> usize {
        self.failed.values().map(|(count, _)| count).sum()
    }

    /// Tells people.
    pub(crate) fn show(&self, console: &Console) {
        let seconds = self.started.elapsed().as_secs_f64();
        let mut head = format!("{} in {seconds:.1} s", pictures(self.captioned, "captioned"));
        if self.done_before > 0 {
            head.push_str(&format!(", {} done before", self.done_before));
        }
        if self.failures() > 0 {
            head.push_str(&format!(", {} failed", self.failures()));
        }
        console.note(&head);
        if self.other_settings > 0 {
            console.warn(&format!(
                "{} made with other settings stay; `--on-existing overwrite` makes them anew",
                pictures(self.other_settings, "captions")
            ));
        }
        if self.changed > 0 {
            console.warn(&format!(
                "{} changed since the caption was made, which stays; `--on-existing overwrite` \
                 makes it anew",
                pictures(self.changed, "have").trim_end_matches(" have")
            ));
        }
        if self.captioned > 0 {
            console.note(self.table().trim_end());
        }
        for (kind, (count, example)) in &self.failed {
            console.error(&format!("{count} x {}, for instance {}", kind.name(), clean(example)));
        }
    }

    fn table(&self) -> String {
        let per_picture = |x: f64| format!("{:.1}", x / self.captioned as f64);
        let share = |x: f64| format!("{:.0} %", 100.0 * x / self.ms.total.max(1e-9));
        let mut rows = vec![["stage", "ms a picture", "share"].map(str::to_owned).to_vec()];
        for (name, ms) in [
            ("decode image", self.ms.decode_image),
            ("resize", self.ms.process),
            ("encode", self.ms.encode),
            ("prune", self.ms.prune),
            ("prefill", self.ms.prefill),
            ("decode", self.ms.decode),
            ("total", self.ms.total),
        ] {
            rows.push(vec![name.to_owned(), per_picture(ms), share(ms)]);
        }
        let tokens = format!(
            "visual tokens a picture: {:.0} in, {:.0} kept; {:.1} tokens of text out\n",
            self.visual_in as f64 / self.captioned as f64,
            self.visual_kept as f64 / self.captioned as f64,
            self.output as f64 / self.captioned as f64,
        );
        tokens + &table(&rows, &[Align::Left, Align::Right, Align::Right])
    }
}

fn pictures(count: usize, what: &str) -> String {
    if what == "captions" {
        return if count == 1 { "1 caption".to_owned() } else { format!("{count} captions") };
    }
    format!("{count} {} {what}", if count == 1 { "picture" } else { "pictures" })
}
