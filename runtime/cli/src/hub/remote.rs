//! Requests to the hub: what a repository has, how long a file is, and its bytes.
//!
//! Invariants
//! - The token goes to the hub's own host and nowhere else: redirects are followed by hand, and a
//!   storage host gets the request without it.
//! - Every wait has an end: for a connection, for an answer, and for the next bytes of a body.
//! - What is read into memory has a limit; what a header says is checked before it is used.

use std::collections::BTreeSet;
use std::io::Read;
use std::time::Duration;

use anyhow::Result;
use serde::Deserialize;
use ureq::http::{Response, Uri, header};
use ureq::{Agent, Body, Timeout};

use super::fault::{Asked, Trouble};
use super::is_plain;

const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(60);
/// How long a connection may bring nothing.
pub(super) const STALL: Duration = Duration::from_secs(60);
/// For the whole of a list; a file has no such limit.
const LIST: Duration = Duration::from_secs(60);
const MOST_REDIRECTS: usize = 5;
/// Repositories of many thousand files have lists of some megabytes.
const MOST_LIST_BYTES: u64 = 64 << 20;
/// Far above any file, and far below where sums overflow.
const MOST_FILE_BYTES: u64 = 1 << 44;
/// Hashes have 40 or 64 digits; names of files end at 255 bytes.
const MOST_ETAG: usize = 128;
const CHUNK: usize = 1 << 18;
/// What the hub says of a file that lies on a storage host.
const LINKED_ETAG: &str = "X-Linked-Etag";
const LINKED_SIZE: &str = "X-Linked-Size";

