//! Linear layers.

use proptest::prelude::*;
use secateur_core::ops::reference::ReferenceOps;
use secateur_core::ops::{Activation, Ops, Precision};
use secateur_core::tensor::Tensor;
use secateur_core::weights::{Matrix, WeightView};

use super::{BOTH, Values, close, equal_bits, variants};

struct Case {
    rows: usize,
    inputs: usize,
    outputs: usize,
    scale: f32,
    act: Activation,
    bias: bool,
    gated: bool,
}

impl Case {
    fn plain(rows: usize, inputs: usize, outputs: usize) -> Self {
        Self { rows, inputs, outputs, scale: 1.0, act: Activation::None, bias: false, gated: false }
    }

    fn run(&self, ops: &dyn Ops, rows: std::ops::Range<usize>) -> Vec<f32> {
        let mut values = Values::new(7);
        let shape = [self.outputs, self.inputs];
        let mut view = |name: &str, shape: &[usize], scale: f32| {
            let len = shape.iter().product();
            WeightView::from_f32(name, shape, &values.vec(len, scale))
        };
        let w = [view("w0", &shape, 0.5), view("w1", &shape, 0.5)];
        let b = [view("b0", &shape[..1], 1.0), view("b1", &shape[..1], 1.0)];
        let part =
            |i: usize| Matrix { weight: w[i].clone(), bias: self.bias.then(|| b[i].clone()) };
        let x = values.tensor(self.rows, self.inputs, self.scale);
        let x = Tensor::from_slice(
            rows.len(),
            self.inputs,
            &x.host()[rows.start * self.inputs..rows.end * self.inputs],
        );
        // A stale shape and stale values must not show.
        let mut out = values.tensor(3, 5, 100.0);
        if self.gated {
            let layer = ops.pack_gated(&part(0), &part(1)).expect("shapes agree");
            ops.gated_linear(&layer, &x, self.act, &mut out);
        } else {
            let layer = ops.pack_linear(&[part(0)]).expect("shapes agree");
            ops.linear(&layer, &x, self.act, &mut out);
        }
        assert_eq!((out.rows(), out.cols()), (rows.len(), self.outputs));
        out.host().to_vec()
    }

    /// `k` products of at most `scale / 2` each, and what activations make of the difference: their
    /// slope is at most 1.13; a gate multiplies two sums.
    fn bound(&self) -> f32 {
        let magnitude = self.scale * 0.5;
        let sum = (self.inputs as f32).sqrt() * magnitude + 1.0;
        let error = self.inputs as f32 * 2f32.powi(-23) * magnitude + 1e-6 * sum;
        2.0 * error * if self.gated { 4.0 * sum } else { 1.0 }
    }

    fn check(&self) {
        for precision in BOTH {
            let want = self.run(&ReferenceOps::new(precision), 0..self.rows);
            for ops in variants(precision, 2) {
                let what = format!(
                    "{}, [{}, {}] to {}{}",
                    ops.describe(),
                    self.rows,
                    self.inputs,
                    self.outputs,
                    if self.gated { ", gated" } else { "" }
                );
                close(&what, &self.run(&ops, 0..self.rows), &want, self.bound());
            }
        }
    }
}

#[test]
fn every_variant_equals_the_reference_at_every_tail() {
    for rows in [0, 1, 2, 3, 5, 7, 11, 12, 13, 15, 16, 17, 31, 33, 47, 48, 49] {
        Case::plain(rows, 40, 37).check();
    }
    for inputs in [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65] {
        Case::plain(3, inputs, 20).check();
        Case::plain(20, inputs, 50).check();
    }
    for outputs in [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64] {
        Case::plain(1, 33, outputs).check();
        Case::plain(18, 33, outputs).check();
    }
}

#[test]
fn bias_activation_and_gate_are_applied_in_this_order() {
    let acts = [
        Activation::None,
        Activation::Silu,
        Activation::GeluErf,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Relu,
    ];
    for act in acts {
        for gated in [false, true] {
            for rows in [1, 5, 35] {
                let case = Case { act, bias: true, gated, ..Case::plain(rows, 48, 41) };
                case.check();
            }
        }
    }
}

