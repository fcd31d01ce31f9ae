//! From scores to a selection: ranking, budgets, and who competes with whom.
//!
//! Invariants
//! - Equal scores: the lower index wins. Kept indices come out ascending.
//! - Structural tokens are kept, never ranked and never counted.
//! - A group that has a budget of at least one keeps at least one token.
//!
//! Not here: where scores come from (the pruners), what they are multiplied with
//! ([`crate::debias`]).

use std::cmp::Ordering;

use secateur_core::prune::{Budget, Cut, Selection};
use secateur_core::tokens::TokenMap;

use crate::debias::Debias;
use crate::lattice;

/// Indices of the `k` highest scores, ascending; `k` is clamped to their number.
///
/// Ties: lower index first. NaN counts as minus infinity (signals that hold NaN are refused before
/// they become scores). O(n).
pub fn top_k(scores: &[f32], k: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    let k = k.min(scores.len());
    if k == 0 {
        return Vec::new();
    }
    if k < order.len() {
        order.select_nth_unstable_by(k - 1, |&a, &b| {
            falling(scores[a as usize], scores[b as usize]).then(a.cmp(&b))
        });
        order.truncate(k);
    }
    order.sort_unstable();
    order
}

/// Indices by rising score; ties: lower index first, NaN first.
pub fn rising_order(scores: &[f32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_by(|&a, &b| falling(scores[b as usize], scores[a as usize]));
    order
}

/// Index of the highest score, the first of equals.
pub fn first_max(scores: impl IntoIterator<Item = f32>) -> Option<usize> {
    let mut best: Option<(usize, f32)> = None;
    for (i, score) in scores.into_iter().enumerate() {
        if best.is_none_or(|(_, top)| score > top) {
            best = Some((i, score));
        }
    }
    best.map(|(i, _)| i)
}

/// Higher first; NaN last. Zero equals minus zero.
fn falling(a: f32, b: f32) -> Ordering {
    let low = |x: f32| if x.is_nan() { f32::NEG_INFINITY } else { x };
    low(b).partial_cmp(&low(a)).unwrap_or(Ordering::Equal)
}

/// Splits `total` in proportion to `sizes`: largest remainder, ties to the earlier. No part
/// exceeds its size.
pub fn split_budget(total: usize, sizes: &[usize]) -> Vec<usize> {
    let sum: usize = sizes.iter().sum();
    if sum == 0 {
        return vec![0; sizes.len()];
    }
    let total = total.min(sum);
    let exact = |size: usize| (total as u128) * (size as u128);
    let mut parts: Vec<usize> = sizes.iter().map(|&s| (exact(s) / sum as u128) as usize).collect();
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(exact(sizes[i]) % sum as u128));
    let missing = total - parts.iter().sum::<usize>();
    for &i in order.iter().take(missing) {
        parts[i] += 1;
    }
    parts
}

/// Who competes with whom, and what a budget means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One ranking and one budget over all pictures.
    All,
    /// One budget over all pictures, split by their tokens; a ranking each.
    SplitOverImages,
    /// A budget and a ranking for each picture.
    EachImage,
    /// A budget for each picture, split over its crops; a ranking each.
    SplitOverCrops,
    /// A budget and a ranking for each crop or frame.
    EachCrop,
}

impl Scope {
    /// Words of the key `scope`, for pruners that cut inside the decoder.
    pub(crate) const DECODER: &'static [(&'static str, Scope)] =
        &[("all", Scope::All), ("image", Scope::SplitOverImages)];
    /// Words of the key `per`, for pruners that score crop by crop.
    pub(crate) const PER_CROP: &'static [(&'static str, Scope)] =
        &[("crop", Scope::EachCrop), ("image", Scope::SplitOverCrops), ("all", Scope::All)];
    /// Words of the key `per`, for pruners that take a picture as one set.
    pub(crate) const PER_IMAGE: &'static [(&'static str, Scope)] =
        &[("image", Scope::EachImage), ("crop", Scope::EachCrop), ("all", Scope::All)];

    /// A budget in words, for `explain`.
    pub(crate) fn describe(self, budget: &Budget) -> String {
        match self {
            Scope::All => budget.to_string(),
            Scope::SplitOverImages => format!("{budget} over pictures"),
            Scope::EachImage | Scope::SplitOverCrops => format!("{budget} a picture"),
            Scope::EachCrop => format!("{budget} a crop"),
        }
    }
}

