//! What an earlier request computed is not computed again, and no bit of an answer changes by it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use secateur::signal::Signal;
use secateur::{
    Answer, Encoder, EncoderInfo, Encoding, Error, Precision, Reading, Request, RunError, Vlm,
    VlmBuilder,
};
use secateur_core::model::{Control, Encoded, Pixels};
use secateur_tests::golden;

fn builder(model: &str) -> VlmBuilder {
    Vlm::builder(golden().join("models").join(model)).precision(Precision::F32).threads(1)
}

/// The native tower, counting the clips that it encodes.
#[derive(Debug)]
struct Counting {
    inner: Box<dyn Encoder>,
    clips: Arc<AtomicUsize>,
}

impl Encoder for Counting {
    fn info(&self) -> &EncoderInfo {
        self.inner.info()
    }

    fn encode(
        &self,
        pixels: &[&Pixels],
        signals: &[Signal],
        control: &Control,
    ) -> Result<Encoded, RunError> {
        self.clips.fetch_add(pixels.len(), Ordering::SeqCst);
        assert!(signals.iter().all(Signal::is_of_tower), "{signals:?}");
        self.inner.encode(pixels, signals, control)
    }
}

/// A model whose tower counts, and the count.
fn counting(model: &str, reuse: usize) -> (Vlm, Arc<AtomicUsize>) {
    let clips = Arc::new(AtomicUsize::new(0));
    let count = clips.clone();
    let make = move |parts: secateur::EncoderParts<'_>| {
        let inner = secateur_encoders::vit::build(parts.spec, parts.weights, parts.ops.clone())
            .map_err(|e| Error::Encoder(e.to_string()))?;
        Ok(Box::new(Counting { inner, clips: count }) as Box<dyn Encoder>)
    };
    let vlm = builder(model).encoder(make).reuse(reuse).open().expect("the tiny model opens");
    (vlm, clips)
}

fn request(pictures: &[u8], chain: &str) -> Request {
    let request = Request::new("What is this?").max_tokens(3).ignore_eos().detail().chain(chain);
    pictures.iter().fold(request, |request, &seed| {
        let rgb: Vec<u8> = (0..64 * 48 * 3).map(|i| (i % 97) as u8 ^ seed).collect();
        request.rgb("shade", 64, 48, rgb).expect("a picture")
    })
}

fn ask(vlm: &Vlm, request: Request) -> Answer {
    vlm.session().ask(request).expect("it runs").finish().expect("it ends")
}

const TWELVE: [&str; 12] = [
    "none",
    "vtc_cls:keep=16",
    "vtc_cls:keep=32",
    "vflowopt:keep=16:encoder_layer=1",
    "vision_zip:keep=16",
    "div_prune:keep=16",
    "fastv:layer=1:keep=16",
    "fastv:layer=1:keep=32",
    "trans_prune:keep=32:layers=[1;2]",
    "grid:keep=16",
    "pool:keep=16",
    "random:keep=16",
];

#[test]
fn twelve_chains_encode_each_picture_once() {
    let (vlm, encoded) = counting("llava-1.5-tiny", 64 << 20);
    let (off, _) = counting("llava-1.5-tiny", 0);
    let reads: BTreeSet<Signal> =
        TWELVE.iter().flat_map(|c| vlm.resolve(*c).expect("a chain").signals()).collect();
    for (i, chain) in TWELVE.iter().enumerate() {
        let requests = |with: &BTreeSet<Signal>| {
            let of = |seed| request(&[seed], chain).also_read(with.iter().copied());
            [1, 2, 3].map(of).to_vec()
        };
        let fresh = off.batch(requests(&BTreeSet::new()));
        for (answer, fresh) in vlm.batch(requests(&reads)).into_iter().zip(fresh) {
            let (answer, fresh) = (answer.expect("it runs"), fresh.expect("it runs"));
            let expected = if i == 0 { Encoding::New } else { Encoding::Reused };
            assert_eq!(answer.report.reuse.encoded, expected, "{chain}");
            assert_eq!(answer.report.reuse.saved_ms > 0.0, i > 0, "{chain}");
            assert_eq!(fresh.report.reuse.encoded, Encoding::Off);
            assert_eq!(answer.ids, fresh.ids, "{chain}");
            assert_eq!(answer.report.logits, fresh.report.logits, "{chain}");
            let kept =
                |a: &Answer| a.report.stages.iter().map(|s| s.indices.clone()).collect::<Vec<_>>();
            assert_eq!(kept(&answer), kept(&fresh), "{chain}");
        }
    }
    assert_eq!(encoded.load(Ordering::SeqCst), 3);
}

