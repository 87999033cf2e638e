//! Prevents that frames of differences can no longer be read, and that `docs/FORMAT.md` says of any format what is not so: the
//! store in `tests/data/differences` was written once, by this test with `PAGETIDE_WRITE_GOLDEN=1`, and it and those of the
//! other formats are read by a program that knows nothing but that document.

use crate::common::*;
use crate::prune::listed;
use pagetide_pages::PageIndex;
use pagetide_snapshot::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

/// A snapshot that is compressed with lz4.
fn snapshot_in_lz4() -> (MemoryStorage, Store) {
    let storage = MemoryStorage::new();
    let store = Store::create(Arc::new(storage.clone())).expect("a store");
    let lock = store.lock().expect("the lock");
    let with_lz4 = WriteOptions {
        compression: Compression::Lz4,
        ..options()
    };
    let mut writer = store.begin(&lock, None, with_lz4).expect("a writer");
    let space = Space::new("mem", size(512), vec![region(0, 8)]);
    writer.set_spaces(vec![space]).expect("spaces");
    let mut bytes: Vec<u8> = (1..=6).flat_map(|seed| page(seed, 512)).collect();
    // Noise, and noise that repeats.
    bytes.extend(page(9, 512));
    bytes.extend(page(10, 128).repeat(4));
    writer.put_pages(0, &[(PageIndex(0), &bytes)]).expect("put");
    writer.commit().expect("commit");
    (storage, store)
}

fn write((storage, _): &(MemoryStorage, Store), name: &str) {
    let place = place(name);
    fs::create_dir_all(place.join("snapshots")).expect("a directory");
    for name in storage.names() {
        fs::write(place.join(&name), storage.get(&name).expect("a file")).expect("written");
    }
}

#[test]
fn what_was_written_is_read() {
    if std::env::var_os("PAGETIDE_WRITE_GOLDEN").is_some() {
        write(&chain_of_differences(), "differences");
    }
    let store = Store::open_directory(place("differences")).expect("the store");
    assert_eq!(listed(&store), [1, 2, 3, 4]);
    let (_, made_now) = chain_of_differences();
    for id in 1..=4 {
        let then = see(&store, id).expect("readable");
        assert_eq!(
            then.contents,
            see(&made_now, id).expect("readable").contents
        );
    }
    let encodings = encodings("differences", 4);
    assert!(encodings.contains(&2) && encodings.contains(&3));
    let report = verify(&store);
    assert!(report.ok, "{:?}", report.damaged);
}

/// Those of the frames of a snapshot.
fn encodings(name: &str, id: u64) -> Vec<u8> {
    let file = fs::read(place(name).join(snapshot_name(id))).expect("a file");
    let (_, index) = sections(&file);
    let runs = u64_at(&file, index) as usize;
    let frames = u64_at(&file, index + 8) as usize;
    let encoding = |frame: usize| file[index + 24 + 32 * runs + 48 * frame + 4];
    (0..frames).map(encoding).collect()
}

#[test]
fn what_was_compressed_with_lz4_is_read() {
    if std::env::var_os("PAGETIDE_WRITE_GOLDEN").is_some() {
        write(&snapshot_in_lz4(), "lz4");
    }
    let store = Store::open_directory(place("lz4")).expect("the store");
    let (_, made_now) = snapshot_in_lz4();
    let seen = [&store, &made_now].map(|store| see(store, 1).expect("readable").contents);
    assert_eq!(seen[0], seen[1]);
    let encodings = encodings("lz4", 1);
    assert!(encodings.contains(&4), "{encodings:?}");
    assert!(verify(&store).ok);
}

/// A line for each page, as the program prints them.
fn lines(view: &View) -> Vec<String> {
    let mut lines = Vec::new();
    for (number, space) in view.spaces().iter().enumerate() {
        for (page, content) in contents(view, number).expect("read") {
            let hex = |bytes: &[u8]| -> String {
                bytes.iter().map(|byte| format!("{byte:02x}")).collect()
            };
            let what = match content {
                Content::Bytes(bytes) => format!("data {}", hex(&bytes)),
                Content::Zero => "zero -".to_owned(),
                Content::Guard => "guard -".to_owned(),
                Content::Unbacked => "unbacked -".to_owned(),
                Content::File(hash) => format!("file {}", hex(&hash.0)),
            };
            lines.push(format!("{} {page:x} {what}", space.name));
        }
    }
    lines
}

#[test]
fn a_reader_made_from_the_document_finds_the_same() {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/read_store.py");
    for name in ["format-1", "format-2", "format-3", "differences", "lz4"] {
        let store = Store::open_directory(place(name)).expect("a store");
        let listed = listed(&store);
        assert!(!listed.is_empty());
        for id in listed {
            let output = Command::new("python3")
                .arg(&program)
                .arg(place(name))
                .args([&id.to_string(), "--hex"])
                .output()
                .expect("python3 is there");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name}: {said}");
            let text = String::from_utf8(output.stdout).expect("text");
            let found: Vec<&str> = text.lines().collect();
            let view = store.view(SnapshotId(id)).expect("a view");
            assert_eq!(found, lines(&view), "{name}, snapshot {id}");
        }
    }
}
