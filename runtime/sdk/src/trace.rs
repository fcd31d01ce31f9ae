//! Every tensor of a run by name, to compare a port with its reference.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use secateur_core::assemble::patch_sources;
use secateur_core::error::RunError;
use secateur_core::model::{Control, Slot};
use secateur_core::signal::Signal;
use secateur_core::trace::Trace;
use secateur_models::registry::ProcessorOutputs;

use crate::error::Error;
use crate::generate::{Generation, step};
use crate::pipeline::Prepared;
use crate::request::Request;
use crate::vlm::Vlm;

/// One tensor of a trace.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// f32.
    Floats(Vec<f32>),
    /// i64.
    Ints(Vec<i64>),
}

/// Named tensors with their shapes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tensors {
    entries: BTreeMap<String, (Vec<usize>, Values)>,
}

impl Trace for Tensors {
    fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        self.entries.insert(name.to_owned(), (shape.to_vec(), Values::Floats(values.to_vec())));
    }

    fn ints(&mut self, name: &str, shape: &[usize], values: &[i64]) {
        self.entries.insert(name.to_owned(), (shape.to_vec(), Values::Ints(values.to_vec())));
    }
}

impl Tensors {
    /// All tensors by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[usize], &Values)> {
        self.entries.iter().map(|(name, (shape, values))| (name.as_str(), shape.as_slice(), values))
    }

    /// One tensor.
    pub fn get(&self, name: &str) -> Option<(&[usize], &Values)> {
        self.entries.get(name).map(|(shape, values)| (shape.as_slice(), values))
    }

    fn indices(&mut self, name: &str, values: &[u32]) {
        let values: Vec<i64> = values.iter().map(|&v| i64::from(v)).collect();
        self.ints(name, &[values.len()], &values);
    }

    /// The content of a safetensors file.
    ///
    /// # Errors
    /// Never for tensors that a trace made.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, safetensors::SafeTensorError> {
        let bytes: Vec<(&str, Dtype, &[usize], Vec<u8>)> = self
            .entries
            .iter()
            .map(|(name, (shape, values))| {
                let (dtype, bytes) = match values {
                    Values::Floats(v) => {
                        (Dtype::F32, v.iter().flat_map(|x| x.to_le_bytes()).collect())
                    }
                    Values::Ints(v) => {
                        (Dtype::I64, v.iter().flat_map(|x| x.to_le_bytes()).collect())
                    }
                };
                (name.as_str(), dtype, shape.as_slice(), bytes)
            })
            .collect();
        let views = bytes
            .iter()
            .map(|(name, dtype, shape, bytes)| {
                Ok((*name, TensorView::new(*dtype, shape.to_vec(), bytes)?))
            })
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
        safetensors::serialize(views, None)
    }
}

/// What pruners carry into a traced control step: `stage.{k}.history` of a state file, by entry.
pub type Histories = BTreeMap<usize, ndarray::Array2<f32>>;

/// Reads `stage.{k}.history` tensors `[entries, visual tokens]` from a safetensors file.
///
/// # Errors
/// A file that cannot be read, or that holds something else.
pub fn read_histories(path: &Path) -> Result<Histories, Error> {
    let fail = |reason: String| Error::Model { model: path.display().to_string(), reason };
    let bytes = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
    let file = safetensors::SafeTensors::deserialize(&bytes).map_err(|e| fail(e.to_string()))?;
    let mut histories = Histories::new();
    for (name, tensor) in file.tensors() {
        let entry = name.strip_prefix("stage.").and_then(|n| n.strip_suffix(".history"));
        let entry = entry.and_then(|n| n.parse::<usize>().ok());
        let (Some(entry), Dtype::F32, &[rows, cols]) = (entry, tensor.dtype(), tensor.shape())
        else {
            return Err(fail(format!("`{name}` is not an f32 matrix `stage.K.history`")));
        };
        let values =
            tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let matrix = ndarray::Array2::from_shape_vec((rows, cols), values)
            .map_err(|e| fail(format!("`{name}`: {e}")))?;
        histories.insert(entry, matrix);
    }
    Ok(histories)
}

