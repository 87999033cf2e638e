//! A snapshot of the target while it does what it was told, over and over: it is stopped in the middle of whatever it
//! is doing at that moment, left so, and compared.

use super::{Running, Stage};
use pagetide_tests::{Frozen, background};

/// So long the target goes on. The snapshot comes somewhere in between, unless the machine is very busy.
const MILLISECONDS: u64 = 400;

/// Operations that go on in a process or a request of their own while the target is stopped, so that it would not
/// stay as it is, or that it does not come back from.
const ELSEWHERE: [&str; 18] = [
    "@",
    "fork",
    "vfork",
    "clone_vm",
    "spawn",
    "dismiss",
    "exec",
    "ring",
    "aio",
    "packet",
    "uffd",
    "advise_main",
    "merge_all",
    "thread",
    "join",
    "thp_disable",
    "signal",
    "advise guard_install",
];

/// True if the line can be done while a snapshot is taken that is compared with what comes after it.
pub fn stays_in_place(line: &str) -> bool {
    !line.starts_with('!') && !ELSEWHERE.iter().any(|verb| line.starts_with(verb))
}

impl Stage {
    /// The target does `lines` over and over while a snapshot is taken.
    pub fn during(&mut self, lines: &[String], line: &str) -> Result<(), String> {
        let lines: Vec<String> = lines
            .iter()
            .filter(|one| stays_in_place(one))
            .cloned()
            .collect();
        let mode = line.split(' ').nth(1).unwrap_or("auto");
        self.end()?;
        self.target.tell(&format!(
            "repeat {MILLISECONDS}\n{}\nrepeated",
            lines.join("\n")
        ));
        let mut options = self.words(mode);
        options.extend(["--leave", "stopped"]);
        let run = background(self.store.checkpoint_words(self.target.pid(), &options));
        let outcome = Running::of(run).wait(self.patience)?;
        if outcome.stderr.contains("did not stop within") {
            // A call of the target was long under way.
            self.tally.count(
                format!("!during {mode}"),
                Err("did not stop in time".into()),
            );
            return self.hear(&lines);
        }
        let frozen = Frozen::found(self.target.pid());
        self.done("checkpoint", outcome.code, &outcome.stderr)?;
        self.compare(frozen, None, &outcome.json(), format!("!during {mode}"))?;
        self.hear(&lines)
    }
}
