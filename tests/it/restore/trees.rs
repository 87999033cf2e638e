//! Prevents that processes which belong together are not of one instant any more: that a line in a pipe between them is
//! lost or doubled, that a child is not its parent's, or that the files of a database do not fit its memory.

use pagetide_tests::{Scratch, Steps, Subject, cycle};
use std::process::Command;

#[test]
fn a_pipeline_of_a_shell() {
    const PIPELINE: &str = r#"
        number=0
        while :; do
            number=$((number + 1))
            echo "$number"
            sleep 0.005
        done | sed -u 's/$/ passed/' | while read -r number word; do
            echo "$number $word" >>"$0"
        done"#;
    let scratch = Scratch::new();
    let mut command = Command::new("bash");
    command.args(["-c", PIPELINE]).arg(scratch.join("log"));
    let mut subject = Subject::start(&command, scratch).checkpoint_with(&["--tree"]);
    let truth = (1..100_000_u64).map(|number| format!("{number} passed"));
    let schedule = ["--every", "80ms", "--count", "3"];
    cycle(
        &mut subject,
        &mut Steps::new(10).expecting(truth.collect()),
        &schedule,
    );
}

#[test]
fn children_that_have_ended() {
    // Whoever starts the restore has blocked what tells of their ends, and what ended some of them.
    let blocking = ["env", "--block-signal=CHLD", "--block-signal=TERM"];
    let mut subject = Subject::target("ended", &[])
        .checkpoint_with(&["--tree"])
        .restore_under(&blocking);
    let schedule = ["--every", "55ms", "--count", "4"];
    cycle(&mut subject, &mut Steps::new(9), &schedule);
}
