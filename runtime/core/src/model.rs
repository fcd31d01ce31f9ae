//! The parts a model family supplies, and what it says about itself.
//!
//! The runtime owns the loop; a family gives a [`Processor`] (pictures to pixels), an [`Encoder`]
//! (pixels to rows of a vision tower), a [`Family`] (layout, prompt, projection, positions) and a
//! [`Decoder`] (layers). Windowed encoders, M-RoPE, anyres newlines, deepstack rows, video frames
//! and merged tokens are all expressed in these terms:
//!
//! - a tower says per crop which rows it made ([`Encoded`]); windows and permutations stay inside;
//! - a family says of which tower rows each visual token is made ([`TokenSource`]): one row,
//!   several rows side by side (merging, pixel shuffle), a weighted sum of projected rows
//!   (pooling), or a learnt structural vector;
//! - positions have three axes; one-axis models repeat the first;
//! - rows that deeper decoder layers add (deepstack) are [`VisualRows::levels`], cut with the
//!   tokens.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Instant;

use crate::cache::{LayerCache, Position};
use crate::clip::{Clip, Grid};
use crate::error::{InputError, RunError};
use crate::ops::{Frequencies, Mask, Rotation, ScoreRequest};
use crate::signal::{CropPixels, CropSignals, Signal};
use crate::tensor::Tensor;
use crate::tokens::TokenMap;
use crate::visibility::{LayerKind, Visibility};

/// What is known of a model without running it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct ModelInfo {
    /// Name for reports: folder or hub id.
    pub name: String,
    /// `model_type` of the configuration.
    pub family: String,
    /// The vision tower.
    pub encoder: EncoderInfo,
    /// The decoder.
    pub decoder: DecoderInfo,
    /// Whether every visual token is exactly one tower row, so that [`crate::prune::Site::Encoder`]
    /// can merge and cut before the projector. The family says so, whatever tower is in place.
    pub one_to_one: bool,
    /// Visual tokens of a square picture of the model's own size (other sizes may differ).
    pub visual_tokens: usize,
}

/// What is known of a vision tower.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct EncoderInfo {
    /// Kind of tower, for instance `clip_vision_model`.
    pub tower: String,
    /// Layers that are run (0-based layers `0..layers`); the last one gives the features.
    pub layers: usize,
    /// Layers in the file, dead ones included: papers count from there.
    pub file_layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of a row.
    pub width: usize,
    /// Whether row 0 of each crop is a class token.
    pub cls: bool,
    /// Layers whose attention spans the whole crop; windowed towers list only those.
    pub full_attention_layers: Vec<usize>,
    /// Signals that are not offered (an ONNX tower without that output).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub withheld: Vec<Withheld>,
}

/// A kind of signal that a tower does not offer, or not of every layer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Withheld {
    /// Which.
    pub kind: SignalKind,
    /// Layers of which it is offered all the same.
    pub except: Vec<usize>,
    /// Why, and what to do; `{layers}` stands for the tower layers that a refused chain reads.
    pub reason: String,
}

impl Withheld {
    /// A kind that is offered of no layer.
    pub fn all(kind: SignalKind, reason: impl Into<String>) -> Self {
        Self { kind, except: Vec::new(), reason: reason.into() }
    }
}

/// Signals without their layer: what an encoder may offer or withhold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SignalKind {
    /// [`Signal::ClsAttention`]
    ClsAttention,
    /// [`Signal::ColumnMean`]
    ColumnMean,
    /// [`Signal::PoolingAttention`]
    PoolingAttention,
    /// [`Signal::EncoderMap`]
    EncoderMap,
    /// [`Signal::EncoderKeys`]
    EncoderKeys,
    /// [`Signal::EncoderFeatures`]
    EncoderFeatures,
}

/// What is known of a decoder.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct DecoderInfo {
    /// Kind of decoder, for instance `llama`.
    pub kind: String,
    /// Number of layers.
    pub layers: usize,
    /// Width of a hidden state.
    pub hidden: usize,
    /// Query heads.
    pub attn_heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// Positions that the model was made for.
    pub context: usize,
    /// Whether positions have three axes (M-RoPE).
    pub mrope: bool,
    /// Whether the whole prompt sees itself (prefix-LM): what `explain` and forecasts count with.
    pub prefix_lm: bool,
}

