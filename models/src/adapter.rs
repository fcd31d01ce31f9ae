//! Adapters: a folder of low-rank factors (LoRA) as PEFT writes it, merged into the weights of its
//! base model when those are read.
//!
//! Invariants
//! - The result is that of PEFT's `merge_and_unload` on the base in f32.
//! - Every tensor of the adapter lands in a tensor of the base, or the adapter is refused with the
//!   names of those that do not; so is a variant whose merge is another computation.
//!
//! Method: "LoRA: Low-Rank Adaptation of Large Language Models" (2021): `W + alpha / r * B A`;
//! with `use_rslora` the root of `r` divides ("A Rank Stabilization Scaling Factor", 2023). Source:
//! `peft` 0.21, `tuners/lora`.

use std::collections::BTreeMap;
use std::path::Path;

use fancy_regex::Regex;
use secateur_core::error::{ConfigError, WeightsError};
use secateur_core::files::{Fields, ModelFiles};
use secateur_core::weights::{LowRank, WeightView, Weights};
use serde_json::Value;

use crate::error::LoadError;
use crate::weights::canonical;

/// The configuration of an adapter.
const CONFIG: &str = "adapter_config.json";
/// Its tensors.
const TENSORS: &str = "adapter_model.safetensors";
/// What PEFT puts in front of the names of the base.
const PREFIX: &str = "base_model.model.";
/// Canonical names of the two matrices that a base may share.
const TABLE: &str = "decoder.embed_tokens.weight";
const HEAD: &str = "head.weight";

/// Keys of a variant that merges otherwise, or changed its base.
const VARIANTS: &[&str] = &[
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
];
/// Initialisations that leave the base as it is; the others need the adapter to be converted.
const PLAIN_STARTS: &[&str] = &["gaussian", "eva", "orthogonal"];

/// An adapter that was read, without any change of weights yet.
#[derive(Debug)]
pub struct Adapter {
    tensors: Weights,
    file: String,
    rank: usize,
    alpha: f64,
    ranks: Patterns,
    alphas: Patterns,
    root_of_rank: bool,
    ties: bool,
}

/// Numbers by module: the first expression that fits the end of its name.
#[derive(Debug)]
struct Patterns(Vec<(Regex, f64)>);

/// What a tensor of an adapter is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    A,
    B,
    BiasOfB,
    EmbeddingA,
    EmbeddingB,
    /// A tensor of the base, saved with the factors that are added to it.
    Base,
    /// A tensor of a copy that was trained in place of a module of the base.
    Whole,
}

/// What a folder says it is, if it holds an adapter: its kind and its base.
///
/// # Errors
/// A configuration that cannot be read.
pub fn described(files: &ModelFiles) -> Result<Option<String>, ConfigError> {
    let Some(config) = files.json(CONFIG)? else { return Ok(None) };
    let root = Fields::root(files.label(CONFIG), &config)?;
    let kind = root.text("peft_type", "")?;
    let base = root.text("base_model_name_or_path", "")?;
    let kind = if kind.is_empty() { String::new() } else { format!(" ({kind})") };
    let base =
        if base.is_empty() { "a model it does not name".into() } else { format!("`{base}`") };
    Ok(Some(format!("an adapter{kind} of {base}")))
}

/// Refuses a folder that is only an adapter where a model is needed.
///
/// # Errors
/// [`ConfigError::Format`] with the base and what to do.
pub(crate) fn refuse_as_model(files: &ModelFiles) -> Result<(), ConfigError> {
    let Some(what) = described(files)? else { return Ok(()) };
    let holds = |name: &str| files.path().is_some_and(|folder| folder.join(name).is_file());
    if holds("config.json") && (holds("model.safetensors") || holds("model.safetensors.index.json"))
    {
        return Ok(());
    }
    Err(ConfigError::Format {
        file: files.label(CONFIG),
        reason: format!(
            "this folder is not a model but {what}; give that as the model and this folder as its \
             adapter (`--adapter`)"
        ),
    })
}

