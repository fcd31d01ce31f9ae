//! Captions as JSON lines: a file that is its own journal, or standard output.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Console;
use super::sink::{Finished, Rules, Sink, Verdict};
use crate::journal::{self, Access, Journal, Known};
use crate::lock::Lock;
use crate::walk::{Item, record_path};

/// How items are named in a file that covers all roots.
#[derive(Clone, Debug)]
pub(crate) struct Naming {
    /// Whether paths are relative to the one root that was given.
    pub(crate) is_one_tree: bool,
}

impl Naming {
    pub(crate) fn path(&self, item: &Item) -> (String, bool) {
        record_path(if self.is_one_tree { &item.relative } else { &item.path })
    }
}

/// A JSONL file.
#[derive(Debug)]
pub(crate) struct Lines {
    path: PathBuf,
    journal: Journal,
    rules: Rules,
    naming: Naming,
    as_messages: bool,
    _lock: Option<Lock>,
}

impl Lines {
    /// Opens the file, cutting off a torn last line.
    ///
    /// # Errors
    /// A second writer, a file that is not ours, the file system's.
    pub(crate) fn open(
        path: &Path,
        access: Access,
        rules: Rules,
        naming: Naming,
        as_messages: bool,
    ) -> Result<Self> {
        if access == Access::Look {
            let journal = Journal::open(path, access, |_, _| false)?;
            let path = path.to_path_buf();
            return Ok(Self { path, journal, rules, naming, as_messages, _lock: None });
        }
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent)
                .with_context(|| format!("cannot make the folder {}", parent.display()))?;
        }
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(".lock");
        let lock = Some(Lock::take(&path.with_file_name(name), path)?);
        let journal = Journal::open(path, access, |_, _| false)?;
        let path = path.to_path_buf();
        Ok(Self { path, journal, rules, naming, as_messages, _lock: lock })
    }
}

impl Sink for Lines {
    fn record_path(&self, item: &Item) -> (String, bool) {
        self.naming.path(item)
    }

    fn verdict(&self, item: &Item) -> Result<Verdict> {
        let known = self.journal.known(&self.record_path(item).0);
        let exists = matches!(known, Some(Known::Ok { .. }));
        Ok(self.rules.verdict(item, known, exists))
    }

    fn write(&mut self, batch: Vec<Finished>) -> Result<()> {
        for mut finished in batch {
            let old = match self.journal.known(&finished.record.path) {
                Some(Known::Ok { fingerprints, caption })
                    if self.rules.on_existing.is_joining() =>
                {
                    Some((fingerprints.clone(), caption.clone()))
                }
                _ => None,
            };
            if let (Some(caption), Some((fingerprints, text))) = (&mut finished.record.caption, old)
            {
                caption.caption = self.rules.join(&text, &caption.caption);
                caption.joined = fingerprints;
            }
            self.journal.append(&finished.record, self.as_messages)?;
        }
        self.journal.sync_if_due()
    }

    fn finish(&mut self) -> Result<()> {
        self.journal.sync()?;
        if self.journal.superseded() > 0 {
            journal::compact(&self.path)?;
        }
        Ok(())
    }
}

/// Standard output: nothing is known, nothing is kept.
#[derive(Debug)]
pub(crate) struct Stdout<'a> {
    console: &'a Console,
    naming: Naming,
    as_messages: bool,
}

impl<'a> Stdout<'a> {
    /// Lines to `console`.
    pub(crate) fn new(console: &'a Console, naming: Naming, as_messages: bool) -> Self {
        Self { console, naming, as_messages }
    }
}

impl Sink for Stdout<'_> {
    fn record_path(&self, item: &Item) -> (String, bool) {
        self.naming.path(item)
    }

    fn verdict(&self, _item: &Item) -> Result<Verdict> {
        Ok(Verdict::Todo)
    }

    fn write(&mut self, batch: Vec<Finished>) -> Result<()> {
        for Finished { record, .. } in batch {
            if self.as_messages {
                self.console.json(&record.to_messages())?;
            } else {
                self.console.json(&record)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}