#[test]
fn a_chain_that_reads_more_encodes_once_again_and_chains_do_not_take_turns() {
    let (vlm, encoded) = counting("llava-1.5-tiny", 64 << 20);
    let how = |chain: &str| ask(&vlm, request(&[1], chain)).report.reuse.encoded;
    let asked = ["none", "vtc_cls:keep=16", "vision_zip:keep=16", "vtc_cls:keep=8", "none"];
    use Encoding::{MoreSignals, New, Reused};
    assert_eq!(asked.map(how), [New, MoreSignals, MoreSignals, Reused, Reused]);
    assert_eq!(encoded.load(Ordering::SeqCst), 3);
    // What a run must not read, it does not see.
    let fresh = builder("llava-1.5-tiny").reuse(0).open().expect("it opens");
    for chain in asked {
        let (held, fresh) = (ask(&vlm, request(&[1], chain)), ask(&fresh, request(&[1], chain)));
        assert_eq!(held.report.logits, fresh.report.logits, "{chain}");
    }
}

#[test]
fn several_pictures_are_known_one_by_one_in_every_kind_of_tower() {
    for model in
        ["llava-1.5-tiny", "qwen2.5-vl-tiny", "qwen3-vl-tiny", "internvl-tiny", "smolvlm-tiny"]
    {
        let (vlm, encoded) = counting(model, 64 << 20);
        let fresh = builder(model).reuse(0).open().expect("it opens");
        let mut asked = 0;
        for (pictures, new) in
            [(&[1u8][..], 1), (&[1, 2], 1), (&[2, 1], 0), (&[3, 1, 4, 3], 2), (&[5, 6], 2)]
        {
            let held = ask(&vlm, request(pictures, "none"));
            asked += new;
            assert_eq!(encoded.load(Ordering::SeqCst), asked, "{model}: {pictures:?}");
            let fresh = ask(&fresh, request(pictures, "none"));
            assert_eq!(held.ids, fresh.ids, "{model}: {pictures:?}");
            assert_eq!(held.report.logits, fresh.report.logits, "{model}: {pictures:?}");
            let known = held.report.reuse.clips;
            let of_new = if new > 0 { Encoding::New } else { Encoding::Reused };
            assert_eq!(held.report.reuse.encoded, of_new, "{model}: {pictures:?}");
            assert!(known + new <= pictures.len(), "{model}: {pictures:?}");
        }
    }
}

#[test]
fn turns_of_a_chat_and_a_second_try_encode_nothing() {
    let (vlm, encoded) = counting("llava-1.5-tiny", 64 << 20);
    let mut session = vlm.session().chain("vtc_cls:keep=16");
    let turns = |n: usize| {
        let first = request(&[1], "vtc_cls:keep=16");
        (0..n).fold(first, |request, i| request.turn(format!("Question {i}?"), "An answer."))
    };
    for n in 0..5 {
        let report = session.ask(turns(n)).expect("it runs").finish().expect("it ends").report;
        assert_eq!(report.reuse.clips, usize::from(n > 0));
    }
    // A deadline that passes while the prompt is read, and the same again.
    let late = turns(5).deadline(std::time::Instant::now());
    assert!(matches!(session.ask(late), Err(Error::Cancelled { .. })));
    session.ask(turns(5)).expect("it runs").finish().expect("it ends");
    assert_eq!(encoded.load(Ordering::SeqCst), 1);
}

#[test]
fn a_bound_below_a_picture_holds_nothing() {
    let (vlm, encoded) = counting("llava-1.5-tiny", 100);
    for _ in 0..2 {
        assert_eq!(ask(&vlm, request(&[1], "none")).report.reuse.encoded, Encoding::New);
    }
    assert_eq!(encoded.load(Ordering::SeqCst), 2);
}

/// The answers of a conversation about two pictures; `is_new`: each turn in a session of its own.
/// What stands as the answer in later turns begins as the model said it, in every other one.
fn conversation(vlm: &Vlm, chain: &str, turns: usize, is_new: bool) -> Vec<Answer> {
    let mut session = vlm.session();
    let mut said: Vec<(String, String)> = Vec::new();
    let mut answers = Vec::new();
    for turn in 0..turns {
        let asked = request(&[1, 2], chain).max_tokens(3 + 2 * turn);
        let asked = said.iter().fold(asked, |request, (q, a)| request.turn(q, a));
        let answer = session.ask(asked).expect("it runs").finish().expect("it ends");
        let other = if turn % 2 == 0 { "" } else { "Some of them, " };
        said.push(("What is this?".to_owned(), format!("{other}{}", answer.text)));
        answers.push(answer);
        if is_new {
            session = vlm.session();
        }
    }
    answers
}

