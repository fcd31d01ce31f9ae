//! Captions as text files, beside the pictures or in a mirror of their tree.
//!
//! A text file has one picture and a picture one text file in an output, whatever root it was
//! reached by: what an earlier run made is found by the picture's place, and a text file of another
//! picture is an error before anything runs.
//!
//! Order of a batch: records to the journal, text files by renaming, folders made durable, commit
//! line. Killed anywhere in between, the next run finds each text file whole, old or new, and
//! knows which (see [`crate::journal`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use super::Console;
use super::clean::clean_line;
use super::layout::{Layout, Place};
use super::sink::{Finished, Rules, Sink, Verdict};
use crate::fingerprint::content;
use crate::journal::{Access, Entry, Journal, Keyed, Known};
use crate::lock::Lock;
use crate::outcome::usage;
use crate::own;
use crate::state::{self, States};
use crate::walk::{Item, Selection, encoded, record_path};
use crate::write::{FolderSync, replace};

/// A folder with state: journal and lock.
#[derive(Debug)]
struct Home {
    path: PathBuf,
    journal: Journal,
    _lock: Option<Lock>,
}

/// The text file of an item.
#[derive(Clone, Debug)]
struct Output {
    /// Index into the homes.
    home: usize,
    /// Below the home.
    key: PathBuf,
    /// Where it is.
    file: PathBuf,
    /// The picture, as records spell it.
    path: (String, bool),
}

/// Text files.
pub(crate) struct Sidecars<'a> {
    console: &'a Console,
    layout: Layout,
    /// One an item.
    outputs: Vec<Output>,
    homes: Vec<Home>,
    rules: Rules,
    folders: FolderSync,
}

impl<'a> Sidecars<'a> {
    /// Opens (or makes) the journals of all text files and takes their locks.
    ///
    /// # Errors
    /// Two pictures with one text file, a second writer, links where a file of ours would be, the
    /// file system's.
    pub(crate) fn open(
        console: &'a Console,
        selection: &Selection,
        mirror: Option<&Path>,
        extension: &str,
        access: Access,
        rules: Rules,
    ) -> Result<Self> {
        if let (Some(mirror), Access::Write) = (mirror, access) {
            fs::create_dir_all(mirror)
                .with_context(|| format!("cannot make the folder {}", mirror.display()))?;
        }
        let layout = Layout::new(selection, mirror, extension);
        let places: Vec<Place> = selection.items.iter().map(|item| layout.place(item)).collect();
        refuse_collisions(selection, &places)?;
        let mut states: BTreeMap<&Path, States> = BTreeMap::new();
        let mut of_item = Vec::new();
        let mut checked: BTreeSet<(&Path, &Path)> = BTreeSet::new();
        for place in &places {
            let folder = place.below.parent().unwrap_or(Path::new(""));
            if checked.insert((&place.root, folder)) {
                own::check_folders(&place.root, folder)
                    .context("captions cannot be written there; --output names another folder")?;
            }
            let states = states.entry(&place.root).or_insert_with(|| States::new(&place.root));
            of_item.push(states.of(&place.root.join(folder))?);
        }
        let needed: BTreeSet<&PathBuf> = of_item.iter().collect();
        // A picture of a folder that is not there fails, and makes no folder.
        let access_to = |home: &Path| if home.is_dir() { access } else { Access::Look };
        let mut locks = Vec::new();
        for home in &needed {
            locks.push(lock(home, access_to(home))?);
        }
        let made: Vec<PathBuf> = needed.iter().map(|home| (*home).clone()).collect();
        for states in states.values().filter(|_| access == Access::Write) {
            if !states.is_unchanged(&made)? {
                return Err(anyhow!(
                    "another process has just begun to write to a part of the same folders; run \
                     the same command again"
                ));
            }
        }
        let mut outputs: Vec<Output> = Vec::new();
        for ((item, place), home) in selection.items.iter().zip(&places).zip(&of_item) {
            outputs.push(output(item, place, home, made.binary_search(home).unwrap_or(0)));
        }
        let mut homes = Vec::new();
        for (i, (path, lock)) in made.into_iter().zip(locks).enumerate() {
            let files: BTreeMap<&Path, &Path> = outputs
                .iter()
                .filter(|output| output.home == i)
                .map(|output| (&*output.key, &*output.file))
                .collect();
            let holds = |key: &Path, hash: &str| {
                let below = path.join(key);
                let bytes = own::read(files.get(key).copied().unwrap_or(&below));
                bytes.ok().flatten().is_some_and(|bytes| content(&bytes) == hash)
            };
            let keyed = Keyed::Text { extension: layout.extension() };
            let file = path.join(state::FOLDER).join("journal.jsonl");
            let mut journal = Journal::open(&file, access_to(&path), keyed, holds)?;
            journal.begin(&path)?;
            homes.push(Home { path, journal, _lock: lock });
        }
        let folders = FolderSync::default();
        let mut sidecars = Self { console, layout, outputs, homes, rules, folders };
        sidecars.keep_places(selection);
        sidecars.refuse_strangers(selection)?;
        Ok(sidecars)
    }

