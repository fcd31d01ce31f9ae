//! What an episode remembers: a step counts when it has ended well, and only then.
//!
//! Every test runs the same steps twice, the second time with something that went wrong (or another
//! way of reading) in between, and compares what the next step keeps and says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use secateur::prune::{Cut, Memory, Plan, Pruner, Selection, Site, StagePlan};
use secateur::{
    Answer, CancelToken, ChainError, Error, ModelInfo, Params, Precision, Request, RunError,
    Session, Vlm, parse_chain,
};
use secateur_tests::golden;

/// Both carry state that a cut changes, not only the end of a step; `alarm` keeps everything.
const CHAIN: &str =
    "frame_diff:keep=40:reference=kept,vla_pruner:layer=2:keep=0.25:window=1:refresh_every=2,alarm";

const PICTURES: [&str; 3] = ["shapes-160x120.png", "banner-240x96.png", "tiles-90x150.png"];

/// Asks the run to stop from within a decoder layer, when armed.
#[derive(Clone, Debug, Default)]
struct Alarm {
    armed: Arc<AtomicBool>,
    token: CancelToken,
}

impl Pruner for Alarm {
    fn plan(&self, _: &ModelInfo) -> Result<Plan, ChainError> {
        Ok(StagePlan::at(Site::Decoder(3)).budget("all").into())
    }

    fn select(&self, cut: &Cut<'_>, _: &mut Memory) -> Result<Selection, RunError> {
        if self.armed.load(Ordering::Relaxed) {
            self.token.cancel();
        }
        Ok(Selection::keep((0..cut.tokens.len() as u32).collect()))
    }
}

fn open(alarm: &Alarm) -> Vlm {
    let alarm = alarm.clone();
    let build = move |_: &Params<'_>| Ok(Box::new(alarm.clone()) as Box<dyn Pruner>);
    Vlm::builder(golden().join("models/llava-1.5-tiny"))
        .precision(Precision::F32)
        .threads(1)
        .pruner("alarm", Arc::new(build))
        .open()
        .expect("the tiny model opens")
}

fn request(step: usize, chain: &str) -> Request {
    let picture = golden().join("images").join(PICTURES[step % PICTURES.len()]);
    let request = Request::new("Where to?").max_tokens(4).ignore_eos();
    request.path(&picture).expect("a picture").chain(parse_chain(chain).expect("a chain"))
}

fn ask(session: &mut Session, step: usize) -> Answer {
    session.ask(request(step, CHAIN)).expect("it runs").finish().expect("it ends")
}

/// Kept places of every cut, and the answer, of the steps after `disturb`.
fn outcome(disturb: impl FnOnce(&Alarm, &mut Session)) -> Vec<(Vec<Vec<u32>>, Vec<u32>)> {
    let alarm = Alarm::default();
    let mut session = open(&alarm).session();
    (0..3).for_each(|step| drop(ask(&mut session, step)));
    disturb(&alarm, &mut session);
    let answers = (3..6).map(|step| ask(&mut session, step));
    answers.map(|a| (a.report.stages.iter().map(|s| s.indices.clone()).collect(), a.ids)).collect()
}

#[test]
fn the_chain_of_these_tests_depends_on_what_went_before() {
    let plain = outcome(|_, _| {});
    assert_ne!(plain, outcome(|_, session| session.reset()));
    assert_ne!(plain, outcome(|_, session| drop(ask(session, 1))));
}

#[test]
fn a_step_that_misses_its_deadline_leaves_no_trace() {
    let plain = outcome(|_, _| {});
    let at_once = |_: &Alarm, session: &mut Session| {
        let late = session.ask(request(1, CHAIN).deadline(Instant::now())).map(|_| ());
        assert!(matches!(late, Err(Error::Cancelled { .. })), "{late:?}");
    };
    assert_eq!(outcome(at_once), plain, "before it began");
    let in_prefill = |alarm: &Alarm, session: &mut Session| {
        alarm.armed.store(true, Ordering::Relaxed);
        let late = session.ask(request(1, CHAIN).cancel(alarm.token.clone())).map(|_| ());
        alarm.armed.store(false, Ordering::Relaxed);
        assert!(matches!(late, Err(Error::Cancelled { .. })), "{late:?}");
    };
    assert_eq!(outcome(in_prefill), plain, "after its cuts");
    let while_decoding = |_: &Alarm, session: &mut Session| {
        let token = CancelToken::default();
        let stream = session.ask(request(1, CHAIN).cancel(token.clone())).expect("it runs");
        token.cancel();
        let late = stream.finish().map(|_| ());
        assert!(matches!(late, Err(Error::Cancelled { partial: Some(_), .. })), "{late:?}");
    };
    assert_eq!(outcome(while_decoding), plain, "with a part of its answer");
    let dropped = |_: &Alarm, session: &mut Session| {
        drop(session.ask(request(1, CHAIN)).expect("it runs"));
    };
    assert_eq!(outcome(dropped), plain, "dropped");
}

#[test]
fn a_refused_prompt_leaves_no_trace() {
    let refused = |_: &Alarm, session: &mut Session| {
        let picture = golden().join("images").join(PICTURES[1]);
        let long = Request::new("where ".repeat(20_000)).path(&picture).expect("a picture");
        let long = long.chain(parse_chain(CHAIN).expect("a chain"));
        let refused = session.ask(long).map(|_| ());
        assert!(matches!(refused, Err(Error::Context { .. })), "{refused:?}");
    };
    assert_eq!(outcome(refused), outcome(|_, _| {}));
}

#[test]
fn a_request_with_another_chain_between_two_steps_leaves_the_episode_as_it_was() {
    let other = |_: &Alarm, session: &mut Session| {
        for chain in ["none", "grid:keep=8", "fastv:layer=2:keep=0.5,alarm"] {
            session.ask(request(1, chain)).expect("it runs").finish().expect("it ends");
        }
    };
    assert_eq!(outcome(other), outcome(|_, _| {}));
}

#[test]
fn a_stream_that_is_read_to_its_end_counts_as_one_that_is_finished() {
    let finished = outcome(|_, session| drop(ask(session, 1)));
    let read = outcome(|_, session| {
        let mut stream = session.ask(request(1, CHAIN)).expect("it runs");
        assert!(stream.by_ref().all(|piece| piece.is_ok()));
    });
    assert_eq!(read, finished);
}