#[test]
fn later_turns_read_what_is_new_and_no_bit_changes() {
    let families = ["llava-1.5-tiny", "llava-next-tiny", "llava-onevision-tiny", "qwen2-vl-tiny"];
    let more = ["qwen2.5-vl-tiny", "qwen3-vl-tiny", "smolvlm-tiny", "internvl-tiny"];
    for model in families.into_iter().chain(more) {
        let held = builder(model).open().expect("it opens");
        let fresh = builder(model).reuse(0).open().expect("it opens");
        for chain in ["none", "grid:keep=9", "random:keep=9"] {
            let (reused, whole) =
                (conversation(&held, chain, 4, false), conversation(&fresh, chain, 4, true));
            for (turn, (a, b)) in reused.iter().zip(&whole).enumerate() {
                let place = format!("{model}, {chain}, turn {turn}");
                assert_eq!(a.ids, b.ids, "{place}");
                assert_eq!(a.report.logits, b.report.logits, "{place}");
                assert_eq!(a.report.visual_kept, b.report.visual_kept, "{place}");
                assert_eq!(a.report.prompt_tokens, b.report.prompt_tokens, "{place}");
                let (expected, reuse) =
                    (if turn == 0 { Reading::First } else { Reading::Continued }, a.report.reuse);
                assert_eq!(reuse.read, expected, "{place}");
                assert_eq!(b.report.reuse.read, Reading::Off, "{place}");
                if turn > 0 {
                    assert_eq!(a.report.ms.encode, 0.0, "{place}");
                    assert!(reuse.prompt_tokens > a.report.visual_in, "{place}");
                }
            }
        }
    }
}

#[test]
fn short_questions_and_few_kept_tokens_change_no_bit() {
    for (model, chain) in [
        ("llava-1.5-tiny", "none"),
        ("llava-1.5-tiny", "grid:keep=1"),
        ("qwen3-vl-tiny", "random:keep=1"),
    ] {
        let held = builder(model).open().expect("it opens");
        let fresh = builder(model).reuse(0).open().expect("it opens");
        let mut session = held.session();
        let asked = |turns: &[(&str, &str)]| {
            let request = request(&[1], chain).max_tokens(4);
            turns.iter().fold(request, |request, (q, a)| request.turn(*q, *a))
        };
        // The same again, one short turn more, and back.
        for turns in [&[][..], &[], &[("a", "b")], &[("a", "b"), ("c", "d")], &[("a", "b")], &[]] {
            let answer = session.ask(asked(turns)).expect("it runs").finish().expect("it ends");
            let whole = ask(&fresh, asked(turns));
            assert_eq!(answer.ids, whole.ids, "{model}, {chain}, {turns:?}");
            assert_eq!(answer.report.logits, whole.report.logits, "{model}, {chain}, {turns:?}");
        }
    }
}

#[test]
fn what_may_not_go_on_reads_everything_and_says_why() {
    let vlm = builder("llava-1.5-tiny").open().expect("it opens");
    let fresh = builder("llava-1.5-tiny").reuse(0).open().expect("it opens");
    let mut session = vlm.session();
    let mut read = |request: Request| {
        let whole = ask(&fresh, request.clone());
        let answer = session.ask(request).expect("it runs").finish().expect("it ends");
        assert_eq!(answer.report.logits, whole.report.logits);
        answer.report.reuse.read
    };
    let turn = |request: Request| request.turn("What?", "A thing.");
    assert_eq!(read(request(&[1], "none")), Reading::First);
    assert_eq!(read(turn(request(&[1], "none"))), Reading::Continued);
    assert_eq!(read(turn(request(&[2], "none"))), Reading::OtherPictures);
    assert_eq!(read(turn(request(&[2], "grid:keep=9"))), Reading::OtherChain);
    assert_eq!(read(turn(request(&[2], "grid:keep=9")).system("Be brief.")), Reading::OtherText);
    assert_eq!(read(request(&[2], "fastv:layer=1:keep=9")), Reading::OtherChain);
    assert_eq!(read(turn(request(&[2], "fastv:layer=1:keep=9"))), Reading::ReadsText);
    let itself = builder("paligemma-tiny").open().expect("it opens");
    let mut session = itself.session();
    for expected in [Reading::First, Reading::SeesItself] {
        let answer = session.ask(request(&[1], "none")).expect("it runs").finish();
        assert_eq!(answer.expect("it ends").report.reuse.read, expected);
    }
}

#[test]
fn the_turn_after_a_stopped_answer_goes_on_from_what_was_said() {
    let vlm = builder("llava-1.5-tiny").open().expect("it opens");
    let fresh = builder("llava-1.5-tiny").reuse(0).open().expect("it opens");
    let mut session = vlm.session();
    let stop = secateur::CancelToken::default();
    let long = request(&[1], "vtc_cls:keep=16").max_tokens(50).cancel(stop.clone());
    let mut stream = session.ask(long).expect("it runs");
    stream.next().expect("a piece").expect("text");
    stop.cancel();
    assert!(matches!(stream.finish(), Err(Error::Cancelled { partial: Some(_), .. })));
    let again = || request(&[1], "vtc_cls:keep=16").turn("What is this?", "Something.");
    let answer = session.ask(again()).expect("it runs").finish().expect("it ends");
    assert_eq!(answer.report.reuse.read, Reading::Continued);
    assert_eq!(answer.report.logits, ask(&fresh, again()).report.logits);
}
