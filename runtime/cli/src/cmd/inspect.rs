//! `inspect`.

use anyhow::Result;

use crate::args::InspectArgs;
use crate::outcome::Outcome;
use crate::output::Console;

pub(crate) fn run(_args: &InspectArgs, _console: &Console) -> Result<Outcome> {
    Err(anyhow::anyhow!("not built yet"))
}
