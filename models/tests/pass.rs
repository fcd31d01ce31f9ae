//! The one pass of the runtime over the real decoders: prompts, chunks and tokens together.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use std::sync::Arc;

use ndarray::Array2;
use secateur_core::assemble::{Parts, assemble};
use secateur_core::cache::Origin;
use secateur_core::chain::{ResolvedChain, ResolvedStage};
use secateur_core::error::{ChainError, RunError};
use secateur_core::model::{CancelToken, Family, ModelInfo, Positions, Prompt, Slot, VisualLayout};
use secateur_core::pass::pass;
use secateur_core::prune::{Cut, Memory, Plan, Pruner, Selection, Site, StagePlan};
use secateur_core::sequence::{Chunk, Outputs, Pending, PromptRows, Sequence, VisualTokens};
use secateur_core::tokens::TokenMap;
use secateur_core::visibility::{Blocks, Visibility};
use secateur_models::ModelOptions;
use support::{close, load_model, reference, root};

const MODELS: &[&str] = &["llava-1.5-tiny", "qwen2.5-vl-tiny", "qwen3-vl-tiny"];

const IDS: [u32; 9] = [3, 50, 60, 70, 80, 90, 20, 21, 22];

/// A prompt of text that is about to run.
fn prompt(family: &dyn Family, ids: &[u32], room: usize) -> Sequence {
    Sequence {
        pending: Pending::Prompt(family.decoder().embed(ids).unwrap()),
        prompt: PromptRows::text(ids.to_vec()),
        room,
        ..Sequence::default()
    }
}

/// The same, with rows that see one another.
fn blocked(family: &dyn Family, ids: &[u32], visibility: Visibility) -> Sequence {
    let mut sequence = prompt(family, ids, 9);
    sequence.prompt.visibility = visibility;
    sequence
}

/// Rows that a pass gives, the last one a sequence that is alive unless others are wanted.
fn run(family: &dyn Family, sequences: &mut [&mut Sequence]) -> Vec<Vec<f32>> {
    let rows = pass(family, reference().as_ref(), sequences, None).unwrap();
    (0..rows.rows()).map(|r| rows.row(r).to_vec()).collect()
}

#[test]
fn chunks_and_tokens_go_on_from_what_the_caches_hold() {
    for name in MODELS {
        let model = load_model(&root().join("models").join(name), ModelOptions::default());
        let family = model.family.as_ref();
        let whole = run(family, &mut [&mut prompt(family, &IDS, 0)]).remove(0);

        let mut parts = prompt(family, &IDS[..4], 5);
        run(family, &mut [&mut parts]);
        assert!(matches!(parts.pending, Pending::Nothing));
        parts.pending = Pending::Chunk(IDS[4..8].to_vec().into());
        run(family, &mut [&mut parts]);
        parts.pending = Pending::Token(IDS[8]);
        let row = run(family, &mut [&mut parts]).remove(0);
        close(name, "the last row", &row, &whole, 1e-5);
        for cache in &parts.cache.layers {
            let places: Vec<i32> = cache.positions.iter().map(|p| p[0]).collect();
            assert_eq!(places, (0..9).collect::<Vec<_>>(), "{name}");
            assert_eq!((cache.len, cache.next), (9, 9), "{name}");
            let text = [Origin::Text; 8];
            assert_eq!(cache.origins, [&text[..], &[Origin::Generated]].concat(), "{name}");
        }
        parts.cache.layers[0].truncate(8);
        assert_eq!((parts.cache.layers[0].len, parts.cache.layers[0].next), (8, 8));
    }
}

#[test]
fn a_mixed_pass_gives_every_sequence_what_it_gets_alone() {
    for name in MODELS {
        let model = load_model(&root().join("models").join(name), ModelOptions::default());
        let family = model.family.as_ref();
        let begun = |ids: &[u32]| {
            let mut sequence = prompt(family, ids, 8);
            run(family, &mut [&mut sequence]);
            sequence
        };
        let make = || {
            let (mut token, mut chunk, mut last) =
                (begun(&IDS[..3]), begun(&IDS[..6]), begun(&IDS));
            token.pending = Pending::Token(7);
            chunk.pending = Pending::Chunk(vec![8, 9, 10].into());
            last.pending = Pending::Token(11);
            let mut tail = begun(&IDS[3..]);
            tail.pending = Pending::Token(12);
            let (first, second) = (prompt(family, &IDS[2..], 4), prompt(family, &IDS[..1], 4));
            // Text before, between and behind prompts.
            [token, first, chunk, last, second, tail]
        };
        let mut together = make();
        let mut all: Vec<&mut Sequence> = together.iter_mut().collect();
        let rows = run(family, &mut all);
        assert_eq!(rows.len(), 6);
        for (i, row) in rows.iter().enumerate() {
            let alone = run(family, &mut [&mut make()[i]]).remove(0);
            assert_eq!(*row, alone, "{name}: sequence {i}");
        }
    }
}

