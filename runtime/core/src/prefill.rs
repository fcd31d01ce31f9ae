//! The one loop that runs decoder layers and stages in turn.
//!
//! Invariants
//! - A layer is run once for all sequences of the batch; between layers each sequence's own stages
//!   cut its own rows.
//! - Keys that a probe projected are not projected again by the layer.
//! - A layer's cache holds the rows that ran through it, with the positions they had there.
//! - Signals are recorded only for the layers and rows that a chain asked for.

use std::time::Instant;

use crate::assemble::{cut_rows, host_rows};
use crate::batch::{Sequence, choose, report};
use crate::cache::{LayerCache, Position};
use crate::chain::ResolvedStage;
use crate::error::RunError;
use crate::model::{Control, Family, LayerPass, LayerSequence};
use crate::ops::{Mask, Ops, Queries, RopeTable, ScoreRequest};
use crate::prune::{PositionPolicy, Selection, Site};
use crate::signal::{LayerTransitions, Rows, Signal};
use crate::tensor::Tensor;
use crate::trace::Trace;

/// Runs the prompt of every living sequence through the decoder.
///
/// Returns the final hidden state of the last prompt row of each sequence that is still alive,
/// `[alive, hidden]`, in their order.
///
/// # Errors
/// What concerns the whole batch: cancelled, device. What concerns one sequence is put into
/// [`Sequence::failed`].
pub fn prefill(
    family: &dyn Family,
    ops: &dyn Ops,
    sequences: &mut [Sequence],
    control: &Control,
    mut trace: Option<&mut dyn Trace>,
) -> Result<Tensor, RunError> {
    let layers = family.info().decoder.layers;
    let mut batch = Batch::new(family, ops, sequences)?;
    for layer in 0..layers {
        control.check()?;
        batch.cut(layer)?;
        batch.run_layer(layer)?;
        if let Some(trace) = trace.as_deref_mut() {
            batch.trace_layer(layer, trace)?;
        }
        batch.refuse_non_finite(layer)?;
    }
    batch.last_rows()
}

/// The living sequences and their rows, one below the other.
struct Batch<'a> {
    family: &'a dyn Family,
    ops: &'a dyn Ops,
    sequences: Vec<&'a mut Sequence>,
    x: Tensor,
    rope: Option<RopeTable>,
    /// Unrotated keys from a probe of the layer about to run, one a sequence.
    keys: Vec<Option<Tensor>>,
}

impl<'a> Batch<'a> {
    fn new(
        family: &'a dyn Family,
        ops: &'a dyn Ops,
        sequences: &'a mut [Sequence],
    ) -> Result<Self, RunError> {
        let sequences: Vec<&mut Sequence> = sequences.iter_mut().filter(|s| s.is_alive()).collect();
        let rows = sequences.iter().map(|s| s.rows.len()).sum();
        let mut x = ops.upload(
            rows,
            family.info().decoder.hidden,
            &vec![0.0; rows * family.info().decoder.hidden],
        )?;
        let mut first = 0;
        for sequence in &sequences {
            ops.write_rows(&mut x, first, &sequence.embeddings);
            first += sequence.rows.len();
        }
        let keys = sequences.iter().map(|_| None).collect();
        Ok(Self { family, ops, sequences, x, rope: None, keys })
    }

    fn ranges(&self) -> Vec<std::ops::Range<usize>> {
        let mut first = 0;
        self.sequences
            .iter()
            .map(|s| {
                let range = first..first + s.rows.len();
                first = range.end;
                range
            })
            .collect()
    }

