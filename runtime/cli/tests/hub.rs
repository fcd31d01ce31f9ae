//! Hub ids through the real program and a hub of our own: a server in this process that knows the
//! hub's addresses and headers, and serves the files of a tiny model.
#![cfg(feature = "hub")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Arc, Mutex};

use support::{secateur, texts};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The checkpoint that the README names first.
const README: &str = "HuggingFaceTB/SmolVLM-256M-Instruct";
const WEIGHTS: &str = "model.safetensors";

/// What is wrong with the server, besides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// The first transfer of the weights ends in the middle.
    Cut,
    /// Transfers of the weights end properly at half of what was announced.
    Short,
    /// The ETag leads out of the cache.
    Etag,
    /// The ETag of the weights is the SHA-256 of something else.
    Hash,
    /// The storage host has no ranges: a transfer that goes on gets all of the file.
    NoRanges,
    /// The hub sends on to the storage host without a word about the file.
    Unlinked,
    /// The storage host names another range than it was asked for.
    Range,
    /// The storage host refuses the first transfer, as where its address has run out.
    Expired,
}

/// A request: its path, range and token.
#[derive(Clone, Debug)]
struct Asked {
    path: String,
    range: Option<(usize, Option<usize>)>,
    token: Option<String>,
}

/// The server; it ends with the test.
struct Hub {
    address: String,
    seen: Arc<Mutex<Vec<Asked>>>,
}

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models/llava-1.5-tiny")
}

impl Hub {
    fn start(fault: Fault) -> Self {
        Self::serving(&model(), fault)
    }

    fn serving(model: &Path, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let mut files: BTreeMap<String, Vec<u8>> = fs::read_dir(model)
            .expect("the model")
            .map(|entry| {
                let path = entry.expect("an entry").path();
                let name = path.file_name().expect("a name").to_string_lossy().into_owned();
                (name, fs::read(path).expect("a file"))
            })
            .collect();
        for name in ["README.md", "pytorch_model.bin", "onnx/model.onnx", "model.gguf"] {
            files.insert(name.to_owned(), b"nobody needs this".to_vec());
        }
        let seen = Arc::new(Mutex::new(Vec::new()));
        let hub = Self { address: address.clone(), seen: seen.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let asked = read(&stream);
                let is_first =
                    !seen.lock().expect("no panic").iter().any(|a: &Asked| is_transfer(a));
                seen.lock().expect("no panic").push(asked.clone());
                // A client that left does not matter here.
                let _ = answer(stream, &asked, &files, &address, fault, is_first);
            }
        });
        hub
    }

    fn seen(&self) -> Vec<Asked> {
        self.seen.lock().expect("no panic").clone()
    }

    /// Runs the program in `folder` against this hub.
    fn run(&self, folder: &Path, env: &[(&str, &str)], args: &[&str]) -> Output {
        secateur(folder)
            .env("HF_HOME", folder.join("hf"))
            // The slash is what people type.
            .env("HF_ENDPOINT", format!("http://{}/", self.address))
            .envs(env.iter().copied())
            .args(args)
            .output()
            .expect("the program starts")
    }

    /// The answer to one question.
    fn ask(&self, folder: &Path, model: &str, env: &[(&str, &str)]) -> (i32, String, String) {
        let args = ["ask", "-m", model, "-i", "in/000.png", "--max-tokens", "6", "What is this?"];
        texts(&self.run(folder, env, &args))
    }
}

/// The transfer of the weights, not the look at their length.
fn is_transfer(asked: &Asked) -> bool {
    asked.path.starts_with("/cdn/") && matches!(asked.range, Some((_, None)))
}

fn read(stream: &TcpStream) -> Asked {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut asked = Asked { path, range: None, token: None };
    for line in lines.take_while(|line| !line.is_empty()) {
        let Some((name, value)) = line.split_once(": ") else { continue };
        match &*name.to_ascii_lowercase() {
            "range" => {
                let (from, to) =
                    value.trim_start_matches("bytes=").split_once('-').expect("a range");
                asked.range = Some((from.parse().expect("a number"), to.parse().ok()));
            }
            "authorization" => asked.token = value.strip_prefix("Bearer ").map(str::to_owned),
            _ => {}
        }
    }
    asked
}

