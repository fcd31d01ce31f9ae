//! One writer per output: an advisory lock that the system takes back when the process ends,
//! however it ends.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Digits of a process and a newline are far fewer.
const LONGEST: u64 = 32;

/// A held lock.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock at `path`, making the file if there is none. `output` names in the error
    /// what is protected.
    ///
    /// # Errors
    /// If another process holds it (named by its id), or if the file cannot be made.
    pub(crate) fn take(path: &Path, output: &Path) -> Result<Self> {
        let mut file =
            crate::own::open(path).with_context(|| format!("cannot write {}", path.display()))?;
        let locked = file.try_lock();
        let mut holder = String::new();
        let read = Read::by_ref(&mut file).take(LONGEST).read_to_string(&mut holder);
        match locked {
            Ok(()) if read.is_ok() && holder.trim_end().bytes().all(|b| b.is_ascii_digit()) => {}
            Ok(()) => bail!(
                "{} holds something else than a lock does, and stays as it is; it protects {}",
                path.display(),
                output.display()
            ),
            Err(TryLockError::WouldBlock) => {
                // The number is a courtesy; without it the message is still right.
                let holder = holder.trim();
                let who = if holder.is_empty() { String::new() } else { format!(" {holder}") };
                bail!("process{who} is writing to {}; wait for it or stop it", output.display());
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        let id = format!("{}\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(id.as_bytes()))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_is_refused_and_learns_who_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = Lock::take(&path, folder.path()).unwrap();
        let error = Lock::take(&path, folder.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        Lock::take(&path, folder.path()).unwrap();
    }

    #[test]
    fn a_file_of_somebody_else_under_that_name_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        crate::write::replace_one(&path, b"my notes").unwrap();
        let error = Lock::take(&path, folder.path()).unwrap_err().to_string();
        assert!(error.contains("something else than a lock"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"my notes");
    }
}
