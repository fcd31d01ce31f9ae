//! The operation set: what encoders and decoders are written against.
//!
//! About twenty operations on `[rows, cols]` tensors. [`mod@reference`] is their definition in plain
//! loops; [`cpu`] is fast; every kernel is tested against the reference over the same case list.
//!
//! Invariants
//! - An operation's result for a row depends on that row alone (and, in attention, on its own
//!   segment: see [`FEW_QUERIES`]), never on how many other rows are in the tensor: a batch equals its
//!   members. The one
//!   exception is a layer in quantised blocks under bf16, within its rounding (`cpu::linear`).
//! - Results do not depend on the number of threads.
//! - Sums are f32. With [`Precision::Bf16`] the inputs of matrix products are rounded to bf16
//!   (nearest even); everything else stays f32.
//! - No operation allocates memory that outlives the call except its documented outputs.
//!
//! Not here: layers and models (`models`, `encoders`), sampling (`decode`).

pub mod cpu;
pub mod reference;
mod rotation;

use std::ops::Range;
use std::sync::Arc;

use crate::cache::{LayerCache, Position};
use crate::error::RunError;
use crate::tensor::{DType, Device, Tensor};
use crate::weights::{Matrix, WeightView};

pub use rotation::{Frequencies, Rotation};

/// Segments of up to so many queries may sum in another order than larger ones: within either kind the
/// attention of a query has the same bits whatever segment it stands in, across them it is equal within
/// rounding. A query head counts as a query, so that a segment of more rows than this is a large one.
pub const FEW_QUERIES: usize = 8;

/// Arithmetic of matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 weights and inputs.
    F32,
    /// bf16 weights and inputs, f32 sums.
    Bf16,
}

impl Precision {
    /// Storage type of packed weights and of the KV cache.
    pub fn dtype(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::Bf16,
        }
    }
}

/// Element-wise non-linearities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    /// `x`
    #[default]
    None,
    /// `x * sigmoid(x)`
    Silu,
    /// `x / 2 * (1 + erf(x / sqrt 2))`
    GeluErf,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// `x * sigmoid(1.702 x)`
    QuickGelu,
    /// `max(x, 0)`
    Relu,
}

/// A linear layer `y = x Wᵀ + b`, packed for its operation set. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Width of the input.
    pub inputs: usize,
    /// Width of the output.
    pub outputs: usize,
    pub(crate) packed: PackedLinear,
}

#[derive(Clone, Debug)]
pub(crate) enum PackedLinear {
    Reference(Arc<reference::DenseLinear>),
    Cpu(Arc<cpu::linear::PackedLinear>),
    /// In the blocks of a file.
    #[cfg(feature = "gguf")]
    Blocks(Arc<cpu::linear::BlockLinear>),
}

/// Rows of an embedding table `[vocab, width]`, kept in the checkpoint's type.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// Number of rows.
    pub vocab: usize,
    /// Width of one row.
    pub width: usize,
    pub(crate) table: WeightView,
}

impl Embedding {
    fn new(table: WeightView) -> Result<Self, RunError> {
        match *table.shape() {
            [vocab, width] => Ok(Self { vocab, width, table }),
            _ => Err(RunError::Shape(format!(
                "embedding table `{}` has shape {:?}, expected [vocab, width]",
                table.name(),
                table.shape()
            ))),
        }
    }
}

/// A normalisation with its parameters, made by an operation set. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Norm {
    pub(crate) kind: NormKind,
    /// `[width]`
    pub(crate) gain: Arc<[f32]>,
    /// `[width]`; layer norm only.
    pub(crate) bias: Option<Arc<[f32]>>,
    /// Added to the mean square or to the variance.
    pub(crate) eps: f32,
}

/// A factor a column, made by an operation set. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Vector(pub(crate) Arc<[f32]>);

/// The two normalisations of the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `gain * x / sqrt(mean(x²) + eps)`
    Rms,
    /// `gain * (x - mean) / sqrt(var + eps) + bias`
    Layer,
}

/// A block of columns of a tensor seen as attention heads: head `h` of row `r` is
/// `tensor[r, offset + h * head_dim ..][..head_dim]`.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// The tensor, for instance the fused output of q, k and v.
    pub tensor: &'a Tensor,
    /// First column.
    pub offset: usize,
    /// Number of heads.
    pub heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

