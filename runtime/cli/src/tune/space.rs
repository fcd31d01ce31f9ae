//! What is searched for each pruner: a table, and how a point becomes a chain.
//!
//! What has no row is searched over a chain that names its own ranges:
//! `centre:blur={blur:0.5..4}:keep={keep}`, whole numbers where neither end has a point.
//!
//! A row holds a chain with a place `{name}` for every parameter. `{keep}` is the number that makes
//! the chain meet the budget (the rule of [`crate::eval`]); `{keep_e}` and `{keep2}` are VFlowOpt's
//! first and last budget: the first is a parameter, in multiples of the budget, and the last is
//! solved from it.
//!
//! Ranges are the released search's where there is one (VFlowOpt), else what the paper tried.

use anyhow::{Context, Result, bail};
use secateur::{ChainSpec, ModelInfo, Vlm};

use crate::eval::{at_budget, template};
use crate::outcome::usage;

/// Smallest share that a last cut may leave: below it the search would drop everything.
const LEAST_SHARE: f64 = 0.02;

/// Upper end of a range.
#[derive(Clone, Copy, Debug)]
enum End {
    At(f64),
    /// The last layer before which the decoder can be cut.
    DecoderLayer,
    /// Layers of the vision tower that run.
    EncoderLayers,
}

/// How a value between 0 and 1 is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Real,
    Whole,
}

#[derive(Clone, Copy, Debug)]
struct Parameter {
    name: &'static str,
    low: f64,
    high: End,
    kind: Kind,
    /// Where the search begins: the published value.
    start: f64,
}

const fn real(name: &'static str, low: f64, high: f64, start: f64) -> Parameter {
    Parameter { name, low, high: End::At(high), kind: Kind::Real, start }
}

const fn whole(name: &'static str, low: f64, high: End, start: f64) -> Parameter {
    Parameter { name, low, high, kind: Kind::Whole, start }
}

#[derive(Clone, Copy, Debug)]
struct Row {
    pruner: &'static str,
    chain: &'static str,
    parameters: &'static [Parameter],
}

const RATE: Parameter = real("rate", -3.0, 3.0, 0.0);

const ROWS: &[Row] = &[
    // The released search, section "Search" of the paper: keep E in [R, 1.5 R], keep D1 in
    // [0.2 / 0.375, 1], t in [0, 50], cell in [3, 24] of a 27-wide grid, alpha in [-1, 1].
    Row {
        pruner: "vflowopt",
        chain: "vflowopt:exact=true:anchor_t={anchor_t}:entropy_weight={entropy_weight}:\
                cell={cell}:keep={keep_e}:stages=[{layer={third};keep={keep1}};\
                {layer={two_thirds};keep={keep2}}]",
        parameters: &[
            real("keep_e", 1.0, 1.5, 1.166),
            real("keep1", 0.533_333, 1.0, 1.0),
            real("anchor_t", 0.0, 50.0, 39.265),
            real("cell", 3.0, 24.0, 17.387),
            real("entropy_weight", -1.0, 1.0, 0.0),
        ],
    },
    Row {
        pruner: "vtc_cls",
        chain: "vtc_cls:ensemble_layers={ensemble_layers}:\
                debias={trend={kind=exp;rate={rate}}}:keep={keep}",
        parameters: &[whole("ensemble_layers", 1.0, End::EncoderLayers, 3.0), RATE],
    },
    Row {
        pruner: "trans_prune",
        chain: "trans_prune:alpha={alpha}:debias={trend={kind=exp;rate={rate}}}:keep={keep}",
        parameters: &[real("alpha", 0.0, 1.0, 0.5), RATE],
    },
    Row {
        pruner: "fastv",
        chain: "fastv:layer={layer}:debias={trend={kind=exp;rate={rate}}}:keep={keep}",
        parameters: &[whole("layer", 1.0, End::DecoderLayer, 2.0), RATE],
    },
    Row {
        pruner: "debiased",
        chain: "debiased:inner={type=fastv;layer={layer};keep={keep}}:trend={kind=exp;rate={rate}}",
        parameters: &[whole("layer", 1.0, End::DecoderLayer, 2.0), real("rate", -3.0, 3.0, 1.027)],
    },
    Row {
        pruner: "pyramid_drop",
        chain: "pyramid_drop:debias={trend={kind=exp;rate={rate}}}:keep={keep}",
        parameters: &[RATE],
    },
    Row {
        pruner: "vision_zip",
        chain: "vision_zip:dominant={dominant}:contextual={contextual}:\
                debias={trend={kind=exp;rate={rate}}}",
        parameters: &[real("contextual", 0.0, 0.6, 0.156), RATE],
    },
    Row {
        pruner: "cd_pruner",
        chain: "cd_pruner:relevance_weight={relevance_weight}:keep={keep}",
        parameters: &[real("relevance_weight", 0.0, 0.99, 0.5)],
    },
];

