//! Requests to the hub: what a repository has, how long a file is, and its bytes.
//!
//! Invariants
//! - The token goes to the hub's own host and nowhere else: redirects are followed by hand, and a
//!   storage host gets the request without it.
//! - Every wait has an end: for a connection, for an answer, and for the next bytes of a body.
//! - What is read into memory has a limit; what a header says is checked before it is used.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use anyhow::Result;
use serde::Deserialize;
use ureq::http::{HeaderMap, Response, Uri, header};
use ureq::{Agent, Body};

use super::fault::{Asked, Trouble};
use super::is_plain;

const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(60);
/// How long a body may bring nothing.
const STALL: Duration = Duration::from_secs(60);
const MOST_REDIRECTS: usize = 5;
/// Repositories of many thousand files have lists of some megabytes.
const MOST_LIST_BYTES: u64 = 64 << 20;
const CHUNK: usize = 1 << 18;

/// A repository at the hub.
pub(super) struct Remote {
    agent: Agent,
    asked: Asked,
    token: Option<String>,
}

/// The files of a repository and the commit that a revision stands for.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: BTreeSet<String>,
}

/// What the hub says of a file.
pub(super) struct Announced {
    pub(super) bytes: u64,
    /// Without quotes; one name in a path.
    pub(super) etag: String,
}

/// Takes a part of a file, and where it belongs.
pub(super) type TakeAt<'a> = dyn FnMut(u64, &[u8]) -> Result<(), Trouble> + 'a;

/// Method of a request.
#[derive(Clone, Copy, PartialEq)]
enum Method {
    Head,
    Get,
}

impl Remote {
    pub(super) fn new(asked: Asked, token: Option<String>) -> Self {
        let agent = Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(ANSWER))
            .user_agent(concat!("secateur/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Self { agent, asked, token }
    }

    /// The files of the revision that was asked for.
    ///
    /// # Errors
    /// No access, no network, an answer that is not the hub's.
    pub(super) fn list(&self) -> Result<Listing> {
        #[derive(Deserialize)]
        struct Info {
            sha: String,
            #[serde(default)]
            siblings: Vec<File>,
        }
        #[derive(Deserialize)]
        struct File {
            rfilename: String,
        }
        let Asked { id, revision, endpoint, .. } = &self.asked;
        let revision = revision.replace('/', "%2F");
        let url = format!("{endpoint}/api/models/{id}/revision/{revision}");
        let mut answer = self
            .send(Method::Get, &url, None)
            .map_err(|trouble| self.asked.fault(None, &trouble))?;
        let body = answer.body_mut().with_config().limit(MOST_LIST_BYTES).read_to_vec();
        let body = body.map_err(|e| self.asked.fault(None, &Trouble::Request(e)))?;
        let info: Info = serde_json::from_slice(&body).map_err(|e| {
            self.asked.wrong(&format!("{endpoint} does not answer like the hub: {e}"))
        })?;
        if !is_plain(&info.sha) {
            return Err(self.asked.wrong(&format!("the hub names a commit `{}`", info.sha)));
        }
        let files = info.siblings.into_iter().map(|file| file.rfilename).collect();
        Ok(Listing { commit: info.sha, files })
    }

    /// Length and name of a file's content.
    ///
    /// # Errors
    /// As [`Remote::list`].
    pub(super) fn announced(&self, commit: &str, name: &str) -> Result<Announced> {
        let answer = self
            .resolved(Method::Head, commit, name, None)
            .map_err(|trouble| self.asked.fault(Some(name), &trouble))?;
        let Answer { linked, last } = answer;
        // A redirect to a storage host says both; a small file's own answer says them itself.
        let said = |key: &str, own: header::HeaderName| {
            let text = |h: &HeaderMap| Some(h.get(key)?.to_str().ok()?.to_owned());
            let own = || Some(last.headers().get(own)?.to_str().ok()?.to_owned());
            linked.as_ref().and_then(text).or_else(|| text(last.headers())).or_else(own)
        };
        let missing = |what: &str| {
            let endpoint = &self.asked.endpoint;
            self.asked.wrong(&format!(
                "{name}: {endpoint} does not answer like the hub: no {what} of the file"
            ))
        };
        let etag = said("x-linked-etag", header::ETAG).ok_or_else(|| missing("ETag"))?;
        let etag = etag.trim_start_matches("W/").replace('"', "");
        if !is_plain(&etag) {
            return Err(self.asked.wrong(&format!("{name}: the hub's ETag is `{etag}`")));
        }
        let bytes = said("x-linked-size", header::CONTENT_LENGTH)
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| missing("length"))?;
        Ok(Announced { bytes, etag })
    }

