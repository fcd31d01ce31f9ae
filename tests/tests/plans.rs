//! What `explain` says is what a run does: the counts of every chain of pruners, on models with and
//! without a class token, with and without one tower row for a token.
//!
//! `SECATEUR_FULL=1` runs the full number of chains.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use secateur::{ChainSpec, Clip, Error, ModelSource, Precision, Request, Session, Vlm};
use secateur_pruners::registry::PRUNERS;
use secateur_tests::golden;

/// Entries of chains for every pruner of the registry; `{n}` is a count, `{s}` a share.
const ENTRIES: &[&str] = &[
    "vtc_cls:keep={n}:fallback=column_mean",
    "vtc_cls:keep={s}:fallback=column_mean:layer=1",
    "vision_zip:keep={n}",
    "vision_zip:dominant={n}:contextual=2:fallback=column_mean",
    "vision_zip:keep={n}:cls_token=false:fallback=column_mean",
    "div_prune:keep={n}",
    "cd_pruner:keep={s}",
    "random:keep={s}",
    "grid:keep={n}",
    "pool:keep={n}",
    "pool:keep={s}:per=crop",
    "frame_diff:keep={n}",
    "vflowopt:keep={n}:stages=[{layer=2;keep={s}}]",
    "vflowopt:exact=true:keep={s}:cell=2.0:stages=[]",
    "fastv:layer=1:keep={s}",
    "fastv:layer=2:keep={n}",
    "debiased:inner={type=fastv;layer=2;keep={n}}",
    "pyramid_drop:layers=[1;2]:keep={n}",
    "trans_prune:accumulate=[1;2]:layers=[1;2]:ratios=[{s};{s}]",
    "vla_pruner:layer=2:keep={n}:window=1",
];

struct Model {
    vlm: Vlm,
    side: u32,
    tokens: usize,
}

fn models() -> Vec<Model> {
    let tiny = |name: &str| ModelSource::from(golden().join("models").join(name));
    // The side of a picture whose tokens are one square crop.
    let sources = [
        (ModelSource::Embedded, 256),
        (tiny("llava-1.5-tiny"), 112),
        (tiny("paligemma-tiny"), 36),
        (tiny("qwen2-vl-tiny"), 224),
    ];
    sources
        .into_iter()
        .map(|(source, side)| {
            let outline = Vlm::builder(source.clone()).outline().expect("a model");
            let tokens = outline.tokens(&[picture(side)]).expect("tokens");
            assert_eq!(tokens.grids.len(), 1, "{source:?}");
            assert_eq!(tokens.grids[0].rows, tokens.grids[0].cols, "{source:?}");
            let vlm = Vlm::builder(source).precision(Precision::F32).threads(2);
            Model { vlm: vlm.open().expect("a model"), side, tokens: tokens.len() }
        })
        .collect()
}

fn picture(side: u32) -> Clip {
    let value = |i: u32| ((i.wrapping_mul(2_654_435_761)) >> 24) as u8;
    let bytes: Vec<u8> = (0..side * side * 3).map(|i| value(i / 21)).collect();
    Clip::picture("noise", side, side, bytes).expect("a picture")
}

/// The second step of an episode: pruners with a history prune from there on.
fn second_step(session: &mut Session, picture: &Clip) -> Result<secateur::Answer, Error> {
    let step = |session: &mut Session| {
        let request = Request::new("What?").clip(picture.clone()).max_tokens(2).ignore_eos();
        session.ask(request)?.finish()
    };
    step(session)?;
    step(session)
}

#[test]
fn the_counts_of_a_plan_are_the_counts_of_its_run() {
    for entry in PRUNERS {
        let is_tried = ENTRIES.iter().any(|e| e.split(':').next() == Some(entry.name));
        assert!(is_tried, "{} is in no chain", entry.name);
    }
    let models = models();
    let entry = (0..ENTRIES.len(), prop_oneof![1usize..12, 1usize..300], 1u32..=100);
    let chains = (0..models.len(), proptest::collection::vec(entry, 1..4));
    let cases =
        if std::env::var_os("SECATEUR_FULL").is_some_and(|v| v == "1") { 3000 } else { 100 };
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let (compared, known) = (Cell::new(0), Cell::new(0));
    let outcome = TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    )
    .run(&chains, |(model, mut entries)| {
        // Encoder, input, decoder: the table stands in that order, as most chains must.
        entries.sort_by_key(|e| e.0);
        let Model { vlm, side, tokens } = &models[model];
        let text = entries.iter().map(|&(at, count, percent)| {
            let share = format!("{:?}", f64::from(percent) / 100.0);
            ENTRIES[at].replace("{n}", &count.to_string()).replace("{s}", &share)
        });
        let text = text.collect::<Vec<_>>().join(",");
        let spec = ChainSpec::parse(&text).expect("a chain");
        let Ok(resolved) = vlm.resolve(&spec) else { return Ok(()) };
        let mut session = vlm.session().chain(spec);
        let report = match second_step(&mut session, &picture(*side)) {
            Ok(answer) => answer.report,
            // What a pruner refuses to cut is no wrong count.
            Err(Error::Internal(reason)) => panic!("{text}: {reason}"),
            Err(_) => return Ok(()),
        };
        prop_assert_eq!(report.visual_in, *tokens);
        let counts = resolved.counts(*tokens);
        prop_assert_eq!(counts.len(), report.stages.len());
        for ((before, after), stage) in counts.into_iter().zip(&report.stages) {
            let ran = (stage.before, stage.kept);
            let planned = (before.unwrap_or(ran.0), after.unwrap_or(ran.1));
            prop_assert_eq!(planned, ran, "{} at {} of {}", stage.pruner, stage.site, text);
            compared.set(compared.get() + 1);
            known.set(known.get() + usize::from(after.is_some()));
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let (compared, known) = (compared.get(), known.get());
    assert!(compared > cases as usize / 2, "only {compared} cuts ran");
    assert!(known * 2 > compared, "only {known} of {compared} cuts were counted");
}
