//! Evaluation: accuracy and time of chains against the visual tokens they keep.
//!
//! [`questions`] reads what is asked, [`runs`] decides which chains are compared at which budgets,
//! [`measure`] asks and logs, [`report`] counts, and draws.
//!
//! Invariants
//! - `random` (several seeds), `grid` and `pool` are compared at every budget that anything else
//!   is compared at; the unpruned model is always there.
//! - An answer that cannot be scored is wrong, never left out; a question that failed in one run
//!   is left out of all, and counted.
//! - The log holds one line per run and question; a second run of the same command asks only what
//!   is missing.
//!
//! Not here: what a chain does (the SDK), how charts look ([`crate::plot`]).

mod interval;
mod measure;
mod questions;
mod report;
mod runs;
mod score;
mod tables;

pub(crate) use interval::difference;
pub(crate) use measure::{Job, Log, run};
pub(crate) use questions::{Question, folder, load};
pub(crate) use report::Report;
#[cfg(test)]
pub(crate) use runs::mean_tokens;
pub(crate) use runs::{Plan, at_budget, template};
