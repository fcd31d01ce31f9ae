//! What went wrong with the hub, in words that say whose turn it is.

use std::io;
use std::time::Duration;

use anyhow::{Error, anyhow};

/// What can go wrong with a request or a transfer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// No answer, or a status that is none.
    Request(ureq::Error),
    /// A body that broke off.
    Body(io::Error),
    /// A body that brought nothing for that long.
    Stalled(Duration),
    /// A body that ended properly, and too early.
    Short { announced: u64, came: u64 },
    /// A status that is no answer, of a host that the hub sent us to.
    Storage(u16),
    /// An answer that the hub does not give.
    Answer(String),
    /// The disk.
    Disk(io::Error),
}

impl Trouble {
    /// Whether the same may go well a moment later.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            // Addresses at a storage host run out; the next try gets another.
            Trouble::Body(_)
            | Trouble::Stalled(_)
            | Trouble::Short { .. }
            | Trouble::Storage(_) => true,
            Trouble::Request(error) => match error {
                ureq::Error::StatusCode(code) => *code >= 500,
                ureq::Error::Io(error) => !is_full(error),
                ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed => true,
                _ => false,
            },
            Trouble::Answer(_) | Trouble::Disk(_) => false,
        }
    }
}

/// What was asked of whom.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// `owner/name`
    pub(super) id: String,
    /// Branch, tag or commit.
    pub(super) revision: String,
    /// Address of the hub.
    pub(super) endpoint: String,
    /// Whether a token went along.
    pub(super) has_token: bool,
}

impl Asked {
    /// An error about the repository.
    pub(super) fn wrong(&self, reason: &str) -> Error {
        anyhow!("{}@{}: {reason}", self.id, self.revision)
    }

    /// An error of a request; `file` is what was being fetched, if it was a file.
    pub(super) fn fault(&self, file: Option<&str>, trouble: &Trouble) -> Error {
        let reason = match trouble {
            Trouble::Request(error) => self.request(error),
            Trouble::Body(error) | Trouble::Disk(error) => self.io(error),
            Trouble::Stalled(time) => {
                self.unreachable(&format!("nothing came for {} s", time.as_secs()))
            }
            Trouble::Short { announced, came } => {
                format!("the hub announced {announced} bytes, {came} came; run it again")
            }
            Trouble::Storage(code) => {
                format!("the host that the hub keeps it on answers {code}; try again later")
            }
            Trouble::Answer(what) => self.strange(what),
        };
        match file {
            Some(file) => self.wrong(&format!("{file}: {reason}")),
            None => self.wrong(&reason),
        }
    }

    /// An error of a request.
    fn request(&self, error: &ureq::Error) -> String {
        match error {
            ureq::Error::StatusCode(code) => self.status(*code),
            ureq::Error::Io(error) if is_full(error) => self.io(error),
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                format!("HF_ENDPOINT is {}: an address http(s)://HOST is expected", self.endpoint)
            }
            ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) => {
                self.strange(&error.to_string())
            }
            other => self.unreachable(&other.to_string()),
        }
    }

    /// The hub's answer, where it is none.
    fn status(&self, code: u16) -> String {
        let Asked { id, revision, endpoint, .. } = self;
        match code {
            // The hub hides from strangers which names exist.
            401 if self.has_token => format!(
                "the hub refuses the token (401): HF_TOKEN is not valid, or {id} does not exist \
                 (nor does a folder of that name)"
            ),
            401 => format!(
                "the hub wants to know who asks (401): {id} is gated or private, or does not exist \
                 (nor does a folder of that name); set HF_TOKEN to a token that may read it"
            ),
            403 => format!(
                "the hub refuses access (403): ask for it at {endpoint}/{id}, and set HF_TOKEN to a \
                 token of that account that may read gated repositories"
            ),
            404 => format!(
                "{endpoint} has no repository {id}, or none with the revision {revision} (404); \
                 nor is there a folder of that name"
            ),
            429 => "the hub has had too many requests from here (429); try again later, or set \
                    HF_TOKEN"
                .to_owned(),
            500.. => format!("{endpoint} has a fault of its own ({code}); try again later"),
            _ => format!("{endpoint} answers {code}"),
        }
    }

    fn io(&self, error: &io::Error) -> String {
        if is_full(error) {
            return format!("no space left in {}: {error}", secateur::hub_cache().display());
        }
        // Errors of a body that is being read come as errors of files.
        let request = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
        if let Some(error) = request {
            return self.request(error);
        }
        if error.raw_os_error().is_none() || is_network(error) {
            return self.unreachable(&error.to_string());
        }
        format!("cannot write to {}: {error}", secateur::hub_cache().display())
    }

    /// A proxy or another server answered.
    fn strange(&self, what: &str) -> String {
        format!("{} does not answer like the hub: {what}", self.endpoint)
    }

    fn unreachable(&self, why: &str) -> String {
        format!(
            "cannot reach {}: {why}; running it again goes on from there, and --offline uses only \
             what the cache has",
            self.endpoint
        )
    }
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

fn is_network(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkDown,
        NetworkUnreachable, TimedOut,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | NetworkDown
            | NetworkUnreachable
            | TimedOut
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(has_token: bool) -> Asked {
        Asked { id: "a/b".into(), revision: "main".into(), endpoint: "http://h".into(), has_token }
    }

    fn said(trouble: &Trouble) -> String {
        asked(false).fault(Some("f"), trouble).to_string()
    }

    #[test]
    fn a_full_disk_and_a_lost_network_are_told_apart() {
        let os = |code| Trouble::Disk(io::Error::from_raw_os_error(code));
        // ENOSPC, EACCES and ECONNRESET of Linux.
        assert!(said(&os(28)).starts_with("a/b@main: f: no space left in "));
        assert!(said(&os(13)).contains("cannot write to "));
        assert!(said(&os(104)).contains("cannot reach http://h: "));
        let body = io::Error::new(io::ErrorKind::UnexpectedEof, "peer disconnected");
        assert!(said(&Trouble::Body(body)).contains("running it again goes on"));
        let wrapped = io::Error::other(ureq::Error::HostNotFound);
        assert!(said(&Trouble::Body(wrapped)).contains("cannot reach http://h: "));
        let stalled = Trouble::Stalled(Duration::from_secs(60));
        assert!(stalled.may_pass() && said(&stalled).contains("nothing came for 60 s"));
        assert!(!os(28).may_pass());
    }

    #[test]
    fn each_status_says_what_to_do() {
        for (code, word) in [
            (401, "set HF_TOKEN"),
            (403, "http://h/a/b"),
            (404, "no repository a/b, or none with the revision main"),
            (429, "too many"),
            (503, "try again later"),
            (418, "418"),
        ] {
            let trouble = Trouble::Request(ureq::Error::StatusCode(code));
            assert_eq!(trouble.may_pass(), code == 503);
            assert!(said(&trouble).contains(word), "{code}");
        }
        assert!(asked(true).status(401).contains("HF_TOKEN is not valid"));
    }
}
