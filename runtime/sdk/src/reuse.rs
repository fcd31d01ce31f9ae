//! What an earlier request computed and a later one need not: rows of the vision tower, by picture.
//!
//! A turn of a chat, another chain on the same picture and a second try find the rows that the first
//! request made. What is held is bounded in bytes ([`crate::VlmBuilder::reuse`]); what was used the
//! longest time ago goes first.
//!
//! Invariants
//! - A key is a hash of everything that an encoder is given of a clip, so equal keys are equal input.
//! - Rows are shared and never changed: a request's result has the same bits with and without
//!   (several clips together: in f32, since an encoder's rows do not depend on a clip's neighbours).
//! - Held bytes never exceed the bound; what was cancelled or failed is not held.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use secateur_core::clip::Grid;
use secateur_core::error::RunError;
use secateur_core::model::{Control, Encoded, Encoder, Pixels};
use secateur_core::ops::Ops;
use secateur_core::signal::{CropPixels, CropSignals, Signal};
use secateur_core::tensor::Tensor;

use crate::answer::ms;

/// Bytes that are held unless the builder says otherwise: the rows of some 25 pictures of 576 patches.
pub(crate) const DEFAULT_BYTES: usize = 64 << 20;

/// What a request did not compute because an earlier one had.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Reuse {
    /// Whether the vision tower ran, and why.
    pub encoded: Encoding,
    /// Pictures and videos of the request whose rows were there.
    pub clips: usize,
    /// What the tower took when it made those rows, milliseconds: what this request saved.
    pub saved_ms: f64,
    /// Whether the decoder read the whole prompt, and why.
    #[serde(default)]
    pub read: Reading,
    /// Tokens at the front of the prompt that it did not read again.
    #[serde(default)]
    pub prompt_tokens: usize,
}

/// Whether the decoder read the whole prompt of a request, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reading {
    /// All of it: nothing was asked before in this session (each request of a batch is alone).
    #[default]
    First,
    /// What is new: keys and values of the rest were held.
    Continued,
    /// All of it: a stage of the chain reads the text or watches the answer.
    ReadsText,
    /// All of it: a pruner carries state from step to step.
    CarriesState,
    /// All of it: the chain is another one.
    OtherChain,
    /// All of it: the pictures are others.
    OtherPictures,
    /// All of it: the text differs before the end of the pictures.
    OtherText,
    /// All of it: in this model the whole prompt sees itself.
    SeesItself,
    /// All of it: a head reads rows of the prompt or of the answer.
    ForHeads,
    /// All of it: the answer before failed.
    Failed,
    /// All of it: nothing is held ([`crate::VlmBuilder::reuse`] of 0).
    Off,
}

/// Whether the vision tower ran for a request, and why.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Encoding {
    /// The request has no picture.
    #[default]
    None,
    /// The rows of all its pictures were there.
    Reused,
    /// A picture was not seen before, or its rows were no longer held.
    New,
    /// Rows were there, without a signal that this chain reads.
    MoreSignals,
    /// Nothing is held ([`crate::VlmBuilder::reuse`] of 0), or every tensor of the run was asked for.
    Off,
}

pub(crate) type Key = [u8; 32];

/// The rows that are held of one model.
#[derive(Debug)]
pub(crate) struct Store {
    limit: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    entries: HashMap<Key, Entry>,
    bytes: usize,
    /// Counts uses.
    clock: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    rows: Arc<Encoded>,
    signals: BTreeSet<Signal>,
    /// What the tower took, milliseconds.
    ms: f64,
    bytes: usize,
    used: u64,
}

impl Held {
    fn get(&mut self, key: &Key) -> Option<&Entry> {
        self.clock += 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = self.clock;
        Some(entry)
    }

    fn put(&mut self, key: Key, mut entry: Entry, limit: usize) {
        if entry.bytes > limit {
            return;
        }
        let replaced = self.entries.remove(&key).map_or(0, |old| old.bytes);
        self.bytes -= replaced;
        while self.bytes + entry.bytes > limit {
            let oldest = self.entries.iter().min_by_key(|(_, e)| e.used).map(|(key, _)| *key);
            let Some(gone) = oldest.and_then(|key| self.entries.remove(&key)) else { break };
            self.bytes -= gone.bytes;
        }
        self.clock += 1;
        entry.used = self.clock;
        self.bytes += entry.bytes;
        self.entries.insert(key, entry);
    }
}

