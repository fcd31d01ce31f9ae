//! A tower: embedding, layers, and the signals that pruners read.
//!
//! Invariants
//! - Rows of [`Encoded`] stand crop by crop in the processor's order of patches, whatever windows
//!   did inside; signals too.
//! - Crops of one patch grid run together, at most [`BATCH_ROWS`] rows (or one crop) at a time, so
//!   memory is bounded by the largest crop and not by the request.
//! - Score rows come out of the attention's own pass; nothing is computed that was not asked for.
//!
//! Not here: the merger (the family), so Qwen's features are the rows before it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use secateur_core::error::RunError;
use secateur_core::model::{Control, Encoded, Encoder, EncoderInfo, Pixels, SignalKind, Withheld};
use secateur_core::ops::{Norm, Ops};
use secateur_core::signal::{CropSignals, Signal};
use secateur_core::tensor::Tensor;
use secateur_core::weights::Weights;

use super::EncoderLoadError;
use super::block::{Block, Pass, Scratch, load_norm};
use super::config::{Config, Layout};
use super::embed::{Embed, patch_rows, rope};
use super::pool::PoolingHead;
use super::signals::{self, Asked};
use super::window::{self, WindowOrder};

/// Most rows of crops that run together.
const BATCH_ROWS: usize = 4096;

/// A vision transformer on an operation set.
#[derive(Debug)]
pub(crate) struct Tower {
    config: Config,
    info: EncoderInfo,
    embed: Embed,
    blocks: Vec<Block>,
    final_norm: Option<Norm>,
    pooling: Option<PoolingHead>,
    ops: Arc<dyn Ops>,
}

/// One crop of the request.
#[derive(Clone, Copy, Debug)]
struct Unit {
    clip: usize,
    crop: usize,
    /// Patches down and across.
    grid: (usize, usize),
}

/// What a run of crops of one grid gave.
struct Batch {
    hidden: Tensor,
    levels: Vec<Tensor>,
}

impl Tower {
    pub(crate) fn load(
        config: Config,
        weights: &Weights,
        ops: Arc<dyn Ops>,
    ) -> Result<Self, EncoderLoadError> {
        let embed = Embed::load(&config, weights, ops.as_ref())?;
        let blocks = (0..config.layers)
            .map(|i| Block::load(&config, i, weights, ops.as_ref()))
            .collect::<Result<_, _>>()?;
        let final_norm = match config.final_norm {
            None => None,
            Some(name) => {
                let name = format!("tower.{name}");
                Some(load_norm(
                    ops.as_ref(),
                    weights,
                    &name,
                    config.width,
                    config.norm,
                    config.eps,
                )?)
            }
        };
        let (pooling, withheld) = match PoolingHead::load(&config, weights, ops.as_ref()) {
            Ok(head) => (Some(head), Vec::new()),
            Err(reason) => (None, vec![Withheld::all(SignalKind::PoolingAttention, reason)]),
        };
        let full_attention_layers = match &config.windows {
            None => (0..config.layers).collect(),
            Some(w) => w.full.iter().copied().filter(|l| *l < config.layers).collect(),
        };
        let info = EncoderInfo {
            tower: config.kind.clone(),
            layers: config.layers,
            file_layers: config.file_layers,
            heads: config.heads,
            width: config.width * config.features.len(),
            cls: config.class_token,
            full_attention_layers,
            withheld,
        };
        Ok(Self { config, info, embed, blocks, final_norm, pooling, ops })
    }

