//! Attention over segments, and reported attention rows.
//!
//! Invariants
//! - A task is a block of queries of one KV head of one segment; how blocks are cut depends on the
//!   segment alone, so results depend neither on other segments nor on the number of threads.
//! - No `[queries, keys]` matrix is held but where it is the output (`ScoreRequest` with
//!   `mean: false` and all queries).
//! - Reported rows are recomputed for the queries that were asked for, in two sweeps (statistics,
//!   then weights), so each sums to one whatever the main pass rounded.
//!
//! Variants: `few` (decode), `lanes` (f32, and bf16 without tiles), `amx` (bf16 with tiles).

#[cfg(target_arch = "x86_64")]
mod amx;
mod few;
mod keys;
mod lanes;
mod scores;

pub(super) use keys::narrow;
pub(super) use scores::{report, score_rows};

use super::detect::Isa;
use super::memory::{Scratch, ScratchPool, Shared};
use super::simd::{self, Job, Simd};
use super::threads::Threads;
use crate::ops::reference::{key_count, kv_heads};
use crate::ops::{AttentionParams, Heads, Keys, Mask, Segment, Window};
use keys::Rows;
use lanes::{Lanes, MAX_LANES, Sight, VECTORS, Work};

/// What an attention call runs with.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) threads: &'a Threads,
    pub(super) isa: Isa,
    pub(super) scratch: &'a ScratchPool,
    /// Inputs of products are rounded to bf16.
    pub(super) rounded: bool,
    pub(super) params: AttentionParams,
}

/// Queries of one KV head of a segment: query `i` is head `i % group` of the group in row
/// `i / group`, so that neighbours see almost the same keys.
#[derive(Clone, Copy)]
struct Part<'a> {
    q: Heads<'a>,
    keys: Keys<'a>,
    window: Option<Window<'a>>,
    mask: Mask<'a>,
    /// First row of the segment, and rows.
    first: usize,
    rows: usize,
    kv_head: usize,
    group: usize,
}

impl<'a> Part<'a> {
    fn of(segment: &'a Segment<'_>, q: Heads<'a>, kv_head: usize) -> Self {
        let group = q.heads / kv_heads(segment.keys).max(1);
        Self {
            q,
            keys: segment.keys,
            window: segment.window,
            mask: segment.mask,
            first: segment.rows.start,
            rows: segment.rows.len(),
            kv_head,
            group,
        }
    }

    fn queries(&self) -> usize {
        self.rows * self.group
    }

    /// `(row of the tensor, head)` of a query.
    fn place(&self, query: usize) -> (usize, usize) {
        (self.first + query / self.group, self.kv_head * self.group + query % self.group)
    }

    fn query(&self, query: usize) -> &'a [f32] {
        let (row, head) = self.place(query);
        &self.q.tensor.row(row)[self.q.offset + head * self.q.head_dim..][..self.q.head_dim]
    }

    /// What queries `first .. first + count` see.
    fn sight(&self, first: usize, count: usize) -> Sight {
        let keys = key_count(self.keys);
        let row = |lane: usize| (first + lane) / self.group;
        let mut sight = Sight::new(count, |lane| self.mask.until((self.rows, keys), row(lane)));
        if let Some(w) = self.window {
            for lane in 0..count {
                sight.set_window(lane, w.queries[row(lane)], w.window);
            }
        }
        sight
    }
}

/// A block of queries, from `begin` on.
struct Block<'a> {
    context: Context<'a>,
    part: Part<'a>,
    begin: usize,
    count: usize,
    out: Shared<f32>,
    scratch: &'a mut Scratch,
}

/// Queries of a block under an instruction set.
fn block_size(isa: Isa) -> usize {
    match isa {
        Isa::Scalar | Isa::Avx2 => 8 * VECTORS,
        _ => 16 * VECTORS,
    }
}

impl Job for Block<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { context, part, begin, count, out, scratch } = self;
        let (keys, values) = Rows::of_keys(part.keys, part.kv_head, context.rounded);
        let e = part.q.head_dim;
        assert_eq!((keys.head_dim, values.head_dim), (e, e), "attention: widths of heads");
        let lanes = Lanes {
            params: context.params,
            keys,
            values,
            window: part.window,
            sight: part.sight(begin, count),
            rounded: context.rounded,
        };
        let width = part.q.heads * e;
        let row = |i: usize| {
            let (row, head) = part.place(begin + i);
            // SAFETY: this task alone writes this head of this row, and the output still lives.
            #[allow(unsafe_code, reason = "several tasks write different heads of one row")]
            unsafe {
                out.range(row * width + head * e, e)
            }
        };
        if part.queries() <= few::FEW {
            let memory = scratch.take(few::scratch_len(count, e, keys.len));
            few::attend(s, &lanes, memory, count, |i| part.query(begin + i), row);
            return;
        }
        let mut work = Work::split(scratch.take(Work::len(e)), e);
        work.queries.fill(0.0);
        for lane in 0..count {
            let query = part.query(begin + lane);
            lanes::set_query(s, &mut work, lane, query, context.rounded);
        }
        let state = lanes.attend(s, &mut work);
        lanes.finish(s, &work, &state, count, row);
    }
}

/// Runs attention; see [`crate::ops::Ops::attention`]. `out: [q rows, heads * head_dim]`.
pub(super) fn run(context: Context<'_>, q: Heads<'_>, segments: &[Segment<'_>], out: &mut [f32]) {
    assert_eq!(out.len(), q.tensor.rows() * q.heads * q.head_dim, "attention: size of the output");
    if segments.iter().map(|s| s.rows.len()).sum::<usize>() < q.tensor.rows() {
        out.fill(0.0);
    }
    let out = Shared::new(out);
    let size = block_size(context.isa);
    debug_assert!(size <= MAX_LANES);
    let mut tasks = Vec::new();
    for segment in segments {
        let heads = kv_heads(segment.keys);
        assert!(segment.mask.is_of(segment.rows.len()), "attention: a mask of other queries");
        assert!(
            heads > 0 && q.heads.is_multiple_of(heads),
            "attention: {} query heads over {heads} KV heads",
            q.heads
        );
        for kv_head in 0..heads {
            let part = Part::of(segment, q, kv_head);
            #[cfg(target_arch = "x86_64")]
            if amx::suits(&context, &part) {
                amx::plan(&part, |begin, count| tasks.push((part, begin, count)));
                continue;
            }
            for begin in (0..part.queries()).step_by(size) {
                tasks.push((part, begin, size.min(part.queries() - begin)));
            }
        }
    }
    context.threads.each(tasks.len(), &|i| {
        let (part, begin, count) = tasks[i];
        #[cfg(target_arch = "x86_64")]
        if amx::suits(&context, &part) {
            amx::run(&context, &part, begin, count, out);
            return;
        }
        // Outside the job: what a closure holds is compiled without the job's features.
        context.scratch.with(|[scratch, _]| {
            simd::run(context.isa, Block { context, part, begin, count, out, scratch });
        });
    });
}
