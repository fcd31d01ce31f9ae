//! The one loop that runs decoder layers and stages in turn.
//!
//! Invariants
//! - A layer is run once for all sequences of the batch; between layers each sequence's own stages
//!   cut its own rows.
//! - Keys that a probe projected are not projected again by the layer, and rotations of rows that
//!   stay where they are are not computed again.
//! - A layer's cache holds the rows that ran through it, with the positions they had there.
//! - Signals are recorded only for the layers and rows that a chain asked for. They stay where they
//!   were computed until someone reads them: one download before a cut, and one at the end.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::assemble::cut_rows;
use crate::batch::{Sequence, choose, report};
use crate::cache::{LayerCache, Origin, Position};
use crate::chain::ResolvedStage;
use crate::error::RunError;
use crate::model::{Control, Family, LayerPass, LayerSequence};
use crate::ops::{Mask, Ops, Queries, Rotation, RowSum, ScoreRequest};
use crate::prune::{PositionPolicy, Selection, Site};
use crate::reports::{Report, Reports};
use crate::signal::{Rows, Signal};
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
    }
    batch.collect()?;
    batch.last_rows()
}

/// The living sequences and their rows, one below the other.
struct Batch<'a> {
    family: &'a dyn Family,
    ops: &'a dyn Ops,
    sequences: Vec<&'a mut Sequence>,
    x: Tensor,
    /// Of the rows of `x`, one a kind of layer; empty while positions have changed.
    rotations: Vec<Rotation>,
    /// Unrotated keys from a probe of the layer about to run, one a sequence.
    keys: Vec<Option<Tensor>>,
    /// What layers reported and nobody has read.
    reports: Reports,
}

impl<'a> Batch<'a> {
    fn new(
        family: &'a dyn Family,
        ops: &'a dyn Ops,
        sequences: &'a mut [Sequence],
    ) -> Result<Self, RunError> {
        let sequences: Vec<&mut Sequence> = sequences.iter_mut().filter(|s| s.is_alive()).collect();
        let rows = sequences.iter().map(|s| s.rows.len()).sum();
        let mut x = ops.zeros(rows, family.info().decoder.hidden)?;
        let mut first = 0;
        for sequence in &sequences {
            ops.write_rows(&mut x, first, &sequence.embeddings);
            first += sequence.rows.len();
        }
        let keys = sequences.iter().map(|_| None).collect();
        let reports = Reports::default();
        Ok(Self { family, ops, sequences, x, rotations: Vec::new(), keys, reports })
    }

    fn positions(&self) -> Vec<Position> {
        self.sequences.iter().flat_map(|s| s.positions.iter().copied()).collect()
    }

    /// Makes the rotations of the rows as they stand, unless they are there.
    fn rotate(&mut self) {
        if self.rotations.is_empty() {
            let positions = self.positions();
            let frequencies = self.family.decoder().frequencies().iter();
            self.rotations = frequencies.map(|f| self.ops.rotation(f, &positions)).collect();
        }
    }

    fn ranges(&self) -> Vec<Range<usize>> {
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
        let site = Site::Decoder(layer);
        if self.sequences.iter().all(|s| s.chain.at(site).next().is_none()) {
            return Ok(());
        }
        let mut probing = Vec::new();
        for (i, range) in self.ranges().into_iter().enumerate() {
            let start = Instant::now();
            self.probe(i, layer, &range)?;
            probing.push(start.elapsed());
        }
        let stayed = self.collect()?;
        let mut probing = probing.into_iter().zip(stayed).filter(|p| p.1).map(|p| p.0);
        let ranges = self.ranges();
        // For each sequence its new rows within its own range; `None` if nothing changes.
        let mut outcomes: Vec<Option<Cutting>> = Vec::new();
        for i in 0..ranges.len() {
            let chain = self.sequences[i].chain.clone();
            let mut outcome = None;
            let mut before = probing.next().unwrap_or_default();
            for stage in chain.at(site) {
                let start = Instant::now();
                match self.stage(i, stage, std::mem::take(&mut before)) {
                    Ok(cutting) => outcome = Some(cutting),
                    Err(error) => self.sequences[i].failed = Some(error),
                }
                self.sequences[i].prune_time += start.elapsed();
            }
            outcomes.push(outcome);
        }
        let unchanged = outcomes.iter().all(|o| o.as_ref().is_none_or(Cutting::is_identity))
            && self.sequences.iter().all(|s| s.is_alive());
        if !unchanged {
            self.gather(&ranges, outcomes);
        }
        Ok(())
    }

