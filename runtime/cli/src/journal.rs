//! What earlier runs did: the records of an output, read back and appended to.
//!
//! A JSONL output is its own journal. Text files have one beside them, `.secateur/journal.jsonl`
//! under the output's root: there a record is written *before* its text file appears, with the
//! hash of that file, and a commit line after it.
//!
//! Invariants
//! - A record without a commit counts only if the file it announces is there with that very
//!   content: a run killed between the two redoes the picture.
//! - The last valid record of a path counts. Paths are the keys, as records spell them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::lines::LineFile;
use crate::record::{ErrorInfo, ReadBack, Record, Stamp};

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
    Failed {
        /// Why.
        error: ErrorInfo,
        /// The file as it was.
        file: Option<Stamp>,
    },
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
struct Commit<'a> {
    schema: &'static str,
    event: &'static str,
    paths: &'a [&'a str],
}

/// The journal of one output.
#[derive(Debug)]
pub(crate) struct Journal {
    /// `None` where the journal is only looked at.
    file: Option<LineFile>,
    known: BTreeMap<String, Known>,
    superseded: usize,
}

impl Journal {
    /// Opens or makes a journal, or only looks at it. `holds` says whether the text file of a path has a content with
    /// that hash; it is asked about records that were not committed.
    ///
    /// # Errors
    /// The file system's, or a file that is no journal.
    pub(crate) fn open(
        path: &Path,
        access: Access,
        holds: impl Fn(&str, &str) -> bool,
    ) -> Result<Self> {
        let mut known: BTreeMap<String, Known> = BTreeMap::new();
        let mut pending: BTreeMap<String, (String, Known)> = BTreeMap::new();
        let mut superseded = 0;
        let visit = |mut object: serde_json::Map<String, serde_json::Value>| {
            if let Some(paths) = object.get("paths").and_then(|p| p.as_array()) {
                for path in paths.iter().filter_map(|p| p.as_str()) {
                    if let Some((_, record)) = pending.remove(path) {
                        known.insert(path.to_owned(), record);
                    }
                }
                return Ok(());
            }
            // The shape of OpenAI's batch output carries the record inside.
            let object = match object.remove("secateur") {
                Some(serde_json::Value::Object(inner)) => inner,
                _ => object,
            };
            let record: ReadBack = serde_json::from_value(serde_json::Value::Object(object))
                .context("not a record of secateur")?;
            let (path, content) = (record.path.clone(), record.content.clone());
            let record = Known::from(record);
            match content {
                Some(content) => {
                    pending.insert(path, (content, record));
                }
                None => {
                    pending.remove(&path);
                    superseded += usize::from(known.insert(path, record).is_some());
                }
            }
            Ok(())
        };
        let file = match access {
            Access::Write => Some(LineFile::open(path, visit)?),
            Access::Look => {
                LineFile::look(path, visit)?;
                None
            }
        };
        for (path, (content, record)) in pending {
            if holds(&path, &content) {
                known.insert(path, record);
            }
        }
        Ok(Self { file, known, superseded })
    }

    /// What is known of a picture.
    pub(crate) fn known(&self, path: &str) -> Option<&Known> {
        self.known.get(path)
    }

    /// Lines that a later line of the same path replaces.
    pub(crate) fn superseded(&self) -> usize {
        self.superseded
    }

    /// Appends a record; one with a content hash waits for [`Journal::commit`].
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn append(&mut self, record: &Record, as_messages: bool) -> Result<()> {
        if let Some(file) = &mut self.file {
            if as_messages {
                file.append(&record.to_messages())?;
            } else {
                file.append(record)?;
            }
        }
        let known = match (&record.caption, &record.error) {
            (Some(c), _) => Known::Ok {
                fingerprints: [c.joined.as_slice(), std::slice::from_ref(&c.fingerprint)].concat(),
                caption: if record.content.is_some() { String::new() } else { c.caption.clone() },
            },
            (None, Some(error)) => Known::Failed { error: error.clone(), file: record.file },
            (None, None) => return Ok(()),
        };
        self.superseded += usize::from(self.known.insert(record.path.clone(), known).is_some());
        Ok(())
    }

    /// Says that the text files of these records are in place.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn commit(&mut self, paths: &[&str]) -> Result<()> {
        match &mut self.file {
            Some(file) if !paths.is_empty() => {
                file.append(&Commit { schema: "secateur.journal/1", event: "commit", paths })
            }
            _ => Ok(()),
        }
    }

    /// Makes everything durable now.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn sync(&mut self) -> Result<()> {
        self.file.as_mut().map_or(Ok(()), LineFile::sync)
    }

    /// Makes everything durable if it is time.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn sync_if_due(&mut self) -> Result<()> {
        self.file.as_mut().map_or(Ok(()), LineFile::sync_if_due)
    }
}