/// One parameter with its range for a model.
#[derive(Clone, Debug)]
struct Axis {
    name: String,
    kind: Kind,
    low: f64,
    high: f64,
    start: f64,
}

/// The search space of a pruner for a model and a budget.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    pruner: String,
    /// With a place `{name}` for every axis.
    chain: String,
    axes: Vec<Axis>,
    budget: f64,
    info: ModelInfo,
}

/// The pruner, the chain with plain places, and the ranges of a chain that names them.
///
/// # Errors
/// A place that is no range, or none at all.
fn ranges(text: &str) -> Result<(String, String, Vec<Axis>)> {
    let (mut chain, mut axes) = (String::new(), Vec::<Axis>::new());
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        let (before, inside) = rest.split_at(open + 1);
        chain += before;
        let end =
            inside.find(['{', '}']).with_context(|| format!("`{text}`: `{{` is not closed"))?;
        let place = &inside[..end];
        // Values of chains are written with braces too: tables hold others, and no colons.
        let (true, Some((name, range))) = (inside[end..].starts_with('}'), place.split_once(':'))
        else {
            rest = inside;
            continue;
        };
        rest = &inside[end..];
        let number = |end: &str| end.parse().ok().filter(|x: &f64| x.is_finite());
        let ends = range.split_once("..");
        let ends = ends.and_then(|(low, high)| Some((number(low)?, number(high)?)));
        let Some((low, high)) = ends.filter(|(low, high)| low < high) else {
            bail!("`{{{place}}}` is no range; one is written {{name:LOW..HIGH}}");
        };
        if name.is_empty() || name == "keep" || axes.iter().any(|axis| axis.name == name) {
            bail!("`{{{place}}}`: a range needs a name of its own");
        }
        let kind = if range.replacen("..", "", 1).contains('.') { Kind::Real } else { Kind::Whole };
        axes.push(Axis { name: name.to_owned(), kind, low, high, start: (low + high) / 2.0 });
        chain += name;
    }
    if axes.is_empty() || !text.contains("{keep}") {
        bail!("`{text}`: a chain to search has a range {{name:LOW..HIGH}} and the place {{keep}}");
    }
    let pruner = text.split(':').next().unwrap_or_default().to_owned();
    Ok((pruner, chain + rest, axes))
}

impl Space {
    /// The space of `pruner`, a name or a chain with ranges, at `budget` visual tokens, mean over
    /// decoder layers.
    ///
    /// # Errors
    /// A pruner without a row, a chain without ranges: a usage error that says what can be searched.
    pub(crate) fn new(vlm: &Vlm, pruner: &str, budget: f64) -> Result<Self> {
        if pruner.contains('{') {
            let (pruner, chain, axes) = ranges(pruner).map_err(|e| usage(format!("{e:#}")))?;
            return Ok(Self { pruner, chain, axes, budget, info: vlm.info().clone() });
        }
        let Some(row) = ROWS.iter().find(|r| r.pruner == pruner) else {
            let names: Vec<&str> = ROWS.iter().map(|r| r.pruner).collect();
            let why = if pruner == "vla_pruner" {
                "it cuts only after earlier requests of a stream"
            } else {
                "there is no parameter to search"
            };
            return Err(usage(format!(
                "`{pruner}`: {why} that is known of; searched are {}, and chains with ranges of \
                 their own: '{pruner}:NAME={{NAME:0.5..4}}:keep={{keep}}'",
                names.join(", ")
            )));
        };
        let info = vlm.info().clone();
        let high = |end: End| match end {
            End::At(x) => x,
            End::DecoderLayer => info.decoder.layers.saturating_sub(1).max(1) as f64,
            End::EncoderLayers => info.encoder.layers.max(1) as f64,
        };
        let axis = |p: &Parameter| {
            let (low, high) = (p.low, high(p.high).max(p.low));
            Axis { name: p.name.to_owned(), kind: p.kind, low, high, start: p.start }
        };
        let axes = row.parameters.iter().map(axis).collect();
        Ok(Self { pruner: pruner.to_owned(), chain: row.chain.to_owned(), axes, budget, info })
    }

