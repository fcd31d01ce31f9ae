//! Operations that move, merge and add rows.
#![allow(unsafe_code, reason = "rows are written from several threads")]

use super::detect::Isa;
use super::elementwise::{add_row, map_rows};
use super::memory::Shared;
use super::simd::{self, Job, Simd};
use super::threads::Threads;
use crate::error::RunError;
use crate::ops::{Embedding, RowSum};
use crate::tensor::Tensor;

/// Values of a task: copies are bound by memory.
const GRAIN: usize = 1 << 17;

/// Rows of a table; see [`crate::ops::Ops::embed`].
///
/// # Errors
/// If an id is not below the number of rows.
pub(super) fn embed(
    threads: &Threads,
    table: &Embedding,
    ids: &[u32],
    out: &mut Tensor,
) -> Result<(), RunError> {
    if let Some(id) = ids.iter().find(|id| **id as usize >= table.vocab) {
        let vocab = table.vocab;
        return Err(RunError::Prompt(format!(
            "token id {id} is outside the vocabulary of {vocab}"
        )));
    }
    let width = table.width;
    out.resize(ids.len(), width);
    let out = Shared::new(out.host_mut());
    threads.ranges(ids.len(), GRAIN / width.max(1), &|first, count| {
        for (i, id) in ids[first..first + count].iter().enumerate() {
            // SAFETY: tasks own different rows.
            let row = unsafe { out.range((first + i) * width, width) };
            table.table.read_f32(*id as usize * width, row);
        }
    });
    Ok(())
}

/// `out[i] = x[index[i]]`
pub(super) fn gather(threads: &Threads, x: &Tensor, index: &[u32], out: &mut Tensor) {
    let width = x.cols();
    out.resize(index.len(), width);
    let out = Shared::new(out.host_mut());
    threads.ranges(index.len(), GRAIN / width.max(1), &|first, count| {
        for (i, r) in index[first..first + count].iter().enumerate() {
            // SAFETY: tasks own different rows.
            let row = unsafe { out.range((first + i) * width, width) };
            row.copy_from_slice(x.row(*r as usize));
        }
    });
}

struct Sums<'a> {
    x: &'a Tensor,
    sums: &'a [RowSum],
    out: &'a mut [f32],
}

impl Job for Sums<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.x.cols();
        for (sum, out) in self.sums.iter().zip(self.out.chunks_exact_mut(width)) {
            if sum.terms.is_empty() {
                out.fill(0.0);
            }
            for (t, (r, w)) in sum.terms.iter().enumerate() {
                let (row, w) = (self.x.row(*r as usize), s.splat(*w));
                if t == 0 {
                    map_rows(s, [row], out, |[v], _| s.mul(v, w));
                } else {
                    map_rows(s, [row], out, |[v], o| s.fma(v, w, o));
                }
            }
        }
    }
}

/// Each output row is a weighted sum of input rows.
pub(super) fn sum((threads, isa): (&Threads, Isa), x: &Tensor, sums: &[RowSum], out: &mut Tensor) {
    let width = x.cols();
    out.resize(sums.len(), width);
    if width == 0 {
        return;
    }
    let out = Shared::new(out.host_mut());
    threads.ranges(sums.len(), GRAIN / width, &|first, count| {
        // SAFETY: tasks own different rows.
        let out = unsafe { out.range(first * width, count * width) };
        simd::run(isa, Sums { x, sums: &sums[first..first + count], out });
    });
}

struct AddRow<'a> {
    x: &'a mut [f32],
    row: &'a [f32],
}

impl Job for AddRow<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        add_row(s, self.x, self.row, None);
    }
}

/// `x[index[i]] += rows[i]`, in the order of `index`.
pub(super) fn add(isa: Isa, x: &mut Tensor, index: &[u32], rows: &Tensor) {
    assert_eq!((x.cols(), rows.rows()), (rows.cols(), index.len()), "add_rows: sizes");
    for (i, r) in index.iter().enumerate() {
        simd::run(isa, AddRow { x: x.row_mut(*r as usize), row: rows.row(i) });
    }
}
