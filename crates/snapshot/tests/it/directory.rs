//! Prevents that a store in a real directory is taken for something else, is readable by others, is
//! written by two, or keeps what a crashed writer left.

use crate::common::*;
use pagetide_pages::PageIndex;
use pagetide_snapshot::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

fn fill(store: &Store) -> View {
    let lock = store.lock().expect("the lock");
    let mut writer = store.begin(&lock, None, options()).expect("a writer");
    let regions = vec![region(0, 6)];
    writer
        .set_spaces(vec![Space::new("mem", size(512), regions)])
        .expect("spaces");
    writer
        .put_pages(0, &[(PageIndex(0), &page(30, 6 * 512))])
        .expect("put");
    writer.commit().expect("commit")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path)
        .expect("it is there")
        .permissions()
        .mode()
        & 0o777
}

#[test]
fn what_is_written_is_read_and_nobody_else_may() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().join("store");
    let store = Store::create_directory(&root).expect("a store");
    fill(&store);
    let again = Store::open_directory(&root).expect("a store");
    assert_eq!(again.id(), store.id());
    let seen = see(&again, 1).expect("readable");
    assert_eq!(seen.contents[0].len(), 6);
    assert!(verify(&again).ok);
    for directory in ["", "snapshots"] {
        assert_eq!(mode(&root.join(directory)), 0o700);
    }
    for file in ["pagetide-store", "lock", "snapshots/0000000001.snap"] {
        assert_eq!(mode(&root.join(file)), 0o600);
    }
}

#[test]
fn what_is_not_a_store_is_told_apart() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    let missing = Store::open_directory(at("missing"));
    assert!(matches!(missing, Err(OpenError::Missing { .. })));
    let not_a_store = Store::open_directory(directory.path());
    assert!(matches!(not_a_store, Err(OpenError::NotAStore { .. })));
    fs::write(at("file"), "text").expect("written");
    for result in [
        Store::open_directory(at("file")),
        Store::create_directory(at("file")),
    ] {
        assert!(matches!(result, Err(OpenError::NotAStore { .. })));
    }
    let not_empty = Store::create_directory(directory.path());
    assert!(matches!(not_empty, Err(OpenError::NotEmpty { .. })));
    Store::create_directory(at("store")).expect("a store");
    let twice = Store::create_directory(at("store"));
    assert!(matches!(twice, Err(OpenError::Exists { .. })));
    fs::create_dir(at("empty")).expect("made");
    Store::create_directory(at("empty")).expect("an empty directory will do");
}

#[test]
fn a_store_is_made_where_there_is_none_and_found_where_there_is_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path().join("store");
    let made = Store::open_or_create_directory(&at).expect("a store");
    let found = Store::open_or_create_directory(&at).expect("the store");
    assert_eq!(made.id(), found.id());
    let elsewhere = Store::open_or_create_directory(directory.path());
    assert!(matches!(elsewhere, Err(OpenError::NotEmpty { .. })));
}

#[test]
fn the_lock_names_who_holds_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::create_directory(directory.path()).expect("a store");
    let lock = store.lock().expect("the lock");
    let other = Store::open_directory(directory.path()).expect("a store");
    let error = other.lock().expect_err("it is held").to_string();
    assert!(
        error.contains(&format!("process {}", std::process::id())),
        "{error}"
    );
    drop(lock);
    other.lock().expect("it is free");
}

#[test]
fn what_a_crashed_writer_left_is_removed_by_the_next_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::create_directory(directory.path()).expect("a store");
    fill(&store);
    let left = directory.path().join("snapshots/0000000002.partial");
    fs::write(&left, [0; 300]).expect("written");
    assert_eq!(store.snapshots().expect("a list").good.len(), 1);
    see(&store, 1).expect("readable");
    assert!(left.exists(), "reading writes nothing");
    store.lock().expect("the lock");
    assert!(!left.exists());
}

#[test]
fn a_file_that_is_there_is_not_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::create_directory(directory.path()).expect("a store");
    let lock = store.lock().expect("the lock");
    let writer = store.begin(&lock, None, options()).expect("a writer");
    let name = directory.path().join("snapshots/0000000001.snap");
    fs::write(&name, "somebody else's").expect("written");
    assert!(matches!(writer.commit(), Err(WriteError::Exists { .. })));
    assert_eq!(fs::read(&name).expect("it is there"), b"somebody else's");
    assert!(!name.with_extension("partial").exists());
}

#[test]
fn what_was_looked_at_is_what_is_read_and_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    let store = Store::create_directory(at("store")).expect("a store");
    fill(&store);
    let held = Store::open_directory(at("store")).expect("a store");
    let view = held.view(SnapshotId(1)).expect("readable");
    // Another store takes its place.
    fs::rename(at("store"), at("aside")).expect("moved");
    let other = Store::create_directory(at("store")).expect("another store");
    assert_ne!(other.id(), held.id());
    let mut page = vec![0; 512];
    view.read_page(0, PageIndex(3), &mut page)
        .expect("readable");
    assert_eq!(held.snapshots().expect("a list").good.len(), 1);
    let lock = held.lock().expect("the lock");
    other.lock().expect("the lock of the other is not taken");
    let writer = held.begin(&lock, None, options()).expect("a writer");
    writer.commit().expect("commit");
    assert!(at("aside/snapshots/0000000002.snap").exists());
    assert_eq!(other.snapshots().expect("a list").good.len(), 0);
}

#[test]
fn what_others_can_write_to_is_not_believed() {
    let directory = tempfile::tempdir().expect("a directory");
    let way = directory.path().join("way");
    fs::create_dir(&way).expect("made");
    let root = way.join("store");
    fill(&Store::create_directory(&root).expect("a store"));
    let set = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
    };
    let opened = |path: &Path| -> Result<(), String> {
        let store = Store::open_directory(path).map_err(|error| format!("{error:?}"))?;
        let view = store.view(SnapshotId(1));
        view.map(drop).map_err(|error| format!("{error:?}"))
    };
    let names = [
        "",
        "pagetide-store",
        "snapshots",
        "snapshots/0000000001.snap",
    ];
    for path in names.map(|name| root.join(name)).iter().chain([&way]) {
        let was = fs::metadata(path)
            .expect("it is there")
            .permissions()
            .mode();
        for more in [0o020, 0o002] {
            set(path, was | more);
            let error = opened(&root).expect_err("others can write to it");
            assert!(error.contains("Untrusted"), "{error}");
            let trusting = Store::open(Arc::new(DirectoryStorage::trusting(&root)));
            see(&trusting.expect("a store"), 1).expect("readable");
        }
        set(path, was);
    }
    set(&way, 0o1777);
    opened(&root).expect("the sticky bit keeps others from renaming it");
    symlink("way/store", directory.path().join("link")).expect("a link");
    opened(&directory.path().join("link")).expect("our own link");
}
