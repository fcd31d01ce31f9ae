//! Chains: how pruners are written down, built, checked against a model and explained.
//!
//! Inline (`vtc_cls:keep=64,fastv:layer=2:keep=0.5`) and TOML (`[[stage]]` tables) parse to the
//! same [`ChainSpec`]. A [`Registry`] turns its entries into pruners; [`Chain::resolve`] plans
//! them for a model.
//!
//! Invariants
//! - Stages of a resolved chain run in the order encoder, input, decoder by rising layer; every
//!   signal they read is offered by the model and known at its site.
//! - `ChainSpec::parse(spec.to_string())` gives `spec`.
//!
//! Not here: running a chain (`prefill`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use toml::{Table, Value};

use crate::error::ChainError;
use crate::model::ModelInfo;
use crate::params::inline_text;
use crate::prune::{Plan, PositionPolicy, Pruner, Site, StagePlan};
use crate::signal::Signal;

pub use crate::params::{BUDGET, Params, nearest_first};

/// One entry of a chain: a pruner's name and its parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct StageSpec {
    /// The key `type`.
    pub pruner: String,
    /// All other keys.
    pub params: Table,
}

impl StageSpec {
    /// The budget in tokens that it names (itself, or its inner pruner), with its key.
    fn asked(&self) -> Option<(&'static str, i64)> {
        let inner = self.params.get("inner").and_then(Value::as_table);
        [Some(&self.params), inner].into_iter().flatten().find_map(|params| {
            ["keep", "retain"]
                .into_iter()
                .find_map(|key| Some((key, params.get(key)?.as_integer()?)))
        })
    }
}

/// A chain as it was written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChainSpec {
    /// Its entries, in order.
    pub stages: Vec<StageSpec>,
    /// Every cell of this many by this many patches keeps at least one token.
    pub floor: Option<usize>,
}

impl ChainSpec {
    /// Reads the inline form: entries by `,`, parameters by `:`, `name=value`. Values are
    /// integers, floats, `true`, `false`, lists `[a;b]`, inline tables `{a=1;b=2}` or words.
    /// `none` and the empty text are the chain without stages.
    ///
    /// # Errors
    /// [`ChainError::Parse`] with the place.
    pub fn parse(text: &str) -> Result<Self, ChainError> {
        let fail = |reason: String| ChainError::Parse { text: text.to_owned(), reason };
        let mut spec = Self::default();
        if matches!(text.trim(), "" | "none") {
            return Ok(spec);
        }
        for entry in split_outside(text, ',').map_err(fail)? {
            let parts = split_outside(entry.trim(), ':').map_err(fail)?;
            let name = parts[0].trim();
            if name.is_empty() {
                return Err(fail("an entry has no pruner name".into()));
            }
            let mut params = Table::new();
            let mut rest = parts[1..].iter().peekable();
            while let Some(part) = rest.next() {
                let Some((key, value)) = part.split_once('=') else {
                    return Err(fail(format!("`{part}` is not `name=value`")));
                };
                // The one value with the separator of parameters in it.
                let is_mass = value.trim() == "mass";
                let share = rest.next_if(|next| is_mass && !next.contains('='));
                let value = share.map_or_else(|| value.to_owned(), |s| format!("{value}:{s}"));
                let value = inline_value(value.trim()).map_err(fail)?;
                if params.insert(key.trim().to_owned(), value).is_some() {
                    return Err(fail(format!("`{}` is given twice", key.trim())));
                }
            }
            if name == "floor" {
                spec.floor = Some(floor_cells(params.get("cells"), text)?);
                continue;
            }
            spec.stages.push(StageSpec { pruner: name.to_owned(), params });
        }
        Ok(spec)
    }

