//! Prevents that frames of differences can no longer be read, and that `docs/FORMAT.md` says of any format what is not so: the
//! store in `tests/data/differences` was written once, by this test with `PAGETIDE_WRITE_GOLDEN=1`, and it and those of the
//! other formats are read by a program that knows nothing but that document.

use crate::common::*;
use crate::prune::listed;
use pagetide_snapshot::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

fn write() {
    let (storage, _) = chain_of_differences();
    let place = place("differences");
    fs::create_dir_all(place.join("snapshots")).expect("a directory");
    for name in storage.names() {
        fs::write(place.join(&name), storage.get(&name).expect("a file")).expect("written");
    }
}

#[test]
fn what_was_written_is_read() {
    if std::env::var_os("PAGETIDE_WRITE_GOLDEN").is_some() {
        write();
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
    let file = fs::read(place("differences").join(snapshot_name(4))).expect("a file");
    let (_, index) = sections(&file);
    let runs = u64_at(&file, index) as usize;
    let frames = u64_at(&file, index + 8) as usize;
    let encoding = |frame: usize| file[index + 24 + 32 * runs + 48 * frame + 4];
    let encodings: Vec<u8> = (0..frames).map(encoding).collect();
    assert!(encodings.contains(&2) && encodings.contains(&3));
    let report = verify(&store);
    assert!(report.ok, "{:?}", report.damaged);
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
    for name in ["format-1", "format-2", "format-3", "differences"] {
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