    /// The published values, in the unit cube.
    pub(crate) fn start(&self) -> Vec<f64> {
        let place = |axis: &Axis| {
            let span = axis.high - axis.low;
            if span > 0.0 { ((axis.start - axis.low) / span).clamp(0.0, 1.0) } else { 0.0 }
        };
        self.axes.iter().map(place).collect()
    }

    /// Names and values of the parameters at a point of the unit cube.
    pub(crate) fn values(&self, point: &[f64]) -> Vec<(&str, f64)> {
        let value = |axis: &Axis, u: f64| {
            let x = axis.low + u * (axis.high - axis.low);
            if axis.kind == Kind::Whole { x.round() } else { x }
        };
        self.axes.iter().zip(point).map(|(axis, &u)| (axis.name.as_str(), value(axis, u))).collect()
    }

    /// The chain at a point.
    ///
    /// # Errors
    /// A chain that does not fit the model.
    pub(crate) fn chain(&self, vlm: &Vlm, point: &[f64]) -> Result<ChainSpec> {
        let mut text = self.chain.clone();
        for (name, value) in self.solved(&self.values(point)) {
            let place = format!("{{{name}}}");
            let shown = if value.fract() == 0.0 && !SHARES.contains(&name) {
                format!("{value:.0}")
            } else {
                format!("{value:?}")
            };
            text = text.replace(&place, &shown);
        }
        Ok(at_budget(vlm, &text, self.budget.round_ties_even() as usize)?.0)
    }

    /// The untuned setting at the same budget: what `eval` compares.
    ///
    /// # Errors
    /// A chain that does not fit the model.
    pub(crate) fn untuned(&self, vlm: &Vlm) -> Result<ChainSpec> {
        let text = template(&self.pruner);
        let keep = self.budget.round_ties_even() as usize;
        if keep == 0 {
            bail!("a budget of no token");
        }
        Ok(at_budget(vlm, &text, keep)?.0)
    }

    /// Values with those that follow from them.
    fn solved<'a>(&self, values: &[(&'a str, f64)]) -> Vec<(&'a str, f64)> {
        let of = |name: &str| values.iter().find(|v| v.0 == name).map_or(0.0, |v| v.1);
        let mut all = values.to_vec();
        match self.pruner.as_str() {
            "vflowopt" => {
                let layers = self.info.decoder.layers;
                let [k1, k2] = thirds(layers);
                let share = self.budget / self.info.visual_tokens.max(1) as f64;
                let [keep_e, keep1, keep2] =
                    last_share(share, of("keep_e"), of("keep1"), [k1, k2, layers]);
                all.retain(|v| v.0 != "keep_e" && v.0 != "keep1");
                all.extend([("keep_e", keep_e), ("keep1", keep1), ("keep2", keep2)]);
                all.extend([("third", k1 as f64), ("two_thirds", k2 as f64)]);
                // Patches of a 27-wide grid: the same share of this model's.
                let side = (self.info.visual_tokens as f64).sqrt();
                let cell = (of("cell") * side / 27.0).max(1.0);
                all.retain(|v| v.0 != "cell");
                all.push(("cell", cell));
            }
            "vision_zip" => {
                let keep = self.budget.round_ties_even();
                let contextual = (of("contextual") * keep).round_ties_even().min(keep - 1.0);
                all.retain(|v| v.0 != "contextual");
                all.extend([("contextual", contextual), ("dominant", keep - contextual)]);
            }
            _ => {}
        }
        all
    }
}

/// Written with a point even where they are whole, since `keep = 1` is one token.
const SHARES: [&str; 6] = ["keep_e", "keep1", "keep2", "rate", "cell", "anchor_t"];

/// Layers at a third and two thirds of the depth, different and inside the decoder.
fn thirds(layers: usize) -> [usize; 2] {
    let at = |part: f64| (layers as f64 * part / 3.0).round() as usize;
    let k1 = at(1.0).max(1);
    [k1, at(2.0).max(k1 + 1).min(layers.saturating_sub(1)).max(k1 + 1)]
}

