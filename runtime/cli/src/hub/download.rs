//! From the hub into its cache, through the crate `hf-hub`.
//!
//! What `hf-hub` (0.5) gives: addresses, redirects, a `.part` file beside each blob that is locked,
//! resumed by range and renamed when the body has ended. What it does not: it does not compare the
//! length with the announced one (a server that ignores ranges makes a resumed file too long), it
//! does not `fsync`, it names files and branches in the cache one by one as they come, so that a
//! download that was cut short looks like a model, and it believes the server's names. Therefore:
//!
//! Invariants
//! - `hf-hub` writes into `models--owner--name/.incomplete`, a cache of its own; parts stay there
//!   for the next run. A file moves into the cache by rename, at its announced length, after
//!   `fsync`; it is never written there.
//! - A snapshot gets its entries when every file that was asked for is there, and the branch is
//!   named last.
//! - A file is fetched only by a name that is known here or that the index of the weights gives;
//!   commit and ETag are checked before they become names in the cache.
//! - One download of a repository at a time, by a lock in the cache's `.locks`.
//!
//! Deviations: the hashes of files are not computed (TLS and the length stand for them), and a
//! transfer that stalls without an end waits, because `hf-hub` knows no time limit; it may be
//! interrupted at any time.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::api::{Progress, RepoInfo};
use hf_hub::{Cache, Repo, RepoType};
use secateur::ModelSource;
use secateur_core::weights::shard_names;

use super::fault::Asked;
use super::{Needs, is_cached, is_plain};
use crate::lock::Lock;
use crate::output::{Console, Transfer};
use crate::write::replace_one;

/// The file that every model has.
pub(super) const CONFIG: &str = "config.json";
/// Weights in one file.
pub(super) const SINGLE: &str = "model.safetensors";
/// Weights in several.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// The small files that are read. The one without which there is no model comes last, so that
/// its entry in a snapshot means that the others have theirs.
const SMALL: [&str; 10] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    CONFIG,
];

/// How often a transfer that broke off goes on by itself.
const RETRIES: usize = 3;
/// For the list of files; a transfer has no limit.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);
/// Repositories of many thousand files have lists of some megabytes.
const MOST_LIST_BYTES: u64 = 64 << 20;

/// Downloads what of a repository is needed and missing.
///
/// # Errors
/// No such repository, no access, no network, no space, another process at work.
pub(super) fn download(
    source: &ModelSource,
    id: &str,
    revision: &str,
    needs: Needs,
    console: &Console,
) -> Result<()> {
    let cache = secateur::hub_cache();
    let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
    let endpoint = endpoint.trim_end_matches('/').to_owned();
    let token = token(&cache);
    let asked = Asked {
        id: id.to_owned(),
        revision: revision.to_owned(),
        endpoint: endpoint.clone(),
        has_token: token.is_some(),
    };
    let name = Repo::model(id.to_owned()).folder_name();
    let folder = cache.join(&name);
    let staging = Cache::new(folder.join(".incomplete"));
    let api = ApiBuilder::from_cache(staging.clone())
        .with_endpoint(endpoint)
        .with_token(token)
        .with_progress(false)
        .with_retries(RETRIES)
        .with_user_agent("secateur", env!("CARGO_PKG_VERSION"))
        .build()
        .map_err(|e| asked.fault(None, e))?;
    let repo =
        |revision: &str| Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned());
    let info = info(&api.repo(repo(revision)), &asked)?;

    let locks = cache.join(".locks").join(&name);
    make_folder(&locks)?;
    let _lock = Lock::take(&locks.join("secateur.lock"), &folder)?;
    // Whoever held the lock before may have brought everything.
    if is_cached(source, needs) {
        return Ok(());
    }
    let what = format!("downloading {id} ({}) to {}", info.sha, folder.display());
    let mut download = Download {
        remote: api.repo(repo(&info.sha)),
        repo: repo(&info.sha),
        listed: info.siblings.into_iter().map(|s| s.rfilename).collect(),
        transfer: Transfer::start(console, &what),
        entries: Vec::new(),
        api,
        asked,
        staging,
        folder,
        commit: info.sha,
    };
    download.small()?;
    if needs == Needs::Weights {
        download.weights()?;
    }
    download.publish(revision)
}

