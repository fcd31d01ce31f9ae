//! Which chains are compared, and what "at N tokens" means for each.
//!
//! The rule: a chain is at `N` tokens when the mean over decoder layers of the visual tokens that
//! a layer sees is `N`. For cuts before the decoder that is the number kept. For cuts inside it
//! the pruner's `keep` is lowered until the mean is met: the largest one whose mean is not above
//! `N`, so that no pruner is given more tokens than another. Where even one kept token leaves the
//! mean above `N` (the layers before the first cut see everything), a single cut that leaves `N`
//! is run instead, marked [`Rule::Last`], and shown at its true mean.
//!
//! How each pruner is written at a budget is a row of [`TEMPLATES`]; a pruner without a row takes
//! `keep` alone.

use anyhow::{Context, Result, anyhow};
use secateur::prune::Site;
use secateur::{ChainSpec, ModelInfo, ResolvedChain, Vlm};

use crate::outcome::usage;

/// A pruner at a budget.
#[derive(Clone, Copy, Debug)]
struct Template {
    /// Name in the registry.
    pruner: &'static str,
    /// Chain with `{keep}`, and `{layer:K}` for layer `K` of a 32-layer decoder.
    chain: &'static str,
    /// The same with a single cut, for budgets that cannot be a mean; absent if it has one cut.
    one_cut: Option<&'static str>,
    /// Earlier requests of the same stream that it needs before it cuts.
    warm_up: usize,
}

/// How published settings carry over to a budget. What is not said here is the pruner's default.
const TEMPLATES: &[Template] = &[
    Template {
        pruner: "fastv",
        chain: "fastv:layer={layer:2}:keep={keep}",
        one_cut: None,
        warm_up: 0,
    },
    Template {
        pruner: "pyramid_drop",
        chain: "pyramid_drop:keep={keep}",
        one_cut: Some("pyramid_drop:layers=[{layer:8}]:keep={keep}"),
        warm_up: 0,
    },
    Template {
        pruner: "trans_prune",
        chain: "trans_prune:keep={keep}",
        one_cut: Some("trans_prune:layers=[{layer:7}]:keep={keep}"),
        warm_up: 0,
    },
    // The host that the release's cubic was fitted for.
    Template {
        pruner: "debiased",
        chain: "debiased:inner={type=fastv;layer={layer:2};keep={keep}}",
        one_cut: None,
        warm_up: 0,
    },
    // One step of history: what the model looked at while it described the same picture.
    Template {
        pruner: "vla_pruner",
        chain: "vla_pruner:layer={layer:3}:window=1:keep={keep}",
        one_cut: None,
        warm_up: 1,
    },
    // The 10 % preset's stages at a third and two thirds of the depth; `exact`, because the
    // released procedure overshoots its budget by a few tokens.
    Template {
        pruner: "vflowopt",
        chain: "vflowopt:exact=true:keep={keep}:stages=[{layer={layer:21.33};keep=0.6011}]",
        one_cut: None,
        warm_up: 0,
    },
];

/// Pruners that have no meaning for single pictures.
const STREAMS_ONLY: &[(&str, &str)] =
    &[("frame_diff", "it compares frames of a stream; the first frame stays whole")];

/// Pruners that put other rows in the place of patches, even where their number stays.
const ADDS_ROWS: [&str; 1] = ["vision_zip"];

/// Shown with every comparison.
pub(crate) const BASELINES: [&str; 3] = ["random", "grid", "pool"];

/// How a budget was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The mean over decoder layers is the budget.
    Mean,
    /// The budget is what a single cut leaves; the mean is above it.
    Last,
    /// The chain was given as it is.
    Given,
}

/// One chain that answers all questions.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Run {
    /// Name in tables; runs that differ in their seed alone share it.
    pub(crate) name: String,
    /// Tokens asked for; `None` for the unpruned model and for chains given as they are.
    pub(crate) keep: Option<usize>,
    /// How the budget was met.
    pub(crate) rule: Rule,
    /// The chain.
    pub(crate) chain: ChainSpec,
    /// Requests before each picture's questions that are not counted.
    pub(crate) warm_up: usize,
    /// Whether every cut is planned to keep everything.
    pub(crate) keeps_all: bool,
}