impl Store {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, held: Mutex::default() }
    }

    /// What the clips are known by; nothing if nothing is held.
    pub(crate) fn keys(&self, clips: &[&Pixels]) -> Vec<Key> {
        if self.limit == 0 { Vec::new() } else { clips.iter().map(|pixels| key(pixels)).collect() }
    }

    /// Whether anything is held.
    pub(crate) fn is_on(&self) -> bool {
        self.limit > 0
    }

    /// The rows of clips with (at least) the signals asked for: held ones, and those of the tower for
    /// the clips that are not known. There is at least one clip.
    pub(crate) fn encode(
        &self,
        ops: &dyn Ops,
        encoder: &dyn Encoder,
        clips: &[&Pixels],
        keys: &[Key],
        asked: &BTreeSet<Signal>,
        control: &Control,
    ) -> Result<(Arc<Encoded>, Reuse), RunError> {
        let run = |clips: &[&Pixels], signals: &BTreeSet<Signal>| {
            let signals: Vec<Signal> = signals.iter().copied().collect();
            let start = Instant::now();
            let mut encoded = Err(RunError::Cancelled("the tower did not run"));
            ops.scope(&mut || encoded = encoder.encode(clips, &signals, control));
            Ok::<_, RunError>((encoded?, ms(start.elapsed())))
        };
        if self.limit == 0 || keys.len() != clips.len() {
            let (encoded, _) = run(clips, asked)?;
            return Ok((encoded.into(), Reuse { encoded: Encoding::Off, ..Reuse::default() }));
        }
        let mut reuse = Reuse { encoded: Encoding::Reused, ..Reuse::default() };
        let mut known: HashMap<Key, Arc<Encoded>> = HashMap::new();
        let mut missing: Vec<usize> = Vec::new();
        let mut signals = asked.clone();
        {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            for (i, key) in keys.iter().enumerate() {
                let why = match held.get(key) {
                    Some(entry) if entry.signals.is_superset(asked) => {
                        reuse.clips += 1;
                        reuse.saved_ms += entry.ms;
                        known.insert(*key, entry.rows.clone());
                        continue;
                    }
                    Some(entry) => {
                        // With what it had, so that two chains do not take turns in losing it.
                        signals.extend(entry.signals.iter().copied());
                        Encoding::MoreSignals
                    }
                    None => Encoding::New,
                };
                reuse.encoded = reuse.encoded.max(why);
                if missing.iter().all(|&m| keys[m] != *key) {
                    missing.push(i);
                }
            }
        }
        if !missing.is_empty() {
            let views: Vec<&Pixels> = missing.iter().map(|&i| clips[i]).collect();
            let (encoded, took) = run(&views, &signals)?;
            let is_all = missing.len() == clips.len();
            let encoded = Arc::new(encoded);
            let pieces = split(ops, &encoded, &views);
            let rows = encoded.hidden.rows().max(1) as f64;
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            for (&i, rows_of) in missing.iter().zip(pieces) {
                let entry = Entry {
                    bytes: bytes(&rows_of),
                    ms: took * rows_of.hidden.rows() as f64 / rows,
                    rows: rows_of.clone(),
                    signals: signals.clone(),
                    used: 0,
                };
                held.put(keys[i], entry, self.limit);
                known.insert(keys[i], rows_of);
            }
            drop(held);
            if is_all {
                return Ok((encoded, reuse));
            }
        }
        let parts: Option<Vec<&Encoded>> =
            keys.iter().map(|key| known.get(key).map(|k| &**k)).collect();
        match (parts, keys) {
            (Some(_), [key]) => Ok((known[key].clone(), reuse)),
            (Some(parts), _) => Ok((join(ops, &parts)?.into(), reuse)),
            // The encoder gave other crops than the clips have: for `assemble` to name.
            (None, _) => Ok((run(clips, asked)?.0.into(), reuse)),
        }
    }
}

