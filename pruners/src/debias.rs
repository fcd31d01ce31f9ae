//! Attention debiasing: takes the position and the padding out of attention scores.
//!
//! Method: "Attention Debiasing for Token Pruning in Vision-Language Models" (2025,
//! arXiv 2508.17807). Two factors on a score `s[i]` of the token with raster index `i` of `v`:
//! - positional trend: `s'[i] = s[i] f(0) / f(i)`, where `f` is the mean attention over a
//!   calibration set; with `f = mu exp(sigma x)` this is `exp(-rate i / (v - 1))`;
//! - padding: `s'[i] = 0` where `1 - coverage(i) > threshold`.
//!
//! It is the option `debias = { trend = .., padding = .. }` of every pruner that ranks by
//! attention, and the named pruner `debiased` around one of them. Staged pruners apply it at
//! their first drop only, as the release does.
//!
//! Deviations
//! - C1 (an exponential is described, the release's FastV vector is the reciprocal of a cubic):
//!   `kind = "exp"` is the default, rate 1.027, the end value of that vector; `kind = "cubic"`
//!   reproduces it.
//! - C2 (weights fitted on the evaluated task): one rate per model and layer; `secateur calibrate`
//!   fits it and writes a file that `trend = { file = ".." }` names.
//! - C3 (integer padding rows in one baseline): areas everywhere.
//! - C4 (the budget is clamped to valid tokens in one host): `clamp_keep = true` everywhere.
//! - C5 (weights assume 576 tokens of one picture): `i` counts within the token's own picture,
//!   crop after crop, by its original cell; class and merged tokens have weight 1.
//! - C6 (columns are masked, all rows computed): dropped.
//! - C8: with a centre crop nothing is padding and the mask does nothing.

use std::path::Path;

use secateur_core::chain::Params;
use secateur_core::error::ChainError;
use secateur_core::prune::Pruner;
use secateur_core::tokens::{TokenKind, TokenMap};
use toml::{Table, Value};

use crate::registry::{self, Entry};

/// The row of the named pruner in the registry.
pub const ENTRY: Entry = Entry {
    name: "debiased",
    paper: "Attention Debiasing for Token Pruning in Vision-Language Models (arXiv 2508.17807)",
    summary: "another pruner's attention scores without their positional trend and padding",
    reads: "what the inner pruner reads; coverage",
    sites: "those of the inner pruner",
    example: "debiased:inner={type=fastv;layer=2;keep=64}",
    debias: false,
    build: debiased,
};

/// End rate of the release's FastV vector, the only task-independent one.
const DEFAULT_RATE: f64 = 1.027;
/// Threshold of most hosts in the release.
const DEFAULT_THRESHOLD: f64 = 0.5;
/// A coverage is f32: a share that should be exactly at the threshold may miss it by this much.
const COVERAGE_SLACK: f64 = 1e-6;

/// A positional trend over `t = i / (v - 1)` in `[0, 1]`; weights are its reciprocal, scaled to 1
/// at `t = 0`.
#[derive(Clone, Debug, PartialEq)]
pub enum Trend {
    /// `exp(rate t)`
    Exp {
        /// Rate; positive if late tokens receive more.
        rate: f64,
    },
    /// `1 + c1 t + c2 t^2 + c3 t^3`
    Cubic {
        /// `c1, c2, c3`
        coefficients: [f64; 3],
    },
    /// Mean attention at equally spaced `t` from 0 to 1, interpolated linearly.
    Table {
        /// At least two positive values.
        values: Vec<f64>,
    },
}

impl Trend {
    /// Coefficients of the cubic that the release's FastV vector is the reciprocal of.
    pub const RELEASED_CUBIC: [f64; 3] = [1.733_738_62, -4.826_433_45, 4.884_125_65];

    /// Weight at `t` in `[0, 1]`: `f(0) / f(t)`.
    pub fn weight(&self, t: f64) -> f64 {
        match self {
            Trend::Exp { rate } => (-rate * t).exp(),
            Trend::Cubic { coefficients: [c1, c2, c3] } => {
                1.0 / (1.0 + c1 * t + c2 * t * t + c3 * t.powi(3))
            }
            Trend::Table { values } => {
                let at = t.clamp(0.0, 1.0) * (values.len() - 1) as f64;
                let low = (at as usize).min(values.len() - 2);
                let part = at - low as f64;
                values[0] / (values[low] * (1.0 - part) + values[low + 1] * part)
            }
        }
    }

