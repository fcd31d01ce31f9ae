//! Attention, its masks and its reported rows.

use proptest::prelude::*;
use secateur_core::cache::LayerCache;
use secateur_core::ops::reference::ReferenceOps;
use secateur_core::ops::{
    AttentionParams, Heads, Keys, Mask, Ops, Precision, Queries, Reduction, ScoreRequest, Segment,
    Window,
};
use secateur_core::tensor::Tensor;

use super::{BOTH, Values, close, equal_bits, variants};

/// Who sees whom in every segment of a case.
#[derive(Clone, Copy, Debug)]
enum Sees {
    Full,
    Causal,
    /// What is before it and the block of so many keys that it stands in.
    Block(usize),
}

impl Sees {
    /// Keys that each of `n` queries, the last of `len` keys, sees.
    fn until(self, (n, len): (usize, usize)) -> Vec<u32> {
        let of = |key: usize| match self {
            Sees::Full => len,
            Sees::Causal => key + 1,
            Sees::Block(size) => (key / size + 1) * size,
        };
        (len - n..len).map(|key| of(key).min(len) as u32).collect()
    }
}

#[derive(Clone, Debug)]
struct Case {
    /// `(queries, keys)` of each segment.
    segments: Vec<(usize, usize)>,
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    sees: Sees,
    /// Whether even the masks with names are given as lists.
    listed: bool,
    window: Option<i32>,
    softcap: Option<f32>,
    cached: bool,
    scores: Vec<ScoreRequest>,
    scale: f32,
}

impl Case {
    fn new(segments: &[(usize, usize)], kv_heads: usize, group: usize, head_dim: usize) -> Self {
        Self {
            segments: segments.to_vec(),
            kv_heads,
            group,
            head_dim,
            sees: Sees::Causal,
            listed: false,
            window: None,
            softcap: None,
            cached: true,
            scores: Vec::new(),
            scale: 1.0,
        }
    }

    fn run(&self, ops: &dyn Ops) -> (Vec<f32>, Vec<Vec<Vec<f32>>>) {
        let (e, kv, heads) = (self.head_dim, self.kv_heads, self.kv_heads * self.group);
        let mut values = Values::new(11);
        let queries: usize = self.segments.iter().map(|s| s.0).sum();
        let keys: usize = self.segments.iter().map(|s| s.1).sum();
        // Queries stand behind 3 other columns, keys and values share a tensor.
        let q = values.tensor(queries, 3 + heads * e, self.scale);
        let kvs = values.tensor(keys, 2 * kv * e, 1.0);
        let head = |offset| Heads { tensor: &kvs, offset, heads: kv, head_dim: e };
        let (k, v) = (head(0), head(kv * e));
        let mut caches = Vec::new();
        let mut first = 0;
        for (_, len) in &self.segments {
            let mut cache = LayerCache::new(kv, e, len / 2, ops.precision().dtype());
            ops.cache_append(&mut cache, k, v, first..first + len / 2);
            ops.cache_append(&mut cache, k, v, first + len / 2..first + len);
            caches.push(cache);
            first += len;
        }
        let spots: Vec<(Vec<i32>, Vec<i32>)> = self
            .segments
            .iter()
            .map(|(n, len)| {
                // Positions with gaps, as after a cut.
                let at = |i: usize| (i + i / 3) as i32;
                ((len - n..*len).map(at).collect(), (0..*len).map(at).collect())
            })
            .collect();
        let until: Vec<Vec<u32>> = self.segments.iter().map(|&s| self.sees.until(s)).collect();
        let (mut row, mut key) = (0, 0);
        let segments: Vec<Segment<'_>> = self
            .segments
            .iter()
            .enumerate()
            .map(|(i, (n, len))| {
                let segment = Segment {
                    rows: row..row + n,
                    keys: if self.cached {
                        Keys::Cached(&caches[i])
                    } else {
                        Keys::Rows { keys: k, values: v, first: key, len: *len }
                    },
                    mask: match self.sees {
                        Sees::Full if !self.listed => Mask::Full,
                        Sees::Causal if !self.listed => Mask::Causal,
                        _ => Mask::Until(&until[i]),
                    },
                    window: self.window.map(|window| Window {
                        window,
                        queries: &spots[i].0,
                        keys: &spots[i].1,
                    }),
                    scores: &self.scores,
                };
                row += n;
                key += len;
                segment
            })
            .collect();
        let q = Heads { tensor: &q, offset: 3, heads, head_dim: e };
        let params = AttentionParams { scale: (e as f32).powf(-0.5), softcap: self.softcap };
        let mut out = values.tensor(2, 2, 100.0);
        let scores = on_host(ops.attention(params, q, &segments, &mut out));
        assert_eq!((out.rows(), out.cols()), (queries, heads * e));
        (out.host().to_vec(), scores)
    }