/// Candidates that compete for one budget.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Their indices among the current tokens, ascending.
    pub members: Vec<u32>,
    /// How many of them stay.
    pub keep: usize,
}

/// The groups of a cut. `crop_of` names the crop of a current token; `scores` (one a current
/// token) are read by [`Budget::Mass`] alone.
pub fn groups(
    tokens: &TokenMap,
    scope: Scope,
    budget: &Budget,
    scores: &[f32],
    crop_of: impl Fn(u32) -> u32,
) -> Vec<Group> {
    let candidates: Vec<u32> =
        (0..tokens.len() as u32).filter(|&i| tokens.tokens[i as usize].is_candidate()).collect();
    let picture_of = |i: u32| tokens.grid_of(&tokens.tokens[i as usize]).picture;
    let resolve = |members: &[u32]| {
        let own: Vec<f32> = match budget {
            Budget::Mass(_) => members.iter().map(|&i| scores[i as usize]).collect(),
            _ => Vec::new(),
        };
        budget.resolve(members.len(), &own)
    };
    let each = |parts: Vec<Vec<u32>>| {
        parts.into_iter().map(|members| Group { keep: resolve(&members), members }).collect()
    };
    let split = |whole: &[u32], parts: Vec<Vec<u32>>| {
        let sizes: Vec<usize> = parts.iter().map(Vec::len).collect();
        let keep = split_budget(resolve(whole), &sizes);
        parts.into_iter().zip(keep).map(|(members, keep)| Group { members, keep })
    };
    match scope {
        Scope::All => each(vec![candidates]),
        Scope::EachImage => each(partition(&candidates, picture_of)),
        Scope::EachCrop => each(partition(&candidates, crop_of)),
        Scope::SplitOverImages => {
            split(&candidates, partition(&candidates, picture_of)).collect::<Vec<_>>()
        }
        Scope::SplitOverCrops => partition(&candidates, picture_of)
            .into_iter()
            .flat_map(|picture| {
                let crops = partition(&picture, &crop_of);
                split(&picture, crops).collect::<Vec<_>>()
            })
            .collect(),
    }
}

/// Splits by key; parts in the order of their first member.
fn partition(members: &[u32], key: impl Fn(u32) -> u32) -> Vec<Vec<u32>> {
    let mut parts: Vec<(u32, Vec<u32>)> = Vec::new();
    for &i in members {
        let k = key(i);
        match parts.iter_mut().find(|(known, _)| *known == k) {
            Some((_, part)) => part.push(i),
            None => parts.push((k, vec![i])),
        }
    }
    parts.into_iter().map(|(_, part)| part).collect()
}

/// Kept tokens of a cut: `chosen` candidates and every structural token, ascending.
pub fn with_structural(tokens: &TokenMap, chosen: impl IntoIterator<Item = u32>) -> Vec<u32> {
    let mut stays: Vec<bool> = tokens.tokens.iter().map(|t| !t.is_candidate()).collect();
    for i in chosen {
        stays[i as usize] = true;
    }
    (0..tokens.len() as u32).filter(|&i| stays[i as usize]).collect()
}

/// How scores become a selection: the part that every score-ranking pruner shares.
#[derive(Clone, Debug)]
pub struct Ranking {
    /// Who competes with whom.
    pub scope: Scope,
    /// Correction of the scores.
    pub debias: Option<Debias>,
}

impl Ranking {
    /// Keeps the highest scores of every group. `scores` has one entry a current token (structural
    /// ones are ignored); they are corrected first.
    ///
    /// A group whose every token is padding is cut on the lattice of [`crate::grid`], which the
    /// selection notes.
    pub fn select(&self, cut: &Cut<'_>, scores: Vec<f32>, budget: &Budget) -> Selection {
        self.select_by_crop(cut, scores, budget, |i| cut.tokens.tokens[i as usize].grid)
    }

