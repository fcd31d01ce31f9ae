//! Norms, rotations, residual sums and operations on rows.

use secateur_core::cache::{CacheValues, LayerCache, Origin, Position};
use secateur_core::ops::reference::ReferenceOps;
use secateur_core::ops::{
    Activation, AttentionParams, Frequencies, Heads, Keys, Mask, Norm, NormKind, Ops, Precision,
    RowSum, Segment, TransitionTap,
};
use secateur_core::tensor::{DType, Tensor};
use secateur_core::weights::WeightView;

use super::{Values, close, equal_bits, variants};

const WIDTHS: [usize; 11] = [1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 200];

fn reference() -> ReferenceOps {
    ReferenceOps::new(Precision::F32)
}

fn norms(width: usize, values: &mut Values) -> Vec<Norm> {
    let (gain, bias) = (values.vec(width, 1.0), values.vec(width, 1.0));
    vec![
        reference().pack_norm(NormKind::Rms, gain.clone(), None, 1e-6),
        reference().pack_norm(NormKind::Layer, gain, Some(bias), 1e-5),
    ]
}

#[test]
fn norms_at_every_width() {
    let mut values = Values::new(1);
    for width in WIDTHS {
        for scale in [1.0, 1e4, 1e-4] {
            let x = values.tensor(5, width, scale);
            for norm in norms(width, &mut values) {
                let mut want = Tensor::zeros(0, 0);
                reference().norm(&norm, &x, &mut want);
                for ops in variants(Precision::F32, 2) {
                    let mut got = Tensor::zeros(1, 3);
                    ops.norm(&norm, &x, &mut got);
                    // Values are at most sqrt(width); the mean cancels up to all digits but the
                    // bias at width 1.
                    let bound = 2e-6 * (width as f32).sqrt().max(1.0);
                    close(&format!("{} {norm:?}", ops.describe()), got.host(), want.host(), bound);
                }
            }
        }
    }
}

#[test]
fn constant_and_zero_rows_stay_finite_under_a_norm() {
    let mut values = Values::new(1);
    for norm in norms(33, &mut values) {
        let mut x = Tensor::zeros(2, 33);
        x.row_mut(1).fill(3.0);
        for ops in variants(Precision::F32, 1) {
            let mut out = Tensor::zeros(0, 0);
            ops.norm(&norm, &x, &mut out);
            assert!(out.host().iter().all(|v| v.is_finite()), "{}", ops.describe());
        }
    }
}

#[test]
fn residual_sums_norm_and_transitions_in_one_pass() {
    let mut values = Values::new(4);
    for width in WIDTHS {
        let (x, delta, input) = (
            values.tensor(4, width, 1.0),
            values.tensor(4, width, 1.0),
            values.tensor(4, width, 1.0),
        );
        let scale = reference().pack_vector(values.vec(width, 1.0));
        for norm in norms(width, &mut values) {
            for tapped in [false, true] {
                for scaled in [false, true] {
                    let run = |ops: &dyn Ops| {
                        let (mut a, mut b) = (x.clone(), x.clone());
                        let (mut taps, mut more) = (Tensor::zeros(7, 2), Tensor::default());
                        let mut out = Tensor::zeros(0, 0);
                        let tap = tapped.then_some(TransitionTap { input: &input, out: &mut taps });
                        ops.add_norm(&mut a, &delta, tap, &norm, &mut out);
                        let tap = tapped.then_some(TransitionTap { input: &input, out: &mut more });
                        ops.add(&mut b, &delta, scaled.then_some(&scale), tap);
                        let mut all = [a.host(), b.host(), out.host()].concat();
                        if tapped {
                            assert_eq!((taps.rows(), taps.cols()), (4, 3));
                            all.extend([taps.host(), more.host()].concat());
                        }
                        all
                    };
                    let want = run(&reference());
                    for ops in variants(Precision::F32, 2) {
                        let bound = 4e-6 * width as f32;
                        close(&ops.describe(), &run(&ops), &want, bound);
                    }
                }
            }
        }
    }
}

