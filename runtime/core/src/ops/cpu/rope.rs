//! Rotation of heads by position, and their way into a KV cache.
#![allow(unsafe_code, reason = "rows and heads are written from several threads")]

use std::ops::Range;

use super::attention::narrow;
use super::detect::Isa;
use super::memory::Shared;
use super::simd::{self, Job, Simd};
use super::threads::Threads;
use crate::cache::{CacheValues, LayerCache};
use crate::ops::reference::{grow_cache, head_row};
use crate::ops::{Heads, Rotation};

/// Values of a task.
const GRAIN: usize = 1 << 14;

struct Rotate<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    half: usize,
    rows: &'a mut [f32],
    cols: usize,
    columns: Range<usize>,
}

impl Job for Rotate<'_> {
    type Out = ();
    // Plain loops: the compiler makes vectors of them, and no rounding depends on the variant.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let half = self.half;
        let angles = self.cos.chunks_exact(half).zip(self.sin.chunks_exact(half));
        for (row, (cos, sin)) in self.rows.chunks_exact_mut(self.cols).zip(angles) {
            for head in row[self.columns.clone()].chunks_exact_mut(2 * half) {
                let (us, ws) = head.split_at_mut(half);
                for ((u, w), (c, s)) in us.iter_mut().zip(ws).zip(cos.iter().zip(sin)) {
                    let (a, b) = (*u, *w);
                    *u = a * c - b * s;
                    *w = b * c + a * s;
                }
            }
        }
    }
}

/// See [`crate::ops::Ops::rope`]; rows have `cols` columns.
///
/// # Panics
/// If the table has too few rows, or the heads do not lie in the row.
pub(super) fn rope(
    (threads, isa): (&Threads, Isa),
    table: &Rotation,
    x: &mut [f32],
    cols: usize,
    offset: usize,
    heads: usize,
) {
    let half = table.half;
    assert!(offset + heads * 2 * half <= cols, "rope: heads lie in the row");
    if x.is_empty() || half == 0 {
        return;
    }
    let rows = x.len() / cols;
    assert!(table.cos.len().min(table.sin.len()) >= rows * half, "rope: angles for every row");
    let x = Shared::new(x);
    threads.ranges(rows, GRAIN / (heads * 2 * half).max(1), &|first, count| {
        let at = first * half..(first + count) * half;
        // SAFETY: tasks own different rows.
        let rows = unsafe { x.range(first * cols, count * cols) };
        let columns = offset..offset + heads * 2 * half;
        let (cos, sin) = (&table.cos[at.clone()], &table.sin[at]);
        simd::run(isa, Rotate { cos, sin, half, rows, cols, columns });
    });
}

struct Narrow<'a> {
    from: &'a [f32],
    to: &'a mut [u16],
}

impl Job for Narrow<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        narrow(s, self.from, self.to);
    }
}

/// See [`crate::ops::Ops::cache_append`].
///
/// # Panics
/// If heads of tensors and cache differ.
pub(super) fn cache_append(
    (threads, isa): (&Threads, Isa),
    cache: &mut LayerCache,
    keys: Heads<'_>,
    values: Heads<'_>,
    rows: Range<usize>,
) {
    let e = cache.head_dim;
    for heads in [keys, values] {
        assert_eq!((heads.heads, heads.head_dim), (cache.kv_heads, e), "cache_append: heads");
    }
    grow_cache(cache, rows.len());
    for (store, source) in [(&mut cache.keys, keys), (&mut cache.values, values)] {
        let first = |head: usize| (head * cache.capacity + cache.len) * e;
        let size = rows.len() * e;
        let count = |task: &(dyn Fn(usize) + Sync)| {
            if size * cache.kv_heads < GRAIN {
                (0..cache.kv_heads).for_each(task);
            } else {
                threads.each(cache.kv_heads, task);
            }
        };
        match store {
            CacheValues::F32(v) => {
                let v = Shared::new(v);
                count(&|head| {
                    // SAFETY: tasks own different heads.
                    let to = unsafe { v.range(first(head), size) };
                    for (to, r) in to.chunks_exact_mut(e.max(1)).zip(rows.clone()) {
                        to.copy_from_slice(head_row(source, r, head));
                    }
                });
            }
            CacheValues::Bf16(v) => {
                let v = Shared::new(v);
                count(&|head| {
                    // SAFETY: tasks own different heads.
                    let to = unsafe { v.range(first(head), size) };
                    for (to, r) in to.chunks_exact_mut(e.max(1)).zip(rows.clone()) {
                        simd::run(isa, Narrow { from: head_row(source, r, head), to });
                    }
                });
            }
        }
    }
    cache.len += rows.len();
}
