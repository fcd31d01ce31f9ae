//! Fits of a trend to a measured curve.
//!
//! - `exp`: least squares of `a exp(rate t)` by Gauss-Newton with halved steps, from the log-linear
//!   solution;
//! - `cubic`: linear least squares of `a (1 + c1 t + c2 t^2 + c3 t^3)`;
//! - `table`: the curve at equally spaced places, by linear least squares of the broken line
//!   through them (empty stretches are bridged).
//!
//! Every value of the curve weighs as many measurements as it is the mean of. The scale `a` does
//! not matter to a ranking and is not written.

use anyhow::{Result, bail};

use crate::tune::solve;

/// Form of a trend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `exp(rate t)`
    Exp,
    /// `1 + c1 t + c2 t^2 + c3 t^3`
    Cubic,
    /// Values at that many equally spaced places.
    Table(usize),
}

/// A fitted trend.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fit {
    /// The form, with what was fitted.
    pub(crate) trend: Trend,
    /// Level at `t = 0`.
    pub(crate) scale: f64,
    /// Share of the curve's variance that it explains.
    pub(crate) r_squared: f64,
}

/// What was fitted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Trend {
    /// Rate.
    Exp(f64),
    /// `c1, c2, c3`
    Cubic([f64; 3]),
    /// Values, the first 1.
    Table(Vec<f64>),
}

impl Trend {
    /// Relative to `t = 0`.
    pub(crate) fn at(&self, t: f64) -> f64 {
        match self {
            Trend::Exp(rate) => (rate * t).exp(),
            Trend::Cubic([a, b, c]) => 1.0 + t * (a + t * (b + t * c)),
            Trend::Table(values) => {
                let at = t.clamp(0.0, 1.0) * (values.len() - 1) as f64;
                let low = (at as usize).min(values.len() - 2);
                let part = at - low as f64;
                values[low] * (1.0 - part) + values[low + 1] * part
            }
        }
    }

    /// As the keys of a table `trend`, in TOML.
    pub(crate) fn toml(&self) -> String {
        let list = |values: &[f64]| {
            values.iter().map(|v| format!("{v:.8}")).collect::<Vec<_>>().join(", ")
        };
        match self {
            Trend::Exp(rate) => format!("kind = \"exp\"\nrate = {rate:.6}\n"),
            Trend::Cubic(c) => format!("kind = \"cubic\"\ncoefficients = [{}]\n", list(c)),
            Trend::Table(values) => format!("kind = \"table\"\nvalues = [{}]\n", list(values)),
        }
    }

    /// As the value of `trend` in an inline chain.
    pub(crate) fn inline(&self) -> String {
        let list =
            |values: &[f64]| values.iter().map(|v| format!("{v:.6}")).collect::<Vec<_>>().join(";");
        match self {
            Trend::Exp(rate) => format!("{{kind=exp;rate={rate:.4}}}"),
            Trend::Cubic(c) => format!("{{kind=cubic;coefficients=[{}]}}", list(c)),
            Trend::Table(values) => format!("{{kind=table;values=[{}]}}", list(values)),
        }
    }
}

/// Fits `form` to points `(t, value, weight)`.
///
/// # Errors
/// Too few points, a curve that is not positive, a fit that is not positive between 0 and 1.
pub(crate) fn fit(points: &[(f64, f64, f64)], form: Form) -> Result<Fit> {
    let level = mean(points.iter().map(|p| (p.1, p.2)));
    if points.len() < 8 || level.is_nan() || level <= 0.0 {
        bail!("the curve has {} places and a mean of {level:e}; too little to fit", points.len());
    }
    // Attention values are small: work on a curve around 1.
    let curve: Vec<(f64, f64, f64)> = points.iter().map(|p| (p.0, p.1 / level, p.2)).collect();
    let (scale, trend) = match form {
        Form::Exp => exponential(&curve),
        Form::Cubic => cubic(&curve)?,
        Form::Table(places) => broken_line(&curve, places.max(2))?,
    };
    if let Some(bad) = (0..=1000).map(|i| f64::from(i) / 1000.0).find(|&t| trend.at(t) <= 0.0) {
        bail!("the fit is not positive at {bad}; try another form");
    }
    let left = mean(curve.iter().map(|&(t, y, w)| ((y - scale * trend.at(t)).powi(2), w)));
    let all = mean(curve.iter().map(|&(_, y, w)| ((y - 1.0).powi(2), w)));
    let r_squared = if all > 0.0 { 1.0 - left / all } else { 1.0 };
    Ok(Fit { trend, scale: scale * level, r_squared })
}

