//! Prevents that the plainest use does not work: two commands from a shell must give a full snapshot
//! and a delta.

use pagetide_tests::{Scratch, Target, number, pagetide, text};

#[test]
fn the_second_checkpoint_is_a_delta() {
    let scratch = Scratch::new();
    let store = scratch.join("store");
    let mut target = Target::start("writer", ["8"]);
    let pid = target.pid_text();
    let words = [
        "checkpoint",
        &pid,
        "--store",
        store.to_str().unwrap(),
        "--json",
    ];
    let first = pagetide(words).done().json();
    assert_eq!(text(&first, "kind"), "full");
    target.ask("write 100 10 7");
    let second = pagetide(words).done().json();
    assert_eq!(text(&second, "kind"), "delta", "{second}");
    let pages = number(&second, "stored_pages");
    assert!((10..200).contains(&pages), "{second}");
    assert!(target.is_alive());
}
