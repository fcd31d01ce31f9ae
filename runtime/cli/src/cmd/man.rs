//! `man`: manual pages, made from the flags as they are.

use std::path::Path;

use anyhow::{Context, Result};
use clap_mangen::Man;
use secateur_core::chain::nearest_first;

use crate::args::{self, ManArgs};
use crate::outcome::{Outcome, usage};
use crate::output::Console;
use crate::write::replace_one;

/// Runs the command.
///
/// # Errors
/// A command that is not known, a folder that cannot be written.
pub(crate) fn run(args: &ManArgs, console: &Console) -> Result<Outcome> {
    let mut command = args::command().version(env!("CARGO_PKG_VERSION"));
    command.build();
    if let Some(folder) = &args.out {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        write(&command, folder)?;
        return Ok(Outcome::Done);
    }
    let shown = match args.command.as_deref() {
        None | Some("secateur") => &command,
        Some(name) => command.find_subcommand(name).ok_or_else(|| {
            let known = nearest_first(name, command.get_subcommands().map(clap::Command::get_name));
            usage(format!("no command `{name}`; known are {}", known.join(", ")))
        })?,
    };
    console.result(&String::from_utf8_lossy(&page(shown)?))?;
    Ok(Outcome::Done)
}

fn page(command: &clap::Command) -> Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page).context("a manual page cannot be made")?;
    Ok(page)
}

/// The page of a command and those of its subcommands.
fn write(command: &clap::Command, folder: &Path) -> Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let path = folder.join(format!("{name}.1"));
    replace_one(&path, &page(command)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let shown = command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help");
    shown.map(|sub| write(sub, folder)).collect()
}