#[test]
fn large_tensors_are_shared_out_without_changing_a_bit() {
    let mut values = Values::new(4);
    let (x, delta) = (values.tensor(150, 1000, 1.0), values.tensor(150, 1000, 1.0));
    for norm in norms(1000, &mut values) {
        for (one, two) in variants(Precision::F32, 1).iter().zip(variants(Precision::F32, 3)) {
            let run = |ops: &dyn Ops, first: usize, count: usize| {
                let cut = |t: &Tensor| {
                    Tensor::from_slice(count, 1000, &t.host()[first * 1000..][..count * 1000])
                };
                let (mut x, mut out) = (cut(&x), Tensor::zeros(0, 0));
                ops.add_norm(&mut x, &cut(&delta), None, &norm, &mut out);
                ops.scale(&mut x, 1.5);
                [x.host(), out.host()].concat()
            };
            let all = run(one, 0, 150);
            equal_bits(&two.describe(), &run(&two, 0, 150), &all);
            let part = run(&two, 50, 2);
            equal_bits(&two.describe(), &part[..2000], &all[50_000..52_000]);
            equal_bits(&two.describe(), &part[2000..], &all[200_000..202_000]);
        }
    }
}

#[test]
fn heads_are_normalised_and_rotated_in_their_columns_only() {
    let mut values = Values::new(6);
    for half in [1, 4, 8, 12, 16, 32] {
        let (rows, heads, offset) = (6, 3, 5);
        let width = 2 * half;
        let x = values.tensor(rows, offset + heads * width + 2, 1.0);
        let inverse = values.vec(half, 3.0);
        let frequencies =
            Frequencies::new(inverse.into_iter().enumerate().map(|(i, f)| (f, i % 3)));
        let positions: Vec<Position> = (0..rows as i32).map(|r| [r, 2 * r, -r]).collect();
        let table = reference().rotation(&frequencies, &positions);
        let norm = norms(width, &mut values).remove(0);
        let run = |ops: &dyn Ops| {
            let mut y = x.clone();
            ops.head_norm(&norm, &mut y, offset, heads);
            ops.rope(&table, &mut y, offset, heads);
            for r in 0..rows {
                equal_bits("columns before", &y.row(r)[..offset], &x.row(r)[..offset]);
                let end = offset + heads * width;
                equal_bits("columns behind", &y.row(r)[end..], &x.row(r)[end..]);
            }
            y.host().to_vec()
        };
        let want = run(&reference());
        for ops in variants(Precision::F32, 2) {
            close(&ops.describe(), &run(&ops), &want, 2e-5);
        }
    }
}

#[test]
fn activations_over_their_whole_range() {
    let acts = [
        Activation::Silu,
        Activation::GeluErf,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Relu,
    ];
    // The identity layer shows the activation alone.
    let identity = WeightView::from_f32("one", &[1, 1], &[1.0]);
    let mut xs: Vec<f32> = (-3000..3000).map(|i| i as f32 * 0.01).collect();
    xs.extend([0.0, -0.0, 1e-30, -1e-30, 90.0, -90.0, 1e4, -1e4, 3e38, -3e38]);
    let x = Tensor::from_slice(xs.len(), 1, &xs);
    for act in acts {
        let run = |ops: &dyn Ops| {
            let layer = ops.pack_linear(&[identity.clone().into()]).expect("shapes agree");
            let mut out = Tensor::zeros(0, 0);
            ops.linear(&layer, &x, act, &mut out);
            out.host().to_vec()
        };
        let want = run(&reference());
        for ops in variants(Precision::F32, 1) {
            for ((x, got), want) in xs.iter().zip(run(&ops)).zip(&want) {
                // erf is good to 3e-7 absolute, exp to two units in the last place; values that
                // vanish may be cut at `x exp(-87)`.
                let bound = 5e-7 * x.abs().clamp(1.0, 6.0) + 1e-6 * want.abs();
                let what = format!("{} {act:?}({x}) = {got}, not {want}", ops.describe());
                assert!((got - want).abs() <= bound, "{what}");
            }
        }
    }
}

#[test]
fn rows_are_gathered_merged_written_and_added() {
    let mut values = Values::new(9);
    for width in [1, 15, 16, 33, 130] {
        let mut x = values.tensor(12, width, 1.0);
        x.host_mut()[0] = -0.0;
        let sums = vec![
            RowSum { terms: vec![(0, 1.0)] },
            RowSum { terms: vec![(3, 0.25), (0, 0.5), (11, 0.25)] },
            RowSum { terms: vec![] },
        ];
        let rows = values.tensor(3, width, 1.0);
        let run = |ops: &dyn Ops| {
            let (mut a, mut b, mut c) = (Tensor::zeros(9, 9), Tensor::zeros(9, 9), x.clone());
            ops.gather_rows(&x, &[11, 0, 0, 5], &mut a);
            ops.sum_rows(&x, &sums, &mut b);
            ops.write_rows(&mut c, 4, &rows);
            ops.add_rows(&mut c, &[1, 8, 1], &rows);
            equal_bits("a single term of weight one is a copy", b.row(0), x.row(0));
            [a.host(), b.host(), c.host()].concat()
        };
        let want = run(&reference());
        for ops in variants(Precision::F32, 2) {
            close(&ops.describe(), &run(&ops), &want, 1e-6);
            let mut none = Tensor::zeros(9, 9);
            ops.gather_rows(&x, &[], &mut none);
            assert_eq!((none.rows(), none.cols()), (0, width));
        }
    }
}