    /// Reads a chain file: `[[stage]]` tables with a key `type`, and optionally
    /// `[floor] cells = g`. `name` stands in errors.
    ///
    /// # Errors
    /// [`ChainError::Parse`].
    pub fn from_toml(name: &str, text: &str) -> Result<Self, ChainError> {
        let fail = |reason: String| ChainError::Parse { text: name.to_owned(), reason };
        let table: Table = text.parse().map_err(|e: toml::de::Error| fail(e.to_string()))?;
        let mut spec = Self::default();
        for (key, value) in table {
            match (key.as_str(), value) {
                ("stage", Value::Array(entries)) => {
                    for (i, entry) in entries.into_iter().enumerate() {
                        let Value::Table(mut params) = entry else {
                            return Err(fail(format!("stage {i} is not a table")));
                        };
                        let Some(Value::String(pruner)) = params.remove("type") else {
                            return Err(fail(format!("stage {i} has no text `type`")));
                        };
                        let stage = StageSpec { pruner, params };
                        check_printable(i, &stage).map_err(fail)?;
                        spec.stages.push(stage);
                    }
                }
                ("floor", Value::Table(table)) => {
                    spec.floor = Some(floor_cells(table.get("cells"), name)?);
                }
                // What the figures of a preset are, for people and for `models`.
                ("about", _) => {}
                (key, _) => {
                    return Err(fail(format!(
                        "unknown key `{key}`; a chain file has `[[stage]]`, `[floor]`, `about`"
                    )));
                }
            }
        }
        Ok(spec)
    }
}

/// Whether the inline form can say a stage: that is what stands in records, reports and fingerprints.
fn check_printable(i: usize, stage: &StageSpec) -> Result<(), String> {
    let printed = ChainSpec { stages: vec![stage.clone()], floor: None }.to_string();
    let again = ChainSpec::parse(&printed);
    if again.is_ok_and(|again| again.stages.len() == 1 && again.to_string() == printed) {
        return Ok(());
    }
    Err(format!(
        "stage {i}: `{printed}` does not read back: no name and no text of a stage may hold one of \
         `, : ; = [ ] {{ }}`, begin or end with a space, or be empty"
    ))
}

fn floor_cells(value: Option<&Value>, text: &str) -> Result<usize, ChainError> {
    match value {
        Some(Value::Integer(g)) if *g >= 1 => Ok(*g as usize),
        other => Err(ChainError::Parse {
            text: text.to_owned(),
            reason: format!("`floor` needs `cells` of at least 1, found {other:?}"),
        }),
    }
}

impl fmt::Display for ChainSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.stages.is_empty() && self.floor.is_none() {
            return f.write_str("none");
        }
        let mut entries: Vec<String> = Vec::new();
        for stage in &self.stages {
            let mut text = stage.pruner.clone();
            for (key, value) in &stage.params {
                text.push_str(&format!(":{key}={}", inline_text(value)));
            }
            entries.push(text);
        }
        if let Some(cells) = self.floor {
            entries.push(format!("floor:cells={cells}"));
        }
        f.write_str(&entries.join(","))
    }
}

/// Splits at `separator` where no bracket is open.
fn split_outside(text: &str, separator: char) -> Result<Vec<&str>, String> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0usize, 0);
    for (i, c) in text.char_indices() {
        match c {
            '[' | '{' => depth += 1,
            ']' | '}' => {
                depth = depth.checked_sub(1).ok_or_else(|| format!("`{c}` closes nothing"))?;
            }
            c if c == separator && depth == 0 => {
                parts.push(&text[start..i]);
                start = i + c.len_utf8();
            }
            _ => {}
        }
    }
    if depth > 0 {
        return Err("a bracket is not closed".into());
    }
    parts.push(&text[start..]);
    Ok(parts)
}

fn inline_value(text: &str) -> Result<Value, String> {
    if text.len() > 10_000 {
        return Err("a value is longer than 10,000 characters".into());
    }
    inline_value_at(text, 0)
}

fn inline_value_at(text: &str, depth: usize) -> Result<Value, String> {
    if depth > 8 {
        return Err("brackets are nested more than eight deep".into());
    }
    let inner = |open: char, close: char| text.strip_prefix(open)?.strip_suffix(close);
    if let Some(list) = inner('[', ']') {
        let items: Result<Vec<Value>, String> = split_outside(list, ';')?
            .into_iter()
            .filter(|item| !item.trim().is_empty())
            .map(|item| inline_value_at(item.trim(), depth + 1))
            .collect();
        return Ok(Value::Array(items?));
    }
    if let Some(body) = inner('{', '}') {
        let mut table = Table::new();
        for item in split_outside(body, ';')? {
            if item.trim().is_empty() {
                continue;
            }
            let (key, value) =
                item.split_once('=').ok_or_else(|| format!("`{item}` is not `name=value`"))?;
            table.insert(key.trim().to_owned(), inline_value_at(value.trim(), depth + 1)?);
        }
        return Ok(Value::Table(table));
    }
    if text.is_empty() {
        return Err("a parameter has no value".into());
    }
    Ok(match text {
        "true" => Value::Boolean(true),
        "false" => Value::Boolean(false),
        _ => {
            if let Ok(integer) = text.parse::<i64>() {
                Value::Integer(integer)
            } else if let Some(float) = text.parse::<f64>().ok().filter(|f| f.is_finite()) {
                Value::Float(float)
            } else {
                Value::String(text.to_owned())
            }
        }
    })
}

