//! The commands, one file each. A command takes its flags and the console and gives an outcome.

pub(crate) mod ask;
pub(crate) mod bench;
mod bench_captions;
mod bench_turns;
pub(crate) mod calibrate;
pub(crate) mod caption;
pub(crate) mod chat;
pub(crate) mod config;
pub(crate) mod doctor;
pub(crate) mod eval;
pub(crate) mod explain;
pub(crate) mod inspect;
pub(crate) mod man;
pub(crate) mod models;
pub(crate) mod presets;
pub(crate) mod pruners;
pub(crate) mod tokens;
pub(crate) mod trace;
pub(crate) mod tune;
