//! Intervals: how far a mean over questions may be off.
//!
//! Questions about one picture are not independent, so the unit of resampling is the picture:
//! percentile bootstrap over pictures, 95 %, with a fixed seed. Where every value is the same the
//! bootstrap sees no spread at all; there Wilson's score interval stands in.
//!
//! Sources: Efron, "Bootstrap Methods: Another Look at the Jackknife" (1979); Wilson, "Probable
//! Inference, the Law of Succession, and Statistical Inference" (1927).

use std::collections::BTreeMap;

use secateur_core::random::SplitMix64;

/// Name of the method, for tables.
pub(crate) const METHOD: &str = "95 %, percentile bootstrap over pictures (2,000 resamples; Wilson where all values are equal; \
     all that is possible where there is one picture)";

const RESAMPLES: usize = 2000;
/// 97.5 % quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// A mean with its interval.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Estimate {
    /// The mean.
    pub(crate) mean: f64,
    /// Lower end.
    pub(crate) low: f64,
    /// Upper end.
    pub(crate) high: f64,
    /// Values.
    pub(crate) count: usize,
    /// Whether it holds by construction and not by measurement: then the ends are the mean.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) exact: bool,
}

impl Estimate {
    /// What is known without measuring: a run beside itself.
    pub(crate) fn exact(mean: f64, count: usize) -> Self {
        Self { mean, low: mean, high: mean, count, exact: true }
    }
}

/// Mean of values in [-1, 1] with the picture that each belongs to; `None` without values.
pub(crate) fn estimate(values: &[(usize, f64)]) -> Option<Estimate> {
    let count = values.len();
    if count == 0 {
        return None;
    }
    let sum: f64 = values.iter().map(|v| v.1).sum();
    let mean = sum / count as f64;
    if is_one_picture(values) {
        return Some(Estimate { mean, low: 0.0, high: 1.0, count, exact: false });
    }
    let first = values[0].1;
    if values.iter().all(|v| v.1 == first) {
        let [low, high] =
            if (0.0..=1.0).contains(&first) { wilson(sum, count as f64) } else { [first, first] };
        // A difference that is 0 everywhere may be negative as well as positive.
        return Some(Estimate { mean, low, high, count, exact: false });
    }
    let mut pictures: BTreeMap<usize, (f64, usize)> = BTreeMap::new();
    for &(picture, value) in values {
        let entry = pictures.entry(picture).or_default();
        entry.0 += value;
        entry.1 += 1;
    }
    let pictures: Vec<(f64, usize)> = pictures.into_values().collect();
    let mut lot = SplitMix64::new(0x5EED);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let (mut sum, mut count) = (0.0, 0);
            for _ in 0..pictures.len() {
                let (s, c) = pictures[lot.below(pictures.len())];
                sum += s;
                count += c;
            }
            sum / count as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means[(share * (RESAMPLES - 1) as f64).round() as usize];
    Some(Estimate { mean, low: at(0.025), high: at(0.975), count, exact: false })
}

/// One picture says nothing of others, however many questions are about it.
fn is_one_picture(values: &[(usize, f64)]) -> bool {
    values.iter().all(|v| v.0 == values[0].0)
}

/// Mean of paired differences: as [`estimate`], and symmetric where all of them are 0.
pub(crate) fn difference(values: &[(usize, f64)]) -> Option<Estimate> {
    let found = estimate(values)?;
    if is_one_picture(values) {
        return Some(Estimate { low: -1.0, high: 1.0, ..found });
    }
    if values.iter().all(|v| v.1 == 0.0) {
        let [_, high] = wilson(0.0, values.len() as f64);
        return Some(Estimate { low: -high, high, ..found });
    }
    Some(found)
}

/// Wilson's score interval for `hits` (may be fractional) of `n`.
pub(crate) fn wilson(hits: f64, n: f64) -> [f64; 2] {
    if n <= 0.0 {
        return [0.0, 1.0];
    }
    let p = hits / n;
    let z2 = Z * Z;
    let center = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    [(center - half).max(0.0), (center + half).min(1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_gives_the_textbook_figures() {
        // R: prop.test(81, 263, correct = FALSE)
        let [low, high] = wilson(81.0, 263.0);
        assert!((low - 0.2553).abs() < 1e-3 && (high - 0.3662).abs() < 1e-3, "{low} {high}");
        let [low, high] = wilson(10.0, 10.0);
        assert!((low - 0.7225).abs() < 1e-3 && (high - 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_bootstrap_is_as_wide_as_theory_says() {
        let values: Vec<(usize, f64)> =
            (0..400).map(|i| (i, f64::from(u8::from(i % 4 == 0)))).collect();
        let found = estimate(&values).unwrap();
        let half = Z * (0.25f64 * 0.75 / 400.0).sqrt();
        assert_eq!(found.mean, 0.25);
        assert!((found.high - found.mean - half).abs() < 0.006, "{found:?}");
        assert!((found.mean - found.low - half).abs() < 0.006, "{found:?}");
    }

    #[test]
    fn copies_of_a_picture_do_not_narrow_the_interval() {
        let alone: Vec<(usize, f64)> =
            (0..100).map(|i| (i, f64::from(u8::from(i % 2 == 0)))).collect();
        let copied: Vec<(usize, f64)> = alone.iter().flat_map(|&v| [v; 7]).collect();
        let (a, b) = (estimate(&alone).unwrap(), estimate(&copied).unwrap());
        assert!((a.high - a.low - (b.high - b.low)).abs() < 1e-9);
    }

    #[test]
    fn questions_about_one_picture_do_not_make_an_interval() {
        let found = estimate(&[(3, 1.0), (3, 0.0), (3, 1.0), (3, 0.5)]).unwrap();
        assert_eq!((found.mean, found.low, found.high), (0.625, 0.0, 1.0));
        let found = difference(&[(3, 0.0), (3, -1.0)]).unwrap();
        assert_eq!((found.low, found.high), (-1.0, 1.0));
    }

    #[test]
    fn equal_values_fall_back_to_wilson() {
        let all = estimate(&[(0, 1.0), (1, 1.0), (2, 1.0)]).unwrap();
        assert!(all.low < 0.5 && all.high > 1.0 - 1e-9);
        let none = difference(&[(0, 0.0), (1, 0.0)]).unwrap();
        assert_eq!(none.low, -none.high);
        assert_eq!(estimate(&[]), None);
    }
}