    /// A picture that has its text file in this output already, because it was reached by another
    /// root, keeps it: one caption a picture.
    fn keep_places(&mut self, selection: &Selection) {
        if !self.layout.is_mirror() {
            return;
        }
        let mut kept: Vec<(&Item, PathBuf)> = Vec::new();
        for (item, output) in selection.items.iter().zip(&mut self.outputs) {
            let home = &self.homes[output.home];
            let Some(key) = home.journal.key_of(&item.place).filter(|key| **key != output.key)
            else {
                continue;
            };
            let file = home.path.join(key);
            let is_ours =
                key.as_os_str().as_encoded_bytes().ends_with(self.layout.extension().as_bytes())
                    && file.symlink_metadata().is_ok_and(|meta| meta.is_file());
            if let Some(entry) = home.journal.get(key).filter(|_| is_ours) {
                output.path = entry.path.clone();
                output.key = key.to_path_buf();
                output.file.clone_from(&file);
                kept.push((item, file));
            }
        }
        if let [(item, file), ..] = &*kept {
            self.console.note(&format!(
                "{} pictures have their caption elsewhere in this output, where it stays: {} in {}",
                kept.len(),
                clean_line(&item.path.display().to_string()),
                clean_line(&file.display().to_string())
            ));
        }
    }

    /// A text file that an earlier run made for another picture is not taken for this one's.
    fn refuse_strangers(&self, selection: &Selection) -> Result<()> {
        for (item, output) in selection.items.iter().zip(&self.outputs) {
            let home = &self.homes[output.home];
            let Some(entry) = home.journal.get(&output.key) else { continue };
            let other = if self.layout.is_mirror() {
                entry.place().filter(|place| *place != item.place)
            } else {
                // Beside the pictures, the folder may be a copy: what counts is the name.
                let other = crate::walk::decoded(&entry.path.0, entry.path.1);
                (entry.path != output.path).then(|| home.path.join(other))
            };
            // What is gone was moved here, or made into this file.
            if let Some(other) = other.filter(|other| other.symlink_metadata().is_ok())
                && matches!(entry.known, Known::Ok { .. })
                && output.file.symlink_metadata().is_ok()
            {
                return Err(shared(&other, item, &output.file));
            }
        }
        Ok(())
    }

    fn entry(&self, item: &Item) -> Option<&Entry> {
        let output = &self.outputs[item.index];
        self.homes[output.home].journal.get(&output.key)
    }

    /// What the text file will hold, and the fingerprints of what it is joined to.
    fn text_of(&self, item: &Item, caption: &str) -> Result<(String, Vec<String>)> {
        if !self.rules.on_existing.is_joining() {
            return Ok((format!("{caption}\n"), Vec::new()));
        }
        let old = self.old_text(item)?.unwrap_or_default();
        let joined = match self.entry(item).map(|entry| &entry.known) {
            Some(Known::Ok { fingerprints, .. }) if !old.is_empty() => fingerprints.clone(),
            _ => Vec::new(),
        };
        Ok((format!("{}\n", self.rules.join(old.trim_end(), caption)), joined))
    }

    /// The text that is joined to. A link is not read: it may lead to what nobody meant to copy.
    fn old_text(&self, item: &Item) -> Result<Option<String>> {
        let file = &self.outputs[item.index].file;
        let cannot = || format!("cannot read {}", file.display());
        let bytes = own::read(file).with_context(cannot)?;
        bytes.map(String::from_utf8).transpose().with_context(cannot)
    }
}

