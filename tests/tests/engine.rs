//! Continuous batching: requests that join early or late, end, fail or are cancelled beside others.
//!
//! In f32 on tiny random models; equality is of bits. `SECATEUR_FULL=1` runs more arrivals.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use secateur::{
    Allowed, AllowedTokens, Answer, CancelToken, Engine, Error, Precision, Request, Sampling,
    Ticket, Vlm, parse_chain,
};
use secateur_tests::golden;

static VLM: LazyLock<Vlm> = LazyLock::new(|| {
    Vlm::builder(golden().join("models/llava-1.5-tiny"))
        .precision(Precision::F32)
        .threads(2)
        .open()
        .expect("the tiny model opens")
});

/// Pictures, question and chain of each kind of request.
const KINDS: &[(&[&str], &str, &str)] = &[
    (&["shapes-160x120.png"], "What is this?", "none"),
    (&["banner-240x96.png"], "Look.", "vtc_cls:keep=16"),
    (&["shapes-160x120.png", "tiles-90x150.png"], "Which is taller?", "fastv:layer=3:keep=24"),
    (
        &["tiles-90x150.png"],
        "Where is the red block?",
        "vtc_cls:keep=40,fastv:layer=2:keep=20,pyramid_drop:layers=[5;7]:ratios=[0.3;0.1]",
    ),
    (&[], "No picture at all.", "none"),
    (
        &["robot_0.png"],
        "Pick it up.",
        "trans_prune:accumulate=[2;3;4]:layers=[2;4]:ratios=[0.75;0.25]",
    ),
    (&["robot_1.png"], "Pick it up.", "vision_zip:dominant=20:contextual=4"),
    (&["robot_2.png"], "Go.", "fastv:layer=2:keep=9:positions=renumber"),
    (&["robot_0.png"], "Go on.", "vla_pruner:layer=3:keep=12:window=1"),
];

/// Most tokens of a request here.
const MOST: usize = 20;

fn request(kind: usize, seed: u64, tokens: usize) -> Request {
    let (pictures, question, chain) = KINDS[kind];
    let mut request = Request::new(question).max_tokens(tokens).ignore_eos().detail();
    for picture in pictures {
        request = request.path(golden().join("images").join(picture)).expect("a picture");
    }
    if seed > 0 {
        let sampling = Sampling { temperature: 0.8, top_k: 40, seed, ..Sampling::default() };
        request = request.sampling(sampling);
    }
    request.chain(parse_chain(chain).expect("a chain"))
}

/// What a request with that kind and seed gives alone, at its longest.
fn alone(kind: usize, seed: u64) -> Arc<Answer> {
    type Seen = Mutex<BTreeMap<(usize, u64), Arc<Answer>>>;
    static SEEN: LazyLock<Seen> = LazyLock::new(Mutex::default);
    let mut seen = SEEN.lock().expect("no test failed inside");
    let run = || {
        let mut session = VLM.session();
        let stream = session.ask(request(kind, seed, MOST)).expect("it runs");
        Arc::new(stream.finish().expect("it ends"))
    };
    seen.entry((kind, seed)).or_insert_with(run).clone()
}

fn bits(answer: &Answer) -> Vec<Vec<u32>> {
    answer.report.logits.iter().map(|row| row.iter().map(|v| v.to_bits()).collect()).collect()
}

/// Whether an answer is the first `tokens` of that of a lone run, in every bit.
fn is_beginning(answer: &Answer, kind: usize, seed: u64, tokens: usize) -> bool {
    let alone = alone(kind, seed);
    answer.ids == alone.ids[..tokens] && bits(answer) == bits(&alone)[..tokens]
}

type Answers = BTreeMap<Ticket, Result<Answer, Error>>;

fn run_out(engine: &mut Engine, answers: &mut Answers) {
    while !engine.is_idle() {
        answers.extend(engine.step());
    }
}

#[derive(Clone, Debug)]
struct Arrival {
    kind: usize,
    seed: u64,
    tokens: usize,
    /// Steps of the engine before it comes.
    at: usize,
}

fn arrival() -> impl Strategy<Value = Arrival> {
    (0..KINDS.len(), 0..3u64, 1..=MOST, 0..30usize).prop_map(|(kind, seed, tokens, at)| Arrival {
        kind,
        seed,
        tokens,
        at,
    })
}

fn cases() -> ProptestConfig {
    let cases = if std::env::var_os("SECATEUR_FULL").is_some() { 300 } else { 24 };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn an_answer_does_not_depend_on_who_runs_beside_it(
        width in 1..=5usize,
        arrivals in prop::collection::vec(arrival(), 1..10),
    ) {
        let mut engine = VLM.engine(width);
        let mut tickets = BTreeMap::new();
        let mut answers = Answers::new();
        for step in 0..30 {
            for arrival in arrivals.iter().filter(|a| a.at == step) {
                let request = request(arrival.kind, arrival.seed, arrival.tokens);
                tickets.insert(engine.submit(request), arrival);
            }
            answers.extend(engine.step());
            prop_assert!(engine.running() <= width);
        }
        run_out(&mut engine, &mut answers);
        prop_assert_eq!(answers.len(), arrivals.len());
        for (ticket, Arrival { kind, seed, tokens, .. }) in tickets {
            let answer = answers.remove(&ticket).expect("an answer").expect("it runs");
            prop_assert!(is_beginning(&answer, *kind, *seed, *tokens), "{kind} {seed} {tokens}");
            prop_assert!(answer.report.batch <= width);
        }
        let progress = engine.progress();
        prop_assert_eq!((progress.encoded, progress.ended), (arrivals.len(), arrivals.len()));
        prop_assert_eq!(progress.tokens, arrivals.iter().map(|a| a.tokens).sum::<usize>());
    }
}

