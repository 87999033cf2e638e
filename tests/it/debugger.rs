//! Prevents that a core export is something a debugger cannot open, or shows other threads, registers
//! or variables than the process had.

use pagetide_tests::{Target, TestStore, compiled, pagetide, skipped};
use std::process::Command;

fn gdb(core: &str, commands: &[&str]) -> Option<String> {
    let mut gdb = Command::new("gdb");
    gdb.args(["-batch", "-nx", "-ex", "set pagination off"]);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    gdb.arg(compiled("debuggee")).arg(core);
    let output = gdb.output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Some(format!(
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    ))
}

#[test]
fn gdb_opens_a_core_with_all_threads() {
    let store = TestStore::new();
    let target = Target::start("debuggee", [""; 0]);
    store.checkpoint(target.pid(), &[]);
    // A delta, too: registers and memory come from different snapshots of the chain.
    store.checkpoint(target.pid(), &[]);
    let core = store.scratch().join("core");
    let core = core.to_str().expect("a plain path");
    pagetide(["export", &store.text(), "--format", "core", "-o", core]).done();
    let commands = [
        "info threads",
        "thread apply all bt",
        "print known_global",
        "print known_ratio",
        "thread apply all print $xmm5.v4_int32",
    ];
    let Some(said) = gdb(core, &commands) else {
        return skipped("gdb_opens_a_core_with_all_threads", "there is no gdb");
    };
    let count = |what: &str| said.matches(what).count();
    for number in 1..=3 {
        let frame = format!("stand_still (number={number})");
        assert!(count(&frame) >= 1, "no {frame}: {said}");
        assert!(count(&format!("middle (number={number})")) >= 1, "{said}");
        let vector = format!(
            "{{{}, {}, {}, {}}}",
            1000 + number,
            2000 + number,
            3000 + number,
            4000 + number
        );
        assert_eq!(count(&vector), 1, "no {vector}: {said}");
    }
    assert!(count("thread_body (argument=") >= 3, "{said}");
    assert!(
        count("in main ()") >= 1 || count("main () at") >= 1,
        "{said}"
    );
    assert!(
        said.contains("= 424242") && said.contains("= 2.5"),
        "{said}"
    );
    assert!(said.contains(&format!("LWP {}", target.pid())), "{said}");
    // Of the whole vector state gdb before 14 knows only one layout, and says so of cores that the
    // kernel writes on other processors, too.
    let warnings = said.lines().filter(|line| line.starts_with("warning: "));
    let others: Vec<_> = warnings
        .filter(|line| !line.contains(".reg-xstate/"))
        .collect();
    assert!(others.is_empty(), "gdb is not content: {others:?}");
}