/// Refuses a model in whose folder an adapter lies that nobody asked for: transformers would merge
/// it, and whether it is merged already is not to be seen.
///
/// # Errors
/// [`ConfigError::Format`] with both ways out.
pub fn refuse_unmerged(files: &ModelFiles) -> Result<(), ConfigError> {
    let Some(folder) = files.path() else { return Ok(()) };
    let holds = |name: &str| folder.join(name).is_file();
    if !holds(TENSORS) && !holds("adapter_model.bin") {
        return Ok(());
    }
    let Some(what) = described(files)? else { return Ok(()) };
    Err(ConfigError::Format {
        file: files.label(CONFIG),
        reason: format!(
            "the model's folder also holds {what}; name the folder as the adapter too (`--adapter`) \
             to merge it, or take {CONFIG} away if that was done"
        ),
    })
}

impl Adapter {
    /// Reads an adapter's folder.
    ///
    /// # Errors
    /// Files that are missing or malformed, another kind of adapter than LoRA, a variant of it that
    /// is not merged.
    pub fn open(folder: &Path) -> Result<Self, LoadError> {
        let files = ModelFiles::folder(folder)?;
        let config = files.required_json(CONFIG)?;
        let fields = Fields::root(files.label(CONFIG), &config)?;
        refuse_variants(&fields)?;
        let path = folder.join(TENSORS);
        if !path.is_file() {
            let pickled = folder.join("adapter_model.bin").is_file();
            let hint = if pickled { "; `adapter_model.bin` is not read, save it anew" } else { "" };
            return Err(ConfigError::Format {
                file: path.display().to_string(),
                reason: format!("the file is missing; an adapter's folder needs it{hint}"),
            }
            .into());
        }
        Ok(Self {
            tensors: Weights::open_file(&path)?,
            file: path.display().to_string(),
            rank: fields.size("r", 1..=1 << 20, Some(8))?,
            alpha: fields.number("lora_alpha", -1e9..=1e9, Some(8.0))?,
            ranks: Patterns::read(&fields, "rank_pattern")?,
            alphas: Patterns::read(&fields, "alpha_pattern")?,
            root_of_rank: fields.flag("use_rslora", false)?,
            ties: fields.flag("ensure_weight_tying", false)?,
        })
    }

    /// The weights of the base, under the names of its files, with this adapter merged in. Sums are
    /// made when a tensor is read.
    ///
    /// # Errors
    /// A tensor of the adapter that fits no tensor of the base.
    pub fn merged(&self, base: Weights) -> Result<Weights, LoadError> {
        let named: BTreeMap<String, String> = base
            .names()
            .into_iter()
            .filter_map(|name| Some((canonical(name)?, name.to_owned())))
            .collect();
        let mut merge = Merge { adapter: self, named, base, strange: Vec::new() };
        let modules = self.modules();
        if modules.is_empty() {
            return Err(self.wrong("it holds no tensor".into()));
        }
        merge.check_shared(&modules)?;
        // Whole tensors come first: factors are added to what was trained with them.
        for (module, parts) in &modules {
            for part in [Part::Base, Part::Whole] {
                if let Some(name) = parts.get(&part) {
                    merge.replace(module, part, name)?;
                }
            }
        }
        for (module, parts) in &modules {
            merge.add(module, parts)?;
        }
        merge.finish()
    }

    /// The tensors of the adapter by the module (or, whole ones, the tensor) that they change.
    fn modules(&self) -> BTreeMap<String, BTreeMap<Part, String>> {
        let mut modules: BTreeMap<String, BTreeMap<Part, String>> = BTreeMap::new();
        // What a module was before a copy of it was trained is not read, in PEFT either.
        let read = |name: &&str| !name.contains(".original_module.");
        for name in self.tensors.names().into_iter().filter(read) {
            let (module, part) = parse(name);
            modules.entry(module).or_default().insert(part, name.to_owned());
        }
        modules
    }

    fn tensor(&self, name: &str) -> Result<WeightView, LoadError> {
        let shape = self.tensors.shape_of(name).unwrap_or_default().to_vec();
        Ok(self.tensors.tensor(name, &shape)?)
    }

