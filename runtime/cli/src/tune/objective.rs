//! The discrepancy: how far pruning moves what the model is about to say.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use secateur::image::Limits;
use secateur::{ChainSpec, Request, Vlm};

use crate::eval::Question;

/// Prompts with their unpruned final states.
#[derive(Debug)]
pub(crate) struct Objective<'a> {
    vlm: &'a Vlm,
    prompts: Vec<Prompt>,
}

#[derive(Debug)]
struct Prompt {
    request: Request,
    /// The picture's name.
    picture: String,
    dense: Vec<f32>,
}

impl<'a> Objective<'a> {
    /// Runs every prompt without pruning. `each` is called after each.
    ///
    /// # Errors
    /// Pictures that cannot be read; no prompt.
    pub(crate) fn new(
        vlm: &'a Vlm,
        questions: &[&Question],
        limits: &Limits,
        mut each: impl FnMut(),
    ) -> Result<Self> {
        if questions.is_empty() {
            bail!("no picture to search on");
        }
        let mut prompts = Vec::new();
        for question in questions {
            let clip = question.picture.load(limits)?;
            let request = Request::new(&question.text).clip(clip);
            let dense = vlm.last_hidden(&request)?;
            prompts.push(Prompt { request, picture: question.picture.name(), dense });
            each();
        }
        Ok(Self { vlm, prompts })
    }

    /// Number of prompts.
    pub(crate) fn len(&self) -> usize {
        self.prompts.len()
    }

    /// Cosine of each prompt with its unpruned state, with a number for its picture.
    ///
    /// # Errors
    /// A chain that does not fit the model, or that fails on a picture.
    pub(crate) fn cosines(&self, chain: &ChainSpec) -> Result<Vec<(usize, f64)>> {
        let mut pictures: BTreeMap<&str, usize> = BTreeMap::new();
        self.prompts
            .iter()
            .map(|prompt| {
                let next = pictures.len();
                let picture = *pictures.entry(&prompt.picture).or_insert(next);
                let pruned = self.vlm.last_hidden(&prompt.request.clone().chain(chain.clone()))?;
                Ok((picture, cosine(&prompt.dense, &pruned)))
            })
            .collect()
    }

    /// Their mean.
    ///
    /// # Errors
    /// As [`Objective::cosines`].
    pub(crate) fn mean(&self, chain: &ChainSpec) -> Result<f64> {
        let cosines = self.cosines(chain)?;
        Ok(cosines.iter().map(|c| c.1).sum::<f64>() / cosines.len() as f64)
    }
}

/// Cosine, in f64; 0 where it is no number.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let sum = |x: &[f32], y: &[f32]| -> f64 {
        x.iter().zip(y).map(|(p, q)| f64::from(*p) * f64::from(*q)).sum()
    };
    let value = sum(a, b) / (sum(a, a) * sum(b, b)).sqrt();
    if value.is_finite() { value } else { 0.0 }
}

/// Questions to search on and held-out ones: whole pictures, evenly spread; at most `limit` of
/// each.
pub(crate) fn split(
    questions: &[Question],
    holdout: f64,
    limit: usize,
) -> (Vec<&Question>, Vec<&Question>) {
    let mut pictures: Vec<String> = Vec::new();
    let (mut search, mut held) = (Vec::new(), Vec::new());
    for question in questions {
        let name = question.picture.name();
        if pictures.last() != Some(&name) {
            pictures.push(name);
        }
        let i = pictures.len() as f64;
        let is_held = (i * holdout).floor() > ((i - 1.0) * holdout).floor();
        if is_held { held.push(question) } else { search.push(question) }
    }
    (spread(search, limit), spread(held, limit))
}

/// At most `limit` of a list, evenly spread.
fn spread(list: Vec<&Question>, limit: usize) -> Vec<&Question> {
    let n = list.len();
    if n <= limit {
        return list;
    }
    (0..limit).map(|i| list[i * n / limit]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::folder;

    #[test]
    fn a_vector_that_is_no_number_agrees_with_nothing() {
        assert_eq!(cosine(&[1.0, 0.0], &[f32::NAN, 1.0]), 0.0);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 1.0]), 0.0);
        assert!((cosine(&[3.0, 4.0], &[6.0, 8.0]) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn pictures_are_held_out_whole() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..8 {
            std::fs::File::create(dir.path().join(format!("{i}.png"))).unwrap();
        }
        let questions = folder(dir.path(), &["a".into(), "b".into(), "c".into()]).unwrap();
        let (search, held) = split(&questions, 0.25, 100);
        assert_eq!((search.len(), held.len()), (18, 6));
        assert!(held.iter().all(|h| search.iter().all(|s| s.picture != h.picture)));
        let (search, held) = split(&questions, 0.5, 5);
        assert_eq!((search.len(), held.len()), (5, 5));
        assert!(split(&questions, 0.0, 5).1.is_empty());
    }
}
