//! Captions as text files, beside the pictures or in a mirror of their tree.
//!
//! Order of a batch: records to the journal, text files by renaming, folders made durable, commit
//! line. Killed anywhere in between, the next run finds each text file whole, old or new, and
//! knows which (see [`crate::journal`]).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Console;
use super::clean::clean_line;
use super::sink::{Finished, Rules, Sink, Verdict};
use crate::fingerprint::content;
use crate::journal::{Access, Journal, Known};
use crate::lock::Lock;
use crate::outcome::usage;
use crate::walk::{Item, STATE_FOLDER, Selection, record_path};
use crate::write::{FolderSync, replace};

/// Where the text file of an item lies: the root, and the path below it without its ending.
#[derive(Clone, Debug)]
struct Layout {
    /// Mirror of the tree, or beside the pictures.
    mirror: Option<PathBuf>,
    /// One a root: what stands in front of an item's path in the mirror.
    prefixes: Vec<PathBuf>,
    /// Roots of the outputs, one a root of the selection.
    roots: Vec<PathBuf>,
    extension: String,
}

impl Layout {
    fn new(selection: &Selection, mirror: Option<&Path>, extension: &str) -> Self {
        let prefix = |root: &PathBuf| match root.file_name() {
            Some(name) if !selection.is_one_tree && selection.roots.len() > 1 => {
                PathBuf::from(name)
            }
            _ => PathBuf::new(),
        };
        let extension = if extension.starts_with('.') || extension.is_empty() {
            extension.to_owned()
        } else {
            format!(".{extension}")
        };
        Self {
            mirror: mirror.map(Path::to_path_buf),
            prefixes: selection.roots.iter().map(prefix).collect(),
            roots: match mirror {
                Some(mirror) => vec![mirror.to_path_buf(); selection.roots.len()],
                None => selection.roots.clone(),
            },
            extension,
        }
    }

    /// Path of the picture below the output's root.
    fn below(&self, item: &Item) -> PathBuf {
        match self.mirror {
            Some(_) => self.prefixes[item.root].join(&item.relative),
            None => item.relative.clone(),
        }
    }

    fn text_file(&self, item: &Item) -> PathBuf {
        let below = self.below(item);
        let mut name = below.file_stem().unwrap_or_default().to_owned();
        name.push(&self.extension);
        self.roots[item.root].join(below.with_file_name(name))
    }
}

/// The journal of one output root.
#[derive(Debug)]
struct Root {
    path: PathBuf,
    journal: Journal,
    _lock: Option<Lock>,
}

/// Text files.
pub(crate) struct Sidecars<'a> {
    console: &'a Console,
    layout: Layout,
    /// Index into `open`, one a root of the selection.
    root_of: Vec<usize>,
    open: Vec<Root>,
    rules: Rules,
    folders: FolderSync,
}

impl<'a> Sidecars<'a> {
    /// Opens (or makes) the journals of all output roots and takes their locks.
    ///
    /// # Errors
    /// Two pictures with one text file, a second writer, the file system's.
    pub(crate) fn open(
        console: &'a Console,
        selection: &Selection,
        mirror: Option<&Path>,
        extension: &str,
        access: Access,
        rules: Rules,
    ) -> Result<Self> {
        let layout = Layout::new(selection, mirror, extension);
        refuse_collisions(selection, &layout)?;
        let mut open: Vec<Root> = Vec::new();
        let mut root_of = Vec::new();
        for (i, path) in layout.roots.iter().enumerate() {
            if let Some(known) = open.iter().position(|r| r.path == *path) {
                root_of.push(known);
                continue;
            }
            let state = path.join(STATE_FOLDER);
            let lock = match access {
                Access::Look => None,
                Access::Write => {
                    fs::create_dir_all(&state)
                        .with_context(|| format!("cannot make the folder {}", state.display()))?;
                    Some(Lock::take(&state.join("lock"), path)?)
                }
            };
            let text_files: BTreeMap<String, PathBuf> = selection
                .items
                .iter()
                .filter(|item| layout.roots[item.root] == *path || item.root == i)
                .map(|item| (record_path(&layout.below(item)).0, layout.text_file(item)))
                .collect();
            let holds = |record: &str, hash: &str| {
                text_files
                    .get(record)
                    .and_then(|file| fs::read(file).ok())
                    .is_some_and(|bytes| content(&bytes) == hash)
            };
            let journal = Journal::open(&state.join("journal.jsonl"), access, holds)?;
            root_of.push(open.len());
            open.push(Root { path: path.clone(), journal, _lock: lock });
        }
        let folders = FolderSync::default();
        Ok(Self { console, layout, root_of, open, rules, folders })
    }