    /// Factor of a module's product, in f64 as Python has it.
    fn scale(&self, module: &str, rank: usize) -> Result<f32, LoadError> {
        let stated = self.ranks.of(module)?.unwrap_or(self.rank as f64);
        if stated != rank as f64 {
            return Err(self
                .wrong(format!("`{module}` has factors of rank {rank}, {CONFIG} says {stated}")));
        }
        let alpha = self.alphas.of(module)?.unwrap_or(self.alpha);
        let divisor = if self.root_of_rank { (rank as f64).sqrt() } else { rank as f64 };
        Ok((alpha / divisor) as f32)
    }

    fn wrong(&self, reason: String) -> LoadError {
        ConfigError::Format { file: self.file.clone(), reason }.into()
    }
}

/// Module and part of a tensor's name.
fn parse(name: &str) -> (String, Part) {
    const FACTORS: &[(&str, Part)] = &[
        (".lora_A.", Part::A),
        (".lora_B.", Part::B),
        (".lora_embedding_A", Part::EmbeddingA),
        (".lora_embedding_B", Part::EmbeddingB),
    ];
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    for (mark, part) in FACTORS {
        // What follows is `weight`, `bias`, or the name that the adapter had in a program.
        if let Some((module, rest)) = name.split_once(mark) {
            let is_bias = *part == Part::B && rest.ends_with("bias");
            return (module.to_owned(), if is_bias { Part::BiasOfB } else { *part });
        }
    }
    let whole = name.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".");
    match whole.contains(".base_layer.") {
        true => (whole.replace(".base_layer.", "."), Part::Base),
        false => (whole, Part::Whole),
    }
}

/// A base on the way to be merged.
struct Merge<'a> {
    adapter: &'a Adapter,
    /// Names in the files of the base by canonical name.
    named: BTreeMap<String, String>,
    base: Weights,
    /// Tensors of the adapter that fit nowhere.
    strange: Vec<String>,
}

