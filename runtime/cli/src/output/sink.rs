//! What an output format must do: say what is done already, and take what is new.

use anyhow::Result;

use crate::args::{Fingerprint, OnExisting};
use crate::journal::Known;
use crate::record::{ErrorInfo, Record, Stamp};
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

/// The rules of `--on-existing`, `--fingerprint` and `--retry-failed`, the same for all formats.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// What to do where there is a caption.
    pub(crate) on_existing: OnExisting,
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
    /// The verdict about a picture of which `known` is known and whose output `exists` or not.
    pub(crate) fn verdict(&self, item: &Item, known: Option<&Known>, exists: bool) -> Verdict {
        let fingerprints = match known {
            Some(Known::Ok { fingerprints, .. }) => Some(fingerprints),
            _ => None,
        };
        if exists {
            let newest_is_ours = fingerprints.and_then(|f| f.last()) == Some(&self.fingerprint);
            let is_ours = fingerprints.is_some_and(|f| match self.fingerprint_mode {
                Fingerprint::Ignore => true,
                Fingerprint::Strict if self.on_existing.is_joining() => {
                    f.contains(&self.fingerprint)
                }
                Fingerprint::Strict => newest_is_ours,
            });
            match self.on_existing {
                OnExisting::Error => return Verdict::Refused,
                OnExisting::Skip if is_ours || fingerprints.is_none() => return Verdict::Done,
                OnExisting::Skip => return Verdict::DoneOtherwise,
                _ if is_ours => return Verdict::Done,
                _ => {}
            }
        }
        match known {
            Some(Known::Failed { error, file })
                if !self.retry_failed && (file.is_none() || *file == Stamp::of(&item.path)) =>
            {
                // A file that was missing or forbidden is tried again once it can be looked at.
                if file.is_none() && Stamp::of(&item.path).is_some() {
                    return Verdict::Todo;
                }
                Verdict::FailedBefore(error.clone())
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
    use crate::record::ErrorKind;

    fn item() -> Item {
        Item { path: "/no/such/x.png".into(), root: 0, relative: "x.png".into() }
    }

    fn rules(on_existing: OnExisting) -> Rules {
        Rules {
            on_existing,
            fingerprint_mode: Fingerprint::Strict,
            retry_failed: false,
            fingerprint: "b3:now".into(),
            separator: " ".into(),
        }
    }

    fn known(fingerprints: &[&str]) -> Known {
        let fingerprints = fingerprints.iter().map(|f| (*f).to_owned()).collect();
        Known::Ok { fingerprints, caption: String::new() }
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
        let path = folder.path().join("x.png");
        crate::write::replace_one(&path, b"x").unwrap();
        let item = Item { path: path.clone(), ..item() };
        let error = ErrorInfo::new(ErrorKind::ImageCorrupt, "bad");
        let failed = |file| Known::Failed { error: error.clone(), file };
        let same = failed(Stamp::of(&path));
        let mut rules = rules(OnExisting::Skip);
        let before = Verdict::FailedBefore(error.clone());
        assert_eq!(rules.verdict(&item, Some(&same), false), before);
        let changed = failed(Some(Stamp { size: 9, mtime_ns: 9 }));
        assert_eq!(rules.verdict(&item, Some(&changed), false), Verdict::Todo);
        // It was not there; now it is.
        assert_eq!(rules.verdict(&item, Some(&failed(None)), false), Verdict::Todo);
        rules.retry_failed = true;
        assert_eq!(rules.verdict(&item, Some(&same), false), Verdict::Todo);
    }

    #[test]
    fn joining_keeps_the_order_asked_for() {
        assert_eq!(rules(OnExisting::Append).join("old", "new"), "old new");
        assert_eq!(rules(OnExisting::Prepend).join("old", "new"), "new old");
        assert_eq!(rules(OnExisting::Append).join("", "new"), "new");
    }
}