/// Writes an answer of which `sent` bytes are sent.
fn put(mut to: TcpStream, head: &str, body: &[u8], sent: usize) -> std::io::Result<()> {
    let length = body.len();
    write!(to, "HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
    to.write_all(&body[..sent])
}

fn answer(
    to: TcpStream,
    asked: &Asked,
    files: &BTreeMap<String, Vec<u8>>,
    address: &str,
    fault: Fault,
    is_first: bool,
) -> std::io::Result<()> {
    let empty = |to, head: &str| put(to, head, b"", 0);
    let path = asked.path.trim_start_matches('/');
    // A repository that has another name now.
    if path.contains("tests/moved/") {
        let now = asked.path.replace("tests/moved/", "tests/gated/");
        return empty(to, &format!("307 Temporary Redirect\r\nLocation: {now}"));
    }
    let is_known = asked.token.as_deref() == Some("good");
    if let Some(rest) = path.strip_prefix("api/models/") {
        return match rest.split_once("/revision/") {
            Some(("tests/tiny" | "tests/gated" | README, "main" | "v1" | COMMIT)) => {
                let names: Vec<_> =
                    files.keys().map(|n| serde_json::json!({"rfilename": n})).collect();
                let info = serde_json::json!({"sha": COMMIT, "siblings": names}).to_string();
                put(to, "200 OK\r\nContent-Type: application/json", info.as_bytes(), info.len())
            }
            Some(("tests/private", _)) => empty(to, "401 Unauthorized"),
            Some(("tests/closed", _)) => empty(to, "403 Forbidden"),
            _ => empty(to, "404 Not Found"),
        };
    }
    if path.starts_with("tests/gated/") && !is_known {
        return empty(to, "401 Unauthorized");
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    let Some(content) = files.get(name) else { return empty(to, "404 Not Found") };
    let etag = match fault {
        Fault::Etag => "../../../../stray".to_owned(),
        Fault::Hash if name == WEIGHTS => "0".repeat(64),
        _ => format!("{}-of-the-hub", name.replace('.', "-")),
    };
    // Large files lie elsewhere, as at the hub: on a host of another name.
    if name == WEIGHTS && path.contains("/resolve/") {
        let elsewhere = address.replace("127.0.0.1", "localhost");
        let head = format!("302 Found\r\nLocation: http://{elsewhere}/cdn/{name}");
        let linked = format!(
            "X-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {}\r\nX-Repo-Commit: {COMMIT}",
            content.len()
        );
        return match fault {
            Fault::Unlinked => empty(to, &head),
            _ => empty(to, &format!("{head}\r\n{linked}")),
        };
    }
    let (from, to_byte) = asked.range.unwrap_or((0, None));
    let to_byte = to_byte.map_or(content.len(), |last| last + 1);
    let mut part = &content[from.min(content.len())..to_byte];
    let head = format!(
        "206 Partial Content\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\n\
         Content-Range: bytes {from}-{}/{}",
        to_byte - 1,
        content.len()
    );
    let mut sent = part.len();
    if fault == Fault::NoRanges && is_transfer(asked) {
        return put(to, "200 OK", content, if is_first { sent / 2 } else { content.len() });
    }
    if is_transfer(asked) {
        match fault {
            Fault::Cut if is_first => sent /= 2,
            Fault::Short => {
                part = &part[..(content.len() / 2).saturating_sub(from)];
                sent = part.len();
            }
            Fault::Range => {
                let head = "206 Partial Content\r\nContent-Range: bytes 7-8/9";
                return put(to, head, part, sent);
            }
            Fault::Expired if is_first => return empty(to, "403 Forbidden"),
            _ => {}
        }
    }
    put(to, &head, part, sent)
}

/// The model's folder in the cache.
fn cached(folder: &Path, name: &str) -> PathBuf {
    folder.join("hf/hub").join(format!("models--tests--{name}"))
}

/// The answer of the model from its own folder.
fn expected(folder: &Path) -> String {
    let model = model().display().to_string();
    let hub = Hub { address: "127.0.0.1:9".into(), seen: Arc::default() };
    let (code, out, err) = hub.ask(folder, &model, &[]);
    assert_eq!(code, 0, "{err}");
    out
}

#[test]
fn the_first_run_downloads_and_the_next_needs_no_network() {
    let (folder, hub) = (support::pictures(1), Hub::start(Fault::None));
    let expected = expected(folder.path());
    let (code, out, err) = hub.ask(folder.path(), "tests/tiny", &[]);
    assert_eq!((code, &out), (0, &expected), "{err}");
    assert!(!err.contains("download") && !err.contains('%'), "no terminal, no progress: {err}");

    let cached = cached(folder.path(), "tiny");
    assert_eq!(fs::read_to_string(cached.join("refs/main")).unwrap(), COMMIT);
    let entries = support::tree(&cached.join("snapshots").join(COMMIT));
    let original = support::tree(&model());
    assert_eq!(entries, original, "the model's files and no others");
    let link = fs::read_link(cached.join("snapshots").join(COMMIT).join(WEIGHTS)).unwrap();
    assert_eq!(link, Path::new("../../blobs/model-safetensors-of-the-hub"));
    assert!(!cached.join(".incomplete").exists());

    let before = hub.seen().len();
    for env in [&[("HF_HUB_OFFLINE", "1")][..], &[("SECATEUR_OFFLINE", "1")], &[]] {
        for model in ["tests/tiny", &format!("tests/tiny@{COMMIT}")] {
            let (code, out, err) = hub.ask(folder.path(), model, env);
            assert_eq!((code, &out), (0, &expected), "{env:?}: {err}");
        }
    }
    assert_eq!(hub.seen().len(), before, "what is in the cache is not asked for");
    // Another name of the same commit moves no content.
    let (code, out, err) = hub.ask(folder.path(), "tests/tiny@v1", &[]);
    assert_eq!((code, &out), (0, &expected), "{err}");
    assert_eq!(hub.seen().iter().filter(|a| is_transfer(a)).count(), 1);
}

#[test]
fn a_description_brings_no_weights_and_a_question_the_rest() {
    let (folder, hub) = (support::pictures(1), Hub::start(Fault::None));
    let (code, out, err) = texts(&hub.run(folder.path(), &[], &["models", "tests/tiny"]));
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("none in the folder"), "{out}");
    let tokens = ["tokens", "-m", "tests/tiny", "--size", "64x64", "--offline"];
    let (code, _, err) = texts(&hub.run(folder.path(), &[], &tokens));
    assert_eq!(code, 0, "{err}");
    let small = hub.seen();
    assert!(!small.iter().any(|a| a.path.contains(WEIGHTS)), "{small:?}");
    let (code, _, err) = hub.ask(folder.path(), "tests/tiny", &[("HF_HUB_OFFLINE", "1")]);
    assert!(code == 1 && err.contains(WEIGHTS), "{err}");
    let (code, out, err) = hub.ask(folder.path(), "tests/tiny", &[]);
    assert_eq!((code, out), (0, expected(folder.path())), "{err}");
}

#[test]
fn what_the_hub_refuses_is_said_with_its_remedy() {
    let (folder, hub) = (support::pictures(1), Hub::start(Fault::None));
    let bad = [("HF_TOKEN", "bad")];
    for (model, env, words) in [
        ("tests/none", &[][..], &["404", "no repository tests/none", "folder"][..]),
        ("tests/tiny@v9", &[], &["404", "revision v9"]),
        ("tests/private", &[], &["401", "set HF_TOKEN"]),
        ("tests/private", &bad, &["401", "HF_TOKEN is not valid"]),
        ("tests/closed", &bad, &["403", "/tests/closed", "HF_TOKEN"]),
        ("tests/gated", &[], &["401", "gated", "set HF_TOKEN"]),
    ] {
        let (code, out, err) = hub.ask(folder.path(), model, env);
        assert_eq!((code, &*out), (1, ""), "{model}: {err}");
        assert!(words.iter().all(|w| err.contains(w)), "{model}: {err}");
        let name = model.trim_start_matches("tests/").split('@').next().unwrap();
        assert!(!cached(folder.path(), name).join("snapshots").exists(), "{model}");
    }
    // The same gate, with a token that opens it, and that the storage host never sees.
    let before = hub.seen().len();
    let (code, _, err) = hub.ask(folder.path(), "tests/gated", &[("HF_TOKEN", "good")]);
    assert_eq!(code, 0, "{err}");
    let seen = &hub.seen()[before..];
    let (elsewhere, own): (Vec<_>, Vec<_>) = seen.iter().partition(|a| a.path.starts_with("/cdn"));
    assert!(!elsewhere.is_empty() && elsewhere.iter().all(|a| a.token.is_none()), "{elsewhere:?}");
    assert!(own.iter().all(|a| a.token.as_deref() == Some("good")), "{own:?}");
}

#[test]
fn without_a_network_the_error_says_so() {
    let (folder, hub) = (support::pictures(1), Hub::start(Fault::None));
    let args = ["ask", "-m", "tests/tiny", "--offline", "-i", "in/000.png", "What?"];
    let (code, _, err) = texts(&hub.run(folder.path(), &[], &args));
    assert!(code == 1 && err.contains("not in the hub cache"), "{err}");
    assert!(err.contains("because of --offline"), "{err}");
    let (code, _, err) = hub.ask(folder.path(), "tests/tiny", &[("HF_HUB_OFFLINE", "1")]);
    assert!(code == 1 && err.contains("because of HF_HUB_OFFLINE"), "{err}");
    let (code, _, err) = hub.ask(folder.path(), "../tiny", &[]);
    assert!(code == 1 && err.contains("../tiny"), "{err}");
    assert!(hub.seen().is_empty(), "{:?}", hub.seen());

    // Nobody listens at the first port.
    let nobody = Hub { address: "127.0.0.1:1".into(), seen: Arc::default() };
    let (code, _, err) = nobody.ask(folder.path(), "tests/tiny", &[]);
    assert!(code == 1 && err.contains("cannot reach http://127.0.0.1:1: "), "{err}");
}

#[test]
fn a_transfer_that_breaks_off_goes_on_where_it_was() {
    let (folder, hub) = (support::pictures(1), Hub::start(Fault::Cut));
    let (code, out, err) = hub.ask(folder.path(), "tests/tiny", &[]);
    assert_eq!((code, out), (0, expected(folder.path())), "{err}");
    let starts: Vec<usize> =
        hub.seen().iter().filter(|a| is_transfer(a)).filter_map(|a| Some(a.range?.0)).collect();
    let half = fs::metadata(model().join(WEIGHTS)).unwrap().len() as usize / 2;
    assert_eq!(starts, [0, half]);
}

#[test]
fn a_server_without_ranges_sends_the_file_anew() {
    let (folder, hub) = (support::pictures(1), Hub::start(Fault::NoRanges));
    let (code, out, err) = hub.ask(folder.path(), "tests/tiny", &[]);
    assert_eq!((code, out), (0, expected(folder.path())), "{err}");
    assert_eq!(hub.seen().iter().filter(|a| is_transfer(a)).count(), 2);
}

#[test]
fn a_redirect_that_says_nothing_of_the_file_is_followed() {
    let (folder, hub) = (support::pictures(1), Hub::start(Fault::Unlinked));
    let (code, out, err) = hub.ask(folder.path(), "tests/tiny", &[]);
    assert_eq!((code, out), (0, expected(folder.path())), "{err}");
}

#[test]
fn a_repository_of_another_name_is_found_with_the_token() {
    let (folder, hub) = (support::pictures(1), Hub::start(Fault::None));
    let (code, out, err) = hub.ask(folder.path(), "tests/moved", &[("HF_TOKEN", "good")]);
    assert_eq!((code, out), (0, expected(folder.path())), "{err}");
    assert!(hub.seen().iter().all(|a| a.token.is_some() != a.path.starts_with("/cdn/")));
}

#[test]
fn an_address_that_ran_out_is_asked_for_again() {
    let (folder, hub) = (support::pictures(1), Hub::start(Fault::Expired));
    let (code, out, err) = hub.ask(folder.path(), "tests/tiny", &[]);
    assert_eq!((code, out), (0, expected(folder.path())), "{err}");
}

#[test]
fn an_answer_that_is_not_the_hubs_is_refused() {
    let (folder, hub) = (support::pictures(1), Hub::start(Fault::Range));
    let (code, _, err) = hub.ask(folder.path(), "tests/tiny", &[]);
    assert!(code == 1 && err.contains(WEIGHTS) && err.contains("another range"), "{err}");
    assert!(!cached(folder.path(), "tiny").join("snapshots").exists());
    let (code, _, err) = hub.ask(folder.path(), "tests/tiny", &[("HF_TOKEN", "a b")]);
    assert!(code == 1 && err.contains("HF_TOKEN"), "{err}");
    let (code, _, err) = hub.ask(folder.path(), "tests/tiny", &[("HF_ENDPOINT", "no address")]);
    assert!(code == 1 && err.contains("HF_ENDPOINT"), "{err}");
}

#[test]
fn content_of_another_hash_never_is_in_the_cache() {
    let (folder, hub) = (support::pictures(1), Hub::start(Fault::Hash));
    let (code, _, err) = hub.ask(folder.path(), "tests/tiny", &[]);
    assert!(code == 1 && err.contains(WEIGHTS) && err.contains("SHA-256"), "{err}");
    let cached = cached(folder.path(), "tiny");
    assert!(!cached.join("snapshots").exists() && !cached.join("refs").exists());
    let names: Vec<_> = support::tree(&cached).into_keys().collect();
    assert!(!names.iter().any(|n| n.to_string_lossy().contains(&"0".repeat(64))), "{names:?}");
}

#[test]
fn half_a_file_never_is_in_the_cache() {
    let (folder, hub) = (support::pictures(1), Hub::start(Fault::Short));
    let (code, _, err) = hub.ask(folder.path(), "tests/tiny", &[]);
    let bytes = fs::metadata(model().join(WEIGHTS)).unwrap().len();
    let words = format!("announced {bytes} bytes, {} came", bytes / 2);
    assert!(code == 1 && err.contains(WEIGHTS) && err.contains(&words), "{err}");
    let cached = cached(folder.path(), "tiny");
    assert!(!cached.join("snapshots").exists() && !cached.join("refs").exists());
    assert!(!cached.join("blobs/model-safetensors-of-the-hub").exists());
    let (code, _, err) = hub.ask(folder.path(), "tests/tiny", &[("HF_HUB_OFFLINE", "1")]);
    assert!(code == 1 && err.contains("not in the hub cache"), "{err}");
    // The hub is well again; what came before does not come again.
    let well = Hub::start(Fault::None);
    let (code, out, err) = well.ask(folder.path(), "tests/tiny", &[]);
    assert_eq!((code, out), (0, expected(folder.path())), "{err}");
    let starts: Vec<usize> = well.seen().iter().filter_map(|a| Some(a.range?.0)).collect();
    assert_eq!(starts, [bytes as usize / 2; 2], "the hub's address and the storage host's");
}

#[test]
fn names_from_the_network_stay_in_the_cache() {
    let (folder, hub) = (support::pictures(1), Hub::start(Fault::Etag));
    let (code, _, err) = hub.ask(folder.path(), "tests/tiny", &[]);
    assert!(code == 1 && err.contains("../../../../stray"), "{err}");
    let names: Vec<_> = support::tree(folder.path()).into_keys().collect();
    assert!(!names.iter().any(|n| n.to_string_lossy().contains("stray")), "{names:?}");
}

/// Writes a file and the folders above it.
fn put_file(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::File::create(path).and_then(|mut f| f.write_all(text.as_bytes())).expect("written");
}

/// Puts files of the model into the cache as other tools leave them: whole, and without marks of
/// what the repository does not have.
fn left_behind(folder: &Path, files: &[&str]) {
    let cached = cached(folder, "tiny");
    let snapshot = cached.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).expect("a folder");
    put_file(&cached.join("refs/main"), COMMIT);
    for file in files {
        fs::copy(model().join(file), snapshot.join(file)).expect("a copy");
    }
}

