//! What the names of files say: which are pictures, and which frame comes first.
//!
//! Invariant: frames of a folder stand in natural order, `f2.png` before `f10.png`.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Endings of the files that are taken from folders.
pub(crate) const PICTURE_TYPES: &[&str] =
    &["png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "dib", "gif", "tif", "tiff", "ico"];

/// Whether a file's name says that it is a picture.
pub(crate) fn is_picture(path: &Path) -> bool {
    let ending = path.extension().and_then(OsStr::to_str);
    ending.is_some_and(|e| PICTURE_TYPES.iter().any(|known| e.eq_ignore_ascii_case(known)))
}

/// The pictures that stand directly in a folder, in natural order; hidden ones are left out.
///
/// # Errors
/// A folder that cannot be read.
pub(crate) fn pictures_of(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let is_hidden =
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !is_hidden && is_picture(&path) && path.is_file() {
            found.push(path);
        }
    }
    found.sort_by(|a, b| natural(&a.to_string_lossy(), &b.to_string_lossy()));
    Ok(found)
}

/// Runs of digits compare as numbers, everything else letter by letter.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut x, mut y) = (a, b);
    while let (Some(p), Some(q)) = (x.chars().next(), y.chars().next()) {
        let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
        let (m, n) = (digits(x), digits(y));
        let order = if m > 0 && n > 0 {
            let (v, w) = (x[..m].trim_start_matches('0'), y[..n].trim_start_matches('0'));
            (x, y) = (&x[m..], &y[n..]);
            v.len().cmp(&w.len()).then_with(|| v.cmp(w))
        } else {
            (x, y) = (&x[p.len_utf8()..], &y[q.len_utf8()..]);
            p.cmp(&q)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    // `01` and `1` are told apart, so that the order is total.
    x.len().cmp(&y.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_count_as_numbers() {
        let mut names = ["f10.png", "f2.png", "f02.png", "g1", "f1", "f", "f1b"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["f", "f1", "f1b", "f02.png", "f2.png", "f10.png", "g1"]);
    }
}
