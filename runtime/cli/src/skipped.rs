//! What lies in a folder, looks like a picture or a video, and is not read: counted, so that
//! nobody takes a folder for done of which half was passed over.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// Endings of pictures and videos that this build does not read, and the feature that would.
/// An ending that it does read never comes here: the table is the same in every build.
const MEDIA: &[(&str, Option<&str>)] = &[
    // Videos.
    ("3gp", Some("video")),
    ("avi", Some("video")),
    ("flv", Some("video")),
    ("m4v", Some("video")),
    ("mkv", Some("video")),
    ("mov", Some("video")),
    ("mp4", Some("video")),
    ("mpeg", Some("video")),
    ("mpg", Some("video")),
    ("mts", None),
    ("ogv", None),
    ("webm", Some("video")),
    ("wmv", Some("video")),
    // Pictures.
    ("avif", None),
    ("exr", None),
    ("hdr", None),
    ("heic", None),
    ("heif", None),
    ("j2k", None),
    ("jp2", None),
    ("jxl", None),
    ("pbm", None),
    ("pdf", None),
    ("pgm", None),
    ("ppm", None),
    ("psd", None),
    ("svg", None),
    ("tga", None),
    // Raw pictures of cameras.
    ("arw", None),
    ("cr2", None),
    ("cr3", None),
    ("dng", None),
    ("nef", None),
    ("orf", None),
    ("raf", None),
    ("rw2", None),
];

/// Files that were passed over, by ending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Skipped(BTreeMap<&'static str, (usize, Option<&'static str>)>);

impl Skipped {
    /// Counts a file that was not taken, if it looks like a picture or a video.
    pub(crate) fn add(&mut self, path: &Path) {
        let Some(ending) = path.extension().and_then(|e| e.to_str()) else { return };
        let row = MEDIA.iter().find(|(name, _)| ending.eq_ignore_ascii_case(name));
        if let Some(&(name, feature)) = row {
            self.0.entry(name).or_insert((0, feature)).0 += 1;
        }
    }
}

/// `skipped 214: .heic 200, .mp4 14 (feature `video`)`, most frequent first; nothing if none was.
impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: Vec<_> = self.0.iter().collect();
        rows.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
        let total: usize = rows.iter().map(|(_, (count, _))| count).sum();
        for (i, (ending, (count, feature))) in rows.into_iter().enumerate() {
            if i == 0 {
                write!(f, "skipped {total}: ")?;
            } else {
                f.write_str(", ")?;
            }
            write!(f, ".{ending} {count}")?;
            if let Some(feature) = feature {
                write!(f, " (feature `{feature}`)")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_are_counted_most_frequent_first() {
        let mut skipped = Skipped::default();
        assert_eq!(skipped.to_string(), "");
        let names = ["a.mp4", "b.heic", "c.HEIC", "d.txt", "e", "f.json", "g.heic"];
        names.iter().for_each(|name| skipped.add(Path::new(name)));
        assert_eq!(skipped.to_string(), "skipped 4: .heic 3, .mp4 1 (feature `video`)");
    }

    #[test]
    fn nothing_that_is_read_stands_in_the_table() {
        for (ending, _) in MEDIA {
            assert!(!crate::named::PICTURE_TYPES.contains(ending), "{ending}");
        }
        // Endings of videos are named with the feature that reads them.
        for ending in secateur::video::EXTENSIONS.iter().filter(|e| **e != "ts") {
            assert!(MEDIA.contains(&(ending, Some("video"))), "{ending}");
        }
    }
}
