//! Memory that is refused: an error of the request or of the model's opening, after which the
//! process goes on; and what is forecast beside what is taken.
//!
//! The limit and the peak belong to the process: one test, one process.

use secateur::{Error, ErrorKind, Load, ModelSource, Precision, Request, Vlm, refuse_above};

#[test]
fn memory_that_is_refused_is_an_error_and_the_process_goes_on() {
    let open = || Vlm::builder(ModelSource::Embedded).precision(Precision::F32).open();
    refuse_above(100_000);
    let error = open().expect_err("no weight fits");
    refuse_above(usize::MAX);
    assert_eq!(error.kind(), ErrorKind::Memory, "{error}");

    let vlm = open().expect("a model");
    let request = || {
        let grey = vec![128u8; 64 * 64 * 3];
        Request::new("What?").rgb("grey", 64, 64, grey).expect("a picture").max_tokens(4)
    };
    let mut session = vlm.session();
    let mut ask = || session.ask(request())?.finish();
    let before = ask().expect("an answer");
    refuse_above(20_000);
    let (alone, batch) = (ask(), vlm.batch(vec![request(), request()]));
    refuse_above(usize::MAX);
    for refused in [alone].into_iter().chain(batch) {
        let error = refused.expect_err("no cache fits");
        assert!(matches!(error, Error::Memory(_)), "{error}");
        assert!(error.to_string().contains("smaller"), "{error}");
    }
    assert_eq!(ask().expect("an answer").text, before.text);

    let load = Load { requests: 8, max_tokens: 4, decoding_pixels: 4096, ..Load::default() };
    let answers = vlm.batch((0..8).map(|_| request()).collect());
    let peak = answers[0].as_ref().expect("an answer").report.peak_bytes;
    let forecast = vlm.forecast("none", &load).expect("a forecast");
    let within = peak / 2..peak * 2;
    assert!(peak == 0 || within.contains(&forecast.total()), "{peak} bytes taken, {forecast:?}");
    let limit = forecast.total();
    assert_eq!(vlm.most_requests("none", &load, limit).expect("a number"), Some(8));
    assert_eq!(vlm.most_requests("none", &load, forecast.weights).expect("a number"), None);
    let fewer = vlm.most_requests("vtc_cls:keep=16", &load, limit).expect("a number");
    assert!(fewer > Some(8), "{fewer:?}");
}
