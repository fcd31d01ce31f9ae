//! A boundary around libraries that may panic on what a file says.
//!
//! Invariants
//! - A panic inside [`guarded`] is an error of the caller and prints nothing.
//! - Panics elsewhere are reported as before: the hook that was set stays behind this one.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Calls of [`guarded`] that this thread is in.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// What `run` gives, or the words of its panic.
///
/// # Errors
/// If it panics.
pub(crate) fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    quiet();
    DEPTH.set(DEPTH.get() + 1);
    // What `run` touched is dropped by the caller, who gets an error.
    let done = catch_unwind(AssertUnwindSafe(run));
    DEPTH.set(DEPTH.get() - 1);
    done.map_err(|panic| words(&*panic).to_owned())
}

/// The words of a panic.
pub(crate) fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason given")
}

/// Sets, once, a hook that says nothing of guarded panics.
fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            if DEPTH.get() == 0 {
                before(info);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_words() {
        assert_eq!(guarded(|| 3), Ok(3));
        assert_eq!(guarded(|| -> u8 { panic!("plain") }), Err("plain".into()));
        assert_eq!(guarded(|| -> u8 { panic!("of {}", 2) }), Err("of 2".into()));
        assert_eq!(DEPTH.get(), 0);
    }
}