fn mean(values: impl Iterator<Item = (f64, f64)>) -> f64 {
    let (sum, weight) = values.fold((0.0, 0.0), |(s, n), (v, w)| (s + v * w, n + w));
    sum / weight
}

fn exponential(curve: &[(f64, f64, f64)]) -> (f64, Trend) {
    let logs = || curve.iter().filter(|p| p.1 > 0.0).map(|&(t, y, w)| (t, y.ln(), w));
    let (t0, l0) = (mean(logs().map(|p| (p.0, p.2))), mean(logs().map(|p| (p.1, p.2))));
    let cross = mean(logs().map(|(t, l, w)| ((t - t0) * (l - l0), w)));
    let square = mean(logs().map(|(t, _, w)| ((t - t0).powi(2), w)));
    let mut rate = if square > 0.0 { cross / square } else { 0.0 };
    let mut scale = (l0 - rate * t0).exp();
    let error = |a: f64, b: f64| -> f64 {
        curve.iter().map(|&(t, y, w)| w * (y - a * (b * t).exp()).powi(2)).sum()
    };
    for _ in 0..100 {
        // Normal equations of the residual's derivatives exp(bt) and a t exp(bt).
        let mut m = [[0.0; 2]; 2];
        let mut g = [0.0; 2];
        for &(t, y, w) in curve {
            let e = (rate * t).exp();
            let d = [e, scale * t * e];
            let residual = y - scale * e;
            for i in 0..2 {
                g[i] += w * d[i] * residual;
                for j in 0..2 {
                    m[i][j] += w * d[i] * d[j];
                }
            }
        }
        let Some(step) = solve(&m.map(|row| row.to_vec()), &g) else { break };
        let before = error(scale, rate);
        let halved = (0..40).map(|i| 0.5f64.powi(i));
        let better = halved
            .map(|h| (scale + h * step[0], rate + h * step[1]))
            .find(|&(a, b)| error(a, b) < before);
        let Some((a, b)) = better else { break };
        let moved = (a - scale).abs() + (b - rate).abs();
        (scale, rate) = (a, b);
        if moved < 1e-12 {
            break;
        }
    }
    (scale, Trend::Exp(rate))
}

/// Weighted linear least squares with base functions `base(t)`.
fn linear(
    curve: &[(f64, f64, f64)],
    count: usize,
    ridge: f64,
    base: impl Fn(f64) -> Vec<(usize, f64)>,
) -> Option<Vec<f64>> {
    let mut m = vec![vec![0.0; count]; count];
    let mut g = vec![0.0; count];
    for &(t, y, w) in curve {
        let parts = base(t);
        for &(i, a) in &parts {
            g[i] += w * a * y;
            for &(j, b) in &parts {
                m[i][j] += w * a * b;
            }
        }
    }
    // Second differences, so that a stretch without data is bridged by a straight line.
    for i in 1..count.saturating_sub(1) {
        for (a, x) in [(i - 1, 1.0), (i, -2.0), (i + 1, 1.0)] {
            for (b, y) in [(i - 1, 1.0), (i, -2.0), (i + 1, 1.0)] {
                m[a][b] += ridge * x * y;
            }
        }
    }
    solve(&m, &g)
}

fn cubic(curve: &[(f64, f64, f64)]) -> Result<(f64, Trend)> {
    let base = |t: f64| (0..4).map(|i| (i, t.powi(i as i32))).collect();
    let Some(c) = linear(curve, 4, 0.0, base) else {
        bail!("the curve has too few places for a cubic");
    };
    if c[0] <= 0.0 {
        bail!("the cubic is not positive at 0; try another form");
    }
    Ok((c[0], Trend::Cubic([c[1] / c[0], c[2] / c[0], c[3] / c[0]])))
}

