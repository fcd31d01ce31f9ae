//! The operations in plain loops: the definition that every kernel is tested against.
//!
//! Invariants
//! - Clarity only: no blocking, no threads, no `unsafe`.
//! - Products are summed in f64 and rounded once, so that a comparison measures the kernel's error
//!   and not this one's.
//! - With [`Precision::Bf16`] both inputs of every matrix product are rounded to bf16 (nearest
//!   even): `x` and `W` of a linear layer, `q` and `k`, the unnormalised softmax weights
//!   `exp(s - max)` and `v`. Reported score rows are not rounded.
//!
//! Not here: shape errors of callers, which panic (they are bugs of a model, not of its input).

use std::ops::Range;
use std::sync::Arc;

use half::bf16;

use super::{
    Activation, AttentionParams, Embedding, Heads, Keys, Linear, Mask, Norm, NormKind, Ops,
    PackedLinear, Precision, Queries, Reduction, Rotation, RowSum, ScoreRequest, Segment,
    TransitionTap, Vector, Window,
};
use crate::cache::{CacheValues, LayerCache};
use crate::error::RunError;
use crate::tensor::{Device, Tensor};
use crate::weights::{Matrix, WeightView};

/// A linear layer as it stands in the checkpoint: `[outputs, inputs]`, row-major.
#[derive(Debug)]
pub struct DenseLinear {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// The definition of the operation set.
#[derive(Clone, Copy, Debug)]
pub struct ReferenceOps {
    precision: Precision,
}

impl ReferenceOps {
    /// An operation set on the host, one thread.
    pub fn new(precision: Precision) -> Self {
        Self { precision }
    }

    /// A value as it enters a matrix product.
    fn factor(&self, x: f32) -> f32 {
        match self.precision {
            Precision::F32 => x,
            Precision::Bf16 => bf16::from_f32(x).to_f32(),
        }
    }

    fn dot(&self, a: &[f32], b: &[f32]) -> f32 {
        let sum: f64 =
            a.iter().zip(b).map(|(x, y)| f64::from(self.factor(*x)) * f64::from(*y)).sum();
        sum as f32
    }

    /// `exp(scale * q · k - max)` of one query and head over all keys, zero where hidden, and its
    /// sum. `keys[j]` are rounded already.
    fn weights(
        &self,
        params: AttentionParams,
        q: &[f32],
        keys: &[Vec<f32>],
        sees: &dyn Fn(usize) -> bool,
    ) -> (Vec<f32>, f64) {
        let logits: Vec<f32> = (0..keys.len())
            .map(|j| {
                if !sees(j) {
                    return f32::NEG_INFINITY;
                }
                let s = self.dot(q, &keys[j]) * params.scale;
                params.softcap.map_or(s, |cap| cap * (s / cap).tanh())
            })
            .collect();
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if max == f32::NEG_INFINITY {
            return (vec![0.0; keys.len()], 0.0);
        }
        let exps: Vec<f32> = logits.iter().map(|s| (s - max).exp()).collect();
        let sum = exps.iter().map(|e| f64::from(*e)).sum();
        (exps, sum)
    }
}

/// Checks and concatenates matrices that share their input.
///
/// # Errors
/// If a shape is not `[out, in]` with one `in`, or a bias does not fit its matrix.
pub(super) fn check_matrices(parts: &[Matrix]) -> Result<(usize, usize), RunError> {
    let Some(first) = parts.first() else {
        return Err(RunError::Shape("a linear layer needs at least one matrix".into()));
    };
    let mut outputs = 0;
    let inputs = first.weight.shape().last().copied().unwrap_or(0);
    for Matrix { weight: w, .. } in parts {
        match *w.shape() {
            [out, input] if input == inputs => outputs += out,
            _ => {
                return Err(RunError::Shape(format!(
                    "`{}` has shape {:?}, expected [out, {inputs}]",
                    w.name(),
                    w.shape()
                )));
            }
        }
    }
    for Matrix { weight: w, bias } in parts {
        if let Some(b) = bias
            && b.len() != w.shape()[0]
        {
            return Err(RunError::Shape(format!(
                "bias `{}` has shape {:?}, `{}` has {} outputs",
                b.name(),
                b.shape(),
                w.name(),
                w.shape()[0]
            )));
        }
    }
    Ok((inputs, outputs))
}

/// Checks the two matrices of a gated layer.
///
/// # Errors
/// If their shapes differ.
pub(super) fn check_gated(gate: &WeightView, up: &WeightView) -> Result<(), RunError> {
    if gate.shape() == up.shape() {
        return Ok(());
    }
    Err(RunError::Shape(format!(
        "gate `{}` has shape {:?}, up `{}` has {:?}",
        gate.name(),
        gate.shape(),
        up.name(),
        up.shape()
    )))
}

/// The biases of concatenated matrices, zero where a matrix has none; empty if none has one.
pub(super) fn join_biases(parts: &[Matrix]) -> Vec<f32> {
    if parts.iter().all(|m| m.bias.is_none()) {
        return Vec::new();
    }
    let mut out = Vec::new();
    for Matrix { weight, bias } in parts {
        match bias {
            Some(b) => out.extend(b.to_f32()),
            None => out.resize(out.len() + weight.shape()[0], 0.0),
        }
    }
    out
}

/// Columns of head `h` of row `r`.
pub(super) fn head_row<'a>(x: Heads<'a>, r: usize, h: usize) -> &'a [f32] {
    &x.tensor.row(r)[x.offset + h * x.head_dim..][..x.head_dim]
}

