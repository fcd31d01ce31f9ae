//! Whole files or none: a temporary file in the same folder, `fsync`, rename, `fsync` of the folder.
//!
//! Invariants
//! - A reader of the path sees the old content or the new, never a part.
//! - The temporary name depends on the path alone, so that a run that was killed leaves at most
//!   one such file per output, and the next run takes it over.
//! - A link under either name is not followed: at the path it is replaced itself, at the temporary
//!   name it is an error ([`crate::own`]).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// End of the name of every temporary file.
pub(crate) const TEMPORARY: &str = ".secateur-tmp";

fn temporary_of(path: &Path) -> io::Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the name of a file"));
    };
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(TEMPORARY);
    Ok(path.with_file_name(temporary))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Puts `content` at `path`, without the `fsync` of the folder: for many files, followed by
/// [`FolderSync::flush`].
///
/// # Errors
/// The file system's; the path then holds what it held before.
pub(crate) fn replace(path: &Path, content: &[u8], folders: &mut FolderSync) -> io::Result<()> {
    let temporary = temporary_of(path)?;
    let written = (|| {
        let mut file = crate::own::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if let Err(error) = written {
        // What matters is the first error. What is no file of ours stays.
        if fs::symlink_metadata(&temporary).is_ok_and(|meta| meta.is_file()) {
            let _ = fs::remove_file(&temporary);
        }
        return Err(error);
    }
    folders.0.insert(folder_of(path).to_path_buf());
    Ok(())
}

/// Puts one file in place, durably.
///
/// # Errors
/// As [`replace`].
pub(crate) fn replace_one(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut folders = FolderSync::default();
    replace(path, content, &mut folders)?;
    folders.flush()
}

/// Folders whose entries changed and are not durable yet.
#[derive(Debug, Default)]
pub(crate) struct FolderSync(BTreeSet<PathBuf>);

impl FolderSync {
    /// Makes the renames of a batch durable.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        for folder in std::mem::take(&mut self.0) {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        replace_one(&path, b"one").unwrap();
        replace_one(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_is_gone_is_an_error_that_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let error = replace_one(&folder.path().join("gone/a.txt"), b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_temporary_file_of_a_killed_run_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        File::create(temporary_of(&path).unwrap()).unwrap().write_all(b"half").unwrap();
        replace_one(&path, b"whole").unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(fs::read(&path).unwrap(), b"whole");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_replaced_and_one_in_the_way_is_an_error() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        replace_one(&path("theirs"), b"theirs").unwrap();
        symlink("theirs", path("a.txt")).unwrap();
        replace_one(&path("a.txt"), b"ours").unwrap();
        assert_eq!(fs::read(path("a.txt")).unwrap(), b"ours");
        let temporary = temporary_of(&path("b.txt")).unwrap();
        symlink("theirs", &temporary).unwrap();
        let error = replace_one(&path("b.txt"), b"ours").unwrap_err().to_string();
        assert!(error.contains(".b.txt.secateur-tmp is a symbolic link"), "{error}");
        assert!(fs::symlink_metadata(&temporary).is_ok() && !path("b.txt").exists());
        assert_eq!(fs::read(path("theirs")).unwrap(), b"theirs");
    }
}
