//! From the hub into its cache, in the layout that the hub's own tools share.
//!
//! Invariants
//! - A transfer writes into `models--owner--name/.incomplete`; what came stays there for the next
//!   run, which goes on behind it. A file moves into the cache by rename, at its announced length
//!   and, where its ETag is one, with the right SHA-256, after `fsync`; it is never written there.
//! - A snapshot gets its entries when every file that was asked for is there, and the branch is
//!   named last.
//! - A file is fetched only by a name that is known here or that the index of the weights gives;
//!   commit and ETag are checked before they become names in the cache.
//! - What is in a snapshot already, by whatever tool, is not asked for again; what the repository
//!   does not have is marked as the hub's tools mark it, so that it is asked for once.
//! - One download of a repository at a time, by a lock in the cache's `.locks`.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use secateur::ModelSource;
use secateur_core::weights::shard_names;
use sha2::{Digest, Sha256};

use super::fault::{Asked, Trouble};
use super::remote::{Announced, Listing, Remote, STALL};
use super::{Held, Needs, held, is_plain};
use crate::lock::Lock;
use crate::output::{Console, Transfer};
use crate::write::replace_one;

/// The file that every model has.
pub(super) const CONFIG: &str = "config.json";
/// Another one that every model has.
pub(super) const TOKENIZER: &str = "tokenizer.json";
/// Weights in one file.
pub(super) const SINGLE: &str = "model.safetensors";
/// Weights in several.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// The small files that are read. The one without which there is no model comes last, so that
/// its entry in a snapshot means that the others have theirs.
pub(super) const SMALL: [&str; 11] = [
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    CONFIG,
];

/// How often a transfer that broke off goes on by itself.
const RETRIES: u32 = 3;
/// Before the first time; twice as long before each further one.
const PAUSE: Duration = Duration::from_millis(300);

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
    let token = token();
    let name = format!("models--{}", id.replace('/', "--"));
    let folder = cache.join(&name);
    // A branch that is in the cache stays at its commit: what is missing is that commit's.
    let known = source.path().ok().flatten().and_then(|snapshot| {
        Some(snapshot.file_name()?.to_str()?.to_owned()).filter(|commit| is_plain(commit))
    });
    let branch = revision;
    let revision = known.as_deref().unwrap_or(revision);
    let asked = Asked {
        id: id.to_owned(),
        revision: revision.to_owned(),
        endpoint,
        has_token: token.is_some(),
    };
    if token.as_ref().is_some_and(|token| !token.chars().all(|c| c.is_ascii_graphic())) {
        return Err(asked.wrong(
            "HF_TOKEN, HUGGING_FACE_HUB_TOKEN or the stored token has characters that no token has",
        ));
    }
    let remote = Remote::new(asked.clone(), token, STALL);
    let Listing { commit, files } = remote.list()?;

    let locks = cache.join(".locks").join(&name);
    make_folder(&locks)?;
    let _lock = Lock::take(&locks.join("secateur.lock"), &folder)?;
    // Whoever held the lock before may have brought everything.
    if held(source, needs) == Held::Whole {
        return Ok(());
    }
    let what = format!("downloading {id} ({commit}) to {}", folder.display());
    let mut download = Download {
        remote,
        asked,
        listed: files,
        transfer: Transfer::start(console, &what),
        entries: Vec::new(),
        staging: folder.join(".incomplete"),
        snapshot: folder.join("snapshots").join(&commit),
        folder,
        commit,
    };
    download.small()?;
    if needs == Needs::Weights {
        download.weights()?;
    }
    download.publish((known.is_none() && branch != download.commit).then_some(branch))
}

/// The mark of a file that the repository does not have at the commit of `snapshot`.
pub(super) fn absence(snapshot: &Path, name: &str) -> Option<PathBuf> {
    let folder = snapshot.parent()?.parent()?.join(".no_exist");
    Some(folder.join(snapshot.file_name()?).join(name))
}

/// A download in progress.
struct Download<'a> {
    remote: Remote,
    asked: Asked,
    /// What the hub has at this commit.
    listed: BTreeSet<String>,
    /// Where parts of files lie.
    staging: PathBuf,
    /// The repository's folder in the cache.
    folder: PathBuf,
    /// The folder of the commit's files, as programs see them.
    snapshot: PathBuf,
    commit: String,
    transfer: Transfer<'a>,
    /// Files whose content is in the cache, with the names of their blobs.
    entries: Vec<(String, String)>,
}

