//! Published settings as chain files, compiled in: `--prune preset:vtc-cls-llava1.5-64`.
//!
//! One file a setting in `presets/`, named after paper, model and budget, with the paper's figure
//! and its source in a comment.

use secateur_core::chain::{ChainSpec, nearest_first};
use secateur_core::error::ChainError;

macro_rules! files {
    ($($name:literal,)*) => {
        &[$(($name, include_str!(concat!("../presets/", $name, ".toml"))),)*]
    };
}

/// Name and text of every preset, by name.
static FILES: &[(&str, &str)] = files![
    "debiased-fastv-llava1.5-128",
    "debiased-pyramid-drop-llava1.5-128",
    "div-prune-llava1.5-56",
    "fastv-llava1.5-k2-r50",
    "fastv-llava1.5-k2-r75",
    "fastv-llava1.5-k3-r50",
    "pyramid-drop-llava1.5",
    "trans-prune-llava-next-high",
    "trans-prune-llava1.5-high",
    "trans-prune-llava1.5-low",
    "vflowopt-onevision-10",
    "vflowopt-onevision-25",
    "vflowopt-onevision-50",
    "vision-zip-llava1.5-128",
    "vision-zip-llava1.5-192",
    "vision-zip-llava1.5-64",
    "vision-zip-trans-prune-llava1.5-192",
    "vision-zip-trans-prune-llava1.5-288",
    "vla-pruner-openvla-12.5",
    "vla-pruner-openvla-25",
    "vla-pruner-openvla-50",
    "vla-pruner-openvla-oft-12.5",
    "vla-pruner-openvla-oft-50",
    "vtc-cls-llava1.5-128",
    "vtc-cls-llava1.5-256",
    "vtc-cls-llava1.5-64",
];

/// Names of all presets, ascending.
pub fn names() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|(name, _)| *name)
}

/// The chain file of a preset, comments included.
///
/// # Errors
/// An unknown name; the error lists the nearest ones.
pub fn text(name: &str) -> Result<&'static str, ChainError> {
    FILES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text).ok_or_else(|| {
        let mut nearest = nearest_first(name, names());
        nearest.truncate(3);
        ChainError::Parse {
            text: format!("preset:{name}"),
            reason: format!("no preset of that name; nearest are {}", nearest.join(", ")),
        }
    })
}

/// A preset as a chain.
///
/// # Errors
/// As [`text`].
pub fn get(name: &str) -> Result<ChainSpec, ChainError> {
    ChainSpec::from_toml(&format!("preset:{name}"), text(name)?)
}
