//! What earlier runs did: the records of an output, read back and appended to.
//!
//! A JSONL output is its own journal. Text files have one in the folder that holds their state
//! ([`crate::state`]), `.secateur/journal.jsonl`: there a record is written *before* its text file
//! appears, with the hash of that file, and a commit line after it.
//!
//! Invariants
//! - A record without a commit counts only if the file it announces is there with that very
//!   content: a run killed between the two redoes the picture.
//! - The last valid record of a key counts. In a JSONL output the key is the place of the picture
//!   ([`crate::identity`]), in a journal of text files it is the text file.
//! - A record of an earlier version, which says no place, is the one of a picture of its path.
//! - Compacting takes away those lines alone that a later one replaces.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::identity::FileInfo;
use crate::lines::LineFile;
use crate::record::{ErrorInfo, ReadBack, Record};
use crate::walk::decoded;

/// What is known of one picture.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Known {
    /// It has a caption.
    Ok {
        /// Settings of the caption; the last is the newest, the others are what it was joined to.
        fingerprints: Vec<String>,
        /// The text, where the journal is the output.
        caption: String,
    },
    /// It failed.
    Failed(ErrorInfo),
}

/// A record as a journal knows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// What became of the picture.
    pub(crate) known: Known,
    /// Its path, as the record spells it, and whether bytes of it are percent-encoded.
    pub(crate) path: (String, bool),
    /// The picture as it was.
    pub(crate) file: FileInfo,
    /// Where the line stands.
    line: Range<u64>,
}

impl Entry {
    /// Where the picture was; `None` in records of versions that did not say so.
    pub(crate) fn place(&self) -> Option<PathBuf> {
        self.file.place(&self.path.0, self.path.1)
    }

    #[cfg(test)]
    pub(crate) fn for_tests(known: Known, file: FileInfo) -> Self {
        Self { known, path: ("x.png".into(), false), file, line: 0..0 }
    }
}

/// By what the records of a journal are told apart.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keyed<'a> {
    /// The place of the picture: a JSONL output.
    Place,
    /// The text file, below the folder of the journal; records of earlier versions do not name it
    /// and are taken for those of the ending of this run.
    Text {
        /// The ending, with its dot.
        extension: &'a str,
    },
}

impl Keyed<'_> {
    fn key(self, entry: &Entry, text: Option<&str>) -> PathBuf {
        let path = || decoded(&entry.path.0, entry.path.1);
        match self {
            // A path below a root is no absolute path: the two kinds of keys do not meet.
            Keyed::Place => entry.place().unwrap_or_else(path),
            Keyed::Text { extension } => match text {
                Some(text) => decoded(text, entry.path.1),
                None => text_file(&path(), extension),
            },
        }
    }
}

/// The text file of a picture: its ending replaced.
pub(crate) fn text_file(picture: &Path, extension: &str) -> PathBuf {
    let mut name = picture.file_stem().unwrap_or_default().to_owned();
    name.push(extension);
    picture.with_file_name(name)
}

/// Whether a journal is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Made if it is not there, a torn line cut off.
    Write,
    /// Left exactly as it is.
    Look,
}

#[derive(Serialize)]
struct Head<'a> {
    schema: &'static str,
    event: &'static str,
    root: &'a str,
}

#[derive(Serialize)]
struct Commit<'a> {
    schema: &'static str,
    event: &'static str,
    texts: &'a [&'a str],
}

const SCHEMA: &str = "secateur.journal/1";

/// The journal of one output.
#[derive(Debug)]
pub(crate) struct Journal {
    /// `None` where the journal is only looked at.
    file: Option<LineFile>,
    by_place: bool,
    entries: BTreeMap<PathBuf, Entry>,
    /// Keys by the path that their records say.
    by_path: BTreeMap<String, BTreeSet<PathBuf>>,
    /// Keys by the place of their pictures.
    places: BTreeMap<PathBuf, PathBuf>,
    superseded: usize,
    is_new: bool,
}

/// A record whose text file may not be in place.
type Pending = BTreeMap<PathBuf, (String, Entry)>;