impl ModelInfo {
    /// Whether the model offers a signal; `Err` says why not and which fallback there is.
    ///
    /// # Errors
    /// The reason, for [`crate::error::ChainError::MissingSignal`].
    pub fn offers(&self, signal: &Signal) -> Result<(), String> {
        self.offers_to(signal, &signal.encoder_layer().into_iter().collect())
    }

    /// As [`ModelInfo::offers`], to a chain that reads `layers` of the tower.
    ///
    /// # Errors
    /// The reason, which may name the layers.
    pub fn offers_to(&self, signal: &Signal, layers: &BTreeSet<usize>) -> Result<(), String> {
        let kind = match signal {
            Signal::ClsAttention { layer } if !self.encoder.cls => {
                let ways = [
                    (
                        Signal::ColumnMean { layer: *layer },
                        "; `fallback = \"column_mean\"` reads the attention received instead",
                    ),
                    (
                        Signal::PoolingAttention,
                        "; `fallback = \"pooling_head\"` reads that of SigLIP's pooling head",
                    ),
                ];
                let offered = ways.iter().filter(|(signal, _)| self.offers(signal).is_ok());
                let ways: String = offered.map(|(_, way)| *way).collect();
                return Err(format!("the vision tower has no class token{ways}"));
            }
            Signal::ClsAttention { .. } => SignalKind::ClsAttention,
            Signal::ColumnMean { .. } => SignalKind::ColumnMean,
            Signal::PoolingAttention => SignalKind::PoolingAttention,
            Signal::EncoderMap { .. } => SignalKind::EncoderMap,
            Signal::EncoderKeys { .. } => SignalKind::EncoderKeys,
            Signal::EncoderFeatures => SignalKind::EncoderFeatures,
            _ => return Ok(()),
        };
        let given = |w: &Withheld| signal.encoder_layer().is_some_and(|l| w.except.contains(&l));
        if let Some(withheld) = self.encoder.withheld.iter().find(|w| w.kind == kind && !given(w)) {
            let layers: Vec<String> = layers.iter().map(ToString::to_string).collect();
            return Err(withheld.reason.replace("{layers}", &layers.join(" ")));
        }
        if let Some(layer) = signal.encoder_layer()
            && !self.encoder.full_attention_layers.contains(&layer)
        {
            return Err(format!(
                "encoder layer {layer} attends within windows; full attention is in layers {:?}",
                self.encoder.full_attention_layers
            ));
        }
        Ok(())
    }
}

/// Looked at between layers and between tokens.
#[derive(Clone, Debug, Default)]
pub struct Control {
    /// Set by another thread to stop the run.
    pub cancel: Option<CancelToken>,
    /// The run stops when this has passed.
    pub deadline: Option<Instant>,
}

/// A flag shared between the one who runs and the one who may stop it.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(std::sync::Arc<std::sync::atomic::AtomicBool>);

impl CancelToken {
    /// Asks the run to stop at the next layer or token.
    pub fn cancel(&self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Whether it was asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl From<std::sync::Arc<std::sync::atomic::AtomicBool>> for CancelToken {
    /// The token of a flag that something else sets, such as the handler of a signal.
    fn from(flag: std::sync::Arc<std::sync::atomic::AtomicBool>) -> Self {
        Self(flag)
    }
}

impl Control {
    /// # Errors
    /// [`RunError::Cancelled`] if the run is to stop.
    pub fn check(&self) -> Result<(), RunError> {
        if self.cancel.as_ref().is_some_and(CancelToken::is_cancelled) {
            return Err(RunError::Cancelled("asked to stop"));
        }
        if self.deadline.is_some_and(|d| Instant::now() >= d) {
            return Err(RunError::Cancelled("deadline passed"));
        }
        Ok(())
    }
}

/// Whose resampling makes the pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageBackend {
    /// torchvision's fixed-point arithmetic: the default of transformers.
    #[default]
    Torchvision,
    /// Pillow's.
    Pillow,
}

/// How a picture of another shape is made to fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageAspect {
    /// As the model's files say.
    #[default]
    Model,
    /// Pad to a square with the mean colour first.
    Pad,
    /// Shorter side to size, then crop the centre.
    Crop,
}