    /// Reads `{ kind = "exp", rate = r }`, `{ kind = "cubic", coefficients = [..] }`,
    /// `{ kind = "table", values = [..] }` or `{ file = ".." }`, a TOML file with a table
    /// `[trend]` of one of these forms (what `secateur calibrate` writes).
    ///
    /// # Errors
    /// Unknown keys, values out of range, a file that cannot be read.
    pub fn parse(params: &Params<'_>) -> Result<Self, ChainError> {
        if let Some(file) = params.text("file")? {
            let trend = Self::read(params, Path::new(file))?;
            params.finish()?;
            return Ok(trend);
        }
        let trend = Self::parse_inline(params)?;
        params.finish()?;
        Ok(trend)
    }

    fn parse_inline(params: &Params<'_>) -> Result<Self, ChainError> {
        match params.text("kind")?.unwrap_or("exp") {
            "exp" => Ok(Trend::Exp { rate: params.number("rate")?.unwrap_or(DEFAULT_RATE) }),
            "cubic" => {
                let given = params.numbers("coefficients")?;
                let coefficients = match given.as_deref() {
                    None => Self::RELEASED_CUBIC,
                    Some(&[a, b, c]) => [a, b, c],
                    Some(_) => return Err(params.error("coefficients", "three numbers")),
                };
                let trend = Trend::Cubic { coefficients };
                let positive = (0..=1000).all(|i| trend.weight(f64::from(i) / 1000.0) > 0.0);
                if !positive {
                    let expected = "a cubic that is positive between 0 and 1";
                    return Err(params.error("coefficients", expected));
                }
                Ok(trend)
            }
            "table" => {
                let values = params.numbers("values")?.unwrap_or_default();
                if values.len() < 2 || values.iter().any(|&x| x <= 0.0) {
                    return Err(params.error("values", "at least two positive numbers"));
                }
                Ok(Trend::Table { values })
            }
            _ => Err(params.error("kind", "one of exp, cubic, table")),
        }
    }

    fn read(params: &Params<'_>, path: &Path) -> Result<Self, ChainError> {
        let fail = |reason: String| params.error("file", &format!("a trend file ({reason})"));
        let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
        let table: Table = text.parse().map_err(|e: toml::de::Error| fail(e.to_string()))?;
        match table.get("trend") {
            Some(Value::Table(trend)) => Self::parse_inline(&Params::new(params.pruner(), trend)),
            _ => Err(fail("it has no table `[trend]`".into())),
        }
    }
}

/// Suppression of padding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Padding {
    /// Largest share of a token that may be padding.
    pub threshold: f64,
    /// Whether the budget is lowered to the number of tokens that are picture.
    pub clamp_keep: bool,
}

/// The two corrections of attention scores.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Debias {
    /// Positional trend.
    pub trend: Option<Trend>,
    /// Padding.
    pub padding: Option<Padding>,
}

impl Debias {
    /// Reads the option `debias` of a pruner; absent: no correction.
    ///
    /// # Errors
    /// Unknown keys, values out of range.
    pub fn option(params: &Params<'_>) -> Result<Option<Self>, ChainError> {
        match params.table("debias")? {
            None => Ok(None),
            Some(inner) => {
                let debias = Self::parse(&inner)?;
                inner.finish()?;
                Ok(Some(debias))
            }
        }
    }

    /// Reads `trend` and `padding`.
    fn parse(params: &Params<'_>) -> Result<Self, ChainError> {
        let trend = params.table("trend")?.map(|t| Trend::parse(&t)).transpose()?;
        let padding = match params.table("padding")? {
            None => None,
            Some(inner) => {
                let threshold = inner.number("threshold")?.unwrap_or(DEFAULT_THRESHOLD);
                if !(0.0..=1.0).contains(&threshold) {
                    return Err(inner.error("threshold", "a share in [0, 1]"));
                }
                let clamp_keep = inner.flag("clamp_keep")?.unwrap_or(true);
                inner.finish()?;
                Some(Padding { threshold, clamp_keep })
            }
        };
        Ok(Self { trend, padding })
    }

    /// Whether budgets are lowered to the number of tokens that are picture.
    pub fn clamps(&self) -> bool {
        self.padding.is_some_and(|p| p.clamp_keep)
    }

