//! Files and folders that are ours, opened so that nothing else can be meant.
//!
//! A folder that came from elsewhere may hold, under the names that we use, links to files of the
//! user. Every lock, journal, log, temporary file and folder of an output is opened or made here.
//!
//! Invariants
//! - A file that is opened is a regular one with one name: neither a symbolic link, nor a hard link
//!   to something else, nor a pipe (which would be waited for), socket or device.
//! - Below the folder that was typed (which may be a link: that is the user's will) every folder
//!   that is written through is a real one.
//! - These are checks of what a folder holds, not a defence against somebody who changes it at the
//!   same time.
//! - Every error names the path.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::path::{Component, Path};

/// Opens a file of ours for reading and writing; makes it if it is not there.
///
/// # Errors
/// The file system's; anything but a regular file with one name.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let file = entry(path, options().read(true).write(true).create(true).truncate(false))?;
    let names = names(&file.metadata()?);
    if names > 1 {
        return Err(refused(
            path,
            &format!(
                "is a hard link, one of {names} names of a file that may be somebody else's: \
                 remove it, or put a copy in its place"
            ),
        ));
    }
    Ok(file)
}

/// Opens a file of ours for reading; `None` if it is not there.
///
/// # Errors
/// As [`open`]; a hard link is read.
pub(crate) fn look(path: &Path) -> io::Result<Option<File>> {
    match entry(path, options().read(true)) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The content of an output; `None` if it is not there.
///
/// # Errors
/// As [`look`].
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let Some(mut file) = look(path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Makes a file that is not there, for a whole content that will be renamed into place. What a
/// killed run left under the name is removed; nothing else is.
///
/// # Errors
/// The file system's; something under the name that is no regular file.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    match fs::symlink_metadata(path) {
        // Removing takes the name away and follows nothing.
        Ok(meta) if meta.is_file() => fs::remove_file(path)?,
        Ok(meta) => return Err(no_file(path, &meta)),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    options().write(true).create_new(true).open(path)
}

/// Makes the folders of `below` under `root`, which must be there.
///
/// # Errors
/// The file system's; something on the way that is no real folder.
pub(crate) fn make_folders(root: &Path, below: &Path) -> io::Result<()> {
    walk(root, below, |path| match fs::create_dir(path) {
        // Another process made it at the same time.
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(true),
        made => made.map(|()| true),
    })
}

/// Checks that those folders of `below` under `root` that are there are real ones.
///
/// # Errors
/// As [`make_folders`].
pub(crate) fn check_folders(root: &Path, below: &Path) -> io::Result<()> {
    walk(root, below, |_| Ok(false))
}

/// Looks at each folder on the way; `missing` says whether one that is not there was made.
fn walk(root: &Path, below: &Path, missing: impl Fn(&Path) -> io::Result<bool>) -> io::Result<()> {
    let mut path = root.to_path_buf();
    for part in below.components() {
        match part {
            Component::CurDir => continue,
            Component::Normal(name) => path.push(name),
            _ => return Err(refused(below, "leads out of the output's folder")),
        }
        if is_folder(&path)? {
            continue;
        }
        if !missing(&path)? {
            return Ok(());
        }
        if !is_folder(&path)? {
            return Err(refused(&path, "vanished while folders were made"));
        }
    }
    Ok(())
}

/// Whether there is a real folder.
///
/// # Errors
/// The file system's; something else under the name.
pub(crate) fn is_folder(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => Ok(true),
        Ok(meta) if meta.is_symlink() => Err(refused(
            path,
            "is a symbolic link where a folder is expected, and is not followed: what is written \
             would land elsewhere; remove it, or name the folder that it leads to",
        )),
        Ok(_) => Err(refused(path, "is in the way: a folder is expected there")),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(io::Error::new(e.kind(), format!("cannot look at {}: {e}", path.display()))),
    }
}

/// Whether `path` still names the open file: it does not once file or folder were removed or
/// replaced. Always, where the system gives files no numbers.
///
/// # Errors
/// The file system's.
pub(crate) fn is_in_place(file: &File, path: &Path) -> io::Result<bool> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let ours = file.metadata()?;
        let there = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(false);
            }
            Err(e) => return Err(e),
        };
        Ok(ours.nlink() > 0 && (ours.dev(), ours.ino()) == (there.dev(), there.ino()))
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.try_exists()
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // Without O_NONBLOCK, opening a pipe that nobody writes to waits for ever.
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    }
    options
}

