//! From what was typed, and the pruners that chains may name, to an exit code.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::FromArgMatches;
use secateur::Registry;

use crate::args::{self, Cli, Command};
use crate::config::{self, Settings};
use crate::outcome::{Outcome, of_error};
use crate::output::Console;
use crate::{cmd, outcome};

/// Runs the command as it was typed, the program's name first, with `pruners` for chains, `eval`,
/// `tune` and `pruners` to name.
///
/// A program with pruners of its own is the whole command:
/// ```no_run
/// use secateur::{ChainError, Params, prune::Pruner};
/// # type Build = fn(&Params<'_>) -> Result<Box<dyn Pruner>, ChainError>;
///
/// # fn program(build: Build) -> std::process::ExitCode {
/// let mut pruners = secateur::pruners::registry();
/// pruners.insert("centre", build);
/// secateur_cli::run(pruners, std::env::args_os())
/// # }
/// ```
///
/// It reads the environment and configuration files as the command does, prints to the process's
/// standard streams, and may install handlers of signals: call it once, from `main`.
pub fn run(pruners: Registry, typed: impl IntoIterator<Item = OsString>) -> ExitCode {
    run_typed(pruners, &typed.into_iter().collect::<Vec<_>>()).into()
}

fn run_typed(pruners: Registry, typed: &[OsString]) -> Outcome {
    let (mut cli, settings) = match parse(typed) {
        Ok(parsed) => parsed,
        Err(error) => return refuse(&error),
    };
    if let Some(known) = cli.command.as_mut().and_then(Command::pruners_mut) {
        *known = pruners;
    }
    let console = Console::new(&cli.global);
    for warning in config::unknown_variables(&args::command()) {
        console.note(&warning);
    }
    let ended = dispatch(cli, &settings, &console);
    ended.unwrap_or_else(|error| {
        let (outcome, is_said) = of_error(&error);
        if is_said {
            console.error(&format!("{error:#}"));
        }
        outcome
    })
}

/// Two passes: the first finds the configuration file, the second has its values as defaults.
fn parse(typed: &[OsString]) -> Result<(Cli, Settings)> {
    let command = args::command();
    let first = command.clone().try_get_matches_from(typed)?;
    let named = first.get_one::<std::path::PathBuf>("config").cloned();
    let settings = Settings::read(&config::files(named.as_deref()), &command)?;
    let matches = settings.apply(command).try_get_matches_from(typed)?;
    Ok((Cli::from_arg_matches(&matches)?, settings))
}

fn refuse(error: &anyhow::Error) -> Outcome {
    let Some(error) = error.downcast_ref::<clap::Error>() else {
        let console = Console::plain();
        console.error(&format!("{error:#}"));
        return of_error(error).0;
    };
    // Help and version go to stdout and are no failure; a closed stdout is none either.
    let _ = error.print();
    if error.use_stderr() { Outcome::Usage } else { Outcome::Done }
}

fn dispatch(cli: Cli, settings: &Settings, console: &Console) -> Result<Outcome> {
    if cli.version {
        return cmd::doctor::version(console);
    }
    match cli.command {
        Some(Command::Caption(args)) => cmd::caption::run(&args, console),
        Some(Command::Ask(args)) => cmd::ask::run(&args, console),
        Some(Command::Chat(args)) => cmd::chat::run(&args, console),
        Some(Command::Explain(args)) => cmd::explain::run(&args, console),
        Some(Command::Inspect(args)) => cmd::inspect::run(&args, console),
        Some(Command::Trace(args)) => cmd::trace::run(&args, console),
        Some(Command::Bench(args)) => cmd::bench::run(&args, console),
        Some(Command::Eval(args)) => cmd::eval::run(&args, console),
        Some(Command::Tune(args)) => cmd::tune::run(&args, console),
        Some(Command::Calibrate(args)) => cmd::calibrate::run(&args, console),
        Some(Command::Tokens(args)) => cmd::tokens::run(&args, console),
        Some(Command::Models(args)) => cmd::models::run(&args, console),
        Some(Command::Pruners(args)) => cmd::pruners::run(&args, console),
        Some(Command::Presets(args)) => cmd::presets::run(&args, console),
        Some(Command::Man(args)) => cmd::man::run(&args, console),
        Some(Command::Doctor(args)) => cmd::doctor::run(&args, console),
        Some(Command::Config(args)) => cmd::config::run(&args, settings, console),
        Some(Command::Completions(args)) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut args::command(), "secateur", &mut script);
            console.result(&String::from_utf8_lossy(&script))?;
            Ok(Outcome::Done)
        }
        None => Err(outcome::usage("no command was given; `secateur --help` lists them")),
    }
}
