//! The log of a search: what was tried, line by line, so that a search that was stopped goes on.
//!
//! Invariants
//! - The first line says what is searched; a log of something else is refused.
//! - A search is replayed from its log: if a logged point is not the one proposed, the log is of
//!   another version and refused.

use std::path::Path;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::search::Search;
use crate::lines::LineFile;

const SCHEMA: &str = "secateur.tune/1";

/// One line: a parameter set and its value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tried {
    /// From 0.
    pub(crate) eval: usize,
    /// In the unit cube.
    pub(crate) point: Vec<f64>,
    /// The chain.
    pub(crate) chain: String,
    /// Mean cosine.
    pub(crate) value: f64,
    /// The best up to here.
    pub(crate) best: f64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Head {
    schema: String,
    search: serde_json::Value,
}

/// The open log.
#[derive(Debug)]
pub(crate) struct Log {
    file: LineFile,
    /// Chains tried so far, in order.
    pub(crate) chains: Vec<String>,
}

impl Log {
    /// Opens or begins the log of `what` and replays it into `search`.
    ///
    /// # Errors
    /// The file system's; a log of another search.
    pub(crate) fn open(path: &Path, what: serde_json::Value, search: &mut Search) -> Result<Self> {
        let expected = Head { schema: SCHEMA.into(), search: what };
        let other = "is the log of another search; name another folder with --out, or remove it";
        let mut is_new = true;
        let mut chains = Vec::new();
        let file = LineFile::open(path, |line, _| {
            let line = serde_json::Value::Object(line);
            if std::mem::take(&mut is_new) {
                let found: Head = serde_json::from_value(line)?;
                if found != expected {
                    bail!("{} {other}", path.display());
                }
                return Ok(());
            }
            // The comparison on held-out pictures is computed anew.
            if line.get("holdout").is_some() {
                return Ok(());
            }
            let tried: Tried = serde_json::from_value(line)?;
            let proposed = search.ask();
            let is_same = proposed.len() == tried.point.len()
                && proposed.iter().zip(&tried.point).all(|(a, b)| (a - b).abs() < 1e-9);
            if !is_same {
                bail!("{} {other}", path.display());
            }
            search.tell(tried.value);
            chains.push(tried.chain);
            Ok(())
        })?;
        let mut log = Self { file, chains };
        if is_new {
            log.file.append(&expected)?;
        }
        Ok(log)
    }

    /// Appends a parameter set.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn add(&mut self, tried: &Tried) -> Result<()> {
        self.file.append(tried)?;
        self.chains.push(tried.chain.clone());
        self.file.sync_if_due()
    }

    /// Appends the comparison on held-out pictures and makes everything durable.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn finish(&mut self, holdout: Option<&serde_json::Value>) -> Result<()> {
        if let Some(holdout) = holdout {
            self.file.append(holdout)?;
        }
        self.file.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::Strategy;

    fn go_on(path: &Path, evals: usize) -> Vec<f64> {
        let mut search = Search::new(vec![0.5; 3], 42, Strategy::Guided);
        let mut log = Log::open(path, serde_json::json!({"seed": 42}), &mut search).unwrap();
        while search.tried().len() < evals {
            let point = search.ask();
            let value = -point.iter().map(|x| (x - 0.3).powi(2)).sum::<f64>();
            search.tell(value);
            let eval = search.tried().len() - 1;
            let best = search.best().unwrap().value;
            log.add(&Tried { eval, point, chain: "c".into(), value, best }).unwrap();
        }
        log.finish(None).unwrap();
        search.best().unwrap().point.clone()
    }

    #[test]
    fn a_search_that_was_stopped_comes_to_the_same_result() {
        let folder = tempfile::tempdir().unwrap();
        let (whole, parts) = (folder.path().join("a.jsonl"), folder.path().join("b.jsonl"));
        let at_once = go_on(&whole, 80);
        go_on(&parts, 33);
        let file = std::fs::OpenOptions::new().write(true).open(&parts).unwrap();
        file.set_len(std::fs::metadata(&parts).unwrap().len() - 5).unwrap();
        assert_eq!(go_on(&parts, 80), at_once);
        assert_eq!(std::fs::read(&whole).unwrap(), std::fs::read(&parts).unwrap());
    }

    #[test]
    fn the_log_of_another_search_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        go_on(&path, 3);
        let mut search = Search::new(vec![0.5; 3], 43, Strategy::Guided);
        let error = Log::open(&path, serde_json::json!({"seed": 43}), &mut search).unwrap_err();
        assert!(format!("{error:#}").contains("another search"));
    }
}