fn broken_line(curve: &[(f64, f64, f64)], places: usize) -> Result<(f64, Trend)> {
    let base = |t: f64| {
        let at = t * (places - 1) as f64;
        let low = (at as usize).min(places - 2);
        let part = at - low as f64;
        vec![(low, 1.0 - part), (low + 1, part)]
    };
    let weight: f64 = curve.iter().map(|p| p.2).sum();
    let Some(values) = linear(curve, places, 1e-6 * weight, base) else {
        bail!("the curve has too few places for a table of {places}");
    };
    if values[0] <= 0.0 {
        bail!("the table is not positive at 0; use fewer --points");
    }
    Ok((values[0], Trend::Table(values.iter().map(|v| v / values[0]).collect())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The release's FastV vector: `1 / w = 1 + 1.7337 t - 4.8264 t^2 + 4.8841 t^3`.
    const RELEASED: [f64; 3] = [1.733_738_62, -4.826_433_45, 4.884_125_65];

    fn curve(n: usize, f: impl Fn(f64) -> f64) -> Vec<(f64, f64, f64)> {
        let t = |i: usize| i as f64 / (n - 1) as f64;
        (0..n).map(|i| (t(i), 3e-4 * f(t(i)), 1.0 + (i % 5) as f64)).collect()
    }

    #[test]
    fn the_released_rates_are_recovered() {
        for rate in [2.294, 1.027, 0.64, 0.0, -1.5] {
            let found = fit(&curve(576, |t| (rate * t).exp()), Form::Exp).unwrap();
            let Trend::Exp(b) = found.trend else { panic!("another form") };
            assert!((b - rate).abs() < 1e-6, "{b} for {rate}");
            assert!((found.scale - 3e-4).abs() < 1e-9);
        }
    }

    #[test]
    fn the_released_cubic_is_recovered() {
        let found = fit(&curve(576, |t| Trend::Cubic(RELEASED).at(t)), Form::Cubic).unwrap();
        let Trend::Cubic(c) = found.trend else { panic!("another form") };
        for (a, b) in c.iter().zip(RELEASED) {
            assert!((a - b).abs() < 1e-6, "{c:?}");
        }
        assert!(found.r_squared > 1.0 - 1e-9);
    }

    #[test]
    fn noise_that_does_not_depend_on_the_place_does_not_move_the_rate() {
        let mut lot = secateur_core::random::SplitMix64::new(5);
        let mut noisy = curve(576, |t| (1.3 * t).exp());
        for point in &mut noisy {
            point.1 *= 1.0 + 0.05 * lot.normal();
        }
        let Trend::Exp(b) = fit(&noisy, Form::Exp).unwrap().trend else { panic!("another form") };
        assert!((b - 1.3).abs() < 0.02, "{b}");
    }

    #[test]
    fn a_table_follows_the_curve_and_bridges_gaps() {
        let f = |t: f64| 1.0 + 0.5 * (4.0 * t).sin();
        let mut points = curve(256, f);
        points.retain(|p| !(0.4..0.5).contains(&p.0));
        let found = fit(&points, Form::Table(33)).unwrap();
        for t in [0.0, 0.2, 0.45, 0.7, 1.0] {
            assert!((found.trend.at(t) - f(t)).abs() < 0.02, "{t}: {}", found.trend.at(t));
        }
    }

    #[test]
    fn nothing_to_fit_is_an_error() {
        assert!(fit(&[], Form::Exp).is_err());
        assert!(fit(&curve(100, |_| 0.0), Form::Exp).is_err());
        assert!(fit(&curve(100, |t| (t - 0.5).powi(3)), Form::Cubic).is_err());
    }

    #[test]
    fn what_is_written_is_read_by_the_pruners() {
        for trend in [Trend::Exp(1.25), Trend::Cubic(RELEASED), Trend::Table(vec![1.0, 1.5, 0.9])] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("trend.toml");
            crate::write::replace_one(&path, format!("[trend]\n{}", trend.toml()).as_bytes())
                .unwrap();
            let vlm = secateur::Vlm::builder(secateur::ModelSource::Embedded).open().unwrap();
            for value in [trend.inline(), format!("{{file={}}}", path.display())] {
                let text = format!("fastv:layer=2:keep=9:debias={{trend={value}}}");
                vlm.resolve(text.as_str()).unwrap();
            }
        }
    }
}