    /// The crops of all clips, checked against what the tower takes.
    fn units(&self, pixels: &[&Pixels]) -> Result<Vec<Unit>, RunError> {
        let mut units = Vec::new();
        let patch = self.config.patch;
        for (clip, p) in pixels.iter().enumerate() {
            let wrong = |expected: String| {
                RunError::Shape(format!(
                    "pixels of shape {:?} with {} crops, the tower `{}` takes {expected}",
                    p.shape,
                    p.crops.len(),
                    self.config.kind
                ))
            };
            let elements: usize = p.shape.iter().product();
            if elements != p.values.len() {
                return Err(wrong(format!("{} values", p.values.len())));
            }
            match (self.config.layout, p.shape.as_slice()) {
                (Layout::Qwen, &[rows, width]) => {
                    let [t, h, w] = p.grid_thw.unwrap_or_default();
                    let fits = t == p.crops.len()
                        && rows == t * h * w
                        && width == self.config.patch_width()
                        && h.is_multiple_of(self.config.merge)
                        && w.is_multiple_of(self.config.merge)
                        && rows > 0;
                    if !fits {
                        let width = self.config.patch_width();
                        return Err(wrong(format!("[t * h * w, {width}] with t crops")));
                    }
                    units.extend((0..t).map(|crop| Unit { clip, crop, grid: (h, w) }));
                }
                (Layout::Clip | Layout::Intern, &[crops, 3, height, width]) => {
                    let grid = (height / patch, width / patch);
                    let fits = crops == p.crops.len() && grid.0 > 0 && grid.1 > 0;
                    if !fits {
                        return Err(wrong("[crops, 3, height, width] of at least a patch".into()));
                    }
                    let own = (self.config.table, self.config.table);
                    if self.config.positions == super::config::Positions::Table && grid != own {
                        let side = self.config.image;
                        return Err(wrong(format!("[crops, 3, {side}, {side}]")));
                    }
                    units.extend((0..crops).map(|crop| Unit { clip, crop, grid }));
                }
                _ => return Err(wrong("another kind of processor's pixels".into())),
            }
        }
        Ok(units)
    }

    /// Layers at which each signal is read.
    fn check_signals(&self, signals: &[Signal]) -> Result<(), RunError> {
        for signal in signals {
            if let Some(layer) = signal.encoder_layer()
                && !self.info.full_attention_layers.contains(&layer)
            {
                return Err(RunError::Shape(format!(
                    "signal `{signal}`: the tower `{}` offers layers {:?}",
                    self.config.kind, self.info.full_attention_layers
                )));
            }
            if *signal == Signal::PoolingAttention
                && let Some(Withheld { reason, .. }) =
                    self.info.withheld.iter().find(|w| w.kind == SignalKind::PoolingAttention)
            {
                return Err(RunError::Shape(format!("signal `{signal}`: {reason}")));
            }
            if matches!(signal, Signal::ClsAttention { .. }) && !self.config.class_token {
                return Err(RunError::Shape(format!(
                    "signal `{signal}`: the tower `{}` has no class token",
                    self.config.kind
                )));
            }
        }
        Ok(())
    }

    /// Patch rows of crops of one grid.
    fn patches(&self, pixels: &[&Pixels], units: &[Unit]) -> Result<Tensor, RunError> {
        let width = self.config.patch_width();
        let (h, w) = units[0].grid;
        let mut rows = Vec::with_capacity(units.len() * h * w * width);
        for unit in units {
            let p = pixels[unit.clip];
            let len = p.values.len() / p.crops.len();
            let values = &p.values[unit.crop * len..][..len];
            match self.config.layout {
                Layout::Qwen => rows.extend_from_slice(values),
                Layout::Clip | Layout::Intern => {
                    patch_rows(values, (p.shape[2], p.shape[3]), self.config.patch, &mut rows);
                }
            }
        }
        self.ops.upload(units.len() * h * w, width, &rows)
    }

