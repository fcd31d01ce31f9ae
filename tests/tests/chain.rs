//! What a chain promises whatever the pruner: keep-all changes no bit, a batch equals its members,
//! threads do not matter, a cancelled request leaves nothing behind.
//!
//! In f32 on tiny random models; equality is of bits. `SECATEUR_FULL=1` runs more mixes.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use secateur::{
    Allowed, AllowedTokens, Answer, ChainSpec, Error, Precision, Request, Vlm, parse_chain,
};
use secateur_core::ops::reference::ReferenceOps;
use secateur_tests::golden;

fn open(model: &str, threads: usize) -> Vlm {
    Vlm::builder(golden().join("models").join(model))
        .precision(Precision::F32)
        .threads(threads)
        .open()
        .expect("the tiny model opens")
}

fn request(pictures: &[&str], question: &str, chain: &str) -> Request {
    let mut request = Request::new(question).max_tokens(6).ignore_eos().detail();
    for picture in pictures {
        request = request.path(golden().join("images").join(picture)).expect("a picture");
    }
    request.chain(parse_chain(chain).expect("a chain"))
}

fn alone(vlm: &Vlm, request: &Request) -> Answer {
    let mut session = vlm.session();
    session.ask(request.clone()).expect("it runs").finish().expect("it ends")
}

fn bits(answer: &Answer) -> Vec<Vec<u32>> {
    answer.report.logits.iter().map(|row| row.iter().map(|v| v.to_bits()).collect()).collect()
}

/// Chains that drop nothing of the 64 tokens of the tiny model, one a pruner and site.
const KEEP_ALL: &[&str] = &[
    "vtc_cls:keep=64",
    "fastv:layer=2:keep=64",
    "fastv:layer=2:keep=1.0",
    "random:keep=64",
    "grid:keep=64",
    "pool:keep=64",
    "div_prune:keep=64",
    "pyramid_drop:layers=[2;4]:ratios=[1.0;1.0]",
    "trans_prune:accumulate=[2;3]:layers=[2;4]:ratios=[1.0;1.0]",
    "vla_pruner:layer=3:keep=1.0:window=1",
    "vflowopt:anchor_t=1.5:keep=1.0:cell=100.0:stages=[{layer=4;keep=1.0}]",
    "vtc_cls:keep=64,fastv:layer=2:keep=64",
];

#[test]
fn keeping_everything_changes_no_bit() {
    let vlm = open("llava-1.5-tiny", 2);
    let dense = alone(&vlm, &request(&["shapes-160x120.png"], "What is this?", "none"));
    for chain in KEEP_ALL {
        let kept = alone(&vlm, &request(&["shapes-160x120.png"], "What is this?", chain));
        assert_eq!(kept.report.visual_kept, 64, "{chain}");
        assert_eq!(bits(&kept), bits(&dense), "{chain}");
    }
}

/// Requests of different lengths, pictures and chains.
fn mixed() -> Vec<Request> {
    vec![
        request(&["shapes-160x120.png"], "What is this?", "none"),
        request(&["banner-240x96.png"], "Look.", "vtc_cls:keep=16"),
        request(
            &["shapes-160x120.png", "tiles-90x150.png"],
            "Which is taller, and why?",
            "fastv:layer=3:keep=24",
        ),
        request(
            &["tiles-90x150.png"],
            "Where is the red block?",
            "vtc_cls:keep=40,fastv:layer=2:keep=20,pyramid_drop:layers=[5;7]:ratios=[0.3;0.1]",
        ),
        request(&[], "No picture at all.", "none"),
        request(
            &["robot_0.png"],
            "Pick it up.",
            "trans_prune:accumulate=[2;3;4]:layers=[2;4]:ratios=[0.75;0.25]",
        ),
        request(&["robot_1.png"], "Pick it up.", "vision_zip:dominant=20:contextual=4"),
        request(&["robot_2.png"], "Go.", "random:keep=9:seed=3"),
    ]
}

