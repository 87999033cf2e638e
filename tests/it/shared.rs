//! Prevents that shared memory is stored once a mapping, or missed when others change it; that pages of
//! files nobody writes to are stored; and that an export relies on a file that is no longer what it was.

use pagetide_tests::{
    Frozen, Image, Scratch, Target, TestStore, epochs, list, number, pagetide, text,
};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

const OBJECT_PAGES: u64 = 64;

struct Sharing {
    target: Target,
    store: TestStore,
    file: PathBuf,
    _files: Scratch,
}

impl Sharing {
    fn new() -> Self {
        let files = Scratch::new();
        let file = files.join("mapped");
        let bytes: Vec<u8> = (0..OBJECT_PAGES * 4096).map(|at| (at / 7) as u8).collect();
        fs::write(&file, bytes).expect("write a file");
        let target = Target::start("shared", [files.path(), file.as_path()]);
        Self {
            target,
            store: TestStore::new(),
            file,
            _files: files,
        }
    }

    /// Waits until the file's time stamps are old enough to tell a change.
    fn let_file_settle() {
        std::thread::sleep(Duration::from_millis(2300));
    }

    fn exact(&self, more: &[&str], before: bool) -> (Value, Image) {
        let frozen = self.target.freeze();
        self.store.checkpoint_exactly(&frozen, more, before)
    }

    fn shown(&self) -> Value {
        pagetide(["show", &self.store.text(), "--json"])
            .done()
            .json()
    }

    fn region_of_file(&self) -> Value {
        let shown = self.shown();
        let name = self.file.to_str().expect("a plain path");
        let regions = list(&list(&shown, "spaces")[0], "regions");
        let found = regions.iter().find(|region| region["name"] == name);
        found.expect("the mapped file is a region").clone()
    }

    /// Exports the newest snapshot, which must be refused, and gives what was said.
    fn export_is_refused(&self) -> String {
        let directory = self.store.scratch().join("refused");
        let directory = directory.to_str().expect("a plain path");
        let words = [
            "export",
            &self.store.text(),
            "--format",
            "raw",
            "-o",
            directory,
        ];
        let outcome = pagetide(words).exits_with(1);
        fs::remove_dir_all(directory).expect("remove an export");
        outcome.stderr.clone()
    }
}

fn changed_by_others(more: &[&str]) {
    let mut sharing = Sharing::new();
    sharing.exact(more, false);
    let mut last = 0;
    for epoch in 0..epochs(30) as u64 {
        let command = format!("others {}", 1 + epoch % 9);
        assert_eq!(sharing.target.ask(&command), "done");
        let (report, truth) = sharing.exact(more, epoch % 2 == 1);
        assert_eq!(text(&report, "kind"), "delta", "{report}");
        last = truth.digest();
    }
    assert_ne!(last, 0);
    sharing.store.assert_sound();
}

#[test]
fn what_others_change_is_in_every_snapshot() {
    changed_by_others(&[]);
}

#[test]
fn what_others_change_is_in_every_snapshot_by_comparison() {
    changed_by_others(&["--backend", "rehash"]);
}

#[test]
fn an_object_is_stored_once_however_often_it_is_mapped() {
    let sharing = Sharing::new();
    let (report, _) = sharing.exact(&[], false);
    let shown = sharing.shown();
    let spaces = list(&shown, "spaces");
    let objects: Vec<&Value> = spaces
        .iter()
        .filter(|space| text(space, "name").starts_with("shm:"))
        .collect();
    assert_eq!(objects.len(), 5, "one space an object: {spaces:#?}");
    let regions = list(&spaces[0], "regions");
    for object in &objects {
        let shows = |region: &&Value| region["shows"] == object["name"];
        assert!(regions.iter().filter(shows).count() >= 2, "{object}");
    }
    // Half of each object was ever allocated; five of them twice and more would be 640 pages.
    let stored = number(&report, "stored_pages");
    let objects_hold = 5 * OBJECT_PAGES / 2;
    assert!(stored >= objects_hold, "{report}");
    assert!(stored < objects_hold + 300, "{report}");
}

