//! `tokens`.

use anyhow::Result;

use crate::args::TokensArgs;
use crate::outcome::Outcome;
use crate::output::Console;

pub(crate) fn run(_args: &TokensArgs, _console: &Console) -> Result<Outcome> {
    Err(anyhow::anyhow!("not built yet"))
}