/// The files of a repository and the commit that a revision stands for.
fn info(remote: &ApiRepo, asked: &Asked) -> Result<RepoInfo> {
    let answer = remote.info_request().config().timeout_global(Some(LIST_TIMEOUT)).build().call();
    let body = answer
        .and_then(|mut answer| answer.body_mut().with_config().limit(MOST_LIST_BYTES).read_to_vec())
        .map_err(|e| asked.wrong(&asked.request(&e)))?;
    let info: RepoInfo = serde_json::from_slice(&body).map_err(|e| {
        asked.wrong(&format!("{} does not answer like the hub: {e}", asked.endpoint))
    })?;
    if !is_plain(&info.sha) {
        return Err(asked.wrong(&format!("the hub names a commit `{}`", info.sha)));
    }
    Ok(info)
}

/// A download in progress.
struct Download<'a> {
    api: Api,
    remote: ApiRepo,
    /// The repository at the commit.
    repo: Repo,
    asked: Asked,
    /// What the hub has at this commit.
    listed: BTreeSet<String>,
    staging: Cache,
    /// The repository's folder in the cache.
    folder: PathBuf,
    commit: String,
    transfer: Transfer<'a>,
    /// Files whose content is in the cache, with the names of their blobs.
    entries: Vec<(String, String)>,
}

/// A file that is to come.
struct Wanted {
    name: String,
    bytes: u64,
    /// As `hf-hub` spells it in the names of its files.
    etag: String,
    blob: PathBuf,
}

