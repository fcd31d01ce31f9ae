//! Attention rows that pruners and heads read: softmax weights, reduced over attention heads.
//!
//! For the mean over heads, queries of the asked rows are gathered in blocks of lanes, rows times the
//! heads that share keys. Other reductions take the rows of a few queries head by head.
//! A block belongs to one task, and what several tasks computed is added in their order.
#![allow(unsafe_code, reason = "tasks write different parts of one buffer")]

use super::keys::Rows;
use super::lanes::{self, Lanes, Sight, VECTORS, Work};
use super::{Context, block_size, few};
use crate::ops::cpu::memory::{Scratch, Shared};
use crate::ops::cpu::simd::{self, Job, Simd};
use crate::ops::reference::{head_row, key_count, kv_heads, reduce};
use crate::ops::{Heads, Keys, Queries, Reduction, ScoreRequest, Segment, Window};

/// What to report: rows of a tensor over keys.
struct Report<'a> {
    q: Heads<'a>,
    keys: Keys<'a>,
    window: Option<Window<'a>>,
    /// Per asked row: the row of `q`, how many keys it sees by order, its place in the segment.
    rows: Vec<(usize, usize, usize)>,
    mean: bool,
    /// KV heads, and the first query head of each that is read.
    picks: Vec<(usize, usize)>,
    /// Query heads that are read of each, whose mean is reported.
    group: usize,
}

/// Queries that are in memory at a time, all of their heads apart.
const AT_A_TIME: usize = 8;

/// One request of a segment; see [`ScoreRequest`].
pub(in crate::ops::cpu) fn report(
    context: Context<'_>,
    q: Heads<'_>,
    segment: &Segment<'_>,
    request: &ScoreRequest,
) -> Vec<f32> {
    let (n, keys) = (segment.rows.len(), key_count(segment.keys));
    let row = |i: usize| {
        assert!(i < n, "score request: query {i} of {n}");
        (segment.rows.start + i, segment.mask.until((n, keys), i), i)
    };
    let rows = match &request.queries {
        Queries::All => (0..n).map(row).collect(),
        Queries::Listed(listed) => listed.iter().map(|i| row(*i as usize)).collect(),
    };
    let window = segment.window;
    let whole = Report::of(q, segment.keys, window, rows, request.mean);
    if request.heads == Reduction::Mean {
        return whole.run(context);
    }
    let kv_heads = kv_heads(segment.keys);
    let mut mean = vec![0.0; request.heads.rows(q.heads, kv_heads) * keys];
    let mut apart = Vec::new();
    for rows in whole.rows.chunks(AT_A_TIME) {
        let heads: Vec<Vec<f32>> = (0..q.heads)
            .map(|head| {
                let part = Report::of(q, segment.keys, window, rows.to_vec(), false);
                let picks = vec![(head / whole.group, head)];
                Report { picks, group: 1, ..part }.run(context)
            })
            .collect();
        for row in 0..rows.len() {
            let heads: Vec<&[f32]> =
                heads.iter().map(|head| &head[row * keys..(row + 1) * keys]).collect();
            let reduced = reduce(&request.heads, &heads, kv_heads);
            if request.mean {
                mean.iter_mut().zip(&reduced).for_each(|(m, p)| *m += p);
            } else {
                apart.extend(reduced);
            }
        }
    }
    if !request.mean {
        return apart;
    }
    let count = whole.rows.len().max(1) as f32;
    mean.iter_mut().for_each(|m| *m /= count);
    mean
}

/// See [`crate::ops::Ops::score_rows`].
pub(in crate::ops::cpu) fn score_rows(
    context: Context<'_>,
    q: Heads<'_>,
    visible: &[u32],
    keys: Heads<'_>,
    mean: bool,
) -> Vec<f32> {
    assert_eq!(visible.len(), q.tensor.rows(), "score_rows: one end a row");
    let len = keys.tensor.rows();
    let rows = visible.iter().enumerate().map(|(i, v)| (i, (*v as usize).min(len), i)).collect();
    let keys = Keys::Rows { keys, values: keys, first: 0, len };
    Report::of(q, keys, None, rows, mean).run(context)
}

impl<'a> Report<'a> {
    /// Of the mean over all heads.
    fn of(
        q: Heads<'a>,
        keys: Keys<'a>,
        window: Option<Window<'a>>,
        rows: Vec<(usize, usize, usize)>,
        mean: bool,
    ) -> Self {
        let heads = kv_heads(keys);
        let group = q.heads / heads;
        let picks = (0..heads).map(|head| (head, head * group)).collect();
        Self { q, keys, window, rows, mean, picks, group }
    }

