//! Picture files to RGB, and RGB to other sizes.
//!
//! Invariants
//! - Limits are checked against the header before a pixel is decoded; decoders run under
//!   `catch_unwind`.
//! - A decoded picture is RGB8, upright (EXIF), and opaque (transparency lies over white).
//! - [`resize`] gives the bits of the reference's resamplers, on any number of threads.
//!
//! Not here: what a model wants done with the pixels ([`crate::processors`]).

mod axis;
mod bitmap;
mod colour;
mod decode;
mod limits;
mod orient;
mod read;
mod resize;
mod sink;

pub use axis::Filter;
pub use bitmap::{Bitmap, Canvas};
pub use decode::{FORMATS, Header, decode, from_dynamic, load, probe, probe_bytes};
pub use limits::Limits;
#[cfg(feature = "video")]
pub(crate) use orient::turned;
pub use resize::{Window, resize, resize_window};