#[test]
fn a_batch_equals_its_members() {
    let vlm = open("llava-1.5-tiny", 2);
    let requests = mixed();
    let single: Vec<Answer> = requests.iter().map(|r| alone(&vlm, r)).collect();
    let rounds = if std::env::var_os("SECATEUR_FULL").is_some() { 200 } else { 12 };
    let mut state = 1u64;
    let mut next = move |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    for round in 0..rounds {
        let size = [2, 3, 8][round % 3];
        let picks: Vec<usize> = (0..size).map(|_| next(requests.len())).collect();
        let batch = vlm.batch(picks.iter().map(|&i| requests[i].clone()).collect());
        for (&i, answer) in picks.iter().zip(batch) {
            let answer = answer.expect("it runs");
            assert_eq!(answer.ids, single[i].ids, "request {i} in {picks:?}");
            assert_eq!(bits(&answer), bits(&single[i]), "request {i} in {picks:?}");
        }
    }
}

#[test]
fn three_sites_and_four_pictures_stand_beside_a_request_without_a_chain() {
    let vlm = open("llava-1.5-tiny", 2);
    // Encoder, early in the decoder, late in the decoder: each reads what the one before it left.
    let chain = "vtc_cls:keep=48,fastv:layer=2:keep=30,trans_prune:accumulate=[5;6]:layers=[6]:\
                 ratios=[0.3]";
    let pictures = ["shapes-160x120.png", "banner-240x96.png", "tiles-90x150.png", "robot_0.png"];
    let mut requests: Vec<Request> =
        pictures.iter().map(|p| request(&[p], "What is this?", chain)).collect();
    requests.push(request(&["shapes-160x120.png"], "What is this?", "none"));
    let single: Vec<Answer> = requests.iter().map(|r| alone(&vlm, r)).collect();
    for (request, answer) in vlm.batch(requests).into_iter().enumerate() {
        let answer = answer.expect("it runs");
        let kept: Vec<usize> = answer.report.stages.iter().map(|s| s.kept).collect();
        let expected: &[usize] = if request < 4 { &[48, 30, 14] } else { &[] };
        assert_eq!(kept, expected, "request {request}");
        assert_eq!(answer.ids, single[request].ids, "request {request}");
        assert_eq!(bits(&answer), bits(&single[request]), "request {request}");
    }
}

#[test]
fn one_bad_request_does_not_touch_the_others() {
    let vlm = open("llava-1.5-tiny", 2);
    let good = request(&["shapes-160x120.png"], "What is this?", "none");
    let bad = request(&["shapes-160x120.png"], "What is this?", "fastv:layer=99:keep=4");
    let expected = alone(&vlm, &good);
    let mut results = vlm.batch(vec![good.clone(), bad, good]);
    assert_eq!(bits(&results.pop().unwrap().unwrap()), bits(&expected));
    assert!(matches!(results.pop().unwrap(), Err(Error::Chain(_))));
    assert_eq!(bits(&results.pop().unwrap().unwrap()), bits(&expected));
}

#[test]
fn threads_do_not_matter() {
    let requests = mixed();
    let one: Vec<_> =
        requests.iter().map(|r| bits(&alone(&open("llava-1.5-tiny", 1), r))).collect();
    for threads in [2, 3] {
        let vlm = open("llava-1.5-tiny", threads);
        for (request, expected) in requests.iter().zip(&one) {
            assert_eq!(bits(&alone(&vlm, request)), *expected, "{threads} threads");
        }
    }
}

#[test]
fn a_cancelled_request_leaves_nothing_behind() {
    let vlm = open("llava-1.5-tiny", 2);
    let question = request(&["shapes-160x120.png"], "What is this?", "fastv:layer=2:keep=9");
    let expected = alone(&vlm, &question);
    let mut session = vlm.session();
    let rounds = if std::env::var_os("SECATEUR_FULL").is_some() { 100 } else { 20 };
    for round in 0..rounds {
        let late = Instant::now() + Duration::from_micros(round * 137);
        match session.ask(question.clone().max_tokens(500).deadline(late)) {
            Ok(stream) => {
                let _ = stream.finish();
            }
            Err(Error::Cancelled { .. }) => {}
            Err(other) => panic!("{other}"),
        }
        let after = session.ask(question.clone()).expect("it runs").finish().expect("it ends");
        assert_eq!(bits(&after), bits(&expected), "after a deadline of {} us", round * 137);
    }
}

