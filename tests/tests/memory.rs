//! Memory of a pruned run: no `[tokens, tokens]` array of the decoder is ever made, whatever rows
//! a pruner asks for, and memory grows with the tokens, not with their square.
//!
//! The heap is counted by `dhat`, whose profiler belongs to the process: one test, one process.

use std::sync::{Arc, Mutex};

use secateur::prune::{Cut, Memory, Plan, Pruner, Selection, Site, StagePlan};
use secateur::{ChainError, ChainSpec, Clip, ModelInfo, Params, Precision, Request, RunError, Vlm};
use secateur_tests::golden;

#[global_allocator]
static HEAP: dhat::Alloc = dhat::Alloc;

/// Chains that read attention rows, transitions, hidden states and embeddings of the decoder.
const CHAINS: &[&str] = &[
    "none",
    "fastv:layer=3:keep=0.25",
    "pyramid_drop:layers=[2;4;6]:ratios=[0.5;0.25;0.125]",
    "trans_prune:accumulate=[2;3;4]:layers=[2;4]:ratios=[0.75;0.25]",
    "vla_pruner:layer=3:keep=0.25:window=1",
    "fastv:layer=3:keep=0.25:debias={trend={kind=exp;rate=1.0}}",
];

/// The count that begins at the decoder's second layer: the vision tower takes more than anything
/// after it, and would hide what is made there.
static COUNT: Mutex<Option<dhat::Profiler>> = Mutex::new(None);

/// Keeps everything before a layer, and does something there.
#[derive(Debug)]
struct At {
    layer: usize,
    act: fn(tokens: usize),
}

impl Pruner for At {
    fn plan(&self, _: &ModelInfo) -> Result<Plan, ChainError> {
        Ok(StagePlan::at(Site::Decoder(self.layer)).budget("all").into())
    }

    fn select(&self, cut: &Cut<'_>, _: &mut Memory) -> Result<Selection, RunError> {
        (self.act)(cut.tokens.len());
        Ok(Selection::keep((0..cut.tokens.len() as u32).collect()))
    }
}

fn count(_: usize) {
    *COUNT.lock().expect("one thread") = Some(dhat::Profiler::builder().testing().build());
}

fn square(tokens: usize) {
    std::hint::black_box(vec![1f32; tokens * tokens]);
}

fn open() -> Vlm {
    Vlm::builder(golden().join("models/llava-1.5-tiny"))
        .precision(Precision::F32)
        .threads(2)
        // The second request of a session runs whole.
        .reuse(0)
        .pruner("count", Arc::new(|_: &Params<'_>| Ok(Box::new(At { layer: 1, act: count }))))
        .pruner("square", Arc::new(|_: &Params<'_>| Ok(Box::new(At { layer: 3, act: square }))))
        .open()
        .expect("the tiny model opens")
}

/// Visual tokens a picture of the tiny model.
const PER_PICTURE: usize = 64;

fn request(pictures: usize, chain: &str) -> Request {
    let mut request = Request::new("What is this?").max_tokens(2).ignore_eos();
    for p in 0..pictures {
        let shade = (0..48 * 48 * 3).map(|i| (i * (p + 3) % 251) as u8).collect::<Vec<u8>>();
        request = request.clip(Clip::picture("shade", 48, 48, shade).expect("a picture"));
    }
    request.chain(ChainSpec::parse(chain).expect("a chain"))
}

/// Bytes of the heap at the peak of a session's second request, so that pruners with a history cut:
/// from its start, or with `count` in front of the chain from the decoder's second layer on.
fn peak(vlm: &Vlm, pictures: usize, chain: &str) -> usize {
    let mut session = vlm.session();
    let mut step = || session.ask(request(pictures, chain)).expect("it runs").finish();
    step().expect("it ends");
    *COUNT.lock().expect("one thread") = None;
    let whole = (!chain.starts_with("count")).then(|| dhat::Profiler::builder().testing().build());
    step().expect("it ends");
    let bytes = dhat::HeapStats::get().max_bytes;
    drop(whole);
    *COUNT.lock().expect("one thread") = None;
    bytes
}

#[test]
fn no_square_of_the_tokens_is_ever_in_memory() {
    let vlm = open();
    let (half, whole) = (15, 30);
    let tokens = whole * PER_PICTURE;
    for chain in CHAINS {
        let (small, large) = (peak(&vlm, half, chain), peak(&vlm, whole, chain));
        let growth = large as f64 / small as f64;
        assert!(
            growth < 2.2,
            "{chain}: {small} bytes at {} tokens, {large} at {tokens}",
            tokens / 2
        );
        let inside = peak(&vlm, whole, &inside(chain));
        // A square of bf16, the smallest type that scores could have, would already be more.
        assert!(inside < 2 * tokens * tokens, "{chain}: {inside} bytes inside the decoder");
    }
    // The measure sees what it is there for.
    let seen = peak(&vlm, whole, &inside("square"));
    assert!(seen > 4 * tokens * tokens, "a square of {tokens} tokens shows as {seen} bytes");
}

/// A chain behind the pruner that starts the count.
fn inside(chain: &str) -> String {
    if chain == "none" { "count".into() } else { format!("count,{chain}") }
}