impl Run {
    /// Name in the log: the chain as text. One that keeps everything is the unpruned model, bit
    /// for bit (a promise of the runtime that has its own tests), and is not asked again.
    pub(crate) fn key(&self) -> String {
        if self.keeps_all { ChainSpec::default().to_string() } else { self.chain.to_string() }
    }
}

/// What to compare.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// The unpruned model first.
    pub(crate) runs: Vec<Run>,
    /// What a reader should know: pruners left out, budgets that cannot be met.
    pub(crate) notes: Vec<String>,
}

impl Plan {
    /// Runs for `pruners` (all known ones if empty, unless chains are given) and `chains` (with or
    /// without `{keep}`) at budgets `keep`, beside the baselines.
    ///
    /// # Errors
    /// Unknown pruners, chains that do not fit the model: usage errors.
    pub(crate) fn new(
        vlm: &Vlm,
        pruners: &[String],
        chains: &[String],
        keep: &[usize],
        seeds: usize,
    ) -> Result<Self> {
        let mut plan = Self::default();
        plan.push(vlm, "none", None, Rule::Given, ChainSpec::default())?;
        let known: Vec<String> = vlm.registry().names().map(str::to_owned).collect();
        let named: Vec<String> =
            if pruners.is_empty() && chains.is_empty() { known.clone() } else { pruners.to_vec() };
        for name in named.iter().filter(|n| !BASELINES.contains(&n.as_str())) {
            if !known.contains(name) {
                return Err(usage(format!(
                    "unknown pruner `{name}`; known are {}",
                    known.join(", ")
                )));
            }
            if let Some((_, why)) = STREAMS_ONLY.iter().find(|s| s.0 == name) {
                plan.notes.push(format!("{name} is left out: {why}"));
                continue;
            }
            if let Err(error) = plan.at_budgets(vlm, name, &template(name), keep) {
                // A model may lack a signal; somebody who named the pruner wants to know at once.
                if !pruners.is_empty() {
                    return Err(error);
                }
                plan.notes.push(format!("{name} is left out: {error:#}"));
            }
        }
        for chain in chains {
            if chain.contains("{keep}") {
                plan.at_budgets(vlm, &chain.replace(":keep={keep}", ""), chain, keep)?;
            } else {
                let spec = secateur::parse_chain(chain).map_err(|e| usage(e.to_string()))?;
                plan.push(vlm, chain, None, Rule::Given, spec)?;
            }
        }
        for &keep in keep {
            for seed in 0..seeds.max(1) {
                let spec = parse(&format!("random:keep={keep}:seed={seed}"))?;
                plan.push(vlm, "random", Some(keep), Rule::Mean, spec)?;
            }
        }
        for name in ["grid", "pool"] {
            plan.at_budgets(vlm, name, &format!("{name}:keep={{keep}}"), keep)?;
        }
        Ok(plan)
    }

    fn push(
        &mut self,
        vlm: &Vlm,
        name: &str,
        keep: Option<usize>,
        rule: Rule,
        chain: ChainSpec,
    ) -> Result<()> {
        let resolved = vlm.resolve(&chain)?;
        let first = chain.stages.first().map_or("", |s| s.pruner.as_str());
        let row = TEMPLATES.iter().find(|t| t.pruner == first);
        let keeps_all = chain.stages.iter().all(|s| !ADDS_ROWS.contains(&s.pruner.as_str()))
            && keeps_all(&resolved, vlm.info());
        let run = Run {
            name: name.to_owned(),
            keep,
            rule,
            warm_up: row.map_or(0, |t| t.warm_up),
            keeps_all,
            chain,
        };
        // A chain that was named twice is run once.
        if self.runs.iter().all(|r| r.chain != run.chain || r.name != run.name) {
            self.runs.push(run);
        }
        Ok(())
    }