/// Settings of a processor that a user may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct ProcessorOptions {
    /// Resampling.
    pub backend: ImageBackend,
    /// Shape.
    pub aspect: ImageAspect,
    /// Most pixels a picture may keep after resizing, for families that scale by area.
    pub max_pixels: Option<usize>,
    /// Fewest pixels a picture is scaled to, for families that scale by area.
    pub min_pixels: Option<usize>,
    /// Pictures in the request, set by the runtime; 0 counts as 1. LLaVA-OneVision tiles a lone
    /// picture only.
    pub pictures: usize,
}

/// Name in [`Pixels::outputs`] of the length of a video's source, whole seconds, for families whose
/// prompt says it.
pub const DURATION: &str = "video_duration_s";

/// A picture or video as a vision tower wants it.
#[derive(Clone, Debug)]
pub struct Pixels {
    /// Normalised values, in the processor's own shape.
    pub values: Vec<f32>,
    /// Dimensions of `values`; the first counts crops, or patches for patch-row processors.
    pub shape: Vec<usize>,
    /// One entry a crop, tile or frame group, in the order of `values`: the patch grid and where
    /// it lies in the source.
    pub crops: Vec<Grid>,
    /// One entry a crop: the bytes before normalisation.
    pub rgb: Vec<CropPixels>,
    /// `(time, height, width)` in patches, for patch-row processors.
    pub grid_thw: Option<[usize; 3]>,
    /// Width and height of the source, pixels.
    pub source: [u32; 2],
    /// Whether the clip is a video.
    pub video: bool,
    /// Seconds between the temporal patches, and the time of each, for families that say it.
    pub times_s: Vec<f64>,
    /// Frames a second of the frames given.
    pub fps: Option<f64>,
    /// Other outputs of the reference processor, by their names there, for traces.
    pub outputs: Vec<(String, Vec<i64>, Vec<usize>)>,
}

/// Pictures to pixels.
pub trait Processor: Send + Sync + fmt::Debug {
    /// Resizes, crops, tiles, normalises.
    ///
    /// # Errors
    /// If the model cannot take such a picture.
    fn process(&self, clip: &Clip, options: &ProcessorOptions) -> Result<Pixels, InputError>;

    /// The crops (patch grids) that [`Processor::process`] would make of a picture of that size,
    /// without any pixel: for counting tokens.
    ///
    /// # Errors
    /// As [`Processor::process`].
    fn crops(
        &self,
        width: u32,
        height: u32,
        options: &ProcessorOptions,
    ) -> Result<Vec<Grid>, InputError>;
}

/// Which tower a family wants: written by the family, read by the encoders, so that the two need
/// not know each other.
#[derive(Clone, Debug)]
pub struct TowerSpec {
    /// File that `config` stands in, for errors.
    pub file: String,
    /// `model_type` of the tower, for instance `clip_vision_model`.
    pub kind: String,
    /// The `vision_config` object as it stands in the file.
    pub config: serde_json::Value,
    /// Feature layers as transformers counts hidden states (`-2`: before the last layer ran;
    /// several are concatenated over the width).
    pub feature_layers: Vec<i64>,
    /// Whether the features pass the tower's final norm (`last_hidden_state`).
    pub final_norm: bool,
}

/// Rows of a vision tower.
#[derive(Debug)]
pub struct Encoded {
    /// All crops below one another: for each its class row, if the tower has one, then its
    /// patches. `[rows, width]`
    pub hidden: Tensor,
    /// First row and number of rows of each crop.
    pub crops: Vec<(usize, usize)>,
    /// Rows of earlier tower layers for deepstack, in the layout of `hidden`.
    pub levels: Vec<Tensor>,
    /// What was asked for, crop by crop.
    pub signals: Vec<CropSignals>,
    /// Named integer tensors for traces (window index and the like).
    pub outputs: Vec<(String, Vec<i64>, Vec<usize>)>,
}

/// A vision tower.
pub trait Encoder: Send + Sync + fmt::Debug {
    /// What it is and offers.
    fn info(&self) -> &EncoderInfo;

    /// Runs the tower over the crops of several clips. `signals` are those of the tower that are
    /// read. Rows and signals of a clip must not depend on the clips beside it (f32 bits): they are
    /// kept, and put together with those of other clips.
    ///
    /// # Errors
    /// Cancelled, or pixels that are not this tower's.
    fn encode(
        &self,
        pixels: &[&Pixels],
        signals: &[Signal],
        control: &Control,
    ) -> Result<Encoded, RunError>;
}

