//! Memory of a pruned run: no `[tokens, tokens]` array of the decoder is ever made, whatever rows
//! a pruner asks for, and memory grows with the tokens, not with their square.
//!
//! The heap is counted by `dhat`, whose profiler belongs to the process: one test, one process.

use secateur::{ChainSpec, Clip, Precision, Request, Vlm};
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

/// Bytes of the heap at the peak of one request, in a session that ran one before.
fn peak(vlm: &Vlm, pictures: usize, chain: &str) -> usize {
    let mut session = vlm.session();
    session.ask(request(pictures, chain)).expect("it runs").finish().expect("it ends");
    let asked = request(pictures, chain);
    let _profiler = dhat::Profiler::builder().testing().build();
    session.ask(asked).expect("it runs").finish().expect("it ends");
    dhat::HeapStats::get().max_bytes
}

#[test]
fn no_square_of_the_tokens_is_ever_in_memory() {
    let vlm = Vlm::builder(golden().join("models/llava-1.5-tiny"))
        .precision(Precision::F32)
        .threads(2)
        .open()
        .expect("the tiny model opens");
    let (half, whole) = (15, 30);
    let tokens = whole * PER_PICTURE;
    let dense = peak(&vlm, whole, "none");
    for chain in CHAINS {
        let (small, large) = (peak(&vlm, half, chain), peak(&vlm, whole, chain));
        let growth = large as f64 / small as f64;
        assert!(
            growth < 2.2,
            "{chain}: {small} bytes at {} tokens, {large} at {tokens}",
            tokens / 2
        );
        // A square of single bytes would already be more.
        let above = large.saturating_sub(dense);
        assert!(above < tokens * tokens, "{chain}: {above} bytes above the dense run's {dense}");
    }
}