#[test]
fn blocks_of_a_prompt_may_be_read_one_after_another() {
    for name in [MODELS, &["paligemma2-tiny"]].concat() {
        let model = load_model(&root().join("models").join(name), ModelOptions::default());
        let family = model.family.as_ref();
        let seen = |ids, blocks| blocked(family, ids, Visibility::everywhere(blocks));
        let whole = run(family, &mut [&mut seen(&IDS, Blocks::runs(&[3, 1, 5]))]).remove(0);
        let causal = run(family, &mut [&mut prompt(family, &IDS, 0)]).remove(0);
        assert_ne!(whole, causal, "{name}");

        let mut parts = seen(&IDS[..3], Blocks::runs(&[3]));
        run(family, &mut [&mut parts]);
        parts.pending = Pending::Chunk(IDS[3..4].to_vec().into());
        run(family, &mut [&mut parts]);
        let rest = Chunk { blocks: Blocks::runs(&[5]), ..Chunk::from(IDS[4..].to_vec()) };
        parts.pending = Pending::Chunk(rest);
        let row = run(family, &mut [&mut parts]).remove(0);
        close(name, "the last row", &row, &whole, 1e-5);
    }
}

#[test]
fn kinds_of_layers_have_blocks_of_their_own() {
    let one = || Blocks::runs(&[9]);
    let cases = [
        // One kind of layer, and two.
        ("llava-1.5-tiny", [false, true, false]),
        ("paligemma2-tiny", [true, true, true]),
    ];
    for (name, differ) in cases {
        let model = load_model(&root().join("models").join(name), ModelOptions::default());
        let family = model.family.as_ref();
        let last = |full, sliding| {
            let mut sequence = blocked(family, &IDS, Visibility { full, sliding });
            run(family, &mut [&mut sequence]).remove(0)
        };
        let causal = last(Blocks::Causal, Blocks::Causal);
        let (sliding, full) = (last(Blocks::Causal, one()), last(one(), Blocks::Causal));
        let both = last(one(), one());
        assert_eq!([causal != sliding, causal != full, full != both], differ, "{name}");
    }
}

/// Embedded ids as a caller would give rows of its own.
fn given(family: &dyn Family, ids: &[u32]) -> Array2<f32> {
    let rows = family.decoder().embed(ids).unwrap();
    Array2::from_shape_vec((rows.rows(), rows.cols()), rows.host().to_vec()).unwrap()
}

/// Text about to be read, with rows of the caller's in it.
fn assembled(
    family: &dyn Family,
    slots: &[Slot],
    given: Array2<f32>,
    outputs: Outputs,
) -> Sequence {
    let count = slots.len() as i32;
    let parts = Parts {
        pixels: &[],
        prompt: Prompt { ids: IDS.to_vec(), slots: slots.to_vec() },
        positions: Positions { prompt: (0..count).map(|p| [p; 3]).collect(), next: count },
        layout: VisualLayout::default(),
        encoded: None,
        given,
        outputs,
        chain: Arc::default(),
        memories: Vec::new(),
        room: 9,
    };
    assemble(family, reference().as_ref(), parts, None).unwrap()
}

#[test]
fn given_rows_stand_where_a_prompt_or_a_chunk_names_them() {
    for name in MODELS {
        let model = load_model(&root().join("models").join(name), ModelOptions::default());
        let family = model.family.as_ref();
        let text = run(family, &mut [&mut prompt(family, &IDS, 0)]).remove(0);
        let mut slots = IDS.map(Slot::Text);
        (slots[2], slots[5]) = (Slot::Given(1), Slot::Given(0));
        let rows = || given(family, &[IDS[5], IDS[2]]);

        let mut whole = assembled(family, &slots, rows(), Outputs::Last);
        assert_eq!(
            run(family, &mut [&mut whole]),
            std::slice::from_ref(&text),
            "{name}: in a prompt"
        );
        let mut origins = [Origin::Text; 9];
        (origins[2], origins[5]) = (Origin::Given(1), Origin::Given(0));
        assert!(whole.cache.layers.iter().all(|cache| cache.origins == origins), "{name}");

        let mut parts = prompt(family, &IDS[..1], 9);
        run(family, &mut [&mut parts]);
        let rest = Chunk { slots: slots[1..].to_vec(), given: rows(), ..Chunk::default() };
        parts.pending = Pending::Chunk(rest);
        // Beside a token, so that given rows have text before and behind them.
        let mut token = prompt(family, &IDS, 9);
        run(family, &mut [&mut token]);
        token.pending = Pending::Token(7);
        let got = run(family, &mut [&mut parts, &mut token]).remove(0);
        close(name, "behind a prompt", &got, &text, 1e-5);
        assert!(parts.cache.layers.iter().all(|cache| cache.origins == origins), "{name}");
    }
}

