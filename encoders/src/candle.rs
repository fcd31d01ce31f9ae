//! A vision tower written in candle as an [`Encoder`] (feature `candle`).
//!
//! Invariants
//! - The tower sees what the processor made, `[crops, 3, height, width]`, f32, on its own device,
//!   a bounded number of crops at a time; it gives rows in the processor's order of patches.
//! - What it does not give is withheld by its [`EncoderInfo`], so that a chain that needs it is
//!   refused when it is planned.
//! - Shapes are checked on the way back: a tower that errs is an error, not a panic.
//!
//! Not here: a model. `impl CandleTower` for yours, wrap it in [`CandleEncoder`].

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use secateur_core::error::RunError;
use secateur_core::model::{Control, Encoded, Encoder, EncoderInfo, Pixels};
use secateur_core::ops::Ops;
use secateur_core::signal::{CropSignals, Signal};

use crate::vit::signals::{file, file_pixels};

/// What a tower gives for some crops.
#[derive(Clone, Debug)]
pub struct CandleRows {
    /// `[crops, rows, width]`: of each crop its class row, if there is one, then its patches.
    pub hidden: Tensor,
    /// Signals that were asked for: `[crops, patches]` for vectors, `[crops, r, c]` for matrices.
    pub signals: BTreeMap<Signal, Tensor>,
}

/// A vision tower in candle.
pub trait CandleTower: Send + Sync + std::fmt::Debug {
    /// What it is and offers; list in `withheld` what [`CandleTower::forward`] does not give.
    fn info(&self) -> &EncoderInfo;

    /// Where it lives.
    fn device(&self) -> &Device;

    /// Runs over `pixels: [crops, 3, height, width]`, f32.
    ///
    /// # Errors
    /// candle's.
    fn forward(&self, pixels: &Tensor, signals: &[Signal]) -> candle_core::Result<CandleRows>;
}

/// Makes a candle tower an encoder.
#[derive(Debug)]
pub struct CandleEncoder<T> {
    tower: T,
    batch: usize,
    ops: Arc<dyn Ops>,
}

impl<T: CandleTower> CandleEncoder<T> {
    /// Runs at most `batch` crops at a time (at least 1) and hands the rows to `ops`.
    pub fn new(tower: T, batch: usize, ops: Arc<dyn Ops>) -> Self {
        Self { tower, batch: batch.max(1), ops }
    }

    fn failed(&self, reason: impl std::fmt::Display) -> RunError {
        RunError::Device(format!("candle tower `{}`: {reason}", self.tower.info().tower))
    }

    /// The values of a tensor of that shape, f32.
    fn values(&self, tensor: &Tensor, what: &str, shape: &[usize]) -> Result<Vec<f32>, RunError> {
        if tensor.dims() != shape {
            return Err(
                self.failed(format!("{what} has shape {:?}, expected {shape:?}", tensor.dims()))
            );
        }
        tensor
            .to_dtype(DType::F32)
            .and_then(|t| t.flatten_all()?.to_vec1::<f32>())
            .map_err(|e| self.failed(format!("{what}: {e}")))
    }

    /// Files the signals of some crops.
    fn file_all(
        &self,
        signals: &BTreeMap<Signal, Tensor>,
        out: &mut [CropSignals],
    ) -> Result<(), RunError> {
        for (signal, tensor) in signals {
            let what = signal.to_string();
            let shape = tensor.dims().to_vec();
            let matrix = match *shape.as_slice() {
                [_, _] => None,
                [_, rows, cols] => Some((rows, cols)),
                _ => return Err(self.failed(format!("{what} has shape {shape:?}"))),
            };
            let mut expected = shape.clone();
            expected[0] = out.len();
            file(*signal, &self.values(tensor, &what, &expected)?, matrix, out)?;
        }
        Ok(())
    }
}

impl<T: CandleTower> Encoder for CandleEncoder<T> {
    fn info(&self) -> &EncoderInfo {
        self.tower.info()
    }

    fn encode(
        &self,
        pixels: &[&Pixels],
        signals: &[Signal],
        control: &Control,
    ) -> Result<Encoded, RunError> {
        let info = self.tower.info();
        let (mut rows, mut crops, mut filed) = (Vec::new(), Vec::new(), Vec::new());
        for p in pixels {
            let &[count, 3, height, width] = p.shape.as_slice() else {
                return Err(RunError::Shape(format!(
                    "pixels of shape {:?}, a candle tower takes [crops, 3, height, width]",
                    p.shape
                )));
            };
            let one = 3 * height * width;
            if p.values.len() != count * one || p.crops.len() != count {
                return Err(RunError::Shape(format!(
                    "{} values and {} crops for pixels of shape {:?}",
                    p.values.len(),
                    p.crops.len(),
                    p.shape
                )));
            }
            let mut out = vec![CropSignals::default(); count];
            for first in (0..count).step_by(self.batch) {
                control.check()?;
                let some = self.batch.min(count - first);
                let part = p.values[first * one..(first + some) * one].to_vec();
                let input = Tensor::from_vec(part, (some, 3, height, width), self.tower.device())
                    .map_err(|e| self.failed(e))?;
                let given = self.tower.forward(&input, signals).map_err(|e| self.failed(e))?;
                let per_crop = given.hidden.dims().get(1).copied().unwrap_or(0);
                let place = &p.crops[first];
                let patches = (place.rows * place.cols) as usize;
                if per_crop != patches + usize::from(info.cls) {
                    return Err(self.failed(format!(
                        "{per_crop} rows a crop, expected {}",
                        patches + usize::from(info.cls)
                    )));
                }
                let shape = [some, per_crop, info.width];
                rows.extend(self.values(&given.hidden, "hidden", &shape)?);
                for _ in 0..some {
                    crops.push((crops.len() * per_crop, per_crop));
                }
                self.file_all(&given.signals, &mut out[first..first + some])?;
            }
            file_pixels(p, signals, &mut out);
            filed.extend(out);
        }
        let hidden = self.ops.upload(rows.len() / info.width, info.width, &rows)?;
        Ok(Encoded { hidden, crops, levels: Vec::new(), signals: filed, outputs: Vec::new() })
    }
}
