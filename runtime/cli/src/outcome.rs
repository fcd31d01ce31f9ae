//! How a run ends: the one place where results and errors become exit codes.
//!
//! Invariants
//! - Every code that the command can exit with is a variant of [`Outcome`].
//! - A closed stdout (`| head`) is not an error: it ends with 0 and says nothing.

use std::fmt;
use std::process::ExitCode;

use secateur_core::error::{ChainError, RunError};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Everything selected is done.
    Done,
    /// The job could not start or go on.
    Failed,
    /// A flag, a configuration file, or a chain that does not fit the model.
    Usage,
    /// Finished; some items failed and are listed.
    SomeFailed,
    /// Stopped by `--max-failures` or `--fail-fast`.
    Stopped,
    /// SIGINT; running the same command again goes on.
    Interrupted,
    /// SIGTERM; running the same command again goes on.
    Terminated,
}

impl Outcome {
    /// The process's exit code.
    pub(crate) fn code(self) -> u8 {
        match self {
            Outcome::Done => 0,
            Outcome::Failed => 1,
            Outcome::Usage => 2,
            Outcome::SomeFailed => 3,
            Outcome::Stopped => 4,
            Outcome::Interrupted => 130,
            Outcome::Terminated => 143,
        }
    }
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        ExitCode::from(outcome.code())
    }
}

/// Something that was typed or configured cannot be used.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// The reader of stdout went away.
#[derive(Debug)]
pub(crate) struct StdoutClosed;

impl fmt::Display for StdoutClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stdout was closed")
    }
}

impl std::error::Error for StdoutClosed {}

/// A usage error as `anyhow` carries it.
pub(crate) fn usage(message: impl Into<String>) -> anyhow::Error {
    UsageError(message.into()).into()
}

/// The outcome that an error stands for; `None` if there is nothing to say.
pub(crate) fn of_error(error: &anyhow::Error) -> (Outcome, bool) {
    for cause in error.chain() {
        if cause.is::<StdoutClosed>() {
            return (Outcome::Done, false);
        }
        let is_chain = cause.is::<ChainError>()
            || matches!(cause.downcast_ref::<RunError>(), Some(RunError::Chain(_)))
            || matches!(cause.downcast_ref::<secateur::Error>(), Some(secateur::Error::Chain(_)));
        if cause.is::<UsageError>() || is_chain {
            return (Outcome::Usage, true);
        }
    }
    (Outcome::Failed, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_that_does_not_fit_is_a_usage_error() {
        let error = ChainError::UnknownPruner { found: "x".into(), known: "y".into() };
        let error = anyhow::Error::from(error).context("while planning");
        assert_eq!(of_error(&error), (Outcome::Usage, true));
    }

    #[test]
    fn a_closed_stdout_ends_quietly() {
        assert_eq!(of_error(&anyhow::Error::from(StdoutClosed)), (Outcome::Done, false));
    }

    #[test]
    fn anything_else_is_a_failed_job() {
        assert_eq!(of_error(&anyhow::anyhow!("no space")), (Outcome::Failed, true));
    }
}