/// A file that is to come.
struct Wanted {
    name: String,
    bytes: u64,
    etag: String,
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
                let own = self.snapshot.join(INDEX);
                let index = match self.entries.last().filter(|(name, _)| name == INDEX) {
                    Some((_, etag)) if !own.is_file() => self.blob(etag),
                    _ => own,
                };
                let shards = shard_names(&index).map_err(|e| self.asked.wrong(&e.to_string()))?;
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
            // Put there whole, by this program or another.
            if self.snapshot.join(&name).is_file() {
                continue;
            }
            let Announced { bytes, etag } = self.remote.announced(&self.commit, &name)?;
            // Another revision may have brought the same content.
            if !fs::metadata(self.blob(&etag)).is_ok_and(|m| m.len() == bytes) {
                wanted.push(Wanted { name: name.clone(), bytes, etag: etag.clone() });
            }
            self.entries.push((name, etag));
        }
        self.transfer.expect(wanted.iter().fold(0, |sum, w| sum.saturating_add(w.bytes)));
        wanted.iter().try_for_each(|file| self.file(file))
    }

    fn file(&self, wanted: &Wanted) -> Result<()> {
        let Wanted { name, etag, .. } = wanted;
        self.transfer.name(name);
        make_folder(&self.staging)?;
        let path = self.staging.join(format!("{etag}.part"));
        let mut part = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| cannot_write(&path))?;
        self.bring(wanted, &mut part).map_err(|t| self.asked.fault(Some(name), &t))?;
        if is_sha256(etag) {
            self.transfer.name(&format!("{name}: SHA-256"));
            let found = sha256(&mut part).with_context(|| cannot_read(&path))?;
            if !found.eq_ignore_ascii_case(etag) {
                fs::remove_file(&path).with_context(|| cannot_write(&path))?;
                return Err(self.asked.wrong(&format!(
                    "{name}: SHA-256 {etag} expected, {found} found; run it again"
                )));
            }
        }
        make_folder(&self.folder.join("blobs"))?;
        let blob = self.blob(etag);
        part.sync_all().and_then(|()| fs::rename(&path, &blob)).with_context(|| cannot_write(&blob))
    }

    /// Writes what is missing of a file behind what is there, and goes on if a transfer breaks off.
    /// Afterwards the part has the announced length.
    fn bring(&self, wanted: &Wanted, part: &mut File) -> Result<(), Trouble> {
        let announced = wanted.bytes;
        let mut have = part.metadata().map_err(Trouble::Disk)?.len();
        // A part that is longer than the file is none of it.
        if have > announced {
            part.set_len(0).map_err(Trouble::Disk)?;
            have = 0;
        }
        self.transfer.advance(have);
        let mut tries = 0;
        while have < announced {
            let from = have;
            let came = self.remote.transfer(&self.commit, &wanted.name, from, &mut |at, bytes| {
                // The server has no ranges.
                if at < have {
                    part.set_len(at).map_err(Trouble::Disk)?;
                    self.transfer.retreat(have - at);
                    have = at;
                }
                let count = bytes.len() as u64;
                // A server that sends more than it announced fills no disk.
                if count > announced - have {
                    return Err(Trouble::Answer("more bytes came than were announced".to_owned()));
                }
                part.seek(SeekFrom::Start(at)).map_err(Trouble::Disk)?;
                part.write_all(bytes).map_err(Trouble::Disk)?;
                self.transfer.advance(count);
                have += count;
                Ok(())
            });
            let trouble = match came {
                Ok(()) if have == announced => return Ok(()),
                Ok(()) => Trouble::Short { announced, came: have },
                Err(trouble) => trouble,
            };
            if tries == RETRIES || !trouble.may_pass() {
                return Err(trouble);
            }
            std::thread::sleep(PAUSE * (1 << tries));
            tries += 1;
        }
        Ok(())
    }

    /// Makes the entries of the snapshot and the marks of what there is not, then names the branch.
    fn publish(&self, branch: Option<&str>) -> Result<()> {
        make_folder(&self.snapshot)?;
        for (name, etag) in &self.entries {
            let entry = self.snapshot.join(name);
            enter(&entry, etag).with_context(|| cannot_write(&entry))?;
        }
        for name in SMALL.into_iter().filter(|name| !self.listed.contains(*name)) {
            let Some(mark) = absence(&self.snapshot, name).filter(|mark| !mark.exists()) else {
                continue;
            };
            make_folder(mark.parent().unwrap_or(&self.folder))?;
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&mark)
                .with_context(|| cannot_write(&mark))?;
        }
        if let Some(branch) = branch {
            let branch = self.folder.join("refs").join(branch);
            make_folder(branch.parent().unwrap_or(&self.folder))?;
            replace_one(&branch, self.commit.as_bytes()).with_context(|| cannot_write(&branch))?;
        }
        match fs::remove_dir_all(&self.staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.staging.display()))
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

fn cannot_read(path: &Path) -> String {
    format!("cannot read {}", path.display())
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

/// Whether an ETag is the SHA-256 of its content, as it is of large files.
fn is_sha256(etag: &str) -> bool {
    etag.len() == 64 && etag.chars().all(|c| c.is_ascii_hexdigit())
}

/// SHA-256 of a whole file, in hexadecimal digits.
fn sha256(file: &mut File) -> io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let (mut hasher, mut part) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut part)? {
            0 => break,
            count => hasher.update(&part[..count]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A variable of the environment that says something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|v| v.trim().to_owned()).filter(|v| !v.is_empty())
}

/// Where the hub's own tools look: `HF_TOKEN`, the older `HUGGING_FACE_HUB_TOKEN`, then the file
/// that `hf auth login` writes (`HF_TOKEN_PATH`, else `token` in `HF_HOME`), whatever the cache.
fn token() -> Option<String> {
    let stored = || {
        let text = fs::read_to_string(secateur::hub_token_path()).ok()?;
        Some(text.trim().to_owned()).filter(|t| !t.is_empty())
    };
    variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN")).or_else(stored)
}
