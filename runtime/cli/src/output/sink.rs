//! What an output format must do: say what is done already, and take what is new.

use anyhow::Result;

use crate::args::{Fingerprint, OnExisting};
use crate::journal::{Entry, Known};
use crate::record::{ErrorInfo, Record};
use crate::walk::Item;

/// What is to be done about a picture.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// Caption it.
    Todo,
    /// It has its caption.
    Done,
    /// It has a caption of other settings, which stays.
    DoneOtherwise,
    /// It has a caption, and the picture has changed since; the caption stays.
    Changed,
    /// It failed in an earlier run and is not tried again.
    FailedBefore(ErrorInfo),
    /// It has a caption, and `--on-existing error` was asked for.
    Refused,
}

/// A picture that is through.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    /// The picture.
    pub(crate) item: Item,
    /// What became of it.
    pub(crate) record: Record,
}

/// Where captions go.
pub(crate) trait Sink {
    /// The path of a picture as records of this output spell it.
    fn record_path(&self, item: &Item) -> (String, bool);

    /// What is to be done about a picture.
    ///
    /// # Errors
    /// An output that cannot be looked at.
    fn verdict(&self, item: &Item) -> Result<Verdict>;

    /// Takes a batch; when this returns, each caption is whole in its place.
    ///
    /// # Errors
    /// An output that cannot be written: the job cannot go on.
    fn write(&mut self, batch: Vec<Finished>) -> Result<()>;

    /// Makes everything durable and tidy.
    ///
    /// # Errors
    /// As [`Sink::write`].
    fn finish(&mut self) -> Result<()>;
}

/// The rules of `--on-existing`, `--force`, `--fingerprint` and `--retry-failed`, the same for all
/// formats.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// What to do where there is a caption.
    pub(crate) on_existing: OnExisting,
    /// Whether everything is made anew.
    pub(crate) force: bool,
    /// Whether settings count.
    pub(crate) fingerprint_mode: Fingerprint,
    /// Whether failures are tried again.
    pub(crate) retry_failed: bool,
    /// Settings of this run.
    pub(crate) fingerprint: String,
    /// Text between joined captions.
    pub(crate) separator: String,
}

impl Rules {
    /// The verdict about a picture of which `entry` is known and whose output `exists` or not.
    pub(crate) fn verdict(&self, item: &Item, entry: Option<&Entry>, exists: bool) -> Verdict {
        let is_held = || entry.and_then(|entry| entry.file.is_held_by(&item.path));
        let fingerprints = match entry.map(|entry| &entry.known) {
            Some(Known::Ok { fingerprints, .. }) => Some(fingerprints),
            _ => None,
        };
        if exists && self.on_existing == OnExisting::Error {
            return Verdict::Refused;
        }
        if self.force {
            return Verdict::Todo;
        }
        if exists {
            let newest_is_ours = fingerprints.and_then(|f| f.last()) == Some(&self.fingerprint);
            let is_ours = fingerprints.is_some_and(|f| match self.fingerprint_mode {
                Fingerprint::Ignore => true,
                Fingerprint::Strict if self.on_existing.is_joining() => {
                    f.contains(&self.fingerprint)
                }
                Fingerprint::Strict => newest_is_ours,
            });
            if fingerprints.is_some() && is_held() == Some(false) {
                return match self.on_existing {
                    OnExisting::Overwrite => Verdict::Todo,
                    _ => Verdict::Changed,
                };
            }
            match self.on_existing {
                OnExisting::Skip if is_ours || fingerprints.is_none() => return Verdict::Done,
                OnExisting::Skip => return Verdict::DoneOtherwise,
                _ if is_ours => return Verdict::Done,
                _ => {}
            }
        }
        match entry {
            Some(Entry { known: Known::Failed(error), file, .. }) if !self.retry_failed => {
                // A file that was missing or forbidden is tried again once it can be looked at.
                let is_same = match is_held() {
                    Some(is_held) => is_held,
                    None => !file.is_seen() && !item.path.exists(),
                };
                if is_same { Verdict::FailedBefore(error.clone()) } else { Verdict::Todo }
            }
            _ => Verdict::Todo,
        }
    }