#[test]
fn a_cache_that_another_tool_left_partial_is_completed() {
    let all: Vec<String> = support::tree(&model())
        .into_keys()
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    let but = |left_out: &str| -> Vec<&str> {
        all.iter().map(String::as_str).filter(|name| *name != left_out).collect()
    };
    for files in [
        vec!["config.json"],
        vec!["config.json", WEIGHTS],
        vec!["config.json", "tokenizer.json", WEIGHTS],
        but("preprocessor_config.json"),
        but("tokenizer_config.json"),
        but("tokenizer.json"),
    ] {
        let (folder, hub) = (support::pictures(1), Hub::start(Fault::None));
        left_behind(folder.path(), &files);
        let tokens = ["tokens", "-m", "tests/tiny", "--size", "64x64"];
        let (code, _, err) = texts(&hub.run(folder.path(), &[], &tokens));
        assert_eq!(code, 0, "{files:?}: {err}");
        let (code, out, err) = hub.ask(folder.path(), "tests/tiny", &[]);
        assert_eq!((code, out), (0, expected(folder.path())), "{files:?}: {err}");
        let moved = hub.seen().iter().filter(|a| is_transfer(a)).count();
        assert_eq!(moved, usize::from(!files.contains(&WEIGHTS)), "{files:?}");
        let snapshot = cached(folder.path(), "tiny").join("snapshots").join(COMMIT);
        assert_eq!(support::tree(&snapshot), support::tree(&model()), "{files:?}");
        let before = hub.seen().len();
        let (code, _, err) = hub.ask(folder.path(), "tests/tiny", &[]);
        assert_eq!((code, hub.seen().len()), (0, before), "a whole cache asks nobody: {err}");
    }
}

