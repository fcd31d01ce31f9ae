//! The operation set on this machine's CPU.
//!
//! One folder or file an operation. Loops are written once against `simd` and run under the widest
//! vectors that `detect` found; products of bf16 also have kernels of their own (`linear::dot`,
//! `linear::amx`, `attention::amx`).
//!
//! Invariants
//! - Results do not depend on the number of threads: sums are never split between them.
//! - Memory that an operation needs for itself is kept and used again; a set holds as much as its
//!   largest call needed.
//!
//! Not here: the definitions (`reference`).

mod attention;
#[cfg(feature = "gguf")]
pub(crate) mod blocks;
mod detect;
mod elementwise;
pub(in crate::ops) mod linear;
mod memory;
mod norm;
mod rope;
mod rows;
mod simd;
mod threads;
#[cfg(target_arch = "x86_64")]
mod tiles;

pub use detect::Isa;

use std::ops::Range;
use std::sync::Arc;

use super::{
    Activation, AttentionParams, Embedding, Heads, Linear, Norm, Ops, PackedLinear, Precision,
    Rotation, RowSum, Segment, TransitionTap, Vector,
};
use crate::cache::LayerCache;
use crate::error::RunError;
use crate::tensor::{Device, Tensor};
use crate::weights::Matrix;
use memory::ScratchPool;
use threads::Threads;

/// The operations on the CPU.
#[derive(Debug)]
pub struct CpuOps {
    precision: Precision,
    isa: Isa,
    threads: Threads,
    scratch: ScratchPool,
    #[cfg(feature = "gguf")]
    group: linear::Group,
}

impl CpuOps {
    /// An operation set with its own threads; `None` is one a physical core that this process may
    /// use.
    pub fn new(precision: Precision, threads: Option<usize>) -> Self {
        Self::with_isa(precision, threads, Isa::chosen())
    }

    /// The same with kernels of a chosen variant.
    ///
    /// # Panics
    /// If this CPU does not have it: see [`Isa::is_available`].
    pub fn with_isa(precision: Precision, threads: Option<usize>, isa: Isa) -> Self {
        assert!(isa.is_available(), "this CPU has no {}", isa.name());
        let threads = Threads::new(threads.unwrap_or_else(detect::cores));
        Self {
            precision,
            isa,
            threads,
            scratch: ScratchPool::default(),
            #[cfg(feature = "gguf")]
            group: linear::Group::default(),
        }
    }

    /// What most operations run with.
    fn on(&self) -> (&Threads, Isa) {
        (&self.threads, self.isa)
    }

    fn multiply(&self, w: &Linear, x: &Tensor, act: Activation, width: usize, out: &mut Tensor) {
        assert_eq!(x.cols(), w.inputs, "linear: width of the input");
        out.resize(x.rows(), width);
        let (x, out) = (x.host(), out.host_mut());
        match &w.packed {
            PackedLinear::Cpu(packed) => {
                linear::run(&self.threads, self.isa, &self.scratch, packed, x, act, out);
            }
            #[cfg(feature = "gguf")]
            PackedLinear::Blocks(packed) => {
                let memory = (&self.scratch, &self.group);
                packed.run(&self.threads, self.isa, memory, x, act, out);
            }
            PackedLinear::Reference(_) => panic!("this layer was packed by another operation set"),
        }
    }

    fn pack(&self, parts: &[Matrix], gated: bool) -> Result<Linear, RunError> {
        #[cfg(feature = "gguf")]
        if self.precision == Precision::Bf16
            && let Some(blocks) = linear::BlockLinear::new(parts, gated)?
        {
            let (inputs, outputs) = blocks.shape();
            return Ok(Linear { inputs, outputs, packed: PackedLinear::Blocks(Arc::new(blocks)) });
        }
        let packed = linear::pack(self.precision, &self.threads, parts, gated)?;
        parts.iter().for_each(|m| m.weight.release());
        let (inputs, outputs) = packed.shape();
        Ok(Linear { inputs, outputs, packed: PackedLinear::Cpu(Arc::new(packed)) })
    }

    fn attention_context(&self, params: AttentionParams) -> attention::Context<'_> {
        attention::Context {
            threads: &self.threads,
            isa: self.isa,
            scratch: &self.scratch,
            rounded: self.precision == Precision::Bf16,
            params,
        }
    }
}

