//! Prevents that a descriptor comes back with something else behind it, or without what was in it.

use pagetide_tests::{Program, Steps, Subject, ask_once, cycle};
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
