//! Drops inside the decoder that share one budget: at which layers, and how much each leaves.
//!
//! Counts are relative to the visual tokens that entered the decoder, structural ones aside.

use secateur_core::chain::Params;
use secateur_core::error::ChainError;
use secateur_core::model::ModelInfo;
use secateur_core::prune::{Budget, Cut};

use crate::options;

/// Depth of the decoder that the papers' layers are for.
const PUBLISHED_DEPTH: usize = 32;

/// Layers and what is left after each.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    layers: Option<Vec<usize>>,
    published_layers: &'static [usize],
    amount: Amount,
}

#[derive(Clone, Debug)]
enum Amount {
    /// Shares of what entered.
    Ratios(Vec<f64>),
    /// What is left at the end, and by which powers of its share each drop comes there.
    Final { budget: Budget, powers: Vec<f64> },
}

impl Schedule {
    /// Reads `layers` (default: the published ones, scaled to the depth), and either `ratios`
    /// (default: the published ones) or a budget `keep` that the last drop meets; the drops before
    /// it then fall in the published proportions (of the logarithms).
    ///
    /// # Errors
    /// Lists of different lengths, layers that do not rise, ratios that do not fall.
    pub(crate) fn parse(
        params: &Params<'_>,
        published_layers: &'static [usize],
        published_ratios: &'static [f64],
    ) -> Result<Self, ChainError> {
        let layers = params.counts("layers")?;
        if let Some(layers) = &layers
            && (layers.is_empty() || layers.windows(2).any(|w| w[0] >= w[1]))
        {
            return Err(params.error("layers", "at least one layer, strictly rising"));
        }
        let drops = layers.as_ref().map_or(published_layers.len(), Vec::len);
        let ratios = params.numbers("ratios")?;
        let amount = match (options::budget(params)?, ratios) {
            (Some(_), Some(_)) => return Err(params.error("ratios", "absent beside a budget")),
            (Some(budget), None) => {
                Amount::Final { budget, powers: powers(drops, published_ratios) }
            }
            (None, Some(ratios)) => Amount::Ratios(ratios),
            (None, None) if drops == published_ratios.len() => {
                Amount::Ratios(published_ratios.to_vec())
            }
            (None, None) => {
                let expected = format!("a list of {drops} shares, or `keep`");
                Amount::Ratios(params.missing("ratios", &expected, vec![1.0; drops]))
            }
        };
        if let Amount::Ratios(ratios) = &amount {
            let in_unit = ratios.iter().all(|&r| r > 0.0 && r <= 1.0);
            let falling = ratios.windows(2).all(|w| w[0] >= w[1]);
            if ratios.len() != drops || !in_unit || !falling {
                let expected = format!("{drops} shares in (0, 1], none larger than the one before");
                return Err(params.error("ratios", &expected));
            }
        }
        Ok(Self { layers, published_layers, amount })
    }

    /// The layers for a model.
    pub(crate) fn layers(&self, model: &ModelInfo) -> Vec<usize> {
        self.layers.clone().unwrap_or_else(|| {
            options::scale_layers(self.published_layers, PUBLISHED_DEPTH, model.decoder.layers)
        })
    }

    /// What drop `j` leaves of `entered` tokens.
    pub(crate) fn budget(&self, j: usize, entered: usize) -> Budget {
        match &self.amount {
            // Truncated as in the releases, in f64; a ratio above 0 leaves at least one token.
            Amount::Ratios(ratios) => {
                let left = (entered as f64 * ratios[j]) as usize;
                Budget::Count(left.max(1.min(entered)))
            }
            Amount::Final { budget: Budget::Mass(mass), .. } => Budget::Mass(*mass),
            Amount::Final { budget, powers } => {
                let last = budget.resolve(entered, &[]);
                if j + 1 == powers.len() || entered == 0 {
                    return Budget::Count(last);
                }
                let left = entered as f64 * (last as f64 / entered as f64).powf(powers[j]);
                // A power of a share that should be whole may fall short in the last place.
                Budget::Count(((left + 1e-9) as usize).max(last))
            }
        }
    }

    /// The same at a cut.
    pub(crate) fn budget_at(&self, cut: &Cut<'_>) -> Budget {
        let structural = cut.tokens.tokens.iter().filter(|t| !t.is_candidate()).count();
        self.budget(cut.stage, cut.entered.saturating_sub(structural))
    }

    /// Tokens that drop `j` leaves, for `explain`.
    pub(crate) fn keeps(&self, j: usize, current: usize, entered: usize) -> Option<usize> {
        options::keeps(&self.budget(j, entered), current)
    }

    /// The budget of drop `j` in words.
    pub(crate) fn describe(&self, j: usize) -> String {
        match &self.amount {
            Amount::Ratios(ratios) => format!("{} of entered", ratios[j]),
            Amount::Final { budget: Budget::Mass(mass), .. } => format!("mass:{mass}"),
            Amount::Final { budget, powers } if j + 1 == powers.len() => budget.to_string(),
            Amount::Final { budget, .. } => format!("on the way to {budget}"),
        }
    }
}

/// By which powers of the final share the drops come there: those of the published ratios where
/// their number fits, even steps else.
fn powers(drops: usize, ratios: &[f64]) -> Vec<f64> {
    if drops == ratios.len() {
        let last = ratios[drops - 1].ln();
        ratios.iter().map(|r| r.ln() / last).collect()
    } else {
        (1..=drops).map(|j| j as f64 / drops as f64).collect()
    }
}