fn entry(path: &Path, options: &OpenOptions) -> io::Result<File> {
    if cfg!(not(unix))
        && let Ok(meta) = fs::symlink_metadata(path)
        && !meta.is_file()
    {
        return Err(no_file(path, &meta));
    }
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) => {
            // The system's own words for a link ("too many levels") help nobody.
            return Err(match fs::symlink_metadata(path) {
                Ok(meta) if !meta.is_file() => no_file(path, &meta),
                _ => error,
            });
        }
    };
    let meta = file.metadata()?;
    if meta.is_file() { Ok(file) } else { Err(no_file(path, &meta)) }
}

fn no_file(path: &Path, meta: &Metadata) -> io::Error {
    let what = if meta.is_symlink() {
        "is a symbolic link, and is not followed: remove it, or name the file that it leads to"
    } else if meta.is_dir() {
        "is a folder where a file is expected"
    } else {
        "is no regular file (a pipe, socket or device)"
    };
    refused(path, what)
}

fn refused(path: &Path, what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, format!("{} {what}", path.display()))
}

#[cfg(unix)]
fn names(meta: &Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    meta.nlink()
}

#[cfg(not(unix))]
fn names(_: &Metadata) -> u64 {
    1
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A folder with a file of the user, and a link to it under each of `names`.
    fn linked(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        crate::write::replace_one(&folder.path().join("theirs"), b"theirs").expect("written");
        for name in names {
            symlink("theirs", folder.path().join(name)).expect("a link");
        }
        folder
    }

    #[test]
    fn links_of_both_kinds_are_refused_by_name() {
        let folder = linked(&["soft"]);
        let path = |name: &str| folder.path().join(name);
        fs::hard_link(path("theirs"), path("hard")).unwrap();
        symlink("nowhere", path("dangling")).unwrap();
        for (name, words) in
            [("soft", "symbolic link"), ("dangling", "symbolic link"), ("hard", "hard link")]
        {
            let error = open(&path(name)).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(name), "{error}");
        }
        assert!(look(&path("soft")).is_err() && create(&path("soft")).is_err());
        assert!(!path("nowhere").exists());
        assert_eq!(fs::read(path("theirs")).unwrap(), b"theirs");
    }

    #[test]
    fn what_is_no_file_is_refused_without_waiting() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for error in [open(&pipe).unwrap_err(), look(&pipe).unwrap_err()] {
            assert!(error.to_string().contains("no regular file"), "{error}");
        }
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("is a folder"), "{error}");
        assert!(look(&folder.path().join("gone")).unwrap().is_none());
    }

    #[test]
    fn folders_are_made_below_a_linked_root_but_not_through_a_link() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("real")).unwrap();
        fs::create_dir(path("theirs")).unwrap();
        symlink("real", path("typed")).unwrap();
        symlink("../theirs", path("real/link")).unwrap();
        make_folders(&path("typed"), Path::new("a/b")).unwrap();
        assert!(path("real/a/b").is_dir());
        let error = make_folders(&path("typed"), Path::new("link/c")).unwrap_err().to_string();
        assert!(error.contains("link is a symbolic link"), "{error}");
        assert!(check_folders(&path("typed"), Path::new("link/c")).is_err());
        assert!(make_folders(&path("typed"), Path::new("../out")).is_err());
        assert!(!path("theirs/c").exists() && !path("out").exists());
        check_folders(&path("typed"), Path::new("x/y")).unwrap();
        assert!(!path("real/x").exists());
    }

    #[test]
    fn a_file_that_was_removed_or_replaced_is_not_in_place() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("f");
        let file = open(&path).unwrap();
        assert!(is_in_place(&file, &path).unwrap());
        crate::write::replace_one(&path, b"other").unwrap();
        assert!(!is_in_place(&file, &path).unwrap());
        fs::remove_file(&path).unwrap();
        assert!(!is_in_place(&file, &path).unwrap());
    }
}