/// Which keys a query sees, by order in the sequence: always the first so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask<'a> {
    /// Every query sees every key.
    Full,
    /// The last query sees all keys, the one before all but the last, and so on.
    Causal,
    /// How many keys each query sees, one number a query, never falling.
    Until(&'a [u32]),
}

impl Mask<'_> {
    /// How many of `keys` keys query `i` of `queries` sees.
    ///
    /// # Panics
    /// If a list has no number for the query.
    pub fn until(self, (queries, keys): (usize, usize), i: usize) -> usize {
        match self {
            Mask::Full => keys,
            // The key at the query's own place is the last it sees.
            Mask::Causal => (keys + i + 1).saturating_sub(queries).min(keys),
            Mask::Until(until) => (until[i] as usize).min(keys),
        }
    }

    /// Whether it is one of `queries` queries: a list has a number for each and never falls.
    pub fn is_of(self, queries: usize) -> bool {
        match self {
            Mask::Full | Mask::Causal => true,
            Mask::Until(until) => until.len() == queries && until.is_sorted(),
        }
    }
}

/// A sliding window by position id: a key is seen if `query_position - key_position < window`.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// Number of positions a query reaches back, itself included.
    pub window: i32,
    /// Positions of the segment's queries.
    pub queries: &'a [i32],
    /// Positions of the segment's keys.
    pub keys: &'a [i32],
}

/// Keys and values of one attention segment.
#[derive(Clone, Copy, Debug)]
pub enum Keys<'a> {
    /// All rows of a cache; the keys of the queries themselves were appended before.
    Cached(&'a LayerCache),
    /// Rows of tensors (encoders, which have no cache).
    Rows {
        /// Keys.
        keys: Heads<'a>,
        /// Values.
        values: Heads<'a>,
        /// The rows that belong to the segment.
        first: usize,
        /// How many.
        len: usize,
    },
}

impl Keys<'_> {
    /// Number of keys.
    pub fn len(&self) -> usize {
        match self {
            Keys::Cached(cache) => cache.len,
            Keys::Rows { len, .. } => *len,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Queries whose attention rows are reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Queries {
    /// Every query of the segment.
    All,
    /// These queries, counted within the segment.
    Listed(Vec<u32>),
}

/// What becomes of the attention of several query heads.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reduction {
    /// Their mean: one row.
    #[default]
    Mean,
    /// The largest of them, key by key: one row.
    Max,
    /// The largest within the query heads of each KV head: a row a KV head.
    GroupMax,
    /// The sum within the query heads of each KV head: a row a KV head.
    GroupSum,
    /// All of them: a row a query head.
    Each,
    /// These query heads, a row each, in this order.
    Listed(Vec<u32>),
}

impl Reduction {
    /// Rows that it makes of `heads` query heads over `kv_heads` KV heads.
    pub fn rows(&self, heads: usize, kv_heads: usize) -> usize {
        match self {
            Reduction::Mean | Reduction::Max => 1,
            Reduction::GroupMax | Reduction::GroupSum => kv_heads,
            Reduction::Each => heads,
            Reduction::Listed(listed) => listed.len(),
        }
    }
}

/// What to report of the post-softmax attention of one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoreRequest {
    /// The rows that are read.
    pub queries: Queries,
    /// `true`: the mean over those rows, `[reduction's rows, keys]`. `false`: those of each query
    /// below one another, `[queries * reduction's rows, keys]`.
    pub mean: bool,
    /// What becomes of the heads, before any mean over queries.
    pub heads: Reduction,
}

impl ScoreRequest {
    /// The mean over queries and heads, `[1, keys]`.
    pub fn mean(queries: Queries) -> Self {
        Self { queries, mean: true, heads: Reduction::Mean }
    }

    /// A row a query, the mean over heads: `[queries, keys]`.
    pub fn each(queries: Queries) -> Self {
        Self { queries, mean: false, heads: Reduction::Mean }
    }

    /// The same with the heads reduced otherwise.
    #[must_use]
    pub fn heads(self, heads: Reduction) -> Self {
        Self { heads, ..self }
    }
}

