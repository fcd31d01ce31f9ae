//! From an error of the SDK to the closed list of kinds that records hold.

use std::path::Path;

use secateur::{Error, InputError};

use crate::record::{ErrorInfo, ErrorKind};

/// The record of a picture that could not be loaded.
pub(crate) fn of_input(error: &InputError, path: &Path) -> ErrorInfo {
    let kind = match error {
        InputError::NotFound { .. } => ErrorKind::NotFound,
        InputError::Io { .. } => of_io(path),
        InputError::UnsupportedFormat { .. } => ErrorKind::UnsupportedFormat,
        InputError::TooLarge { .. } => ErrorKind::ImageTooLarge,
        InputError::Empty { .. } => ErrorKind::EmptyImage,
        // A picture that the processor refuses (too flat, too narrow) is as good as corrupt.
        InputError::Corrupt { .. } | InputError::Refused { .. } => ErrorKind::ImageCorrupt,
        _ => ErrorKind::Internal,
    };
    ErrorInfo::new(kind, error.to_string())
}

/// Why a file cannot be read.
fn of_io(path: &Path) -> ErrorKind {
    // Looked at before it is opened: opening a pipe would wait for its writer.
    let opened = std::fs::metadata(path).and_then(|meta| {
        if meta.is_file() { std::fs::File::open(path).map(|_| true) } else { Ok(false) }
    });
    match opened.map_err(|e| e.kind()) {
        Err(std::io::ErrorKind::PermissionDenied) => ErrorKind::Permission,
        Err(std::io::ErrorKind::NotFound) => ErrorKind::NotFound,
        Ok(false) => ErrorKind::UnsupportedFormat,
        _ => ErrorKind::Internal,
    }
}

/// The record of a picture that could not be captioned.
pub(crate) fn of_run(error: &Error, path: &Path) -> ErrorInfo {
    let kind = match error {
        Error::Image(input) => return of_input(input, path),
        Error::Context { .. } => ErrorKind::ContextOverflow,
        Error::NonFinite { .. } => ErrorKind::NonFinite,
        Error::Cancelled { .. } => ErrorKind::Timeout,
        Error::Memory(_) => ErrorKind::OutOfMemory,
        _ => ErrorKind::Internal,
    };
    ErrorInfo::new(kind, format!("{}: {}", path.display(), Causes(error)))
}

/// An error with its causes, once each.
struct Causes<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_of_a_picture_has_its_kind() {
        let path = "x".to_owned();
        let here = Path::new("/no/such");
        for (error, kind) in [
            (InputError::NotFound { path: path.clone() }, ErrorKind::NotFound),
            (InputError::Empty { path: path.clone(), width: 0, height: 0 }, ErrorKind::EmptyImage),
            (
                InputError::Corrupt { path: path.clone(), reason: String::new() },
                ErrorKind::ImageCorrupt,
            ),
            (InputError::Io { path, reason: String::new() }, ErrorKind::NotFound),
        ] {
            assert_eq!(of_input(&error, here).kind, kind);
            assert_eq!(of_run(&Error::Image(error), here).kind, kind);
        }
        let late = Error::Cancelled { reason: "deadline passed".into(), partial: None };
        let record = of_run(&late, here);
        assert!(record.kind == ErrorKind::Timeout && record.retryable);
        let full = Error::Context { need: 9, have: 8 };
        assert_eq!(of_run(&full, here).kind, ErrorKind::ContextOverflow);
    }
}