/// Hash of everything that an encoder is given of a clip.
fn key(pixels: &Pixels) -> Key {
    let Pixels { values, shape, crops, rgb, grid_thw, source, video, times_s, fps, outputs } =
        pixels;
    let mut hash = blake3::Hasher::new();
    let number = |hash: &mut blake3::Hasher, n: u64| {
        hash.update(&n.to_le_bytes());
    };
    let size = |hash: &mut blake3::Hasher, n: usize| number(hash, n as u64);
    let float = |hash: &mut blake3::Hasher, x: f64| number(hash, x.to_bits());
    size(&mut hash, shape.len());
    shape.iter().for_each(|&n| size(&mut hash, n));
    // In pieces that stay in the cache.
    for part in values.chunks(4096) {
        let bytes: Vec<u8> = part.iter().flat_map(|v| v.to_le_bytes()).collect();
        hash.update(&bytes);
    }
    size(&mut hash, crops.len());
    for Grid { picture, frame, tile, rows, cols, origin, cell, source } in crops {
        [picture, frame, tile, rows, cols].into_iter().for_each(|&n| number(&mut hash, n.into()));
        origin.iter().chain(cell).for_each(|&x| float(&mut hash, x));
        source.iter().for_each(|&n| number(&mut hash, n.into()));
    }
    size(&mut hash, rgb.len());
    for CropPixels { width, height, patch, rgb } in rgb {
        [*width, *height, *patch, rgb.len()].into_iter().for_each(|n| size(&mut hash, n));
        hash.update(rgb);
    }
    grid_thw.iter().flatten().for_each(|&n| size(&mut hash, n));
    source.iter().for_each(|&n| number(&mut hash, n.into()));
    number(&mut hash, u64::from(*video) + 2 * u64::from(grid_thw.is_some()));
    size(&mut hash, times_s.len());
    times_s.iter().for_each(|&x| float(&mut hash, x));
    float(&mut hash, fps.unwrap_or(f64::NAN));
    for (name, values, shape) in outputs {
        [name.len(), values.len(), shape.len()].into_iter().for_each(|n| size(&mut hash, n));
        hash.update(name.as_bytes());
        values.iter().for_each(|&v| number(&mut hash, v as u64));
        shape.iter().for_each(|&n| size(&mut hash, n));
    }
    hash.finalize().into()
}

fn bytes(encoded: &Encoded) -> usize {
    let rows = |x: &Tensor| x.rows() * x.cols();
    let signals = |crop: &CropSignals| {
        crop.vectors.values().map(|v| v.len()).sum::<usize>()
            + crop.matrices.values().map(|m| m.len()).sum::<usize>()
    };
    let numbers = rows(&encoded.hidden)
        + encoded.levels.iter().map(rows).sum::<usize>()
        + encoded.signals.iter().map(signals).sum::<usize>();
    numbers * size_of::<f32>()
}

/// The rows of each clip by itself; none if the crops are not those of the clips.
fn split(ops: &dyn Ops, encoded: &Arc<Encoded>, clips: &[&Pixels]) -> Vec<Arc<Encoded>> {
    if clips.iter().map(|p| p.crops.len()).sum::<usize>() != encoded.crops.len() {
        return Vec::new();
    }
    if clips.len() == 1 {
        return vec![encoded.clone()];
    }
    let mut next = 0;
    let piece = |pixels: &&Pixels| {
        let crops = next..next + pixels.crops.len();
        next = crops.end;
        let index: Vec<u32> = encoded.crops[crops.clone()]
            .iter()
            .flat_map(|&(first, rows)| first as u32..(first + rows) as u32)
            .collect();
        let gather = |x: &Tensor| {
            let mut out = Tensor::zeros(0, 0);
            ops.gather_rows(x, &index, &mut out);
            out
        };
        let mut first = 0;
        let placed = encoded.crops[crops.clone()].iter().map(|&(_, rows)| {
            let place = (first, rows);
            first += rows;
            place
        });
        Arc::new(Encoded {
            crops: placed.collect(),
            hidden: gather(&encoded.hidden),
            levels: encoded.levels.iter().map(gather).collect(),
            signals: encoded.signals.get(crops).map(<[_]>::to_vec).unwrap_or_default(),
            outputs: Vec::new(),
        })
    };
    clips.iter().map(piece).collect()
}