impl Merge<'_> {
    /// The name in the base's files of a tensor of an adapter.
    fn target(&self, name: &str) -> Option<String> {
        self.named.get(&canonical(name)?).cloned()
    }

    /// A base that shares its table and head: factors for the head would change both or one, as
    /// the program that holds them happens to store them.
    fn check_shared(
        &self,
        modules: &BTreeMap<String, BTreeMap<Part, String>>,
    ) -> Result<(), LoadError> {
        let lacks = |name: &str| !self.named.contains_key(name);
        for (module, parts) in modules {
            let target = canonical(&format!("{module}.weight"));
            let is_absent =
                target.as_deref().is_some_and(|t| (t == HEAD || t == TABLE) && lacks(t));
            if is_absent && !parts.contains_key(&Part::Whole) && !(lacks(HEAD) && lacks(TABLE)) {
                return Err(self.adapter.wrong(format!(
                    "`{module}` has factors, and the base has one matrix for embedding and head; \
                     save a merged model with the program that trained it"
                )));
            }
        }
        Ok(())
    }

    /// Puts a tensor of the adapter in place of one of the base.
    fn replace(&mut self, module: &str, part: Part, name: &str) -> Result<(), LoadError> {
        let view = self.adapter.tensor(name)?;
        let canonical_name = canonical(module).unwrap_or_default();
        let Some(target) = self.target(module) else {
            // A head of its own for a base without one.
            let table = self.target("embed_tokens.weight");
            if canonical_name == HEAD && table.is_some() {
                self.base.replace("lm_head.weight", view);
                self.named.insert(canonical_name, "lm_head.weight".into());
            } else {
                self.strange.push(name.to_owned());
            }
            return Ok(());
        };
        let shape = self.base.shape_of(&target).unwrap_or_default().to_vec();
        if view.shape() != shape {
            return Err(WeightsError::Shape {
                file: view.file().to_owned(),
                name: name.to_owned(),
                expected: format!("{shape:?}, that of the base's `{target}`"),
                found: format!("{:?}", view.shape()),
            }
            .into());
        }
        let is_copy = part == Part::Whole && !self.adapter.ties;
        if is_copy && canonical_name == TABLE && !self.named.contains_key(HEAD) {
            // The head goes on with the table as it was.
            let old = self.base.tensor(&target, &shape)?;
            self.base.replace("lm_head.weight", old);
            self.named.insert(HEAD.into(), "lm_head.weight".into());
        }
        self.base.replace(&target, view);
        Ok(())
    }

    /// Adds the factors of a module.
    fn add(&mut self, module: &str, parts: &BTreeMap<Part, String>) -> Result<(), LoadError> {
        let adapter = self.adapter;
        let (left, right, transposed) = match (
            (parts.get(&Part::B), parts.get(&Part::A)),
            (parts.get(&Part::EmbeddingB), parts.get(&Part::EmbeddingA)),
        ) {
            ((Some(b), Some(a)), (None, None)) => (b, a, false),
            ((None, None), (Some(b), Some(a))) => (b, a, true),
            ((None, None), (None, None)) if !parts.contains_key(&Part::BiasOfB) => return Ok(()),
            _ => {
                let names: Vec<&str> = parts.values().map(String::as_str).collect();
                return Err(adapter.wrong(format!(
                    "`{module}` needs a factor A and a factor B, found {}",
                    names.join(", ")
                )));
            }
        };
        let update = LowRank::new(adapter.tensor(left)?, adapter.tensor(right)?)?;
        let scale = adapter.scale(module, update.rank())?;
        let update = update.scaled(scale);
        let update = if transposed { update.transposed() } else { update };
        match self.target(&format!("{module}.weight")) {
            Some(target) => self.base.add(&target, update)?,
            None => self.strange.extend([left.clone(), right.clone()]),
        }
        if let Some(name) = parts.get(&Part::BiasOfB) {
            let bias = adapter.tensor(name)?;
            let column = bias.reshaped(&[bias.len(), 1]);
            let one = WeightView::from_f32("1", &[1, 1], &[1.0]);
            match self.target(&format!("{module}.bias")) {
                Some(target) => self.base.add(&target, LowRank::new(column, one)?.scaled(scale))?,
                None => self.strange.push(name.clone()),
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Weights, LoadError> {
        if self.strange.is_empty() {
            return Ok(self.base);
        }
        const SHOWN: usize = 3;
        let shown: Vec<String> =
            self.strange.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
        let more = self.strange.len().saturating_sub(SHOWN);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        Err(self.adapter.wrong(format!(
            "no tensor of {} fits {}{more}; is it the adapter's base?",
            self.base.label(),
            shown.join(", ")
        )))
    }
}

fn refuse_variants(fields: &Fields<'_>) -> Result<(), ConfigError> {
    let refuse = |what, found: String, supported: &str| {
        let (file, supported) = (fields.file().to_owned(), supported.to_owned());
        Err(ConfigError::Unsupported { file, what, found, supported })
    };
    let kind = fields.text("peft_type", "")?;
    if kind != "LORA" {
        return refuse("kind of adapter", kind, "LORA");
    }
    let is_set = |value: &Value| match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    };
    if let Some(key) = VARIANTS.iter().find(|key| fields.get(key).is_some_and(is_set)) {
        return refuse("LoRA variant", (*key).to_owned(), "plain LoRA and `use_rslora`");
    }
    match fields.get("init_lora_weights") {
        Some(Value::String(start)) if !PLAIN_STARTS.contains(&start.as_str()) => refuse(
            "`init_lora_weights`",
            start.clone(),
            "those that leave the base as it is; PEFT converts the others when it saves with \
             `path_initial_model_for_weight_conversion`",
        ),
        _ => Ok(()),
    }
}

impl Patterns {
    fn read(fields: &Fields<'_>, key: &str) -> Result<Self, ConfigError> {
        let object = fields.object(key)?;
        let mut patterns = Vec::new();
        for module in object.keys() {
            let value = object.number(module, -1e9..=1e9, None)?;
            // As PEFT asks: the end of a module's name, from a dot on.
            let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{module})$"));
            let regex =
                regex.map_err(|e| object.error(module, "a regular expression", &e.to_string()))?;
            patterns.push((regex, value));
        }
        Ok(Self(patterns))
    }

    fn of(&self, module: &str) -> Result<Option<f64>, LoadError> {
        for (regex, value) in &self.0 {
            let fits = regex.is_match(module).map_err(|e| ConfigError::Format {
                file: CONFIG.into(),
                reason: format!("a pattern cannot be matched with `{module}`: {e}"),
            })?;
            if fits {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}
