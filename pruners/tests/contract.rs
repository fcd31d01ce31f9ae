//! The contract, over every row of the registry; and the presets.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use secateur_core::chain::{ChainSpec, Params, ResolvedStage};
use secateur_core::error::ChainError;
use secateur_core::model::{SignalKind, Withheld};
use secateur_core::prune::{Memory, PositionPolicy, Pruner, Site};
use secateur_core::signal::Signal;
use secateur_core::testkit::{self, Fill};
use secateur_pruners::{PRUNERS, presets, registry};

fn build(chain: &str) -> Result<Box<dyn Pruner>, ChainError> {
    let stage = ChainSpec::parse(chain)?.stages.remove(0);
    let entry = registry::find(&stage.pruner).expect("a row of the registry");
    let params = Params::new(&stage.pruner, &stage.params);
    let pruner = (entry.build)(&params)?;
    params.finish()?;
    Ok(pruner)
}

/// Other settings that are worth the same checks, one budget each.
const SETTINGS: &[&str] = &[
    "vtc_cls:keep=5:per=image",
    "vtc_cls:keep=5:layer=3",
    "fastv:keep=7:scope=image",
    "fastv:keep=7:debias={trend={kind=cubic};padding={threshold=0.5}}",
    "trans_prune",
    "trans_prune:layers=[2;4]:ratios=[0.6;0.3]:direction=abs:alpha=0.3",
    "trans_prune:keep=4:use_iga=false",
    "pyramid_drop",
    "vla_pruner:views=2:window=2:semantic_rows=text:decay_order=oldest_heaviest",
    "vla_pruner:refresh_every=3:semantic_rows=last",
    "vflowopt",
    "vflowopt:keep=0.4:entropy_weight=0.5:cell=2.5:anchor_t=1.0:stages=[{layer=2;keep=0.5}]",
    "vflowopt:keep=9:exact=true:cell=2.0",
    "vision_zip:dominant=5:contextual=3",
    "vision_zip:dominant=5:contextual=3:cls_token=false",
    "div_prune:keep=6:per=crop",
    "cd_pruner:keep=6:split=true:relevance_weight=0.5:relevance=negative",
    "frame_diff:keep=4",
    "frame_diff:on=embeddings:reference=kept",
    "random:keep=6:per=all:seed=3",
    "grid:keep=6:per=crop",
    "pool:keep=6:per=crop",
];

