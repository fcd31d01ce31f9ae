//! Where an answer ends, and the sampling that a model's authors recommend.
//!
//! Order of precedence, each key on its own: `generation_config.json`, `config.json` (top level,
//! then `text_config`), the named tokens of the tokenizer.

use secateur_core::error::ConfigError;
use secateur_core::files::{Fields, ModelFiles};
use serde_json::Value;

use super::Tokenizer;

/// Generation defaults of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generation {
    /// Ids that end an answer.
    pub eos: Vec<u32>,
    /// Beginning of a sequence.
    pub bos: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// What the authors recommend; the product's own default is greedy.
    pub sampling: SamplingDefaults,
}

/// The sampling keys of `generation_config.json`; `None` where the file is silent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    /// Whether the authors sample at all.
    pub do_sample: Option<bool>,
    /// Divisor of the logits.
    pub temperature: Option<f64>,
    /// Nucleus.
    pub top_p: Option<f64>,
    /// Most tokens considered.
    pub top_k: Option<usize>,
    /// Penalty on tokens that were seen.
    pub repetition_penalty: Option<f64>,
}

impl Generation {
    /// Reads the defaults of a folder.
    ///
    /// # Errors
    /// A malformed file, or an id that is not one.
    pub fn load(files: &ModelFiles, tokenizer: &Tokenizer) -> Result<Self, ConfigError> {
        let generation_file = files.json("generation_config.json")?;
        let config_file = files.required_json("config.json")?;
        let mut sources = Vec::new();
        if let Some(value) = &generation_file {
            sources.push(Fields::root(files.label("generation_config.json"), value)?);
        }
        let config = Fields::root(files.label("config.json"), &config_file)?;
        sources.push(config.clone());
        sources.push(config.object("text_config")?);
        let find = |key: &str, named: &str| -> Result<Vec<u32>, ConfigError> {
            for fields in &sources {
                let ids = ids(fields, key)?;
                if !ids.is_empty() {
                    return Ok(ids);
                }
            }
            let named = tokenizer.special().get(named).and_then(|t| tokenizer.id(t));
            Ok(named.into_iter().collect())
        };
        Ok(Self {
            eos: find("eos_token_id", "eos_token")?,
            bos: find("bos_token_id", "bos_token")?.first().copied(),
            pad: find("pad_token_id", "pad_token")?.first().copied(),
            sampling: match &generation_file {
                Some(_) => SamplingDefaults::read(&sources[0])?,
                None => SamplingDefaults::default(),
            },
        })
    }
}

impl SamplingDefaults {
    fn read(fields: &Fields<'_>) -> Result<Self, ConfigError> {
        let number = |key: &str| -> Result<Option<f64>, ConfigError> {
            fields.get(key).map(|_| fields.number(key, 0.0..=1e6, None)).transpose()
        };
        Ok(Self {
            do_sample: fields
                .get("do_sample")
                .map(|_| fields.flag("do_sample", false))
                .transpose()?,
            temperature: number("temperature")?,
            top_p: number("top_p")?,
            top_k: fields
                .get("top_k")
                .map(|_| fields.size("top_k", 0..=1 << 24, None))
                .transpose()?,
            repetition_penalty: number("repetition_penalty")?,
        })
    }
}

/// One id or a list of ids; empty where the key is absent.
fn ids(fields: &Fields<'_>, key: &str) -> Result<Vec<u32>, ConfigError> {
    let Some(value) = fields.get(key) else { return Ok(Vec::new()) };
    let wrong = || fields.error(key, "a token id or a list of them", &value.to_string());
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong);
    match value {
        Value::Array(list) => list.iter().map(id).collect(),
        // Some files write -1 for "none".
        Value::Number(n) if n.as_i64() == Some(-1) => Ok(Vec::new()),
        one => Ok(vec![id(one)?]),
    }
}
