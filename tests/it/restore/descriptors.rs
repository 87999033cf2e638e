//! Prevents that a descriptor comes back with something else behind it, or without what was in it.

use pagetide_tests::{Program, Steps, Subject, ask_once, comes_back, cycle};
use std::io::Read;
use std::os::unix::net::UnixStream;

/// Whoever connects to one of its sockets is greeted.
struct Handles {
    steps: Steps,
    made: u32,
}

impl Program for Handles {
    fn goes_on(&mut self, subject: &Subject) {
        self.steps.goes_on(subject);
        let port = std::fs::read_to_string(subject.path("port")).expect("read its port");
        let port = port.trim().parse().expect("a port");
        assert_eq!(ask_once(port, "", "greetings"), "greetings");
        let mut client = UnixStream::connect(subject.path("socket")).expect("connect");
        let mut said = String::new();
        client.read_to_string(&mut said).expect("read");
        assert_eq!(said, "greetings");
        // What is made in the directory that it watches.
        self.made += 1;
        let name = format!("<{}>", self.made);
        std::fs::write(subject.path("watched").join(&name), "").expect("make a file");
        let noticed = || std::fs::read_to_string(subject.path("noticed")).expect("read");
        subject.wait_until("it notices", || noticed().ends_with(&name));
        self.steps.goes_on(subject);
    }

    fn mark(&mut self, subject: &Subject, mark: u32) {
        self.steps.mark(subject, mark);
    }

    fn stands_still(&mut self, subject: &Subject, id: u64) {
        self.steps.stands_still(subject, id);
    }

    fn killed(&mut self, subject: &Subject, id: u64) {
        self.steps.killed(subject, id);
    }

    fn restored(&mut self, subject: &Subject, id: u64, mark: u32) {
        self.steps.restored(subject, id, mark);
    }
}

#[test]
fn descriptors_of_all_kinds() {
    let subject = Subject::target("handles", &[]);
    // It writes on after the snapshot.
    let changed = format!("file-changed:{}", subject.path("plain").display());
    let mut subject = subject.restore_with(&["--accept", &changed]);
    let mut handles = Handles {
        steps: Steps::new(5),
        made: 0,
    };
    cycle(
        &mut subject,
        &mut handles,
        &["--every", "40ms", "--count", "3"],
    );
}

/// What `again.c` opens again is what it was.
#[track_caller]
fn is_opened_again(what: &str) {
    let mut subject = Subject::target("again", &[what]);
    cycle(
        &mut subject,
        &mut Steps::new(5),
        &["--every", "40ms", "--count", "3"],
    );
}

#[test]
fn a_pipe_belongs_to_whom_it_belonged() {
    is_opened_again("owner");
}

#[test]
fn a_file_of_memory_can_be_executed() {
    is_opened_again("memfd");
}

#[test]
fn stores_reach_a_mapped_file_by_the_name_that_it_has() {
    // The name that the kernel shows is another one than before.
    let subject = Subject::target("again", &["names"]);
    // It writes on after the snapshot.
    let changed = |name| format!("file-changed:{}", subject.path(name).display());
    let (second, literal) = (changed("second"), changed("it (deleted)"));
    let mut subject = subject.restore_with(&["--accept", &second, "--accept", &literal]);
    comes_back(&mut subject, &mut Steps::new(5));
}

#[test]
fn files_of_threads() {
    is_opened_again("threads");
}

#[test]
fn descriptors_of_the_highest_numbers() {
    is_opened_again("high");
}
