//! The model that is part of the program: small, trained from scratch, used when no other is named.

use secateur_core::files::ModelFiles;
use secateur_core::weights::Weights;
use secateur_models::embedded::{FILES, WEIGHTS};

use crate::error::Error;

/// Its files and weights.
pub(crate) fn open() -> Result<(ModelFiles, Option<Weights>), Error> {
    let weights = Weights::from_static("embedded (built in)/model.safetensors", WEIGHTS)?;
    Ok((ModelFiles::embedded("embedded", FILES), Some(weights)))
}