    /// The old text and the new one, joined as asked.
    pub(crate) fn join(&self, old: &str, new: &str) -> String {
        match self.on_existing {
            OnExisting::Append if !old.is_empty() => format!("{old}{}{new}", self.separator),
            OnExisting::Prepend if !old.is_empty() => format!("{new}{}{old}", self.separator),
            _ => new.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{FileInfo, Stamp};
    use crate::record::ErrorKind;

    fn item() -> Item {
        let path = std::path::PathBuf::from("/no/such/x.png");
        Item { index: 0, path: path.clone(), root: 0, relative: "x.png".into(), place: path }
    }

    fn rules(on_existing: OnExisting) -> Rules {
        Rules {
            on_existing,
            force: false,
            fingerprint_mode: Fingerprint::Strict,
            retry_failed: false,
            fingerprint: "b3:now".into(),
            separator: " ".into(),
        }
    }

    fn known(fingerprints: &[&str]) -> Entry {
        let fingerprints = fingerprints.iter().map(|f| (*f).to_owned()).collect();
        entry(Known::Ok { fingerprints, caption: String::new() }, FileInfo::default())
    }

    fn entry(known: Known, file: FileInfo) -> Entry {
        Entry::for_tests(known, file)
    }

    /// A picture in a folder, and what a record says of it.
    fn seen(folder: &tempfile::TempDir) -> (Item, FileInfo) {
        let path = folder.path().join("x.png");
        crate::write::replace_one(&path, b"x").unwrap();
        let item = Item { path: path.clone(), place: path.clone(), ..item() };
        let stamp = Stamp::of(&path);
        let file = FileInfo::new(&item, folder.path(), &("x.png".into(), false), stamp);
        (item, file)
    }

    #[test]
    fn a_picture_that_changed_is_redone_under_overwrite_and_reported_else() {
        use OnExisting::{Append, Overwrite, Skip};
        let folder = tempfile::tempdir().unwrap();
        let (item, file) = seen(&folder);
        let ours = known(&["b3:now"]);
        let ours = entry(ours.known, file);
        assert_eq!(rules(Overwrite).verdict(&item, Some(&ours), true), Verdict::Done);
        crate::write::replace_one(&item.path, b"other").unwrap();
        for (mode, expected) in
            [(Skip, Verdict::Changed), (Append, Verdict::Changed), (Overwrite, Verdict::Todo)]
        {
            assert_eq!(rules(mode).verdict(&item, Some(&ours), true), expected, "{mode:?}");
        }
    }

    #[test]
    fn force_makes_everything_anew() {
        for on_existing in [OnExisting::Skip, OnExisting::Overwrite] {
            let rules = Rules { force: true, ..rules(on_existing) };
            let ours = known(&["b3:now"]);
            assert_eq!(rules.verdict(&item(), Some(&ours), true), Verdict::Todo);
        }
        let rules = Rules { force: true, ..rules(OnExisting::Error) };
        assert_eq!(rules.verdict(&item(), None, true), Verdict::Refused);
    }

    #[test]
    fn an_existing_caption_meets_each_mode() {
        use OnExisting::{Append, Error, Overwrite, Prepend, Skip};
        use Verdict::{Done, DoneOtherwise, Refused, Todo};
        let (ours, other, both) =
            (known(&["b3:now"]), known(&["b3:old"]), known(&["b3:now", "b3:old"]));
        for (mode, of_the_user, ours_, other_, both_) in [
            (Skip, Done, Done, DoneOtherwise, DoneOtherwise),
            (Overwrite, Todo, Done, Todo, Todo),
            (Append, Todo, Done, Todo, Done),
            (Prepend, Todo, Done, Todo, Done),
            (Error, Refused.clone(), Refused.clone(), Refused.clone(), Refused),
        ] {
            let rules = rules(mode);
            assert_eq!(rules.verdict(&item(), None, true), of_the_user, "{mode:?}");
            assert_eq!(rules.verdict(&item(), Some(&ours), true), ours_, "{mode:?}");
            assert_eq!(rules.verdict(&item(), Some(&other), true), other_, "{mode:?}");
            assert_eq!(rules.verdict(&item(), Some(&both), true), both_, "{mode:?}");
            // A caption that somebody removed is made again in every mode.
            assert_eq!(rules.verdict(&item(), Some(&ours), false), Todo, "{mode:?}");
        }
    }

    #[test]
    fn with_ignored_fingerprints_any_caption_of_ours_is_done() {
        let mut rules = rules(OnExisting::Overwrite);
        rules.fingerprint_mode = Fingerprint::Ignore;
        assert_eq!(rules.verdict(&item(), Some(&known(&["b3:old"])), true), Verdict::Done);
        assert_eq!(rules.verdict(&item(), None, true), Verdict::Todo);
    }

    #[test]
    fn a_failure_is_tried_again_when_asked_or_when_the_file_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (item, file) = seen(&folder);
        let error = ErrorInfo::new(ErrorKind::ImageCorrupt, "bad");
        let same = entry(Known::Failed(error.clone()), file);
        let mut rules = rules(OnExisting::Skip);
        assert_eq!(rules.verdict(&item, Some(&same), false), Verdict::FailedBefore(error.clone()));
        // It was not there; now it is.
        let gone = entry(Known::Failed(error), FileInfo::default());
        assert_eq!(rules.verdict(&item, Some(&gone), false), Verdict::Todo);
        rules.retry_failed = true;
        assert_eq!(rules.verdict(&item, Some(&same), false), Verdict::Todo);
        rules.retry_failed = false;
        crate::write::replace_one(&item.path, b"other").unwrap();
        assert_eq!(rules.verdict(&item, Some(&same), false), Verdict::Todo);
    }

    #[test]
    fn joining_keeps_the_order_asked_for() {
        assert_eq!(rules(OnExisting::Append).join("old", "new"), "old new");
        assert_eq!(rules(OnExisting::Prepend).join("old", "new"), "new old");
        assert_eq!(rules(OnExisting::Append).join("", "new"), "new");
    }
}