    /// Runs the stages before `layer`.
    fn cut(&mut self, layer: usize) -> Result<(), RunError> {
        self.keys.iter_mut().for_each(|k| *k = None);
        let ranges = self.ranges();
        // For each sequence its new rows within its own range; `None` if nothing changes.
        let mut outcomes: Vec<Option<Cutting>> = Vec::new();
        for (i, range) in ranges.iter().enumerate() {
            let chain = self.sequences[i].chain.clone();
            let mut outcome = None;
            for stage in chain.at(Site::Decoder(layer)) {
                let start = Instant::now();
                match self.stage(i, layer, range, stage) {
                    Ok(cutting) => outcome = Some(cutting),
                    Err(error) => self.sequences[i].failed = Some(error),
                }
                self.sequences[i].prune_time += start.elapsed();
            }
            outcomes.push(outcome);
        }
        let unchanged = outcomes.iter().all(|o| o.as_ref().is_none_or(Cutting::is_identity))
            && self.sequences.iter().all(|s| s.is_alive());
        if unchanged {
            for (i, outcome) in outcomes.into_iter().enumerate() {
                self.keys[i] = outcome.and_then(|o| o.keys);
            }
            return Ok(());
        }
        self.gather(&ranges, outcomes);
        Ok(())
    }

    /// Lets one stage choose and updates its sequence; the tensor follows in [`Batch::gather`].
    fn stage(
        &mut self,
        i: usize,
        layer: usize,
        range: &std::ops::Range<usize>,
        stage: &ResolvedStage,
    ) -> Result<Cutting, RunError> {
        let start = Instant::now();
        let keys = self.read_probes(i, layer, range, stage)?;
        let info = self.family.info();
        let sequence = &mut *self.sequences[i];
        sequence.signals.visual_rows =
            sequence.visual.iter().map(|&v| sequence.rows[v as usize]).collect();
        let memory = &mut sequence.memories[stage.entry];
        let floor = sequence.chain.floor;
        let selection = choose(
            stage,
            &sequence.tokens,
            sequence.entered,
            &sequence.signals,
            info,
            memory,
            floor,
        )?;
        let before = std::mem::take(&mut sequence.tokens);
        let after = before.compose(&selection);
        let rows = kept_rows(sequence.rows.len(), &sequence.visual, &selection);
        let merges = selection
            .merges
            .iter()
            .map(|m| {
                let place = |t: u32| sequence.visual[t as usize];
                let terms = m.terms.iter().map(|&(t, w)| (place(t), w)).collect();
                (place(m.target), terms)
            })
            .collect();
        sequence.apply(self.ops, &rows, &selection, &after);
        let renumber = stage.plan.positions == PositionPolicy::Renumber && !info.decoder.mrope;
        if renumber && !selection.is_identity(before.len()) {
            sequence.renumber();
        }
        sequence.stages.push(report(stage, &before, &after, &selection, start.elapsed()));
        sequence.tokens = after;
        Ok(Cutting { rows, merges, old_rows: range.len(), keys })
    }

    /// Attention rows of the layer about to run, where the stage reads them.
    fn read_probes(
        &mut self,
        i: usize,
        layer: usize,
        range: &std::ops::Range<usize>,
        stage: &ResolvedStage,
    ) -> Result<Option<Tensor>, RunError> {
        let probes: Vec<(Signal, Rows)> = stage
            .plan
            .reads
            .iter()
            .filter_map(|s| match *s {
                Signal::Probe { rows, .. } => Some((*s, rows)),
                _ => None,
            })
            .collect();
        if probes.is_empty() {
            return Ok(None);
        }
        let index: Vec<u32> = (range.start as u32..range.end as u32).collect();
        let mut own = Tensor::zeros(0, 0);
        let x = if self.sequences.len() == 1 {
            &self.x
        } else {
            self.ops.gather_rows(&self.x, &index, &mut own);
            &own
        };
        let mut keys = None;
        for (signal, rows) in probes {
            let sequence = &mut *self.sequences[i];
            let queries = sequence.query_rows(rows);
            let probe = self.family.decoder().probe(layer, x, &sequence.positions, &queries)?;
            let values = sequence.visual.iter().map(|&v| probe.scores[v as usize]).collect();
            sequence.signals.vectors.insert(signal, values);
            keys = Some(probe.keys);
        }
        Ok(keys)
    }

