//! The one loop that runs decoder layers and stages in turn: prompts, chunks of text and single
//! tokens of many sequences in one ragged pass.
//!
//! Invariants
//! - A layer is run once for all rows of the pass. Between layers a sequence's own stages cut the
//!   rows of its prompt; what is read behind a prompt is never cut.
//! - Mask, positions and cache are a sequence's own, so that what it gives does not depend on what
//!   others bring. What fails in one sequence ends that one.
//! - Keys that a probe projected are not projected again by the layer, and rotations of rows that
//!   stay where they are are not computed again.
//! - A layer's cache holds the rows that ran through it, with the positions they had there.
//! - Signals are recorded only for the layers and rows that a chain asked for. They stay where they
//!   were computed until someone reads them: one download before a cut, and one at the end.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::cache::{LayerCache, Position};
use crate::chain::ResolvedStage;
use crate::error::RunError;
use crate::head::{AttentionRows, Queried};
use crate::model::{Family, LayerPass, LayerSequence};
use crate::ops::{Ops, Queries, Rotation, RowSum, ScoreRequest};
use crate::prune::{PositionPolicy, Site};
use crate::reports::{Reader, Report, Reports};
use crate::sequence::{Outputs, Pending, Sequence, pending};
use crate::signal::{Rows, Signal};
use crate::stage::{choose, report};
use crate::tensor::Tensor;
use crate::trace::Trace;

/// Runs what every living sequence pends through the decoder, and leaves nothing pending.
///
/// Returns the final hidden states of the rows that each sequence wants ([`Outputs`], the last one
/// unless it says otherwise) of those that took part and are still alive, one sequence below the
/// other, `[rows, hidden]`.
///
/// # Errors
/// What concerns the whole pass: the device. What concerns one sequence is put into
/// [`Sequence::failed`]: a stage that refused, a stop between the layers of its prompt, a full
/// cache, an id outside the vocabulary, a wanted row that was cut.
pub fn pass(
    family: &dyn Family,
    ops: &dyn Ops,
    sequences: &mut [&mut Sequence],
    mut trace: Option<&mut dyn Trace>,
) -> Result<Tensor, RunError> {
    let mut batch = Batch::new(family, ops, sequences)?;
    for layer in 0..family.info().decoder.layers {
        batch.stop_late_prompts()?;
        batch.cut(layer)?;
        if batch.sequences.is_empty() {
            break;
        }
        batch.run_layer(layer)?;
        if let Some(trace) = trace.as_deref_mut() {
            batch.trace_layer(layer, trace)?;
        }
    }
    batch.collect()?;
    let outputs = batch.outputs()?;
    for sequence in sequences {
        sequence.pending = Pending::Nothing;
        sequence.outputs = Outputs::Last;
    }
    Ok(outputs)
}

