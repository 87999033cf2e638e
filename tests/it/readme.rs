//! Prevents that what the README shows does not work when it is pasted.

use crate::bad::is_root;
use pagetide_tests::{Scratch, pagetide_path};
use std::process::{Command, Stdio};

/// The blocks of a page that are commands, in their order.
fn commands(page: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut rest = page;
    while let Some((_, block)) = rest.split_once("\n```sh\n") {
        let (block, after) = block.split_once("\n```").expect("the block has an end");
        blocks.push(block.to_owned());
        rest = after;
    }
    blocks
}

/// What whoever runs the tests has left open is not the program's.
const CLOSE_ALL: &str = r#"for fd in /proc/$$/fd/*; do
    fd=${fd##*/}
    if [ "$fd" -gt 2 ]; then eval "exec $fd>&-" || true; fi
done
"#;

#[test]
fn the_commands_of_the_readme_work_when_they_are_pasted() {
    let blocks = commands(include_str!("../../README.md"));
    assert_eq!(blocks.len(), 1, "{blocks:?}");
    if !is_root("the commands of the README") {
        return;
    }
    let scratch = Scratch::new();
    // Whatever the program under test is called.
    let programs = scratch.join("bin");
    std::fs::create_dir(&programs).expect("make a directory");
    let link = programs.join("pagetide");
    std::os::unix::fs::symlink(pagetide_path(), link).expect("make a link");
    let path = std::env::var("PATH").unwrap_or_default();
    for block in blocks {
        let output = Command::new("bash")
            .args(["-e", "-c", &format!("{CLOSE_ALL}{block}")])
            .current_dir(scratch.path())
            .env("PATH", format!("{}:{path}", programs.display()))
            .stdin(Stdio::null())
            .output()
            .expect("run bash");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: {said}{errors}", output.status);
        let counted: Vec<u32> = said.lines().filter_map(|line| line.parse().ok()).collect();
        let [before, after] = counted[..] else {
            panic!("two numbers: {said}{errors}")
        };
        assert!(after > 1 && after <= before + 4, "{said}");
        for what in [
            "a checkpoint can be restored",
            " full ",
            " delta ",
            "python3 count.py",
            "ok: 2 snapshots",
        ] {
            assert!(said.contains(what), "{what}: {said}{errors}");
        }
        assert!(errors.contains("is back as of snapshot 2"), "{errors}");
    }
}
