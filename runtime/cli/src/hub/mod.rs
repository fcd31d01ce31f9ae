//! Models of the hub: from its cache, else (feature `hub`) downloaded into it.
//!
//! The one place of the program that reads the network, and only for a hub id whose files are not
//! in the cache, and only where neither `--offline` nor `HF_HUB_OFFLINE` stands against it. A
//! branch that is in the cache is used as it is; whether the hub has a newer one is not asked.

#[cfg(feature = "hub")]
mod download;
#[cfg(feature = "hub")]
mod fault;
#[cfg(feature = "hub")]
mod remote;

use anyhow::{Result, anyhow};
use secateur::ModelSource;

use crate::output::Console;

/// Which files of a model a command reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// The small ones: configurations, tokenizer, chat template.
    Description,
    /// All.
    Weights,
}

/// Puts the files of a hub id into the cache; nothing for folders and the built-in model.
///
/// # Errors
/// Not in the cache and not to be had, with the reason and the way out.
#[cfg(feature = "hub")]
pub(crate) fn fetch(
    model: Option<&str>,
    needs: Needs,
    is_offline: bool,
    console: &Console,
) -> Result<()> {
    let source = ModelSource::parse(model);
    let ModelSource::Hub { id, revision } = &source else { return Ok(()) };
    // What is no id fails where the model is opened, with the reason.
    let is_id = id.split('/').chain(revision.split('/')).all(is_plain);
    let held = held(&source, needs);
    if !is_id || held == Held::Whole {
        return Ok(());
    }
    let forbidden = if is_offline {
        Some("--offline")
    } else {
        Some("HF_HUB_OFFLINE").filter(|name| is_true(&std::env::var(name).unwrap_or_default()))
    };
    match forbidden {
        // Parts of it may be there; then the one that is missing is named by whoever opens it.
        Some(by) => source
            .path()
            .map(|_| ())
            .map_err(|e| anyhow!("{e}; it is not downloaded because of {by}")),
        // Another tool may have brought all that the repository has, or left out a file that
        // decides: only the hub knows. Where it does not answer, what is there has to do.
        None => match download::download(&source, id, revision, needs, console) {
            Err(error) if held == Held::Enough => {
                console.warn(&format!(
                    "{error:#}; going on with the files in the cache, of which some may be missing"
                ));
                Ok(())
            }
            done => done,
        },
    }
}

/// Says what to do about a hub id that is not in the cache.
///
/// # Errors
/// Not in the cache.
#[cfg(not(feature = "hub"))]
pub(crate) fn fetch(model: Option<&str>, _: Needs, _: bool, _: &Console) -> Result<()> {
    let source = ModelSource::parse(model);
    if !matches!(source, ModelSource::Hub { .. }) {
        return Ok(());
    }
    source.path().map(|_| ()).map_err(|e| {
        anyhow!("{e}; a program built with `cargo build --release --features hub` downloads it")
    })
}

/// What of a model is in the cache.
#[cfg(feature = "hub")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// Every file that the repository has, of those that are read.
    Whole,
    /// A model without which nothing runs; smaller files may be missing.
    Enough,
    /// Less.
    Part,
}

/// What of a model is in the cache. A folder alone says little: programs put files there one by
/// one. A file that the repository does not have is known by the mark that the hub's tools leave
/// (`.no_exist/COMMIT/FILE`), and this program too.
#[cfg(feature = "hub")]
fn held(source: &ModelSource, needs: Needs) -> Held {
    let Ok(Some(folder)) = source.path() else { return Held::Part };
    let has = |name: &str| folder.join(name).is_file();
    let is_absent = |name: &str| download::absence(&folder, name).is_some_and(|m| m.is_file());
    let has_weights = || {
        let shards = secateur_core::weights::shard_names(&folder.join(download::INDEX));
        has(download::SINGLE) || shards.is_ok_and(|names| names.iter().all(|name| has(name)))
    };
    if ![download::CONFIG, download::TOKENIZER].into_iter().all(has)
        || (needs == Needs::Weights && !has_weights())
    {
        Held::Part
    } else if download::SMALL.iter().all(|name| has(name) || is_absent(name)) {
        Held::Whole
    } else {
        Held::Enough
    }
}

/// Whether a word from the network or the keyboard can be one name in a path.
#[cfg(feature = "hub")]
fn is_plain(word: &str) -> bool {
    !word.is_empty()
        && !word.starts_with('.')
        && word.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// The words that the hub's own tools take for yes.
#[cfg(feature = "hub")]
fn is_true(text: &str) -> bool {
    matches!(&*text.to_ascii_uppercase(), "1" | "ON" | "YES" | "TRUE")
}

#[cfg(all(test, feature = "hub"))]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_folder() {
        for word in ["", ".", "..", "a/b", "a\\b", ".hidden", "a b", "W/\"x\"", "é"] {
            assert!(!is_plain(word), "{word}");
        }
        assert!(is_plain("llava-1.5-7b_hf") && is_plain("0123abc"));
    }

    #[test]
    fn offline_is_what_the_hubs_tools_take_for_yes() {
        assert!(is_true("1") && is_true("true") && is_true("On"));
        assert!(!is_true("") && !is_true("0") && !is_true("no"));
    }
}