/// Whether query `i` of `queries` sees key `j` of `keys`.
pub(super) fn sees(
    mask: Mask<'_>,
    window: Option<Window<'_>>,
    (queries, keys): (usize, usize),
    i: usize,
    j: usize,
) -> bool {
    j < mask.until((queries, keys), i) && window.is_none_or(|w| w.queries[i] - w.keys[j] < w.window)
}

/// The error function by its series of positive terms
/// `erf x = 2/sqrt(pi) exp(-x²) sum 2^n x^(2n+1) / (2n+1)!!`, in f64.
pub(super) fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
        if term.abs() < sum.abs() * 1e-17 {
            break;
        }
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

/// An activation in f64, rounded once.
pub(super) fn activate(act: Activation, x: f32) -> f32 {
    let v = f64::from(x);
    let y = match act {
        Activation::None => return x,
        Activation::Silu => v / (1.0 + (-v).exp()),
        Activation::GeluErf => 0.5 * v * (1.0 + erf(v * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044_715 * v * v * v);
            0.5 * v * (1.0 + inner.tanh())
        }
        Activation::QuickGelu => v / (1.0 + (-1.702 * v).exp()),
        Activation::Relu => v.max(0.0),
    };
    y as f32
}

fn norm_row(norm: &Norm, x: &[f32], out: &mut [f32]) {
    let n = x.len() as f64;
    let mean = match norm.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => x.iter().map(|v| f64::from(*v)).sum::<f64>() / n,
    };
    let var = x.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
    let inv = 1.0 / (var + f64::from(norm.eps)).sqrt();
    for (i, (o, v)) in out.iter_mut().zip(x).enumerate() {
        let bias = norm.bias.as_ref().map_or(0.0, |b| b[i]);
        *o = ((f64::from(*v) - mean) * inv * f64::from(norm.gain[i]) + f64::from(bias)) as f32;
    }
}

fn transitions(delta: &Tensor, tap: TransitionTap<'_>) {
    let sum = |a: &[f32], b: &[f32]| -> f32 {
        a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>() as f32
    };
    tap.out.resize(delta.rows(), 3);
    for r in 0..delta.rows() {
        let (a, b) = (tap.input.row(r), delta.row(r));
        tap.out.row_mut(r).copy_from_slice(&[sum(a, a), sum(b, b), sum(a, b)]);
    }
}

