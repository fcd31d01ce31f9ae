//! Where a model comes from: built in, a folder, GGUF files, or the hub's cache.

use std::path::{Path, PathBuf};

use secateur_core::files::ModelFiles;
use secateur_core::weights::Weights;
use secateur_models::gguf::GgufPair;

use crate::error::Error;

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// The small model that is part of the program.
    Embedded,
    /// A folder in the Hugging Face layout or with a GGUF pair, or the GGUF file of a decoder whose
    /// projector lies beside it.
    Folder(PathBuf),
    /// A decoder and its projector, wherever they lie.
    Gguf(GgufPair),
    /// A repository of the hub, looked up in the local cache.
    Hub {
        /// `owner/name`
        id: String,
        /// Branch, tag or commit.
        revision: String,
    },
}

impl ModelSource {
    /// What a person types: nothing or `embedded`, a folder, a `.gguf` file, or
    /// `owner/name[@revision]`. A folder that exists wins over a hub id of the same spelling.
    pub fn parse(text: Option<&str>) -> Self {
        let Some(text) = text.filter(|t| !t.is_empty() && *t != "embedded") else {
            return ModelSource::Embedded;
        };
        let path = Path::new(text);
        let looks_like_id = text.matches('/').count() == 1
            && !text.starts_with(['.', '/', '~'])
            && !text.contains('\\');
        let is_gguf = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        if path.is_dir() || is_gguf || !looks_like_id {
            return ModelSource::Folder(path.to_path_buf());
        }
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        ModelSource::Hub { id: id.to_owned(), revision: revision.to_owned() }
    }

    /// The folder, or the decoder's file, that the model lies in; `None` for the built-in model.
    ///
    /// # Errors
    /// A hub id that is not in the cache; the message says how to put it there.
    pub fn path(&self) -> Result<Option<PathBuf>, Error> {
        match self {
            ModelSource::Embedded => Ok(None),
            ModelSource::Folder(path) => Ok(Some(path.clone())),
            ModelSource::Gguf(pair) => Ok(Some(pair.decoder.clone())),
            ModelSource::Hub { id, revision } => {
                cached_snapshot(&hub_cache(), id, revision).map(Some)
            }
        }
    }

    /// The GGUF files, if the model is a pair of them.
    ///
    /// # Errors
    /// As [`ModelSource::path`], and a projector or decoder that is missing or not the only one.
    pub fn gguf(&self) -> Result<Option<GgufPair>, Error> {
        match (self, self.path()?) {
            (ModelSource::Gguf(pair), _) => Ok(Some(pair.clone())),
            (_, Some(path)) => Ok(GgufPair::find(&path)?),
            (_, None) => Ok(None),
        }
    }

    /// The small files of the model; with its weights where those come along.
    ///
    /// # Errors
    /// As [`ModelSource::gguf`], and files that are no model's.
    pub(crate) fn open(&self) -> Result<(ModelFiles, Option<Weights>), Error> {
        if let Some(pair) = self.gguf()? {
            let (files, weights) = pair.open()?;
            return Ok((files, Some(weights)));
        }
        match self.path()? {
            None => crate::embedded::open(),
            Some(folder) => Ok((ModelFiles::folder(&folder)?, None)),
        }
    }

    /// The small files of the model.
    ///
    /// # Errors
    /// As [`ModelSource::gguf`], and files that are no model's.
    pub fn files(&self) -> Result<ModelFiles, Error> {
        Ok(self.open()?.0)
    }
}

impl From<GgufPair> for ModelSource {
    fn from(pair: GgufPair) -> Self {
        ModelSource::Gguf(pair)
    }
}

impl From<&Path> for ModelSource {
    fn from(path: &Path) -> Self {
        ModelSource::Folder(path.to_path_buf())
    }
}

impl From<PathBuf> for ModelSource {
    fn from(path: PathBuf) -> Self {
        ModelSource::Folder(path)
    }
}

impl From<&str> for ModelSource {
    fn from(text: &str) -> Self {
        ModelSource::parse(Some(text))
    }
}

