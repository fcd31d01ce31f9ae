//! Heads: what turns a finished run into boxes, masks or actions. None yet; the place is here, and
//! [`HEADS`] is the table that a new one adds its row to.
//!
//! A head reads the generated ids, the token map with its geometry and, where it asks, final hidden
//! states, and nothing of the decoder.

use secateur_core::model::Head;

/// One head: its name in requests, and how it is made.
#[derive(Debug)]
pub struct HeadEntry {
    /// Name in requests and records.
    pub name: &'static str,
    /// Makes one.
    pub build: fn() -> Box<dyn Head>,
}

/// All heads.
pub static HEADS: &[HeadEntry] = &[];
