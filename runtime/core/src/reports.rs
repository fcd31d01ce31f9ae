//! What decoder layers report, on its way from where it was computed to the sequences that read it.
//!
//! Invariants
//! - Reports are handles until [`Reports::hand_out`], which downloads all of them at once; it runs
//!   before a cut, so that rows and visual tokens are still those that were reported.
//! - A sequence whose last row is no number fails with the first layer where it is not, before any
//!   pruner reads what came after.

use std::ops::Range;

use ndarray::Array2;

use crate::cache::Origin;
use crate::error::RunError;
use crate::ops::{Ops, Transition};
use crate::sequence::Sequence;
use crate::signal::{LayerTransitions, Signal};
use crate::tensor::Tensor;

/// Who reads attention rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// Pruners: a signal.
    Signal(Signal),
    /// A head: which of the reads of its sequence.
    Head(usize),
}

/// One report of a layer; sequences are counted among those alive.
#[derive(Debug)]
pub(crate) enum Report {
    /// Attention rows over all keys of a sequence, `[rows, keys]`, and who reads them.
    Scores { sequence: usize, layer: usize, readers: Vec<Reader>, rows: Tensor },
    /// Transitions of attention and MLP of all rows, `[rows, 3]` each, and whose rows are wanted.
    Transitions { layer: usize, modules: [Tensor; 2], takers: Vec<(usize, Range<usize>)> },
    /// Hidden states of a sequence's visual tokens.
    Hidden { sequence: usize, layer: usize, rows: Tensor },
    /// Last rows of the prompts of `takers`, `[takers, hidden]`.
    Last { layer: usize, rows: Tensor, takers: Vec<usize> },
}

impl Report {
    fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Report::Scores { rows, .. } => vec![rows],
            Report::Transitions { modules: [attention, mlp], .. } => vec![attention, mlp],
            Report::Hidden { rows, .. } | Report::Last { rows, .. } => vec![rows],
        }
    }
}

/// Reports that nobody has read.
#[derive(Debug, Default)]
pub(crate) struct Reports(Vec<Report>);

impl Reports {
    pub(crate) fn push(&mut self, report: Report) {
        self.0.push(report);
    }

    /// Downloads all reports and hands them to their sequences.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn hand_out(
        &mut self,
        ops: &dyn Ops,
        sequences: &mut [&mut Sequence],
    ) -> Result<(), RunError> {
        let reports = std::mem::take(&mut self.0);
        let tensors: Vec<&Tensor> = reports.iter().flat_map(Report::tensors).collect();
        if tensors.is_empty() {
            return Ok(());
        }
        let mut values = ops.download_all(&tensors)?.into_iter();
        let mut next = || values.next().ok_or_else(|| RunError::Shape("a report is lost".into()));
        for report in &reports {
            match report {
                Report::Scores { sequence, layer, readers, .. } => {
                    let values = next()?;
                    for reader in readers {
                        sequences[*sequence].file(*reader, *layer, &values);
                    }
                }
                Report::Transitions { layer, takers, .. } => {
                    let [attention, mlp] = [transitions(&next()?), transitions(&next()?)];
                    for (i, range) in takers {
                        let sequence = &mut *sequences[*i];
                        let entry = LayerTransitions {
                            attention: attention[range.clone()].to_vec(),
                            mlp: mlp[range.clone()].to_vec(),
                            tokens: sequence.prompt.rows.clone(),
                        };
                        sequence.signals.transitions.insert(*layer, entry);
                    }
                }
                Report::Hidden { sequence, layer, rows } => {
                    let rows = Array2::from_shape_vec((rows.rows(), rows.cols()), next()?)
                        .map_err(|e| RunError::Shape(e.to_string()))?;
                    let signal = Signal::Hidden { layer: *layer };
                    sequences[*sequence].signals.hidden.insert(signal, rows);
                }
                Report::Last { layer, rows, takers } => {
                    let values = next()?;
                    for (&taker, row) in takers.iter().zip(values.chunks(rows.cols().max(1))) {
                        let sequence = &mut *sequences[taker];
                        if sequence.is_alive() && !row.iter().all(|v| v.is_finite()) {
                            let signal = "hidden state of the last prompt token".to_owned();
                            sequence.failed = Some(RunError::NonFinite { signal, layer: *layer });
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

fn transitions(values: &[f32]) -> Vec<Transition> {
    values.as_chunks::<3>().0.to_vec()
}

impl Sequence {
    fn file(&mut self, reader: Reader, layer: usize, values: &[f32]) {
        match reader {
            Reader::Signal(signal) => self.file_scores(signal, layer, values),
            Reader::Head(read) => {
                if let Some(cache) = self.cache.layers.get(layer) {
                    self.reads[read].file(&cache.origins, values);
                }
            }
        }
    }

    /// Files an attention row over its rows: a signal of a stage, or the first of those that
    /// produced the answer.
    fn file_scores(&mut self, signal: Signal, layer: usize, values: &[f32]) {
        if let Signal::GeneratedRows { .. } = signal {
            let observed = &mut self.record.observed;
            if observed.iter().all(|(seen, _, _)| *seen != layer) {
                observed.push((layer, vec![0.0; self.visual.indices], 0));
            }
            self.add_generated_row(layer, values);
        } else {
            let aligned = self.prompt.visual().iter().map(|&v| values[v as usize]).collect();
            self.signals.vectors.insert(signal, aligned);
        }
    }

    /// Adds one attention row of a generated token, `[keys]`, by original index.
    fn add_generated_row(&mut self, layer: usize, row: &[f32]) {
        let Some(cache) = self.cache.layers.get(layer) else { return };
        let observed = &mut self.record.observed;
        let Some((_, sums, count)) = observed.iter_mut().find(|(l, _, _)| *l == layer) else {
            return;
        };
        for (origin, value) in cache.origins.iter().zip(row) {
            if let Origin::Visual(index) = origin {
                sums[*index as usize] += value;
            }
        }
        *count += 1;
    }
}
