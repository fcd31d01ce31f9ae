//! Visual token pruners for secateur: one file a pruner, one line each in [`mod@registry`].
//!
//! Invariants
//! - A pruner reads only what it declared in its plan; its result depends on that, on its
//!   parameters and on its own memory.
//! - Scores are f32. Equal scores: the lower index wins. NaN or infinity in a signal is an error
//!   that names it.
//! - Each paper's pruner equals the released code; every deviation has an id of the project's
//!   notes in the header of its file, and is either the stated default or a named parameter.
//!
//! Not here: the contract and the loop that runs it (`secateur-core`).
#![forbid(unsafe_code)]

pub mod cd_pruner;
pub mod debias;
pub mod div_prune;
pub mod diversity;
pub mod fastv;
pub mod frame_diff;
pub mod grid;
pub mod lattice;
pub mod pool;
pub mod presets;
pub mod pyramid_drop;
pub mod random;
pub mod registry;
pub mod score;
pub mod trans_prune;
pub mod vflowopt;
pub mod vision_zip;
pub mod vla_pruner;
pub mod vtc_cls;

mod options;
mod parameters;
mod schedule;

pub use registry::{Entry, PRUNERS, Parameter, registry};
