//! secateur runs vision-language models and prunes their visual tokens.
//!
//! Open a model ([`Vlm`]), ask in a [`Session`] or a batch, name a chain of pruners, and read in
//! the [`Report`] what was kept and what it cost. `docs/sdk.md` of the repository is a guide.
//!
//! ```
//! use secateur::{ModelSource, Request, Vlm};
//! let vlm = Vlm::builder(ModelSource::Embedded).open()?;
//! let chain = "vtc_cls:keep=64,fastv:layer=2:keep=0.5";
//! println!("{}", vlm.explain(chain)?);
//! let grey = vec![128u8; 160 * 120 * 3];
//! let mut session = vlm.session().chain(chain);
//! let request = Request::new("Describe the image.").rgb("grey", 160, 120, grey)?.max_tokens(4);
//! let answer = session.ask(request)?.finish()?;
//! assert_eq!(answer.report.visual_kept, 32);
//! # Ok::<(), secateur::Error>(())
//! ```
#![forbid(unsafe_code)]

mod answer;
mod batch;
mod chains;
mod cost;
mod embedded;
mod engine;
mod error;
mod forecast;
mod frames;
mod generate;
mod outline;
mod pipeline;
mod probe;
mod request;
mod resume;
mod reuse;
mod session;
mod source;
pub mod trace;
mod vlm;

pub use answer::{Answer, Report, Times};
pub use chains::{ChainSource, Setting, Stage, chain};
pub use cost::Cost;
pub use engine::{Engine, Progress, Ticket};
pub use error::{Error, ErrorKind};
pub use forecast::{Load, MemoryForecast};
pub use outline::Outline;
pub use request::Request;
pub use reuse::{Encoding, Reading, Reuse};
pub use secateur_core::chain::{Chain, ChainSpec, Params, Registry, ResolvedChain};
pub use secateur_core::clip::{Clip, Frame, Grid, Rect, VideoInfo};
pub use secateur_core::decode::{Allowed, AllowedTokens, FinishReason, Sampling};
pub use secateur_core::error::{ChainError, ConfigError, InputError, RunError, WeightsError};
pub use secateur_core::head::{AttentionRead, AttentionRows, Finished, Head, HeadOutput, Queried};
pub use secateur_core::memory::{OutOfMemory, refuse_above};
pub use secateur_core::model::{
    CancelToken, Encoder, EncoderInfo, ImageAspect, ImageBackend, ModelInfo, ProcessorOptions,
    TowerSpec,
};
pub use secateur_core::ops::{Ops, Precision, Reduction};
pub use secateur_core::prune;
pub use secateur_core::signal;
pub use secateur_core::stage::StageReport;
pub use secateur_core::testkit;
pub use secateur_core::tokens::{TokenKind, TokenMap, VisualToken};
pub use secateur_core::weights::Weights;
#[cfg(feature = "candle")]
pub use secateur_encoders::candle;
pub use secateur_encoders::image;
#[cfg(feature = "onnx")]
pub use secateur_encoders::onnx;
pub use secateur_encoders::processors::sampling::Policy;
pub use secateur_encoders::video::{self, Sampling as FrameSampling, VideoOptions};
pub use secateur_models::gguf::GgufPair;
pub use secateur_models::{ModelOptions, VideoAdvance};
pub use session::{Session, Stream};
pub use source::{ModelSource, hub_cache, hub_token_path};
pub use vlm::{EncoderParts, Vlm, VlmBuilder, parse_chain};

/// What an encoder of the caller is written with: see [`VlmBuilder::encoder`].
pub mod encoder {
    pub use secateur_core::clip::Grid;
    pub use secateur_core::error::RunError;
    pub use secateur_core::model::{
        Control, Encoded, Encoder, EncoderInfo, Pixels, SignalKind, TowerSpec,
    };
    pub use secateur_core::ops::Ops;
    pub use secateur_core::signal::{CropPixels, CropSignals, Signal};
    pub use secateur_core::tensor::Tensor;
    pub use secateur_core::weights::Weights;

    pub use crate::vlm::EncoderParts;
}

/// The crate of the arrays that [`Request::array`] takes and that signals are.
pub use ndarray;
/// The values that heads give ([`Head`]).
pub use secateur_core::serde_json;

/// The files of the built-in model.
pub use secateur_models::embedded as built_in;
/// Model families: what is known, what a folder holds.
pub use secateur_models::registry as families;
/// Named settings of published chains.
pub use secateur_pruners::presets;
/// The pruners by name, with their papers and parameters.
pub use secateur_pruners::registry as pruners;

/// The example of the page is compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/write-a-head.md")]
struct WriteAHead;