    /// Brings the tensor (and probed keys) in line with what the sequences kept.
    fn gather(&mut self, ranges: &[std::ops::Range<usize>], mut outcomes: Vec<Option<Cutting>>) {
        let mut index: Vec<u32> = Vec::new();
        let mut merged: Vec<(u32, Tensor)> = Vec::new();
        for (i, range) in ranges.iter().enumerate() {
            if !self.sequences[i].is_alive() {
                continue;
            }
            let first = index.len() as u32;
            match &outcomes[i] {
                None => index.extend(range.start as u32..range.end as u32),
                Some(cutting) => {
                    for (target, terms) in &cutting.merges {
                        let terms = terms
                            .iter()
                            .map(|&(t, w): &(u32, f32)| (t + range.start as u32, w))
                            .collect();
                        let mut row = Tensor::zeros(0, 0);
                        self.ops.sum_rows(&self.x, &[crate::ops::RowSum { terms }], &mut row);
                        let at = cutting.rows.partition_point(|r| r < target) as u32;
                        merged.push((first + at, row));
                    }
                    index.extend(cutting.rows.iter().map(|&r| r + range.start as u32));
                }
            }
        }
        let mut x = Tensor::zeros(0, 0);
        self.ops.gather_rows(&self.x, &index, &mut x);
        for (at, row) in merged {
            self.ops.write_rows(&mut x, at as usize, &row);
        }
        self.x = x;
        self.rope = None;
        let mut keys = Vec::new();
        let mut alive = Vec::new();
        for (i, sequence) in std::mem::take(&mut self.sequences).into_iter().enumerate() {
            if !sequence.is_alive() {
                continue;
            }
            keys.push(outcomes[i].take().and_then(|cutting| {
                // A merged row has keys of its own: they are projected by the layer.
                let probed = cutting.keys.filter(|_| cutting.merges.is_empty())?;
                let mut kept = Tensor::zeros(0, 0);
                self.ops.gather_rows(&probed, &cutting.rows, &mut kept);
                Some(kept)
            }));
            alive.push(sequence);
        }
        self.keys = keys;
        self.sequences = alive;
    }

    fn run_layer(&mut self, layer: usize) -> Result<(), RunError> {
        let info = &self.family.info().decoder;
        let ranges = self.ranges();
        let dtype = self.ops.precision().dtype();
        let requests: Vec<Requests> =
            self.sequences.iter().map(|s| Requests::of(s, layer)).collect();
        let positions: Vec<Position> =
            self.sequences.iter().flat_map(|s| s.positions.iter().copied()).collect();
        for sequence in &mut self.sequences {
            let capacity = sequence.rows.len() + sequence.room;
            sequence.cache.layers.push(LayerCache::new(
                info.kv_heads,
                info.head_dim,
                capacity,
                dtype,
            ));
            sequence.next_position.push(sequence.next);
        }
        let mask = if info.prefix_lm { Mask::Full } else { Mask::Causal };
        let mut keys = std::mem::take(&mut self.keys);
        let mut pass =
            LayerPass { positions: &positions, rope: &mut self.rope, sequences: Vec::new() };
        for (i, sequence) in self.sequences.iter_mut().enumerate() {
            pass.sequences.push(LayerSequence {
                rows: ranges[i].clone(),
                cache: sequence.cache.layers.last_mut().expect("one was pushed above"),
                mask,
                scores: &requests[i].scores,
                score_out: Vec::new(),
                wants_transitions: requests[i].transitions,
                transitions: None,
                keys: keys[i].take(),
            });
        }
        self.family.decoder().layer(layer, &mut self.x, &mut pass)?;
        let results: Vec<_> =
            pass.sequences.into_iter().map(|s| (s.score_out, s.transitions)).collect();
        self.keys = keys;
        for (i, (scores, transitions)) in results.into_iter().enumerate() {
            let sequence = &mut *self.sequences[i];
            requests[i].record(sequence, layer, scores);
            if let Some((attention, mlp)) = transitions {
                let entry = LayerTransitions { attention, mlp, tokens: sequence.rows.clone() };
                sequence.signals.transitions.insert(layer, entry);
            }
            if let Some(level) = sequence.levels.get(layer) {
                let places: Vec<u32> =
                    sequence.visual.iter().map(|&v| v + ranges[i].start as u32).collect();
                self.ops.add_rows(&mut self.x, &places, level);
            }
            if requests[i].hidden {
                let places: Vec<u32> =
                    sequence.visual.iter().map(|&v| v + ranges[i].start as u32).collect();
                let mut rows = Tensor::zeros(0, 0);
                self.ops.gather_rows(&self.x, &places, &mut rows);
                sequence
                    .signals
                    .hidden
                    .insert(Signal::Hidden { layer }, host_rows(self.ops, &rows)?);
            }
        }
        Ok(())
    }

