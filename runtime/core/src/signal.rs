//! What a pruner may read, and how it asks.
//!
//! A pruner names its signals when the chain is planned; the union goes down to the kernels, which
//! compute those rows and no others. Everything is f32 and the mean over attention heads; softmax
//! runs over all keys, and columns are taken afterwards without renormalising.
//!
//! Invariants
//! - Encoder signals are given per crop, in the tower's patch order, CLS removed from columns.
//! - Decoder signals come aligned to the visual tokens that are there at the cut.
//! - No `[n, n]` map of the decoder exists.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ndarray::{Array1, Array2, ArrayView2};

use crate::ops::Transition;

/// Which query rows of a decoder layer are averaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rows {
    /// The last prompt token.
    Last,
    /// Text after the last visual token; the last prompt token if there is none.
    Instruction,
    /// As `Instruction` without its first and its last row; `Last` if fewer than three rows.
    InnerInstruction,
    /// Every prompt token.
    All,
}

/// One thing to read. Layers are 0-based.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// Attention of the CLS query in encoder layer `layer`: `[patches]` a crop.
    ClsAttention {
        /// Encoder layer.
        layer: usize,
    },
    /// Attention received: mean over all queries of encoder layer `layer`: `[patches]` a crop.
    ColumnMean {
        /// Encoder layer.
        layer: usize,
    },
    /// Attention of the pooling head's learnt probe over the last hidden state (SigLIP):
    /// `[patches]` a crop.
    PoolingAttention,
    /// The encoder's attention map, mean over heads, CLS rows and columns dropped:
    /// `[patches, patches]` a crop.
    EncoderMap {
        /// Encoder layer.
        layer: usize,
    },
    /// Keys of encoder layer `layer`, mean over heads, with bias, unscaled and unrotated:
    /// `[1 + patches, head_dim]` a crop, CLS first where there is one.
    EncoderKeys {
        /// Encoder layer.
        layer: usize,
    },
    /// Hidden states of the selected feature layer: `[1 + patches, width]` a crop, CLS first where
    /// there is one.
    EncoderFeatures,
    /// Projected visual tokens: `[visual tokens, hidden]`.
    Embeddings,
    /// Mean of the embedded instruction rows (text after the last visual token): `[hidden]`.
    InstructionEmbedding,
    /// The processed picture before normalisation: RGB bytes of each crop.
    Pixels,
    /// Post-softmax attention of decoder layer `layer`, which ran before the cut:
    /// `[visual tokens]`.
    Attention {
        /// Decoder layer.
        layer: usize,
        /// Query rows that are averaged.
        rows: Rows,
    },
    /// The same of the layer about to run, computed from its input: `[visual tokens]`.
    Probe {
        /// Decoder layer: the site's own.
        layer: usize,
        /// Query rows that are averaged.
        rows: Rows,
    },
    /// Reductions of the inputs and outputs of both modules of decoder layer `layer`, every token.
    Transitions {
        /// Decoder layer.
        layer: usize,
    },
    /// Hidden states of the visual tokens after decoder layer `layer`: `[visual tokens, hidden]`.
    Hidden {
        /// Decoder layer.
        layer: usize,
    },
    /// After decoding: attention of the rows that produced the generated tokens, their mean:
    /// `[original visual tokens]`, 0 where a token was pruned.
    GeneratedRows {
        /// Decoder layer.
        layer: usize,
    },
}

impl Signal {
    /// The encoder layer it is read from, if it is.
    pub fn encoder_layer(&self) -> Option<usize> {
        match *self {
            Signal::ClsAttention { layer }
            | Signal::ColumnMean { layer }
            | Signal::EncoderMap { layer }
            | Signal::EncoderKeys { layer } => Some(layer),
            _ => None,
        }
    }

    /// Whether the vision tower gives it.
    pub fn is_of_tower(&self) -> bool {
        match self {
            Signal::ClsAttention { .. }
            | Signal::ColumnMean { .. }
            | Signal::PoolingAttention
            | Signal::EncoderMap { .. }
            | Signal::EncoderKeys { .. }
            | Signal::EncoderFeatures => true,
            Signal::Embeddings
            | Signal::InstructionEmbedding
            | Signal::Pixels
            | Signal::Attention { .. }
            | Signal::Probe { .. }
            | Signal::Transitions { .. }
            | Signal::Hidden { .. }
            | Signal::GeneratedRows { .. } => false,
        }
    }