impl From<ReadBack> for Known {
    fn from(record: ReadBack) -> Self {
        if record.status == "ok" {
            let mut fingerprints = record.joined;
            fingerprints.extend(record.fingerprint);
            // The text of a text file is in the file.
            let caption = match record.content {
                Some(_) => String::new(),
                None => record.caption.unwrap_or_default(),
            };
            return Known::Ok { fingerprints, caption };
        }
        let error = record.error.unwrap_or_else(|| {
            ErrorInfo::new(crate::record::ErrorKind::Internal, "the record gives no reason")
        });
        Known::Failed { error, file: record.file }
    }
}

/// Leaves only the last line of each path, and no commit lines: what readers of a JSONL output
/// expect. Lines are kept byte by byte.
///
/// # Errors
/// The file system's; the file then stays as it was.
pub(crate) fn compact(path: &Path) -> Result<()> {
    let cannot = || format!("cannot compact {}", path.display());
    let bytes = std::fs::read(path).with_context(cannot)?;
    let lines: Vec<&[u8]> = bytes.split_inclusive(|&b| b == b'\n').collect();
    let key = |line: &[u8]| -> Option<String> {
        let value: serde_json::Value = serde_json::from_slice(line).ok()?;
        let path = value.get("path").or_else(|| value.get("custom_id"))?;
        Some(path.as_str()?.to_owned())
    };
    let mut last: BTreeMap<String, usize> = BTreeMap::new();
    for (i, line) in lines.iter().enumerate() {
        if let Some(key) = key(line) {
            last.insert(key, i);
        }
    }
    let mut keep: Vec<usize> = last.into_values().collect();
    keep.sort_unstable();
    let kept: Vec<u8> = keep.iter().flat_map(|&i| lines[i].iter().copied()).collect();
    crate::write::replace_one(path, &kept).with_context(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Caption, ErrorKind, ImageInfo, Milliseconds, Tokens};
    use secateur_core::decode::FinishReason;

    fn record(index: usize, path: &str, text: &str, content: Option<&str>) -> Record {
        let caption = Caption {
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
        };
        let mut record = Record::ok(index, (path.into(), false), caption);
        record.content = content.map(str::to_owned);
        record
    }

    fn journal(folder: &tempfile::TempDir, holds: bool) -> Journal {
        Journal::open(&folder.path().join("j.jsonl"), Access::Write, |_, _| holds).unwrap()
    }

    #[test]
    fn a_record_counts_once_committed_or_once_its_file_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = journal(&folder, false);
        first.append(&record(0, "a", "x", Some("b3:a")), false).unwrap();
        first.append(&record(1, "b", "y", Some("b3:b")), false).unwrap();
        first.commit(&["a"]).unwrap();
        drop(first);
        let without = journal(&folder, false);
        assert!(without.known("a").is_some() && without.known("b").is_none());
        let with = journal(&folder, true);
        assert!(with.known("a").is_some() && with.known("b").is_some());
    }

    #[test]
    fn a_later_commit_does_not_revive_a_record_of_a_killed_run() {
        let folder = tempfile::tempdir().unwrap();
        journal(&folder, false).append(&record(0, "a", "x", Some("b3:a")), false).unwrap();
        let mut next = journal(&folder, false);
        next.append(&record(1, "b", "y", Some("b3:b")), false).unwrap();
        next.commit(&["b"]).unwrap();
        assert!(journal(&folder, false).known("a").is_none());
    }

    #[test]
    fn both_shapes_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = journal(&folder, false);
        first.append(&record(0, "a", "x", None), false).unwrap();
        first.append(&record(1, "b", "y", None), true).unwrap();
        let failed = ErrorInfo::new(ErrorKind::ImageCorrupt, "bad");
        first.append(&Record::error(2, ("c".into(), false), failed.clone(), None), true).unwrap();
        let again = journal(&folder, false);
        let ok = |text: &str| Known::Ok { fingerprints: vec!["b3:1".into()], caption: text.into() };
        assert_eq!(again.known("a"), Some(&ok("x")));
        assert_eq!(again.known("b"), Some(&ok("y")));
        assert_eq!(again.known("c"), Some(&Known::Failed { error: failed, file: None }));
    }

    #[test]
    fn compacting_leaves_the_last_line_of_each_path() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = journal(&folder, false);
        for text in ["old", "new"] {
            first.append(&record(0, "a", text, None), false).unwrap();
        }
        first.append(&record(1, "b", "y", None), false).unwrap();
        assert_eq!(first.superseded(), 1);
        compact(&folder.path().join("j.jsonl")).unwrap();
        let again = journal(&folder, false);
        assert_eq!(again.superseded(), 0);
        assert!(matches!(again.known("a"), Some(Known::Ok { caption, .. }) if caption == "new"));
        assert!(again.known("b").is_some());
    }

    #[test]
    fn a_record_that_is_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("j.jsonl");
        crate::write::replace_one(&path, b"{\"a\":1}\n{\"a\":2}\n").unwrap();
        let error = format!("{:#}", Journal::open(&path, Access::Write, |_, _| true).unwrap_err());
        assert!(error.contains("line 1") && error.contains("not a record"), "{error}");
    }
}
