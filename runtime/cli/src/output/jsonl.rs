//! Captions as JSON lines: a file that is its own journal, or standard output.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Console;
use super::sink::{Finished, Rules, Sink, Verdict};
use crate::journal::{Access, Journal, Keyed, Known};
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
    /// `None` once it is finished.
    journal: Option<Journal>,
    rules: Rules,
    naming: Naming,
    as_messages: bool,
    _lock: Option<Lock>,
}

impl Lines {
    /// Opens the file, cutting off a torn last line.
    ///
    /// # Errors
    /// A second writer, a file that is not ours, a link, the file system's.
    pub(crate) fn open(
        path: &Path,
        access: Access,
        rules: Rules,
        naming: Naming,
        as_messages: bool,
        console: &Console,
    ) -> Result<Self> {
        let mut lock = None;
        if access == Access::Write {
            if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
                std::fs::create_dir_all(parent)
                    .with_context(|| format!("cannot make the folder {}", parent.display()))?;
            }
            // Before the lock is made: what is no file has no lock beside it.
            crate::own::look(path).with_context(|| format!("cannot write {}", path.display()))?;
            let mut name = std::ffi::OsString::from(".");
            name.push(path.file_name().unwrap_or_default());
            name.push(".lock");
            lock = Some(Lock::take(&path.with_file_name(name), path)?);
        }
        let journal = Journal::open(path, access, Keyed::Place, |_, _| false)?;
        match journal.without_place() {
            0 => {}
            count => console.note(&format!(
                "{count} records of {} were made by an earlier version and do not say in which \
                 folder their pictures lie: they count for pictures of the same path",
                path.display()
            )),
        }
        let (path, journal) = (path.to_path_buf(), Some(journal));
        Ok(Self { path, journal, rules, naming, as_messages, _lock: lock })
    }

    fn find(&self, item: &Item) -> Option<(&Path, &crate::journal::Entry)> {
        self.journal.as_ref()?.find(&item.place, &self.naming.path(item).0)
    }
}

impl Sink for Lines {
    /// A picture that the file knows keeps its path, whatever root it is reached by.
    fn record_path(&self, item: &Item) -> (String, bool) {
        self.find(item).map_or_else(|| self.naming.path(item), |(_, entry)| entry.path.clone())
    }

    fn verdict(&self, item: &Item) -> Result<Verdict> {
        let entry = self.find(item).map(|(_, entry)| entry);
        let exists = matches!(entry.map(|entry| &entry.known), Some(Known::Ok { .. }));
        Ok(self.rules.verdict(item, entry, exists))
    }

    fn write(&mut self, batch: Vec<Finished>) -> Result<()> {
        for Finished { item, mut record } in batch {
            let mut old_key = None;
            if let Some((key, entry)) = self.find(&item) {
                old_key = Some(key.to_path_buf());
                if let (Some(caption), Known::Ok { fingerprints, caption: text }) =
                    (&mut record.caption, &entry.known)
                    && self.rules.on_existing.is_joining()
                {
                    caption.caption = self.rules.join(text, &caption.caption);
                    caption.joined = fingerprints.clone();
                }
            }
            let Some(journal) = &mut self.journal else { continue };
            if let Some(old) = old_key.filter(|old| *old != item.place) {
                journal.forget(&old);
            }
            journal.append(&item.place, &record, self.as_messages)?;
        }
        self.journal.as_mut().map_or(Ok(()), Journal::sync_if_due)
    }

    fn finish(&mut self) -> Result<()> {
        let Some(mut journal) = self.journal.take() else { return Ok(()) };
        journal.sync()?;
        if journal.superseded() > 0 { journal.compact(&self.path) } else { Ok(()) }
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