impl Journal {
    /// Opens or makes a journal, or only looks at it. `holds` says whether a text file (below the
    /// folder of the journal) has a content with that hash; it is asked about records that were not
    /// committed.
    ///
    /// # Errors
    /// The file system's, or a file that is no journal.
    pub(crate) fn open(
        path: &Path,
        access: Access,
        keyed: Keyed<'_>,
        holds: impl Fn(&Path, &str) -> bool,
    ) -> Result<Self> {
        let mut journal = Self {
            file: None,
            by_place: matches!(keyed, Keyed::Place),
            entries: BTreeMap::new(),
            by_path: BTreeMap::new(),
            places: BTreeMap::new(),
            superseded: 0,
            is_new: true,
        };
        let mut pending = Pending::new();
        let visit = |object, line| journal.read_line(object, line, keyed, &mut pending);
        let file = match access {
            Access::Write => Some(LineFile::open(path, visit)?),
            Access::Look => {
                LineFile::look(path, visit)?;
                None
            }
        };
        for (key, (content, entry)) in pending {
            if holds(&key, &content) {
                journal.put(key, entry);
            }
        }
        journal.file = file;
        Ok(journal)
    }

    fn read_line(
        &mut self,
        mut object: serde_json::Map<String, serde_json::Value>,
        line: Range<u64>,
        keyed: Keyed<'_>,
        pending: &mut Pending,
    ) -> Result<()> {
        self.is_new = false;
        if object.get("schema").is_some_and(|schema| schema == SCHEMA) {
            let names = |key: &str| {
                let names = object.get(key).and_then(|names| names.as_array());
                names.into_iter().flatten().filter_map(|name| name.as_str())
            };
            // Earlier versions name pictures here, and wrote of no text file twice.
            let texts: BTreeSet<&str> = names("texts").collect();
            let paths: BTreeSet<&str> = names("paths").collect();
            let is_named = |key: &Path, entry: &Entry| {
                texts.contains(&*crate::walk::encoded(key, entry.path.1))
                    || paths.contains(&*entry.path.0)
            };
            let done = pending.extract_if(.., |key, (_, entry)| is_named(key, entry));
            for (key, (_, entry)) in done.collect::<Vec<_>>() {
                self.put(key, entry);
            }
            return Ok(());
        }
        // The shape of OpenAI's batch output carries the record inside.
        let object = match object.remove("secateur") {
            Some(serde_json::Value::Object(inner)) => inner,
            _ => object,
        };
        let mut record: ReadBack = serde_json::from_value(serde_json::Value::Object(object))
            .context("not a record of secateur")?;
        let entry = Entry {
            path: (record.path.clone(), record.path_encoding.is_some()),
            file: record.file.take().unwrap_or_default(),
            line,
            known: Known::Failed(ErrorInfo::new(
                crate::record::ErrorKind::Internal,
                "the record gives no reason",
            )),
        };
        let key = keyed.key(&entry, record.text.as_deref());
        let content = record.content.clone();
        let entry = Entry { known: known(record).unwrap_or(entry.known), ..entry };
        match content {
            Some(content) => {
                pending.insert(key, (content, entry));
            }
            None => {
                pending.remove(&key);
                self.put(key, entry);
            }
        }
        Ok(())
    }

    fn put(&mut self, key: PathBuf, entry: Entry) {
        if let Some(place) = entry.place() {
            self.places.insert(place, key.clone());
            if self.by_place {
                // What a record of an earlier version says is said again here.
                self.forget(&decoded(&entry.path.0, entry.path.1));
            }
        }
        self.by_path.entry(entry.path.0.clone()).or_default().insert(key.clone());
        self.superseded += usize::from(self.entries.insert(key, entry).is_some());
    }

    /// The record under a key.
    pub(crate) fn get(&self, key: &Path) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// The key of the record of the picture at a place.
    pub(crate) fn key_of(&self, place: &Path) -> Option<&Path> {
        self.places.get(place).map(PathBuf::as_path)
    }