    /// Brings the bytes of a file from `from` on; `take` gets each part, and where it belongs: 0
    /// again if the server has no ranges.
    ///
    /// # Errors
    /// No access, a transfer that breaks off or stalls, what `take` says.
    pub(super) fn transfer(
        &self,
        commit: &str,
        name: &str,
        from: u64,
        take: &mut TakeAt<'_>,
    ) -> Result<(), Trouble> {
        let answer = self.resolved(Method::Get, commit, name, Some(from))?.last;
        let is_part = answer.status().as_u16() == 206;
        let start: Option<u64> = answer
            .headers()
            .get(header::CONTENT_RANGE)
            .and_then(|v| v.to_str().ok()?.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
        let mut at = match (is_part, start) {
            (true, Some(start)) if start == from => from,
            (false, _) => 0,
            (true, _) => {
                let said = "the answer to a range is another range".to_owned();
                return Err(Trouble::Answer(said));
            }
        };
        pump(answer.into_body().into_reader(), STALL, &mut |part| {
            take(at, part)?;
            at += part.len() as u64;
            Ok(())
        })
    }

    /// The answer to a file's address, past the hub's own redirects, and past that to a storage
    /// host if the body is wanted.
    fn resolved(
        &self,
        method: Method,
        commit: &str,
        name: &str,
        from: Option<u64>,
    ) -> Result<Answer, Trouble> {
        let Asked { id, endpoint, .. } = &self.asked;
        let mut url = format!("{endpoint}/{id}/resolve/{commit}/{name}");
        let mut linked = None;
        for _ in 0..=MOST_REDIRECTS {
            let last = self.send(method, &url, from)?;
            if !last.status().is_redirection() {
                return Ok(Answer { linked, last });
            }
            let location = last.headers().get(header::LOCATION).and_then(|v| v.to_str().ok());
            let next = location
                .and_then(|to| absolute(&url, to))
                .ok_or_else(|| Trouble::Answer("a redirect without an address".to_owned()))?;
            let is_elsewhere = !self.is_own(&next);
            if is_elsewhere {
                linked.get_or_insert_with(|| last.headers().clone());
                if method == Method::Head {
                    return Ok(Answer { linked, last });
                }
            }
            url = next;
        }
        Err(Trouble::Answer(format!("more than {MOST_REDIRECTS} redirects")))
    }

    /// One request; the token goes along if the address is the hub's.
    fn send(
        &self,
        method: Method,
        url: &str,
        from: Option<u64>,
    ) -> Result<Response<Body>, Trouble> {
        let mut request = match method {
            Method::Head => self.agent.head(url),
            Method::Get => self.agent.get(url),
        };
        if let Some(token) = self.token.as_ref().filter(|_| self.is_own(url)) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(from) = from {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        let answer = request.call().map_err(Trouble::Request)?;
        match answer.status() {
            status if status.is_success() || status.is_redirection() => Ok(answer),
            status => Err(Trouble::Request(ureq::Error::StatusCode(status.as_u16()))),
        }
    }

    /// Whether an address is on the hub's own host, by the same scheme and port.
    fn is_own(&self, url: &str) -> bool {
        let place = |text: &str| {
            let uri: Uri = text.parse().ok()?;
            Some((uri.scheme_str()?.to_owned(), uri.authority()?.as_str().to_ascii_lowercase()))
        };
        place(url).is_some_and(|p| place(&self.asked.endpoint) == Some(p))
    }
}

/// An answer, and the headers of the redirect that led to another host.
struct Answer {
    linked: Option<HeaderMap>,
    last: Response<Body>,
}

/// Where a `Location` leads that stands in an answer of `url`.
fn absolute(url: &str, location: &str) -> Option<String> {
    if location.starts_with("https://") || location.starts_with("http://") {
        return Some(location.to_owned());
    }
    let uri: Uri = url.parse().ok()?;
    let host = format!("{}://{}", uri.scheme_str()?, uri.authority()?);
    location.starts_with('/').then(|| format!("{host}{location}"))
}

/// Reads a body to its end; between two parts at most `stall` may pass. A thread of its own waits
/// for the network, because a read that hangs cannot be called off.
fn pump(
    mut body: impl Read + Send + 'static,
    stall: Duration,
    take: &mut dyn FnMut(&[u8]) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let (to, parts) = sync_channel(4);
    std::thread::spawn(move || {
        loop {
            let mut part = vec![0; CHUNK];
            let read = body.read(&mut part).map(|count| {
                part.truncate(count);
                part
            });
            let is_over = read.as_ref().map_or(true, Vec::is_empty);
            // Nobody listens any more: the transfer was given up.
            if to.send(read).is_err() || is_over {
                return;
            }
        }
    });
    loop {
        match parts.recv_timeout(stall) {
            Ok(Ok(part)) if part.is_empty() => return Ok(()),
            Ok(Ok(part)) => take(&part)?,
            Ok(Err(error)) => return Err(Trouble::Body(error)),
            Err(RecvTimeoutError::Timeout) => return Err(Trouble::Stalled(stall)),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Trouble::Answer("the transfer ended without an end".to_owned()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_read_from_where_it_stands() {
        let at = |location| absolute("https://hub.example/a/b", location);
        assert_eq!(at("/c?d=1").as_deref(), Some("https://hub.example/c?d=1"));
        assert_eq!(at("https://cdn.example/x").as_deref(), Some("https://cdn.example/x"));
        assert_eq!(at("ftp://cdn.example/x"), None);
        assert_eq!(at(""), None);
    }

    #[test]
    fn only_the_hubs_own_host_is_its_own() {
        let asked = Asked {
            id: "a/b".into(),
            revision: "main".into(),
            endpoint: "https://hub.example".into(),
            has_token: true,
        };
        let remote = Remote::new(asked, Some("secret".into()));
        assert!(remote.is_own("https://hub.example/x") && remote.is_own("https://HUB.example/"));
        for other in [
            "http://hub.example/x",
            "https://hub.example:8443/",
            "https://x.hub.example/",
            "https://hub.example.evil/",
            "https://hub.example@evil/",
            "nonsense",
        ] {
            assert!(!remote.is_own(other), "{other}");
        }
    }

    /// Gives a part, then nothing for ever.
    struct Hanging(bool);

    impl Read for Hanging {
        fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
            if std::mem::replace(&mut self.0, true) {
                loop {
                    std::thread::park();
                }
            }
            to[0] = 7;
            Ok(1)
        }
    }

    #[test]
    fn a_body_that_stalls_is_given_up_after_what_came() {
        let mut came = Vec::new();
        let ended = pump(Hanging(false), Duration::from_millis(20), &mut |part| {
            came.extend_from_slice(part);
            Ok(())
        });
        assert!(matches!(ended, Err(Trouble::Stalled(_))));
        assert_eq!(came, [7]);
    }
}