impl Vlm {
    /// Runs one request and returns every tensor of it under the names of the golden format.
    ///
    /// # Errors
    /// As [`crate::Session::ask`].
    pub fn trace(&self, request: &Request, histories: &Histories) -> Result<Tensors, Error> {
        let model = &*self.model;
        let mut session = self.session();
        let chain = session.plan(request)?;
        let mut memories = session.memories(&chain);
        for (entry, history) in histories {
            if let (Some(stage), Some(memory)) =
                (chain.stages.iter().find(|s| s.entry == *entry), memories.get_mut(*entry))
            {
                stage.pruner.load_history(history.clone(), memory);
            }
        }
        let mut tensors = Tensors::default();
        let prepared = self.prepare(request, chain.clone(), memories)?;
        let ids = prepared.prompt.ids.clone();
        tensors.indices("input_ids", &ids);
        processor_outputs(&mut tensors, model.entry.outputs, &prepared);
        let next = prepared.positions.next;
        let last = prepared.positions.prompt.iter().flatten().copied().max().unwrap_or(0);
        tensors.ints("rope_delta", &[1], &[i64::from(last) + 1 - ids.len() as i64]);
        self.received(&mut tensors, &prepared)?;
        let (sequence, _) = self.encode(prepared, &request.control, Some(&mut tensors))?;
        let mut generation = Generation::new(model, request, sequence);
        generation.logits = Some(Vec::new());
        let hidden = step(model, &mut [&mut generation], Some(&mut tensors))?;
        if let Some(error) = generation.failed.take() {
            return Err(error.into());
        }
        let logits = model.ops.download(&model.family.decoder().logits(&hidden)?)?;
        tensors.floats("logits", &[logits.len()], &logits);
        while generation.is_running() {
            step(model, &mut [&mut generation], None)?;
        }
        if let Some(error) = generation.failed.take() {
            return Err(error.into());
        }
        generation.sequence.observe();
        tensors.indices("greedy_ids", &generation.ids);
        let rows = generation.logits.take().unwrap_or_default();
        let flat: Vec<f32> = rows.concat();
        tensors.floats("greedy_logits", &[rows.len(), flat.len() / rows.len().max(1)], &flat);
        if model.info.decoder.mrope {
            let fed = generation.ids.len().saturating_sub(1) as i64;
            let row: Vec<i64> = (0..fed).map(|t| i64::from(next) + t).collect();
            tensors.ints("decode.positions", &[3, fed as usize], &row.repeat(3));
        }
        stages(&mut tensors, &generation, &chain);
        Ok(tensors)
    }
}

impl Vlm {
    /// Attention received in the tower's last layer, carried to the visual tokens, for towers
    /// without a class token.
    fn received(&self, tensors: &mut Tensors, prepared: &Prepared) -> Result<(), Error> {
        let info = &self.info().encoder;
        let layer = info.layers - 1;
        if info.cls || prepared.pixels.is_empty() || !info.full_attention_layers.contains(&layer) {
            return Ok(());
        }
        let signal = Signal::ColumnMean { layer };
        let views: Vec<_> = prepared.pixels.iter().collect();
        let encoded = self.model.encoder.encode(&views, &[signal], &Control::default())?;
        let sources = patch_sources(&prepared.layout, &encoded, &*self.model.family);
        let scores: Vec<Vec<f32>> = encoded
            .signals
            .iter()
            .map(|crop| crop.vectors.get(&signal).map(|v| v.to_vec()).unwrap_or_default())
            .collect();
        let received: Vec<f32> = sources
            .iter()
            .map(|s| if s.patches.is_empty() { Ok(0.0) } else { s.score(&scores) })
            .collect::<Result<_, _>>()
            .map_err(|(crop, patch)| {
                RunError::Shape(format!("patch {patch} of crop {crop} has no score"))
            })?;
        tensors.floats("encoder.received", &[received.len()], &received);
        Ok(())
    }
}

