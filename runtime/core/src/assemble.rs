//! From tower rows and a prompt to the sequence that enters the decoder.
//!
//! Runs the stages of the sites before the decoder: `encoder` on rows of the tower (before the
//! projector where every visual token is one tower row, after it else) and `input` on projected
//! rows, then puts text and visual rows together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ndarray::{Array1, Array2};

use crate::cache::Origin;
use crate::chain::{ResolvedChain, ResolvedStage};
use crate::error::RunError;
use crate::model::{
    Encoded, Family, Pixels, Positions, Prompt, Slot, TokenSource, VisualLayout, VisualRows,
};
use crate::ops::{Ops, RowSum};
use crate::prune::{Memory, PositionPolicy, Selection, Site};
use crate::sequence::{
    Outputs, Pending, PromptRows, Record, Sequence, VisualTokens, check_given, given_rows,
};
use crate::signal::{CropSignals, PatchSource, Signal, Signals};
use crate::stage::{EARLY_SITES, StageReport, choose, report};
use crate::tensor::Tensor;
use crate::tokens::TokenMap;
use crate::trace::Trace;
use crate::visibility::Visibility;

/// What a request brings.
#[derive(Debug)]
pub struct Parts<'a> {
    /// Its processed clips, in prompt order.
    pub pixels: &'a [&'a Pixels],
    /// Its expanded prompt.
    pub prompt: Prompt,
    /// Position ids of the unpruned prompt.
    pub positions: Positions,
    /// Its visual tokens.
    pub layout: VisualLayout,
    /// Tower rows; `None` for a prompt without pictures.
    pub encoded: Option<&'a Encoded>,
    /// The caller's rows in the decoder's space, `[rows, hidden]`: what [`Slot::Given`] names.
    pub given: Array2<f32>,
    /// Rows of the unpruned prompt whose final hidden states are wanted.
    pub outputs: Outputs,
    /// Its chain.
    pub chain: Arc<ResolvedChain>,
    /// One memory an entry of the chain.
    pub memories: Vec<Memory>,
    /// Tokens that may be generated.
    pub room: usize,
}

/// Visual rows on their way through the early sites.
struct Visual {
    tokens: TokenMap,
    /// Tower rows `[tokens, width]` while the encoder site works on them, then projected rows.
    rows: Tensor,
    levels: Vec<Tensor>,
    stages: Vec<StageReport>,
    time: Duration,
}

/// Runs the early sites and assembles the sequence.
///
/// # Errors
/// What a pruner or the device reports; a request without memories for its entries is a bug of
/// the caller.
pub fn assemble(
    family: &dyn Family,
    ops: &dyn Ops,
    parts: Parts<'_>,
    mut trace: Option<&mut dyn Trace>,
) -> Result<Sequence, RunError> {
    let Parts { prompt, positions, layout, encoded, given, chain, mut memories, room, .. } = parts;
    for memory in &mut memories {
        memory.begin_request();
    }
    let hidden = family.info().decoder.hidden;
    check_given(&prompt.slots, &given, hidden)?;
    let visibility = family.visibility(&prompt);
    if !visibility.is_of(prompt.slots.len()) {
        return Err(RunError::Prompt("its blocks are not those of its rows".into()));
    }
    let mut signals = Signals::default();
    let mut visual = match encoded {
        None => Visual {
            tokens: layout.map.clone(),
            rows: Tensor::zeros(0, hidden),
            levels: Vec::new(),
            stages: Vec::new(),
            time: Duration::ZERO,
        },
        Some(encoded) => {
            signals.sources = patch_sources(&layout, encoded, family);
            signals.crops = take_signals(encoded, &chain, parts.pixels);
            if let Some(trace) = trace.as_deref_mut() {
                trace_encoder(family, ops, encoded, &layout, trace)?;
            }
            run_encoder_site(family, ops, encoded, &layout, &chain, &mut memories, &mut signals)?
        }
    };
    let indices = if visual.tokens.rebased { visual.tokens.len() } else { layout.map.len() };
    run_input_site(
        family,
        ops,
        &prompt,
        &layout,
        &chain,
        &mut memories,
        &mut signals,
        &mut visual,
    )?;
    let changed = !visual.stages.is_empty();
    if let Some(trace) = trace
        && (changed || chain.entries > 0)
    {
        trace.floats(
            "decoder.visual_tokens",
            &[visual.rows.rows(), visual.rows.cols()],
            &ops.download(&visual.rows)?,
        );
    }
    let policy = early_policy(&chain, family.info().decoder.mrope, &visual.tokens);
    let joined = join(&prompt, &positions, &visibility, &layout, &visual.tokens, policy);
    let embeddings = embed(family, ops, &prompt, &joined, &visual.rows, &given)?;
    let outputs = joined.outputs(parts.outputs)?;
    Ok(Sequence {
        pending: Pending::Prompt(embeddings),
        outputs,
        chain,
        memories,
        prompt: joined.rows,
        visual: VisualTokens {
            entered: visual.tokens.len(),
            tokens: visual.tokens,
            levels: visual.levels,
            indices,
        },
        room,
        signals,
        record: Record { stages: visual.stages, prune_time: visual.time, ..Record::default() },
        ..Sequence::default()
    })
}

