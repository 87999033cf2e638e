//! Prevents that what reads a store of somebody else could do more than that, if it were led to.

use crate::bad::is_root;
use pagetide_tests::{Scratch, Target, TestStore, pagetide_path};
use std::io::Read;
use std::process::{Command, Stdio};

/// CAP_DAC_READ_SEARCH: capabilities(7).
const READ_SEARCH: u64 = 1 << 2;

#[test]
fn commands_that_tell_what_is_in_a_store_can_read_and_nothing_else() {
    if !is_root("privilege to give up") {
        return;
    }
    let scratch = Scratch::new();
    let directory = scratch.path().to_str().expect("a plain path");
    let target = Target::start("many", ["protections", "3000", directory]);
    let store = TestStore::new();
    store.checkpoint(target.pid(), &[]);
    let mut child = Command::new(pagetide_path())
        .args(["show", &store.text(), "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start pagetide");
    let mut output = child.stdout.take().expect("its output");
    // It tells more than a pipe holds, so it waits for us now.
    output.read_exact(&mut [0]).expect("it tells something");
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
    let status = status.expect("it has not ended");
    let value = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        u64::from_str_radix(line.expect(key).trim(), 16).expect("a number")
    };
    for set in ["CapEff:", "CapPrm:"] {
        assert_eq!(value(set), READ_SEARCH, "{set} {status}");
    }
    assert_eq!((value("CapInh:"), value("NoNewPrivs:")), (0, 1), "{status}");
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).expect("read the rest");
    assert!(
        rest.len() > 200_000,
        "{} bytes could fit a pipe",
        rest.len()
    );
    assert!(child.wait().expect("it ends").success());
}
