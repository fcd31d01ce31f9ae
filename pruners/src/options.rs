//! Parameters that several pruners share, read once and in one way.

use secateur_core::chain::{BUDGET, Params};
use secateur_core::error::ChainError;
use secateur_core::model::ModelInfo;
use secateur_core::prune::{Budget, PositionPolicy};
use toml::Value;

/// The budget: `keep`, or one of its aliases `ratio`, `keep_ratio` (shares kept), `retain`
/// (tokens), `drop_ratio` (share removed, in `[0, 1)`).
///
/// # Errors
/// Two of them at once, or a value out of range.
pub(crate) fn budget(params: &Params<'_>) -> Result<Option<Budget>, ChainError> {
    let aliases = ["ratio", "keep_ratio", "retain", "drop_ratio"];
    let given: Vec<&str> =
        std::iter::once("keep").chain(aliases).filter(|key| params.get(key).is_some()).collect();
    if let [first, second, ..] = given.as_slice() {
        return Err(params.error(second, &format!("absent, because `{first}` is given too")));
    }
    Ok(match given.first().copied() {
        None => None,
        Some("drop_ratio") => match params.number("drop_ratio")? {
            Some(r) if (0.0..1.0).contains(&r) => Some(Budget::Share(1.0 - r)),
            _ => return Err(params.error("drop_ratio", "a share in [0, 1)")),
        },
        Some("retain") => match params.count("retain")? {
            Some(0) => return Err(params.error("retain", "a number of tokens from 1 on")),
            retain => retain.map(Budget::Count),
        },
        Some("keep") => params.budget("keep")?,
        Some(key) => params.share(key)?.map(Budget::Share),
    })
}

/// As [`budget`], where there is no default.
///
/// # Errors
/// As [`budget`]; if none is given, [`Params::finish`] says so.
pub(crate) fn required_budget(params: &Params<'_>) -> Result<Budget, ChainError> {
    Ok(budget(params)?.unwrap_or_else(|| params.missing("keep", BUDGET, Budget::Share(1.0))))
}

/// Tokens that a budget keeps of `count`, for `explain`; `None` if scores decide.
pub(crate) fn keeps(budget: &Budget, count: usize) -> Option<usize> {
    match budget {
        Budget::Mass(_) => None,
        _ => Some(budget.resolve(count, &[])),
    }
}

/// What happens to positions, before the model is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Positions {
    given: Option<PositionPolicy>,
    published: PositionPolicy,
}

impl Positions {
    /// `positions = "keep" | "renumber"`; `published` is what the paper does.
    ///
    /// # Errors
    /// Another word.
    pub(crate) fn parse(
        params: &Params<'_>,
        published: PositionPolicy,
    ) -> Result<Self, ChainError> {
        let given = match params.get("positions") {
            Some(_) => Some(params.positions(published)?),
            None => None,
        };
        Ok(Self { given, published })
    }

    /// The policy for a model: as given, else as published; models with three position axes keep
    /// positions, because no paper says how to renumber them.
    pub(crate) fn resolve(self, model: &ModelInfo, notes: &mut Vec<String>) -> PositionPolicy {
        if let Some(given) = self.given {
            return given;
        }
        if model.decoder.mrope && self.published == PositionPolicy::Renumber {
            notes.push("positions are kept: the model has three position axes".into());
            return PositionPolicy::Keep;
        }
        self.published
    }
}

/// A flag, with its default.
///
/// # Errors
/// If the value is of another kind.
pub(crate) fn flag(params: &Params<'_>, key: &str, default: bool) -> Result<bool, ChainError> {
    Ok(params.flag(key)?.unwrap_or(default))
}

/// A whole number or the word `auto`, which gives `None`.
///
/// # Errors
/// If the value is of another kind.
pub(crate) fn count_or_auto(params: &Params<'_>, key: &str) -> Result<Option<usize>, ChainError> {
    match params.get(key) {
        Some(Value::String(word)) if word == "auto" => Ok(None),
        Some(Value::Integer(_)) | None => params.count(key),
        Some(_) => Err(params.error(key, "a whole number, 0 or more, or \"auto\"")),
    }
}

/// Decoder layers that were published for a decoder of `published_depth` layers, scaled to
/// another depth: nearest (halves to even), strictly rising, within `1..depth`.
pub(crate) fn scale_layers(layers: &[usize], published_depth: usize, depth: usize) -> Vec<usize> {
    let mut scaled: Vec<usize> = Vec::with_capacity(layers.len());
    for &layer in layers {
        let exact = layer as f64 * depth as f64 / published_depth as f64;
        let floor = scaled.last().map_or(1, |&before| before + 1);
        scaled.push((exact.round_ties_even() as usize).max(floor));
    }
    scaled
}

/// The error for a layer that cannot be cut before.
pub(crate) fn decoder_layer_error(pruner: &str, layer: usize, model: &ModelInfo) -> ChainError {
    ChainError::Layer {
        pruner: pruner.to_owned(),
        layer: layer as i64,
        part: "a cut inside the decoder",
        first: 1,
        last: model.decoder.layers.saturating_sub(1),
    }
}

/// Checks that the decoder can be cut before `layer`.
///
/// # Errors
/// [`ChainError::Layer`].
pub(crate) fn check_decoder_layer(
    pruner: &str,
    layer: usize,
    model: &ModelInfo,
) -> Result<(), ChainError> {
    if layer >= 1 && layer < model.decoder.layers {
        Ok(())
    } else {
        Err(decoder_layer_error(pruner, layer, model))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_layers_scale_with_the_depth() {
        assert_eq!(scale_layers(&[7, 9, 12], 32, 28), [6, 8, 10]);
        assert_eq!(scale_layers(&[7, 9, 12], 32, 40), [9, 11, 15]);
        assert_eq!(scale_layers(&[8, 16, 24], 32, 32), [8, 16, 24]);
        assert_eq!(scale_layers(&[7, 9, 12], 32, 6), [1, 2, 3]);
    }
}