#[test]
fn a_cache_holds_heads_apart_and_grows() {
    let mut values = Values::new(9);
    let x = values.tensor(40, 2 * 2 * 24, 1.0);
    for dtype in [DType::F32, DType::Bf16] {
        let run = |ops: &dyn Ops| {
            let mut cache = LayerCache::new(2, 24, 3, dtype);
            let heads = |offset| Heads { tensor: &x, offset, heads: 2, head_dim: 24 };
            for rows in [0..2, 2..2, 2..3, 3..30, 30..40] {
                ops.cache_append(&mut cache, heads(0), heads(48), rows);
            }
            assert_eq!(cache.len, 40);
            assert!(cache.capacity >= 40);
            let mut all = Vec::new();
            for values in [&cache.keys, &cache.values] {
                for head in 0..2 {
                    let start = head * cache.capacity * 24;
                    let range = start..start + 40 * 24;
                    match values {
                        CacheValues::F32(v) => all.extend_from_slice(&v[range]),
                        CacheValues::Bf16(v) => {
                            let wide = |b: &u16| f32::from_bits(u32::from(*b) << 16);
                            all.extend(v[range].iter().map(wide));
                        }
                    }
                }
            }
            all
        };
        let want = run(&reference());
        if dtype == DType::F32 {
            assert_eq!(want[24], x.row(1)[0]);
            assert_eq!(want[40 * 24], x.row(0)[24]);
            assert_eq!(want[2 * 40 * 24], x.row(0)[48]);
        }
        for ops in variants(Precision::F32, 2) {
            equal_bits(&ops.describe(), &run(&ops), &want);
        }
    }
}

#[test]
fn values_come_and_go_unchanged() {
    for ops in variants(Precision::F32, 1) {
        let x = ops.upload(2, 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        assert_eq!(ops.download(&x).unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!((x.rows(), x.cols()), (2, 3));
    }
}

#[test]
fn what_was_truncated_was_never_there() {
    let mut values = Values::new(12);
    let (heads, e) = (2, 4);
    let tensor = |rows| values.tensor(rows, heads * e, 1.0);
    let [prompt, suffix, next] = [5, 3, 2].map(tensor);
    for dtype in [DType::F32, DType::Bf16] {
        for ops in variants(if dtype == DType::F32 { Precision::F32 } else { Precision::Bf16 }, 1) {
            let append = |cache: &mut LayerCache, x: &Tensor| {
                let all = Heads { tensor: x, offset: 0, heads, head_dim: e };
                ops.cache_append(cache, all, all, 0..x.rows());
                cache.positions.extend((0..x.rows()).map(|_| [cache.len as i32; 3]));
                cache.origins.extend((0..x.rows()).map(|_| Origin::Text));
            };
            let mut plain = LayerCache::new(heads, e, 12, dtype);
            append(&mut plain, &prompt);
            append(&mut plain, &next);
            let mut cut = LayerCache::new(heads, e, 12, dtype);
            append(&mut cut, &prompt);
            append(&mut cut, &suffix);
            cut.truncate(5);
            cut.truncate(9);
            assert_eq!((cut.len, cut.positions.len(), cut.origins.len()), (5, 5, 5));
            append(&mut cut, &next);
            assert_eq!(
                (cut.len, &cut.positions, &cut.origins),
                (7, &plain.positions, &plain.origins)
            );
            let q = Heads { tensor: &next, offset: 0, heads, head_dim: e };
            let attended = |cache: &LayerCache| {
                let keys = Keys::Cached(cache);
                let segment =
                    Segment { rows: 0..2, keys, mask: Mask::Causal, window: None, scores: &[] };
                let mut out = Tensor::default();
                ops.attention(
                    AttentionParams { scale: 0.5, softcap: None },
                    q,
                    &[segment],
                    &mut out,
                );
                out.host().to_vec()
            };
            equal_bits("truncated", &attended(&cut), &attended(&plain));
        }
    }
}
