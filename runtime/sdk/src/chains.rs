//! Chains as programs give them: as a text, or built stage by stage.
//!
//! Invariants
//! - A chain that was built is the chain that its text says: `chain(..).to_string()` reads back as
//!   the same.

use secateur_core::chain::{ChainSpec, StageSpec};
use toml::{Table, Value};

use crate::error::Error;
use crate::vlm::parse_chain;

/// A chain that is given to a request or a session: one that was read or built, or a text that is
/// read when it is needed.
#[derive(Clone, Debug, PartialEq)]
pub enum ChainSource {
    /// Read or built.
    Spec(ChainSpec),
    /// As [`parse_chain`] reads it.
    Text(String),
}

impl ChainSource {
    /// The chain.
    ///
    /// # Errors
    /// As [`parse_chain`].
    pub fn spec(&self) -> Result<ChainSpec, Error> {
        match self {
            ChainSource::Spec(spec) => Ok(spec.clone()),
            ChainSource::Text(text) => parse_chain(text),
        }
    }
}

impl Default for ChainSource {
    fn default() -> Self {
        ChainSource::Spec(ChainSpec::default())
    }
}

impl From<ChainSpec> for ChainSource {
    fn from(spec: ChainSpec) -> Self {
        ChainSource::Spec(spec)
    }
}

impl From<&ChainSpec> for ChainSource {
    fn from(spec: &ChainSpec) -> Self {
        ChainSource::Spec(spec.clone())
    }
}

impl From<&str> for ChainSource {
    fn from(text: &str) -> Self {
        ChainSource::Text(text.to_owned())
    }
}

impl From<String> for ChainSource {
    fn from(text: String) -> Self {
        ChainSource::Text(text)
    }
}

impl From<&String> for ChainSource {
    fn from(text: &String) -> Self {
        ChainSource::Text(text.clone())
    }
}

impl From<Stage> for ChainSource {
    fn from(stage: Stage) -> Self {
        ChainSource::Spec(chain(stage))
    }
}

/// One pruner of a chain and its parameters, by the names that `secateur pruners` lists.
///
/// ```
/// use secateur::{Stage, chain};
/// let built = chain([
///     Stage::new("vtc_cls").keep(64),
///     Stage::new("fastv").set("layer", 2).keep(0.5),
///     Stage::new("trans_prune").set("layers", vec![7, 9, 12]),
/// ]);
/// let text = "vtc_cls:keep=64,fastv:keep=0.5:layer=2,trans_prune:layers=[7;9;12]";
/// assert_eq!(built.to_string(), text);
/// # Ok::<(), secateur::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Stage(StageSpec);

impl Stage {
    /// A pruner with its defaults. Whether there is such a pruner, and what it needs, shows when
    /// the chain is planned for a model.
    pub fn new(pruner: impl Into<String>) -> Self {
        Self(StageSpec { pruner: pruner.into(), params: Table::new() })
    }

    /// The budget: a number of tokens (`64`) or the share that stays (`0.25`).
    #[must_use]
    pub fn keep(self, keep: impl Into<Setting>) -> Self {
        self.set("keep", keep)
    }

    /// Any parameter, replacing an earlier value.
    #[must_use]
    pub fn set(mut self, name: impl Into<String>, value: impl Into<Setting>) -> Self {
        self.0.params.insert(name.into(), value.into().0);
        self
    }
}

/// A value of a parameter: a number, a word, a flag, a list of them, or another [`Stage`] for
/// pruners that have an inner one.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting(Value);

macro_rules! settings {
    ($($kind:ty => $make:expr),* $(,)?) => {
        $(impl From<$kind> for Setting {
            fn from(value: $kind) -> Self {
                Setting($make(value))
            }
        })*
    };
}

/// A count as the numbers of chains: none is longer.
fn whole(count: usize) -> Value {
    Value::Integer(i64::try_from(count).unwrap_or(i64::MAX))
}

settings! {
    bool => Value::Boolean,
    f64 => Value::Float,
    i32 => |value| Value::Integer(i64::from(value)),
    u32 => |value| Value::Integer(i64::from(value)),
    usize => whole,
    String => Value::String,
    &str => |value: &str| Value::String(value.to_owned()),
}

impl<T: Into<Setting>> From<Vec<T>> for Setting {
    fn from(values: Vec<T>) -> Self {
        Setting(Value::Array(values.into_iter().map(|value| value.into().0).collect()))
    }
}

impl From<Stage> for Setting {
    fn from(Stage(StageSpec { pruner, mut params }): Stage) -> Self {
        params.insert("type".into(), Value::String(pruner));
        Setting(Value::Table(params))
    }
}

impl IntoIterator for Stage {
    type Item = Stage;
    type IntoIter = std::iter::Once<Stage>;

    fn into_iter(self) -> Self::IntoIter {
        std::iter::once(self)
    }
}

/// A chain of stages, in order: encoder, input, decoder with rising layers. A coverage floor is
/// [`ChainSpec::floor`].
pub fn chain(stages: impl IntoIterator<Item = Stage>) -> ChainSpec {
    let stages = stages.into_iter().map(|Stage(spec)| spec).collect();
    ChainSpec { stages, floor: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_built_chain_reads_back_from_its_text() {
        let inner = Stage::new("fastv").set("layer", 2usize).keep(1.0);
        let built = chain([
            Stage::new("vtc_cls").keep(8u32).keep("mass:0.5").set("per", "image".to_owned()),
            Stage::new("debiased").set("inner", inner),
            Stage::new("vflowopt")
                .set("exact", true)
                .set("stages", vec![Stage::new("x").set("layer", 3)]),
        ]);
        assert_eq!(ChainSpec::parse(&built.to_string()).unwrap(), built);
        assert_eq!(
            ChainSource::from("none").spec().unwrap(),
            ChainSource::default().spec().unwrap()
        );
        assert!(ChainSource::from("preset:none such").spec().is_err());
    }
}