/// The living sequences and their rows, one below the other.
struct Batch<'a> {
    family: &'a dyn Family,
    ops: &'a dyn Ops,
    sequences: Vec<&'a mut Sequence>,
    x: Tensor,
    /// Of the rows of `x`, where rotations are.
    positions: Vec<Position>,
    /// Room for the positions of the next layer.
    spare: Vec<Position>,
    /// Of those positions, one a kind of layer; empty while positions have changed.
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
        sequences: &'a mut [&mut Sequence],
    ) -> Result<Self, RunError> {
        let info = &family.info().decoder;
        let takes_part = |s: &&mut Sequence| s.is_alive() && s.pending_rows() > 0;
        let sequences = sequences.iter_mut().map(|s| &mut **s).filter(takes_part);
        let mut sequences: Vec<&mut Sequence> = sequences
            .filter_map(|sequence| match sequence.check_pending(info) {
                Ok(()) => Some(sequence),
                Err(error) => {
                    sequence.failed = Some(error);
                    None
                }
            })
            .collect();
        let x = pending(family, ops, &mut sequences)?;
        let keys = sequences.iter().map(|_| None).collect();
        Ok(Self {
            family,
            ops,
            sequences,
            x,
            positions: Vec::new(),
            spare: Vec::new(),
            rotations: Vec::new(),
            keys,
            reports: Reports::default(),
        })
    }

    /// Takes out those whose prompt is to stop: cancelled, or past their deadline.
    fn stop_late_prompts(&mut self) -> Result<(), RunError> {
        let mut stops = false;
        for sequence in self.sequences.iter_mut().filter(|s| s.reads_prompt()) {
            sequence.failed = sequence.control.check().err();
            stops |= !sequence.is_alive();
        }
        if stops { self.collect().map(drop) } else { Ok(()) }
    }

    /// Makes the rotations of the rows as they stand in `layer`, unless they are there.
    fn rotate(&mut self, layer: usize) {
        let mut positions = std::mem::take(&mut self.spare);
        positions.clear();
        for sequence in &self.sequences {
            if sequence.reads_prompt() {
                positions.extend_from_slice(&sequence.prompt.positions);
            } else {
                let next = sequence.cache.layers[layer].next;
                let rows = sequence.pending_rows() as i32;
                positions.extend((next..next + rows).map(|p| [p; 3]));
            }
        }
        if self.rotations.is_empty() || positions != self.positions {
            let frequencies = self.family.decoder().frequencies().iter();
            self.rotations = frequencies.map(|f| self.ops.rotation(f, &positions)).collect();
        }
        self.spare = std::mem::replace(&mut self.positions, positions);
    }

    fn ranges(&self) -> Vec<Range<usize>> {
        let mut first = 0;
        self.sequences
            .iter()
            .map(|s| {
                let range = first..first + s.pending_rows();
                first = range.end;
                range
            })
            .collect()
    }

    /// Runs the stages before `layer`.
    fn cut(&mut self, layer: usize) -> Result<(), RunError> {
        self.keys.iter_mut().for_each(|k| *k = None);
        let site = Site::Decoder(layer);
        let is_cut = |s: &Sequence| s.reads_prompt() && s.chain.at(site).next().is_some();
        if !self.sequences.iter().any(|s| is_cut(s)) {
            return Ok(());
        }
        let mut probing = Vec::new();
        for (i, range) in self.ranges().into_iter().enumerate() {
            let start = Instant::now();
            if is_cut(self.sequences[i]) {
                self.probe(i, layer, &range)?;
            }
            probing.push(start.elapsed());
        }
        let stayed = self.collect()?;
        let mut probing = probing.into_iter().zip(stayed).filter(|p| p.1).map(|p| p.0);
        let ranges = self.ranges();
        // For each sequence its new rows within its own range; `None` if nothing changes.
        let mut outcomes: Vec<Option<Cutting>> = Vec::new();
        for i in 0..ranges.len() {
            let mut outcome = None;
            let mut before = probing.next().unwrap_or_default();
            if !is_cut(self.sequences[i]) {
                outcomes.push(outcome);
                continue;
            }
            let chain = self.sequences[i].chain.clone();
            for stage in chain.at(site) {
                let start = Instant::now();
                match self.stage(i, stage, std::mem::take(&mut before)) {
                    Ok(cutting) => outcome = Some(cutting),
                    Err(error) => self.sequences[i].failed = Some(error),
                }
                self.sequences[i].record.prune_time += start.elapsed();
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
        self.rotate(layer);
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
            let queries = sequence.prompt.queries(rows);
            let decoder = self.family.decoder();
            let mut room = Vec::new();
            let mask = sequence.mask(layer, decoder.kind(layer), &mut room);
            let probe =
                decoder.probe(layer, x, &sequence.prompt.positions, rotations, mask, &queries)?;
            let readers = vec![Reader::Signal(signal)];
            self.reports.push(Report::Scores { sequence: i, layer, readers, rows: probe.scores });
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
        let visual = sequence.prompt.visual();
        sequence.signals.visual_rows =
            visual.iter().map(|&v| sequence.prompt.rows[v as usize]).collect();
        let memory = &mut sequence.memories[stage.entry];
        let (floor, tokens) = (sequence.chain.floor, &sequence.visual.tokens);
        let entered = sequence.visual.entered;
        let selection = choose(stage, tokens, entered, &sequence.signals, memory, floor)?;
        let merges = selection
            .merges
            .iter()
            .map(|m| {
                let place = |t: u32| visual[t as usize];
                let terms = m.terms.iter().map(|&(t, w)| (place(t), w)).collect();
                (place(m.target), terms)
            })
            .collect();
        let old_rows = sequence.prompt.len();
        let (rows, before) = sequence.cut(self.ops, &selection);
        let renumber = stage.plan.positions == PositionPolicy::Renumber;
        let renumbered = renumber && !selection.is_identity(before.len());
        if renumbered {
            let base = sequence.prompt.positions.first().map_or(0, |p| p[0]);
            sequence.prompt.renumber(base);
        }
        let time = start.elapsed() + probing;
        let record = &mut sequence.record;
        record.prune_time += probing;
        record.stages.push(report(stage, &before, &sequence.visual.tokens, &selection, time));
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
        if !self.rotations.is_empty() {
            self.positions = index.iter().map(|&r| self.positions[r as usize]).collect();
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
        self.rotate(layer);
        for sequence in self.sequences.iter_mut().filter(|s| s.reads_prompt()) {
            let capacity = sequence.prompt.len() + sequence.room;
            let cache = LayerCache::new(info.kv_heads, info.head_dim, capacity, dtype);
            let next = sequence.prompt.next;
            sequence.cache.layers.push(LayerCache { next, ..cache });
        }
        let mut pass = LayerPass {
            positions: &self.positions,
            rotations: &self.rotations,
            sequences: Vec::new(),
            wants_transitions: requests.iter().any(|r| r.transitions),
            transitions: None,
        };
        let kind = self.family.decoder().kind(layer);
        let mut room = vec![Vec::new(); ranges.len()];
        for ((i, sequence), room) in self.sequences.iter_mut().enumerate().zip(&mut room) {
            let mask = sequence.mask(layer, kind, room);
            pass.sequences.push(LayerSequence {
                rows: ranges[i].clone(),
                cache: &mut sequence.cache.layers[layer],
                mask,
                scores: &requests[i].scores,
                score_out: Vec::new(),
                keys: self.keys[i].take(),
            });
        }
        self.family.decoder().layer(layer, &mut self.x, &mut pass)?;
        let transitions = pass.transitions;
        let scores: Vec<Vec<Tensor>> = pass.sequences.into_iter().map(|s| s.score_out).collect();
        for sequence in &mut self.sequences {
            sequence.file_rows(layer);
        }
        for (i, rows) in scores.into_iter().enumerate() {
            for (readers, rows) in requests[i].readers.iter().zip(rows) {
                let readers = readers.clone();
                self.reports.push(Report::Scores { sequence: i, layer, readers, rows });
            }
            let sequence = &*self.sequences[i];
            let places = || -> Vec<u32> {
                let visual = sequence.prompt.visual();
                visual.iter().map(|&v| v + ranges[i].start as u32).collect()
            };
            if let Some(level) =
                sequence.visual.levels.get(layer).filter(|_| sequence.reads_prompt())
            {
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
        let takers: Vec<usize> =
            (0..ranges.len()).filter(|&i| self.sequences[i].reads_prompt()).collect();
        if !takers.is_empty() {
            let rows = self.last_rows(takers.iter().map(|&i| &ranges[i]));
            self.reports.push(Report::Last { layer, rows, takers });
        }
        Ok(())
    }

    /// The last row of each of some ranges.
    fn last_rows<'r>(&self, ranges: impl Iterator<Item = &'r Range<usize>>) -> Tensor {
        let index: Vec<u32> = ranges.map(|r| (r.end - 1) as u32).collect();
        let mut rows = Tensor::default();
        self.ops.gather_rows(&self.x, &index, &mut rows);
        rows
    }

    /// Final hidden states of the rows that somebody waits for.
    fn outputs(&mut self) -> Result<Tensor, RunError> {
        let mut index: Vec<u32> = Vec::new();
        for (range, sequence) in self.ranges().into_iter().zip(&mut self.sequences) {
            match sequence.output_rows() {
                Ok(rows) => index.extend(rows.iter().map(|row| range.start as u32 + row)),
                Err(error) => sequence.failed = Some(error),
            }
        }
        let decoder = self.family.decoder();
        if index.iter().copied().eq(0..self.x.rows() as u32) {
            return decoder.final_hidden(&self.x);
        }
        let mut rows = Tensor::default();
        self.ops.gather_rows(&self.x, &index, &mut rows);
        decoder.final_hidden(&rows)
    }

    fn trace_layer(&self, layer: usize, trace: &mut dyn Trace) -> Result<(), RunError> {
        let [sequence] = self.sequences.as_slice() else { return Ok(()) };
        let last = self.ops.download(&self.last_rows(self.ranges().iter()))?;
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

/// What a sequence asks of one layer.
struct Requests {
    scores: Vec<ScoreRequest>,
    /// Who reads each of them.
    readers: Vec<Vec<Reader>>,
    transitions: bool,
    hidden: bool,
}

impl Requests {
    fn of(sequence: &Sequence, layer: usize) -> Self {
        let mut requests =
            Self { scores: Vec::new(), readers: Vec::new(), transitions: false, hidden: false };
        let queries = |rows| match rows {
            Rows::All => Queries::All,
            rows => Queries::Listed(sequence.prompt.queries(rows)),
        };
        // The last row produces the next token.
        let last = || Queries::Listed(vec![sequence.pending_rows() as u32 - 1]);
        // Stages read rows of the prompt.
        let signals = sequence.reads_prompt().then(|| sequence.chain.signals());
        for signal in signals.into_iter().flatten() {
            match signal {
                Signal::Attention { layer: l, rows } if l == layer => {
                    let request = ScoreRequest::mean(queries(rows));
                    requests.ask(request, Reader::Signal(signal));
                }
                Signal::Transitions { layer: l } if l == layer => requests.transitions = true,
                Signal::Hidden { layer: l } if l == layer => requests.hidden = true,
                _ => {}
            }
        }
        for observed in sequence.observed_layers().filter(|&l| l == layer) {
            let signal = Signal::GeneratedRows { layer: observed };
            requests.ask(ScoreRequest::mean(last()), Reader::Signal(signal));
        }
        for (i, AttentionRows { read, .. }) in sequence.reads.iter().enumerate() {
            let queries = match read.queries {
                Queried::Prompt(rows) if sequence.reads_prompt() => queries(rows),
                Queried::Generated => last(),
                Queried::Prompt(_) => continue,
            };
            if read.layer == layer {
                let request = ScoreRequest::mean(queries).heads(read.heads.clone());
                requests.ask(request, Reader::Head(i));
            }
        }
        requests
    }

    /// Adds a reader; of the same rows there is one request.
    fn ask(&mut self, request: ScoreRequest, reader: Reader) {
        match self.scores.iter().position(|asked| *asked == request) {
            Some(at) => self.readers[at].push(reader),
            None => {
                self.scores.push(request);
                self.readers.push(vec![reader]);
            }
        }
    }
}