/// The patches of which each visual token is made, for carrying patch scores to tokens.
pub fn patch_sources(
    layout: &VisualLayout,
    encoded: &Encoded,
    family: &dyn Family,
) -> Vec<PatchSource> {
    let cls = usize::from(family.info().encoder.cls);
    let place = |row: u32, weight: f32| {
        let crop = encoded.crops.partition_point(|&(first, _)| first <= row as usize) - 1;
        let patch = (row as usize - encoded.crops[crop].0).checked_sub(cls)?;
        Some((crop as u32, patch as u32, weight))
    };
    let source = |terms: Vec<(u32, f32)>| PatchSource {
        patches: terms.into_iter().filter_map(|(row, weight)| place(row, weight)).collect(),
    };
    layout
        .sources
        .iter()
        .map(|s| match s {
            TokenSource::Rows(rows) => {
                let weight = 1.0 / rows.len() as f32;
                source(rows.iter().map(|&r| (r, weight)).collect())
            }
            TokenSource::Sum(terms) => source(terms.clone()),
            TokenSource::Structural => PatchSource::default(),
        })
        .collect()
}

fn take_signals(encoded: &Encoded, chain: &ResolvedChain, pixels: &[&Pixels]) -> Vec<CropSignals> {
    let asked = chain.signals();
    // The rows may have been made for other chains as well: a pruner sees what it declared.
    let mut crops: Vec<CropSignals> = encoded.signals.iter().map(|c| c.only(&asked)).collect();
    crops.resize_with(encoded.crops.len(), CropSignals::default);
    if asked.contains(&Signal::Pixels) {
        let rgb = pixels.iter().flat_map(|p| p.rgb.iter());
        for (crop, rgb) in crops.iter_mut().zip(rgb) {
            crop.pixels = rgb.clone();
        }
    }
    crops
}

fn trace_encoder(
    family: &dyn Family,
    ops: &dyn Ops,
    encoded: &Encoded,
    layout: &VisualLayout,
    trace: &mut dyn Trace,
) -> Result<(), RunError> {
    let width = encoded.hidden.cols();
    let all = ops.download(&encoded.hidden)?;
    let cls = usize::from(family.info().encoder.cls);
    let mut patches = Vec::new();
    for &(first, rows) in &encoded.crops {
        patches.extend_from_slice(&all[(first + cls) * width..(first + rows) * width]);
    }
    trace.floats("encoder.hidden", &[patches.len() / width, width], &patches);
    let dense = family.project(encoded, layout)?;
    trace.floats(
        "encoder.tokens",
        &[dense.rows.rows(), dense.rows.cols()],
        &ops.download(&dense.rows)?,
    );
    for (j, level) in dense.levels.iter().enumerate() {
        trace.floats(
            &format!("encoder.deepstack.{j}"),
            &[level.rows(), level.cols()],
            &ops.download(level)?,
        );
    }
    for (name, values, shape) in &encoded.outputs {
        trace.ints(name, shape, values);
    }
    Ok(())
}