    fn last_indices(&self) -> Vec<u32> {
        self.ranges().iter().map(|r| (r.end - 1) as u32).collect()
    }

    fn last_hidden(&self) -> Tensor {
        let mut rows = Tensor::zeros(0, 0);
        self.ops.gather_rows(&self.x, &self.last_indices(), &mut rows);
        rows
    }

    fn last_rows(&self) -> Result<Tensor, RunError> {
        self.family.decoder().final_hidden(&self.last_hidden())
    }

    /// NaN in a weight shows in the last row of the layer that holds it.
    fn refuse_non_finite(&mut self, layer: usize) -> Result<(), RunError> {
        let last = self.last_hidden();
        let values = self.ops.download(&last)?;
        for (sequence, row) in self.sequences.iter_mut().zip(values.chunks(last.cols().max(1))) {
            if !row.iter().all(|v| v.is_finite()) {
                let signal = "hidden state of the last prompt token".to_owned();
                sequence.failed = Some(RunError::NonFinite { signal, layer });
            }
        }
        if self.sequences.iter().any(|s| !s.is_alive()) {
            let ranges = self.ranges();
            let outcomes = ranges.iter().map(|_| None).collect();
            self.gather(&ranges, outcomes);
        }
        Ok(())
    }

    fn trace_layer(&self, layer: usize, trace: &mut dyn Trace) -> Result<(), RunError> {
        let [sequence] = self.sequences.as_slice() else { return Ok(()) };
        let last = self.ops.download(&self.last_hidden())?;
        trace.floats(&format!("layer.{layer}.last_hidden"), &[last.len()], &last);
        let cache = &sequence.cache.layers[layer];
        trace.ints(&format!("layer.{layer}.kv_len"), &[1], &[cache.len as i64]);
        let axis = |a: usize| cache.positions.iter().map(move |p| i64::from(p[a]));
        let name = format!("layer.{layer}.positions");
        if self.family.info().decoder.mrope {
            let all: Vec<i64> = (0..3).flat_map(axis).collect();
            trace.ints(&name, &[3, cache.len], &all);
        } else {
            let all: Vec<i64> = axis(0).collect();
            trace.ints(&name, &[cache.len], &all);
        }
        Ok(())
    }
}

/// What a stage decided, in rows of its sequence.
struct Cutting {
    rows: Vec<u32>,
    /// Target row and the rows it becomes a sum of.
    merges: Vec<(u32, Vec<(u32, f32)>)>,
    old_rows: usize,
    keys: Option<Tensor>,
}

impl Cutting {
    fn is_identity(&self) -> bool {
        self.rows.len() == self.old_rows && self.merges.is_empty()
    }
}

/// Rows of a sequence that stay: all text, and the kept visual tokens.
fn kept_rows(rows: usize, visual: &[u32], selection: &Selection) -> Vec<u32> {
    let mut stays = vec![true; rows];
    for &v in visual {
        stays[v as usize] = false;
    }
    for &k in &selection.kept {
        stays[visual[k as usize] as usize] = true;
    }
    (0..rows as u32).filter(|&r| stays[r as usize]).collect()
}

impl Sequence {
    /// Rows of the current sequence that `rows` names.
    fn query_rows(&self, rows: Rows) -> Vec<u32> {
        let last = self.rows.len() as u32 - 1;
        let after = self.visual.last().map_or(0, |&v| v + 1);
        match rows {
            Rows::Last => vec![last],
            Rows::All => (0..=last).collect(),
            Rows::Instruction if after <= last => (after..=last).collect(),
            Rows::InnerInstruction if after + 2 <= last => (after + 1..last).collect(),
            Rows::Instruction | Rows::InnerInstruction => vec![last],
        }
    }