#[test]
fn the_rows_that_are_wanted_come_out_in_the_order_of_the_list() {
    let model = load_model(&root().join("models/qwen2.5-vl-tiny"), ModelOptions::default());
    let family = model.family.as_ref();
    let last = |ids: &[u32]| run(family, &mut [&mut prompt(family, ids, 0)]).remove(0);
    let listed = |rows: &[u32]| Outputs::Listed(rows.to_vec());
    let (mut wanted, mut other) = (prompt(family, &IDS, 9), prompt(family, &IDS[..4], 0));
    wanted.outputs = listed(&[8, 3, 0]);
    let rows = run(family, &mut [&mut wanted, &mut other]);
    for (row, ids) in rows.iter().zip([&IDS[..], &IDS[..4], &IDS[..1], &IDS[..4]]) {
        close("wanted", "a row", row, &last(ids), 1e-5);
    }
    assert_eq!((rows.len(), &rows[0]), (4, &last(&IDS)));

    // Once: the next pass gives the last row again.
    wanted.pending = Pending::Chunk(vec![7, 8].into());
    assert_eq!(run(family, &mut [&mut wanted]).len(), 1);
    wanted.pending = Pending::Chunk(vec![7, 8].into());
    wanted.outputs = listed(&[0, 1]);
    assert_eq!(run(family, &mut [&mut wanted]).len(), 2);

    // Who wants a row that is not there ends alone.
    let mut lost = prompt(family, &IDS, 0);
    lost.outputs = listed(&[9]);
    let mut good = prompt(family, &IDS, 0);
    assert_eq!(run(family, &mut [&mut lost, &mut good]), [last(&IDS)]);
    assert!(lost.failed.unwrap().to_string().contains("row 9 is wanted"));
    let assembled = assembled(family, &IDS.map(Slot::Text), Array2::default((0, 0)), listed(&[3]));
    assert_eq!(assembled.outputs, listed(&[3]));
}

/// A prefix that sees itself, then steps of a flow: a state, and actions that see one another.
#[test]
fn a_suffix_is_read_again_over_the_same_prefix() {
    let model = load_model(&root().join("models/paligemma2-tiny"), ModelOptions::default());
    let family = model.family.as_ref();
    let mut robot = blocked(family, &IDS, Visibility::everywhere(Blocks::Whole));
    run(family, &mut [&mut robot]);
    let mut step = |noise: &[u32]| {
        let suffix = Chunk {
            slots: (0..4).map(Slot::Given).collect(),
            given: given(family, &[&[5], noise].concat()),
            blocks: Blocks::runs(&[1, 3]),
        };
        robot.pending = Pending::Chunk(suffix);
        robot.outputs = Outputs::Listed((0..4).collect());
        let rows = run(family, &mut [&mut robot]);
        for cache in &mut robot.cache.layers {
            assert_eq!(cache.origins[9..], [0, 1, 2, 3].map(Origin::Given));
            cache.truncate(9);
        }
        rows
    };
    let (first, other, again) = (step(&[6, 7, 8]), step(&[6, 7, 9]), step(&[6, 7, 8]));
    assert_eq!(first, again, "the prefix is as it was");
    assert_eq!(first[0], other[0], "the state does not see the actions");
    assert!((1..4).all(|i| first[i] != other[i]), "each action sees all of them");
}

