//! Prevents that files that a prune has rewritten, in format 3, can no longer be read: those in `tests/data/format-3` were
//! written once, by this test with `PAGETIDE_WRITE_GOLDEN=1`, and must be read for ever. They are the small chain of the other
//! tests, of which the second snapshot was squashed away, and the first was pruned after.

use crate::common::*;
use crate::prune::{keep, listed};
use pagetide_snapshot::*;
use std::fs;
use std::path::{Path, PathBuf};

fn place() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/format-3")
}

fn write() {
    let (storage, store) = small_chain();
    store
        .squash(SnapshotId(1), SnapshotId(3))
        .expect("squashed");
    store.prune(&keep(1), false).expect("pruned");
    fs::create_dir_all(place().join("snapshots")).expect("a directory");
    for name in storage.names() {
        fs::write(place().join(&name), storage.get(&name).expect("a file")).expect("written");
    }
}

#[test]
fn what_was_rewritten_is_read() {
    if std::env::var_os("PAGETIDE_WRITE_GOLDEN").is_some() {
        write();
    }
    let store = Store::open_directory(place()).expect("the store of format 3");
    assert_eq!(listed(&store), [3]);
    assert_eq!(store.snapshots().expect("a list").bases, [SnapshotId(1)]);
    let file = fs::read(place().join(snapshot_name(3))).expect("a file");
    assert_eq!((file[8], u64_at(&file, 8) >> 32), (3, 244));
    let (_, made_now) = small_chain();
    let (then, now) = (
        see(&store, 3).expect("readable"),
        see(&made_now, 3).expect("readable"),
    );
    assert_eq!(then.contents, now.contents);
    assert_eq!(
        (then.spaces, then.attachments),
        (now.spaces, now.attachments)
    );
    // What it is known by is not the hash of its bytes.
    assert_eq!(then.info.content_hash.0, file[176..208]);
    assert_eq!(then.info.parent, Some(SnapshotId(1)));
    let report = verify(&store);
    assert!(report.ok, "{:?}", report.damaged);
    assert_eq!(report.newest_whole, Some(SnapshotId(3)));
}
