//! The whole command with a pruner of your own in it: `caption`, `ask`, `explain`, `inspect`, `eval`,
//! `tune` and all others know it by name.
//!
//! `cargo run --release -p secateur-examples --bin own_command -- explain --prune centre:keep=64`

use std::process::ExitCode;

use secateur_examples::Centre;

fn main() -> ExitCode {
    let mut pruners = secateur::pruners::registry();
    pruners.insert("centre", Centre::build);
    secateur_cli::run(pruners, std::env::args_os())
}
