//! The pruners by name: one line each.

use secateur_core::chain::{Params, Registry};
use secateur_core::error::ChainError;
use secateur_core::prune::Pruner;

pub use crate::parameters::Parameter;

/// What is known of a pruner without building it: for help, completions and docs.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Name in chains.
    pub name: &'static str,
    /// Where it comes from.
    pub paper: &'static str,
    /// What it does, in a line.
    pub summary: &'static str,
    /// Which signals it reads.
    pub reads: &'static str,
    /// Where it cuts.
    pub sites: &'static str,
    /// A chain entry that builds it.
    pub example: &'static str,
    /// Whether it takes the option `debias`.
    pub debias: bool,
    /// What may be written behind its name, in groups.
    pub parameters: &'static [&'static [Parameter]],
    /// Builds it from its parameters.
    pub build: fn(&Params<'_>) -> Result<Box<dyn Pruner>, ChainError>,
}

impl Entry {
    /// What may be written behind its name.
    pub fn parameters(&self) -> impl Iterator<Item = &'static Parameter> {
        self.parameters.iter().copied().flatten()
    }
}

/// All pruners of this crate: the papers' first, then rivals, then baselines.
pub static PRUNERS: &[Entry] = &[
    crate::vtc_cls::ENTRY,
    crate::trans_prune::ENTRY,
    crate::debias::ENTRY,
    crate::vla_pruner::ENTRY,
    crate::vflowopt::ENTRY,
    crate::fastv::ENTRY,
    crate::pyramid_drop::ENTRY,
    crate::vision_zip::ENTRY,
    crate::div_prune::ENTRY,
    crate::cd_pruner::ENTRY,
    crate::frame_diff::ENTRY,
    crate::random::ENTRY,
    crate::grid::ENTRY,
    crate::pool::ENTRY,
];

/// A registry of all of them, to which a user may add.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    for entry in PRUNERS {
        registry.insert(entry.name, entry.build);
    }
    registry
}

/// The row of a name.
pub fn find(name: &str) -> Option<&'static Entry> {
    PRUNERS.iter().find(|entry| entry.name == name)
}
