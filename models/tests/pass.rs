//! The one pass of the runtime over the real decoders: prompts, chunks and tokens together.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use std::sync::Arc;

use secateur_core::batch::{Chunk, Pending, Sequence};
use secateur_core::cache::Origin;
use secateur_core::chain::{ResolvedChain, ResolvedStage};
use secateur_core::error::{ChainError, RunError};
use secateur_core::model::{CancelToken, Family, ModelInfo};
use secateur_core::pass::pass;
use secateur_core::prune::{Cut, Memory, Plan, Pruner, Selection, Site, StagePlan};
use secateur_core::tokens::TokenMap;
use secateur_core::visibility::{Blocks, Visibility};
use secateur_models::ModelOptions;
use support::{close, load_model, reference, root};

const MODELS: &[&str] = &["llava-1.5-tiny", "qwen2.5-vl-tiny", "qwen3-vl-tiny"];

const IDS: [u32; 9] = [3, 50, 60, 70, 80, 90, 20, 21, 22];

/// A prompt of text that is about to run.
fn prompt(family: &dyn Family, ids: &[u32], room: usize) -> Sequence {
    let count = ids.len() as i32;
    Sequence {
        pending: Pending::Prompt(family.decoder().embed(ids).unwrap()),
        rows: (0..count as u32).collect(),
        positions: (0..count).map(|p| [p; 3]).collect(),
        next: count,
        room,
        ..Sequence::default()
    }
}

/// Last rows of a pass, one a sequence that is alive.
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
        let seen = |ids: &[u32], blocks: Blocks| Sequence {
            visibility: Visibility::everywhere(blocks),
            ..prompt(family, ids, 9)
        };
        let whole = run(family, &mut [&mut seen(&IDS, Blocks::runs(&[3, 1, 5]))]).remove(0);
        let causal = run(family, &mut [&mut prompt(family, &IDS, 0)]).remove(0);
        assert_ne!(whole, causal, "{name}");

        let mut parts = seen(&IDS[..3], Blocks::runs(&[3]));
        run(family, &mut [&mut parts]);
        parts.pending = Pending::Chunk(IDS[3..4].to_vec().into());
        run(family, &mut [&mut parts]);
        let rest = Chunk { blocks: Blocks::runs(&[5]), ..IDS[4..].to_vec().into() };
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
            let visibility = Visibility { full, sliding };
            run(family, &mut [&mut Sequence { visibility, ..prompt(family, &IDS, 0) }]).remove(0)
        };
        let causal = last(Blocks::Causal, Blocks::Causal);
        let (sliding, full) = (last(Blocks::Causal, one()), last(one(), Blocks::Causal));
        let both = last(one(), one());
        assert_eq!([causal != sliding, causal != full, full != both], differ, "{name}");
    }
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
        let mut sequence = Sequence {
            chain: chain.clone(),
            memories: vec![Memory::default()],
            tokens: TokenMap::raster(vec![support::whole(2, 0, [8, 8])]),
            visual: vec![2, 3, 4, 5],
            entered: 4,
            visibility: Visibility::everywhere(blocks),
            ..prompt(family, &IDS, 0)
        };
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
    let blocks = Visibility::everywhere(Blocks::runs(&[3, 3]));
    let mut blocked = Sequence { visibility: blocks, ..prompt(family, &IDS, 1) };
    let mut idle = Sequence::default();
    let mut all =
        [&mut full, &mut cancelled, &mut good, &mut unknown, &mut early, &mut blocked, &mut idle];
    assert_eq!(run(family, &mut all), [expected]);
    assert!(matches!(full.failed, Some(RunError::Context { need: 10, have: 9 })));
    assert!(matches!(cancelled.failed, Some(RunError::Cancelled(_))));
    assert!(matches!(unknown.failed, Some(RunError::Prompt(_))));
    assert!(matches!(early.failed, Some(RunError::Prompt(_))));
    assert!(matches!(blocked.failed, Some(RunError::Prompt(_))));
    assert!(good.is_alive() && idle.is_alive());
}