/// Of which tower rows a visual token is made.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenSource {
    /// Tower rows side by side, then projected: one row for plain projectors, 4 or 9 or 16 for
    /// mergers and pixel shuffles.
    Rows(Vec<u32>),
    /// Weighted sum of *projected* rows (bilinear pooling).
    Sum(Vec<(u32, f32)>),
    /// The family's learnt structural vector.
    Structural,
}

/// The visual tokens of a request, before any weight is looked at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VisualLayout {
    /// The tokens.
    pub map: TokenMap,
    /// One entry a token; rows count over all crops, class rows included.
    pub sources: Vec<TokenSource>,
}

/// What stands for a clip in the text of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placeholder {
    /// As it is written.
    pub text: String,
    /// Whether it stands for a video.
    pub video: bool,
}

/// What a row of a prompt, or of a chunk behind it, is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// A token of the text: its id.
    Text(u32),
    /// A visual token: its place among those of the request.
    Visual(u32),
    /// A row that the caller gives in the decoder's space, such as a robot's state, an action query
    /// or the noise of a flow: which of them. No stage cuts it.
    Given(u32),
}

impl Slot {
    /// The id of a token of the text.
    pub fn text(&self) -> Option<u32> {
        match *self {
            Slot::Text(id) => Some(id),
            Slot::Visual(_) | Slot::Given(_) => None,
        }
    }

    /// The place of a visual token.
    pub fn visual(&self) -> Option<u32> {
        match *self {
            Slot::Visual(token) => Some(token),
            Slot::Text(_) | Slot::Given(_) => None,
        }
    }

    /// Which of the given rows it is.
    pub fn given(&self) -> Option<u32> {
        match *self {
            Slot::Given(row) => Some(row),
            Slot::Text(_) | Slot::Visual(_) => None,
        }
    }
}

/// A prompt whose placeholders are expanded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prompt {
    /// Token ids as the tokenizer gave them, placeholders included: what traces show and a repetition
    /// penalty looks at.
    pub ids: Vec<u32>,
    /// Its rows; those of visual tokens ascend.
    pub slots: Vec<Slot>,
}

impl Prompt {
    /// Row of each visual token.
    pub fn visual_rows(&self) -> Vec<u32> {
        let rows = (0u32..).zip(&self.slots);
        rows.filter(|(_, slot)| slot.visual().is_some()).map(|(row, _)| row).collect()
    }

    /// The first row behind the last visual token; 0 if there is none.
    pub fn behind_visual(&self) -> usize {
        self.slots.iter().rposition(|slot| slot.visual().is_some()).map_or(0, |row| row + 1)
    }
}

/// Position ids of a prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Positions {
    /// One entry a row of the prompt.
    pub prompt: Vec<Position>,
    /// Position of the first generated token on all axes.
    pub next: i32,
}

/// Visual tokens in the decoder's space.
#[derive(Debug)]
pub struct VisualRows {
    /// `[visual tokens, hidden]`
    pub rows: Tensor,
    /// `levels[j]: [visual tokens, hidden]` is added to the visual rows after decoder layer `j`.
    pub levels: Vec<Tensor>,
}

/// What ties tower, prompt and decoder of a family together.
pub trait Family: Send + Sync + fmt::Debug {
    /// What the model is and offers.
    fn info(&self) -> &ModelInfo;

    /// The visual tokens of the clips of one request, in prompt order.
    ///
    /// # Errors
    /// If the clips cannot stand in one request.
    fn layout(&self, pixels: &[&Pixels]) -> Result<VisualLayout, RunError>;

    /// The placeholders of a prompt, left to right.
    ///
    /// # Errors
    /// If the tokenizer lacks the family's placeholder.
    fn placeholders(&self, prompt: &str) -> Result<Vec<Placeholder>, RunError>;

    /// Tokenises a prompt whose placeholders stand for the clips, expanding each.
    ///
    /// # Errors
    /// If the number of placeholders differs from the number of clips.
    fn expand(
        &self,
        prompt: &str,
        pixels: &[&Pixels],
        layout: &VisualLayout,
    ) -> Result<Prompt, RunError>;

    /// Position ids of an expanded prompt.
    ///
    /// # Errors
    /// If placeholders and clips do not match.
    fn positions(&self, prompt: &Prompt, pixels: &[&Pixels]) -> Result<Positions, RunError>;