    /// The record of the picture at a place, whose path is spelled `path`, with its key: the one of
    /// that place; else the one of that path, if it says no place, or if nothing is left at its
    /// place and it is of this content: the folder was moved.
    pub(crate) fn find(&self, place: &Path, path: &str) -> Option<(&Path, &Entry)> {
        let pair = |key: &PathBuf| {
            self.entries.get_key_value(key).map(|(key, entry)| (key.as_path(), entry))
        };
        let is_same = |entry: &Entry| match entry.place() {
            None => true,
            Some(old) => {
                old.symlink_metadata().is_err() && entry.file.is_held_by(place) == Some(true)
            }
        };
        pair(&place.to_path_buf()).or_else(|| {
            let mut named = self.by_path.get(path)?.iter().filter_map(pair);
            named.find(|(_, entry)| is_same(entry))
        })
    }

    /// Records that say no place: those of earlier versions.
    pub(crate) fn without_place(&self) -> usize {
        self.entries.values().filter(|entry| entry.place().is_none()).count()
    }

    /// Lines that a later line replaces.
    pub(crate) fn superseded(&self) -> usize {
        self.superseded
    }

    /// Begins a journal of text files with the folder that it is of.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn begin(&mut self, root: &Path) -> Result<()> {
        let root = crate::walk::record_path(root).0;
        match &mut self.file {
            Some(file) if std::mem::take(&mut self.is_new) => {
                file.append(&Head { schema: SCHEMA, event: "head", root: &root }).map(|_| ())
            }
            _ => Ok(()),
        }
    }

    /// Lets the record of a key be replaced by one under another key.
    pub(crate) fn forget(&mut self, key: &Path) {
        self.superseded += usize::from(self.entries.remove(key).is_some());
    }

    /// Appends a record; one with a content hash waits for [`Journal::commit`].
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn append(&mut self, key: &Path, record: &Record, as_messages: bool) -> Result<()> {
        let mut line = 0..0;
        if let Some(file) = &mut self.file {
            line = if as_messages {
                file.append(&record.to_messages())?
            } else {
                file.append(record)?
            };
        }
        let known = match (&record.caption, &record.error) {
            (Some(c), _) => Known::Ok {
                fingerprints: [c.joined.as_slice(), std::slice::from_ref(&c.fingerprint)].concat(),
                caption: if record.content.is_some() { String::new() } else { c.caption.clone() },
            },
            (None, Some(error)) => Known::Failed(error.clone()),
            (None, None) => return Ok(()),
        };
        let path = (record.path.clone(), record.path_encoding.is_some());
        self.put(key.to_path_buf(), Entry { known, path, file: record.file.clone(), line });
        Ok(())
    }

    /// Says that these text files are in place.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn commit(&mut self, texts: &[&str]) -> Result<()> {
        match &mut self.file {
            Some(file) if !texts.is_empty() => {
                file.append(&Commit { schema: SCHEMA, event: "commit", texts }).map(|_| ())
            }
            _ => Ok(()),
        }
    }

    /// Makes everything durable now.
    ///
    /// # Errors
    /// The file system's; a journal that was removed meanwhile.
    pub(crate) fn sync(&mut self) -> Result<()> {
        self.file.as_mut().map_or(Ok(()), LineFile::sync)
    }

    /// Makes everything durable if it is time.
    ///
    /// # Errors
    /// As [`Journal::sync`].
    pub(crate) fn sync_if_due(&mut self) -> Result<()> {
        self.file.as_mut().map_or(Ok(()), LineFile::sync_if_due)
    }

    /// Leaves only the line of each record that counts: what readers of a JSONL output expect.
    /// Lines are kept byte by byte.
    ///
    /// # Errors
    /// The file system's; the file then stays as it was.
    pub(crate) fn compact(mut self, path: &Path) -> Result<()> {
        let cannot = || format!("cannot compact {}", path.display());
        let Some(file) = &mut self.file else { return Ok(()) };
        let bytes = file.bytes().with_context(cannot)?;
        let mut lines: Vec<&Range<u64>> = self.entries.values().map(|entry| &entry.line).collect();
        lines.sort_unstable_by_key(|line| line.start);
        let mut kept = Vec::with_capacity(bytes.len());
        for line in lines {
            let line = usize::try_from(line.start)?..usize::try_from(line.end)?;
            kept.extend_from_slice(bytes.get(line).context("a line is gone").with_context(cannot)?);
            if !kept.ends_with(b"\n") {
                kept.push(b'\n');
            }
        }
        crate::write::replace_one(path, &kept).with_context(cannot)
    }
}