/// Makes a state folder and takes its lock.
fn lock(home: &Path, access: Access) -> Result<Option<Lock>> {
    if access == Access::Look {
        return Ok(None);
    }
    own::make_folders(home, Path::new(state::FOLDER))
        .with_context(|| format!("cannot make the state folder in {}", home.display()))?;
    Lock::take(&home.join(state::FOLDER).join("lock"), home).map(Some)
}

fn output(item: &Item, place: &Place, home: &Path, index: usize) -> Output {
    let file = place.root.join(&place.below);
    let key = file.strip_prefix(home).unwrap_or(&file).to_path_buf();
    let name = item.path.file_name().unwrap_or_default();
    Output { home: index, path: record_path(&key.with_file_name(name)), key, file }
}

fn shared(other: &Path, item: &Item, file: &Path) -> anyhow::Error {
    usage(format!(
        "{} and {} would share the caption file {}; leave one out with --exclude, name both \
         folders in one command, or write records with --output FILE.jsonl",
        other.display(),
        item.path.display(),
        file.display()
    ))
}

fn refuse_collisions(selection: &Selection, places: &[Place]) -> Result<()> {
    let mut taken: BTreeMap<PathBuf, &Item> = BTreeMap::new();
    for (item, place) in selection.items.iter().zip(places) {
        let file = place.root.join(&place.below);
        if file == item.place {
            return Err(usage(format!(
                "the caption of {} would replace the picture; choose another --extension",
                item.path.display()
            )));
        }
        if let Some(other) = taken.insert(file.clone(), item) {
            return Err(shared(&other.path, item, &file));
        }
    }
    Ok(())
}

impl Sink for Sidecars<'_> {
    fn record_path(&self, item: &Item) -> (String, bool) {
        self.outputs[item.index].path.clone()
    }

    fn verdict(&self, item: &Item) -> Result<Verdict> {
        let file = &self.outputs[item.index].file;
        let exists = match fs::symlink_metadata(file) {
            Ok(_) => true,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
            Err(e) => {
                return Err(e).with_context(|| format!("cannot look at {}", file.display()));
            }
        };
        let verdict = self.rules.verdict(item, self.entry(item), exists);
        if exists && verdict == Verdict::Todo && self.rules.on_existing.is_joining() {
            // What cannot be joined to is said before anything runs.
            self.old_text(item)?;
        }
        Ok(verdict)
    }

    fn write(&mut self, batch: Vec<Finished>) -> Result<()> {
        let mut texts: Vec<(Output, String, String, String)> = Vec::new();
        for Finished { item, mut record } in batch {
            let output = self.outputs[item.index].clone();
            let key = encoded(&output.key, record.path_encoding.is_some());
            if let Some(caption) = &mut record.caption {
                let line = caption.caption.clone();
                let (text, joined) = self.text_of(&item, &caption.caption)?;
                caption.joined = joined;
                record.content = Some(content(text.as_bytes()));
                let shown = clean_line(&item.path.display().to_string());
                let line = format!(
                    "{}  {}\n",
                    self.console.on_out(super::Style::Bold, &shown),
                    clean_line(&line)
                );
                texts.push((output.clone(), key.clone(), text, line));
            }
            record.text = Some(key);
            self.homes[output.home].journal.append(&output.key, &record, false)?;
        }
        if self.rules.on_existing.is_joining() {
            // If the machine fails now, the journal must not forget what was joined already.
            for home in &mut self.homes {
                home.journal.sync()?;
            }
        }
        for (output, _, text, _) in &texts {
            let file = &output.file;
            let home = &self.homes[output.home].path;
            if let Some(parent) = file.parent().and_then(|parent| parent.strip_prefix(home).ok()) {
                // Looked at again: links may have come since.
                own::make_folders(home, parent)
                    .with_context(|| format!("cannot write {}", file.display()))?;
            }
            replace(file, text.as_bytes(), &mut self.folders)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        self.folders.flush().context("cannot make a folder durable")?;
        for (i, home) in self.homes.iter_mut().enumerate() {
            let keys: Vec<&str> =
                texts.iter().filter(|t| t.0.home == i).map(|t| t.1.as_str()).collect();
            home.journal.commit(&keys)?;
            home.journal.sync_if_due()?;
        }
        for (.., line) in &texts {
            self.console.result(line)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        for home in &mut self.homes {
            home.journal.sync()?;
        }
        Ok(())
    }
}