    /// Weight of every token, `[tokens]`: 1 without a trend.
    pub fn weights(&self, tokens: &TokenMap) -> Vec<f32> {
        let places = match &self.trend {
            None => return vec![1.0; tokens.len()],
            Some(_) => places(tokens),
        };
        let weight = |t: f64| self.trend.as_ref().map_or(1.0, |trend| trend.weight(t)) as f32;
        places.into_iter().map(|place| place.map_or(1.0, weight)).collect()
    }

    /// Whether each token is picture, `[tokens]`; `None` if padding is not looked at.
    pub fn picture(&self, tokens: &TokenMap) -> Option<Vec<bool>> {
        let threshold = self.padding?.threshold + COVERAGE_SLACK;
        let is_picture = |coverage: f32| 1.0 - f64::from(coverage) <= threshold;
        Some(tokens.tokens.iter().map(|t| is_picture(t.coverage)).collect())
    }

    /// Corrects `scores`, `[tokens]`, and returns [`Debias::picture`].
    pub fn apply(&self, tokens: &TokenMap, scores: &mut [f32]) -> Option<Vec<bool>> {
        let picture = self.picture(tokens);
        if let Some(picture) = &picture {
            for (score, &stays) in scores.iter_mut().zip(picture) {
                *score *= f32::from(u8::from(stays));
            }
        }
        if self.trend.is_some() {
            for (score, weight) in scores.iter_mut().zip(self.weights(tokens)) {
                *score *= weight;
            }
        }
        picture
    }
}

/// `i / (v - 1)` of every token within its picture; `None` without a cell. A newline stands at the
/// last cell of its row.
fn places(tokens: &TokenMap) -> Vec<Option<f64>> {
    let cells = |g: usize| tokens.grids[g].rows as usize * tokens.grids[g].cols as usize;
    let mut before = vec![0usize; tokens.grids.len()];
    let mut whole = vec![0usize; tokens.grids.len()];
    for g in 0..tokens.grids.len() {
        let same = |other: &usize| tokens.grids[*other].picture == tokens.grids[g].picture;
        before[g] = (0..g).filter(same).map(cells).sum();
        whole[g] = (0..tokens.grids.len()).filter(same).map(cells).sum();
    }
    let place = |t: &secateur_core::tokens::VisualToken| {
        if !matches!(t.kind, TokenKind::Patch | TokenKind::Structural) {
            return None;
        }
        let (g, grid) = (t.grid as usize, &tokens.grids[t.grid as usize]);
        let col = t.col.min(grid.cols.saturating_sub(1)) as usize;
        let row = t.row.min(grid.rows.saturating_sub(1)) as usize;
        let index = before[g] + row * grid.cols as usize + col;
        Some(index as f64 / (whole[g].max(2) - 1) as f64)
    };
    tokens.tokens.iter().map(place).collect()
}

/// `debiased: inner = { type = "fastv", .. }, trend = .., padding = ..`. Without `trend` and
/// `padding`: both, with their defaults.
fn debiased(params: &Params<'_>) -> Result<Box<dyn Pruner>, ChainError> {
    let expected = "a table with the `type` and the parameters of a pruner that ranks by attention";
    // Known whatever else is wrong, so that an unknown key is named first.
    let options = ["trend", "padding"].map(|key| (key, params.get(key)));
    let Some(Value::Table(inner)) = params.get("inner") else {
        params.finish()?;
        return Err(params.error("inner", expected));
    };
    let Some(Value::String(name)) = inner.get("type") else {
        return Err(params.error("inner", expected));
    };
    let hosts = || registry::PRUNERS.iter().filter(|e| e.debias);
    let Some(host) = hosts().find(|e| e.name == name) else {
        let names: Vec<&str> = hosts().map(|e| e.name).collect();
        return Err(params.error("inner", &format!("one of {} as its type", names.join(", "))));
    };
    // Checked here, so that errors speak of this pruner; read again by the host.
    Debias::parse(params)?;
    let given = options.into_iter().filter_map(|(key, value)| Some((key, value?.clone())));
    let mut options: Table = given.map(|(key, value)| (key.to_owned(), value)).collect();
    if options.is_empty() {
        options.insert("trend".into(), Value::Table(Table::new()));
        options.insert("padding".into(), Value::Table(Table::new()));
    }
    let mut table = inner.clone();
    table.remove("type");
    if table.insert("debias".into(), Value::Table(options)).is_some() {
        return Err(params.error("inner", "an inner pruner without `debias` of its own"));
    }
    let inner = Params::new(host.name, &table);
    let pruner = (host.build)(&inner)?;
    inner.finish()?;
    Ok(pruner)
}