    /// Which rows of an expanded prompt see one another, in each kind of layer: causal unless a
    /// family says otherwise.
    fn visibility(&self, _prompt: &Prompt) -> Visibility {
        Visibility::default()
    }

    /// Projects tower rows, one visual token a row: only for families whose
    /// [`ModelInfo::one_to_one`] is true. `[k, width] -> [k, hidden]`
    ///
    /// # Errors
    /// If the family is not one-to-one.
    fn project_rows(&self, rows: &Tensor) -> Result<Tensor, RunError>;

    /// All visual tokens of a layout from the tower's rows.
    ///
    /// # Errors
    /// If layout and rows do not match.
    fn project(&self, encoded: &Encoded, layout: &VisualLayout) -> Result<VisualRows, RunError>;

    /// The decoder.
    fn decoder(&self) -> &dyn Decoder;
}

/// The rows of one sequence in a pass over one layer.
#[derive(Debug)]
pub struct LayerSequence<'a> {
    /// Its rows of `x`.
    pub rows: std::ops::Range<usize>,
    /// Its cache in this layer; the layer appends keys and values (and the runtime positions).
    pub cache: &'a mut LayerCache,
    /// Which keys its rows see: those of its blocks in this kind of layer, and what is before.
    pub mask: Mask<'a>,
    /// Attention rows to report.
    pub scores: &'a [ScoreRequest],
    /// What they were, one tensor a request (filled by the layer).
    pub score_out: Vec<Tensor>,
    /// Unrotated keys of these rows from [`Decoder::probe`], so that they are projected once.
    pub keys: Option<Tensor>,
}

/// One pass of all sequences through one layer.
#[derive(Debug)]
pub struct LayerPass<'a> {
    /// Position ids of every row of `x`.
    pub positions: &'a [Position],
    /// Rotations of those positions, one an entry of [`Decoder::frequencies`].
    pub rotations: &'a [Rotation],
    /// The sequences, in the order of their rows.
    pub sequences: Vec<LayerSequence<'a>>,
    /// Whether transitions are asked for.
    pub wants_transitions: bool,
    /// [`crate::ops::Transition`]s of attention and MLP, `[rows, 3]` each (filled by the layer if
    /// asked).
    pub transitions: Option<[Tensor; 2]>,
}

/// Attention rows of a layer that has not run.
#[derive(Debug)]
pub struct Probe {
    /// Mean over heads and over the asked rows: `[1, rows of the sequence]`.
    pub scores: Tensor,
    /// Unrotated keys of the sequence, `[rows, kv_heads * head_dim]`.
    pub keys: Tensor,
}

/// The layers of a decoder. Hidden states are `[rows, hidden]`.
pub trait Decoder: Send + Sync + fmt::Debug {
    /// What it is.
    fn info(&self) -> &DecoderInfo;

    /// Which kind of attention layer `layer` is.
    fn kind(&self, _layer: usize) -> LayerKind {
        LayerKind::Full
    }

    /// Frequencies of its kinds of layers; the loop makes a rotation of each when positions change.
    fn frequencies(&self) -> &[Frequencies];

    /// Embeds token ids (with the family's scaling).
    ///
    /// # Errors
    /// An id outside the vocabulary.
    fn embed(&self, ids: &[u32]) -> Result<Tensor, RunError>;

    /// Runs layer `layer` in place.
    ///
    /// # Errors
    /// The device's.
    fn layer(&self, layer: usize, x: &mut Tensor, pass: &mut LayerPass<'_>)
    -> Result<(), RunError>;

    /// Attention rows that layer `layer` would show for the sequence in `x` (its rows alone),
    /// mean over heads and over `queries` (rows of `x`). `rotations` are those of its rows, `mask`
    /// says what they see of one another.
    ///
    /// # Errors
    /// The device's.
    fn probe(
        &self,
        layer: usize,
        x: &Tensor,
        positions: &[Position],
        rotations: &[Rotation],
        mask: Mask<'_>,
        queries: &[u32],
    ) -> Result<Probe, RunError>;

    /// Final norm of rows: the vectors that feed the head.
    ///
    /// # Errors
    /// The device's.
    fn final_hidden(&self, x: &Tensor) -> Result<Tensor, RunError>;

    /// Logits `[rows, vocab]` of rows that passed [`Decoder::final_hidden`].
    ///
    /// # Errors
    /// The device's.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor, RunError>;
}
