//! Search of a pruner's parameters for a model and a budget.
//!
//! Method: the discrepancy of "VFlowOpt: A Token Pruning Framework for LMMs with Visual Information
//! Flow-Guided Optimization" (ICCV 2025): for each prompt, the cosine between the final hidden
//! states of the last prompt token (after the final norm) with and without pruning; NaN counts as
//! 0; the mean over prompts is maximised. No labels are needed. The paper searches with a Gaussian
//! process; [`search`] says what is used here and how the two compare.
//!
//! [`space`] holds what is searched for each pruner, [`objective`] the discrepancy, [`log`] what
//! makes a search resumable.
//!
//! Invariants
//! - The same seed, prompts and space give the same proposals, so that a log can be replayed.
//! - Every proposal meets the budget: mean visual tokens over decoder layers.
//! - Pictures on which the result is compared with the untuned setting were not searched on.

mod log;
mod objective;
mod search;
mod space;

pub(crate) use log::{Log, Tried};
pub(crate) use objective::{Objective, split};
pub(crate) use search::{Search, Strategy, solve};
pub(crate) use space::Space;
