//! How far a job is, on stderr: a bar, a line every ten seconds, or JSON objects.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Console;
use crate::args::ProgressMode;

const LINE_EVERY: Duration = Duration::from_secs(10);
const JSON_EVERY: Duration = Duration::from_secs(1);

/// An observer of a job: silent unless somebody looks.
#[derive(Debug)]
pub(crate) struct Progress<'a> {
    console: &'a Console,
    mode: Shown,
    unit: &'static str,
    total: usize,
    done: usize,
    failed: usize,
    started: Instant,
    shown: Option<Instant>,
}

#[derive(Debug)]
enum Shown {
    Bar(ProgressBar),
    Lines,
    Json,
    Nothing,
}

impl<'a> Progress<'a> {
    /// Begins a job of `total` pictures.
    pub(crate) fn start(console: &'a Console, mode: ProgressMode, total: usize) -> Self {
        Self::counting(console, mode, total, "pictures")
    }

    /// Begins a job of `total` things that are called `unit`.
    pub(crate) fn counting(
        console: &'a Console,
        mode: ProgressMode,
        total: usize,
        unit: &'static str,
    ) -> Self {
        let mode = match mode {
            ProgressMode::Json => Shown::Json,
            ProgressMode::Plain if !console.is_quiet() => Shown::Lines,
            ProgressMode::Auto if console.can_redraw() && !console.is_quiet() && total > 0 => {
                let bar = ProgressBar::with_draw_target(
                    Some(total as u64),
                    ProgressDrawTarget::stderr_with_hz(5),
                );
                let style = format!(
                    "{{bar:30}} {{pos}}/{{len}} {unit}  {{per_sec}}  {{eta}} left  {{msg}}"
                );
                if let Ok(style) = ProgressStyle::with_template(&style) {
                    bar.set_style(style.progress_chars("━╸─"));
                }
                bar.enable_steady_tick(Duration::from_millis(500));
                console.set_bar(Some(bar.clone()));
                Shown::Bar(bar)
            }
            _ => Shown::Nothing,
        };
        let started = Instant::now();
        Self { console, mode, unit, total, done: 0, failed: 0, started, shown: None }
    }

    /// More are through.
    pub(crate) fn advance(&mut self, done: usize, failed: usize) {
        self.done += done;
        self.failed += failed;
        match &self.mode {
            Shown::Bar(bar) => {
                bar.inc((done + failed) as u64);
                if self.failed > 0 {
                    bar.set_message(format!("{} failed", self.failed));
                }
            }
            Shown::Lines if self.is_due(LINE_EVERY) => self.line(),
            Shown::Json if self.is_due(JSON_EVERY) => self.json("progress"),
            _ => {}
        }
    }

    fn is_due(&self, every: Duration) -> bool {
        self.shown.is_none_or(|shown| shown.elapsed() >= every)
    }

    fn rate(&self) -> f64 {
        (self.done + self.failed) as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }

    fn line(&mut self) {
        let through = self.done + self.failed;
        let left = (self.total - through.min(self.total)) as f64 / self.rate().max(1e-9);
        self.console.note(&format!(
            "{through}/{} {}, {} failed, {:.2} a second, {} left",
            self.total,
            self.unit,
            self.failed,
            self.rate(),
            minutes(left)
        ));
        self.shown = Some(Instant::now());
    }

    fn json(&mut self, event: &str) {
        let value = serde_json::json!({
            "schema": "secateur.progress/1", "event": event, "total": self.total,
            "done": self.done, "failed": self.failed,
            "elapsed_s": (self.started.elapsed().as_secs_f64() * 1e3).round() / 1e3,
            "per_s": (self.rate() * 1e3).round() / 1e3,
        });
        self.console.to_stderr(&value.to_string());
        self.shown = Some(Instant::now());
    }

    /// Ends the display.
    pub(crate) fn finish(mut self) {
        match &self.mode {
            Shown::Bar(bar) => {
                bar.finish_and_clear();
                self.console.set_bar(None);
            }
            Shown::Lines => self.line(),
            Shown::Json => self.json("end"),
            Shown::Nothing => {}
        }
    }
}

fn minutes(seconds: f64) -> String {
    let seconds = seconds.min(3.6e8) as u64;
    match seconds {
        0..=99 => format!("{seconds} s"),
        100..=5999 => format!("{} min", seconds / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.mode {
            bar.finish_and_clear();
            self.console.set_bar(None);
        }
    }
}
