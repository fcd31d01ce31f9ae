//! SIGINT and SIGTERM: the first asks the job to finish what is in flight, the second ends it. In a
//! conversation SIGINT stops the answer alone.
//!
//! Invariants
//! - The handler only sets flags; the job looks at them between tokens.
//! - The second signal ends the process at once with 130 or 143. No output is half-written then,
//!   because outputs appear by renaming (`write`) or as whole lines (`lines`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use secateur::CancelToken;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::outcome::Outcome;

/// What was asked from outside so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Signals {
    seen: Arc<AtomicUsize>,
}

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn install() -> std::io::Result<Self> {
        let signals = Self::default();
        let armed = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // Registered first, so that it sees the flag as the signal before left it.
            flag::register_conditional_shutdown(signal, 128 + signal, armed.clone())?;
        }
        for signal in [SIGINT, SIGTERM] {
            flag::register_usize(signal, signals.seen.clone(), signal as usize)?;
            flag::register(signal, armed.clone())?;
        }
        Ok(signals)
    }

    /// The outcome to end with, if a signal came.
    pub(crate) fn stop(&self) -> Option<Outcome> {
        match self.seen.load(Ordering::SeqCst) {
            0 => None,
            signal if signal == SIGTERM as usize => Some(Outcome::Terminated),
            _ => Some(Outcome::Interrupted),
        }
    }
}

/// SIGINT in a program that goes on: it stops what is running; if nothing is, it ends the program.
#[derive(Debug)]
pub(crate) struct Interrupts {
    stop: Arc<AtomicBool>,
    ends: Arc<AtomicBool>,
}

impl Interrupts {
    /// Installs the handler.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn install() -> std::io::Result<Self> {
        let (stop, ends) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
        flag::register_conditional_shutdown(SIGINT, 128 + SIGINT, ends.clone())?;
        flag::register(SIGINT, stop.clone())?;
        Ok(Self { stop, ends })
    }

    /// Runs `f`, which SIGINT stops through the token.
    pub(crate) fn during<T>(&self, f: impl FnOnce(CancelToken) -> T) -> T {
        self.stop.store(false, Ordering::SeqCst);
        self.ends.store(false, Ordering::SeqCst);
        let done = f(CancelToken::from(self.stop.clone()));
        self.ends.store(true, Ordering::SeqCst);
        done
    }
}
