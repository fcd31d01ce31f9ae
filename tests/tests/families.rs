//! Every family with every pruner of the five papers: keeping everything changes no bit, cutting
//! works and answers go on, and a family that lacks a signal is refused by that signal's name
//! before anything runs.
//!
//! Tiny random weights, f32, bits compared.

use secateur::{Answer, ChainError, ChainSpec, Error, Precision, Request, Vlm};
use secateur_tests::golden;

/// The five papers' pruners, `{}` being the share that is kept. Layers fit the shallowest decoder
/// here, which has three.
const PRUNERS: &[&str] = &[
    "vtc_cls:keep={}",
    "vtc_cls:keep={}:fallback=column_mean",
    "trans_prune:accumulate=[1;2]:layers=[1;2]:ratios=[{};{}]",
    "debiased:inner={type=fastv;layer=2;keep={}}",
    "vla_pruner:layer=2:keep={}:window=1",
    "vflowopt:anchor_t=1.5:keep={}:cell=2.0:stages=[{layer=2;keep={}}]",
];

/// Every family, and whether its tower has a class token: `vtc_cls` without a fallback needs it.
const FAMILIES: &[(&str, bool)] = &[
    ("internvl-tiny", true),
    ("llava-1.5-tiny", true),
    ("llava-1.5-tiny-pad", true),
    ("llava-next-tiny", true),
    ("llava-onevision-tiny", false),
    ("paligemma-tiny", false),
    ("paligemma2-tiny", false),
    ("qwen2-vl-tiny", false),
    ("qwen2.5-vl-tiny", false),
    ("qwen3-vl-tiny", false),
    ("smolvlm-tiny", false),
];

/// The second step of an episode: pruners with a history have one by then.
fn second_step(vlm: &Vlm, picture: &str, chain: &str) -> Result<Answer, Error> {
    let picture = golden().join("images").join(picture);
    let mut session = vlm.session().chain(ChainSpec::parse(chain)?);
    let mut step = || {
        let request = Request::new("What is this?").path(&picture)?;
        session.ask(request.max_tokens(4).ignore_eos().detail())?.finish()
    };
    step()?;
    step()
}

fn bits(answer: &Answer) -> Vec<Vec<u32>> {
    answer.report.logits.iter().map(|row| row.iter().map(|v| v.to_bits()).collect()).collect()
}

/// Square: padding, which `debiased` never keeps, is no part of it.
const SQUARE: &str = "a_p3_48x48.png";
const WIDE: &str = "shapes-160x120.png";

fn for_every_pair(picture: &str, mut check: impl FnMut(&Vlm, &Answer, &str, &str)) {
    for (family, cls) in FAMILIES {
        let vlm = Vlm::builder(golden().join("models").join(family))
            .precision(Precision::F32)
            .threads(2)
            .open()
            .expect("the tiny model opens");
        let dense = second_step(&vlm, picture, "none").expect("a dense run");
        for pruner in PRUNERS {
            if *pruner == PRUNERS[0] && !cls {
                let asked = second_step(&vlm, picture, &pruner.replace("{}", "0.5"));
                let error = asked.expect_err("a tower without a class token");
                let named = matches!(
                    &error,
                    Error::Chain(ChainError::MissingSignal { pruner, signal, fallback, .. })
                        if pruner == "vtc_cls"
                            && signal.starts_with("encoder.cls_attention")
                            && fallback.contains("column_mean")
                );
                assert!(named, "{family}, {pruner}: {error}");
                continue;
            }
            check(&vlm, &dense, family, pruner);
        }
    }
}

#[test]
fn keeping_everything_changes_no_bit_in_any_family() {
    for_every_pair(SQUARE, |vlm, dense, family, pruner| {
        let chain = pruner.replace("{}", "1.0").replace("cell=2.0", "cell=100.0");
        let kept =
            second_step(vlm, SQUARE, &chain).unwrap_or_else(|e| panic!("{family}, {chain}: {e}"));
        assert_eq!(kept.report.visual_kept, dense.report.visual_in, "{family}, {chain}");
        assert_eq!(bits(&kept), bits(dense), "{family}, {chain}");
    });
}

#[test]
fn every_pruner_cuts_in_every_family_and_answers_go_on() {
    for_every_pair(WIDE, |vlm, dense, family, pruner| {
        let chain = pruner.replace("{}", "0.4");
        let cut =
            second_step(vlm, WIDE, &chain).unwrap_or_else(|e| panic!("{family}, {chain}: {e}"));
        let report = &cut.report;
        assert!(report.visual_kept < dense.report.visual_in, "{family}, {chain}");
        assert!(report.visual_kept > 0, "{family}, {chain}");
        assert_eq!(cut.ids.len(), 4, "{family}, {chain}");
        assert!(report.logits.iter().flatten().all(|v| v.is_finite()), "{family}, {chain}");
        // What is structure in the dense run is still there.
        let structure = |map: &secateur::TokenMap| {
            map.tokens.iter().filter(|t| !t.is_candidate()).map(|t| t.index).collect::<Vec<_>>()
        };
        let last = report.stages.last().expect("a chain has stages");
        assert_eq!(structure(&last.tokens), structure(&report.dense), "{family}, {chain}");
    });
}