/// Shares kept at the input, before `k1` and before `k2` whose mean over layers is `share`:
/// `keep_e` in multiples of `share`; the last follows from
/// `R = (e k1 + e keep1 (k2 - k1) + e keep1 keep2 (L - k2)) / L`. Where that leaves too little for
/// the last layers, `keep1` gives way, then `keep_e`.
fn last_share(share: f64, multiple: f64, keep1: f64, [k1, k2, layers]: [usize; 3]) -> [f64; 3] {
    let (a, b, c) = (k1 as f64, (k2 - k1) as f64, layers.saturating_sub(k2) as f64);
    let total = share * layers as f64;
    let floor = b + LEAST_SHARE * c;
    let e = (share * multiple).min(total / (a + LEAST_SHARE * floor)).min(1.0);
    let keep1 = keep1.min((total / e - a) / floor).clamp(LEAST_SHARE, 1.0);
    let keep2 = if c > 0.0 { (total / e - a - keep1 * b) / (keep1 * c) } else { 1.0 };
    [e, keep1, keep2.clamp(LEAST_SHARE, 1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::mean_tokens;

    #[test]
    fn the_last_share_meets_the_budget() {
        for layers in [[9, 18, 28], [1, 3, 4], [11, 21, 32]] {
            for multiple in [1.0, 1.1, 1.25, 1.5] {
                for keep1 in [0.5333, 0.8, 1.0] {
                    let [e, one, two] = last_share(0.1, multiple, keep1, layers);
                    let n = 1e6;
                    let cuts = [
                        (layers[0], (n * e * one) as usize),
                        (layers[1], (n * e * one * two) as usize),
                    ];
                    let mean = mean_tokens((n * e) as usize, &cuts, layers[2]) / n;
                    // Everything is used unless the last layers already keep all.
                    assert!(mean <= 0.1 + 1e-5, "{layers:?} {multiple} {keep1}: {mean}");
                    assert!(
                        mean > 0.1 - 1e-5 || two == 1.0,
                        "{layers:?} {multiple} {keep1}: {mean}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_released_preset_solves_to_its_own_last_share() {
        let [_, _, keep2] = last_share(0.25, 0.265_102_6 / 0.25, 0.983_343_3, [9, 18, 28]);
        assert!((keep2 - 0.877_3).abs() < 0.01, "{keep2}");
        let [_, _, keep2] = last_share(0.1, 1.166_153, 1.0, [9, 18, 28]);
        assert!((keep2 - 0.601_1).abs() < 0.001, "{keep2}");
    }

    #[test]
    fn every_row_gives_chains_that_fit_the_model() {
        let vlm = Vlm::builder(secateur::ModelSource::Embedded).open().unwrap();
        for row in ROWS {
            let space = Space::new(&vlm, row.pruner, 26.0).unwrap();
            let d = row.parameters.len();
            for point in [space.start(), vec![0.0; d], vec![1.0; d], vec![0.37; d]] {
                let chain = space.chain(&vlm, &point).unwrap();
                assert!(!chain.to_string().contains('{') || chain.to_string().contains('='));
                vlm.resolve(&chain).unwrap();
            }
            space.untuned(&vlm).unwrap();
        }
        let error = Space::new(&vlm, "grid", 26.0).unwrap_err().to_string();
        assert!(error.contains("no parameter") && error.contains("vflowopt"), "{error}");
    }

    #[test]
    fn a_chain_may_name_its_own_ranges() {
        let vlm = Vlm::builder(secateur::ModelSource::Embedded).open().unwrap();
        let chain =
            "fastv:layer={layer:1..3}:debias={trend={kind=exp;rate={r:-0.5..2}}}:keep={keep}";
        let space = Space::new(&vlm, chain, 26.0).unwrap();
        assert_eq!(space.start(), [0.5, 0.5]);
        assert_eq!(space.values(&[0.0, 0.0]), [("layer", 1.0), ("r", -0.5)]);
        assert_eq!(space.values(&[0.9, 1.0]), [("layer", 3.0), ("r", 2.0)]);
        vlm.resolve(space.chain(&vlm, &[0.4, 0.3]).unwrap()).unwrap();
        space.untuned(&vlm).unwrap();
        for wrong in [
            "fastv:layer={layer:3..1}:keep={keep}",
            "fastv:layer={layer:a..b}:keep={keep}",
            "fastv:layer={layer:1..3}:keep=9",
            "fastv:keep={keep}",
            "fastv:layer={layer:1..3",
            "fastv:layer={keep:1..3}:keep={keep}",
            "fastv:layer={layer:1..inf}:keep={keep}",
        ] {
            assert!(Space::new(&vlm, wrong, 26.0).is_err(), "{wrong}");
        }
    }
}