    /// Attention rows of the layer about to run, where a stage of sequence `i` reads them.
    fn probe(&mut self, i: usize, layer: usize, range: &Range<usize>) -> Result<(), RunError> {
        let chain = self.sequences[i].chain.clone();
        let reads = chain.at(Site::Decoder(layer)).flat_map(|stage| &stage.plan.reads);
        let probes: Vec<(Signal, Rows)> = reads
            .filter_map(|s| match *s {
                Signal::Probe { rows, .. } => Some((*s, rows)),
                _ => None,
            })
            .collect();
        if probes.is_empty() {
            return Ok(());
        }
        self.rotate();
        let (mut own, own_rotations): (_, Vec<Rotation>);
        let (x, rotations) = if self.sequences.len() == 1 {
            (&self.x, &self.rotations)
        } else {
            let index: Vec<u32> = (range.start as u32..range.end as u32).collect();
            own = Tensor::default();
            self.ops.gather_rows(&self.x, &index, &mut own);
            let rows = |r| self.ops.rotation_rows(r, &index);
            own_rotations = self.rotations.iter().map(rows).collect();
            (&own, &own_rotations)
        };
        for (signal, rows) in probes {
            let sequence = &*self.sequences[i];
            let queries = sequence.query_rows(rows);
            let decoder = self.family.decoder();
            let probe = decoder.probe(layer, x, &sequence.positions, rotations, &queries)?;
            self.reports.push(Report::Scores { sequence: i, layer, signal, row: probe.scores });
            self.keys[i] = Some(probe.keys);
        }
        Ok(())
    }

    /// Hands every report that is open to the sequence it belongs to, and takes those out whose
    /// values are no numbers. Says which of the sequences stayed.
    fn collect(&mut self) -> Result<Vec<bool>, RunError> {
        self.reports.hand_out(self.ops, &mut self.sequences)?;
        let stayed: Vec<bool> = self.sequences.iter().map(|s| s.is_alive()).collect();
        if stayed.contains(&false) {
            let ranges = self.ranges();
            let outcomes = ranges.iter().map(|_| None).collect();
            self.gather(&ranges, outcomes);
        }
        Ok(stayed)
    }

    /// Lets one stage choose and updates its sequence; the tensor follows in [`Batch::gather`].
    /// `probing` is the time that its probes took.
    fn stage(
        &mut self,
        i: usize,
        stage: &ResolvedStage,
        probing: Duration,
    ) -> Result<Cutting, RunError> {
        let start = Instant::now();
        let sequence = &mut *self.sequences[i];
        let old_rows = sequence.rows.len();
        sequence.signals.visual_rows =
            sequence.visual.iter().map(|&v| sequence.rows[v as usize]).collect();
        let memory = &mut sequence.memories[stage.entry];
        let floor = sequence.chain.floor;
        let selection =
            choose(stage, &sequence.tokens, sequence.entered, &sequence.signals, memory, floor)?;
        let before = std::mem::take(&mut sequence.tokens);
        let after = before.compose(&selection);
        let rows = kept_rows(old_rows, &sequence.visual, &selection);
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
        let renumber = stage.plan.positions == PositionPolicy::Renumber;
        let renumbered = renumber && !selection.is_identity(before.len());
        if renumbered {
            sequence.renumber();
        }
        sequence.prune_time += probing;
        let time = start.elapsed() + probing;
        sequence.stages.push(report(stage, &before, &after, &selection, time));
        sequence.tokens = after;
        Ok(Cutting { rows, merges, old_rows, renumbered })
    }