/// Makes room for `more` rows in a cache: the only operation whose memory outlives its call.
pub(super) fn grow_cache(cache: &mut LayerCache, more: usize) {
    let need = cache.len + more;
    if need <= cache.capacity {
        return;
    }
    let capacity = need.max(cache.capacity * 3 / 2).next_multiple_of(16);
    fn restride<T: Copy + Default>(old: &[T], heads: usize, from: usize, to: usize) -> Vec<T> {
        let mut new = vec![T::default(); heads * to];
        for h in 0..heads {
            new[h * to..][..from].copy_from_slice(&old[h * from..][..from]);
        }
        new
    }
    let (from, to) = (cache.capacity * cache.head_dim, capacity * cache.head_dim);
    for values in [&mut cache.keys, &mut cache.values] {
        match values {
            CacheValues::F32(v) => *v = restride(v, cache.kv_heads, from, to),
            CacheValues::Bf16(v) => *v = restride(v, cache.kv_heads, from, to),
        }
    }
    cache.capacity = capacity;
}

/// Key or value `j` of KV head `h` of a cache, as f32.
fn cached(cache: &LayerCache, values: &CacheValues, h: usize, j: usize) -> Vec<f32> {
    let start = (h * cache.capacity + j) * cache.head_dim;
    match values {
        CacheValues::F32(v) => v[start..start + cache.head_dim].to_vec(),
        CacheValues::Bf16(v) => v[start..start + cache.head_dim]
            .iter()
            .map(|bits| bf16::from_bits(*bits).to_f32())
            .collect(),
    }
}

/// Keys and values of one KV head of a segment.
fn head_keys(keys: Keys<'_>, h: usize) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    match keys {
        Keys::Cached(cache) => (0..cache.len)
            .map(|j| (cached(cache, &cache.keys, h, j), cached(cache, &cache.values, h, j)))
            .unzip(),
        Keys::Rows { keys, values, first, len } => (first..first + len)
            .map(|r| (head_row(keys, r, h).to_vec(), head_row(values, r, h).to_vec()))
            .unzip(),
    }
}

/// KV heads of a segment.
pub(super) fn kv_heads(keys: Keys<'_>) -> usize {
    match keys {
        Keys::Cached(cache) => cache.kv_heads,
        Keys::Rows { keys, .. } => keys.heads,
    }
}

/// Keys of a segment.
pub(super) fn key_count(keys: Keys<'_>) -> usize {
    match keys {
        Keys::Cached(cache) => cache.len,
        Keys::Rows { len, .. } => len,
    }
}

/// One request over the attention rows of a segment, `probs: [query heads][queries][keys]`.
fn report(
    request: &ScoreRequest,
    probs: &[Vec<Vec<f32>>],
    kv_heads: usize,
    keys: usize,
) -> Vec<f32> {
    let queries = probs.first().map_or(0, Vec::len);
    let listed: Vec<usize> = match &request.queries {
        Queries::All => (0..queries).collect(),
        Queries::Listed(rows) => rows.iter().map(|r| *r as usize).collect(),
    };
    let count = request.heads.rows(probs.len(), kv_heads) * keys;
    let reduced = |r: &usize| {
        let heads: Vec<&[f32]> = probs.iter().map(|head| head[*r].as_slice()).collect();
        reduce(&request.heads, &heads, kv_heads)
    };
    if !request.mean {
        return listed.iter().flat_map(reduced).collect();
    }
    let mut mean = vec![0.0f64; count];
    for row in listed.iter().map(reduced) {
        for (m, p) in mean.iter_mut().zip(&row) {
            *m += f64::from(*p);
        }
    }
    mean.iter().map(|m| (m / listed.len().max(1) as f64) as f32).collect()
}

