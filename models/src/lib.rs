//! Model families of secateur: what stands between a vision tower and a runtime.
//!
//! A family supplies layout, prompt, projection, positions and a decoder ([`registry::load`]); the
//! runtime owns the loop and the encoders own the towers. One file a family, shared blocks below
//! [`blocks`], one row a family in [`registry::FAMILIES`].
#![forbid(unsafe_code)]

pub mod adapter;
pub mod blocks;
mod config;
pub mod embedded;
mod error;
pub mod gguf;
pub mod heads;
pub mod registry;
pub mod shapes;
pub mod text;
pub mod weights;

mod internvl;
mod llava;
mod llava_next;
mod llava_onevision;
mod paligemma;
mod qwen2_vl;
mod qwen3_vl;
mod smolvlm;

pub use config::{ModelOptions, VideoAdvance};
pub use error::LoadError;
pub use registry::{Description, FAMILIES, FamilyEntry, LoadedModel, describe, load};