#[test]
fn every_pruner_keeps_the_contract_at_every_budget() {
    let mut failures = Vec::new();
    for entry in PRUNERS {
        let chain = |keep: &str| {
            let with = format!("keep={keep}");
            entry.example.replace("keep=64", &with).replace("keep=0.25", &with)
        };
        let outcome = testkit::check_budgets(|keep| build(&chain(keep)), &testkit::small_model());
        if let Err(reason) = outcome {
            failures.push(format!("{}: {reason}", entry.name));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn other_settings_keep_the_contract_too() {
    let mut failures = Vec::new();
    for chain in SETTINGS {
        let outcome = build(chain)
            .map_err(|e| e.to_string())
            .and_then(|p| testkit::check(p.as_ref(), &testkit::small_model()));
        if let Err(reason) = outcome {
            failures.push(format!("{chain}: {reason}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_row_is_described_and_its_example_plans() {
    let model = testkit::llava_15_7b();
    for entry in PRUNERS {
        assert!(entry.example.starts_with(entry.name), "{}", entry.name);
        for text in [entry.paper, entry.summary, entry.reads, entry.sites] {
            assert!(!text.is_empty(), "{}", entry.name);
        }
        let spec = ChainSpec::parse(entry.example).unwrap();
        let chain = secateur_pruners::registry().build(spec).unwrap();
        chain.resolve(&model).unwrap_or_else(|e| panic!("{}: {e}", entry.name));
    }
}

#[test]
fn only_what_takes_the_option_debias_says_so() {
    for entry in PRUNERS.iter().filter(|e| e.name != "debiased") {
        let chain = format!("{}:debias={{padding={{threshold=0.5}}}}", entry.example);
        let outcome = build(&chain);
        assert_eq!(outcome.is_ok(), entry.debias, "{}: {outcome:?}", entry.name);
    }
}

#[test]
fn what_explain_promises_is_what_is_kept() {
    let model = testkit::small_model();
    let chains = [
        "vtc_cls:keep=7",
        "fastv:keep=0.3",
        "pyramid_drop",
        "trans_prune",
        "trans_prune:keep=5",
        "vision_zip:keep=9",
        "vision_zip:dominant=5:contextual=3",
        "div_prune:keep=9",
        "cd_pruner:keep=9",
        "random:keep=9",
        "grid:keep=7",
        "pool:keep=7",
        "pool:keep=9",
        "vflowopt:keep=9:exact=true:stages=[{layer=2;keep=0.5}]",
    ];
    for chain in chains {
        let pruner = build(chain).unwrap();
        let mut memory = Memory::default();
        let tokens = testkit::raster(6, 6);
        let steps =
            testkit::run(pruner.as_ref(), &model, &tokens, Fill::Noise(4), &mut memory).unwrap();
        let mut entered = tokens.len();
        for (stage, step) in steps.iter().enumerate() {
            let after = step.tokens.compose(&step.selection).len();
            let promised = pruner.keeps(stage, step.tokens.len(), entered);
            assert_eq!(promised, Some(after), "{chain}, stage {stage}");
            if !matches!(step.site, Site::Decoder(_)) {
                entered = after;
            }
        }
    }
}

#[test]
fn a_model_without_a_class_token_is_refused_with_the_way_out() {
    let mut model = testkit::small_model();
    model.encoder.cls = false;
    let small = model.clone();
    let resolve = |chain: &str| {
        let spec = ChainSpec::parse(chain).unwrap();
        secateur_pruners::registry().build(spec).unwrap().resolve(&small)
    };
    let refused = resolve("vtc_cls:keep=4").unwrap_err().to_string();
    assert!(refused.contains("fallback = \"column_mean\""), "{refused}");
    let chain = resolve("vtc_cls:keep=4:fallback=column_mean").unwrap();
    assert!(chain.notes.iter().any(|n| n.contains("col_mean")), "{:?}", chain.notes);
    let pruner = build("vtc_cls:keep=4:fallback=column_mean").unwrap();
    testkit::check(pruner.as_ref(), &model).unwrap();
    let pooling = "vtc_cls:keep=4:fallback=pooling_head";
    testkit::check(build(pooling).unwrap().as_ref(), &model).unwrap();
    let reads = build(pooling).unwrap().plan(&model).unwrap().stages[0].reads.clone();
    assert_eq!(reads, [Signal::PoolingAttention], "once, not once a layer");
    let reason = "the checkpoint holds no head".to_owned();
    model.encoder.withheld = vec![Withheld::all(SignalKind::PoolingAttention, reason.clone())];
    let spec = ChainSpec::parse(pooling).unwrap();
    let refused = secateur_pruners::registry().build(spec).unwrap().resolve(&model).unwrap_err();
    assert!(refused.to_string().contains(&reason), "{refused}");
}

#[test]
fn a_model_that_mixes_tower_rows_is_cut_behind_its_projector() {
    let mut model = testkit::small_model();
    model.one_to_one = false;
    let plan = build("vtc_cls:keep=4").unwrap().plan(&model).unwrap();
    assert_eq!(plan.stages[0].site, Site::Input);
    let refused = build("vision_zip:keep=4").unwrap().plan(&model).unwrap_err().to_string();
    assert!(refused.contains("use `vtc_cls`"), "{refused}");
}

#[test]
fn renumbering_as_typed_is_refused_on_a_model_with_three_position_axes() {
    let mut model = testkit::small_model();
    model.decoder.mrope = true;
    let resolve = |chain: String| {
        let spec = ChainSpec::parse(&chain).unwrap();
        secateur_pruners::registry().build(spec).unwrap().resolve(&model)
    };
    for entry in PRUNERS {
        let example = entry.example;
        // A pruner that wraps another leaves positions to it.
        let with = |policy: &str| match example.strip_suffix('}') {
            Some(inner) => format!("{inner};positions={policy}}}"),
            None => format!("{example}:positions={policy}"),
        };
        let text = resolve(with("renumber")).unwrap_err().to_string();
        let says = text.contains("`positions` is renumber, expected keep: small has three");
        assert!(says && text.contains(entry.name), "{example}: {text}");
        // The method's own default goes on keeping them, and says so.
        for chain in [example.to_owned(), with("keep")] {
            let resolved = resolve(chain.clone()).unwrap_or_else(|e| panic!("{chain}: {e}"));
            let keep = |s: &ResolvedStage| s.plan.positions == PositionPolicy::Keep;
            assert!(resolved.stages.iter().all(keep), "{chain}");
        }
    }
    let notes = resolve("grid:keep=4".into()).unwrap().notes;
    assert!(notes.iter().any(|n| n.contains("positions are kept")), "{notes:?}");
}

#[test]
fn every_preset_is_listed_and_plans_on_llava_15_7b() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("presets");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|f| f.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    files.sort();
    assert_eq!(files, presets::names().collect::<Vec<_>>());
    for name in presets::names() {
        let text = presets::text(name).unwrap();
        assert!(text.starts_with("# "), "{name} says nothing of its paper");
        let chain = secateur_pruners::registry().build(presets::get(name).unwrap()).unwrap();
        chain.resolve(&testkit::llava_15_7b()).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn an_unknown_preset_names_the_nearest() {
    let error = presets::get("vtc-cls-llava15-64").unwrap_err().to_string();
    assert!(error.contains("nearest are vtc-cls-llava1.5-64"), "{error}");
}