#[test]
fn rows_that_nobody_gave_end_their_sequence() {
    let model = load_model(&root().join("models/llava-1.5-tiny"), ModelOptions::default());
    let family = model.family.as_ref();
    let ended = |slot, given: Array2<f32>| {
        let mut sequence = prompt(family, &IDS, 9);
        run(family, &mut [&mut sequence]);
        let chunk = Chunk { slots: vec![slot], given, ..Chunk::default() };
        sequence.pending = Pending::Chunk(chunk);
        assert!(run(family, &mut [&mut sequence]).is_empty());
        sequence.failed.unwrap().to_string()
    };
    assert!(ended(Slot::Given(1), given(family, &[3])).contains("given row 1"));
    assert!(ended(Slot::Given(0), Array2::zeros((1, 3))).contains("width 3"));
    assert!(ended(Slot::Visual(0), Array2::default((0, 0))).contains("visual tokens"));
}

/// Keeps visual tokens with an even index.
#[derive(Debug)]
struct Even;

impl Pruner for Even {
    fn plan(&self, _model: &ModelInfo) -> Result<Plan, ChainError> {
        Ok(StagePlan::at(Site::Decoder(1)).into())
    }

    fn select(&self, cut: &Cut<'_>, _memory: &mut Memory) -> Result<Selection, RunError> {
        let even = cut.tokens.tokens.iter().map(|t| t.index % 2 == 0);
        let kept = even.enumerate().filter(|(_, even)| *even).map(|(i, _)| i as u32);
        Ok(Selection::keep(kept.collect()))
    }
}

#[test]
fn a_cut_leaves_the_other_rows_in_their_blocks() {
    let model = load_model(&root().join("models/llava-1.5-tiny"), ModelOptions::default());
    let family = model.family.as_ref();
    let plan = Even.plan(family.info()).unwrap().stages.remove(0);
    let stage =
        ResolvedStage { entry: 0, stage: 0, name: "even".into(), pruner: Arc::new(Even), plan };
    let chain =
        Arc::new(ResolvedChain { entries: 1, stages: vec![stage], ..ResolvedChain::default() });
    let last = |blocks: Blocks| {
        let tokens = TokenMap::raster(vec![support::whole(2, 0, [8, 8])]);
        let mut sequence = Sequence {
            chain: chain.clone(),
            memories: vec![Memory::default()],
            visual: VisualTokens { tokens, entered: 4, ..VisualTokens::default() },
            ..blocked(family, &IDS, Visibility::everywhere(blocks))
        };
        for row in 2..6 {
            sequence.prompt.origins[row] = Origin::Visual(row as u32 - 2);
        }
        let row = run(family, &mut [&mut sequence]).remove(0);
        let lengths: Vec<usize> = sequence.cache.layers.iter().map(|c| c.len).collect();
        assert_eq!(lengths[..2], [9, 7]);
        row
    };
    let each = Blocks::runs(&[1; 9]);
    let picture = Blocks::runs(&[1, 1, 4, 1, 1, 1]);
    let causal = last(Blocks::Causal);
    assert_eq!(last(each), causal);
    assert_eq!(last(Blocks::runs(&[9])), last(Blocks::Whole));
    assert!(last(picture) != causal);
}

#[test]
fn what_cannot_run_ends_that_sequence_alone() {
    let model = load_model(&root().join("models/llava-1.5-tiny"), ModelOptions::default());
    let family = model.family.as_ref();
    let expected = run(family, &mut [&mut prompt(family, &IDS, 1)]).remove(0);
    let mut good = prompt(family, &IDS, 1);
    let mut full = prompt(family, &IDS, 0);
    run(family, &mut [&mut full]);
    full.pending = Pending::Token(1);
    let mut unknown = prompt(family, &IDS, 1);
    run(family, &mut [&mut unknown]);
    unknown.pending = Pending::Token(1 << 30);
    let mut early = Sequence { pending: Pending::Token(1), ..Sequence::default() };
    let mut cancelled = prompt(family, &IDS, 1);
    let cancel = CancelToken::default();
    cancel.cancel();
    cancelled.control.cancel = Some(cancel);
    let mut six = blocked(family, &IDS, Visibility::everywhere(Blocks::runs(&[3, 3])));
    let mut idle = Sequence::default();
    let mut all =
        [&mut full, &mut cancelled, &mut good, &mut unknown, &mut early, &mut six, &mut idle];
    assert_eq!(run(family, &mut all), [expected]);
    assert!(matches!(full.failed, Some(RunError::Context { need: 10, have: 9 })));
    assert!(matches!(cancelled.failed, Some(RunError::Cancelled(_))));
    assert!(matches!(unknown.failed, Some(RunError::Prompt(_))));
    assert!(matches!(early.failed, Some(RunError::Prompt(_))));
    assert!(matches!(six.failed, Some(RunError::Prompt(_))));
    assert!(good.is_alive() && idle.is_alive());
}
