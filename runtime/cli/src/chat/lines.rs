//! What is typed, line by line: edited on a terminal, as it comes from a pipe or a file.
//!
//! Invariants
//! - A prompt is shown only where stdin and stdout are a terminal.
//! - Bytes that are no text, and lines beyond [`MOST`], are refused one by one; nothing ends by them.
//! - Earlier lines are kept for the arrow keys while the program runs, and in no file.

use std::io::{BufRead, IsTerminal, Read, stdin, stdout};

use anyhow::{Context, Result};
use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{Config, Editor};

/// Longest line, bytes.
const MOST: u64 = 1 << 20;

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A line without its end.
    Text(String),
    /// Ctrl-C on a terminal.
    Interrupted,
    /// A line that cannot be used, and why.
    Refused(&'static str),
    /// There are no more.
    End,
}

/// Where lines come from.
pub(crate) enum Lines {
    /// A terminal.
    Terminal(Box<Editor<(), MemHistory>>),
    /// A pipe or a file.
    Plain,
}

impl Lines {
    /// Standard input.
    ///
    /// # Errors
    /// A terminal that cannot be used.
    pub(crate) fn open() -> Result<Self> {
        if !(stdin().is_terminal() && stdout().is_terminal()) {
            return Ok(Self::Plain);
        }
        let editor = Editor::with_history(Config::default(), MemHistory::new());
        Ok(Self::Terminal(Box::new(editor.context("cannot use the terminal")?)))
    }

    /// Whether a person types.
    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next line.
    ///
    /// # Errors
    /// An input that cannot be read.
    pub(crate) fn next(&mut self) -> Result<Line> {
        let Self::Terminal(editor) = self else { return plain(&mut stdin().lock()) };
        match editor.readline("> ") {
            Ok(line) => {
                if !line.trim().is_empty() {
                    editor.add_history_entry(line.as_str())?;
                }
                Ok(Line::Text(line))
            }
            Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(error) => Err(error).context("cannot read from the terminal"),
        }
    }
}

fn plain(input: &mut impl BufRead) -> Result<Line> {
    let mut bytes = Vec::new();
    let mut read = || -> std::io::Result<bool> {
        input.take(MOST).read_until(b'\n', &mut bytes)?;
        let is_cut = bytes.len() as u64 == MOST && bytes.last() != Some(&b'\n');
        // The rest of a line that is refused, in pieces.
        let mut rest = Vec::new();
        while is_cut && input.take(MOST).read_until(b'\n', &mut rest)? > 0 {
            if rest.last() == Some(&b'\n') {
                break;
            }
            rest.clear();
        }
        Ok(is_cut)
    };
    if read().context("cannot read from stdin")? {
        return Ok(Line::Refused("a line of more than 1 MiB; it is left out"));
    }
    if bytes.is_empty() {
        return Ok(Line::End);
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => Line::Text(text.trim_end_matches(['\n', '\r']).to_owned()),
        Err(_) => Line::Refused("a line that is not UTF-8; it is left out"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_cannot_be_used_are_refused_one_by_one() {
        let long = vec![b'x'; 3 * MOST as usize];
        let typed = [b"What?\r\n\n\xff\n", &long[..], b"\nlast"].concat();
        let mut input = &typed[..];
        let mut next = || plain(&mut input).unwrap();
        assert_eq!(next(), Line::Text("What?".into()));
        assert_eq!(next(), Line::Text(String::new()));
        assert!(matches!(next(), Line::Refused(why) if why.contains("UTF-8")));
        assert!(matches!(next(), Line::Refused(why) if why.contains("MiB")));
        assert_eq!(next(), Line::Text("last".into()));
        assert_eq!(next(), Line::End);
    }
}
