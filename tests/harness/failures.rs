//! A test that fails says why at once, on the standard error of the run itself: what libtest keeps of it comes
//! only after all other tests, and not at all if the run is cut short.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    static NEEDED: RefCell<String> = const { RefCell::new(String::new()) };
    /// How many calls of [`caught`] this thread is in.
    static CAUGHT: Cell<u32> = const { Cell::new(0) };
}

/// What `doing` gives, or what it panicked with: no failure of the test yet, and so nothing that is told.
pub fn caught<T>(doing: impl FnOnce() -> T) -> std::thread::Result<T> {
    CAUGHT.set(CAUGHT.get() + 1);
    let outcome = catch_unwind(AssertUnwindSafe(doing));
    CAUGHT.set(CAUGHT.get() - 1);
    outcome
}

/// Tells failures of this run as they happen, from now on.
pub(crate) fn tell_at_once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // The thread of a test has its name. In the first thread of a program a panic may well be caught.
            let is_told = |name: &&str| *name != "main" && CAUGHT.get() == 0;
            if let Some(name) = std::thread::current().name().filter(is_told) {
                let needed = NEEDED.with_borrow(String::clone);
                // Not by eprintln!, which libtest keeps.
                let _ = writeln!(std::io::stderr(), "FAILING {name}: {needed}{panic}");
            }
            usual(panic);
        }));
    });
}

/// What it takes to run the test of this thread again, told if it fails.
pub(crate) fn needed_again(what: &str) {
    tell_at_once();
    NEEDED.with_borrow_mut(|needed| *needed = format!("{what}: "));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prevents that the log of a run that is green shows failures, and that one which is not shows none.
    #[test]
    fn only_what_nobody_caught_is_told() {
        assert_eq!(caught(|| 1).ok(), Some(1));
        let outer = caught(|| {
            assert!(caught(|| panic!("inner")).is_err());
            assert_eq!(CAUGHT.get(), 1);
            panic!("outer")
        });
        assert!(outer.is_err());
        assert_eq!(CAUGHT.get(), 0);
    }
}