    /// Runs crops of one grid; `out` has one entry a crop.
    fn run(
        &self,
        pixels: &[&Pixels],
        units: &[Unit],
        wanted: &[Signal],
        control: &Control,
        scratch: &mut Scratch,
        out: &mut [CropSignals],
    ) -> Result<Batch, RunError> {
        let (config, ops) = (&self.config, self.ops.as_ref());
        let (h, w) = units[0].grid;
        let per_crop = h * w + config.class_rows();
        let base = self.embed.base(config, h, w, ops)?;
        let patches = self.patches(pixels, units)?;
        let mut x = self.embed.run(config, units.len(), &patches, base.as_ref(), ops);
        drop(patches);

        let crops: Vec<Range<usize>> =
            (0..units.len()).map(|c| c * per_crop..(c + 1) * per_crop).collect();
        let order = WindowOrder::new(config, (h, w), units.len());
        let mut rotation =
            config.positions_rotate().then(|| rope(ops, config, [h, w], units.len()));
        if let Some(order) = &order {
            x = gathered(ops, &x, &order.rows);
            if let Some(table) = &mut rotation {
                *table = ops.rotation_rows(table, &order.rows);
            }
        }
        let mut states = BTreeMap::new();
        let mut levels = Vec::new();
        let mut keep = |index: usize, x: &Tensor| {
            if config.features.contains(&index) && index != config.layers {
                states.insert(index, x.clone());
            }
        };
        keep(0, &x);
        for (layer, block) in self.blocks.iter().enumerate() {
            control.check()?;
            let asked = Asked::new(layer, wanted);
            let windowed = config.windows.as_ref().is_some_and(|w| !w.full.contains(&layer));
            let segments = match &order {
                Some(order) if windowed => &order.segments,
                _ => &crops,
            };
            let pass = Pass {
                segments,
                rope: rotation.as_ref(),
                scores: &asked.requests,
                wants_keys: asked.keys.is_some(),
            };
            let reported = block.run(ops, &mut x, &pass, scratch)?;
            let back = order.as_ref().map(|o| o.rows[..per_crop].to_vec());
            asked.take(ops, reported, config.class_rows(), per_crop, back.as_deref(), out)?;
            keep(layer + 1, &x);
            if config.levels.contains(&layer) {
                levels.push(x.clone());
            }
        }
        if let Some(head) =
            self.pooling.as_ref().filter(|_| wanted.contains(&Signal::PoolingAttention))
        {
            let mut normed = Tensor::zeros(0, 0);
            ops.norm(&head.norm, &x, &mut normed);
            let normed = ops.download(&normed)?;
            for (crop, rows) in out.iter_mut().zip(normed.chunks_exact(per_crop * x.cols())) {
                let scores = head.attention(rows);
                if scores.iter().any(|s| !s.is_finite()) {
                    let signal = Signal::PoolingAttention.to_string();
                    return Err(RunError::NonFinite { signal, layer: config.layers - 1 });
                }
                crop.vectors.insert(Signal::PoolingAttention, scores.into());
            }
        }
        if let Some(norm) = &self.final_norm {
            let mut normed = Tensor::zeros(0, 0);
            ops.norm(norm, &x, &mut normed);
            x = normed;
        }
        let mut hidden = if config.features == [config.layers] {
            x
        } else {
            states.insert(config.layers, x);
            side_by_side(ops, &config.features, &states)?
        };
        if let Some(order) = &order {
            hidden = gathered(ops, &hidden, &order.inverse);
            levels = levels.iter().map(|l| gathered(ops, l, &order.inverse)).collect();
        }
        if wanted.contains(&Signal::EncoderFeatures) {
            let shape = Some((per_crop, hidden.cols()));
            signals::file(Signal::EncoderFeatures, &ops.download(&hidden)?, shape, out)?;
        }
        Ok(Batch { hidden, levels })
    }

    /// Window order of all crops, as the reference names it.
    fn window_outputs(&self, units: &[Unit]) -> Vec<(String, Vec<i64>, Vec<usize>)> {
        let Some(windows) = &self.config.windows else { return Vec::new() };
        let block = self.config.merge * self.config.merge;
        let (mut index, mut ends) = (Vec::new(), vec![0i64]);
        let (mut first, mut end) = (0i64, 0i64);
        for unit in units {
            let merge = self.config.merge;
            let frame = window::frame(unit.grid.0 / merge, unit.grid.1 / merge, windows.side);
            index.extend(frame.cells.iter().map(|c| first + *c as i64));
            first += frame.cells.len() as i64;
            for size in frame.sizes {
                end += (size * block) as i64;
                ends.push(end);
            }
        }
        let (cells, count) = (index.len(), ends.len());
        vec![
            ("encoder.window_index".into(), index, vec![cells]),
            ("encoder.cu_window_seqlens".into(), ends, vec![count]),
        ]
    }
}

