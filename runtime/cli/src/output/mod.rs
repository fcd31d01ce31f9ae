//! Everything the command prints goes through here.
//!
//! Invariants
//! - stdout carries results only, everything else goes to stderr.
//! - Text that came from outside (paths, captions, messages) is cleaned before it reaches a
//!   terminal; files hold it as it is.
//! - A closed stdout is [`crate::outcome::StdoutClosed`]; a closed stderr is ignored.

mod clean;
mod jsonl;
mod layout;
mod progress;
mod sink;
mod summary;
mod table;
mod text;
#[cfg(feature = "hub")]
mod transfer;

use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;

use anyhow::Result;

use crate::args::{ColorChoice, GlobalArgs};
use crate::outcome::StdoutClosed;

pub(crate) use clean::{clean, clean_line};
pub(crate) use jsonl::{Lines, Naming, Stdout};
pub(crate) use progress::Progress;
pub(crate) use sink::{Finished, Rules, Sink, Verdict};
pub(crate) use summary::Summary;
pub(crate) use table::{Align, table};
pub(crate) use text::Sidecars;
#[cfg(feature = "hub")]
pub(crate) use transfer::Transfer;

/// Where output goes, and how it may look.
#[derive(Debug)]
pub(crate) struct Console {
    is_quiet: bool,
    is_verbose: bool,
    colours_out: bool,
    colours_err: bool,
    is_dumb: bool,
    bar: Mutex<Option<indicatif::ProgressBar>>,
}

/// A style of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// Stands out.
    Bold,
    /// Stands back.
    Dim,
    /// Something to look at.
    Yellow,
    /// Something that failed.
    Red,
}

fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|v| !v.is_empty() && v != "0")
}

impl Console {
    /// The console that flags and environment ask for.
    pub(crate) fn new(global: &GlobalArgs) -> Self {
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        // https://no-color.org: any value counts, `0` too.
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let colours = |is_terminal: bool| match global.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto if no_color => false,
            ColorChoice::Auto => is_set("CLICOLOR_FORCE") || (is_terminal && !is_dumb),
        };
        Self {
            is_quiet: global.quiet,
            is_verbose: global.verbose,
            colours_out: colours(io::stdout().is_terminal()),
            colours_err: colours(io::stderr().is_terminal()),
            is_dumb,
            bar: Mutex::new(None),
        }
    }

    /// A console without any wish, for errors in the flags themselves.
    pub(crate) fn plain() -> Self {
        Self::new(&GlobalArgs {
            config: None,
            quiet: false,
            verbose: false,
            color: ColorChoice::Auto,
        })
    }

    /// Whether stderr is a terminal that can redraw a line.
    pub(crate) fn can_redraw(&self) -> bool {
        io::stderr().is_terminal() && !self.is_dumb
    }

    /// Whether only errors are shown.
    pub(crate) fn is_quiet(&self) -> bool {
        self.is_quiet
    }

    fn set_bar(&self, bar: Option<indicatif::ProgressBar>) {
        if let Ok(mut place) = self.bar.lock() {
            *place = bar;
        }
    }

    /// Writes results as they are.
    ///
    /// # Errors
    /// [`StdoutClosed`], or what else stops stdout.
    pub(crate) fn result(&self, text: &str) -> Result<()> {
        let write = || {
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes())?;
            out.flush()
        };
        let bar = self.bar.lock().ok().and_then(|bar| bar.clone());
        // A line that appears in the middle of a bar would stay torn.
        let written = match bar {
            Some(bar) if io::stdout().is_terminal() => bar.suspend(write),
            _ => write(),
        };
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => StdoutClosed.into(),
            _ => anyhow::Error::from(error).context("cannot write to stdout"),
        })
    }

    /// Writes text that came from outside: cleaned if stdout is a terminal.
    ///
    /// # Errors
    /// As [`Console::result`].
    pub(crate) fn words(&self, text: &str) -> Result<()> {
        if io::stdout().is_terminal() { self.result(&clean(text)) } else { self.result(text) }
    }

    /// Writes one JSON object.
    ///
    /// # Errors
    /// As [`Console::result`].
    pub(crate) fn json(&self, value: &impl serde::Serialize) -> Result<()> {
        let mut text = serde_json::to_string(value)?;
        text.push('\n');
        self.result(&text)
    }

    fn to_stderr(&self, text: &str) {
        let write = || {
            let mut err = io::stderr().lock();
            // There is nobody left to tell.
            let _ = err.write_all(text.as_bytes()).and_then(|()| err.write_all(b"\n"));
        };
        let bar = self.bar.lock().ok().and_then(|bar| bar.clone());
        match bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Something worth knowing.
    pub(crate) fn note(&self, text: &str) {
        if !self.is_quiet {
            self.to_stderr(text);
        }
    }

    /// Something worth knowing for those who asked for more.
    pub(crate) fn detail(&self, text: &str) {
        if self.is_verbose && !self.is_quiet {
            self.to_stderr(&self.on_err(Style::Dim, text));
        }
    }

    /// Something that is probably not meant so.
    pub(crate) fn warn(&self, text: &str) {
        if !self.is_quiet {
            let head = self.on_err(Style::Yellow, "warning:");
            self.to_stderr(&format!("{head} {}", clean(text)));
        }
    }

    /// Something that failed.
    pub(crate) fn error(&self, text: &str) {
        let head = self.on_err(Style::Red, "error:");
        self.to_stderr(&format!("{head} {}", clean(text)));
    }

    /// `text` in a style, if stderr shows colours.
    pub(crate) fn on_err(&self, style: Style, text: &str) -> String {
        paint(self.colours_err, style, text)
    }

    /// `text` in a style, if stdout shows colours.
    pub(crate) fn on_out(&self, style: Style, text: &str) -> String {
        paint(self.colours_out, style, text)
    }
}

fn paint(is_on: bool, style: Style, text: &str) -> String {
    let code = match style {
        Style::Bold => "1",
        Style::Dim => "2",
        Style::Yellow => "33",
        Style::Red => "31",
    };
    if is_on { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
}