    fn at_budgets(&mut self, vlm: &Vlm, name: &str, template: &str, keep: &[usize]) -> Result<()> {
        let mut last = Vec::new();
        for &budget in keep {
            let (spec, rule) = at_budget(vlm, template, budget)?;
            if rule == Rule::Last {
                last.push(budget.to_string());
            }
            self.push(vlm, name, Some(budget), rule, spec)?;
        }
        if !last.is_empty() {
            self.notes.push(format!(
                "{name} cannot have a mean of {} tokens a layer, since the layers before its first \
                 cut see all; there a single cut leaves that many",
                last.join(", ")
            ));
        }
        Ok(())
    }
}

/// How a pruner is written at a budget.
pub(crate) fn template(pruner: &str) -> String {
    match TEMPLATES.iter().find(|t| t.pruner == pruner) {
        Some(row) => row.chain.to_owned(),
        None => format!("{pruner}:keep={{keep}}"),
    }
}

fn parse(text: &str) -> Result<ChainSpec> {
    ChainSpec::parse(text).map_err(|e| usage(e.to_string()))
}

/// `template` with its layers scaled to the decoder's depth, and a budget filled in.
///
/// # Errors
/// A place holder that is not known.
pub(crate) fn fill(template: &str, keep: usize, layers: usize) -> Result<ChainSpec> {
    let mut text = template.replace("{keep}", &keep.to_string());
    while let Some(start) = text.find("{layer:") {
        let end = text[start..].find('}').context("`{layer:K` is not closed")? + start;
        let published: f64 = text[start + 7..end]
            .parse()
            .map_err(|_| anyhow!("`{}` is no layer", &text[start..=end]))?;
        let scaled = (published * layers as f64 / 32.0).round_ties_even() as usize;
        text.replace_range(start..=end, &scaled.clamp(1, layers.max(2) - 1).to_string());
    }
    parse(&text)
}

/// The chain of a template at `budget` tokens by the rule of this module.
///
/// # Errors
/// A chain that does not fit the model.
pub(crate) fn at_budget(vlm: &Vlm, template: &str, budget: usize) -> Result<(ChainSpec, Rule)> {
    let info = vlm.info();
    let layers = info.decoder.layers;
    let all = info.visual_tokens.max(1);
    let mean = |keep: usize| -> Result<Option<f64>> {
        let resolved = vlm.resolve(&fill(template, keep, layers)?)?;
        Ok(planned_mean(&resolved, info))
    };
    let fits =
        |keep: usize| -> Result<bool> { Ok(mean(keep)?.is_none_or(|m| m <= budget as f64 + 1e-9)) };
    // The mean does not depend on `keep`, or nothing is to be cut.
    if budget >= all || fits(all)? {
        return Ok((fill(template, budget, layers)?, Rule::Mean));
    }
    if !fits(1)? {
        let one_cut = TEMPLATES.iter().find(|t| t.chain == template).and_then(|t| t.one_cut);
        return Ok((fill(one_cut.unwrap_or(template), budget, layers)?, Rule::Last));
    }
    let (mut low, mut high) = (1, all);
    while high - low > 1 {
        let middle = usize::midpoint(low, high);
        if fits(middle)? { low = middle } else { high = middle }
    }
    // Rounding may make several budgets one: then the number that was asked for.
    if mean(low)? == mean(budget)? {
        low = budget;
    }
    Ok((fill(template, low, layers)?, Rule::Mean))
}

/// Whether no cut drops anything, as planned.
fn keeps_all(chain: &ResolvedChain, model: &ModelInfo) -> bool {
    let all = model.visual_tokens;
    let keeps = |s: &secateur_core::chain::ResolvedStage| s.pruner.keeps(s.stage, all, all);
    chain.floor.is_none() && chain.stages.iter().all(|s| keeps(s) == Some(all))
}