#[test]
fn long_sums_pass_through_several_blocks() {
    // More than two tile passes, and more rows than one chunk holds.
    Case::plain(50, 4200, 40).check();
    Case { gated: true, bias: true, ..Case::plain(17, 2100, 24) }.check();
    Case::plain(700, 1056, 33).check();
}

#[test]
fn large_and_tiny_values_keep_their_relative_accuracy() {
    for scale in [1e4, 1e-4, 1e-20] {
        let case = Case { scale, ..Case::plain(9, 64, 20) };
        for precision in BOTH {
            let want = case.run(&ReferenceOps::new(precision), 0..9);
            for ops in variants(precision, 1) {
                let bound = 64.0 * 2f32.powi(-23) * scale;
                close(&ops.describe(), &case.run(&ops, 0..9), &want, bound);
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch_and_on_any_number_of_threads() {
    for (inputs, outputs, gated) in [(96, 70, false), (2080, 40, true)] {
        for precision in BOTH {
            for (one, two) in variants(precision, 1).iter().zip(variants(precision, 2)) {
                let case = Case { gated, bias: true, ..Case::plain(67, inputs, outputs) };
                let all = case.run(one, 0..67);
                equal_bits(&two.describe(), &case.run(&two, 0..67), &all);
                for rows in [0..1, 5..6, 3..5, 60..67, 20..40, 0..16, 1..49] {
                    let part = case.run(&two, rows.clone());
                    let whole = &all[rows.start * outputs..rows.end * outputs];
                    equal_bits(&format!("{} rows {rows:?}", two.describe()), &part, whole);
                }
            }
        }
    }
}

#[test]
fn matrices_that_share_their_input_are_concatenated() {
    let mut values = Values::new(3);
    let parts = [5usize, 18, 1];
    let views: Vec<_> = parts
        .iter()
        .map(|n| WeightView::from_f32("w", &[*n, 24], &values.vec(n * 24, 1.0)))
        .collect();
    let bias = WeightView::from_f32("b", &[18], &values.vec(18, 1.0));
    let x = values.tensor(4, 24, 1.0);
    for precision in BOTH {
        let reference = ReferenceOps::new(precision);
        let run = |ops: &dyn Ops| {
            let mut parts: Vec<Matrix> = views.iter().cloned().map(Matrix::from).collect();
            parts[1].bias = Some(bias.clone());
            let layer = ops.pack_linear(&parts).expect("shapes agree");
            let mut out = Tensor::zeros(0, 0);
            ops.linear(&layer, &x, Activation::None, &mut out);
            out.host().to_vec()
        };
        let want = run(&reference);
        for ops in variants(precision, 2) {
            close(&ops.describe(), &run(&ops), &want, 1e-5);
        }
    }
}

#[test]
fn shapes_that_disagree_are_errors_that_name_the_matrix() {
    let view = |name: &str, shape: &[usize]| {
        Matrix::from(WeightView::from_f32(name, shape, &vec![0.0; shape.iter().product()]))
    };
    let (a, b) = (view("first", &[4, 8]), view("second", &[4, 6]));
    for ops in variants(Precision::F32, 1) {
        let message = ops.pack_linear(&[a.clone(), b.clone()]).unwrap_err().to_string();
        assert!(message.contains("second") && message.contains('6'), "{message}");
        let message = ops.pack_gated(&a, &b).unwrap_err().to_string();
        assert!(message.contains("first") && message.contains("second"), "{message}");
        let a = Matrix { bias: Some(view("bias", &[3]).weight), ..a.clone() };
        let message = ops.pack_linear(&[a]).unwrap_err().to_string();
        assert!(message.contains("bias") && message.contains("first"), "{message}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn any_shape_equals_the_reference(
        rows in 0usize..70, inputs in 1usize..140, outputs in 1usize..90,
        gated: bool, bias: bool,
    ) {
        Case { gated, bias, ..Case::plain(rows, inputs, outputs) }.check();
    }
}
