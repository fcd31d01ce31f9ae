//! Heads that come with the program: what turns a finished run into boxes, masks or actions. None yet;
//! the place is here, and [`HEADS`] is the table that a new one adds its row to. What a head sees is
//! [`secateur_core::head::Finished`].

use secateur_core::head::Head;

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