    /// Whether its values depend on the text of the prompt: what a cut then keeps is another choice
    /// for another question, so nothing behind it may be taken from one prompt to the next.
    pub fn depends_on_text(&self) -> bool {
        match self {
            // Text may stand before the visual tokens, whose hidden states see it.
            Signal::InstructionEmbedding
            | Signal::Attention { .. }
            | Signal::Probe { .. }
            | Signal::Transitions { .. }
            | Signal::Hidden { .. }
            | Signal::GeneratedRows { .. } => true,
            Signal::Embeddings | Signal::Pixels => false,
            of_tower => !of_tower.is_of_tower(),
        }
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rows::Last => "last",
            Rows::Instruction => "instruction",
            Rows::InnerInstruction => "inner instruction",
            Rows::All => "all",
        })
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Signal::ClsAttention { layer } => write!(f, "encoder.cls_attention[{layer}]"),
            Signal::ColumnMean { layer } => write!(f, "encoder.column_mean[{layer}]"),
            Signal::PoolingAttention => f.write_str("encoder.pooling_attention"),
            Signal::EncoderMap { layer } => write!(f, "encoder.map[{layer}]"),
            Signal::EncoderKeys { layer } => write!(f, "encoder.keys[{layer}]"),
            Signal::EncoderFeatures => f.write_str("encoder.features"),
            Signal::Embeddings => f.write_str("embeddings"),
            Signal::InstructionEmbedding => f.write_str("instruction_embedding"),
            Signal::Pixels => f.write_str("pixels"),
            Signal::Attention { layer, rows } => {
                write!(f, "decoder.attention[{layer}; {rows} rows]")
            }
            Signal::Probe { layer, rows } => write!(f, "decoder.probe[{layer}; {rows} rows]"),
            Signal::Transitions { layer } => write!(f, "decoder.transitions[{layer}]"),
            Signal::Hidden { layer } => write!(f, "decoder.hidden[{layer}]"),
            Signal::GeneratedRows { layer } => write!(f, "decoder.generated_rows[{layer}]"),
        }
    }
}

/// RGB bytes of a processed crop, before normalisation.
#[derive(Clone, Debug, Default)]
pub struct CropPixels {
    /// Width, pixels.
    pub width: usize,
    /// Height, pixels.
    pub height: usize,
    /// Side of a patch, pixels.
    pub patch: usize,
    /// `[height, width, 3]`
    pub rgb: std::sync::Arc<[u8]>,
}

/// What an encoder returned beside its features, crop by crop.
#[derive(Clone, Debug, Default)]
pub struct CropSignals {
    /// Vectors `[patches]`: CLS attention, column means, pooling attention.
    pub vectors: BTreeMap<Signal, Array1<f32>>,
    /// Matrices: maps, keys, features.
    pub matrices: BTreeMap<Signal, Array2<f32>>,
    /// The processed pixels.
    pub pixels: CropPixels,
}

impl CropSignals {
    /// Those that are asked for.
    pub(crate) fn only(&self, asked: &BTreeSet<Signal>) -> Self {
        fn copied<T: Clone>(
            from: &BTreeMap<Signal, T>,
            asked: &BTreeSet<Signal>,
        ) -> BTreeMap<Signal, T> {
            let kept = from.iter().filter(|(signal, _)| asked.contains(signal));
            kept.map(|(signal, values)| (*signal, values.clone())).collect()
        }
        Self {
            vectors: copied(&self.vectors, asked),
            matrices: copied(&self.matrices, asked),
            pixels: CropPixels::default(),
        }
    }
}

/// Which patches make a visual token, for carrying patch scores to tokens: crop, patch of that crop
/// and weight. Weights sum to 1; a structural token has no patch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PatchSource {
    /// `(crop, patch, weight)`; a token that was pooled across a tile's edge names two crops.
    pub patches: Vec<(u32, u32, f32)>,
}