impl Config {
    fn positions_rotate(&self) -> bool {
        use super::config::Positions;
        matches!(self.positions, Positions::Rope | Positions::RopeAndTable)
    }
}

fn gathered(ops: &dyn Ops, x: &Tensor, index: &[u32]) -> Tensor {
    let mut out = Tensor::zeros(0, 0);
    ops.gather_rows(x, index, &mut out);
    out
}

/// Several states side by side: `[rows, width * states]`.
fn side_by_side(
    ops: &dyn Ops,
    features: &[usize],
    states: &BTreeMap<usize, Tensor>,
) -> Result<Tensor, RunError> {
    let parts: Vec<(Vec<f32>, usize)> = features
        .iter()
        .map(|f| Ok((ops.download(&states[f])?, states[f].cols())))
        .collect::<Result<_, RunError>>()?;
    let rows = states[&features[0]].rows();
    let mut out = Vec::with_capacity(rows * parts.iter().map(|p| p.1).sum::<usize>());
    for r in 0..rows {
        for (values, cols) in &parts {
            out.extend_from_slice(&values[r * cols..(r + 1) * cols]);
        }
    }
    ops.upload(rows, out.len() / rows.max(1), &out)
}

impl Encoder for Tower {
    fn info(&self) -> &EncoderInfo {
        &self.info
    }

    fn encode(
        &self,
        pixels: &[&Pixels],
        asked: &[Signal],
        control: &Control,
    ) -> Result<Encoded, RunError> {
        let units = self.units(pixels)?;
        self.check_signals(asked)?;
        let class = self.config.class_rows();
        let mut crops = Vec::with_capacity(units.len());
        let mut total = 0;
        for unit in &units {
            let rows = unit.grid.0 * unit.grid.1 + class;
            crops.push((total, rows));
            total += rows;
        }
        let mut out = vec![CropSignals::default(); units.len()];
        let mut first = 0;
        for p in pixels {
            let next = first + p.crops.len();
            signals::file_pixels(p, asked, &mut out[first..next]);
            first = next;
        }
        let mut scratch = Scratch::new();
        let mut joined: Option<Batch> = None;
        let mut first = 0;
        while first < units.len() {
            let per_crop = crops[first].1;
            let same = units[first..].iter().take_while(|u| u.grid == units[first].grid).count();
            let count = same.min((BATCH_ROWS / per_crop).max(1));
            let (part, place) = (&units[first..first + count], &mut out[first..first + count]);
            let mut run = || self.run(pixels, part, asked, control, &mut scratch, place);
            let batch = run()?;
            if count == units.len() {
                joined = Some(batch);
            } else {
                let joined = match &mut joined {
                    Some(joined) => joined,
                    None => joined.insert(self.empty(total, &batch)?),
                };
                self.ops.write_rows(&mut joined.hidden, crops[first].0, &batch.hidden);
                for (all, one) in joined.levels.iter_mut().zip(&batch.levels) {
                    self.ops.write_rows(all, crops[first].0, one);
                }
            }
            first += count;
        }
        let batch = match joined {
            Some(batch) => batch,
            None => Batch { hidden: self.ops.upload(0, self.info.width, &[])?, levels: Vec::new() },
        };
        let outputs = self.window_outputs(&units);
        Ok(Encoded { hidden: batch.hidden, crops, levels: batch.levels, signals: out, outputs })
    }
}

impl Tower {
    /// Room for the rows of all batches.
    fn empty(&self, rows: usize, like: &Batch) -> Result<Batch, RunError> {
        let room = |x: &Tensor| self.ops.upload(rows, x.cols(), &vec![0.0; rows * x.cols()]);
        Ok(Batch {
            hidden: room(&like.hidden)?,
            levels: like.levels.iter().map(room).collect::<Result<_, _>>()?,
        })
    }
}