    /// Values are at most 1 and weights sum to 1. In f32 a score of magnitude
    /// `sqrt(e) scale / 3` is off by some `e 2^-23` of it and weights by the same absolute amount;
    /// in bf16 each weight is rounded (2^-9), against another maximum than the reference's.
    fn bound(&self, precision: Precision) -> f32 {
        let score = (self.head_dim as f32).sqrt() * self.scale.max(1.0);
        match precision {
            Precision::F32 => score * self.head_dim as f32 * 2f32.powi(-22),
            Precision::Bf16 => 2f32.powi(-7),
        }
    }

    fn check(&self) {
        for precision in BOTH {
            let (want, want_scores) = self.run(&ReferenceOps::new(precision));
            for ops in variants(precision, 2) {
                let what = format!("{}, {self:?}", ops.describe());
                let (got, scores) = self.run(&ops);
                close(&what, &got, &want, self.bound(precision));
                assert_eq!(scores.len(), want_scores.len());
                for (got, want) in scores.iter().flatten().zip(want_scores.iter().flatten()) {
                    close(&what, got, want, self.bound(Precision::F32) + 1e-6);
                }
            }
        }
    }
}

fn requests() -> Vec<ScoreRequest> {
    let heads = [Reduction::Max, Reduction::GroupMax, Reduction::GroupSum, Reduction::Each];
    let reduced = heads.into_iter().chain([Reduction::Listed(vec![0, 0])]);
    let reduced = reduced.flat_map(|heads| {
        [ScoreRequest::mean(Queries::All), ScoreRequest::each(Queries::Listed(vec![0]))]
            .map(|request| request.heads(heads.clone()))
    });
    let means = [
        ScoreRequest::mean(Queries::All),
        ScoreRequest::each(Queries::All),
        ScoreRequest::mean(Queries::Listed(vec![0])),
        ScoreRequest::each(Queries::Listed(vec![0])),
    ];
    means.into_iter().chain(reduced).collect()
}

/// Reports as plain values.
fn on_host(scores: Vec<Vec<Tensor>>) -> Vec<Vec<Vec<f32>>> {
    let one = |segment: Vec<Tensor>| segment.iter().map(|s| s.host().to_vec()).collect();
    scores.into_iter().map(one).collect()
}

#[test]
fn prefill_equals_the_reference_at_every_tail() {
    for n in [1, 2, 5, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 70] {
        Case::new(&[(n, n)], 2, 1, 16).check();
    }
    Case::new(&[(130, 130)], 1, 4, 32).check();
    Case::new(&[(129, 200)], 2, 2, 64).check();
}

#[test]
fn heads_of_every_width_and_grouping() {
    for head_dim in [1, 4, 8, 15, 16, 17, 24, 32, 64, 72, 80, 88, 96, 128] {
        Case::new(&[(19, 19)], 1, 2, head_dim).check();
        Case::new(&[(1, 19)], 1, 2, head_dim).check();
        Case { cached: false, sees: Sees::Full, ..Case::new(&[(19, 19)], 2, 1, head_dim) }.check();
    }
    for group in [1, 2, 3, 7, 8, 12, 40] {
        Case::new(&[(11, 21)], 2, group, 16).check();
        Case::new(&[(1, 21)], 2, group, 16).check();
    }
}

