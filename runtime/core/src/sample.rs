//! Choosing the next token: penalty, filters, draw, and the hook that says which tokens may come.
//!
//! Invariants
//! - With temperature 0 the token is the one of the largest logit, the lower id on ties; no copy of
//!   the logits is made.
//! - A draw walks the tokens by falling probability, ids rising among equals, as if all were sorted;
//!   only as many as can matter are put in order.
//! - A seeded run gives the same tokens whatever else is in the batch.
//! - A token that [`AllowedTokens`] does not name is never chosen, however likely.
//!
//! Method: filters in the order top-k, min-p, top-p, on probabilities relative to the best; then one
//! uniform number of SplitMix64 a token.

use std::borrow::Cow;
use std::fmt;

use crate::error::RunError;
use crate::random::SplitMix64;

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Sampling {
    /// 0: the largest logit. Else logits are divided by it.
    pub temperature: f32,
    /// Only the most probable tokens that together have this share; 1: all.
    pub top_p: f32,
    /// Only that many most probable tokens; 0: all.
    pub top_k: usize,
    /// Only tokens with at least this share of the best one's probability; 0: all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or answer; 1: off.
    pub repetition_penalty: f32,
    /// Start of the random sequence.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

/// Which tokens may come next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed<'a> {
    /// Every token.
    All,
    /// These ids alone, in any order; ids outside the vocabulary are ignored.
    Only(Cow<'a, [u32]>),
}

/// Says which tokens may follow: location tokens of a head, a grammar, a schema.
///
/// It is asked before every token and sees the whole answer so far, so that it needs no state of its
/// own. The end token counts like any other: a rule that never allows it runs to the length.
///
/// ```
/// use std::borrow::Cow;
/// use secateur_core::decode::{Allowed, AllowedTokens};
///
/// /// Two tokens of a range, then the end.
/// #[derive(Debug)]
/// struct Pair {
///     locations: std::ops::Range<u32>,
///     end: u32,
/// }
///
/// impl AllowedTokens for Pair {
///     fn after(&self, answer: &[u32]) -> Allowed<'_> {
///         match answer.len() {
///             0 | 1 => Allowed::Only(Cow::Owned(self.locations.clone().collect())),
///             _ => Allowed::Only(Cow::Borrowed(std::slice::from_ref(&self.end))),
///         }
///     }
/// }
/// ```
pub trait AllowedTokens: Send + Sync + fmt::Debug {
    /// The tokens that may follow `answer`, the ids generated so far.
    fn after(&self, answer: &[u32]) -> Allowed<'_>;
}

/// A token and its probability relative to the best one's.
type Candidate = (u32, f64);

/// Chooses tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    draws: SplitMix64,
    /// Ascending, unique.
    seen: Vec<u32>,
}

