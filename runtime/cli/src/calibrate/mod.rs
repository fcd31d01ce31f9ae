//! The positional trend of a model's attention: measured, fitted, written for `debias`.
//!
//! Method: "Attention Debiasing for Token Pruning in Vision-Language Models" (2025, arXiv
//! 2508.17807): attention on visual tokens rises with their raster index whatever the picture
//! shows; the mean over many pictures and prompts is that trend, scores are divided by it. The
//! release has fitted weights and no program; this fits the three forms that
//! `debias = { trend = .. }` reads.
//!
//! [`recorder`] is a pruner that keeps everything and writes down what it sees: no other part of
//! the runtime knows of it. [`fit`] fits.
//!
//! Invariants
//! - Padding (tokens that are picture to less than a half) and structural tokens count nowhere.
//! - A trend is positive between 0 and 1.

mod fit;
mod recorder;

pub(crate) use fit::{Form, Trend, fit};
pub(crate) use recorder::{Curve, Reads, Recorder};
