//! Every family with every pruner: keeping everything changes no bit, cutting works and answers go
//! on, a batch equals its members, and a family that lacks a signal is refused by that signal's
//! name before anything runs.
//!
//! Tiny random weights, f32, bits compared.

use secateur::pruners::{Entry, PRUNERS};
use secateur::{
    Answer, ChainError, ChainSpec, Clip, Error, Precision, Request, VideoInfo, Vlm, image,
};
use secateur_tests::golden;
use toml::{Table, Value};

/// The five papers' pruners, `{}` being the share that is kept. Layers fit the shallowest decoder
/// here, which has three.
const PAPERS: &[&str] = &[
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

fn open(family: &str) -> Vlm {
    Vlm::builder(golden().join("models").join(family))
        .precision(Precision::F32)
        .threads(2)
        .open()
        .expect("the tiny model opens")
}

/// A pruner of the registry as its row writes it, with another budget: a share, cuts inside the
/// decoder before a layer that every family has, and attention received where a tower has no class
/// token to look from.
fn at_share(entry: &Entry, share: f64, cls: bool) -> ChainSpec {
    fn fit(params: &mut Table, share: f64) {
        // What is compared with a threshold has no share of its own.
        if params.remove("threshold").is_some() || params.contains_key("keep") {
            params.insert("keep".into(), Value::Float(share));
        }
        if params.contains_key("layer") {
            params.insert("layer".into(), Value::Integer(2));
        }
        if let Some(Value::Table(inner)) = params.get_mut("inner") {
            fit(inner, share);
        }
    }
    let mut spec = ChainSpec::parse(entry.example).expect("an example");
    let params = &mut spec.stages[0].params;
    fit(params, share);
    // Published for 32 layers; the shallowest decoder here has three.
    let takes = |name: &str| entry.parameters().any(|p| p.name == name);
    for name in ["accumulate", "layers"].into_iter().filter(|name| takes(name)) {
        params.insert(name.into(), Value::from(vec![1, 2]));
    }
    if !cls && takes("fallback") {
        params.insert("fallback".into(), Value::String("column_mean".into()));
    }
    match entry.name {
        // A history of one step, so that the second step cuts.
        "vla_pruner" => {
            params.insert("window".into(), Value::Integer(1));
        }
        // Cells larger than any picture: recycling adds tokens by their number.
        "vflowopt" => {
            params.insert("cell".into(), Value::Float(100.0));
        }
        _ => {}
    }
    spec
}

/// Whether a tower lacks what a chain reads; another error is no answer.
fn lacks_a_signal(vlm: &Vlm, chain: &ChainSpec) -> bool {
    match vlm.resolve(chain) {
        Ok(_) => false,
        Err(Error::Chain(ChainError::MissingSignal { .. })) => true,
        Err(other) => panic!("{chain}: {other}"),
    }
}

fn for_every_pair(picture: &str, mut check: impl FnMut(&Vlm, &Answer, &str, &str)) {
    for (family, cls) in FAMILIES {
        let vlm = open(family);
        let dense = second_step(&vlm, picture, "none").expect("a dense run");
        for pruner in PAPERS {
            if *pruner == PAPERS[0] && !cls {
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
    let mut refused = Vec::new();
    for (family, cls) in FAMILIES {
        let vlm = open(family);
        let dense = second_step(&vlm, SQUARE, "none").expect("a dense run");
        for entry in PRUNERS {
            let chain = at_share(entry, 1.0, *cls);
            if lacks_a_signal(&vlm, &chain) {
                refused.push((*family, entry.name));
                continue;
            }
            let kept = second_step(&vlm, SQUARE, &chain.to_string())
                .unwrap_or_else(|e| panic!("{family}, {chain}: {e}"));
            assert!(!kept.report.stages.is_empty(), "{family}, {chain}");
            assert_eq!(kept.report.visual_kept, dense.report.visual_in, "{family}, {chain}");
            assert_eq!(bits(&kept), bits(&dense), "{family}, {chain}");
        }
    }
    // It merges rows of the tower, which have to be the tokens.
    let others = [
        "internvl-tiny",
        "llava-next-tiny",
        "llava-onevision-tiny",
        "qwen2-vl-tiny",
        "qwen2.5-vl-tiny",
        "qwen3-vl-tiny",
        "smolvlm-tiny",
    ];
    assert_eq!(refused, others.map(|family| (family, "vision_zip")));
}

/// Requests of every length: each pruner's chain, pruners behind one another, no chain, no picture,
/// two pictures and a video.
fn mixed(vlm: &Vlm, cls: bool) -> Vec<Request> {
    const PICTURES: [&[&str]; 4] =
        [&[WIDE], &[SQUARE], &["tiles-90x150.png"], &[SQUARE, "tiles-90x150.png"]];
    const QUESTIONS: [&str; 3] = ["What is this?", "Look.", "Which is taller, and why is that so?"];
    let picture = |name: &str| {
        let path = golden().join("images").join(name);
        image::load(&path, &image::Limits::default()).expect("a picture")
    };
    let clips = |names: &[&str]| -> Vec<Clip> { names.iter().map(|n| picture(n)).collect() };
    let ask = |i: usize, clips: Vec<Clip>, chain: &ChainSpec| {
        let request = Request::new(QUESTIONS[i % QUESTIONS.len()]);
        let request = request.max_tokens(3 + i % 4).ignore_eos().detail().chain(chain.clone());
        clips.into_iter().fold(request, Request::clip)
    };
    let none = ChainSpec::default();
    let two = "grid:keep=0.6:positions=keep,fastv:layer=2:keep=0.4:positions=keep";
    let two = ChainSpec::parse(two).expect("a chain");
    let mut chains = vec![none.clone(), two.clone()];
    chains.extend(PRUNERS.iter().map(|entry| at_share(entry, 0.4, cls)));
    chains.retain(|chain| !lacks_a_signal(vlm, chain));
    let chosen = chains.iter().enumerate();
    let mut requests: Vec<Request> =
        chosen.map(|(i, chain)| ask(i, clips(PICTURES[i % PICTURES.len()]), chain)).collect();
    requests.push(ask(0, Vec::new(), &none));
    let frames = clips(&["robot_0.png", "robot_1.png", "robot_2.png", "robot_3.png"]);
    let frames = frames.iter().map(|clip| clip.frames()[0].clone()).collect();
    let info = VideoInfo { fps: Some(2.0), duration_s: None };
    let video = Clip::from_frames("video", frames, info).expect("frames of one size");
    let video = vlm.fitted(video).expect("a video, or pictures in its place");
    requests.push(ask(1, video, &two));
    requests
}

#[test]
fn a_batch_equals_its_members_in_every_family() {
    for (family, cls) in FAMILIES {
        let vlm = open(family);
        let requests = mixed(&vlm, *cls);
        assert!(requests.len() >= PRUNERS.len(), "{family}: {} requests", requests.len());
        let alone = |request: &Request| vlm.session().ask(request.clone())?.finish();
        let single: Vec<Answer> = requests
            .iter()
            .map(|r| alone(r).unwrap_or_else(|e| panic!("{family}, {r:?}: {e}")))
            .collect();
        let cut = single.iter().filter(|a| a.report.visual_kept < a.report.visual_in).count();
        assert!(cut * 2 > requests.len(), "{family}: {cut} of {} were cut", requests.len());
        let all: Vec<usize> = (0..requests.len()).collect();
        let backwards: Vec<usize> = all.iter().rev().copied().collect();
        let mut batches = vec![all];
        // Other neighbours, in other places of smaller batches.
        batches.extend(backwards.chunks(5).map(<[usize]>::to_vec));
        for picks in batches {
            let batch = vlm.batch(picks.iter().map(|&i| requests[i].clone()).collect());
            for (&i, answer) in picks.iter().zip(batch) {
                let answer = answer.unwrap_or_else(|e| panic!("{family}, request {i}: {e}"));
                assert_eq!(answer.ids, single[i].ids, "{family}, request {i} in {picks:?}");
                assert_eq!(bits(&answer), bits(&single[i]), "{family}, request {i} in {picks:?}");
            }
        }
    }
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