/// The rows of several clips below one another.
fn join(ops: &dyn Ops, parts: &[&Encoded]) -> Result<Encoded, RunError> {
    let below = |of: &dyn Fn(&Encoded) -> Option<&Tensor>| {
        let parts: Vec<&Tensor> = parts.iter().filter_map(|part| of(part)).collect();
        let (rows, cols) =
            (parts.iter().map(|p| p.rows()).sum(), parts.first().map_or(0, |p| p.cols()));
        let mut all = ops.zeros(rows, cols)?;
        let mut first = 0;
        for part in parts {
            ops.write_rows(&mut all, first, part);
            first += part.rows();
        }
        Ok::<_, RunError>(all)
    };
    let levels = parts.first().map_or(0, |part| part.levels.len());
    let mut joined = Encoded {
        hidden: below(&|part| Some(&part.hidden))?,
        crops: Vec::new(),
        levels: (0..levels)
            .map(|level| below(&|p| p.levels.get(level)))
            .collect::<Result<_, _>>()?,
        signals: Vec::new(),
        outputs: Vec::new(),
    };
    let mut first = 0;
    for part in parts {
        joined.crops.extend(part.crops.iter().map(|&(at, rows)| (first + at, rows)));
        first += part.hidden.rows();
        let mut signals = part.signals.clone();
        // An encoder without signals gives no entries: crops keep their place.
        signals.resize_with(part.crops.len(), CropSignals::default);
        joined.signals.extend(signals);
    }
    Ok(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(rows: usize) -> Entry {
        let rows = Encoded {
            hidden: Tensor::zeros(rows, 4),
            crops: vec![(0, rows)],
            levels: Vec::new(),
            signals: Vec::new(),
            outputs: Vec::new(),
        };
        let bytes = bytes(&rows);
        Entry { rows: rows.into(), signals: BTreeSet::new(), ms: 1.0, bytes, used: 0 }
    }

    #[test]
    fn what_was_used_the_longest_time_ago_goes_first_and_the_bound_holds() {
        let (mut held, limit) = (Held::default(), 100 * 16);
        let key = |n: u8| [n; 32];
        for n in 0..3 {
            held.put(key(n), entry(30), limit);
        }
        assert!(held.get(&key(0)).is_some());
        held.put(key(3), entry(40), limit);
        let there: Vec<bool> = (0..4).map(|n| held.get(&key(n)).is_some()).collect();
        assert_eq!((there, held.bytes), (vec![true, false, true, true], limit));
        // Replaced by more of the same picture; what does not fit at all leaves the others be.
        held.put(key(3), entry(41), limit);
        assert!(held.get(&key(0)).is_none() && held.bytes == 71 * 16);
        held.put(key(3), entry(101), limit);
        assert_eq!((held.entries.len(), held.bytes), (2, 71 * 16));
    }

    #[test]
    fn a_key_changes_with_everything_that_an_encoder_sees() {
        let pixels = || Pixels {
            values: vec![0.5; 8],
            shape: vec![1, 2, 4],
            crops: Vec::new(),
            rgb: vec![CropPixels::default()],
            grid_thw: None,
            source: [4, 2],
            video: false,
            times_s: Vec::new(),
            fps: None,
            outputs: Vec::new(),
        };
        let changes: [fn(&mut Pixels); 8] = [
            |p| p.values[7] = -0.5,
            |p| p.shape = vec![2, 1, 4],
            |p| p.rgb[0].rgb = vec![1].into(),
            |p| p.grid_thw = Some([1, 2, 4]),
            |p| p.source = [2, 4],
            |p| p.video = true,
            |p| p.times_s = vec![0.0],
            |p| p.fps = Some(2.0),
        ];
        let mut keys = BTreeSet::from([key(&pixels())]);
        assert!(keys.contains(&key(&pixels())));
        for change in changes {
            let mut other = pixels();
            change(&mut other);
            assert!(keys.insert(key(&other)), "{other:?}");
        }
    }
}