impl Sampler {
    /// A sampler whose penalty looks at `prompt` (the unpruned ids) and at what it chose.
    pub fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        let draws = SplitMix64::new(sampling.seed);
        let mut seen = prompt.to_vec();
        seen.sort_unstable();
        seen.dedup();
        Self { sampling, draws, seen }
    }

    /// The next token for logits `[vocab]`.
    ///
    /// # Errors
    /// As [`Sampler::next_of`].
    pub fn next(&mut self, logits: &[f32]) -> Result<u32, RunError> {
        self.next_of(logits, &Allowed::All)
    }

    /// The next token for logits `[vocab]`, among those that are allowed.
    ///
    /// # Errors
    /// [`RunError::NonFinite`] if no allowed logit is a number, [`RunError::NoToken`] if no token of
    /// the vocabulary is allowed.
    pub fn next_of(&mut self, logits: &[f32], allowed: &Allowed<'_>) -> Result<u32, RunError> {
        let best = self.best(logits, allowed)?;
        let token = if self.sampling.temperature <= 0.0 {
            best.0
        } else {
            let candidates = self.candidates(logits, allowed, best.1);
            self.draw(candidates)
        };
        if let Err(at) = self.seen.binary_search(&token) {
            self.seen.insert(at, token);
        }
        Ok(token)
    }

    /// Calls `f` with every allowed id and its logit after the penalty.
    fn each(&self, logits: &[f32], allowed: &Allowed<'_>, mut f: impl FnMut(u32, f32)) {
        let penalty = self.sampling.repetition_penalty;
        let turned = |l: f32| if l > 0.0 { l / penalty } else { l * penalty };
        match allowed {
            Allowed::All if penalty == 1.0 => {
                logits.iter().enumerate().for_each(|(i, &l)| f(i as u32, l));
            }
            Allowed::All => {
                // From one seen token to the next, so that the many others cost no comparison.
                let mut rest = logits.iter().copied().enumerate();
                let mut at = 0;
                for &id in self.seen.iter().take_while(|id| (**id as usize) < logits.len()) {
                    let unseen = id as usize - at;
                    rest.by_ref().take(unseen).for_each(|(i, l)| f(i as u32, l));
                    rest.next().into_iter().for_each(|(i, l)| f(i as u32, turned(l)));
                    at = id as usize + 1;
                }
                rest.for_each(|(i, l)| f(i as u32, l));
            }
            Allowed::Only(ids) => {
                for &id in ids.iter() {
                    let Some(&l) = logits.get(id as usize) else { continue };
                    let is_seen = penalty != 1.0 && self.seen.binary_search(&id).is_ok();
                    f(id, if is_seen { turned(l) } else { l });
                }
            }
        }
    }

    /// The largest logit, the lower id on ties.
    fn best(&self, logits: &[f32], allowed: &Allowed<'_>) -> Result<(u32, f32), RunError> {
        let mut best: Option<(u32, f32)> = None;
        let mut any = false;
        self.each(logits, allowed, |id, l| {
            any = true;
            let wins = |(top, b): (u32, f32)| l > b || (l == b && id < top);
            if !l.is_nan() && best.is_none_or(wins) {
                best = Some((id, l));
            }
        });
        match best {
            Some((id, l)) if l.is_finite() => Ok((id, l)),
            _ if !any && !logits.is_empty() => {
                Err(RunError::NoToken("the rule for the answer allows none of the vocabulary"))
            }
            _ => Err(RunError::NonFinite { signal: "logits".into(), layer: 0 }),
        }
    }

    /// Tokens that a draw can reach, in no order; `best` is the largest logit.
    fn candidates(&self, logits: &[f32], allowed: &Allowed<'_>, best: f32) -> Vec<Candidate> {
        let temperature = f64::from(self.sampling.temperature);
        // Rarer than this, a token adds nothing to an f64 sum of the vocabulary's probabilities and
        // lies beyond the 53 bits of a draw.
        let mut lowest = f64::ln(1e-24);
        if self.sampling.min_p > 0.0 {
            // The bar itself is looked at exactly, below.
            lowest = lowest.max(f64::from(self.sampling.min_p).ln() - 1e-6);
        }
        let mut scaled: Vec<Candidate> = Vec::new();
        self.each(logits, allowed, |id, l| {
            let s = f64::from(l - best) / temperature;
            if l.is_finite() && s >= lowest {
                scaled.push((id, s));
            }
        });
        let k = self.sampling.top_k;
        if k > 0 && k < scaled.len() {
            scaled.select_nth_unstable_by(k - 1, falling);
            scaled.truncate(k);
        }
        for (_, p) in &mut scaled {
            *p = p.exp();
        }
        if self.sampling.min_p > 0.0 {
            let bar = f64::from(self.sampling.min_p);
            scaled.retain(|&(_, p)| p >= bar);
        }
        scaled
    }

    /// Draws one of the candidates after top-p.
    fn draw(&mut self, mut candidates: Vec<Candidate>) -> u32 {
        let mut sorted = Falling { all: &mut candidates, sorted: 0 };
        if self.sampling.top_p < 1.0 {
            let share = sorted.total() * f64::from(self.sampling.top_p);
            let (mut sum, mut at) = (0.0, 0);
            while let Some((_, p)) = sorted.get(at) {
                sum += p;
                at += 1;
                if sum >= share {
                    break;
                }
            }
            candidates.truncate(at);
        }
        let mut sorted = Falling { all: &mut candidates, sorted: 0 };
        let mut left = self.draws.uniform() * sorted.total();
        let (mut at, mut token) = (0, 0);
        while let Some((id, p)) = sorted.get(at) {
            token = id;
            left -= p;
            if left < 0.0 {
                break;
            }
            at += 1;
        }
        token
    }
}

/// Higher first, ids rising among equals.
fn falling(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Candidates by falling probability, put in order only as far as they are looked at.
struct Falling<'a> {
    all: &'a mut [Candidate],
    sorted: usize,
}

