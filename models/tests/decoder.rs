//! The decoder stack as the runtime uses it: ragged batches, score rows, probes, transitions,
//! windows by position.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use secateur_core::cache::{LayerCache, Position};
use secateur_core::model::{Family, LayerPass, LayerSequence};
use secateur_core::ops::{Mask, Queries, ScoreRequest, Transition};
use secateur_core::tensor::{DType, Tensor};
use secateur_models::ModelOptions;
use support::{close, load_model, root, rotations};

const MODELS: &[&str] = &[
    "llava-1.5-tiny",
    "llava-onevision-tiny",
    "paligemma2-tiny",
    "qwen2.5-vl-tiny",
    "qwen3-vl-tiny",
];

/// Inputs and outputs of one sequence in one layer.
struct Member {
    rows: Tensor,
    positions: Vec<Position>,
    mask: Mask<'static>,
    scores: Vec<ScoreRequest>,
    keys: Option<Tensor>,
    wants_transitions: bool,
    cache: LayerCache,
}

impl Member {
    fn new(family: &dyn Family, ids: &[u32], first: i32) -> Self {
        let d = family.decoder().info();
        Self {
            rows: family.decoder().embed(ids).unwrap(),
            positions: (first..first + ids.len() as i32).map(|p| [p, p / 2, p % 3]).collect(),
            mask: Mask::Causal,
            scores: Vec::new(),
            keys: None,
            wants_transitions: false,
            cache: LayerCache::new(d.kv_heads, d.head_dim, 4, DType::F32),
        }
    }
}

/// What a layer said of a member.
struct Said {
    rows: Vec<f32>,
    scores: Vec<Vec<f32>>,
    transitions: Option<(Vec<Transition>, Vec<Transition>)>,
}

/// Runs one layer over all members at once.
fn layer(family: &dyn Family, layer: usize, members: &mut [Member]) -> Vec<Said> {
    let width = members[0].rows.cols();
    let all: Vec<f32> = members.iter().flat_map(|m| m.rows.host().to_vec()).collect();
    let mut x = Tensor::from_slice(all.len() / width, width, &all);
    let positions: Vec<Position> = members.iter().flat_map(|m| m.positions.clone()).collect();
    let rotations = rotations(family, &positions);
    let mut first = 0;
    let wants: Vec<bool> = members.iter().map(|m| m.wants_transitions).collect();
    let sequences = members
        .iter_mut()
        .map(|m| {
            let rows = first..first + m.rows.rows();
            first = rows.end;
            LayerSequence {
                rows,
                cache: &mut m.cache,
                mask: m.mask,
                scores: &m.scores,
                score_out: Vec::new(),
                keys: m.keys.take(),
            }
        })
        .collect();
    let mut pass = LayerPass {
        positions: &positions,
        rotations: &rotations,
        sequences,
        wants_transitions: wants.contains(&true),
        transitions: None,
    };
    family.decoder().layer(layer, &mut x, &mut pass).unwrap();
    let transitions = pass.transitions;
    pass.sequences
        .into_iter()
        .zip(wants)
        .map(|(s, wants)| {
            let of = |t: &Tensor| s.rows.clone().map(|r| t.row(r).try_into().unwrap()).collect();
            Said {
                rows: x.host()[s.rows.start * width..s.rows.end * width].to_vec(),
                scores: s.score_out.iter().map(|t| t.host().to_vec()).collect(),
                transitions: transitions.as_ref().filter(|_| wants).map(|[a, m]| (of(a), of(m))),
            }
        })
        .collect()
}

#[test]
fn a_batch_equals_its_members_bit_for_bit() {
    for name in MODELS {
        let model = load_model(&root().join("models").join(name), ModelOptions::default());
        let family = model.family.as_ref();
        let last = |n: u32| ScoreRequest::mean(Queries::Listed(vec![n]));
        let make = || {
            let mut one = Member::new(family, &[1, 9, 30, 31, 7], 0);
            one.scores = vec![last(4)];
            let mut two = Member::new(family, &[5], 11);
            two.wants_transitions = true;
            let mut three = Member::new(family, &[8, 8, 8, 100, 101, 102, 103], 3);
            three.scores = vec![ScoreRequest::mean(Queries::All), last(0)];
            three.mask = Mask::Full;
            vec![one, two, three]
        };
        let together = layer(family, 1, &mut make());
        for (i, both) in together.iter().enumerate() {
            let alone = layer(family, 1, &mut make()[i..=i]).remove(0);
            assert_eq!(both.rows, alone.rows, "{name}: rows of member {i}");
            assert_eq!(both.scores, alone.scores, "{name}: scores of member {i}");
            assert_eq!(both.transitions, alone.transitions, "{name}: transitions of member {i}");
        }
        assert!(together[0].transitions.is_none() && together[1].transitions.is_some());
        assert_eq!(together[2].scores.len(), 2);
    }
}