#[test]
fn decode_steps_of_several_requests() {
    for group in [1, 4, 8] {
        Case::new(&[(1, 1), (1, 2), (1, 63), (1, 64), (1, 65), (1, 300)], 2, group, 64).check();
    }
}

#[test]
fn encoders_see_everything_in_their_own_segment() {
    let base = Case { cached: false, sees: Sees::Full, ..Case::new(&[(50, 50), (7, 7)], 3, 1, 24) };
    base.check();
    Case { scores: requests(), ..base.clone() }.check();
    Case { segments: vec![(197, 197)], scores: requests(), ..base }.check();
}

#[test]
fn a_window_reaches_back_by_position_not_by_order() {
    for window in [1, 2, 5, 40, 1000] {
        for (n, len) in [(40, 40), (1, 150), (3, 90), (100, 150)] {
            let case = Case { window: Some(window), ..Case::new(&[(n, len)], 2, 2, 16) };
            case.check();
            Case { scores: requests(), sees: Sees::Full, ..case.clone() }.check();
            Case { scores: requests(), sees: Sees::Block(7), ..case }.check();
        }
    }
}

#[test]
fn blocks_of_rows_see_one_another_and_what_is_before() {
    // Blocks within lanes, across blocks of queries and of keys, and behind a cache.
    for size in [1, 3, 16, 50, 64, 130] {
        for (n, len) in [(70, 70), (130, 300), (1, 65), (5, 40), (3, 3)] {
            for group in [1, 4] {
                let case = Case::new(&[(n, len), (9, 20)], 2, group, 32);
                Case { sees: Sees::Block(size), scores: requests(), ..case }.check();
            }
        }
    }
}

#[test]
fn masks_as_lists_have_the_bits_of_those_with_names() {
    for sees in [Sees::Full, Sees::Causal] {
        for window in [None, Some(9)] {
            for precision in BOTH {
                for ops in variants(precision, 2) {
                    let case = Case::new(&[(70, 140), (1, 40), (33, 33)], 2, 2, 64);
                    let case = Case { sees, window, scores: requests(), ..case };
                    let (want, want_scores) = case.run(&ops);
                    let (got, scores) = Case { listed: true, ..case }.run(&ops);
                    equal_bits(&ops.describe(), &got, &want);
                    assert_eq!(scores, want_scores, "{}", ops.describe());
                }
            }
        }
    }
}

#[test]
fn a_soft_cap_bends_scores_before_the_mask() {
    for segments in [[(30, 30)], [(1, 30)]] {
        let base = Case::new(&segments, 2, 2, 16);
        Case { softcap: Some(2.0), scores: requests(), scale: 10.0, ..base }.check();
    }
}

#[test]
fn a_query_without_keys_gives_zeros() {
    for (n, len) in [(3, 0), (1, 0), (20, 0), (20, 4)] {
        // With more queries than keys, the first ones see nothing.
        Case { scores: requests(), ..Case { cached: false, ..Case::new(&[(n, len)], 1, 2, 16) } }
            .check_without_window();
    }
}

impl Case {
    /// For segments with fewer keys than queries, for which positions make no sense.
    fn check_without_window(&self) {
        let mut case = self.clone();
        case.window = None;
        for precision in BOTH {
            let (want, want_scores) = case.run_plain(&ReferenceOps::new(precision));
            for ops in variants(precision, 2) {
                let (got, scores) = case.run_plain(&ops);
                close(&ops.describe(), &got, &want, case.bound(precision));
                for (got, want) in scores.iter().flatten().zip(want_scores.iter().flatten()) {
                    close(&ops.describe(), got, want, 1e-5);
                }
            }
        }
    }

    fn run_plain(&self, ops: &dyn Ops) -> (Vec<f32>, Vec<Vec<Vec<f32>>>) {
        let (n, len) = self.segments[0];
        let (e, heads) = (self.head_dim, self.kv_heads * self.group);
        let mut values = Values::new(5);
        let q = values.tensor(n, heads * e, 1.0);
        let kv = values.tensor(len, self.kv_heads * e, 1.0);
        let k = Heads { tensor: &kv, offset: 0, heads: self.kv_heads, head_dim: e };
        let segment = Segment {
            rows: 0..n,
            keys: Keys::Rows { keys: k, values: k, first: 0, len },
            mask: Mask::Causal,
            window: None,
            scores: &self.scores,
        };
        let mut out = Tensor::zeros(0, 0);
        let params = AttentionParams { scale: 0.25, softcap: None };
        let q = Heads { tensor: &q, offset: 0, heads, head_dim: e };
        let scores = on_host(ops.attention(params, q, &[segment], &mut out));
        (out.host().to_vec(), scores)
    }
}

