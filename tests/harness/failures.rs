//! A test that fails says why at once, on the standard error of the run itself: what libtest keeps of it comes
//! only after all other tests, and not at all if the run is cut short.

use std::cell::RefCell;
use std::io::Write;
use std::sync::Once;

thread_local! {
    static NEEDED: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Tells failures of this run as they happen, from now on.
pub(crate) fn tell_at_once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // The thread of a test has its name. In the first thread of a program a panic may well be caught.
            if let Some(name) = std::thread::current().name().filter(|name| *name != "main") {
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