/// What the reference's processor returns beside the ids, pictures of a request together.
fn processor_outputs(tensors: &mut Tensors, layout: ProcessorOutputs, prepared: &Prepared) {
    let mut values: BTreeMap<&str, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    let mut outputs: BTreeMap<&str, (Vec<usize>, Vec<i64>)> = BTreeMap::new();
    for pixels in prepared.pixels.iter() {
        let name = if pixels.video { layout.video_values } else { "pixel_values" };
        let mut shape = pixels.shape.clone();
        if layout.crops_stacked {
            shape.insert(0, 1);
        }
        match values.get_mut(name) {
            // Pictures of several numbers of crops have no common tensor; the reference pads.
            Some((all, data)) if all[1..] == shape[1..] => {
                all[0] += shape[0];
                data.extend_from_slice(&pixels.values);
            }
            Some(_) => {}
            None => {
                values.insert(name, (shape, pixels.values.clone()));
            }
        }
        for (name, data, shape) in &pixels.outputs {
            let entry = outputs.entry(name).or_insert_with(|| (shape.clone(), Vec::new()));
            if !entry.1.is_empty() {
                entry.0[0] += shape[0];
            }
            entry.1.extend_from_slice(data);
        }
        if let (Some(_), Some(fps), true) = (pixels.grid_thw, pixels.fps, pixels.video) {
            tensors.floats("second_per_grid_ts", &[1], &[(TEMPORAL_PATCH / fps) as f32]);
        }
    }
    for (name, (shape, data)) in values {
        tensors.floats(name, &shape, &data);
    }
    for (name, (shape, data)) in outputs {
        tensors.ints(name, &shape, &data);
    }
    let grids = &prepared.layout.map.grids;
    let kind = |slot: &Slot| match slot {
        Slot::Text(_) | Slot::Given(_) => 0,
        Slot::Visual(v) => {
            let token = &prepared.layout.map.tokens[*v as usize];
            let picture = grids[token.grid as usize].picture as usize;
            1 + i64::from(prepared.pixels[picture].video)
        }
    };
    let kinds: Vec<i64> = prepared.prompt.slots.iter().map(kind).collect();
    tensors.ints("mm_token_type_ids", &[kinds.len()], &kinds);
}

/// Frames that make one temporal patch in the families that say seconds a grid step.
const TEMPORAL_PATCH: f64 = 2.0;

/// `stage.{k}.*`: an entry without a stage of its own reports the scores of its first drop and
/// what its last one kept.
fn stages(
    tensors: &mut Tensors,
    generation: &Generation,
    chain: &secateur_core::chain::ResolvedChain,
) {
    let sequence = &generation.sequence;
    for entry in 0..chain.entries {
        let mine: Vec<_> = sequence.record.stages.iter().filter(|s| s.entry == entry).collect();
        let whole = mine.iter().find(|s| s.drop.is_none());
        let scored = whole.or(mine.first()).and_then(|s| s.scores.as_ref());
        if let Some((_, scores)) = scored {
            tensors.floats(&format!("stage.{entry}.scores"), &[scores.len()], scores);
        }
        if let Some(last) = whole.or(mine.last()) {
            tensors.indices(&format!("stage.{entry}.kept"), &last.indices);
            tensors.indices(&format!("stage.{entry}.recycled"), &last.recycled);
        }
        for stage in &mine {
            let Some(drop) = stage.drop else { continue };
            if let Some((_, scores)) = &stage.scores {
                tensors.floats(&format!("stage.{entry}.{drop}.scores"), &[scores.len()], scores);
            }
            tensors.indices(&format!("stage.{entry}.{drop}.kept"), &stage.indices);
        }
        let pruner = chain.stages.iter().find(|s| s.entry == entry).map(|s| &s.pruner);
        if let Some(score) = pruner.and_then(|p| p.last_action_score(&sequence.memories[entry])) {
            tensors.floats(&format!("stage.{entry}.action_score"), &[score.len()], &score);
        }
    }
}