impl Ops for CpuOps {
    fn device(&self) -> Device {
        Device::Cpu
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn describe(&self) -> String {
        let (isa, dtype, threads) = (self.isa.name(), self.precision.dtype(), self.threads.len());
        format!("cpu, {isa}, {dtype}, {threads} thread{}", if threads == 1 { "" } else { "s" })
    }

    fn scope(&self, f: &mut (dyn FnMut() + Send)) {
        self.threads.keep_awake(f);
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
        self.pack(parts, false)
    }

    fn pack_gated(&self, gate: &Matrix, up: &Matrix) -> Result<Linear, RunError> {
        super::reference::check_gated(&gate.weight, &up.weight)?;
        self.pack(&[gate.clone(), up.clone()], true)
    }

    fn linear(&self, w: &Linear, x: &Tensor, act: Activation, out: &mut Tensor) {
        self.multiply(w, x, act, w.outputs, out);
    }

    fn gated_linear(&self, w: &Linear, x: &Tensor, act: Activation, out: &mut Tensor) {
        self.multiply(w, x, act, w.outputs / 2, out);
    }

    fn embed(&self, table: &Embedding, ids: &[u32], out: &mut Tensor) -> Result<(), RunError> {
        rows::embed(&self.threads, table, ids, out)
    }

    fn scale(&self, x: &mut Tensor, factor: f32) {
        elementwise::scale(&self.threads, self.isa, x.host_mut(), factor);
    }

    fn norm(&self, norm: &Norm, x: &Tensor, out: &mut Tensor) {
        assert_eq!(norm.gain.len(), x.cols(), "norm: width of the gain");
        out.resize(x.rows(), x.cols());
        norm::norm(self.on(), norm, x.host(), out.host_mut());
    }

    fn add_norm(
        &self,
        x: &mut Tensor,
        delta: &Tensor,
        tap: Option<TransitionTap<'_>>,
        norm: &Norm,
        out: &mut Tensor,
    ) {
        let (rows, width) = (x.rows(), x.cols());
        out.resize(rows, width);
        let tap = tap.map(|tap| {
            tap.out.resize(rows, 3);
            (tap.input.host(), tap.out.host_mut().as_chunks_mut::<3>().0)
        });
        let norm = Some((norm, out.host_mut()));
        norm::add_norm(self.on(), width, x.host_mut(), (delta.host(), None), tap, norm);
    }

    fn add(
        &self,
        x: &mut Tensor,
        delta: &Tensor,
        scale: Option<&Vector>,
        tap: Option<TransitionTap<'_>>,
    ) {
        let (rows, width) = (x.rows(), x.cols());
        let tap = tap.map(|tap| {
            tap.out.resize(rows, 3);
            (tap.input.host(), tap.out.host_mut().as_chunks_mut::<3>().0)
        });
        norm::add_norm(
            self.on(),
            width,
            x.host_mut(),
            (delta.host(), scale.map(|s| &*s.0)),
            tap,
            None,
        );
    }

    fn head_norm(&self, norm: &Norm, x: &mut Tensor, offset: usize, heads: usize) {
        let cols = x.cols();
        norm::head_norm(self.on(), norm, x.host_mut(), cols, offset, heads);
    }

    fn rope(&self, table: &Rotation, x: &mut Tensor, offset: usize, heads: usize) {
        let cols = x.cols();
        rope::rope(self.on(), table, x.host_mut(), cols, offset, heads);
    }

    fn cache_append(
        &self,
        cache: &mut LayerCache,
        keys: Heads<'_>,
        values: Heads<'_>,
        rows: Range<usize>,
    ) {
        rope::cache_append(self.on(), cache, keys, values, rows);
    }

    fn attention(
        &self,
        params: AttentionParams,
        q: Heads<'_>,
        segments: &[Segment<'_>],
        out: &mut Tensor,
    ) -> Vec<Vec<Tensor>> {
        out.resize(q.tensor.rows(), q.heads * q.head_dim);
        let context = self.attention_context(params);
        attention::run(context, q, segments, out.host_mut());
        let report = |segment: &Segment<'_>| {
            let keys = segment.keys.len();
            let one = |r| Tensor::from_rows(keys, &attention::report(context, q, segment, r));
            segment.scores.iter().map(one).collect()
        };
        segments.iter().map(report).collect()
    }

    fn score_rows(
        &self,
        params: AttentionParams,
        q: Heads<'_>,
        visible: &[u32],
        keys: Heads<'_>,
        mean: bool,
    ) -> Tensor {
        let len = keys.tensor.rows();
        let context = self.attention_context(params);
        Tensor::from_rows(len, &attention::score_rows(context, q, visible, keys, mean))
    }

    fn gather_rows(&self, x: &Tensor, index: &[u32], out: &mut Tensor) {
        rows::gather(&self.threads, x, index, out);
    }

    fn sum_rows(&self, x: &Tensor, sums: &[RowSum], out: &mut Tensor) {
        rows::sum(self.on(), x, sums, out);
    }

    fn write_rows(&self, x: &mut Tensor, first: usize, rows: &Tensor) {
        assert_eq!(x.cols(), rows.cols(), "write_rows: widths");
        let start = first * x.cols();
        x.host_mut()[start..start + rows.host().len()].copy_from_slice(rows.host());
    }

    fn add_rows(&self, x: &mut Tensor, index: &[u32], rows: &Tensor) {
        rows::add(self.isa, x, index, rows);
    }
}
