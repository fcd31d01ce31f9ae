//! What people may write behind a pruner's name: each parameter with its default and meaning, for
//! `secateur pruners NAME` and for documentation.
//!
//! Invariants (tests below)
//! - A pruner lists exactly the keys that its parser asks for.
//! - A default without brackets can be written out, and changes nothing.

/// One parameter of a pruner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its key.
    pub name: &'static str,
    /// What it is when absent: a value as it is written in a chain, or a remark that holds round
    /// brackets.
    pub default: &'static str,
    /// What it does, with unit or range.
    pub meaning: &'static str,
    /// Other keys for the same thing.
    pub aliases: &'static [&'static str],
}

pub(crate) const fn parameter(
    name: &'static str,
    default: &'static str,
    meaning: &'static str,
) -> Parameter {
    Parameter { name, default, meaning, aliases: &[] }
}

const fn budget(default: &'static str, meaning: &'static str) -> Parameter {
    let aliases = &["ratio", "keep_ratio", "retain", "drop_ratio"];
    Parameter { name: "keep", default, meaning, aliases }
}

/// The budget of most pruners.
pub(crate) const KEEP: Parameter = budget(
    "(required)",
    "tokens to keep: a number, a share in (0, 1], or mass:M of the score where something is scored",
);
/// The budget of pruners that cut several times.
pub(crate) const SCHEDULED_KEEP: Parameter =
    budget("(see ratios)", "what the last cut leaves: a number or a share of what entered");
/// `vla_pruner`'s.
pub(crate) const QUARTER: Parameter = budget("0.25", "tokens to keep of each view");
/// `vflowopt`'s.
pub(crate) const VFLOWOPT_KEEP: Parameter = budget(
    "(0.1166, the published 10 % setting)",
    "tokens that recycling leaves: a number or a share",
);
/// `vision_zip`'s.
pub(crate) const VISION_ZIP_KEEP: Parameter =
    budget("(required, or dominant)", "tokens of a crop, split 54 to 10 as published");
/// `frame_diff`'s.
pub(crate) const FRAME_KEEP: Parameter =
    budget("(see threshold)", "the patches of a frame that changed most: a number or a share");

/// Positions of pruners that count anew.
pub(crate) const RENUMBERED: &[Parameter] = &[parameter(
    "positions",
    "renumber (keep on models with three position axes)",
    "position ids of what stays: keep them, or renumber them",
)];
/// Positions of pruners that keep them.
pub(crate) const KEPT: &[Parameter] = &[parameter(
    "positions",
    "keep (as published)",
    "position ids of what stays: keep them, or renumber them",
)];
const TREND: &str = "{ kind = exp; rate = R }, { kind = cubic; coefficients = [A;B;C] }, \
                     { kind = table; values = [..] }, or { file = F } of `secateur calibrate`";
/// Of pruners that rank by attention.
pub(crate) const DEBIASED: &[Parameter] = &[parameter(
    "debias",
    "(none)",
    "takes trend and padding out of the scores: { trend = { .. }; padding = { .. } }, as `debiased`",
)];
/// The two corrections.
pub(crate) const DEBIAS_PARTS: &[Parameter] = &[
    parameter("trend", "(on when both are absent)", TREND),
    parameter(
        "padding",
        "(on when both are absent)",
        "{ threshold = 0.5; clamp_keep = true }: how much of a token may be padding",
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use secateur_core::chain::{ChainSpec, Params};
    use toml::Value;

    use crate::registry::{Entry, PRUNERS};

    fn build(entry: &Entry, chain: &str) -> Result<String, String> {
        let spec = ChainSpec::parse(chain).map_err(|e| e.to_string())?;
        let params = Params::new(entry.name, &spec.stages[0].params);
        let pruner = (entry.build)(&params).map_err(|e| e.to_string())?;
        params.finish().map_err(|e| e.to_string())?;
        Ok(format!("{pruner:?}"))
    }

    /// The keys that a pruner's parser asks for.
    fn asked(entry: &Entry) -> BTreeSet<String> {
        let mut spec = ChainSpec::parse(entry.example).unwrap();
        spec.stages[0].params.insert("no_such_key".into(), Value::Boolean(true));
        let params = Params::new(entry.name, &spec.stages[0].params);
        let error = (entry.build)(&params).map(|_| ()).and_then(|()| params.finish()).unwrap_err();
        let text = error.to_string();
        let known = text.split("one of the parameters ").nth(1).unwrap_or_else(|| panic!("{text}"));
        let known = known.split([';', '`']).next().unwrap_or_default();
        let is_key = |c: char| c.is_ascii_lowercase() || c == '_';
        let words = known.split(", ").map(|w| w.trim_end_matches(" found unknown"));
        words.map(|w| w.chars().take_while(|c| is_key(*c)).collect()).collect()
    }

    #[test]
    fn a_pruner_lists_the_keys_that_its_parser_asks_for() {
        for entry in PRUNERS {
            let listed: BTreeSet<String> = entry
                .parameters()
                .flat_map(|p| std::iter::once(&p.name).chain(p.aliases))
                .map(|name| (*name).to_owned())
                .collect();
            assert_eq!(asked(entry), listed, "{}", entry.name);
        }
    }

    #[test]
    fn a_default_that_is_written_out_changes_nothing() {
        let mut written = 0;
        for entry in PRUNERS {
            let example = ChainSpec::parse(entry.example).unwrap().stages.remove(0);
            for parameter in entry.parameters().filter(|p| !p.default.contains('(')) {
                let of = |value: Option<&str>| {
                    let mut params = example.params.clone();
                    params.remove(parameter.name);
                    if let Some(value) = value {
                        let text = format!("x:{}={value}", parameter.name);
                        params.extend(ChainSpec::parse(&text).unwrap().stages.remove(0).params);
                    }
                    let stage = secateur_core::chain::StageSpec { pruner: "x".into(), params };
                    let spec = ChainSpec { stages: vec![stage], floor: None };
                    build(entry, &spec.to_string()).unwrap()
                };
                assert_eq!(
                    of(None),
                    of(Some(parameter.default)),
                    "{} {}",
                    entry.name,
                    parameter.name
                );
                written += 1;
            }
        }
        assert!(written > 25, "{written}");
    }
}