/// One sequence, tile, frame or window: its queries, its keys, and what to report.
#[derive(Clone, Debug)]
pub struct Segment<'a> {
    /// Rows of `q` and of the output.
    pub rows: Range<usize>,
    /// Keys and values.
    pub keys: Keys<'a>,
    /// Who sees whom.
    pub mask: Mask<'a>,
    /// Sliding window, if any.
    pub window: Option<Window<'a>>,
    /// Scores to return beside the output, in this order.
    pub scores: &'a [ScoreRequest],
}

/// Constants of an attention layer.
#[derive(Clone, Copy, Debug)]
pub struct AttentionParams {
    /// Multiplied into `q · k`.
    pub scale: f32,
    /// `cap * tanh(s / cap)` after scaling and before the mask.
    pub softcap: Option<f32>,
}

/// Three reductions a row of a module's input `a` and its output `b`: `[‖a‖², ‖b‖², a·b]`.
pub type Transition = [f32; 3];

/// What [`Ops::add`] reports of the residual it adds: the module's input beside its output.
#[derive(Debug)]
pub struct TransitionTap<'a> {
    /// `a`: the normalised input of the module, `[rows, width]`.
    pub input: &'a Tensor,
    /// A [`Transition`] a row: `[rows, 3]`.
    pub out: &'a mut Tensor,
}

/// One output row as a weighted sum of input rows.
#[derive(Clone, Debug, PartialEq)]
pub struct RowSum {
    /// `(input row, weight)`; a single pair with weight 1 copies the row bit for bit.
    pub terms: Vec<(u32, f32)>,
}

/// The operations. Shapes are `[rows, cols]`; outputs are resized by the operation.
pub trait Ops: Send + Sync + std::fmt::Debug {
    /// Where tensors live.
    fn device(&self) -> Device;
    /// Arithmetic of matrix products.
    fn precision(&self) -> Precision;
    /// One line for reports: device, kernel variant, threads.
    fn describe(&self) -> String;

    /// Runs `f` with this set's threads at hand: calls of operations inside cost no hand-over.
    fn scope(&self, f: &mut (dyn FnMut() + Send)) {
        f();
    }

    /// Copies host values `[rows, cols]` to a tensor.
    fn upload(&self, rows: usize, cols: usize, data: &[f32]) -> Result<Tensor, RunError>;
    /// A tensor `[rows, cols]` of zeros.
    fn zeros(&self, rows: usize, cols: usize) -> Result<Tensor, RunError>;
    /// Copies a tensor's values to the host, row-major.
    fn download(&self, x: &Tensor) -> Result<Vec<f32>, RunError> {
        Ok(self.download_all(&[x])?.pop().unwrap_or_default())
    }
    /// Copies several tensors to the host at once: one wait for all that was enqueued before.
    fn download_all(&self, tensors: &[&Tensor]) -> Result<Vec<Vec<f32>>, RunError>;

    /// Packs matrices `[out_i, in]` that share their input as one layer: outputs are concatenated.
    ///
    /// # Errors
    /// If shapes disagree.
    fn pack_linear(&self, parts: &[Matrix]) -> Result<Linear, RunError>;
    /// Packs two matrices `[f, in]` for [`Ops::gated_linear`].
    ///
    /// # Errors
    /// If shapes disagree.
    fn pack_gated(&self, gate: &Matrix, up: &Matrix) -> Result<Linear, RunError>;

    /// A table from a tensor `[vocab, width]`.
    ///
    /// # Errors
    /// [`RunError::Shape`] if it has another number of dimensions.
    fn pack_embedding(&self, table: WeightView) -> Result<Embedding, RunError> {
        Embedding::new(table)
    }
    /// A norm of `gain` and, for layer norm, `bias`, `[width]` each; `eps` is added to the mean
    /// square or to the variance. For Gemma the file's `w` is given as `1 + w`.
    fn pack_norm(&self, kind: NormKind, gain: Vec<f32>, bias: Option<Vec<f32>>, eps: f32) -> Norm {
        Norm { kind, gain: gain.into(), bias: bias.map(Into::into), eps }
    }
    /// Factors, `[width]`.
    fn pack_vector(&self, values: Vec<f32>) -> Vector {
        Vector(values.into())
    }