    /// Restricts everything that is aligned to rows or visual tokens to what was kept.
    fn apply(
        &mut self,
        ops: &dyn Ops,
        rows: &[u32],
        selection: &Selection,
        after: &crate::tokens::TokenMap,
    ) {
        let kept = &selection.kept;
        for level in &mut self.levels {
            *level = cut_rows(ops, level, selection);
        }
        let signals = &mut self.signals;
        for values in signals.vectors.values_mut() {
            *values = kept.iter().map(|&k| values[k as usize]).collect();
        }
        let index: Vec<usize> = kept.iter().map(|&k| k as usize).collect();
        for rows in signals.hidden.values_mut().chain(signals.embeddings.as_mut()) {
            *rows = rows.select(ndarray::Axis(0), &index);
        }
        let mut place = vec![u32::MAX; self.rows.len()];
        for (new, &old) in rows.iter().enumerate() {
            place[old as usize] = new as u32;
        }
        self.visual = kept.iter().map(|&k| place[self.visual[k as usize] as usize]).collect();
        self.positions = rows.iter().map(|&r| self.positions[r as usize]).collect();
        self.rows = rows.iter().map(|&r| self.rows[r as usize]).collect();
        debug_assert_eq!(self.visual.len(), after.len());
    }

    /// Positions count anew from the first row's.
    fn renumber(&mut self) {
        let base = self.positions.first().map_or(0, |p| p[0]);
        for (i, position) in self.positions.iter_mut().enumerate() {
            *position = [base + i as i32; 3];
        }
        self.next = base + self.positions.len() as i32;
    }
}

/// What a sequence asks of one layer.
struct Requests {
    scores: Vec<ScoreRequest>,
    signals: Vec<Signal>,
    transitions: bool,
    hidden: bool,
}

impl Requests {
    fn of(sequence: &Sequence, layer: usize) -> Self {
        let mut requests =
            Self { scores: Vec::new(), signals: Vec::new(), transitions: false, hidden: false };
        for signal in sequence.chain.signals() {
            match signal {
                Signal::Attention { layer: l, rows } if l == layer => {
                    let queries = match rows {
                        Rows::All => Queries::All,
                        rows => Queries::Listed(sequence.query_rows(rows)),
                    };
                    requests.scores.push(ScoreRequest { queries, mean: true });
                    requests.signals.push(signal);
                }
                Signal::Transitions { layer: l } if l == layer => requests.transitions = true,
                Signal::Hidden { layer: l } if l == layer => requests.hidden = true,
                _ => {}
            }
        }
        for observed in sequence.observed_layers().filter(|&l| l == layer) {
            // The last prompt row produces the first generated token.
            let queries = Queries::Listed(sequence.query_rows(Rows::Last));
            requests.scores.push(ScoreRequest { queries, mean: true });
            requests.signals.push(Signal::GeneratedRows { layer: observed });
        }
        requests
    }

    fn record(&self, sequence: &mut Sequence, layer: usize, scores: Vec<Vec<f32>>) {
        for (signal, values) in self.signals.iter().zip(scores) {
            if let Signal::GeneratedRows { .. } = signal {
                let places: Vec<(u32, u32)> = sequence
                    .visual
                    .iter()
                    .zip(&sequence.tokens.tokens)
                    .map(|(&v, t)| (v, t.index))
                    .collect();
                sequence.observed.push((layer, vec![0.0; sequence.indices], 0));
                sequence.observed_rows.push((layer, places));
                sequence.add_generated_row(layer, &values);
            } else {
                let aligned = sequence.visual.iter().map(|&v| values[v as usize]).collect();
                sequence.signals.vectors.insert(*signal, aligned);
            }
        }
    }
}

impl Sequence {
    /// Adds one attention row of a generated token, `[keys]`, by original index.
    pub(crate) fn add_generated_row(&mut self, layer: usize, row: &[f32]) {
        let Some((_, places)) = self.observed_rows.iter().find(|(l, _)| *l == layer) else {
            return;
        };
        let Some((_, sums, count)) = self.observed.iter_mut().find(|(l, _, _)| *l == layer) else {
            return;
        };
        for &(cached, index) in places {
            sums[index as usize] += row[cached as usize];
        }
        *count += 1;
    }
}
