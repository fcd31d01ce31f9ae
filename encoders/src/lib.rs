//! Pictures and video in, rows of a vision tower out.
//!
//! Three steps, each of which knows nothing of the next:
//!
//! 1. [`image`]: bytes of a file to a [`secateur_core::clip::Clip`], within limits, plus the
//!    resamplers that give the reference's bits;
//! 2. [`processors`]: a clip to the [`secateur_core::model::Pixels`] that a family's tower wants,
//!    with the geometry that leads back to the source picture;
//! 3. [`vit`]: pixels to rows of the tower, with the signals that pruners read.
//!
//! Invariants
//! - No input panics: pictures give an [`secateur_core::error::InputError`], configurations a
//!   [`secateur_core::error::ConfigError`] that names the field, before a weight is read.
//! - The number of crops and of patches depends on the size of a picture alone, so tokens are
//!   counted without decoding it.
//!
//! Not here: projectors, prompts and token layout (the models crate).
#![cfg_attr(not(feature = "video"), forbid(unsafe_code))]
#![cfg_attr(feature = "video", deny(unsafe_code))]

#[cfg(feature = "candle")]
pub mod candle;
pub mod image;
#[cfg(feature = "onnx")]
pub mod onnx;
pub mod processors;
pub mod video;
pub mod vit;