fn run_encoder_site(
    family: &dyn Family,
    ops: &dyn Ops,
    encoded: &Encoded,
    layout: &VisualLayout,
    chain: &ResolvedChain,
    memories: &mut [Memory],
    signals: &mut Signals,
) -> Result<Visual, RunError> {
    let model = family.info();
    let stages: Vec<&ResolvedStage> = chain.at(EARLY_SITES[0]).collect();
    let in_tower = model.one_to_one && !stages.is_empty();
    let (rows, levels) = if in_tower {
        (tower_rows(ops, encoded, layout), Vec::new())
    } else {
        let VisualRows { rows, levels } = family.project(encoded, layout)?;
        (rows, levels)
    };
    let tokens = layout.map.clone();
    let mut visual = Visual { tokens, rows, levels, stages: Vec::new(), time: Duration::ZERO };
    for stage in stages {
        let start = Instant::now();
        let entered = visual.tokens.len();
        let memory = &mut memories[stage.entry];
        let selection = choose(stage, &visual.tokens, entered, signals, memory, chain.floor)?;
        let adds = selection.cls || !selection.appended.is_empty() || !selection.merges.is_empty();
        if adds && !in_tower {
            return Err(RunError::Selection {
                pruner: stage.name.clone(),
                site: stage.plan.site.to_string(),
                reason: format!(
                    "it merges tower rows, but in {} a visual token is not one tower row",
                    model.name
                ),
            });
        }
        let before = std::mem::take(&mut visual.tokens);
        let after = before.compose(&selection);
        if selection.cls || !selection.appended.is_empty() {
            visual.rows = with_extra_rows(ops, encoded, &before, &selection, &visual.rows);
            // The tokens count anew; what is left of the raster keeps its patches.
            let by_place: Vec<PatchSource> = extra_sources(&before, &selection, &signals.sources);
            signals.sources = by_place;
        } else {
            apply_rows(ops, &mut visual, &selection);
        }
        visual.time += start.elapsed();
        visual.stages.push(report(stage, &before, &after, &selection, start.elapsed()));
        visual.tokens = after;
    }
    if in_tower {
        visual.rows = family.project_rows(&visual.rows)?;
    }
    Ok(visual)
}

/// One tower row a visual token.
fn tower_rows(ops: &dyn Ops, encoded: &Encoded, layout: &VisualLayout) -> Tensor {
    let index: Vec<u32> = layout
        .sources
        .iter()
        .filter_map(|s| match s {
            TokenSource::Rows(rows) => rows.first().copied(),
            _ => None,
        })
        .collect();
    let mut rows = Tensor::zeros(0, 0);
    ops.gather_rows(&encoded.hidden, &index, &mut rows);
    rows
}

/// Order of rows after a selection with class and appended rows: per crop the class row, the kept
/// rows, the appended sums. `Err(crop)` marks a class row.
fn extra_order(before: &TokenMap, selection: &Selection) -> Vec<Result<RowSum, usize>> {
    let mut order = Vec::new();
    for (crop, range) in before.crops().into_iter().enumerate() {
        if selection.cls {
            order.push(Err(crop));
        }
        let inside = |i: u32| range.contains(&(i as usize));
        for &i in selection.kept.iter().filter(|&&i| inside(i)) {
            let merge = selection.merges.iter().find(|m| m.target == i);
            order.push(Ok(RowSum {
                terms: merge.map_or_else(|| vec![(i, 1.0)], |m| m.terms.clone()),
            }));
        }
        for merge in selection.appended.iter().filter(|m| inside(m.target)) {
            order.push(Ok(RowSum { terms: merge.terms.clone() }));
        }
    }
    order
}

fn with_extra_rows(
    ops: &dyn Ops,
    encoded: &Encoded,
    before: &TokenMap,
    selection: &Selection,
    rows: &Tensor,
) -> Tensor {
    // Class rows are put below the current rows, so that one weighted sum makes the result.
    let class_rows: Vec<u32> = encoded.crops.iter().map(|&(first, _)| first as u32).collect();
    let mut classes = Tensor::zeros(0, 0);
    ops.gather_rows(&encoded.hidden, &class_rows, &mut classes);
    let mut all = Tensor::zeros(rows.rows() + classes.rows(), rows.cols());
    ops.write_rows(&mut all, 0, rows);
    ops.write_rows(&mut all, rows.rows(), &classes);
    let sums: Vec<RowSum> = extra_order(before, selection)
        .into_iter()
        .map(|row| match row {
            Ok(sum) => sum,
            Err(crop) => RowSum { terms: vec![((rows.rows() + crop) as u32, 1.0)] },
        })
        .collect();
    let mut out = Tensor::zeros(0, 0);
    ops.sum_rows(&all, &sums, &mut out);
    out
}