#[test]
fn a_cache_that_suffices_serves_where_nobody_answers() {
    let folder = support::pictures(1);
    let files: Vec<String> = support::tree(&model())
        .into_keys()
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    left_behind(folder.path(), &files.iter().map(String::as_str).collect::<Vec<_>>());
    let nobody = Hub { address: "127.0.0.1:1".into(), seen: Arc::default() };
    let (code, out, err) = nobody.ask(folder.path(), "tests/tiny", &[]);
    assert_eq!((code, out), (0, expected(folder.path())), "{err}");
    assert!(err.contains("cannot reach") && err.contains("files in the cache"), "{err}");
    let (code, _, err) = nobody.ask(folder.path(), "tests/tiny", &[("HF_HUB_OFFLINE", "1")]);
    assert!(code == 0 && !err.contains("reach"), "{err}");
}

#[test]
fn the_token_is_read_where_the_hubs_own_tools_read_it() {
    const FILE: &str = "~/elsewhere";
    for (files, env, is_found) in [
        (&[][..], &[("HF_TOKEN", "good")][..], true),
        (&[], &[("HUGGING_FACE_HUB_TOKEN", " good\n")], true),
        (&[], &[("HF_TOKEN", "bad"), ("HUGGING_FACE_HUB_TOKEN", "good")], false),
        (&[("hf/token", "good\n")], &[], true),
        (&[("hf/token", "good")], &[("HF_HUB_CACHE", "other/cache")], true),
        (&[("other/token", "good")], &[("HF_HUB_CACHE", "other/cache")], false),
        (&[("elsewhere", "good"), ("hf/token", "bad")], &[("HF_TOKEN_PATH", FILE)], true),
        (&[("elsewhere", "bad")], &[("HF_TOKEN_PATH", FILE), ("HF_TOKEN", "good")], true),
        (&[], &[], false),
    ] {
        let (folder, hub) = (support::pictures(1), Hub::start(Fault::None));
        for (path, token) in files {
            put_file(&folder.path().join(path), token);
        }
        let (code, _, err) = hub.ask(folder.path(), "tests/gated", env);
        assert_eq!(code == 0, is_found, "{files:?} {env:?}: {err}");
    }
}

#[test]
fn the_readmes_first_checkpoint_works_as_printed() {
    let folder = support::pictures(0);
    let models = support::repository().join("tests/golden/models");
    let hub = Hub::serving(&models.join("smolvlm-tiny"), Fault::None);
    fs::create_dir_all(folder.path().join("examples/images")).expect("a folder");
    for picture in ["examples/images/photo-cat.jpg", "cat.jpg"] {
        support::picture(3).to_owned().save(folder.path().join(picture)).expect("a picture");
    }
    let program = Path::new(env!("CARGO_BIN_EXE_secateur")).parent().expect("a folder");
    let named: Vec<String> =
        support::readme_commands().into_iter().filter(|c| c.contains(README)).collect();
    assert!(named.len() >= 3, "{named:?}");
    for command in named {
        let ran = std::process::Command::new("sh")
            .args(["-c", &command])
            .current_dir(folder.path())
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", program.display()))
            .env("HOME", folder.path())
            .env("HF_ENDPOINT", format!("http://{}", hub.address))
            .output()
            .expect("a shell");
        let (code, out, err) = texts(&ran);
        assert_eq!(code, 0, "{command}: {err}");
        assert!(!out.trim().is_empty(), "{command} says nothing");
    }
}
