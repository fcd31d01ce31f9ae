//! Chains on every kind of vision tower: a cut reads what was planned for the tower in place, be it
//! the native one, an exported one (feature `onnx`, `ORT_DYLIB_PATH`) or one of the caller that
//! offers another set of layers.

use secateur::signal::Signal;
use secateur::{
    Answer, ChainError, Encoder, EncoderInfo, Error, Precision, Request, RunError, Vlm, VlmBuilder,
    parse_chain,
};
use secateur_core::model::{Control, Encoded, Pixels};
use secateur_tests::golden;

const MODEL: &str = "llava-1.5-tiny";

fn builder(model: &str) -> VlmBuilder {
    Vlm::builder(golden().join("models").join(model)).precision(Precision::F32).threads(1)
}

fn ask(vlm: &Vlm, chain: &str) -> Result<Answer, Error> {
    let picture = golden().join("images/shapes-160x120.png");
    let request = Request::new("What is this?").max_tokens(4).ignore_eos();
    let request = request.path(&picture)?.chain(parse_chain(chain)?);
    vlm.session().ask(request)?.finish()
}

/// One chain a pruner, as its registry row writes it.
fn chains() -> Vec<String> {
    secateur_pruners::PRUNERS.iter().map(|p| p.example.replace("keep=64", "keep=16")).collect()
}

/// Places that stay after the last cut.
fn kept(answer: &Answer) -> Vec<u32> {
    answer.report.stages.last().map(|s| s.indices.clone()).unwrap_or_default()
}

/// The native tower as a caller may wrap it: it gives signals of its first two layers alone, and
/// refuses to be asked for others.
#[derive(Debug)]
struct FirstTwo {
    inner: Box<dyn Encoder>,
    info: EncoderInfo,
}

impl Encoder for FirstTwo {
    fn info(&self) -> &EncoderInfo {
        &self.info
    }

    fn encode(
        &self,
        pixels: &[&Pixels],
        signals: &[Signal],
        control: &Control,
    ) -> Result<Encoded, RunError> {
        for layer in signals.iter().filter_map(Signal::encoder_layer) {
            assert!(
                self.info.full_attention_layers.contains(&layer),
                "layer {layer} was asked for"
            );
        }
        self.inner.encode(pixels, signals, control)
    }
}

fn with_first_two() -> Vlm {
    let make = |parts: secateur::EncoderParts<'_>| {
        let inner = secateur_encoders::vit::build(
            parts.spec,
            parts.weights,
            std::sync::Arc::clone(parts.ops),
        )
        .map_err(|e| Error::Encoder(e.to_string()))?;
        let info = EncoderInfo { full_attention_layers: vec![0, 1], ..inner.info().clone() };
        Ok(Box::new(FirstTwo { inner, info }) as Box<dyn Encoder>)
    };
    builder(MODEL).encoder(make).open().expect("the tiny model opens")
}

#[test]
fn every_pruner_reads_at_the_cut_what_it_planned_on_a_tower_of_the_caller() {
    let (native, own) = (builder(MODEL).open().expect("it opens"), with_first_two());
    let mut refused = Vec::new();
    for chain in chains() {
        let dense = ask(&native, &chain).unwrap_or_else(|e| panic!("{chain}: native: {e}"));
        match ask(&own, &chain) {
            Ok(answer) => {
                assert_eq!(answer.report.stages.len(), dense.report.stages.len(), "{chain}");
            }
            // A layer that the tower does not give is refused when the chain is planned.
            Err(Error::Chain(ChainError::MissingSignal { pruner, .. })) => refused.push(pruner),
            Err(other) => panic!("{chain}: {other}"),
        }
    }
    assert_eq!(refused, ["vision_zip"], "it reads the last layer");
    for (on_own, on_native) in [
        ("vtc_cls:keep=16", "vtc_cls:keep=16:ensemble_layers=2:end_layer=1"),
        ("vflowopt:keep=16", "vflowopt:keep=16:encoder_layer=1"),
    ] {
        let [own, native] =
            [ask(&own, on_own), ask(&native, on_native)].map(|a| a.expect("it runs"));
        assert_eq!(kept(&own), kept(&native), "{on_own}");
        assert_eq!(own.ids, native.ids, "{on_own}");
    }
}

#[cfg(feature = "onnx")]
mod exported {
    use super::*;

    /// A model with an exported tower; `None` without ONNX Runtime.
    fn open(model: &str) -> Option<Vlm> {
        let there = std::env::var_os("ORT_DYLIB_PATH").is_some();
        let required = std::env::var("SECATEUR_REQUIRE").unwrap_or_default();
        assert!(there || !required.contains("onnx"), "onnx is required: ORT_DYLIB_PATH is not set");
        let file = golden().join(format!("../../encoders/tests/golden/{model}.onnx"));
        there.then(|| {
            let vlm = builder(model).onnx_encoder(file, secateur::onnx::OnnxOptions::default());
            vlm.open().expect("the exported tower opens")
        })
    }

    #[test]
    fn every_pruner_keeps_on_an_exported_tower_what_it_keeps_on_the_native_one() {
        let Some(exported) = open(MODEL) else { return };
        let native = builder(MODEL).open().expect("it opens");
        let mut refused = Vec::new();
        for chain in chains() {
            let wanted = ask(&native, &chain).unwrap_or_else(|e| panic!("{chain}: native: {e}"));
            match ask(&exported, &chain) {
                Ok(answer) => {
                    assert_eq!(kept(&answer), kept(&wanted), "{chain}");
                    assert_eq!(answer.ids, wanted.ids, "{chain}");
                }
                Err(Error::Chain(ChainError::MissingSignal { pruner, .. })) => refused.push(pruner),
                Err(other) => panic!("{chain}: {other}"),
            }
        }
        assert_eq!(refused, ["vflowopt"], "a graph gives no attention maps");
    }

    #[test]
    fn an_export_of_too_few_layers_is_refused_with_the_flag_that_gives_them() {
        let Some(exported) = open("llava-onevision-tiny") else { return };
        let refused = |chain: &str| ask(&exported, chain).map(|_| ()).unwrap_err().to_string();
        let text = refused("vtc_cls:keep=8:fallback=column_mean");
        assert!(text.contains("export it again with `--signals 0 1 2`"), "{text}");
        let text = refused("vtc_cls:keep=8:fallback=column_mean:start_layer=0:end_layer=1");
        assert!(text.contains("`--signals 0 1`"), "{text}");
        ask(&exported, "vtc_cls:keep=8:fallback=column_mean:ensemble_layers=1")
            .expect("it is there");
    }
}
