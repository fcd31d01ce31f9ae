//! `bench`.

use anyhow::Result;

use crate::args::BenchArgs;
use crate::outcome::Outcome;
use crate::output::Console;

pub(crate) fn run(_args: &BenchArgs, _console: &Console) -> Result<Outcome> {
    Err(anyhow::anyhow!("not built yet"))
}