/// Builds a pruner from its parameters.
pub type Build = Arc<dyn Fn(&Params<'_>) -> Result<Box<dyn Pruner>, ChainError> + Send + Sync>;

/// The pruners that a chain may name.
#[derive(Clone, Default)]
pub struct Registry {
    builders: BTreeMap<String, Build>,
}

impl Registry {
    /// Adds a pruner, or replaces the one of that name.
    pub fn insert(
        &mut self,
        name: impl Into<String>,
        build: impl Fn(&Params<'_>) -> Result<Box<dyn Pruner>, ChainError> + Send + Sync + 'static,
    ) {
        self.builders.insert(name.into(), Arc::new(build));
    }

    /// Names, ascending.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.builders.keys().map(String::as_str)
    }

    /// Builds the pruners of a chain.
    ///
    /// # Errors
    /// Unknown names and parameters.
    pub fn build(&self, spec: ChainSpec) -> Result<Chain, ChainError> {
        let pruners = spec
            .stages
            .iter()
            .map(|stage| {
                let build =
                    self.builders.get(&stage.pruner).ok_or_else(|| ChainError::UnknownPruner {
                        found: stage.pruner.clone(),
                        known: nearest_first(&stage.pruner, self.names()).join(", "),
                    })?;
                let params = Params::new(&stage.pruner, &stage.params);
                let pruner = build(&params)?;
                params.finish()?;
                Ok(Arc::from(pruner))
            })
            .collect::<Result<Vec<Arc<dyn Pruner>>, ChainError>>()?;
        Ok(Chain { spec, pruners })
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

/// Pruners in order, not yet planned for a model.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    spec: ChainSpec,
    pruners: Vec<Arc<dyn Pruner>>,
}

impl Chain {
    /// How it was written.
    pub fn spec(&self) -> &ChainSpec {
        &self.spec
    }

    /// Plans every pruner for a model and checks that the whole can run.
    ///
    /// # Errors
    /// Layers that do not exist, signals that are not offered, stages out of order.
    pub fn resolve(&self, model: &ModelInfo) -> Result<ResolvedChain, ChainError> {
        let mut stages: Vec<ResolvedStage> = Vec::new();
        let mut observes = Vec::new();
        let mut notes = Vec::new();
        for (entry, pruner) in self.pruners.iter().enumerate() {
            let name = &self.spec.stages[entry].pruner;
            let plan: Plan = pruner.plan(model)?;
            notes.extend(plan.notes.into_iter().map(|note| format!("{name}: {note}")));
            if !plan.observes.is_empty() {
                observes.push((entry, plan.observes));
            }
            for (stage, plan) in plan.stages.into_iter().enumerate() {
                let resolved = ResolvedStage {
                    entry,
                    stage,
                    name: name.clone(),
                    pruner: pruner.clone(),
                    plan,
                };
                if let Some(before) = stages.last()
                    && !may_follow(before.plan.site, resolved.plan.site)
                {
                    return Err(ChainError::Order {
                        index: entry,
                        pruner: name.clone(),
                        site: resolved.plan.site.to_string(),
                        before: format!("`{}` at {}", before.name, before.plan.site),
                        reason: "write entries in the order encoder, input, decoder with rising \
                                 layers"
                            .into(),
                    });
                }
                stages.push(resolved);
            }
        }
        let tower_layers: BTreeSet<usize> =
            stages.iter().flat_map(|s| &s.plan.reads).filter_map(Signal::encoder_layer).collect();
        for stage in &stages {
            check_stage(&stage.name, &stage.plan, model, &tower_layers)?;
        }
        Ok(ResolvedChain {
            spec: self.spec.clone(),
            entries: self.pruners.len(),
            stages,
            observes,
            notes,
            floor: self.spec.floor,
        })
    }
}

/// Several stages may share the encoder or the input site; inside the decoder two cuts before one
/// layer would be one cut, so layers rise strictly.
fn may_follow(before: Site, next: Site) -> bool {
    match (before, next) {
        (Site::Decoder(a), Site::Decoder(b)) => a < b,
        (a, b) => a <= b,
    }
}

fn check_stage(
    name: &str,
    plan: &StagePlan,
    model: &ModelInfo,
    tower_layers: &BTreeSet<usize>,
) -> Result<(), ChainError> {
    let layer_error = |layer: usize, first: usize, last: usize, part: &'static str| {
        Err(ChainError::Layer { pruner: name.to_owned(), layer: layer as i64, part, first, last })
    };
    let layers = model.decoder.layers;
    if let Site::Decoder(layer) = plan.site
        && (layer < 1 || layer >= layers)
    {
        return layer_error(layer, 1, layers.saturating_sub(1), "a cut inside the decoder");
    }
    if plan.positions == PositionPolicy::Renumber && model.decoder.mrope {
        return Err(ChainError::Parameter {
            pruner: name.to_owned(),
            field: "positions".into(),
            expected: format!(
                "keep: {} has three position axes, and no paper says how to renumber them",
                model.name
            ),
            found: "renumber".into(),
        });
    }
    for signal in &plan.reads {
        let known = match (*signal, plan.site) {
            (
                Signal::Attention { layer, .. }
                | Signal::Transitions { layer }
                | Signal::Hidden { layer },
                Site::Decoder(r),
            ) => layer < r,
            (Signal::Probe { layer, .. }, Site::Decoder(r)) => layer == r,
            (Signal::Embeddings | Signal::InstructionEmbedding, site) => site != Site::Encoder,
            (
                Signal::Attention { .. }
                | Signal::Transitions { .. }
                | Signal::Hidden { .. }
                | Signal::Probe { .. }
                | Signal::GeneratedRows { .. },
                _,
            ) => false,
            _ => true,
        };
        if let Some(layer) = signal.encoder_layer()
            && layer >= model.encoder.layers
        {
            return layer_error(layer, 0, model.encoder.layers.saturating_sub(1), "the encoder");
        }
        if !known {
            return Err(ChainError::MissingSignal {
                pruner: name.to_owned(),
                model: format!("the {} site", plan.site),
                signal: signal.to_string(),
                fallback: String::new(),
            });
        }
        model.offers_to(signal, tower_layers).map_err(|fallback| ChainError::MissingSignal {
            pruner: name.to_owned(),
            model: model.name.clone(),
            signal: signal.to_string(),
            fallback: format!("; {fallback}"),
        })?;
    }
    Ok(())
}

/// One cut of a resolved chain.
#[derive(Clone, Debug)]
pub struct ResolvedStage {
    /// Index of the chain's entry.
    pub entry: usize,
    /// Index of the cut within that entry.
    pub stage: usize,
    /// The pruner's name.
    pub name: String,
    /// The pruner.
    pub pruner: Arc<dyn Pruner>,
    /// Where it cuts and what it reads.
    pub plan: StagePlan,
}

/// A chain planned for one model.
#[derive(Clone, Debug, Default)]
pub struct ResolvedChain {
    /// How it was written.
    pub spec: ChainSpec,
    /// Number of entries.
    pub entries: usize,
    /// All cuts, by site.
    pub stages: Vec<ResolvedStage>,
    /// Entries that want to see something after decoding, and what.
    pub observes: Vec<(usize, Vec<Signal>)>,
    /// Notes of the pruners.
    pub notes: Vec<String>,
    /// Coverage floor, cells a side.
    pub floor: Option<usize>,
}

impl ResolvedChain {
    /// Signals of all stages, each once.
    pub fn signals(&self) -> BTreeSet<Signal> {
        self.stages.iter().flat_map(|s| s.plan.reads.iter().copied()).collect()
    }

    /// Stages at a site, in order.
    pub fn at(&self, site: Site) -> impl Iterator<Item = &ResolvedStage> {
        self.stages.iter().filter(move |s| s.plan.site == site)
    }

    /// The tokens before and after each stage when a picture of one square crop has `tokens`;
    /// `None` where the picture decides, and from there on.
    pub fn counts(&self, tokens: usize) -> Vec<(Option<usize>, Option<usize>)> {
        let (mut current, mut entered) = (Some(tokens), None);
        let mut counts = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            let before = current;
            if entered.is_none() && matches!(stage.plan.site, Site::Decoder(_)) {
                entered = before;
            }
            let keeps = |n| stage.pruner.keeps(stage.stage, n, entered.unwrap_or(tokens));
            current = before.and_then(keeps).filter(|&kept| self.is_above_floor(kept, tokens));
            counts.push((before, current));
        }
        counts
    }

    /// Whether the coverage floor of a square picture of `tokens` adds nothing to `kept`. Below
    /// it the pruner's merges decide how many it adds.
    fn is_above_floor(&self, kept: usize, tokens: usize) -> bool {
        let Some(cells) = self.floor else { return true };
        let blocks = ((tokens as f64).sqrt().ceil() as usize).div_ceil(cells);
        kept >= blocks * blocks
    }

    /// The notes of a chain when a picture has `tokens`: those of the pruners, and budgets that
    /// cut nothing.
    pub fn notes_of(&self, tokens: usize) -> Vec<String> {
        let counts = self.counts(tokens);
        let known = self
            .stages
            .iter()
            .zip(&counts)
            .filter_map(|(stage, (before, after))| Some((stage.entry, (*before)?, (*after)?)));
        self.notes.iter().cloned().chain(self.idle_budgets(known)).collect()
    }

    /// Budgets in tokens that cut nothing, in words. `cuts` are the cuts that ran, in order:
    /// entry, tokens before and after.
    pub fn idle_budgets(
        &self,
        cuts: impl IntoIterator<Item = (usize, usize, usize)>,
    ) -> Vec<String> {
        let mut entries: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
        for (entry, before, after) in cuts {
            entries.entry(entry).or_insert((before, after)).1 = after;
        }
        let idle = entries.into_iter().filter(|(_, (before, after))| before == after);
        idle.filter_map(|(entry, (before, _))| {
            let stage = self.spec.stages.get(entry)?;
            let (key, asked) = stage.asked().filter(|(_, asked)| *asked != before as i64)?;
            let name = &stage.pruner;
            Some(format!(
                "{name}: `{key}={asked}` cuts nothing: {before} tokens are there, all stay"
            ))
        })
        .collect()
    }

    /// The chain as a table for people: per stage the site, the tokens before and after for a
    /// picture of one crop with `tokens` visual tokens, positions and signals.
    pub fn explain(&self, model: &ModelInfo, tokens: usize) -> String {
        let mut out = format!(
            "model      {} ({})\nencoder    {} layers, {}\ndecoder    {} layers, {} wide\nchain      {}\n",
            model.name,
            model.family,
            model.encoder.layers,
            if model.encoder.cls { "class token" } else { "no class token" },
            model.decoder.layers,
            model.decoder.hidden,
            self.spec
        );
        // What a picture of tiles has is for `tokens` to say: here no picture is at hand.
        let in_each = if self.stages.iter().any(|s| s.plan.budget.ends_with("a crop")) {
            "; a picture of tiles keeps as many in each"
        } else {
            ""
        };
        out.push_str(&format!("picture    {tokens} visual tokens in one crop{in_each}\n"));
        let mut rows = vec![[
            "stage".to_owned(),
            "site".to_owned(),
            "tokens".to_owned(),
            "keep".to_owned(),
            "positions".to_owned(),
            "reads".to_owned(),
        ]];
        let count = |n: Option<usize>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
        for (stage, (before, after)) in self.stages.iter().zip(self.counts(tokens)) {
            rows.push([
                stage.name.clone(),
                stage.plan.site.to_string(),
                format!("{} -> {}", count(before), count(after)),
                stage.plan.budget.clone(),
                format!("{:?}", stage.plan.positions).to_lowercase(),
                stage.plan.reads.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            ]);
        }
        if rows.len() == 1 {
            out.push_str(&format!("no stage: all {tokens} visual tokens stay in every layer\n"));
            return out;
        }
        let widths: Vec<usize> =
            (0..6).map(|c| rows.iter().map(|r| r[c].len()).max().unwrap_or(0)).collect();
        for row in &rows {
            let line: Vec<String> =
                row.iter().zip(&widths).map(|(cell, &w)| format!("{cell:<w$}")).collect();
            out.push_str(line.join("  ").trim_end());
            out.push('\n');
        }
        for note in self.notes_of(tokens) {
            out.push_str(&format!("note       {note}\n"));
        }
        if let Some(cells) = self.floor {
            out.push_str(&format!("floor      one token in every {cells} x {cells} patches\n"));
        }
        out
    }
}