    /// One vector `[keys]`, or `[rows, keys]`.
    fn run(&self, context: Context<'_>) -> Vec<f32> {
        let (heads, keys) = (self.picks.len(), key_count(self.keys));
        let out_rows = if self.mean { 1 } else { self.rows.len() };
        let mut out = vec![0.0f32; out_rows * keys];
        if self.rows.is_empty() || keys == 0 {
            return out;
        }
        let group = self.group;
        let per_block = (block_size(context.isa) / group).max(1);
        let blocks = self.rows.len().div_ceil(per_block);
        // With one block the heads are shared out, else the blocks are.
        let (tasks, heads_each) = if blocks == 1 { (heads, 1) } else { (blocks, heads) };
        let rows_of = |task: usize| {
            let block = if blocks == 1 { 0 } else { task };
            block * per_block..self.rows.len().min((block + 1) * per_block)
        };
        // Rows of blocks are apart; means, and heads of one block, are added up afterwards.
        let in_place = blocks > 1 && !self.mean;
        let part_rows = if self.mean { 1 } else { per_block.min(self.rows.len()) };
        let mut parts = vec![0.0f32; if in_place { 0 } else { tasks * part_rows * keys }];
        let target = Shared::new(if in_place { &mut out } else { &mut parts });
        context.threads.each(tasks, &|task| {
            let rows = rows_of(task);
            let first = if in_place { rows.start } else { task * part_rows };
            let count = if self.mean { 1 } else { rows.len() };
            // SAFETY: tasks own different rows of the target.
            let out = unsafe { target.range(first * keys, count * keys) };
            let first_head = if blocks == 1 { task } else { 0 };
            for &pick in &self.picks[first_head..first_head + heads_each] {
                let rows = &self.rows[rows.clone()];
                for block in head_blocks(rows.len(), group, block_size(context.isa)) {
                    context.scratch.with(|[scratch, _]| {
                        let report = self;
                        let job = Block { context, report, rows, pick, block, out, scratch };
                        simd::run(context.isa, job);
                    });
                }
            }
        });
        if !in_place {
            for part in parts.chunks_exact(part_rows * keys) {
                out.iter_mut().zip(part).for_each(|(o, p)| *o += p);
            }
        }
        let share = 1.0 / (heads * group) as f32;
        let share = if self.mean { share / self.rows.len() as f32 } else { share };
        out.iter_mut().for_each(|x| *x *= share);
        out
    }
}

/// Ranges of queries that fit the lanes: all of a group's rows, or parts of one row's heads if a
/// group is wider than a block.
fn head_blocks(
    rows: usize,
    group: usize,
    size: usize,
) -> impl Iterator<Item = std::ops::Range<usize>> {
    let queries = rows * group;
    (0..queries).step_by(size).map(move |first| first..queries.min(first + size))
}

/// Some queries of one pick.
struct Block<'a> {
    context: Context<'a>,
    report: &'a Report<'a>,
    rows: &'a [(usize, usize, usize)],
    /// The KV head, and its first query head that is read.
    pick: (usize, usize),
    block: std::ops::Range<usize>,
    /// Added to: `[keys]`, or `[rows, keys]`.
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl Job for Block<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { context, report, rows, pick: (kv_head, first), block, out, scratch } = self;
        let (keys, values) = Rows::of_keys(report.keys, kv_head, context.rounded);
        let group = report.group;
        let e = report.q.head_dim;
        assert_eq!(keys.head_dim, e, "scores: widths of heads");
        let row = |lane: usize| rows[(block.start + lane) / group];
        let mut sight = Sight::new(block.len(), |lane| row(lane).1);
        if let Some(w) = report.window {
            for lane in 0..block.len() {
                sight.set_window(lane, w.queries[row(lane).2], w.window);
            }
        }
        let lanes = Lanes {
            params: context.params,
            keys,
            values,
            window: report.window,
            sight,
            rounded: context.rounded,
        };
        let query = |lane: usize| {
            let head = first + (block.start + lane) % group;
            head_row(report.q, row(lane).0, head)
        };
        let len = keys.len;
        if block.len() <= few::FEW {
            let memory = scratch.take(few::scratch_len(block.len(), e, len));
            let mut weights = few::weigh(s, &lanes, memory, block.len(), query, false);
            weights.each(|lane, weights| {
                let to = if report.mean { 0 } else { (block.start + lane) / group * len };
                for (o, w) in out[to..to + len].iter_mut().zip(weights) {
                    *o += w;
                }
            });
            return;
        }
        let mut work = Work::split(scratch.take(Work::len(e)), e);
        work.queries.fill(0.0);
        for lane in 0..block.len() {
            lanes::set_query(s, &mut work, lane, query(lane), context.rounded);
        }
        let state = lanes.statistics(s, &mut work);
        lanes.weights(s, &mut work, &state, block.len(), |key, weights| {
            if report.mean {
                let mut sum = s.splat(0.0);
                for v in 0..VECTORS {
                    // SAFETY: there are `VECTORS * LANES` weights.
                    sum = s.add(sum, unsafe { s.load(weights[v * S::LANES..].as_ptr()) });
                }
                out[key] += s.sum(sum);
                return;
            }
            for (lane, weight) in weights[..block.len()].iter().enumerate() {
                out[(block.start + lane) / group * len + key] += weight;
            }
        });
    }
}