#[test]
fn large_scores_do_not_overflow() {
    for segments in [[(40, 40)], [(1, 40)]] {
        let case = Case { scale: 1e4, ..Case::new(&segments, 1, 1, 16) };
        // Scores of 1e4 are off by 1e4 e 2^-23, and so are their differences: compare ranges only.
        for precision in BOTH {
            for ops in variants(precision, 1) {
                let (got, _) = case.run(&ops);
                assert!(
                    got.iter().all(|x| x.abs() <= 1.01),
                    "{}: a mean of values",
                    ops.describe()
                );
            }
        }
    }
}

#[test]
fn reported_rows_sum_to_one_and_hide_what_the_query_does_not_see() {
    let listed = Queries::Listed(vec![0, 7, 69, 7]);
    let scores = vec![
        ScoreRequest::each(listed.clone()),
        ScoreRequest::mean(listed),
        ScoreRequest::mean(Queries::Listed(vec![])),
        ScoreRequest::each(Queries::Listed(vec![])),
    ];
    let case = Case { scores, ..Case::new(&[(70, 100)], 2, 4, 32) };
    case.check();
    for precision in BOTH {
        for ops in variants(precision, 2) {
            let (_, reports) = case.run(&ops);
            let [rows, mean, none, empty] = &reports[0][..] else { panic!("four requests") };
            for (row, query) in rows.chunks_exact(100).zip([0, 7, 69, 7]) {
                let sum: f32 = row.iter().sum();
                assert!((sum - 1.0).abs() < 1e-5, "{}: a row sums to {sum}", ops.describe());
                assert!(row[30 + query + 1..].iter().all(|x| *x == 0.0), "hidden keys");
            }
            assert!((mean.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            assert_eq!((none, empty.len()), (&vec![0.0; 100], 0));
        }
    }
}

#[test]
fn reductions_over_heads_agree_with_one_another() {
    let of = |heads| ScoreRequest::each(Queries::Listed((0..20).collect())).heads(heads);
    let listed = Reduction::Listed(vec![5, 0]);
    let kinds = [
        Reduction::Mean,
        Reduction::Max,
        Reduction::GroupMax,
        Reduction::GroupSum,
        Reduction::Each,
        listed,
    ];
    let scores = kinds.map(of).to_vec();
    let case = Case { scores, ..Case::new(&[(20, 70)], 2, 3, 32) };
    case.check();
    for ops in variants(Precision::F32, 2) {
        let (_, reports) = case.run(&ops);
        let [mean, max, group_max, group_sum, each, listed] = &reports[0][..] else {
            panic!("six requests")
        };
        let lens = [mean, max, group_max, group_sum, each, listed].map(|r| r.len() / 70 / 20);
        assert_eq!(lens, [1, 1, 2, 2, 6, 2]);
        for query in 0..20 {
            for key in 0..70 {
                let row = |r: &[f32], of: usize, i: usize| r[(query * of + i) * 70 + key];
                let heads: Vec<f32> = (0..6).map(|head| row(each, 6, head)).collect();
                let largest = |part: &[f32]| part.iter().copied().fold(0.0, f32::max);
                assert!((row(mean, 1, 0) - heads.iter().sum::<f32>() / 6.0).abs() < 1e-6);
                assert_eq!(row(max, 1, 0), largest(&heads));
                for (group, part) in heads.chunks(3).enumerate() {
                    assert_eq!(row(group_max, 2, group), largest(part));
                    assert!((row(group_sum, 2, group) - part.iter().sum::<f32>()).abs() < 1e-6);
                }
                assert_eq!([row(listed, 2, 0), row(listed, 2, 1)], [heads[5], heads[0]]);
            }
        }
    }
}

#[test]
fn rows_of_a_layer_about_to_run_need_no_output() {
    let mut values = Values::new(2);
    for (n, len, group, mean) in [(1, 50, 4, true), (5, 50, 1, false), (60, 90, 2, true)] {
        let q = values.tensor(n, 2 * group * 16, 1.0);
        let k = values.tensor(len, 2 * 16, 1.0);
        let visible: Vec<u32> = (0..n).map(|i| (len - n + i + 1) as u32).collect();
        for precision in BOTH {
            let run = |ops: &dyn Ops| {
                let q = Heads { tensor: &q, offset: 0, heads: 2 * group, head_dim: 16 };
                let k = Heads { tensor: &k, offset: 0, heads: 2, head_dim: 16 };
                let params = AttentionParams { scale: 0.25, softcap: None };
                ops.score_rows(params, q, &visible, k, mean).host().to_vec()
            };
            let want = run(&ReferenceOps::new(precision));
            for ops in variants(precision, 2) {
                close(&ops.describe(), &run(&ops), &want, 1e-5);
            }
        }
    }
}

#[test]
fn threads_and_other_segments_do_not_change_a_bit() {
    for (cached, sees) in [(true, Sees::Causal), (false, Sees::Causal), (true, Sees::Block(25))] {
        for precision in BOTH {
            for (one, two) in variants(precision, 1).iter().zip(variants(precision, 2)) {
                let both = [(70, 90), (1, 40), (33, 33)];
                let scores = requests();
                let case = Case { cached, sees, scores, ..Case::new(&both, 2, 2, 64) };
                let (want, want_scores) = case.run(one);
                let (got, scores) = case.run(&two);
                equal_bits(&two.describe(), &got, &want);
                for (got, want) in scores.iter().flatten().zip(want_scores.iter().flatten()) {
                    equal_bits(&two.describe(), got, want);
                }
            }
        }
    }
}

#[test]
fn a_segment_alone_has_the_bits_it_has_in_a_batch() {
    let mut values = Values::new(8);
    let (e, heads) = (32, 4);
    let q = values.tensor(90, heads * e, 1.0);
    let kv = values.tensor(90, heads * e, 1.0);
    let rows = [0..20, 20..21, 21..90];
    for precision in BOTH {
        for ops in variants(precision, 2) {
            let run = |rows: &[std::ops::Range<usize>]| {
                let k = Heads { tensor: &kv, offset: 0, heads, head_dim: e };
                let segments: Vec<_> = rows
                    .iter()
                    .map(|r| Segment {
                        rows: r.clone(),
                        keys: Keys::Rows { keys: k, values: k, first: r.start, len: r.len() },
                        mask: Mask::Causal,
                        window: None,
                        scores: &[],
                    })
                    .collect();
                let mut out = Tensor::zeros(0, 0);
                let params = AttentionParams { scale: 0.2, softcap: None };
                let q = Heads { tensor: &q, offset: 0, heads, head_dim: e };
                ops.attention(params, q, &segments, &mut out);
                out
            };
            let all = run(&rows);
            for r in &rows {
                let alone = run(std::slice::from_ref(r));
                for i in 0..90 {
                    let what = format!("{} row {i}", ops.describe());
                    if r.contains(&i) {
                        equal_bits(&what, alone.row(i), all.row(i));
                    } else {
                        assert!(alone.row(i).iter().all(|x| *x == 0.0), "{what} is in no segment");
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn any_shape_equals_the_reference(
        n in 1usize..80, more in 0usize..90, kv_heads in 1usize..3, group in 1usize..10,
        head_dim in 1usize..100, cached: bool,
        sees in prop_oneof![
            Just(Sees::Full),
            Just(Sees::Causal),
            (1usize..90).prop_map(Sees::Block),
        ],
        window in proptest::option::of(1i32..60),
    ) {
        let base = Case::new(&[(n, n + more)], kv_heads, group, head_dim);
        Case { sees, window, cached, scores: requests(), ..base }.check();
    }
}