    /// Brings the tensor (and probed keys) in line with what the sequences kept.
    fn gather(&mut self, ranges: &[Range<usize>], outcomes: Vec<Option<Cutting>>) {
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
                        let mut row = Tensor::default();
                        self.ops.sum_rows(&self.x, &[RowSum { terms }], &mut row);
                        let at = cutting.rows.partition_point(|r| r < target) as u32;
                        merged.push((first + at, row));
                    }
                    index.extend(cutting.rows.iter().map(|&r| r + range.start as u32));
                }
            }
        }
        let mut x = Tensor::default();
        self.ops.gather_rows(&self.x, &index, &mut x);
        for (at, row) in merged {
            self.ops.write_rows(&mut x, at as usize, &row);
        }
        self.x = x;
        if outcomes.iter().flatten().any(|cutting| cutting.renumbered) {
            self.rotations.clear();
        }
        for rotation in &mut self.rotations {
            *rotation = self.ops.rotation_rows(rotation, &index);
        }
        let (mut keys, mut alive) = (Vec::new(), Vec::new());
        let before = std::mem::take(&mut self.sequences).into_iter();
        let probed = std::mem::take(&mut self.keys);
        for ((sequence, probed), outcome) in before.zip(probed).zip(outcomes) {
            if !sequence.is_alive() {
                continue;
            }
            keys.push(match outcome {
                None => probed,
                // A merged row has keys of its own: they are projected by the layer.
                Some(cutting) => probed.filter(|_| cutting.merges.is_empty()).map(|probed| {
                    let mut kept = Tensor::default();
                    self.ops.gather_rows(&probed, &cutting.rows, &mut kept);
                    kept
                }),
            });
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
        let positions = self.positions();
        self.rotate();
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
        let origins: Vec<Vec<Origin>> = self.sequences.iter().map(|s| s.origins()).collect();
        let mask = if info.prefix_lm { Mask::Full } else { Mask::Causal };
        let mut pass = LayerPass {
            positions: &positions,
            rotations: &self.rotations,
            sequences: Vec::new(),
            wants_transitions: requests.iter().any(|r| r.transitions),
            transitions: None,
        };
        for (i, sequence) in self.sequences.iter_mut().enumerate() {
            pass.sequences.push(LayerSequence {
                rows: ranges[i].clone(),
                cache: sequence.cache.layers.last_mut().expect("one was pushed above"),
                mask,
                scores: &requests[i].scores,
                score_out: Vec::new(),
                keys: self.keys[i].take(),
            });
        }
        self.family.decoder().layer(layer, &mut self.x, &mut pass)?;
        for (sequence, origins) in pass.sequences.iter_mut().zip(origins) {
            sequence.cache.origins.extend(origins);
        }
        let transitions = pass.transitions;
        let scores: Vec<Vec<Tensor>> = pass.sequences.into_iter().map(|s| s.score_out).collect();
        for (i, rows) in scores.into_iter().enumerate() {
            for (&signal, row) in requests[i].signals.iter().zip(rows) {
                self.reports.push(Report::Scores { sequence: i, layer, signal, row });
            }
            let sequence = &*self.sequences[i];
            let places = || -> Vec<u32> {
                sequence.visual.iter().map(|&v| v + ranges[i].start as u32).collect()
            };
            if let Some(level) = sequence.levels.get(layer) {
                self.ops.add_rows(&mut self.x, &places(), level);
            }
            if requests[i].hidden {
                let mut rows = Tensor::default();
                self.ops.gather_rows(&self.x, &places(), &mut rows);
                self.reports.push(Report::Hidden { sequence: i, layer, rows });
            }
        }
        if let Some(modules) = transitions {
            let takers = requests.iter().zip(&ranges).enumerate();
            let takers = takers.filter(|(_, (r, _))| r.transitions);
            let takers = takers.map(|(i, (_, range))| (i, range.clone())).collect();
            self.reports.push(Report::Transitions { layer, modules, takers });
        }
        self.reports.push(Report::Last { layer, rows: self.last_hidden() });
        Ok(())
    }

    fn last_hidden(&self) -> Tensor {
        let index: Vec<u32> = self.ranges().iter().map(|r| (r.end - 1) as u32).collect();
        let mut rows = Tensor::default();
        self.ops.gather_rows(&self.x, &index, &mut rows);
        rows
    }

    fn last_rows(&self) -> Result<Tensor, RunError> {
        self.family.decoder().final_hidden(&self.last_hidden())
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
    /// Whether positions count anew.
    renumbered: bool,
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
    /// What each of its rows stands for.
    fn origins(&self) -> Vec<Origin> {
        let mut origins = vec![Origin::Text; self.rows.len()];
        for (&row, token) in self.visual.iter().zip(&self.tokens.tokens) {
            origins[row as usize] = Origin::Visual(token.index);
        }
        origins
    }

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
}