    /// `out = act(x Wᵀ + b)`; `x: [n, inputs]`, `out: [n, outputs]`.
    fn linear(&self, w: &Linear, x: &Tensor, act: Activation, out: &mut Tensor);
    /// `out = act(x Wgᵀ + bg) * (x Wuᵀ + bu)` for a layer from [`Ops::pack_gated`];
    /// `out: [n, outputs / 2]`.
    fn gated_linear(&self, w: &Linear, x: &Tensor, act: Activation, out: &mut Tensor);

    /// Rows of a table: `out[i] = table[ids[i]]`, `[ids, width]`.
    ///
    /// # Errors
    /// If an id is not below `vocab`.
    fn embed(&self, table: &Embedding, ids: &[u32], out: &mut Tensor) -> Result<(), RunError>;
    /// `x *= factor`
    fn scale(&self, x: &mut Tensor, factor: f32);

    /// `out = norm(x)`, row by row.
    fn norm(&self, norm: &Norm, x: &Tensor, out: &mut Tensor);
    /// `x += delta`, `out = norm(x)`, in one pass; `tap` reports transitions of `delta`.
    fn add_norm(
        &self,
        x: &mut Tensor,
        delta: &Tensor,
        tap: Option<TransitionTap<'_>>,
        norm: &Norm,
        out: &mut Tensor,
    );
    /// `x += scale * delta` (`scale: [width]`, absent = 1); `tap` reports transitions of `delta`.
    fn add(
        &self,
        x: &mut Tensor,
        delta: &Tensor,
        scale: Option<&Vector>,
        tap: Option<TransitionTap<'_>>,
    );
    /// Normalises each head of the columns `offset .. offset + heads * gain.len()` on its own.
    fn head_norm(&self, norm: &Norm, x: &mut Tensor, offset: usize, heads: usize);

    /// The rotation of rows at `positions`.
    fn rotation(&self, frequencies: &Frequencies, positions: &[Position]) -> Rotation {
        Rotation::on_host(frequencies, positions)
    }
    /// The rotation of rows `index` of those that `rotation` has.
    fn rotation_rows(&self, rotation: &Rotation, index: &[u32]) -> Rotation {
        rotation.gathered(index)
    }
    /// Rotates heads in place, half-split form: with `(u, w)` the two halves of a head,
    /// `u' = u cos - w sin`, `w' = w cos + u sin`. Row `r` uses row `r` of the rotation.
    fn rope(&self, rotation: &Rotation, x: &mut Tensor, offset: usize, heads: usize);

    /// Appends rows `rows` of `keys` and `values` to a cache (positions are the caller's).
    fn cache_append(
        &self,
        cache: &mut LayerCache,
        keys: Heads<'_>,
        values: Heads<'_>,
        rows: Range<usize>,
    );
    /// Attention of all segments; `out: [q rows, heads * head_dim]`. Query head `h` reads KV head
    /// `h / (heads / kv_heads)`. A query that sees no key, and a row in no segment, gives zeros.
    /// Returns per segment one tensor a request (see [`ScoreRequest`]).
    fn attention(
        &self,
        params: AttentionParams,
        q: Heads<'_>,
        segments: &[Segment<'_>],
        out: &mut Tensor,
    ) -> Vec<Vec<Tensor>>;
    /// Post-softmax attention rows without an output, the mean over heads: row `i` of `q` sees the
    /// first `visible[i]` rows of `keys`. `mean`: `[1, keys]`, else `[queries, keys]`.
    /// For stages that read a layer before it has run.
    fn score_rows(
        &self,
        params: AttentionParams,
        q: Heads<'_>,
        visible: &[u32],
        keys: Heads<'_>,
        mean: bool,
    ) -> Tensor;

    /// `out[i] = x[index[i]]`
    fn gather_rows(&self, x: &Tensor, index: &[u32], out: &mut Tensor);
    /// Each output row is a weighted sum of input rows.
    fn sum_rows(&self, x: &Tensor, sums: &[RowSum], out: &mut Tensor);
    /// `x[first + i] = rows[i]`
    fn write_rows(&self, x: &mut Tensor, first: usize, rows: &Tensor);
    /// `x[index[i]] += rows[i]`
    fn add_rows(&self, x: &mut Tensor, index: &[u32], rows: &Tensor);
}