impl PatchSource {
    /// The token's share of patch scores, `[patches]` a crop: the weighted sum over its patches.
    ///
    /// # Errors
    /// Crop and patch that have no score.
    pub fn score(&self, scores: &[Vec<f32>]) -> Result<f32, (u32, u32)> {
        let value = |crop: u32, patch: u32| {
            let score = scores.get(crop as usize).and_then(|c| c.get(patch as usize));
            score.copied().ok_or((crop, patch))
        };
        match self.patches.as_slice() {
            [(crop, patch, weight)] if *weight == 1.0 => value(*crop, *patch),
            patches => patches.iter().map(|&(c, p, w)| Ok(value(c, p)? * w)).sum(),
        }
    }
}

/// In which order a tower numbers the patches of a crop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchOrder {
    /// Row by row.
    Raster,
    /// Square by square of that many patches a side, row by row within each (merging towers).
    Squares(usize),
}

impl PatchOrder {
    /// What the token sources show: a token made of four or more patches in direct succession
    /// (which no rectangle of a raster is) comes from a tower that numbers square by square.
    pub fn of(sources: &[PatchSource]) -> Self {
        let is_run = |s: &&PatchSource| {
            s.patches.len() >= 4 && s.patches.windows(2).all(|w| w[1].1 == w[0].1 + 1)
        };
        match sources.iter().find(is_run) {
            Some(source) => PatchOrder::Squares(source.patches.len().isqrt()),
            None => PatchOrder::Raster,
        }
    }

    /// Row and column of a patch in a crop that is `cols` patches wide.
    pub fn place(self, patch: usize, cols: usize) -> (usize, usize) {
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

/// Transitions of one decoder layer: `[tokens alive in that layer]` each.
#[derive(Clone, Debug, Default)]
pub struct LayerTransitions {
    /// Of the attention module.
    pub attention: Vec<Transition>,
    /// Of the MLP.
    pub mlp: Vec<Transition>,
    /// Sequence index (before any cut inside the decoder) of each entry, ascending.
    pub tokens: Vec<u32>,
}

/// The signals of one request at one cut.
///
/// A method gives `None` where the signal was not declared in the plan.
#[derive(Debug, Default)]
pub struct Signals {
    /// Per crop, in the order of the tower.
    pub crops: Vec<CropSignals>,
    /// Per visual token of the *dense* request: the patches it is made of.
    pub sources: Vec<PatchSource>,
    /// `[visual tokens, hidden]`, the tokens that are there.
    pub embeddings: Option<Array2<f32>>,
    /// `[hidden]`
    pub instruction: Option<Array1<f32>>,
    /// `[visual tokens]` vectors of the decoder, aligned to the tokens that are there.
    pub vectors: BTreeMap<Signal, Vec<f32>>,
    /// `[visual tokens, hidden]`
    pub hidden: BTreeMap<Signal, Array2<f32>>,
    /// Transitions by decoder layer.
    pub transitions: BTreeMap<usize, LayerTransitions>,
    /// Sequence index of each visual token that is there, for [`LayerTransitions::tokens`].
    pub visual_rows: Vec<u32>,
}

impl Signals {
    /// A decoder vector, `[visual tokens]`.
    pub fn vector(&self, signal: &Signal) -> Option<&[f32]> {
        self.vectors.get(signal).map(Vec::as_slice)
    }

    /// An encoder vector of one crop, `[patches]`.
    pub fn crop_vector(&self, crop: usize, signal: &Signal) -> Option<&Array1<f32>> {
        self.crops.get(crop)?.vectors.get(signal)
    }

    /// An encoder matrix of one crop.
    pub fn crop_matrix(&self, crop: usize, signal: &Signal) -> Option<ArrayView2<'_, f32>> {
        Some(self.crops.get(crop)?.matrices.get(signal)?.view())
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

    #[test]
    fn what_the_tower_gives_does_not_depend_on_the_text() {
        let tower = [Signal::ClsAttention { layer: 1 }, Signal::EncoderFeatures];
        assert!(tower.iter().all(|s| s.is_of_tower() && !s.depends_on_text()));
        let text = [
            Signal::InstructionEmbedding,
            Signal::Attention { layer: 1, rows: Rows::Instruction },
            Signal::Hidden { layer: 1 },
        ];
        assert!(text.iter().all(|s| !s.is_of_tower() && s.depends_on_text()));
        assert!(!Signal::Embeddings.depends_on_text() && !Signal::Embeddings.is_of_tower());
    }
}
