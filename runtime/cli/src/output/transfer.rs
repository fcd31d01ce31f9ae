//! How far a download is: a bar on a terminal, nothing elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Console, clean_line};

/// An observer of a download: silent unless somebody looks at stderr.
#[derive(Debug)]
pub(crate) struct Transfer<'a> {
    console: &'a Console,
    bar: Option<ProgressBar>,
}

impl<'a> Transfer<'a> {
    /// Begins with nothing expected, and says `what` is about to come.
    pub(crate) fn start(console: &'a Console, what: &str) -> Self {
        if !console.can_redraw() || console.is_quiet() {
            return Self { console, bar: None };
        }
        console.note(&clean_line(what));
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(5));
        let style = "{bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left  {msg}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        console.set_bar(Some(bar.clone()));
        Self { console, bar: Some(bar) }
    }

    /// That many bytes more are to come.
    pub(crate) fn expect(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc_length(bytes);
        }
    }

    /// The file that comes now.
    pub(crate) fn name(&self, file: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(clean_line(file));
        }
    }

    /// That many of the bytes that came are to come again.
    pub(crate) fn retreat(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.dec(bytes);
        }
    }

    /// That many bytes came.
    pub(crate) fn advance(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            self.console.set_bar(None);
        }
    }
}
