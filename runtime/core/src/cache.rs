//! The KV cache: per request, one [`LayerCache`] a decoder layer, each of its own length.
//!
//! Invariants
//! - After a cut before layer `r`, layers `0..r` hold the old sequence and layers `r..` the kept
//!   one; lengths never rise from one layer to the next during prefill.
//! - `positions[i]` are the position ids with which key `i` was rotated (three axes; one-axis
//!   models use the first). Order in the cache is order in the sequence: masks go by order.
//! - Keys and values are stored per KV head, `[kv_heads, capacity, head_dim]`, so that one head's
//!   keys are contiguous.

use crate::model::Slot;
use crate::tensor::DType;

/// Position ids of one token: temporal, height and width axis. One-axis models repeat the first.
pub type Position = [i32; 3];

/// What a cached row stands for, whatever was cut before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A token of the text.
    Text,
    /// The visual token with that original index.
    Visual(u32),
    /// A row that the caller gave: a state, an action query, noise.
    Given(u32),
    /// A token of the answer.
    Generated,
}

impl From<Slot> for Origin {
    fn from(slot: Slot) -> Self {
        match slot {
            Slot::Text(_) => Origin::Text,
            Slot::Visual(index) => Origin::Visual(index),
            Slot::Given(row) => Origin::Given(row),
        }
    }
}

/// Values of a cache in its storage type.
#[derive(Clone, Debug)]
pub enum CacheValues {
    /// Single precision, for `--dtype f32`.
    F32(Vec<f32>),
    /// bf16 bit patterns.
    Bf16(Vec<u16>),
}

impl CacheValues {
    fn zeros(dtype: DType, len: usize) -> Self {
        crate::memory::ensure_of::<f32>(len);
        match dtype {
            DType::F32 => CacheValues::F32(vec![0.0; len]),
            DType::Bf16 | DType::F16 => CacheValues::Bf16(vec![0; len]),
        }
    }

    /// The same `len` rows of each head where there is room for `to` and not `from`.
    fn widened(&self, (heads, dim): (usize, usize), len: usize, from: usize, to: usize) -> Self {
        fn copied<T: Copy>(new: &mut [T], old: &[T], to: usize, from: usize, filled: usize) {
            for (new, old) in new.chunks_mut(to.max(1)).zip(old.chunks(from.max(1))) {
                new[..filled].copy_from_slice(&old[..filled]);
            }
        }
        let dtype = match self {
            CacheValues::F32(_) => DType::F32,
            CacheValues::Bf16(_) => DType::Bf16,
        };
        let mut wide = Self::zeros(dtype, heads * to * dim);
        match (&mut wide, self) {
            (CacheValues::F32(new), CacheValues::F32(old)) => {
                copied(new, old, to * dim, from * dim, len * dim);
            }
            (CacheValues::Bf16(new), CacheValues::Bf16(old)) => {
                copied(new, old, to * dim, from * dim, len * dim);
            }
            _ => unreachable!("made of the same type above"),
        }
        wide
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            CacheValues::F32(v) => v.len() * 4,
            CacheValues::Bf16(v) => v.len() * 2,
        }
    }
}

/// Keys and values of one request in one decoder layer.
#[derive(Clone, Debug)]
pub struct LayerCache {
    /// Number of KV heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Rows for which memory is held.
    pub capacity: usize,
    /// Rows that are filled.
    pub len: usize,
    /// Rotated keys, `[kv_heads, capacity, head_dim]`.
    pub keys: CacheValues,
    /// Values, `[kv_heads, capacity, head_dim]`.
    pub values: CacheValues,
    /// Position ids of the filled rows.
    pub positions: Vec<Position>,
    /// Position of the row that comes next, on all axes. Its own in every layer: after a cut that
    /// counts positions anew, the layers behind it go on from a shorter length.
    pub next: i32,
    /// What each filled row stands for.
    pub origins: Vec<Origin>,
}

impl LayerCache {
    /// An empty cache with room for `capacity` tokens.
    pub fn new(kv_heads: usize, head_dim: usize, capacity: usize, dtype: DType) -> Self {
        let len = kv_heads * capacity * head_dim;
        Self {
            kv_heads,
            head_dim,
            capacity,
            len: 0,
            keys: CacheValues::zeros(dtype, len),
            values: CacheValues::zeros(dtype, len),
            positions: Vec::with_capacity(capacity),
            next: 0,
            origins: Vec::with_capacity(capacity),
        }
    }

    /// Forgets the rows from `len` on: what was appended to look at it once, one position a row.
    pub fn truncate(&mut self, len: usize) {
        let gone = self.len.saturating_sub(len);
        self.next -= gone as i32;
        self.len -= gone;
        self.positions.truncate(len);
        self.origins.truncate(len);
    }

    /// Makes room for `capacity` rows in all; what is filled stays.
    pub fn reserve(&mut self, capacity: usize) {
        if capacity <= self.capacity {
            return;
        }
        let heads = (self.kv_heads, self.head_dim);
        for values in [&mut self.keys, &mut self.values] {
            *values = values.widened(heads, self.len, self.capacity, capacity);
        }
        self.capacity = capacity;
    }

    /// Bytes held by keys and values.
    pub fn bytes(&self) -> usize {
        self.keys.bytes() + self.values.bytes()
    }
}

/// The caches of all decoder layers of one request.
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    /// One entry a layer that has run.
    pub layers: Vec<LayerCache>,
}

impl KvCache {
    /// Bytes held by all layers.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(LayerCache::bytes).sum()
    }
}