/// The hub's cache: `HF_HUB_CACHE` (formerly `HUGGINGFACE_HUB_CACHE`), else `hub` in the hub's home.
pub fn hub_cache() -> PathBuf {
    variable("HF_HUB_CACHE")
        .or_else(|| variable("HUGGINGFACE_HUB_CACHE"))
        .unwrap_or_else(|| hub_home().join("hub"))
}

/// The file in which the hub's tools keep a token: `HF_TOKEN_PATH`, else `token` in the hub's home.
pub fn hub_token_path() -> PathBuf {
    variable("HF_TOKEN_PATH").unwrap_or_else(|| hub_home().join("token"))
}

/// `HF_HOME`, else `huggingface` in `XDG_CACHE_HOME`, else in `~/.cache`.
fn hub_home() -> PathBuf {
    variable("HF_HOME").unwrap_or_else(|| {
        variable("XDG_CACHE_HOME")
            .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
            .unwrap_or_else(|| PathBuf::from(".cache"))
            .join("huggingface")
    })
}

/// A path in the environment, with `~` for the home folder as the hub's tools read it.
fn variable(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)?;
    let below_home = path.strip_prefix("~").ok().map(Path::to_path_buf);
    Some(match (below_home, std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => path,
    })
}

/// The hub's cache layout: `models--owner--name/refs/<revision>` names a commit, whose files lie
/// under `snapshots/<commit>`.
fn cached_snapshot(cache: &Path, id: &str, revision: &str) -> Result<PathBuf, Error> {
    let plain = |part: &str| {
        !part.is_empty()
            && part != ".."
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    let missing = |reason: String| Error::Model { model: format!("{id}@{revision}"), reason };
    if !id.split('/').all(plain) || !revision.split('/').all(plain) {
        return Err(missing("not a hub id of the form owner/name[@revision]".into()));
    }
    let repository = cache.join(format!("models--{}", id.replace('/', "--")));
    let commit = std::fs::read_to_string(repository.join("refs").join(revision))
        .map_or_else(|_| revision.to_owned(), |text| text.trim().to_owned());
    let snapshot = repository.join("snapshots").join(&commit);
    if plain(&commit) && snapshot.is_dir() {
        return Ok(snapshot);
    }
    Err(missing(format!(
        "not in the hub cache {} (set HF_HOME or HF_HUB_CACHE if yours is elsewhere); fetch it \
         with `hf download {id}`, or name a folder",
        cache.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_type_is_understood() {
        assert_eq!(ModelSource::parse(None), ModelSource::Embedded);
        assert_eq!(ModelSource::parse(Some("embedded")), ModelSource::Embedded);
        assert_eq!(ModelSource::parse(Some("./x")), ModelSource::Folder("./x".into()));
        let file = ModelSource::parse(Some("models/x.gguf"));
        assert_eq!(file, ModelSource::Folder("models/x.gguf".into()));
        assert_eq!(
            ModelSource::parse(Some("llava-hf/llava-1.5-7b-hf@v1")),
            ModelSource::Hub { id: "llava-hf/llava-1.5-7b-hf".into(), revision: "v1".into() }
        );
    }

    #[test]
    fn a_snapshot_is_found_by_branch_and_by_commit() {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("models--a--b");
        std::fs::create_dir_all(repository.join("refs")).unwrap();
        std::fs::create_dir_all(repository.join("snapshots/0123abc")).unwrap();
        assert!(cached_snapshot(cache.path(), "a/b", "main").is_err());
        let mut branch = std::fs::File::create(repository.join("refs/main")).unwrap();
        std::io::Write::write_all(&mut branch, b"0123abc\n").unwrap();
        for revision in ["main", "0123abc"] {
            let found = cached_snapshot(cache.path(), "a/b", revision).unwrap();
            assert!(found.ends_with("snapshots/0123abc"));
        }
    }

    #[test]
    fn an_id_cannot_leave_the_cache() {
        let cache = tempfile::tempdir().unwrap();
        for (id, revision) in [("../b", "main"), ("a/b", "../../x"), ("a/..", "main")] {
            assert!(cached_snapshot(cache.path(), id, revision).is_err(), "{id}@{revision}");
        }
    }
}
