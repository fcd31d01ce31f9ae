//! Which picture a record is of: the same place, and the same content.
//!
//! A place is the real path of the folder, links resolved, and the name in it: whatever was typed
//! to reach a picture, it is one. Content is known by size and modification time, and by a hash
//! where those differ (a copy, a checkout). A record says both in its `file`.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fingerprint;
use crate::walk::{Item, decoded, encoded, record_path};

/// A picture as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Bytes; of a folder of frames, of all of them.
    pub(crate) size: u64,
    /// Modification time, nanoseconds since 1970; of a folder of frames, the last one.
    pub(crate) mtime_ns: u64,
    /// Hash of the content.
    pub(crate) hash: String,
}

impl Stamp {
    /// The stamp of a file or a folder of frames; `None` if it cannot be looked at.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let (size, mtime_ns) = quick(path)?;
        Some(Self { size, mtime_ns, hash: hash(path)? })
    }
}

/// Size and time, which cost no reading.
fn quick(path: &Path) -> Option<(u64, u64)> {
    let of_file = |path: &Path| {
        let meta = fs::metadata(path).ok().filter(|meta| meta.is_file())?;
        let since = meta.modified().ok()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Some((meta.len(), u64::try_from(since.as_nanos()).ok()?))
    };
    if !path.is_dir() {
        return of_file(path);
    }
    let frames = crate::named::pictures_of(path).ok()?;
    frames.iter().map(|frame| of_file(frame)).try_fold((0u64, 0), |(size, time), frame| {
        let frame = frame?;
        Some((size.saturating_add(frame.0), time.max(frame.1)))
    })
}

fn hash(path: &Path) -> Option<String> {
    if !path.is_dir() {
        return fingerprint::picture(path).ok();
    }
    let frames = crate::named::pictures_of(path).ok()?;
    let parts: Option<Vec<String>> = frames
        .iter()
        .map(|frame| {
            let name = record_path(Path::new(frame.file_name()?)).0;
            Some(format!("{name}\0{}", fingerprint::picture(frame).ok()?))
        })
        .collect();
    Some(fingerprint::content(parts?.join("\0").as_bytes()))
}

/// `file` of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileInfo {
    /// The folder that the picture was found under, links resolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) root: Option<String>,
    /// `percent` if bytes of `root` are percent-encoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    root_encoding: Option<String>,
    /// Path below `root`, where it is not the record's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    /// Bytes; absent if the file could not be looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    /// Modification time, nanoseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtime_ns: Option<u64>,
    /// Hash of the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
}

impl FileInfo {
    /// Of an item found under `root` (links resolved), whose record says `path`.
    pub(crate) fn new(
        item: &Item,
        root: &Path,
        path: &(String, bool),
        stamp: Option<Stamp>,
    ) -> Self {
        // What was reached through a link below the root has the root that it really lies in.
        let (root, below) = match item.place.strip_prefix(root) {
            Ok(below) => (root, below),
            Err(_) => (
                item.place.parent().unwrap_or(Path::new("/")),
                Path::new(item.place.file_name().unwrap_or_default()),
            ),
        };
        let (root, is_encoded) = record_path(root);
        let below = encoded(below, path.1);
        let (size, mtime_ns, hash) = match stamp {
            Some(stamp) => (Some(stamp.size), Some(stamp.mtime_ns), Some(stamp.hash)),
            None => (None, None, None),
        };
        Self {
            root: Some(root),
            root_encoding: is_encoded.then(|| "percent".to_owned()),
            path: (below != path.0).then_some(below),
            size,
            mtime_ns,
            hash,
        }
    }

    /// Where the picture was; `None` in records of versions that did not say so.
    pub(crate) fn place(&self, path: &str, is_encoded: bool) -> Option<PathBuf> {
        let root = decoded(self.root.as_ref()?, self.root_encoding.is_some());
        Some(root.join(decoded(self.path.as_deref().unwrap_or(path), is_encoded)))
    }

    /// Whether the picture could be looked at.
    pub(crate) fn is_seen(&self) -> bool {
        self.size.is_some()
    }

    /// Whether `path` holds what it held then; `None` if one of them cannot be looked at. Reads
    /// the file only if size or time differ.
    pub(crate) fn is_held_by(&self, path: &Path) -> Option<bool> {
        let then = (self.size?, self.mtime_ns?);
        let now = quick(path)?;
        Some(then == now || (then.0 == now.0 && self.hash.is_some() && hash(path) == self.hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write::replace_one;

    fn item(place: &Path) -> Item {
        Item {
            index: 0,
            path: "x.png".into(),
            root: 0,
            relative: "x.png".into(),
            place: place.into(),
        }
    }

    #[test]
    fn a_copy_holds_the_same_and_an_edit_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        replace_one(&path("x.png"), b"one").unwrap();
        let record = ("x.png".to_owned(), false);
        let stamp = Stamp::of(&path("x.png"));
        let file = FileInfo::new(&item(&path("x.png")), folder.path(), &record, stamp);
        assert_eq!(file.place("x.png", false), Some(path("x.png")));
        assert_eq!(file.is_held_by(&path("x.png")), Some(true));
        std::thread::sleep(std::time::Duration::from_millis(20));
        replace_one(&path("copy.png"), b"one").unwrap();
        replace_one(&path("edit.png"), b"two").unwrap();
        assert_eq!(file.is_held_by(&path("copy.png")), Some(true));
        assert_eq!(file.is_held_by(&path("edit.png")), Some(false));
        assert_eq!(file.is_held_by(&path("gone.png")), None);
    }

    #[test]
    fn a_folder_of_frames_changes_with_its_frames() {
        let folder = tempfile::tempdir().unwrap();
        replace_one(&folder.path().join("1.png"), b"one").unwrap();
        let before = Stamp::of(folder.path()).unwrap();
        replace_one(&folder.path().join("2.png"), b"two").unwrap();
        let after = Stamp::of(folder.path()).unwrap();
        assert!(before.size != after.size && before.hash != after.hash);
    }

    #[test]
    fn records_of_older_versions_are_read_and_say_no_place() {
        let file: FileInfo = serde_json::from_str(r#"{"size":3,"mtime_ns":4}"#).unwrap();
        assert!(file.is_seen() && file.place("x.png", false).is_none());
    }

    #[cfg(unix)]
    #[test]
    fn places_that_are_no_text_come_back_as_they_were() {
        use std::os::unix::ffi::OsStrExt;
        let place = Path::new(std::ffi::OsStr::from_bytes(b"/a%/\xff/x\xfe.png"));
        let record = record_path(Path::new(place.file_name().unwrap()));
        let file = FileInfo::new(&item(place), place.parent().unwrap(), &record, None);
        assert_eq!(file.place(&record.0, record.1).as_deref(), Some(place));
    }
}