/// A repository at the hub.
pub(super) struct Remote {
    agent: Agent,
    asked: Asked,
    token: Option<String>,
    stall: Duration,
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
    pub(super) fn new(asked: Asked, token: Option<String>, stall: Duration) -> Self {
        let agent = Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(stall))
            .timeout_per_write(Some(stall))
            .timeout_recv_response(Some(ANSWER))
            // Lengths and hashes are those of the file as it is.
            .accept_encoding("identity")
            .user_agent(concat!("secateur/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Self { agent, asked, token, stall }
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
            .follow(Method::Get, url, None)
            .map_err(|trouble| self.asked.fault(None, &trouble))?;
        let body = answer.body_mut().with_config().limit(MOST_LIST_BYTES).read_to_vec();
        let body = body.map_err(|e| self.asked.fault(None, &self.broken(e)))?;
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
        let refused = |trouble| self.asked.fault(Some(name), &trouble);
        let url = self.address(commit, name);
        let answer = self.follow(Method::Head, url, None).map_err(refused)?;
        // A redirect to a storage host says both; a small file's own answer says them itself.
        let said = |linked: &'static str, own: &'static str| {
            let found = [linked, own].into_iter().find_map(|n| Some((n, answer.headers().get(n)?)));
            found.ok_or_else(|| refused(Trouble::Answer(format!("neither {linked} nor {own}"))))
        };
        let wrong = |header: &str, value| {
            refused(Trouble::Answer(format!("the header {header} is {value:?}")))
        };
        let (header, value) = said(LINKED_ETAG, "ETag")?;
        let etag = value.to_str().unwrap_or_default();
        let etag = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"').to_owned();
        if !is_plain(&etag) || etag.len() > MOST_ETAG {
            return Err(wrong(header, value));
        }
        let (header, value) = said(LINKED_SIZE, "Content-Length")?;
        let bytes = value.to_str().ok().and_then(|text| text.parse().ok());
        let bytes = bytes.filter(|bytes| *bytes <= MOST_FILE_BYTES);
        Ok(Announced { bytes: bytes.ok_or_else(|| wrong(header, value))?, etag })
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
        let answer = self.follow(Method::Get, self.address(commit, name), Some(from))?;
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
        let (mut body, mut part) = (answer.into_body().into_reader(), vec![0; CHUNK]);
        loop {
            let count = match body.read(&mut part) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) => return Err(self.broken(error.into())),
            };
            take(at, &part[..count])?;
            at += count as u64;
        }
    }

    /// What ended a body.
    fn broken(&self, error: ureq::Error) -> Trouble {
        match error {
            ureq::Error::Timeout(Timeout::PerRead) => Trouble::Stalled(self.stall),
            ureq::Error::Io(error) => Trouble::Body(error),
            other => Trouble::Request(other),
        }
    }

    fn address(&self, commit: &str, name: &str) -> String {
        format!("{}/{}/resolve/{commit}/{name}", self.asked.endpoint, self.asked.id)
    }

    /// The answer at an address, past redirects; of a file's description the first redirect that
    /// says all of it, because storage hosts have other names for it or refuse the question.
    fn follow(
        &self,
        method: Method,
        mut url: String,
        from: Option<u64>,
    ) -> Result<Response<Body>, Trouble> {
        for _ in 0..=MOST_REDIRECTS {
            let answer = self.send(method, &url, from)?;
            let headers = answer.headers();
            let describes = headers.contains_key(LINKED_ETAG) && headers.contains_key(LINKED_SIZE);
            if !answer.status().is_redirection() || (method == Method::Head && describes) {
                return Ok(answer);
            }
            url = headers
                .get(header::LOCATION)
                .and_then(|to| absolute(&url, to.to_str().ok()?))
                .ok_or_else(|| Trouble::Answer("a redirect without an address".to_owned()))?;
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
        let is_own = self.is_own(url);
        if let Some(token) = self.token.as_ref().filter(|_| is_own) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        request = match from {
            Some(from) => request.header(header::RANGE, format!("bytes={from}-")),
            None => request.config().timeout_recv_body(Some(LIST)).build(),
        };
        let answer = request.call().map_err(Trouble::Request)?;
        match answer.status() {
            status if status.is_success() || status.is_redirection() => Ok(answer),
            status if is_own => Err(Trouble::Request(ureq::Error::StatusCode(status.as_u16()))),
            status => Err(Trouble::Storage(status.as_u16())),
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

/// Where a `Location` leads that stands in an answer of `url`.
fn absolute(url: &str, location: &str) -> Option<String> {
    let from: Uri = url.parse().ok()?;
    let scheme = from.scheme_str()?;
    let to = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{}{location}", from.authority()?)
    } else {
        location.to_owned()
    };
    let uri: Uri = to.parse().ok()?;
    let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
    (is_web && uri.host().is_some_and(|host| !host.is_empty())).then_some(to)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use super::*;

    fn remote(endpoint: &str, stall: Duration) -> Remote {
        let asked = Asked {
            id: "a/b".into(),
            revision: "main".into(),
            endpoint: endpoint.into(),
            has_token: true,
        };
        Remote::new(asked, Some("secret".into()), stall)
    }

    #[test]
    fn a_location_is_read_from_where_it_stands() {
        let at = |location| absolute("https://hub.example/a/b", location);
        assert_eq!(at("/c?d=1").as_deref(), Some("https://hub.example/c?d=1"));
        assert_eq!(at("https://cdn.example/x").as_deref(), Some("https://cdn.example/x"));
        assert_eq!(at("//cdn.example/x").as_deref(), Some("https://cdn.example/x"));
        assert_eq!(at("ftp://cdn.example/x"), None);
        assert_eq!(at("https://"), None);
        assert_eq!(at(""), None);
    }

    #[test]
    fn only_the_hubs_own_host_is_its_own() {
        let remote = remote("https://hub.example", STALL);
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

    /// A server that answers the requests it gets with `answers`, one each, and then is silent: no
    /// connection ends before the last.
    fn server(answers: &'static [&'static str]) -> Remote {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for (stream, answer) in listener.incoming().map_while(Result::ok).zip(answers) {
                let lines = BufReader::new(&stream).lines().map_while(Result::ok);
                // To the end of the request's head.
                lines.take_while(|line| !line.is_empty()).for_each(drop);
                (&stream).write_all(answer.as_bytes()).unwrap();
                held.push(stream);
            }
            std::thread::park();
        });
        remote(&format!("http://{address}"), Duration::from_millis(200))
    }

    #[test]
    fn a_transfer_that_stalls_is_given_up_after_what_came_and_goes_on_there() {
        let remote = server(&[
            "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc",
            "HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\n\
             Content-Range: bytes 3-5/6\r\n\r\ndef",
        ]);
        let mut came = Vec::new();
        let mut take = |at: u64, bytes: &[u8]| {
            came.truncate(at as usize);
            came.extend_from_slice(bytes);
            Ok(())
        };
        let stalled = remote.transfer("c", "f", 0, &mut take);
        assert!(matches!(stalled, Err(Trouble::Stalled(_))), "{stalled:?}");
        remote.transfer("c", "f", 3, &mut take).unwrap();
        assert_eq!(came, b"abcdef");
    }

    #[test]
    fn a_list_that_stalls_is_given_up() {
        let remote = server(&["HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n{\"sha\""]);
        let said = remote.list().err().unwrap().to_string();
        assert!(said.contains("nothing came for "), "{said}");
    }

    #[test]
    fn what_the_hub_does_not_say_is_refused_by_name() {
        for (head, words) in [
            ("200 OK\r\nContent-Length: 5", "neither X-Linked-Etag nor ETag"),
            ("200 OK\r\nETag: \"e\"\r\nX-Linked-Size: -5\r\nContent-Length: 5", "X-Linked-Size"),
            ("200 OK\r\nETag: \"e\"\r\nX-Linked-Size: 18446744073709551615", "X-Linked-Size"),
            ("200 OK\r\nETag: \"\u{e9}\"\r\nContent-Length: 5", "ETag"),
            ("200 OK\r\nETag: \"\"\r\nContent-Length: 5", "ETag"),
            ("200 OK\r\nETag: \"..\"\r\nContent-Length: 5", "ETag"),
            ("302 Found\r\nContent-Length: 0", "redirect without an address"),
            ("302 Found\r\nLocation: ftp://h/x\r\nContent-Length: 0", "redirect without"),
            ("302 Found\r\nLocation: http://:x/\r\nContent-Length: 0", "redirect without"),
            ("000 What\r\n: \r\n", "does not answer like the hub"),
        ] {
            let answer: &'static str = format!("HTTP/1.1 {head}\r\n\r\n").leak();
            let said = server(vec![answer].leak()).announced("c", "f").err().unwrap().to_string();
            assert!(said.contains(words), "{head}: {said}");
        }
    }

    #[test]
    fn redirects_have_an_end() {
        let again = "HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\
                     Connection: close\r\n\r\n";
        let remote = server(vec![again; MOST_REDIRECTS + 1].leak());
        let said = remote.announced("c", "f").err().unwrap().to_string();
        assert!(said.contains("more than 5 redirects"), "{said}");
    }
}
