//! Signals as pruners want them: checked, and carried to the tokens that are there.

use ndarray::ArrayView2;
use secateur_core::error::RunError;
use secateur_core::prune::{Cut, check_finite};
use secateur_core::signal::{PatchSource, Signal};

/// An error of a pruner about its cut.
pub(crate) fn refuse(pruner: &str, cut: &Cut<'_>, reason: impl Into<String>) -> RunError {
    RunError::Selection {
        pruner: pruner.to_owned(),
        site: cut.site.to_string(),
        reason: reason.into(),
    }
}

fn undeclared(pruner: &str, cut: &Cut<'_>, signal: &Signal) -> RunError {
    refuse(pruner, cut, format!("signal `{signal}` was read but not declared in the plan"))
}

/// Projected tokens, `[visual tokens, hidden]`.
///
/// # Errors
/// Not declared, not finite, or of another number of rows than there are tokens.
pub(crate) fn embeddings<'a>(pruner: &str, cut: &Cut<'a>) -> Result<ArrayView2<'a, f32>, RunError> {
    let signal = Signal::Embeddings;
    let rows = cut.signals.embeddings.as_ref().ok_or_else(|| undeclared(pruner, cut, &signal))?;
    check_finite(&signal, rows)?;
    if rows.nrows() != cut.tokens.len() {
        let reason = format!("{} embeddings for {} tokens", rows.nrows(), cut.tokens.len());
        return Err(refuse(pruner, cut, reason));
    }
    Ok(rows.view())
}

/// Mean of the embedded instruction, `[hidden]`.
///
/// # Errors
/// Not declared or not finite.
pub(crate) fn instruction<'a>(pruner: &str, cut: &Cut<'a>) -> Result<&'a [f32], RunError> {
    let signal = Signal::InstructionEmbedding;
    let values = cut.signals.instruction.as_ref().and_then(|v| v.as_slice());
    let values = values.ok_or_else(|| undeclared(pruner, cut, &signal))?;
    check_finite(&signal, values)?;
    Ok(values)
}

/// An encoder matrix of every crop.
///
/// # Errors
/// Not declared or not finite.
pub(crate) fn crop_matrices<'a>(
    pruner: &str,
    cut: &Cut<'a>,
    signal: Signal,
) -> Result<Vec<ArrayView2<'a, f32>>, RunError> {
    (0..cut.signals.crops.len())
        .map(|crop| {
            let matrix = cut
                .signals
                .crop_matrix(crop, &signal)
                .ok_or_else(|| undeclared(pruner, cut, &signal))?;
            check_finite(&signal, matrix.iter())?;
            Ok(matrix)
        })
        .collect()
}

/// Of which patches a current token is made; `None` where it has none (structural, class and
/// merged tokens).
pub(crate) fn source<'a>(cut: &Cut<'a>, token: u32) -> Option<&'a PatchSource> {
    let index = cut.tokens.tokens[token as usize].index as usize;
    cut.signals.sources.get(index).filter(|s| !s.patches.is_empty())
}

/// Crop that a current token comes from; that of its grid where it has no patches.
pub(crate) fn crop_of(cut: &Cut<'_>, token: u32) -> u32 {
    source(cut, token).map_or(cut.tokens.tokens[token as usize].grid, |s| s.patches[0].0)
}

/// Carries patch scores (`[patches]` a crop) to the current tokens, one each; tokens without
/// patches get `other`.
///
/// # Errors
/// If a token is made of patches that have no score.
pub(crate) fn token_scores(
    pruner: &str,
    cut: &Cut<'_>,
    scores: &[Vec<f32>],
    other: f32,
) -> Result<Vec<f32>, RunError> {
    (0..cut.tokens.len() as u32)
        .map(|i| {
            let Some(source) = source(cut, i) else { return Ok(other) };
            let value = |crop: u32, patch: u32| {
                let score = scores.get(crop as usize).and_then(|c| c.get(patch as usize));
                score.copied().ok_or_else(|| {
                    let reason = format!(
                        "token {i} is made of patch {patch} of crop {crop}, which has no score"
                    );
                    refuse(pruner, cut, reason)
                })
            };
            match source.patches.as_slice() {
                [(crop, patch, weight)] if *weight == 1.0 => value(*crop, *patch),
                patches => patches.iter().map(|&(c, p, w)| Ok(value(c, p)? * w)).sum(),
            }
        })
        .collect()
}

/// In which order a tower numbers the patches of a crop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PatchOrder {
    /// Row by row.
    Raster,
    /// Square by square of that many patches a side, row by row within each (merging towers).
    Squares(usize),
}

impl PatchOrder {
    /// What the token sources show: a token made of four or more patches in direct succession
    /// (which no rectangle of a raster is) comes from a tower that numbers square by square.
    pub(crate) fn of(sources: &[PatchSource]) -> Self {
        let is_run = |s: &&PatchSource| {
            s.patches.len() >= 4 && s.patches.windows(2).all(|w| w[1].1 == w[0].1 + 1)
        };
        match sources.iter().find(is_run) {
            Some(source) => PatchOrder::Squares(source.patches.len().isqrt()),
            None => PatchOrder::Raster,
        }
    }

    /// Row and column of a patch in a crop that is `cols` patches wide.
    pub(crate) fn place(self, patch: usize, cols: usize) -> (usize, usize) {
        match self {
            PatchOrder::Raster => (patch / cols.max(1), patch % cols.max(1)),
            PatchOrder::Squares(side) => {
                let (square, within) = (patch / (side * side), patch % (side * side));
                let across = (cols / side).max(1);
                let (row, col) = (square / across, square % across);
                (row * side + within / side, col * side + within % side)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_patches_are_found_where_they_lie() {
        let source = |patches: &[u32]| PatchSource {
            patches: patches.iter().map(|&p| (0, p, 0.25)).collect(),
        };
        let squares = PatchOrder::of(&[source(&[0, 1, 2, 3]), source(&[4, 5, 6, 7])]);
        assert_eq!(squares, PatchOrder::Squares(2));
        assert_eq!(squares.place(5, 4), (0, 3));
        assert_eq!(squares.place(10, 4), (3, 0));
        let raster = PatchOrder::of(&[source(&[0, 1, 4, 5])]);
        assert_eq!(raster, PatchOrder::Raster);
        assert_eq!(raster.place(5, 4), (1, 1));
    }
}