#[test]
fn a_probe_sees_what_the_layer_will_show_and_saves_its_keys() {
    for name in MODELS {
        let model = load_model(&root().join("models").join(name), ModelOptions::default());
        let family = model.family.as_ref();
        let ids: Vec<u32> = (20..40).collect();
        const BLOCKS_OF_SIX: [u32; 20] =
            [6, 6, 6, 6, 6, 6, 12, 12, 12, 12, 12, 12, 18, 18, 18, 18, 18, 18, 20, 20];
        for mask in [Mask::Causal, Mask::Full, Mask::Until(&BLOCKS_OF_SIX)] {
            let make = || {
                let mut m = Member::new(family, &ids, 0);
                let request = ScoreRequest::mean(Queries::Listed(vec![17, 19]));
                m.scores = vec![request];
                m.mask = mask;
                m
            };
            let mut plain = make();
            let turned = rotations(family, &plain.positions);
            let probe = family.decoder().probe(
                1,
                &plain.rows,
                &plain.positions,
                &turned,
                plain.mask,
                &[17, 19],
            );
            let probe = probe.unwrap();
            let shown = layer(family, 1, std::slice::from_mut(&mut plain)).remove(0);
            close(name, "probe", probe.scores.host(), &shown.scores[0], 1e-5);
            let (mut with_keys, other) = (make(), make());
            with_keys.keys = Some(probe.keys);
            let reused = layer(family, 1, &mut [with_keys, other]);
            assert_eq!(reused[0].rows, shown.rows, "{name}: keys are the layer's own");
            assert_eq!(reused[1].rows, shown.rows, "{name}: the neighbour projects its own");
        }
    }
}

#[test]
fn decoding_goes_on_from_the_cache() {
    for name in MODELS {
        let model = load_model(&root().join("models").join(name), ModelOptions::default());
        let family = model.family.as_ref();
        let ids = [3, 50, 60, 70, 80, 90];
        let mut whole = Member::new(family, &ids, 0);
        let all = layer(family, 0, std::slice::from_mut(&mut whole)).remove(0).rows;
        let mut parts = Member::new(family, &ids[..4], 0);
        layer(family, 0, std::slice::from_mut(&mut parts));
        for (i, &id) in ids.iter().enumerate().skip(4) {
            let next = Member::new(family, &[id], i as i32);
            parts.rows = next.rows;
            parts.positions = vec![whole.positions[i]];
            let row = layer(family, 0, std::slice::from_mut(&mut parts)).remove(0).rows;
            let width = row.len();
            close(name, "a decoded row", &row, &all[i * width..(i + 1) * width], 1e-5);
        }
        assert_eq!(parts.cache.len, ids.len());
        assert_eq!(parts.cache.positions, whole.positions, "{name}");
    }
}

#[test]
fn a_window_goes_by_position_and_not_by_order() {
    // Layer 0 of the model has a window of 24 positions, layer 1 none.
    let model = load_model(&root().join("models/paligemma2-tiny"), ModelOptions::default());
    let family = model.family.as_ref();
    let run = |index: usize, step: i32| {
        let ids: Vec<u32> = (20..30).collect();
        let mut m = Member::new(family, &ids, 0);
        m.positions = (0..10).map(|i| [i * step; 3]).collect();
        m.scores = vec![ScoreRequest::mean(Queries::Listed(vec![9]))];
        layer(family, index, std::slice::from_mut(&mut m)).remove(0).scores.remove(0)
    };
    let seen = |scores: Vec<f32>| scores.iter().map(|s| *s > 0.0).collect::<Vec<_>>();
    assert_eq!(seen(run(0, 1)), [true; 10]);
    // The last query stands at 45: keys below 22 are hidden.
    let hidden = seen(run(0, 5));
    assert_eq!(hidden, [[false; 5], [true; 5]].concat());
    assert_eq!(seen(run(1, 5)), [true; 10]);
}

#[test]
fn transitions_are_those_of_the_modules() {
    // Recomputed from the residual: what attention and MLP added together is known.
    let model = load_model(&root().join("models/llava-1.5-tiny"), ModelOptions::default());
    let family = model.family.as_ref();
    let mut m = Member::new(family, &[1, 9, 30, 31, 7], 0);
    m.wants_transitions = true;
    let before = m.rows.clone();
    let said = layer(family, 2, std::slice::from_mut(&mut m)).remove(0);
    let (attention, mlp) = said.transitions.unwrap();
    assert_eq!((attention.len(), mlp.len()), (5, 5));
    for (r, (a, b)) in attention.iter().zip(&mlp).enumerate() {
        let added: f32 = before
            .row(r)
            .iter()
            .zip(&said.rows[r * before.cols()..])
            .map(|(x, y)| (y - x) * (y - x))
            .sum();
        // The triangle that the two additions make.
        let (p, q) = (a[1].sqrt(), b[1].sqrt());
        let sum = added.sqrt();
        assert!(sum <= p + q + 1e-4 && sum >= (p - q).abs() - 1e-4, "{p} {q} {sum}");
        assert!(a[2] * a[2] <= a[0] * a[1] * 1.0001 && b[2] * b[2] <= b[0] * b[1] * 1.0001);
    }
}

#[test]
fn tokens_outside_the_vocabulary_are_refused() {
    let model = load_model(&root().join("models/llava-1.5-tiny"), ModelOptions::default());
    let error = model.family.decoder().embed(&[1, 600]).unwrap_err().to_string();
    assert!(error.contains("600"), "{error}");
}
