//! Allocations whose size comes from files: one that is refused is an error of the request.
//!
//! Weights, caches and hidden states are as large as configurations, prompts and pictures say, so
//! that running out of memory is no bug. Before such an allocation [`ensure`] asks for it; a
//! refusal unwinds with [`OutOfMemory`] (past the panic hook: nothing is printed), and whoever
//! guards requests turns that into an error.
//!
//! Invariants
//! - Nothing is held by a check: the memory that was asked for is given back at once.
//! - Operations need not be told apart into those that can fail: they are called under a guard.

use std::any::Any;
use std::fmt;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Smaller ones are not asked for: where they fail, nothing else works either.
const SMALLEST: usize = 1 << 20;

/// No allocation may be larger, bytes.
static MOST: AtomicUsize = AtomicUsize::new(usize::MAX);

/// An allocation was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    /// What was asked for, bytes.
    pub bytes: usize,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of memory were refused", self.bytes)
    }
}

impl std::error::Error for OutOfMemory {}

impl OutOfMemory {
    /// What unwound, if it was a refusal.
    pub fn of(panic: &(dyn Any + Send)) -> Option<Self> {
        panic.downcast_ref::<Self>().copied()
    }

    /// Unwinds with a refusal.
    pub fn refuse(bytes: usize) -> ! {
        resume_unwind(Box::new(Self { bytes }))
    }
}

/// Unwinds with [`OutOfMemory`] if that many bytes cannot be had in one piece.
pub fn ensure(bytes: usize) {
    let is_allowed = bytes <= MOST.load(Ordering::Relaxed);
    if !is_allowed || (bytes >= SMALLEST && Vec::<u8>::new().try_reserve_exact(bytes).is_err()) {
        OutOfMemory::refuse(bytes);
    }
}

/// [`ensure`] for `len` values of a type, whose bytes may be more than a number holds.
pub fn ensure_of<T>(len: usize) {
    ensure(len.saturating_mul(size_of::<T>()));
}

/// Refuses every later allocation above that size, whoever makes it: for tests of what happens
/// then, and for programs that would rather fail than swap. `usize::MAX` refuses none.
pub fn refuse_above(bytes: usize) {
    MOST.store(bytes, Ordering::Relaxed);
}