impl Download<'_> {
    fn small(&mut self) -> Result<()> {
        if !self.listed.contains(CONFIG) {
            return Err(self.asked.wrong(&format!(
                "the repository has no {CONFIG}: it holds no model in the layout of transformers"
            )));
        }
        let names: Vec<String> =
            SMALL.iter().filter(|n| self.listed.contains(**n)).map(|n| (*n).to_owned()).collect();
        self.files(names)
    }

    fn weights(&mut self) -> Result<()> {
        let single = [SINGLE, INDEX].into_iter().find(|n| self.listed.contains(*n));
        match single {
            None => Err(self.asked.wrong(&format!(
                "the repository has neither {SINGLE} nor {INDEX}; other forms of weights are not \
                 read"
            ))),
            Some(INDEX) => {
                self.files(vec![INDEX.to_owned()])?;
                let etag = self.entries.last().map_or("", |(_, etag)| etag);
                let shards =
                    shard_names(&self.blob(etag)).map_err(|e| self.asked.wrong(&e.to_string()))?;
                let strange = shards.iter().find(|n| !is_plain(n) || !self.listed.contains(*n));
                if let Some(name) = strange {
                    return Err(self.asked.wrong(&format!(
                        "{INDEX} names {name}, which the repository does not have"
                    )));
                }
                self.files(shards)
            }
            Some(single) => self.files(vec![single.to_owned()]),
        }
    }

    /// Brings the content of files into the cache.
    fn files(&mut self, names: Vec<String>) -> Result<()> {
        let mut wanted = Vec::new();
        for name in names {
            let meta = self
                .api
                .metadata(&self.remote.url(&name))
                .map_err(|e| self.asked.fault(Some(&name), e))?;
            let etag = meta.etag().trim_start_matches("W/").to_owned();
            if !is_plain(&etag) {
                return Err(self.asked.wrong(&format!("{name}: the hub's ETag is `{etag}`")));
            }
            let (blob, bytes) = (self.blob(&etag), meta.size() as u64);
            // Another revision may have brought the same content.
            if !fs::metadata(&blob).is_ok_and(|m| m.len() == bytes) {
                let etag = meta.etag().to_owned();
                wanted.push(Wanted { name: name.clone(), bytes, etag, blob });
            }
            self.entries.push((name, etag));
        }
        self.transfer.expect(wanted.iter().map(|w| w.bytes).sum());
        wanted.iter().try_for_each(|file| self.file(file))
    }

    fn file(&self, wanted: &Wanted) -> Result<()> {
        let Wanted { name, bytes, etag, blob } = wanted;
        self.transfer.name(name);
        let staged = self.staging.repo(self.repo.clone());
        // A part that is whole, or longer, could only be refused at every further try.
        let part = staged.blob_path(etag).with_extension("part");
        if fs::metadata(&part).is_ok_and(|m| m.len() >= *bytes) {
            fs::remove_file(&part).with_context(|| cannot_write(&part))?;
        }
        // An entry whose blob has moved on stands in the way of a new one.
        let entry = staged.pointer_path(&self.commit).join(name);
        remove_if_there(&entry).with_context(|| cannot_write(&entry))?;
        let entry = self
            .remote
            .download_with_progress(name, Came(&self.transfer))
            .map_err(|e: ApiError| self.asked.fault(Some(name), e))?;
        let file = fs::canonicalize(&entry).with_context(|| cannot_write(&entry))?;
        let found = fs::metadata(&file).with_context(|| cannot_write(&file))?.len();
        if found != *bytes {
            fs::remove_file(&file).with_context(|| cannot_write(&file))?;
            return Err(self.asked.wrong(&format!(
                "{name}: the hub announced {bytes} bytes, {found} came; run it again"
            )));
        }
        make_folder(&self.folder.join("blobs"))?;
        File::open(&file)
            .and_then(|open| open.sync_all())
            .and_then(|()| fs::rename(&file, blob))
            .with_context(|| cannot_write(blob))
    }

    /// Makes the entries of the snapshot, then the branch.
    fn publish(&self, revision: &str) -> Result<()> {
        let snapshot = self.folder.join("snapshots").join(&self.commit);
        make_folder(&snapshot)?;
        for (name, etag) in &self.entries {
            let entry = snapshot.join(name);
            enter(&entry, etag).with_context(|| cannot_write(&entry))?;
        }
        if revision != self.commit {
            let branch = self.folder.join("refs").join(revision);
            make_folder(branch.parent().unwrap_or(&self.folder))?;
            replace_one(&branch, self.commit.as_bytes()).with_context(|| cannot_write(&branch))?;
        }
        let staging = self.staging.path();
        match fs::remove_dir_all(staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", staging.display()))
            }
            _ => Ok(()),
        }
    }

    fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }
}

/// An entry of a snapshot: a link to its blob. What is there and leads somewhere stays.
fn enter(entry: &Path, etag: &str) -> io::Result<()> {
    if fs::metadata(entry).is_ok() {
        return Ok(());
    }
    remove_if_there(entry)?;
    link(&Path::new("../../blobs").join(etag), entry)
}

#[cfg(unix)]
fn link(goal: &Path, entry: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(goal, entry)
}

/// Links by name need a right there that few accounts have.
#[cfg(not(unix))]
fn link(goal: &Path, entry: &Path) -> io::Result<()> {
    fs::hard_link(entry.parent().unwrap_or(Path::new(".")).join(goal), entry)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| cannot_write(path))
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

/// Tells the transfer's display what came.
struct Came<'a>(&'a Transfer<'a>);

impl Progress for Came<'_> {
    fn init(&mut self, _: usize, _: &str) {}

    fn update(&mut self, bytes: usize) {
        self.0.advance(bytes as u64);
    }

    fn finish(&mut self) {}
}

/// A variable of the environment that says something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|v| v.trim().to_owned()).filter(|v| !v.is_empty())
}

/// `HF_TOKEN`, else the file that `hf auth login` leaves beside the cache. With `HF_HUB_CACHE` the
/// folder beside the cache is anybody's, and not asked.
fn token(cache: &Path) -> Option<String> {
    let stored = || {
        let is_own = variable("HF_HUB_CACHE").is_none();
        if is_own { Cache::new(cache.to_path_buf()).token() } else { None }
    };
    variable("HF_TOKEN").or_else(stored)
}