#[test]
fn a_dropped_stream_cancels() {
    let vlm = open("llava-1.5-tiny", 1);
    let mut session = vlm.session();
    let question = request(&["shapes-160x120.png"], "What is this?", "none");
    drop(session.ask(question.clone()).expect("it runs"));
    let answer = session.ask(question.clone()).expect("it runs").finish().expect("it ends");
    assert_eq!(bits(&answer), bits(&alone(&vlm, &question)));
}

#[test]
fn an_episode_warms_up_prunes_and_resets() {
    let vlm = open("llava-1.5-tiny", 2);
    let chain = ChainSpec::parse("vla_pruner:layer=3:keep=0.25:window=2").expect("a chain");
    let mut session = vlm.session().chain(chain);
    let mut kept = Vec::new();
    for step in 0..5 {
        if step == 3 {
            session.reset();
        }
        let picture = golden().join("images").join(format!("robot_{}.png", step.min(3)));
        let request = Request::new("Pick it up.").path(&picture).expect("a picture");
        let stream = session.ask(request.max_tokens(7).ignore_eos()).expect("it runs");
        kept.push(stream.finish().expect("it ends").report.visual_kept);
    }
    assert_eq!(kept, [64, 64, 16, 64, 64]);
}

/// Two of a range of tokens, then the end token of the tiny model's configuration.
#[derive(Debug)]
struct Pair;

impl AllowedTokens for Pair {
    fn after(&self, answer: &[u32]) -> Allowed<'_> {
        Allowed::Only(match answer.len() {
            0 | 1 => Cow::Owned((40..44).collect()),
            _ => Cow::Borrowed(&[7, 7]),
        })
    }
}

#[test]
fn an_answer_holds_only_tokens_that_its_rule_allows() {
    let vlm = open("llava-1.5-tiny", 1);
    let free = request(&["shapes-160x120.png"], "What is this?", "vtc_cls:keep=16");
    let ruled = free.clone().allowed_tokens(Arc::new(Pair));
    let [free, ruled] = [alone(&vlm, &free), alone(&vlm, &ruled)];
    assert!(ruled.ids[..2].iter().all(|id| (40..44).contains(id)), "{:?}", ruled.ids);
    assert!(ruled.ids[2..].iter().all(|id| *id == 7) && ruled.ids.len() == 6, "{:?}", ruled.ids);
    assert_ne!(free.ids, ruled.ids);
    // The best of those allowed, by the same logits.
    let row = &free.report.logits[0];
    let best = (40..44).fold(40, |best, id| if row[id] > row[best] { id } else { best });
    assert_eq!(ruled.ids[0] as usize, best);
}

#[test]
fn an_operation_set_of_the_caller_runs_everything() {
    let own = Vlm::builder(golden().join("models/llava-1.5-tiny"))
        .ops(Arc::new(ReferenceOps::new(Precision::F32)))
        .open()
        .expect("the tiny model opens");
    let cpu = open("llava-1.5-tiny", 1);
    assert!(own.describe().contains("reference"), "{}", own.describe());
    for chain in
        ["none", "vtc_cls:keep=16,fastv:layer=2:keep=0.5", "trans_prune:layers=[2;4]:keep=8"]
    {
        let request = request(&["shapes-160x120.png"], "What is this?", chain);
        let [a, b] = [alone(&own, &request), alone(&cpu, &request)];
        assert_eq!(a.ids, b.ids, "{chain}");
        let kept =
            |a: &Answer| a.report.stages.iter().map(|s| s.indices.clone()).collect::<Vec<_>>();
        assert_eq!(kept(&a), kept(&b), "{chain}");
    }
}
