//! What a pruner plans for a model: its cuts, each with what it reads and what it leaves.
//!
//! A stage is planned once and handed back at the cut as it was planned ([`crate::cut::Cut`]): what
//! depends on the model is worked out here and nowhere else, so that planning and running cannot
//! come to two answers.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::signal::Signal;

/// Where a stage cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// After the vision tower, before the projector: rows of the tower.
    Encoder,
    /// After projector and assembly, before decoder layer 0.
    Input,
    /// When that many decoder layers have run: `Decoder(r)` cuts before layer `r`,
    /// `1 <= r < layers`.
    Decoder(usize),
}

impl Site {
    /// The decoder layer before which it cuts, if it lies there.
    pub fn layer(self) -> Option<usize> {
        match self {
            Site::Decoder(layer) => Some(layer),
            Site::Encoder | Site::Input => None,
        }
    }
}

impl std::str::FromStr for Site {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let layer = || text.strip_prefix("decoder(")?.strip_suffix(')')?.parse().ok();
        match text {
            "encoder" => Ok(Site::Encoder),
            "input" => Ok(Site::Input),
            _ => layer()
                .map(Site::Decoder)
                .ok_or_else(|| format!("`{text}` is no site: encoder, input or decoder(LAYER)")),
        }
    }
}

impl serde::Serialize for Site {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Site {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Site::Encoder => f.write_str("encoder"),
            Site::Input => f.write_str("input"),
            Site::Decoder(layer) => write!(f, "decoder({layer})"),
        }
    }
}

/// What happens to the position ids of surviving tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PositionPolicy {
    /// They keep their ids; gaps stay. Decoding goes on from the unpruned length.
    Keep,
    /// All tokens of the sequence count anew from the cut on; decoding goes on from the pruned
    /// length, layer by layer.
    Renumber,
}

/// How much of the candidates stays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// That many tokens.
    Count(usize),
    /// That share of the candidates, in (0, 1].
    Share(f64),
    /// The fewest best tokens whose scores sum to that share of the total.
    Mass(f64),
}

impl Budget {
    /// Tokens to keep of `count` candidates, rounding half to even and clamping to `count`.
    /// `scores` (one a candidate, negative counts as 0) are read by [`Budget::Mass`] alone.
    pub fn resolve(&self, count: usize, scores: &[f32]) -> usize {
        match *self {
            Budget::Count(keep) => keep.min(count),
            Budget::Share(share) => {
                ((count as f64 * share).round_ties_even() as usize).clamp(1.min(count), count)
            }
            Budget::Mass(mass) => {
                let mut sorted: Vec<f64> = scores.iter().map(|&s| f64::from(s).max(0.0)).collect();
                sorted.sort_by(|a, b| b.total_cmp(a));
                let target = sorted.iter().sum::<f64>() * mass;
                let mut sum = 0.0;
                let kept = sorted.iter().take_while(|&&s| {
                    let open = sum < target;
                    sum += s;
                    open
                });
                kept.count().clamp(1.min(count), count)
            }
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Budget::Count(keep) => write!(f, "{keep}"),
            Budget::Share(share) => write!(f, "{share}"),
            Budget::Mass(mass) => write!(f, "mass:{mass}"),
        }
    }
}

/// One cut of a pruner, as it was planned for a model.
#[derive(Clone, Debug)]
pub struct StagePlan {
    /// Where.
    pub site: Site,
    /// What it reads there.
    pub reads: Vec<Signal>,
    /// What happens to positions.
    pub positions: PositionPolicy,
    /// Its budget, as text for `explain`.
    pub budget: String,
    /// Which of the pruner's drops it is; `None` for the stage that stands for the whole entry.
    pub drop: Option<usize>,
    /// What else was worked out for the model ([`StagePlan::prepared`]).
    pub prepared: Option<Arc<dyn Any + Send + Sync>>,
}

impl StagePlan {
    /// A stage that reads nothing and keeps positions.
    pub fn at(site: Site) -> Self {
        Self {
            site,
            reads: Vec::new(),
            positions: PositionPolicy::Keep,
            budget: String::new(),
            drop: None,
            prepared: None,
        }
    }

    /// Reads these signals.
    #[must_use]
    pub fn reads(mut self, signals: impl IntoIterator<Item = Signal>) -> Self {
        self.reads = signals.into_iter().collect();
        self
    }

    /// What happens to positions.
    #[must_use]
    pub fn positions(mut self, policy: PositionPolicy) -> Self {
        self.positions = policy;
        self
    }

    /// The budget in words.
    #[must_use]
    pub fn budget(mut self, budget: impl fmt::Display) -> Self {
        self.budget = budget.to_string();
        self
    }

    /// The stage is drop `j` of several.
    #[must_use]
    pub fn drop(mut self, j: usize) -> Self {
        self.drop = Some(j);
        self
    }

    /// Facts of the model that the cut needs: given back by [`crate::cut::Cut::prepared`].
    #[must_use]
    pub fn prepared<T: Any + Send + Sync>(mut self, facts: T) -> Self {
        self.prepared = Some(Arc::new(facts));
        self
    }
}

/// All cuts of a pruner, in the order of their sites.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The cuts.
    pub stages: Vec<StagePlan>,
    /// What it wants to see after decoding ([`crate::prune::Pruner::observe`]).
    pub observes: Vec<Signal>,
    /// Notes for `explain` and reports: fallbacks taken, defaults resolved.
    pub notes: Vec<String>,
}

impl Plan {
    /// A plan of cuts that observes nothing.
    pub fn of(stages: impl IntoIterator<Item = StagePlan>, notes: Vec<String>) -> Self {
        Self { stages: stages.into_iter().collect(), notes, ..Self::default() }
    }
}

impl From<StagePlan> for Plan {
    fn from(stage: StagePlan) -> Self {
        Self::of([stage], Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_written_and_read_in_the_same_words() {
        for site in [Site::Encoder, Site::Input, Site::Decoder(7)] {
            assert_eq!(site.to_string().parse(), Ok(site));
            let json = serde_json::to_string(&site).unwrap();
            assert_eq!(json, format!("\"{site}\""));
            assert_eq!(serde_json::from_str::<Site>(&json).unwrap(), site);
        }
        assert!("decoder(x)".parse::<Site>().is_err());
    }
}