/// The rows of one query, `heads: [query heads][keys]`, reduced: `[reduction's rows, keys]`.
pub(super) fn reduce(reduction: &Reduction, heads: &[&[f32]], kv_heads: usize) -> Vec<f32> {
    let folded = |rows: &[&[f32]], with: fn(f32, f32) -> f32| -> Vec<f32> {
        let (first, rest) = rows.split_first().expect("a model has heads");
        let mut sum = first.to_vec();
        for row in rest {
            sum.iter_mut().zip(*row).for_each(|(s, p)| *s = with(*s, *p));
        }
        sum
    };
    let groups = || heads.chunks((heads.len() / kv_heads.max(1)).max(1));
    match reduction {
        Reduction::Mean => {
            let mut mean = vec![0.0; heads.first().map_or(0, |row| row.len())];
            for row in heads {
                mean.iter_mut().zip(*row).for_each(|(m, p)| *m += p / heads.len() as f32);
            }
            mean
        }
        Reduction::Max => folded(heads, f32::max),
        Reduction::GroupMax => groups().flat_map(|group| folded(group, f32::max)).collect(),
        Reduction::GroupSum => groups().flat_map(|group| folded(group, |a, b| a + b)).collect(),
        Reduction::Each => heads.concat(),
        Reduction::Listed(listed) => {
            listed.iter().flat_map(|&head| heads[head as usize].iter().copied()).collect()
        }
    }
}