/// Mean of the visual tokens over decoder layers, as planned; `None` if the picture decides.
fn planned_mean(chain: &ResolvedChain, model: &ModelInfo) -> Option<f64> {
    let mut entered = model.visual_tokens;
    let mut cuts = Vec::new();
    for (stage, (_, kept)) in chain.stages.iter().zip(chain.counts(model.visual_tokens)) {
        match stage.plan.site {
            Site::Decoder(layer) => cuts.push((layer, kept?)),
            Site::Encoder | Site::Input => entered = kept?,
        }
    }
    Some(mean_tokens(entered, &cuts, model.decoder.layers))
}

/// Mean over `layers` decoder layers of the visual tokens that each sees: `entered` until the
/// first cut `(layer, left)`.
pub(crate) fn mean_tokens(entered: usize, cuts: &[(usize, usize)], layers: usize) -> f64 {
    let mut sum = 0;
    let (mut current, mut from) = (entered, 0);
    for &(layer, left) in cuts {
        sum += current * (layer - from);
        (current, from) = (left, layer);
    }
    sum += current * (layers - from);
    sum as f64 / layers.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_counts_every_layer_once() {
        assert_eq!(mean_tokens(64, &[], 32), 64.0);
        assert_eq!(mean_tokens(576, &[(2, 144)], 32), (2.0 * 576.0 + 30.0 * 144.0) / 32.0);
        // TransPrune-High: "mean 236.25 tokens per layer".
        assert_eq!(mean_tokens(576, &[(7, 504), (9, 360), (12, 72)], 32), 236.25);
    }

    #[test]
    fn templates_scale_their_layers() {
        let text = |template: &str, layers| fill(template, 9, layers).unwrap().to_string();
        assert_eq!(text("fastv:layer={layer:2}:keep={keep}", 32), "fastv:keep=9:layer=2");
        assert_eq!(text("fastv:layer={layer:2}:keep={keep}", 4), "fastv:keep=9:layer=1");
        assert_eq!(text("fastv:layer={layer:31.9}:keep={keep}", 28), "fastv:keep=9:layer=27");
        assert!(fill("fastv:layer={layer:two}", 1, 4).is_err());
    }

    #[test]
    fn every_template_is_a_chain() {
        for template in TEMPLATES {
            for text in [Some(template.chain), template.one_cut].into_iter().flatten() {
                let chain = fill(text, 16, 32).unwrap();
                assert_eq!(chain.stages[0].pruner, template.pruner);
            }
        }
    }

    #[test]
    fn budgets_are_met_as_a_mean_where_that_is_possible() {
        let vlm = Vlm::builder(secateur::ModelSource::Embedded).open().unwrap();
        let info = vlm.info();
        let chains = ["{keep}".to_owned()];
        assert!(Plan::new(&vlm, &[], &chains, &[64], 3).is_err());
        let plan = Plan::new(&vlm, &["fastv".into()], &[], &[128, 16], 3).unwrap();
        assert_eq!(plan.runs[0].key(), "none");
        let of = |name: &str, keep| {
            plan.runs.iter().filter(|r| r.name == name && r.keep == Some(keep)).collect::<Vec<_>>()
        };
        assert_eq!(of("random", 16).len(), 3);
        assert_eq!((of("grid", 128).len(), of("pool", 16).len()), (1, 1));
        let fastv = of("fastv", 128)[0];
        let mean = planned_mean(&vlm.resolve(&fastv.chain).unwrap(), info).unwrap();
        assert_eq!(fastv.rule, Rule::Mean);
        assert!(mean <= 128.0 && mean > 126.0, "{mean}");
        assert_eq!(of("fastv", 16)[0].rule, Rule::Last);
        assert_eq!(plan.notes.len(), 1, "{:?}", plan.notes);
        let all = Plan::new(&vlm, &["fastv".into(), "vision_zip".into()], &[], &[256], 1).unwrap();
        let asked: Vec<String> = all.runs.iter().map(Run::key).filter(|k| k != "none").collect();
        assert_eq!(asked, ["vision_zip:keep=256"]);
    }
}
