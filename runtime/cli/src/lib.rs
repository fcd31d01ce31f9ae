//! The command `secateur`: reads flags, runs one command, prints its results. [`run`] is all that
//! is public: the command, for programs that have pruners of their own.
//!
//! `args` (what was typed) -> `config` (files and environment) -> `job` (resolved and checked) ->
//! `cmd` (run) -> `outcome` (exit code). Nothing below `job` reads arguments, the terminal or,
//! but for the hub's own variables (`hub`), the environment; everything is printed by `output`.
#![forbid(unsafe_code)]

mod args;
mod calibrate;
mod chat;
mod cmd;
mod config;
mod eval;
mod failure;
mod feed;
mod fingerprint;
mod harmless;
mod hub;
mod identity;
mod inspect;
mod job;
mod journal;
mod lines;
mod lock;
mod memory;
mod named;
mod outcome;
mod output;
mod own;
mod plot;
mod record;
mod run;
mod signals;
mod skipped;
mod state;
#[cfg(feature = "testkit")]
pub mod testkit;
mod tune;
mod video;
mod walk;
mod write;

pub use run::run;