fn extra_sources(
    before: &TokenMap,
    selection: &Selection,
    sources: &[PatchSource],
) -> Vec<PatchSource> {
    extra_order(before, selection)
        .into_iter()
        .map(|row| match row {
            Ok(sum) if sum.terms.len() == 1 => {
                sources[before.tokens[sum.terms[0].0 as usize].index as usize].clone()
            }
            _ => PatchSource::default(),
        })
        .collect()
}

/// Cuts and merges rows and levels.
fn apply_rows(ops: &dyn Ops, visual: &mut Visual, selection: &Selection) {
    visual.rows = cut_rows(ops, &visual.rows, selection);
    for level in &mut visual.levels {
        *level = cut_rows(ops, level, selection);
    }
}

/// Kept rows in order, merged ones as their weighted sums.
pub(crate) fn cut_rows(ops: &dyn Ops, rows: &Tensor, selection: &Selection) -> Tensor {
    let mut out = Tensor::zeros(0, 0);
    if selection.merges.is_empty() {
        ops.gather_rows(rows, &selection.kept, &mut out);
        return out;
    }
    let mut sums: Vec<RowSum> =
        selection.kept.iter().map(|&i| RowSum { terms: vec![(i, 1.0)] }).collect();
    for merge in &selection.merges {
        let at = selection.kept.partition_point(|&k| k < merge.target);
        sums[at].terms.clone_from(&merge.terms);
    }
    ops.sum_rows(rows, &sums, &mut out);
    out
}

#[allow(clippy::too_many_arguments, reason = "the parts of one request, each borrowed on its own")]
fn run_input_site(
    family: &dyn Family,
    ops: &dyn Ops,
    prompt: &Prompt,
    layout: &VisualLayout,
    chain: &ResolvedChain,
    memories: &mut [Memory],
    signals: &mut Signals,
    visual: &mut Visual,
) -> Result<(), RunError> {
    let asked = chain.signals();
    if asked.contains(&Signal::InstructionEmbedding) {
        signals.instruction = Some(instruction_embedding(family, ops, prompt, layout)?);
    }
    // A decoder stage may want the tokens that entered as well.
    let wants_rows = asked.contains(&Signal::Embeddings);
    for stage in chain.at(EARLY_SITES[1]) {
        let start = Instant::now();
        if wants_rows {
            signals.embeddings = Some(host_rows(ops, &visual.rows)?);
        }
        let entered = visual.tokens.len();
        let memory = &mut memories[stage.entry];
        let selection = choose(stage, &visual.tokens, entered, signals, memory, chain.floor)?;
        let before = std::mem::take(&mut visual.tokens);
        let after = before.compose(&selection);
        apply_rows(ops, visual, &selection);
        visual.time += start.elapsed();
        visual.stages.push(report(stage, &before, &after, &selection, start.elapsed()));
        visual.tokens = after;
    }
    if wants_rows {
        signals.embeddings = Some(host_rows(ops, &visual.rows)?);
    }
    Ok(())
}

pub(crate) fn host_rows(ops: &dyn Ops, rows: &Tensor) -> Result<Array2<f32>, RunError> {
    Array2::from_shape_vec((rows.rows(), rows.cols()), ops.download(rows)?)
        .map_err(|e| RunError::Shape(e.to_string()))
}

/// Mean of the embedded text rows after the last visual token.
fn instruction_embedding(
    family: &dyn Family,
    ops: &dyn Ops,
    prompt: &Prompt,
    layout: &VisualLayout,
) -> Result<Array1<f32>, RunError> {
    let behind = &prompt.slots[prompt.behind_visual()..];
    let text: Vec<u32> = behind.iter().filter_map(Slot::text).collect();
    if text.is_empty() || layout.map.is_empty() {
        return Ok(Array1::zeros(family.info().decoder.hidden));
    }
    let rows = host_rows(ops, &family.decoder().embed(&text)?)?;
    Ok(rows.mean_axis(ndarray::Axis(0)).expect("there is at least one text row"))
}

