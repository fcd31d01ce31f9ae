//! Which folder holds the state of a text file: the journal that knows it, the lock that guards it.
//!
//! A text file's state lies in the nearest folder at or above its own that has a `.secateur`
//! folder. A new one is made only where there is none, in the root of the output that was typed.
//! So a text file has one journal and one lock for good, whatever root is typed to reach it:
//! `caption -r p` and `caption p/sub` know what the other did, and refuse to run at the same time.
//!
//! Invariants
//! - Paths are real ones, links resolved.
//! - Above the root that was typed, only state of the same owner counts: nobody else's folder
//!   (in `/tmp`, say) takes part in a job.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::own;

/// Name of the folder that holds journal and lock.
pub(crate) const FOLDER: &str = ".secateur";

/// The states below one root of an output.
#[derive(Debug)]
pub(crate) struct States {
    root: PathBuf,
    above: Option<PathBuf>,
    found: BTreeMap<PathBuf, PathBuf>,
}

impl States {
    /// Of the output `root`, whose links are resolved.
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf(), above: above(root), found: BTreeMap::new() }
    }

    /// The folder that holds the state of the text files of `folder`, which lies at or below the
    /// root. If there is none yet, that is the root.
    ///
    /// # Errors
    /// The file system's; something else where a state folder would be.
    pub(crate) fn of(&mut self, folder: &Path) -> io::Result<PathBuf> {
        if let Some(known) = self.found.get(folder) {
            return Ok(known.clone());
        }
        let home = if own::is_folder(&folder.join(FOLDER))? {
            folder.to_path_buf()
        } else if folder == self.root || !folder.starts_with(&self.root) {
            self.above.clone().unwrap_or_else(|| self.root.clone())
        } else {
            // A folder below the root has a parent.
            let parent = folder.parent().map(Path::to_path_buf);
            self.of(&parent.unwrap_or_else(|| self.root.clone()))?
        };
        self.found.insert(folder.to_path_buf(), home.clone());
        Ok(home)
    }

    /// Whether everything is still as it was found, but for `made`, the states that this process
    /// made since: another process that began meanwhile may have made its own.
    ///
    /// # Errors
    /// As [`States::of`].
    pub(crate) fn is_unchanged(&self, made: &[PathBuf]) -> io::Result<bool> {
        if above(&self.root) != self.above
            && !made.iter().any(|m| Some(m) == above(&self.root).as_ref())
        {
            return Ok(false);
        }
        let mut now = Self::new(&self.root);
        for (folder, home) in &self.found {
            if now.of(folder)? != *home {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The nearest folder above `root` with a state of the same owner.
fn above(root: &Path) -> Option<PathBuf> {
    let mine = root.ancestors().find_map(|folder| folder.metadata().ok())?;
    let holds = |folder: &&Path| {
        let state = folder.join(FOLDER).symlink_metadata();
        state.is_ok_and(|state| state.is_dir() && is_same_owner(&mine, &state))
    };
    root.ancestors().skip(1).find(holds).map(Path::to_path_buf)
}

#[cfg(unix)]
fn is_same_owner(a: &std::fs::Metadata, b: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    a.uid() == b.uid()
}

#[cfg(not(unix))]
fn is_same_owner(_: &std::fs::Metadata, _: &std::fs::Metadata) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::create_dir_all;

    #[test]
    fn the_nearest_state_at_or_above_counts() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let path = |name: &str| root.join(name);
        create_dir_all(path("p/a/b")).unwrap();
        create_dir_all(path("p/c")).unwrap();
        let of = |typed: &str, folder: &str| States::new(&path(typed)).of(&path(folder)).unwrap();
        // Nothing is there: the root that was typed.
        assert_eq!(of("p", "p/a/b"), path("p"));
        assert_eq!(of("p/a", "p/a/b"), path("p/a"));
        create_dir_all(path("p/a").join(FOLDER)).unwrap();
        assert_eq!(of("p", "p/a/b"), path("p/a"));
        assert_eq!(of("p", "p/c"), path("p"));
        create_dir_all(path("p").join(FOLDER)).unwrap();
        // Whatever root is typed.
        assert_eq!(of("p", "p/a/b"), path("p/a"));
        assert_eq!(of("p/a/b", "p/a/b"), path("p/a"));
        assert_eq!(of("p/c", "p/c"), path("p"));
    }

    #[test]
    fn a_state_that_appears_meanwhile_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let path = |name: &str| root.join(name);
        create_dir_all(path("p/a")).unwrap();
        let mut whole = States::new(&path("p"));
        whole.of(&path("p/a")).unwrap();
        let mut part = States::new(&path("p/a"));
        part.of(&path("p/a")).unwrap();
        create_dir_all(path("p").join(FOLDER)).unwrap();
        assert!(whole.is_unchanged(&[path("p")]).unwrap());
        assert!(!part.is_unchanged(&[]).unwrap());
        create_dir_all(path("p/a").join(FOLDER)).unwrap();
        assert!(!whole.is_unchanged(&[path("p")]).unwrap());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_in_place_of_a_state_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::os::unix::fs::symlink("/", root.join(FOLDER)).unwrap();
        let error = States::new(&root).of(&root).unwrap_err().to_string();
        assert!(error.contains(".secateur is a symbolic link"), "{error}");
    }
}