fn known(record: ReadBack) -> Option<Known> {
    if record.status != "ok" {
        return record.error.map(Known::Failed);
    }
    let mut fingerprints = record.joined;
    fingerprints.extend(record.fingerprint);
    // The text of a text file is in the file.
    let caption = match record.content {
        Some(_) => String::new(),
        None => record.caption.unwrap_or_default(),
    };
    Some(Known::Ok { fingerprints, caption })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Caption, ErrorKind, ImageInfo, Milliseconds, Tokens};
    use secateur_core::decode::FinishReason;

    fn caption(text: &str) -> Caption {
        Caption {
            caption: text.into(),
            finish_reason: FinishReason::Stop,
            model: "m".into(),
            prune: "none".into(),
            fingerprint: "b3:1".into(),
            joined: Vec::new(),
            seed: 0,
            image: ImageInfo { width: 1, height: 1, frames: 1, exif_orientation: 1 },
            tokens: Tokens::default(),
            ms: Milliseconds::default(),
            batch: 1,
        }
    }

    fn file(root: &str) -> FileInfo {
        serde_json::from_value(serde_json::json!({"root": root})).unwrap()
    }

    fn record(path: &str, text: &str) -> Record {
        Record::ok(0, (path.into(), false), FileInfo::default(), caption(text))
    }

    /// A record of a text file that is announced.
    fn announced(path: &str, text: &str) -> Record {
        Record { text: Some(text.into()), content: Some("b3:x".into()), ..record(path, "x") }
    }

    const TEXT: Keyed<'static> = Keyed::Text { extension: ".txt" };

    fn open(folder: &tempfile::TempDir, keyed: Keyed<'_>, holds: bool) -> Journal {
        Journal::open(&folder.path().join("j.jsonl"), Access::Write, keyed, |_, _| holds).unwrap()
    }

    fn texts(journal: &Journal) -> Vec<(&Path, &str)> {
        let text = |entry: &'_ Entry| match &entry.known {
            Known::Ok { caption, .. } => caption.clone().leak() as &str,
            Known::Failed(_) => "failed",
        };
        journal.entries.iter().map(|(key, entry)| (key.as_path(), text(entry))).collect()
    }

    #[test]
    fn a_record_counts_once_committed_or_once_its_file_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = open(&folder, TEXT, false);
        first.begin(Path::new("/p")).unwrap();
        for name in ["a", "b"] {
            let text = format!("{name}.txt");
            first
                .append(Path::new(&text), &announced(&format!("{name}.png"), &text), false)
                .unwrap();
        }
        first.commit(&["a.txt"]).unwrap();
        drop(first);
        let is_known = |journal: &Journal, key: &str| journal.get(Path::new(key)).is_some();
        let without = open(&folder, TEXT, false);
        assert!(is_known(&without, "a.txt") && !is_known(&without, "b.txt"));
        let with = open(&folder, TEXT, true);
        assert!(is_known(&with, "a.txt") && is_known(&with, "b.txt"));
    }

    #[test]
    fn a_later_commit_does_not_revive_a_record_of_a_killed_run() {
        let folder = tempfile::tempdir().unwrap();
        let append = |journal: &mut Journal, path: &str, text: &str| {
            journal.append(Path::new(text), &announced(path, text), false).unwrap();
        };
        append(&mut open(&folder, TEXT, false), "a.png", "a.txt");
        let mut next = open(&folder, TEXT, false);
        // The same picture with another ending is another text file.
        append(&mut next, "a.png", "a.cap");
        next.commit(&["a.cap"]).unwrap();
        let again = open(&folder, TEXT, false);
        assert!(again.get(Path::new("a.txt")).is_none() && again.get(Path::new("a.cap")).is_some());
    }

    #[test]
    fn journals_of_earlier_versions_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let lines = concat!(
            r#"{"path":"s/a.png","status":"ok","caption":"x","fingerprint":"b3:1","content":"b3:x"}"#,
            "\n",
            r#"{"schema":"secateur.journal/1","event":"commit","paths":["s/a.png"]}"#,
            "\n",
            r#"{"path":"b.png","status":"error","file":{"size":3,"mtime_ns":4}}"#,
            "\n"
        );
        crate::write::replace_one(&folder.path().join("j.jsonl"), lines.as_bytes()).unwrap();
        let journal = open(&folder, TEXT, false);
        assert!(matches!(
            journal.get(Path::new("s/a.txt")).unwrap().known,
            Known::Ok { ref fingerprints, .. } if fingerprints == &["b3:1"]
        ));
        assert!(matches!(journal.get(Path::new("b.txt")).unwrap().known, Known::Failed(_)));
        assert_eq!(open(&folder, Keyed::Place, true).without_place(), 2);
    }

    #[test]
    fn both_shapes_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = open(&folder, Keyed::Place, false);
        let failed = ErrorInfo::new(ErrorKind::ImageCorrupt, "bad");
        let failed = Record::error(2, ("c".into(), false), FileInfo::default(), failed);
        for (record, as_messages) in
            [(record("a", "x"), false), (record("b", "y"), true), (failed, true)]
        {
            first.append(Path::new(&record.path), &record, as_messages).unwrap();
        }
        drop(first);
        let again = open(&folder, Keyed::Place, false);
        let path = |name| Path::new(name);
        assert_eq!(texts(&again), [(path("a"), "x"), (path("b"), "y"), (path("c"), "failed")]);
    }

    #[test]
    fn pictures_of_two_folders_are_told_apart_and_a_moved_one_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["a", "b"] {
            std::fs::create_dir(at(name)).unwrap();
            crate::write::replace_one(&at(name).join("x.png"), name.as_bytes()).unwrap();
        }
        let mut journal = open(&folder, Keyed::Place, false);
        for name in ["a", "b"] {
            let place = at(name).join("x.png");
            let item = crate::walk::Item {
                index: 0,
                path: place.clone(),
                root: 0,
                relative: "x.png".into(),
                place: place.clone(),
            };
            let stamp = crate::identity::Stamp::of(&place);
            let file = FileInfo::new(&item, &at(name), &("x.png".into(), false), stamp);
            journal.append(&place, &Record { file, ..record("x.png", name) }, false).unwrap();
        }
        assert_eq!(journal.superseded(), 0);
        let find = |name: &str| {
            let place = at(name).join("x.png");
            journal.find(&place, "x.png").map(|(key, _)| key.to_path_buf())
        };
        assert_eq!(find("a"), Some(at("a").join("x.png")));
        std::fs::create_dir(at("copy")).unwrap();
        std::fs::copy(at("a").join("x.png"), at("copy").join("x.png")).unwrap();
        // The original is there: a copy is another picture.
        assert_eq!(find("copy"), None);
        std::fs::rename(at("b"), at("moved")).unwrap();
        assert_eq!(find("moved"), Some(at("b").join("x.png")));
    }

    #[test]
    fn compacting_leaves_the_last_line_of_each_picture() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = open(&folder, Keyed::Place, false);
        let placed = |root: &str, text: &str| Record { file: file(root), ..record("x.png", text) };
        // The first says no place, and the second is the same picture.
        first.append(Path::new("x.png"), &record("x.png", "oldest"), false).unwrap();
        for (root, text) in [("/a", "old"), ("/a", "new"), ("/b", "other")] {
            first.append(&Path::new(root).join("x.png"), &placed(root, text), false).unwrap();
        }
        assert_eq!(first.superseded(), 2);
        first.compact(&folder.path().join("j.jsonl")).unwrap();
        let again = open(&folder, Keyed::Place, false);
        assert_eq!(again.superseded(), 0);
        let path = |name| Path::new(name);
        assert_eq!(texts(&again), [(path("/a/x.png"), "new"), (path("/b/x.png"), "other")]);
    }

    #[test]
    fn a_record_that_is_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("j.jsonl");
        crate::write::replace_one(&path, b"{\"a\":1}\n{\"a\":2}\n").unwrap();
        let error = Journal::open(&path, Access::Write, TEXT, |_, _| true).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("line 1") && error.contains("not a record"), "{error}");
    }
}
