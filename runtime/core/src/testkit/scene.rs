//! Made-up requests: tokens that are cut, and signals that fit them.

use ndarray::{Array1, Array2};

use super::Fill;
use crate::model::ModelInfo;
use crate::ops::Transition;
use crate::prune::{Selection, Site};
use crate::signal::{CropPixels, CropSignals, LayerTransitions, PatchSource, Signal, Signals};
use crate::tokens::{TokenKind, TokenMap};

/// Text before the visual tokens of a made-up prompt.
const TEXT_BEFORE: u32 = 3;
/// Text after them.
const TEXT_AFTER: u32 = 5;
/// Side of a patch, pixels.
const PATCH_PX: usize = 4;

/// A number generator with nothing to it.
#[derive(Clone, Debug)]
struct Noise {
    fill: Fill,
    state: u64,
}

impl Noise {
    /// A sequence of its own for every signal.
    fn of(fill: Fill, name: &str) -> Self {
        let seed = if let Fill::Noise(seed) = fill { seed } else { 0 };
        let hash = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        Self { fill, state: name.bytes().fold(0xcbf2_9ce4_8422_2325 ^ seed, hash) }
    }

    /// In (0, 1].
    fn next(&mut self) -> f32 {
        if self.fill == Fill::Constant {
            return 0.5;
        }
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040);
        ((self.state >> 40) + 1) as f32 / (1u64 << 24) as f32
    }

    fn vector(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next() / len as f32).collect()
    }

    fn matrix(&mut self, rows: usize, cols: usize) -> Array2<f32> {
        Array2::from_shape_fn((rows, cols), |_| self.next() - 0.5)
    }

    fn transitions(&mut self, len: usize) -> Vec<Transition> {
        let mut one = || {
            let (a, b, cos) = (1.0 + self.next(), 0.1 + self.next(), self.next() - 0.5);
            [a * a, b * b, cos * a * b]
        };
        (0..len).map(|_| one()).collect()
    }
}

/// Where the tokens of a made-up request stand.
pub(super) struct Scene {
    /// The tokens that are there.
    pub(super) tokens: TokenMap,
    /// Visual tokens of the dense request, or since the last stage that added rows.
    dense: usize,
    /// Visual tokens that entered the decoder, or are there before it.
    pub(super) entered: usize,
    /// Index in the sequence of each current token, once inside the decoder.
    rows: Vec<u32>,
}

impl Scene {
    /// A dense request.
    pub(super) fn new(tokens: &TokenMap) -> Self {
        let dense = tokens.len();
        Self { tokens: tokens.clone(), dense, entered: dense, rows: Vec::new() }
    }

    /// Goes on to a site.
    pub(super) fn enter(&mut self, site: Site) {
        if !matches!(site, Site::Decoder(_)) {
            self.entered = self.tokens.len();
        } else if self.rows.is_empty() {
            self.entered = self.tokens.len();
            self.rows = (0..self.entered as u32).map(|i| i + TEXT_BEFORE).collect();
        }
    }

    /// Cuts.
    pub(super) fn apply(&mut self, selection: &Selection) {
        self.tokens = self.tokens.compose(selection);
        if self.tokens.rebased {
            self.dense = self.tokens.len();
        }
        if !self.rows.is_empty() {
            self.rows = selection.kept.iter().map(|&k| self.rows[k as usize]).collect();
        }
    }

    /// The signals that a stage reads.
    pub(super) fn signals(&self, reads: &[Signal], fill: Fill, model: &ModelInfo) -> Signals {
        let mut signals = Signals {
            sources: vec![PatchSource::default(); self.dense],
            crops: vec![CropSignals::default(); self.tokens.grids.len()],
            visual_rows: self.rows.clone(),
            ..Signals::default()
        };
        for t in self.tokens.tokens.iter().filter(|t| t.kind == TokenKind::Patch) {
            let patch = t.row * self.tokens.grids[t.grid as usize].cols + t.col;
            signals.sources[t.index as usize] = PatchSource { patches: vec![(t.grid, patch, 1.0)] };
        }
        for signal in reads {
            let mut noise = Noise::of(fill, &signal.to_string());
            if !self.encoder_signal(signal, &mut noise, model, &mut signals) {
                self.decoder_signal(signal, &mut noise, model, &mut signals);
            }
        }
        signals
    }

