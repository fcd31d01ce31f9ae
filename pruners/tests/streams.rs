//! Pruners with state over time: videos, streams, control steps.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use secateur_core::chain::{ChainSpec, Params};
use secateur_core::clip::Grid;
use secateur_core::prune::{Cut, Memory, Observation, Pruner, Selection, Site};
use secateur_core::signal::{CropPixels, CropSignals, PatchSource, Rows, Signal, Signals};
use secateur_core::testkit;
use secateur_core::tokens::TokenMap;
use secateur_pruners::registry;

fn build(chain: &str) -> Box<dyn Pruner> {
    let stage = ChainSpec::parse(chain).unwrap().stages.remove(0);
    let params = Params::new(&stage.pruner, &stage.params);
    (registry::find(&stage.pruner).unwrap().build)(&params).unwrap()
}

/// Frames of 1 x 3 patches of one pixel, each of one grey level.
fn frames(levels: &[[u8; 3]]) -> (TokenMap, Signals) {
    let grids = (0..levels.len() as u32).map(|frame| Grid { frame, ..testkit::grid(0, 1, 3) });
    let crop = |row: &[u8; 3]| CropSignals {
        pixels: CropPixels {
            width: 3,
            height: 1,
            patch: 1,
            rgb: row.iter().flat_map(|&g| [g; 3]).collect(),
        },
        ..CropSignals::default()
    };
    let source = |i: usize| PatchSource { patches: vec![((i / 3) as u32, (i % 3) as u32, 1.0)] };
    let signals = Signals {
        crops: levels.iter().map(crop).collect(),
        sources: (0..levels.len() * 3).map(source).collect(),
        ..Signals::default()
    };
    (TokenMap::raster(grids.collect()), signals)
}

fn select(
    pruner: &dyn Pruner,
    (tokens, signals): &(TokenMap, Signals),
    memory: &mut Memory,
) -> Selection {
    let model = testkit::small_model();
    memory.begin_request();
    let plan = &pruner.plan(&model).unwrap().stages[0];
    let cut = Cut { pruner: "stream", stage: 0, plan, tokens, entered: tokens.len(), signals };
    pruner.select(&cut, memory).unwrap()
}

#[test]
fn frames_of_a_video_keep_what_changed_and_the_first_stays_whole() {
    let video = frames(&[[10, 20, 30], [10, 90, 30], [10, 90, 30]]);
    let pruner = build("frame_diff");
    let kept = select(pruner.as_ref(), &video, &mut Memory::default()).kept;
    // The last frame stands still: its first token stays all the same.
    assert_eq!(kept, [0, 1, 2, 4, 6]);
    let none = build("frame_diff:min_keep=0");
    assert_eq!(select(none.as_ref(), &video, &mut Memory::default()).kept, [0, 1, 2, 4]);
    let two = build("frame_diff:keep=2");
    assert_eq!(select(two.as_ref(), &video, &mut Memory::default()).kept, [0, 1, 2, 3, 4, 6, 7]);
}

#[test]
fn a_stream_of_pictures_is_compared_across_requests_until_reset() {
    let pruner = build("frame_diff");
    let mut memory = Memory::default();
    let whole = [0, 1, 2];
    assert_eq!(select(pruner.as_ref(), &frames(&[[1, 2, 3]]), &mut memory).kept, whole);
    assert_eq!(select(pruner.as_ref(), &frames(&[[1, 2, 99]]), &mut memory).kept, [2]);
    memory.reset();
    assert_eq!(select(pruner.as_ref(), &frames(&[[1, 2, 99]]), &mut memory).kept, whole);
}

#[test]
fn slow_drift_is_seen_against_what_was_kept() {
    let drift = frames(&[[0; 3], [4, 0, 0], [8, 0, 0], [12, 0, 0]]);
    let previous = build("frame_diff:min_keep=0");
    assert_eq!(select(previous.as_ref(), &drift, &mut Memory::default()).kept, [0, 1, 2]);
    let kept = build("frame_diff:min_keep=0:reference=kept");
    assert_eq!(select(kept.as_ref(), &drift, &mut Memory::default()).kept, [0, 1, 2, 6]);
}

/// One control step: prompt attention, embeddings, and what the actions looked at afterwards.
fn step(pruner: &dyn Pruner, memory: &mut Memory, actions: &[f32]) -> Vec<u32> {
    let tokens = testkit::raster(1, actions.len() as u32);
    let source = |i: u32| PatchSource { patches: vec![(0, i, 1.0)] };
    let mut signals = Signals {
        crops: vec![CropSignals::default()],
        sources: (0..tokens.len() as u32).map(source).collect(),
        embeddings: Some(ndarray::Array2::eye(tokens.len())),
        ..Signals::default()
    };
    let prompt = (0..tokens.len()).map(|i| i as f32).collect();
    signals.vectors.insert(Signal::Attention { layer: 2, rows: Rows::All }, prompt);
    signals.vectors.insert(Signal::GeneratedRows { layer: 3 }, actions.to_vec());
    let scene = (tokens, signals);
    let kept = select(pruner, &scene, memory).kept;
    let reads = &pruner.plan(&testkit::small_model()).unwrap().observes;
    let seen = Observation { reads, signals: &scene.1, entered: scene.0.len() };
    pruner.observe(&seen, memory);
    kept
}

#[test]
fn control_steps_warm_up_prune_and_start_anew_with_another_size() {
    let pruner = build("vla_pruner:keep=1:window=2");
    let mut memory = Memory::default();
    assert_eq!(step(pruner.as_ref(), &mut memory, &[1.0, 0.0, 0.0]), [0, 1, 2]);
    assert_eq!(step(pruner.as_ref(), &mut memory, &[1.0, 0.0, 0.0]), [0, 1, 2]);
    assert_eq!(pruner.last_action_score(&memory), Some(vec![1.0, 0.0, 0.0]));
    // Prompt says 2, actions say 0; they are equally far apart.
    assert_eq!(step(pruner.as_ref(), &mut memory, &[0.0, 0.0, 1.0]), [0]);
    assert_eq!(step(pruner.as_ref(), &mut memory, &[0.0, 0.0, 1.0]), [2]);
    assert_eq!(step(pruner.as_ref(), &mut memory, &[1.0; 4]), [0, 1, 2, 3]);
    memory.reset();
    assert_eq!(step(pruner.as_ref(), &mut memory, &[1.0; 3]), [0, 1, 2]);
    assert!(matches!(
        pruner.plan(&testkit::small_model()).unwrap().stages[0].site,
        Site::Decoder(3)
    ));
}

#[test]
fn a_refreshed_step_is_not_pruned_and_says_so() {
    let pruner = build("vla_pruner:keep=1:window=1:refresh_every=2");
    let mut memory = Memory::default();
    let counts: Vec<usize> =
        (0..5).map(|_| step(pruner.as_ref(), &mut memory, &[1.0, 0.0, 0.0]).len()).collect();
    assert_eq!(counts, [3, 1, 3, 1, 3]);
}