/// Fails at its fourth token.
#[derive(Debug)]
struct Breaks {
    panics: bool,
}

impl AllowedTokens for Breaks {
    fn after(&self, answer: &[u32]) -> Allowed<'_> {
        match answer.len() {
            0..3 => Allowed::All,
            _ if self.panics => panic!("a rule of the caller that panics"),
            _ => Allowed::Only(Cow::Borrowed(&[])),
        }
    }
}

#[test]
fn one_that_fails_in_the_middle_leaves_the_others_equal() {
    for panics in [false, true] {
        let mut engine = VLM.engine(3);
        let first = engine.submit(request(0, 0, 12));
        let breaks = Arc::new(Breaks { panics });
        let bad = engine.submit(request(1, 0, 12).allowed_tokens(breaks));
        let chainless =
            engine.submit(request(0, 0, 5).chain(parse_chain("fastv:layer=99:keep=4").unwrap()));
        let late = [engine.submit(request(3, 1, 9)), engine.submit(request(7, 2, 11))];
        let mut answers = Answers::new();
        run_out(&mut engine, &mut answers);
        let mut take = |ticket| answers.remove(&ticket).expect("a result");
        let error = take(bad).expect_err("its rule breaks");
        assert_eq!(matches!(error, Error::Internal(_)), panics, "{error}");
        assert!(matches!(take(chainless), Err(Error::Chain(_))));
        assert!(is_beginning(&take(first).unwrap(), 0, 0, 12));
        assert!(is_beginning(&take(late[0]).unwrap(), 3, 1, 9));
        assert!(is_beginning(&take(late[1]).unwrap(), 7, 2, 11));
        assert_eq!(engine.progress().ended, 5);
    }
}

#[test]
fn a_cancelled_one_leaves_with_what_was_done() {
    let mut engine = VLM.engine(2);
    let cancel = CancelToken::default();
    let other = engine.submit(request(2, 0, 14));
    let stopped = engine.submit(request(5, 1, MOST).cancel(cancel.clone()));
    let waits = engine.submit(request(0, 0, 3).cancel(cancel.clone()));
    let passed = engine.submit(request(0, 0, 3).deadline(Instant::now()));
    let next = engine.submit(request(6, 0, 8));
    let mut answers = Answers::new();
    for _ in 0..5 {
        answers.extend(engine.step());
    }
    cancel.cancel();
    run_out(&mut engine, &mut answers);
    let mut take = |ticket| answers.remove(&ticket).expect("a result");
    match take(stopped) {
        Err(Error::Cancelled { partial: Some(partial), .. }) => {
            assert!(is_beginning(&partial, 5, 1, 5));
        }
        other => panic!("{other:?}"),
    }
    for ticket in [waits, passed] {
        assert!(matches!(take(ticket), Err(Error::Cancelled { partial: None, .. })));
    }
    assert!(is_beginning(&take(other).unwrap(), 2, 0, 14));
    assert!(is_beginning(&take(next).unwrap(), 6, 0, 8));
}

#[test]
fn a_deadline_moves_with_the_time_that_the_caller_takes() {
    let mut engine = VLM.engine(1);
    let moment = Instant::now();
    let runs = engine.submit(request(0, 0, 6).deadline(moment));
    let waits = engine.submit(request(1, 0, 6).deadline(moment));
    engine.extend_deadlines(Duration::from_secs(3600));
    let mut answers = Answers::new();
    run_out(&mut engine, &mut answers);
    assert!([runs, waits].iter().all(|ticket| answers[ticket].is_ok()));
}

#[test]
fn a_batch_does_not_wait_for_its_longest_answer() {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        8 + (state >> 33) as usize % 505
    };
    let lengths: Vec<usize> = (0..200).map(|_| next()).collect();
    let width = 8;
    let mut engine = VLM.engine(width);
    for &tokens in &lengths {
        engine.submit(Request::new("Go.").max_tokens(tokens).ignore_eos());
    }
    let mut answers = Answers::new();
    run_out(&mut engine, &mut answers);
    let outputs: Vec<usize> = answers.values().map(|a| a.as_ref().unwrap().ids.len()).collect();
    assert_eq!(outputs, lengths);
    let progress = engine.progress();
    let ideal = lengths.iter().sum::<usize>() as f64 / width as f64;
    let waiting: usize = lengths.chunks(width).filter_map(|batch| batch.iter().max()).sum();
    assert!(progress.passes as f64 <= 1.05 * ideal, "{} passes, ideal {ideal}", progress.passes);
    assert!(waiting as f64 > 1.5 * ideal, "the lengths are worth it");
}