impl Falling<'_> {
    /// Up to here everything is sorted at once: small sets sum in the order of their ranks.
    const STEP: usize = 1024;

    /// Sum of all probabilities.
    fn total(&mut self) -> f64 {
        if self.all.len() <= Self::STEP {
            self.reach(self.all.len());
        }
        self.all.iter().map(|c| c.1).sum()
    }

    fn get(&mut self, at: usize) -> Option<Candidate> {
        if at >= self.sorted {
            self.reach(at + 1);
        }
        self.all.get(at).copied()
    }

    /// Puts at least the first `count` in order.
    fn reach(&mut self, count: usize) {
        while self.sorted < count.min(self.all.len()) {
            let rest = &mut self.all[self.sorted..];
            // Each step is as large as everything before it, so that no walk is quadratic.
            let step = self.sorted.max(Self::STEP).min(rest.len());
            if step < rest.len() {
                rest.select_nth_unstable_by(step, falling);
            }
            rest[..step].sort_unstable_by(falling);
            self.sorted += step;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_lower_id_on_ties() {
        let mut sampler = Sampler::new(Sampling::default(), &[]);
        assert_eq!(sampler.next(&[0.0, 3.0, 3.0]).unwrap(), 1);
        let any_order = Allowed::Only(Cow::Borrowed(&[2, 1]));
        assert_eq!(sampler.next_of(&[9.0, 3.0, 3.0], &any_order).unwrap(), 1);
    }

    #[test]
    fn a_penalty_turns_away_from_what_was_said() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling, &[1]);
        assert_eq!(sampler.next(&[1.9, 3.0]).unwrap(), 0);
    }

    #[test]
    fn filters_leave_only_what_they_say() {
        let logits = [5.0, 4.0, 0.0, -3.0];
        for sampling in [
            Sampling { temperature: 1.0, top_k: 2, ..Sampling::default() },
            Sampling { temperature: 1.0, top_p: 0.9, ..Sampling::default() },
            Sampling { temperature: 1.0, min_p: 0.3, ..Sampling::default() },
        ] {
            let mut sampler = Sampler::new(sampling.clone(), &[]);
            let drawn: Vec<u32> = (0..200).map(|_| sampler.next(&logits).unwrap()).collect();
            assert!(drawn.iter().all(|&t| t < 2), "{sampling:?}");
            assert!(drawn.contains(&1), "{sampling:?}");
        }
    }

    #[test]
    fn a_seed_repeats_itself() {
        let draw = |seed| {
            let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
            let mut sampler = Sampler::new(sampling, &[]);
            (0..20).map(|_| sampler.next(&[0.0; 50]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn logits_that_are_not_numbers_are_an_error() {
        let mut sampler = Sampler::new(Sampling::default(), &[]);
        assert!(sampler.next(&[f32::NAN, f32::NAN]).is_err());
        assert!(sampler.next(&[f32::INFINITY, 0.0]).is_err());
    }

    /// Everything sorted and copied, as the definition says.
    struct Plain {
        sampling: Sampling,
        draws: SplitMix64,
        seen: std::collections::BTreeSet<u32>,
    }

    impl Plain {
        fn next(&mut self, logits: &[f32]) -> u32 {
            let mut logits = logits.to_vec();
            let penalty = self.sampling.repetition_penalty;
            for &id in &self.seen {
                let l = &mut logits[id as usize];
                *l = if *l > 0.0 { *l / penalty } else { *l * penalty };
            }
            let first = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
            let mut token = (0..logits.len()).reduce(first).unwrap() as u32;
            if self.sampling.temperature > 0.0 {
                let best = logits[token as usize];
                let scaled = |l: f32| f64::from(l - best) / f64::from(self.sampling.temperature);
                let ids = 0..logits.len() as u32;
                let mut kept: Vec<Candidate> =
                    ids.map(|i| (i, scaled(logits[i as usize]).exp())).collect();
                kept.sort_by(falling);
                if self.sampling.top_k > 0 {
                    kept.truncate(self.sampling.top_k);
                }
                kept.retain(|&(_, p)| p >= kept_bar(self.sampling.min_p));
                if self.sampling.top_p < 1.0 {
                    let total: f64 = kept.iter().map(|k| k.1).sum();
                    let mut sum = 0.0;
                    let cut = kept.iter().position(|&(_, p)| {
                        sum += p;
                        sum >= total * f64::from(self.sampling.top_p)
                    });
                    kept.truncate(cut.map_or(kept.len(), |c| c + 1));
                }
                let mut left = self.draws.uniform() * kept.iter().map(|k| k.1).sum::<f64>();
                token = kept[kept.len() - 1].0;
                for &(id, p) in &kept {
                    left -= p;
                    if left < 0.0 {
                        token = id;
                        break;
                    }
                }
            }
            self.seen.insert(token);
            token
        }
    }

    fn kept_bar(min_p: f32) -> f64 {
        f64::from(min_p)
    }

    #[test]
    fn selecting_draws_the_tokens_that_sorting_everything_draws() {
        let mut values = SplitMix64::new(3);
        let full = std::env::var_os("SECATEUR_FULL").is_some();
        for case in 0..if full { 2000 } else { 200 } {
            let vocab = 1 + values.below(5000);
            // A few levels make ties; a wide spread makes probabilities that vanish.
            let (levels, spread) = (1 + values.below(200), [1.0, 20.0, 2000.0][case % 3]);
            let logits: Vec<f32> = (0..vocab)
                .map(|_| {
                    (values.below(levels) as f64 / levels as f64 * spread - spread / 2.0) as f32
                })
                .collect();
            let pick = |some: &[f32], at: usize| some[at % some.len()];
            let sampling = Sampling {
                temperature: pick(&[0.0, 0.7, 1.0, 30.0], values.below(4)),
                top_p: pick(&[1.0, 0.9, 0.1], values.below(3)),
                top_k: [0, 1, 20, 3000][values.below(4)],
                min_p: pick(&[0.0, 0.05, 1.0], values.below(3)),
                repetition_penalty: pick(&[1.0, 1.3], values.below(2)),
                seed: values.next(),
            };
            let prompt: Vec<u32> = (0..5).map(|_| values.below(vocab) as u32).collect();
            let mut ours = Sampler::new(sampling.clone(), &prompt);
            let mut plain = Plain {
                draws: SplitMix64::new(sampling.seed),
                sampling: sampling.clone(),
                seen: prompt.iter().copied().collect(),
            };
            for step in 0..8 {
                let (got, want) = (ours.next(&logits).unwrap(), plain.next(&logits));
                assert_eq!(got, want, "case {case}, step {step}, {vocab} tokens, {sampling:?}");
            }
        }
    }

    /// `( digit+ )`: 0 opens, 1 closes, 2 to 5 are digits, 6 ends.
    #[derive(Debug)]
    struct Grammar;

    impl AllowedTokens for Grammar {
        fn after(&self, answer: &[u32]) -> Allowed<'_> {
            const DIGITS: [u32; 4] = [5, 4, 3, 2];
            Allowed::Only(match answer {
                [] => Cow::Borrowed(&[0]),
                [.., 0] => Cow::Borrowed(&DIGITS),
                [.., 1] => Cow::Borrowed(&[6]),
                _ => Cow::Owned([&DIGITS[..], &[1]].concat()),
            })
        }
    }

    #[test]
    fn an_answer_stays_within_its_grammar_however_unlikely() {
        // What is forbidden is what the model likes best.
        let logits = [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 3.0, 90.0];
        for (temperature, top_k) in [(0.0, 0), (1.0, 0), (1.0, 2), (5.0, 0)] {
            for seed in 0..50 {
                let sampling = Sampling { temperature, top_k, seed, ..Sampling::default() };
                let mut sampler = Sampler::new(sampling, &[]);
                let mut answer = Vec::new();
                while answer.len() < 40 && answer.last() != Some(&6) {
                    answer.push(sampler.next_of(&logits, &Grammar.after(&answer)).unwrap());
                }
                let digits =
                    &answer[1..answer.iter().position(|&t| t == 1).unwrap_or(answer.len())];
                assert!(
                    !digits.is_empty() && digits.iter().all(|t| (2..6).contains(t)),
                    "{answer:?}"
                );
                assert_eq!(answer[0], 0);
                assert!(answer.len() == 40 || answer.ends_with(&[1, 6]), "{answer:?}");
            }
        }
    }

    #[test]
    fn a_rule_that_allows_nothing_is_an_error_of_its_own() {
        let mut sampler = Sampler::new(Sampling::default(), &[]);
        for ids in [&[][..], &[7, 8]] {
            let error = sampler.next_of(&[1.0; 3], &Allowed::Only(Cow::Borrowed(ids))).unwrap_err();
            assert!(matches!(error, RunError::NoToken(_)), "{error}");
        }
    }
}
