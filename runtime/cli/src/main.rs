//! The program `secateur`.

fn main() -> std::process::ExitCode {
    secateur_cli::run(secateur::pruners::registry(), std::env::args_os())
}