    /// As [`Ranking::select`] where crops are not the grids of the token map.
    pub fn select_by_crop(
        &self,
        cut: &Cut<'_>,
        mut scores: Vec<f32>,
        budget: &Budget,
        crop_of: impl Fn(u32) -> u32,
    ) -> Selection {
        let tokens = cut.tokens;
        let picture = self.debias.as_ref().and_then(|d| d.apply(tokens, &mut scores));
        let clamp = self.debias.as_ref().is_some_and(Debias::clamps);
        let mut chosen: Vec<u32> = Vec::new();
        let mut notes = Vec::new();
        for group in groups(tokens, self.scope, budget, &scores, crop_of) {
            let valid = match &picture {
                Some(mask) => group.members.iter().filter(|&&i| mask[i as usize]).count(),
                None => group.members.len(),
            };
            if valid == 0 && !group.members.is_empty() {
                notes.push(format!(
                    "{} tokens are padding: cut on a lattice instead of by score",
                    group.members.len()
                ));
                chosen.extend(lattice::lattice_of(tokens, &group.members, group.keep));
                continue;
            }
            let keep = if clamp { group.keep.min(valid) } else { group.keep };
            let own: Vec<f32> = group.members.iter().map(|&i| scores[i as usize]).collect();
            chosen.extend(top_k(&own, keep).into_iter().map(|at| group.members[at as usize]));
        }
        Selection {
            kept: with_structural(tokens, chosen),
            scores: Some(scores),
            notes,
            ..Selection::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_scores_go_to_the_lower_index_and_minus_zero_is_zero() {
        assert_eq!(top_k(&[1.0, 2.0, 2.0, 2.0, 0.0], 2), [1, 2]);
        assert_eq!(top_k(&[0.0, -0.0, 0.0], 2), [0, 1]);
        assert_eq!(top_k(&[-0.0, 0.0], 1), [0]);
        assert_eq!(rising_order(&[1.0, 0.0, 1.0, 0.0]), [1, 3, 0, 2]);
    }

    #[test]
    fn nan_ranks_below_everything() {
        assert_eq!(top_k(&[f32::NAN, f32::MIN, 3.0], 2), [1, 2]);
    }

    #[test]
    fn a_split_gives_the_remainder_to_the_largest_fraction_then_to_the_earlier() {
        assert_eq!(split_budget(10, &[5, 5, 5]), [4, 3, 3]);
        assert_eq!(split_budget(5, &[8, 4, 4]), [3, 1, 1]);
        assert_eq!(split_budget(99, &[2, 3]), [2, 3]);
        assert_eq!(split_budget(3, &[0, 0]), [0, 0]);
    }

    proptest! {
        #[test]
        fn top_k_is_ascending_unique_exact_and_best(
            scores in proptest::collection::vec(
                prop_oneof![Just(0.0f32), Just(1.0), Just(f32::INFINITY), Just(f32::NEG_INFINITY),
                            Just(f32::NAN), -1e3f32..1e3], 0..200),
            k in 0usize..220,
        ) {
            let kept = top_k(&scores, k);
            prop_assert_eq!(kept.len(), k.min(scores.len()));
            prop_assert!(kept.windows(2).all(|w| w[0] < w[1]));
            let stays: Vec<bool> =
                (0..scores.len()).map(|i| kept.binary_search(&(i as u32)).is_ok()).collect();
            for (i, &a) in scores.iter().enumerate().filter(|(i, _)| stays[*i]) {
                for (j, &b) in scores.iter().enumerate().filter(|(j, _)| !stays[*j]) {
                    let better = falling(a, b).then(i.cmp(&j)) == Ordering::Less;
                    prop_assert!(better, "{i} ({a}) was kept before {j} ({b})");
                }
            }
        }

        #[test]
        fn a_split_is_exact_and_within_the_sizes(
            sizes in proptest::collection::vec(0usize..50, 1..9), total in 0usize..300,
        ) {
            let parts = split_budget(total, &sizes);
            prop_assert_eq!(parts.iter().sum::<usize>(), total.min(sizes.iter().sum()));
            prop_assert!(parts.iter().zip(&sizes).all(|(p, s)| p <= s));
        }
    }
}
