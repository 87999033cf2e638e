//! Prevents that a program goes on when it takes more memory than it may. Its end is the end of the program, so it is that of
//! another one: this test program once more, which is told by its environment what to do.

use pagetide_kernel::counted_memory::CountedMemory;
use std::hint::black_box;
use std::process::{Command, Output};

#[global_allocator]
static MEMORY: CountedMemory = CountedMemory::new();

const LIMIT: usize = 64 << 20;
const TAKES: &str = "PAGETIDE_TEST_TAKES";

/// This program in the place of the test below, with an allocation of so many bytes.
fn that_takes(bytes: usize) -> Output {
    let program = std::env::current_exe().expect("our own path");
    Command::new(program)
        .args([
            "--exact",
            "who_takes_more_than_allowed_is_ended_with_a_reason",
        ])
        .env(TAKES, bytes.to_string())
        .output()
        .expect("start it")
}

#[test]
fn who_takes_more_than_allowed_is_ended_with_a_reason() {
    if let Ok(bytes) = std::env::var(TAKES) {
        MEMORY.limit(LIMIT);
        let bytes = bytes.parse().expect("a number");
        drop(black_box(Vec::<u8>::with_capacity(bytes)));
        return;
    }
    assert!(that_takes(LIMIT / 2).status.success());
    let ended = that_takes(LIMIT);
    let says = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(3), "{says}");
    assert!(
        says.contains("than --memory-limit allows: raise it"),
        "{says}"
    );
}
