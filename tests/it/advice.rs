//! Prevents that a snapshot says of a mapping which advice and locks it had at some other time than its memory: what is
//! stored is what held in the stop; and that a rollback leaves other advice and locks than there were. The program says in a
//! word of its own memory how it is.

use pagetide_tests::{Target, TestStore, background, list, number, pagetide, text};
use serde_json::Value;

const ADVICE: [&str; 2] = ["wipeonfork", "locked"];
/// So many mappings take too long for a look inside of the first stop: it is looked before and after it.
const MANY: &str = "600";

struct Advised {
    target: Target,
    store: TestStore,
    mapping: u64,
    word: u64,
}

impl Advised {
    fn start(mappings: &str) -> Self {
        let mut target = Target::start("advised", [mappings]);
        let places = target.ask("where");
        let (mapping, word) = places.split_once(' ').expect("two addresses");
        let parse = |text| u64::from_str_radix(text, 16).expect("an address");
        Self {
            mapping: parse(mapping),
            word: parse(word),
            target,
            store: TestStore::new(),
        }
    }

    /// What snapshot `id` says of the mapping, and what its memory says: 1 set, 0 clear, 2 changing.
    fn of(&self, id: u64) -> (bool, u64) {
        let (store, at) = (self.store.text(), id.to_string());
        let shown = pagetide(["show", &store, "--at", &at, "--json"]).done();
        let shown = shown.json();
        let start = format!("{:016x}", self.mapping);
        let regions = list(&list(&shown, "spaces")[0], "regions");
        // It may have joined what lies before it.
        let begins = |region: &&Value| text(region, "start") <= start.as_str();
        let region = regions.iter().rfind(begins).expect("its region");
        let advice: Vec<&str> = list(region, "advice")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let found = ADVICE.map(|name| advice.contains(&name));
        let word = self.store.image(id).bytes(self.word, 8);
        let word = u64::from_le_bytes(word.try_into().expect("8 bytes"));
        assert!(word == 2 || found[0] == found[1], "{word}: {advice:?}");
        (found[0], word)
    }

    /// True if its memory says that nothing was changing just then.
    #[track_caller]
    fn assert_agrees(&self, id: u64) -> bool {
        match self.of(id) {
            (_, 2) => false,
            (said, word) => {
                assert_eq!(said, word == 1, "snapshot {id}");
                true
            }
        }
    }
}

#[test]
fn t44_advice_that_changes_all_the_time_is_that_of_the_stop() {
    let mut advised = Advised::start("0");
    advised.target.ask("toggle");
    let pid = advised.target.pid();
    let words = advised
        .store
        .checkpoint_words(pid, &["--every", "20ms", "--count", "12", "--memory-only"]);
    let reports = pagetide(words).done().lines();
    assert_eq!(reports.len(), 12);
    let settled = reports
        .iter()
        .filter(|report| advised.assert_agrees(number(report, "id")));
    assert!(settled.count() > 2, "it was changing nearly always");
}

#[test]
fn t44_advice_given_just_before_a_snapshot_is_in_it() {
    for mappings in ["0", MANY] {
        let mut advised = Advised::start(mappings);
        let pid = advised.target.pid();
        // Each by a run of its own.
        for (command, expected) in [("set", 1), ("clear", 0)] {
            advised.target.ask(command);
            let report = advised.store.checkpoint(pid, &[]);
            assert_eq!(advised.of(number(&report, "id")), (expected == 1, expected));
        }
        // And by one that goes on: what it saw with the last snapshot is out of date.
        let words = advised
            .store
            .checkpoint_words(pid, &["--every", "300ms", "--count", "4"]);
        let mut run = background(words);
        let mut settled = 0;
        let mut ids = Vec::new();
        for command in ["set", "clear", "set"] {
            ids.push(run.next_id());
            advised.target.ask(command);
        }
        ids.push(run.next_id());
        run.wait().done();
        for id in ids {
            settled += u32::from(advised.assert_agrees(id));
        }
        assert!(settled >= 3, "{settled} of 4");
    }
}

impl Advised {
    /// The VmFlags of the mapping as the kernel tells them now.
    fn flags(&self) -> Vec<String> {
        let smaps = std::fs::read_to_string(self.target.proc("smaps")).expect("its mappings");
        let mut inside = false;
        for line in smaps.lines() {
            let range = line
                .split(' ')
                .next()
                .and_then(|range| range.split_once('-'));
            let parse = |text| u64::from_str_radix(text, 16).ok();
            if let Some((start, end)) = range.and_then(|(a, b)| Some((parse(a)?, parse(b)?))) {
                inside = (start..end).contains(&self.mapping);
            }
            if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| inside) {
                // Whether it is tracked is ours, and comes with the next snapshot.
                let flags = flags.split_whitespace().filter(|flag| *flag != "uw");
                return flags.map(str::to_owned).collect();
            }
        }
        Vec::new()
    }

    fn rollback(&self, id: u64) -> Value {
        let (pid, at) = (self.target.pid_text(), id.to_string());
        let words = ["rollback", &pid, &self.store.text(), "--at", &at, "--json"];
        pagetide(words).done().json()
    }
}

#[test]
fn t83_a_rollback_puts_advice_and_locks_back() {
    let mut advised = Advised::start("0");
    let pid = advised.target.pid();
    let mut taken = Vec::new();
    for command in ["clear", "set"] {
        advised.target.ask(command);
        let id = number(&advised.store.checkpoint(pid, &[]), "id");
        taken.push((id, advised.flags()));
    }
    assert_ne!(taken[0].1, taken[1].1);
    // What was given since is taken back, what was taken back is given, and so is that of what is mapped anew.
    for (command, to) in [("clear", 1), ("set", 0), ("drop", 1), ("drop", 0)] {
        advised.target.ask(command);
        let (id, flags) = &taken[to];
        let done = advised.rollback(*id);
        assert_eq!(&advised.flags(), flags, "after {command}, to {id}");
        assert_eq!(done["notes"], serde_json::json!([]), "{done}");
    }
    assert!(advised.target.is_alive());
}

#[test]
fn t83_advice_that_nothing_takes_back_is_named() {
    let mut advised = Advised::start("0");
    let pid = advised.target.pid();
    let id = number(&advised.store.checkpoint(pid, &[]), "id");
    advised.target.ask("huge");
    let done = advised.rollback(id);
    let notes = list(&done, "notes");
    let named = format!("{:#x}-", advised.mapping);
    let told = |note: &Value| {
        let note = note.as_str().expect("a note");
        note.starts_with(&named) && note.contains("was not hugepage")
    };
    assert!(notes.iter().any(told), "{done}");
}