    /// Whether it is one.
    fn encoder_signal(
        &self,
        signal: &Signal,
        noise: &mut Noise,
        model: &ModelInfo,
        out: &mut Signals,
    ) -> bool {
        let cls = usize::from(model.encoder.cls);
        for (crop, grid) in out.crops.iter_mut().zip(&self.tokens.grids) {
            let patches = grid.rows as usize * grid.cols as usize;
            let matrix = match signal {
                Signal::ClsAttention { .. }
                | Signal::ColumnMean { .. }
                | Signal::PoolingAttention => {
                    crop.vectors.insert(*signal, Array1::from(noise.vector(patches)));
                    continue;
                }
                Signal::EncoderMap { .. } => {
                    let mut map = noise.matrix(patches, patches).mapv(|x| x + 0.51);
                    for mut row in map.rows_mut() {
                        let sum = row.sum();
                        row.mapv_inplace(|x| x / sum);
                    }
                    map
                }
                Signal::EncoderKeys { .. } => {
                    let width = model.encoder.width / model.encoder.heads.max(1);
                    noise.matrix(cls + patches, width)
                }
                Signal::EncoderFeatures => noise.matrix(cls + patches, model.encoder.width),
                Signal::Pixels => {
                    let (width, height) =
                        (grid.cols as usize * PATCH_PX, grid.rows as usize * PATCH_PX);
                    let rgb: Vec<u8> =
                        (0..width * height * 3).map(|_| (noise.next() * 255.0) as u8).collect();
                    crop.pixels = CropPixels { width, height, patch: PATCH_PX, rgb: rgb.into() };
                    continue;
                }
                _ => return false,
            };
            crop.matrices.insert(*signal, matrix);
        }
        true
    }

    fn decoder_signal(
        &self,
        signal: &Signal,
        noise: &mut Noise,
        model: &ModelInfo,
        out: &mut Signals,
    ) {
        let hidden = model.decoder.hidden;
        match *signal {
            Signal::Embeddings => {
                out.embeddings = Some(noise.matrix(self.tokens.len(), hidden));
            }
            Signal::InstructionEmbedding => {
                out.instruction = Some((0..hidden).map(|_| noise.next() - 0.5).collect());
            }
            Signal::Hidden { .. } => {
                out.hidden.insert(*signal, noise.matrix(self.tokens.len(), hidden));
            }
            Signal::Transitions { layer } => {
                let tokens: Vec<u32> =
                    (0..TEXT_BEFORE + self.entered as u32 + TEXT_AFTER).collect();
                let entry = LayerTransitions {
                    attention: noise.transitions(tokens.len()),
                    mlp: noise.transitions(tokens.len()),
                    tokens,
                };
                out.transitions.insert(layer, entry);
            }
            Signal::GeneratedRows { .. } => {
                out.vectors.insert(*signal, noise.vector(self.dense));
            }
            _ => {
                out.vectors.insert(*signal, noise.vector(self.tokens.len()));
            }
        }
    }
}

/// Puts NaN into a signal; `false` if it cannot hold one.
pub(super) fn poison(signal: &Signal, signals: &mut Signals) -> bool {
    let nan = |slot: Option<&mut f32>| slot.map(|v| *v = f32::NAN).is_some();
    match *signal {
        Signal::Pixels => false,
        Signal::ClsAttention { .. } | Signal::ColumnMean { .. } | Signal::PoolingAttention => {
            let crop = signals.crops.first_mut();
            nan(crop.and_then(|c| c.vectors.get_mut(signal)?.first_mut()))
        }
        Signal::EncoderMap { .. } | Signal::EncoderKeys { .. } | Signal::EncoderFeatures => {
            let crop = signals.crops.first_mut();
            nan(crop.and_then(|c| c.matrices.get_mut(signal)?.first_mut()))
        }
        Signal::Embeddings => nan(signals.embeddings.as_mut().and_then(|m| m.first_mut())),
        Signal::InstructionEmbedding => {
            nan(signals.instruction.as_mut().and_then(|v| v.first_mut()))
        }
        Signal::Hidden { .. } => nan(signals.hidden.get_mut(signal).and_then(|m| m.first_mut())),
        Signal::Transitions { layer } => {
            let row = signals.visual_rows.first().copied().unwrap_or(0) as usize;
            let entry = signals.transitions.get_mut(&layer);
            nan(entry.and_then(|t| t.attention.get_mut(row)).map(|t| &mut t[0]))
        }
        _ => nan(signals.vectors.get_mut(signal).and_then(|v| v.first_mut())),
    }
}