/// Positions after the early sites: renumbered if any stage says so, except on M-RoPE, where
/// renumbering has no meaning, and always if rows were added that have no place of their own.
fn early_policy(chain: &ResolvedChain, mrope: bool, tokens: &TokenMap) -> PositionPolicy {
    let renumber = chain
        .stages
        .iter()
        .filter(|s| !matches!(s.plan.site, Site::Decoder(_)))
        .any(|s| s.plan.positions == PositionPolicy::Renumber);
    if (renumber || tokens.rebased) && !mrope {
        PositionPolicy::Renumber
    } else {
        PositionPolicy::Keep
    }
}

/// A prompt with the visual tokens that are left.
struct Joined {
    /// Row of the unpruned prompt at whose place each row stands, never falling.
    slots: Vec<u32>,
    rows: PromptRows,
}

impl Joined {
    /// The rows that entered the decoder for rows of the unpruned prompt.
    fn outputs(&self, wanted: Outputs) -> Result<Outputs, RunError> {
        let Outputs::Listed(rows) = wanted else { return Ok(Outputs::Last) };
        let place = |row: &u32| match self.slots.binary_search(row) {
            Ok(at) => Ok(at as u32),
            Err(_) => Err(RunError::Prompt(format!("row {row} is wanted and is not there"))),
        };
        Ok(Outputs::Listed(rows.iter().map(place).collect::<Result<_, _>>()?))
    }
}

/// The sequence with the visual tokens that are left. A token with a place keeps its slot; tokens
/// that were added stand with their crop.
fn join(
    prompt: &Prompt,
    positions: &Positions,
    visibility: &Visibility,
    layout: &VisualLayout,
    tokens: &TokenMap,
    policy: PositionPolicy,
) -> Joined {
    // Which of the current tokens follow which original slot.
    let places = places(layout, tokens);
    let (mut slots, mut origins) = (Vec::new(), Vec::new());
    let mut at = 0;
    for (i, &slot) in (0u32..).zip(&prompt.slots) {
        let Slot::Visual(original) = slot else {
            slots.push(i);
            origins.push(Origin::from(slot));
            continue;
        };
        while at < places.len() && places[at] == original {
            slots.push(i);
            origins.push(Origin::Visual(tokens.tokens[at].index));
            at += 1;
        }
    }
    debug_assert_eq!(at, tokens.len(), "every visual token found its slot");
    let mut rows = PromptRows {
        ids: prompt.ids.clone(),
        rows: (0..slots.len() as u32).collect(),
        origins,
        positions: slots.iter().map(|&i| positions.prompt[i as usize]).collect(),
        visibility: visibility.of_rows(&slots),
        next: positions.next,
    };
    if policy == PositionPolicy::Renumber && tokens.len() != layout.map.len() {
        rows.renumber(positions.prompt.first().map_or(0, |p| p[0]));
    }
    Joined { slots, rows }
}

/// For each current token the original visual index at whose place it stands, ascending.
fn places(layout: &VisualLayout, tokens: &TokenMap) -> Vec<u32> {
    if !tokens.rebased {
        return tokens.indices();
    }
    // Added rows have no slot: each crop's tokens all stand at its first one.
    let first_of_grid =
        |grid: u32| layout.map.tokens.iter().find(|t| t.grid == grid).map_or(0, |t| t.index);
    tokens.tokens.iter().map(|t| first_of_grid(t.grid)).collect()
}

fn embed(
    family: &dyn Family,
    ops: &dyn Ops,
    prompt: &Prompt,
    joined: &Joined,
    visual: &Tensor,
    given: &Array2<f32>,
) -> Result<Tensor, RunError> {
    let slots: Vec<Slot> = joined.slots.iter().map(|&i| prompt.slots[i as usize]).collect();
    let places = |is: fn(&Slot) -> bool| -> Vec<u32> {
        (0u32..).zip(&slots).filter(|(_, slot)| is(slot)).map(|(row, _)| row).collect()
    };
    let text: Vec<u32> = slots.iter().filter_map(Slot::text).collect();
    let rows = family.decoder().embed(&text)?;
    let mut x = ops.upload(slots.len(), rows.cols(), &vec![0.0; slots.len() * rows.cols()])?;
    ops.add_rows(&mut x, &places(|slot| slot.text().is_some()), &rows);
    ops.add_rows(&mut x, &joined.rows.visual(), visual);
    let of_caller = places(|slot| slot.given().is_some());
    if !of_caller.is_empty() {
        ops.add_rows(&mut x, &of_caller, &given_rows(ops, &slots, given)?);
    }
    Ok(x)
}
