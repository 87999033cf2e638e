//! Prevents that a backend misses a page on a kernel that it is offered for: each backend by itself takes
//! snapshots of processes that change, and each snapshot is what the process held. A test stands in a
//! module named after its backend; a backend that cannot be used here says so.

use crate::churn::one_shot;
use pagetide::{Checkpointer, Mode, Options, Request};
use pagetide_snapshot::Store;
use pagetide_tests::{Scratch, Target, TestStore, epochs, list, number, pagetide, skipped, text};
use pagetide_tracker::Backend;

/// Why `backend` cannot be used here, by the word of `pagetide probe`.
fn refusal(backend: &str) -> Option<String> {
    let probe = pagetide(["probe", "--json"]).done().json();
    let backends = list(&probe, "backends");
    let offered = backends.iter().find(|offered| offered["name"] == backend);
    let offered = offered.unwrap_or_else(|| panic!("no backend {backend} in {probe}"));
    (offered["usable"] != true).then(|| text(offered, "reason").to_owned())
}

/// The pages of one mapping are written here and there; the deltas hold them, and few others.
fn a_delta_holds_what_was_written(backend: &str) {
    let store = TestStore::new();
    let mut target = Target::start("writer", ["2"]);
    let more = ["--backend", backend];
    let full = store.checkpoint(target.pid(), &more);
    assert_eq!(text(&full, "kind"), "full");
    assert!(number(&full, "stored_pages") >= 512, "{full}");
    for round in 0..4u64 {
        let (first, count) = (round * 120, 1 + round * 30);
        target.ask(&format!("noise {first} {count} {}", round + 1));
        let frozen = target.freeze();
        let (delta, _) = store.checkpoint_exactly(&frozen, &more, round % 2 == 1);
        assert_eq!(text(&delta, "kind"), "delta", "{delta}");
        assert_eq!(text(&delta, "backend"), backend);
        let stored = number(&delta, "stored_pages");
        // The target's stack, its C library and the answer's buffer change, too.
        assert!((count..count + 40).contains(&stored), "{delta}");
    }
    store.assert_sound();
}

/// A process changes its memory in all ways there are.
fn every_change_is_in_the_next_snapshot(backend: &str) {
    one_shot(backend, epochs(24), &[&["--backend", backend]]);
}

/// After `detach` the process has nothing of ours, and the next snapshot is complete.
fn detached_and_begun_again(backend: &str) {
    let (files, store) = (Scratch::new(), TestStore::new());
    let mut target = Target::start("churn", ["7", files.path().to_str().expect("a plain path")]);
    let more = ["--backend", backend];
    store.checkpoint(target.pid(), &more);
    pagetide(["detach", &target.pid_text()]).done();
    target.ask("count");
    let frozen = target.freeze();
    store.checkpoint_exactly(&frozen, &more, false);
    drop(frozen);
    assert!(target.is_alive());
}

/// Reading soft-dirty bits and clearing them are two steps: what is written between them would be lost if the process ran.
fn copies_while_it_runs_only_if_nothing_is_lost(backend: &str) {
    let directory = Scratch::new();
    let target = Target::start("writer", ["4"]);
    let store = Store::create_directory(directory.path().join("store")).expect("a new store");
    let mut options = Options::default();
    options.backend = Backend::ALL.into_iter().find(|of| of.name() == backend);
    options.mode = Mode::Precopy;
    let mut checkpointer =
        Checkpointer::attach(target.pid(), store, options).expect("attach to the target");
    let report = checkpointer.take(Request::default()).expect("a snapshot");
    let (all, stopped) = (report.written_pages.0, report.window_pages.0);
    assert!(all > 1024, "{report:?}");
    match backend {
        // Of the four MiB nearly all.
        "wp-async" => assert!(stopped + 1000 < all, "{report:?}"),
        _ => assert_eq!(stopped, all, "{report:?}"),
    }
}

macro_rules! under_each_backend {
    ($($module:ident $backend:literal: $($test:ident)*;)*) => {$(
        mod $module {
            $(#[test]
            fn $test() {
                if let Some(reason) = super::refusal($backend) {
                    let test = concat!(stringify!($module), "::", stringify!($test));
                    return super::skipped(test, &reason);
                }
                super::$test($backend);
            })*
        }
    )*};
}

under_each_backend! {
    wp_async "wp-async": a_delta_holds_what_was_written every_change_is_in_the_next_snapshot detached_and_begun_again copies_while_it_runs_only_if_nothing_is_lost;
    soft_dirty "soft-dirty": a_delta_holds_what_was_written every_change_is_in_the_next_snapshot detached_and_begun_again copies_while_it_runs_only_if_nothing_is_lost;
    rehash "rehash": a_delta_holds_what_was_written every_change_is_in_the_next_snapshot detached_and_begun_again copies_while_it_runs_only_if_nothing_is_lost;
}