#[test]
fn pages_of_a_file_stay_in_the_file_until_they_differ() {
    let mut sharing = Sharing::new();
    Sharing::let_file_settle();
    let (full, _) = sharing.exact(&[], false);
    assert!(number(&full, "file_pages") > OBJECT_PAGES, "{full}");
    let (nothing, _) = sharing.exact(&[], true);
    assert_eq!(number(&nothing, "file_pages"), 0, "{nothing}");
    assert_eq!(sharing.target.ask("copy"), "done");
    let (copied, _) = sharing.exact(&[], true);
    assert!(number(&copied, "stored_pages") >= 2, "{copied}");
    assert_eq!(sharing.target.ask("drop"), "done");
    let (dropped, _) = sharing.exact(&[], false);
    assert_eq!(number(&dropped, "file_pages"), 1, "{dropped}");
    let region = sharing.region_of_file();
    assert_eq!(
        number(&region["backing"], "size_bytes"),
        OBJECT_PAGES * 4096
    );

    // Somebody writes to it: it can no longer stand for its pages, and what shows is stored.
    let mut bytes = fs::read(&sharing.file).expect("read the file");
    bytes[9 * 4096] ^= 1;
    fs::write(&sharing.file, &bytes).expect("write the file");
    let (written, _) = sharing.exact(&[], true);
    assert!(
        number(&written, "stored_pages") >= OBJECT_PAGES - 1,
        "{written}"
    );
    sharing.store.assert_sound();
}

#[test]
fn a_file_that_is_no_longer_what_it_was_is_refused_by_name() {
    let sharing = Sharing::new();
    Sharing::let_file_settle();
    let (report, truth) = sharing.exact(&[], false);
    let id = number(&report, "id");
    let path = sharing.file.to_str().expect("a plain path").to_owned();
    let bytes = fs::read(&path).expect("read the file");
    let stamp = fs::metadata(&path)
        .and_then(|m| m.modified())
        .expect("a time stamp");
    drop(sharing.target.freeze());

    let mut other = bytes.clone();
    other[20 * 4096] ^= 1;
    fs::write(&path, &other).expect("write the file");
    let said = sharing.export_is_refused();
    assert!(said.contains(&path) && said.contains("modified"), "{said}");
    let file = fs::File::options().write(true).open(&path).expect("open");
    file.set_modified(stamp).expect("set the time stamp");
    let said = sharing.export_is_refused();
    assert!(
        said.contains(&path) && said.contains("other content"),
        "{said}"
    );
    file.set_len(4096).expect("truncate");
    let said = sharing.export_is_refused();
    assert!(said.contains("4096 bytes long now"), "{said}");
    fs::remove_file(&path).expect("remove the file");
    let said = sharing.export_is_refused();
    assert!(said.contains("cannot be opened"), "{said}");

    // The same bytes are the same file, whatever its time stamps say.
    fs::write(&path, &bytes).expect("write the file");
    sharing
        .store
        .assert_equals(id, &truth, "the same bytes again");
}

/// Nobody can write to the file, so nothing but the dropped copy itself tells that a page has changed.
#[test]
fn t27_dropped_private_copy_of_a_file_that_is_stored() {
    let mut sharing = Sharing::new();
    Sharing::let_file_settle();
    let stored = ["--store-files"];
    sharing.exact(&stored, false);
    for before in [false, true] {
        assert_eq!(sharing.target.ask("copy"), "done");
        let (_, with) = sharing.exact(&stored, before);
        assert_eq!(sharing.target.ask("drop"), "done");
        let (dropped, without) = sharing.exact(&stored, !before);
        assert_eq!(text(&dropped, "kind"), "delta", "{dropped}");
        assert_ne!(with.digest(), without.digest(), "nothing was dropped");
    }
}

#[test]
fn files_are_stored_if_that_is_asked_for() {
    let sharing = Sharing::new();
    Sharing::let_file_settle();
    let (report, truth) = sharing.exact(&["--store-files"], false);
    assert_eq!(number(&report, "file_pages"), 0, "{report}");
    fs::remove_file(&sharing.file).expect("remove the file");
    let id = number(&report, "id");
    sharing.store.assert_equals(id, &truth, "without the file");
}

#[test]
fn a_device_that_writes_to_memory_is_named() {
    let mut sharing = Sharing::new();
    sharing.exact(&[], false);
    fs::create_dir_all("/dev/vfio").expect("make a directory for devices");
    let path = format!("/dev/vfio/pagetide-{}", sharing.target.pid());
    fs::write(&path, "").expect("make a file");
    let answer = sharing.target.ask(&format!("device {path}"));
    let (report, _) = sharing.exact(&[], true);
    fs::remove_file(&path).expect("remove the file");
    let _ = fs::remove_dir("/dev/vfio");
    assert_eq!(answer, "done");
    let named = list(&report, "not_captured")
        .iter()
        .find(|missing| missing["name"] == path.as_str());
    let reason = text(named.expect("the device is named"), "reason").to_owned();
    assert!(reason.contains("leaves no trace"), "{report}");
    // The next one compares all of its memory.
    let frozen: Frozen = sharing.target.freeze();
    let (report, _) = sharing.store.checkpoint_exactly(&frozen, &[], true);
    assert_eq!(text(&report, "kind"), "delta", "{report}");
}
