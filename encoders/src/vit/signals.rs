//! The signals of a layer: what the attention is asked for, and where the answers go.
//!
//! Invariants
//! - Softmax ran over all keys, the class token's included; its column (and the map's row) is
//!   dropped afterwards and nothing is renormalised.
//! - Answers stand in the processor's order of patches, whatever order the rows ran in.
//! - A value that is not finite is an error that names signal and layer.

use ndarray::{Array1, Array2};
use secateur_core::error::RunError;
use secateur_core::model::Pixels;
use secateur_core::ops::{Ops, Queries, ScoreRequest};
use secateur_core::signal::{CropSignals, Signal};
use secateur_core::tensor::Tensor;

use super::block::Reported;

/// A matrix from row-major values of that many elements.
fn matrix(rows: usize, cols: usize, values: Vec<f32>) -> Array2<f32> {
    debug_assert_eq!(values.len(), rows * cols);
    Array2::from_shape_vec((rows, cols), values).unwrap_or_else(|_| Array2::zeros((rows, cols)))
}

/// Files what crops that ran together gave for one signal, `values: [crops, ...]`: of each crop a
/// vector, or with `shape` a matrix. `out` has one entry a crop.
///
/// # Errors
/// A value that is not finite, or that many values cannot be shared out so.
pub(crate) fn file(
    signal: Signal,
    values: &[f32],
    shape: Option<(usize, usize)>,
    out: &mut [CropSignals],
) -> Result<(), RunError> {
    if !values.iter().all(|v| v.is_finite()) {
        let layer = signal.encoder_layer().unwrap_or_default();
        return Err(RunError::NonFinite { signal: signal.to_string(), layer });
    }
    let one = values.len() / out.len().max(1);
    if one * out.len() != values.len() || shape.is_some_and(|(rows, cols)| rows * cols != one) {
        return Err(RunError::Shape(format!(
            "signal `{signal}`: {} values for {} crops of shape {shape:?}",
            values.len(),
            out.len()
        )));
    }
    for (part, crop) in values.chunks_exact(one.max(1)).zip(out.iter_mut()) {
        match shape {
            None => {
                crop.vectors.insert(signal, Array1::from(part.to_vec()));
            }
            Some((rows, cols)) => {
                crop.matrices.insert(signal, matrix(rows, cols, part.to_vec()));
            }
        }
    }
    Ok(())
}

/// Files the processor's own pixels of each crop, if they were asked for.
pub(crate) fn file_pixels(pixels: &Pixels, signals: &[Signal], out: &mut [CropSignals]) {
    if signals.contains(&Signal::Pixels) {
        for (crop, rgb) in out.iter_mut().zip(&pixels.rgb) {
            crop.pixels = rgb.clone();
        }
    }
}

/// The signals of one layer, as requests to the attention.
pub(super) struct Asked {
    layer: usize,
    signals: Vec<Signal>,
    /// Score rows to report of every crop.
    pub(super) requests: Vec<ScoreRequest>,
    /// The signal that asks for keys, if one does.
    pub(super) keys: Option<Signal>,
}

impl Asked {
    pub(super) fn new(layer: usize, signals: &[Signal]) -> Self {
        let mut asked = Self { layer, signals: Vec::new(), requests: Vec::new(), keys: None };
        for signal in signals.iter().filter(|s| s.encoder_layer() == Some(layer)) {
            let request = match signal {
                Signal::ClsAttention { .. } => ScoreRequest::mean(Queries::Listed(vec![0])),
                Signal::ColumnMean { .. } => ScoreRequest::mean(Queries::All),
                Signal::EncoderMap { .. } => ScoreRequest::each(Queries::All),
                _ => {
                    asked.keys = Some(*signal);
                    continue;
                }
            };
            asked.signals.push(*signal);
            asked.requests.push(request);
        }
        asked
    }

    /// Files what a layer reported: the class token's columns (and the map's row) dropped, rows
    /// back in the processor's order. `order[place]` is the row at a place.
    pub(super) fn take(
        &self,
        ops: &dyn Ops,
        reported: Reported,
        class: usize,
        per_crop: usize,
        order: Option<&[u32]>,
        out: &mut [CropSignals],
    ) -> Result<(), RunError> {
        let place = |i: usize| order.map_or(i, |o| o[i] as usize);
        let patches = per_crop - class;
        let finite = |signal: &Signal, values: &[f32]| {
            if values.iter().all(|v| v.is_finite()) {
                return Ok(());
            }
            Err(RunError::NonFinite { signal: signal.to_string(), layer: self.layer })
        };
        if !self.signals.is_empty() {
            let all: Vec<&Tensor> = reported.scores.iter().flatten().collect();
            let mut all = ops.download_all(&all)?.into_iter();
            for crop in out.iter_mut() {
                for (signal, values) in self.signals.iter().zip(all.by_ref()) {
                    finite(signal, &values)?;
                    if let Signal::EncoderMap { .. } = signal {
                        let mut map = Array2::zeros((patches, patches));
                        for q in 0..patches {
                            for k in 0..patches {
                                map[[place(q), place(k)]] =
                                    values[(q + class) * per_crop + k + class];
                            }
                        }
                        crop.matrices.insert(*signal, map);
                    } else {
                        let mut vector = Array1::zeros(patches);
                        for k in 0..patches {
                            vector[place(k)] = values[k + class];
                        }
                        crop.vectors.insert(*signal, vector);
                    }
                }
            }
        }
        if let (Some(signal), Some(keys)) = (self.keys, reported.keys) {
            finite(&signal, &keys)?;
            let width = keys.len() / (out.len() * per_crop).max(1);
            for (crop, rows) in out.iter_mut().zip(keys.chunks_exact(per_crop * width)) {
                let mut matrix = Array2::zeros((per_crop, width));
                for (i, row) in rows.chunks_exact(width).enumerate() {
                    let to = if order.is_some() { place(i) } else { i };
                    for (c, v) in row.iter().enumerate() {
                        matrix[[to, c]] = *v;
                    }
                }
                crop.matrices.insert(signal, matrix);
            }
        }
        Ok(())
    }
}