    fn journal(&self, item: &Item) -> &Journal {
        &self.open[self.root_of[item.root]].journal
    }

    /// What the text file will hold, and the fingerprints of what it is joined to.
    fn text_of(&self, item: &Item, caption: &str, file: &Path) -> Result<(String, Vec<String>)> {
        if !self.rules.on_existing.is_joining() {
            return Ok((format!("{caption}\n"), Vec::new()));
        }
        let old = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", file.display())),
        };
        let joined = match self.journal(item).known(&self.record_path(item).0) {
            Some(Known::Ok { fingerprints, .. }) if !old.is_empty() => fingerprints.clone(),
            _ => Vec::new(),
        };
        Ok((format!("{}\n", self.rules.join(old.trim_end(), caption)), joined))
    }
}

fn refuse_collisions(selection: &Selection, layout: &Layout) -> Result<()> {
    let mut taken: BTreeMap<PathBuf, &Item> = BTreeMap::new();
    for item in &selection.items {
        let file = layout.text_file(item);
        if file == item.path {
            return Err(usage(format!(
                "the caption of {} would replace the picture; choose another --extension",
                item.path.display()
            )));
        }
        if let Some(other) = taken.insert(file.clone(), item) {
            return Err(usage(format!(
                "{} and {} would share the caption file {}; leave one out with --exclude, or \
                 write records with --output FILE.jsonl",
                other.path.display(),
                item.path.display(),
                file.display()
            )));
        }
    }
    Ok(())
}

impl Sink for Sidecars<'_> {
    fn record_path(&self, item: &Item) -> (String, bool) {
        record_path(&self.layout.below(item))
    }

    fn verdict(&self, item: &Item) -> Result<Verdict> {
        let exists = match fs::symlink_metadata(self.layout.text_file(item)) {
            Ok(_) => true,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
            Err(e) => {
                let file = self.layout.text_file(item);
                return Err(e).with_context(|| format!("cannot look at {}", file.display()));
            }
        };
        let known = self.journal(item).known(&self.record_path(item).0);
        Ok(self.rules.verdict(item, known, exists))
    }

    fn write(&mut self, batch: Vec<Finished>) -> Result<()> {
        let mut texts: Vec<(usize, String, PathBuf, String, String)> = Vec::new();
        for Finished { item, mut record } in batch {
            let root = self.root_of[item.root];
            if let Some(caption) = &mut record.caption {
                let file = self.layout.text_file(&item);
                let line = caption.caption.clone();
                let (text, joined) = self.text_of(&item, &caption.caption, &file)?;
                caption.joined = joined;
                record.content = Some(content(text.as_bytes()));
                let shown = clean_line(&item.path.display().to_string());
                let line = format!(
                    "{}  {}\n",
                    self.console.on_out(super::Style::Bold, &shown),
                    clean_line(&line)
                );
                texts.push((root, record.path.clone(), file, text, line));
            }
            self.open[root].journal.append(&record, false)?;
        }
        if self.rules.on_existing.is_joining() {
            // If the machine fails now, the journal must not forget what was joined already.
            for root in &mut self.open {
                root.journal.sync()?;
            }
        }
        for (_, _, file, text, _) in &texts {
            if self.layout.mirror.is_some()
                && let Some(parent) = file.parent()
            {
                fs::create_dir_all(parent)
                    .with_context(|| format!("cannot make the folder {}", parent.display()))?;
            }
            replace(file, text.as_bytes(), &mut self.folders)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        self.folders.flush().context("cannot make a folder durable")?;
        for (i, root) in self.open.iter_mut().enumerate() {
            let paths: Vec<&str> =
                texts.iter().filter(|t| t.0 == i).map(|t| t.1.as_str()).collect();
            root.journal.commit(&paths)?;
            root.journal.sync_if_due()?;
        }
        for (.., line) in &texts {
            self.console.result(line)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        for root in &mut self.open {
            root.journal.sync()?;
        }
        Ok(())
    }
}