impl Ops for ReferenceOps {
    fn device(&self) -> Device {
        Device::Cpu
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn describe(&self) -> String {
        format!("cpu, reference loops, {}, 1 thread", self.precision.dtype())
    }

    fn upload(&self, rows: usize, cols: usize, data: &[f32]) -> Result<Tensor, RunError> {
        Ok(Tensor::from_slice(rows, cols, data))
    }

    fn zeros(&self, rows: usize, cols: usize) -> Result<Tensor, RunError> {
        Ok(Tensor::zeros(rows, cols))
    }

    fn download_all(&self, tensors: &[&Tensor]) -> Result<Vec<Vec<f32>>, RunError> {
        Ok(tensors.iter().map(|x| x.host().to_vec()).collect())
    }

    fn pack_linear(&self, parts: &[Matrix]) -> Result<Linear, RunError> {
        let (inputs, outputs) = check_matrices(parts)?;
        let weights = parts.iter().flat_map(|m| m.weight.to_f32());
        let weight = weights.map(|x| self.factor(x)).collect();
        let bias = join_biases(parts);
        let packed = PackedLinear::Reference(Arc::new(DenseLinear { weight, bias }));
        Ok(Linear { inputs, outputs, packed })
    }

    fn pack_gated(&self, gate: &Matrix, up: &Matrix) -> Result<Linear, RunError> {
        check_gated(&gate.weight, &up.weight)?;
        self.pack_linear(&[gate.clone(), up.clone()])
    }

    fn linear(&self, w: &Linear, x: &Tensor, act: Activation, out: &mut Tensor) {
        let PackedLinear::Reference(dense) = &w.packed else {
            panic!("this layer was packed by another operation set");
        };
        assert_eq!(x.cols(), w.inputs, "linear: width of the input");
        out.resize(x.rows(), w.outputs);
        for r in 0..x.rows() {
            for o in 0..w.outputs {
                let sum = self.dot(x.row(r), &dense.weight[o * w.inputs..][..w.inputs]);
                let bias = dense.bias.get(o).copied().unwrap_or(0.0);
                out.row_mut(r)[o] = activate(act, sum + bias);
            }
        }
    }

    fn gated_linear(&self, w: &Linear, x: &Tensor, act: Activation, out: &mut Tensor) {
        let mut both = Tensor::zeros(0, 0);
        self.linear(w, x, Activation::None, &mut both);
        let width = w.outputs / 2;
        out.resize(x.rows(), width);
        for r in 0..x.rows() {
            for o in 0..width {
                let (g, u) = (both.row(r)[o], both.row(r)[width + o]);
                out.row_mut(r)[o] = activate(act, g) * u;
            }
        }
    }

    fn embed(&self, table: &Embedding, ids: &[u32], out: &mut Tensor) -> Result<(), RunError> {
        out.resize(ids.len(), table.width);
        for (i, id) in ids.iter().enumerate() {
            let row = *id as usize;
            if row >= table.vocab {
                return Err(RunError::Prompt(format!(
                    "token id {id} is outside the vocabulary of {}",
                    table.vocab
                )));
            }
            table.table.read_f32(row * table.width, out.row_mut(i));
        }
        Ok(())
    }

    fn scale(&self, x: &mut Tensor, factor: f32) {
        x.host_mut().iter_mut().for_each(|v| *v *= factor);
    }

    fn norm(&self, norm: &Norm, x: &Tensor, out: &mut Tensor) {
        assert_eq!(norm.gain.len(), x.cols(), "norm: width of the gain");
        out.resize(x.rows(), x.cols());
        for r in 0..x.rows() {
            norm_row(norm, x.row(r), out.row_mut(r));
        }
    }

    fn add_norm(
        &self,
        x: &mut Tensor,
        delta: &Tensor,
        tap: Option<TransitionTap<'_>>,
        norm: &Norm,
        out: &mut Tensor,
    ) {
        self.add(x, delta, None, tap);
        self.norm(norm, x, out);
    }

    fn add(
        &self,
        x: &mut Tensor,
        delta: &Tensor,
        scale: Option<&Vector>,
        tap: Option<TransitionTap<'_>>,
    ) {
        assert_eq!((x.rows(), x.cols()), (delta.rows(), delta.cols()), "add: shapes");
        for r in 0..x.rows() {
            for (c, v) in x.row_mut(r).iter_mut().enumerate() {
                let d = delta.row(r)[c];
                *v += scale.map_or(d, |s| s.0[c] * d);
            }
        }
        if let Some(tap) = tap {
            transitions(delta, tap);
        }
    }

    fn head_norm(&self, norm: &Norm, x: &mut Tensor, offset: usize, heads: usize) {
        let width = norm.gain.len();
        for r in 0..x.rows() {
            for head in x.row_mut(r)[offset..offset + heads * width].chunks_exact_mut(width) {
                let copy = head.to_vec();
                norm_row(norm, &copy, head);
            }
        }
    }

    fn rope(&self, table: &Rotation, x: &mut Tensor, offset: usize, heads: usize) {
        let half = table.half;
        for r in 0..x.rows() {
            let (cos, sin) = (&table.cos[r * half..][..half], &table.sin[r * half..][..half]);
            for h in 0..heads {
                let head = &mut x.row_mut(r)[offset + h * 2 * half..][..2 * half];
                for i in 0..half {
                    let (u, w) = (head[i], head[half + i]);
                    head[i] = u * cos[i] - w * sin[i];
                    head[half + i] = w * cos[i] + u * sin[i];
                }
            }
        }
    }

    fn cache_append(
        &self,
        cache: &mut LayerCache,
        keys: Heads<'_>,
        values: Heads<'_>,
        rows: Range<usize>,
    ) {
        grow_cache(cache, rows.len());
        for (store, source) in [(&mut cache.keys, keys), (&mut cache.values, values)] {
            for h in 0..cache.kv_heads {
                for (i, r) in rows.clone().enumerate() {
                    let at = (h * cache.capacity + cache.len + i) * cache.head_dim;
                    for (c, x) in head_row(source, r, h).iter().enumerate() {
                        match store {
                            CacheValues::F32(v) => v[at + c] = *x,
                            CacheValues::Bf16(v) => v[at + c] = bf16::from_f32(*x).to_bits(),
                        }
                    }
                }
            }
        }
        cache.len += rows.len();
    }

    fn attention(
        &self,
        params: AttentionParams,
        q: Heads<'_>,
        segments: &[Segment<'_>],
        out: &mut Tensor,
    ) -> Vec<Vec<Tensor>> {
        let e = q.head_dim;
        out.resize(q.tensor.rows(), q.heads * e);
        out.host_mut().fill(0.0);
        let mut reports = Vec::new();
        for segment in segments {
            let (n, keys) = (segment.rows.len(), key_count(segment.keys));
            assert!(segment.mask.is_of(n), "attention: a mask of other queries");
            let group = q.heads / kv_heads(segment.keys);
            let mut probs = vec![vec![vec![0.0f32; keys]; n]; q.heads];
            for (h, probs) in probs.iter_mut().enumerate() {
                let (mut ks, mut vs) = head_keys(segment.keys, h / group);
                ks.iter_mut().chain(&mut vs).flatten().for_each(|x| *x = self.factor(*x));
                for (i, probs) in probs.iter_mut().enumerate() {
                    let r = segment.rows.start + i;
                    let visible = |j| sees(segment.mask, segment.window, (n, keys), i, j);
                    let (weights, sum) = self.weights(params, head_row(q, r, h), &ks, &visible);
                    if sum == 0.0 {
                        continue;
                    }
                    for (p, w) in probs.iter_mut().zip(&weights) {
                        *p = (f64::from(*w) / sum) as f32;
                    }
                    for c in 0..e {
                        let value: f64 = weights
                            .iter()
                            .zip(&vs)
                            .map(|(w, v)| f64::from(self.factor(*w)) * f64::from(v[c]))
                            .sum();
                        out.row_mut(r)[h * e + c] = (value / sum) as f32;
                    }
                }
            }
            reports.push(
                segment
                    .scores
                    .iter()
                    .map(|r| {
                        let rows = report(r, &probs, kv_heads(segment.keys), keys);
                        Tensor::from_rows(keys, &rows)
                    })
                    .collect(),
            );
        }
        reports
    }

    fn score_rows(
        &self,
        params: AttentionParams,
        q: Heads<'_>,
        visible: &[u32],
        keys: Heads<'_>,
        mean: bool,
    ) -> Tensor {
        let (n, len) = (q.tensor.rows(), keys.tensor.rows());
        let mut probs = vec![vec![vec![0.0f32; len]; n]; q.heads];
        for (h, probs) in probs.iter_mut().enumerate() {
            let kv = h / (q.heads / keys.heads);
            let ks: Vec<Vec<f32>> = (0..len)
                .map(|j| head_row(keys, j, kv).iter().map(|x| self.factor(*x)).collect())
                .collect();
            for (i, probs) in probs.iter_mut().enumerate() {
                let first = |j| j < visible[i] as usize;
                let (weights, sum) = self.weights(params, head_row(q, i, h), &ks, &first);
                if sum > 0.0 {
                    for (p, w) in probs.iter_mut().zip(&weights) {
                        *p = (f64::from(*w) / sum) as f32;
                    }
                }
            }
        }
        let request = ScoreRequest { queries: Queries::All, mean, heads: Reduction::Mean };
        Tensor::from_rows(len, &report(&request, &probs, keys.heads, len))
    }

    fn gather_rows(&self, x: &Tensor, index: &[u32], out: &mut Tensor) {
        out.resize(index.len(), x.cols());
        for (i, r) in index.iter().enumerate() {
            out.row_mut(i).copy_from_slice(x.row(*r as usize));
        }
    }

    fn sum_rows(&self, x: &Tensor, sums: &[RowSum], out: &mut Tensor) {
        out.resize(sums.len(), x.cols());
        for (i, sum) in sums.iter().enumerate() {
            let row = out.row_mut(i);
            row.fill(0.0);
            for (t, (r, w)) in sum.terms.iter().enumerate() {
                for (o, v) in row.iter_mut().zip(x.row(*r as usize)) {
                    // The first term is stored, not added: `0 + -0` would lose a sign.
                    *o = if t == 0 { w * v } else { *o + w * v };
                }
            }
        }
    }

    fn write_rows(&self, x: &mut Tensor, first: usize, rows: &Tensor) {
        assert_eq!(x.cols(), rows.cols(), "write_rows: widths");
        let start = first * x.cols();
        x.host_mut()[start..start + rows.host().len()].copy_from_slice(rows.host());
    }

    fn add_rows(&self, x: &mut Tensor, index: &[u32], rows: &Tensor) {
        assert_eq!(x.cols(), rows.cols(), "add_rows: widths");
        for (i, r) in index.iter().enumerate() {
            for (o, v) in x.row_mut(*r as usize).iter_mut().zip(rows.row(i)) {
                *o += v;
            }
        }
    }
}
