//! What a store says of lengths is not believed: pagetide takes little memory whatever stands there, and says why something is refused.

use super::Owned;
use crate::bad::{fails, is_root};
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSize};
use pagetide_snapshot::{
    Backing, Capture, PageHash, PageState, Region, SnapshotWriter, Space, Store, View, WriteOptions,
};
use pagetide_tests::{Scratch, Subject, compiled, pagetide};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn newest(store: &Path) -> View {
    let store = Store::open_directory(store).expect("a store");
    let id = store.newest().expect("a list").expect("a snapshot").id;
    store.view(id).expect("a view")
}

/// A store with one snapshot, which says of the process of `view` what `change` makes of it, and holds no pages but those that
/// `put` puts.
fn forged(
    path: &Path,
    view: &View,
    change: impl FnOnce(&mut Vec<Region>),
    put: impl FnOnce(&mut SnapshotWriter),
) {
    let store = Store::create_directory(path).expect("a store");
    let lock = store.lock().expect("the lock");
    let mut writer = store
        .begin(&lock, None, WriteOptions::default())
        .expect("a writer");
    let memory = view.space_index("mem").expect("its memory");
    let mut regions = view.spaces()[memory].regions.clone();
    for region in &mut regions {
        region.shows = None;
        region.capture = Capture::NotCaptured {
            reason: "forged".to_owned(),
        };
    }
    change(&mut regions);
    writer
        .set_spaces(vec![Space::new("mem", PageSize::KIB_4, regions)])
        .expect("spaces");
    for attachment in view.attachments() {
        let (name, bytes) = (attachment.name.clone(), attachment.bytes.clone());
        writer.attach(&name, bytes).expect("an attachment");
    }
    put(&mut writer);
    writer.commit().expect("a snapshot");
}

#[test]
fn lengths_that_no_process_can_have_are_refused() {
    if !is_root("a restore") {
        return;
    }
    let owned = Owned::new(&[]);
    let view = newest(&owned.subject.store().path());
    let scratch = Scratch::new();
    let refuses = |name: &str, says: &[&str]| {
        let store = scratch.join(name);
        let store = store.to_str().expect("a plain path");
        let outcome = pagetide(["restore", store, "--detach", "--memory-limit", "64M"]);
        fails(&outcome, 3, says);
        assert!(!outcome.stderr.contains("--memory-limit"), "{outcome:#?}");
        let listing = pagetide(["show", store, "--memory-limit", "64M"]);
        listing.done();
    };
    let memory = view.space_index("mem").expect("its memory");
    let regions = view.spaces()[memory].regions.iter();
    let mut vdso = regions.filter(|region| region.name == "[vdso]");
    let start = vdso.next().expect("a vdso").pages.start();
    let pages = PageRange::with_count(start, PageCount(1 << 20));
    let grow = |regions: &mut Vec<Region>| {
        let is_vdso = |region: &Region| region.name == "[vdso]";
        regions.retain(|region| is_vdso(region) || region.pages.intersection(pages).is_none());
        let vdso = regions
            .iter_mut()
            .find(|region| is_vdso(region))
            .expect("a vdso");
        vdso.pages = pages;
        vdso.capture = Capture::Captured;
    };
    forged(&scratch.join("vdso"), &view, grow, |writer| {
        writer.put_state(0, pages, PageState::Zero).expect("zeros");
    });
    refuses(
        "vdso",
        &["the vdso of this kernel is not that of snapshot 1"],
    );
    let pages = PageRange::with_count(PageIndex(1 << 40), PageCount(1 << 51));
    forged(
        &scratch.join("endless"),
        &view,
        |regions| {
            regions.retain(|region| region.name != "[vsyscall]");
            regions.push(Region::anonymous(pages));
        },
        |writer| writer.put_state(0, pages, PageState::Zero).expect("zeros"),
    );
    refuses(
        "endless",
        &["of no process that there can be", "0x8010000000000"],
    );
}

#[test]
fn a_table_that_does_not_fit_is_refused_by_its_length() {
    let scratch = Scratch::new();
    let path = scratch.join("store");
    let store = Store::create_directory(&path).expect("a store");
    let lock = store.lock().expect("the lock");
    let mut writer = store
        .begin(&lock, None, WriteOptions::default())
        .expect("a writer");
    let pages = PageRange::with_count(PageIndex(0), PageCount(700_000));
    let mut region = Region::anonymous(pages);
    region.backing = Backing::File {
        path: b"/file".to_vec(),
        offset_bytes: 0,
        device: 1,
        inode: 1,
        size_bytes: 700_000 * 4096,
        modified_ns: 0,
        build_id: Vec::new(),
    };
    let spaces = vec![Space::new("mem", PageSize::KIB_4, vec![region])];
    writer.set_spaces(spaces).expect("spaces");
    let hashes: Vec<PageHash> = (0..700_000_u64)
        .map(|n| PageHash::of(&n.to_ne_bytes()))
        .collect();
    writer
        .put_file_pages(0, PageIndex(0), &hashes)
        .expect("hashes");
    writer.commit().expect("a snapshot");
    drop(lock);
    let path = path.to_str().expect("a plain path");
    let says = ["snapshot 1 has a table of 112", "raise --memory-limit"];
    fails(&pagetide(["show", path, "--memory-limit", "32M"]), 3, &says);
    pagetide(["show", path, "--memory-limit", "256M"]).done();
}

/// Removes a file of memory.
struct Memory(PathBuf);

impl Drop for Memory {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

#[test]
fn large_shared_mappings_are_restored_in_little_memory() {
    if !is_root("a restore") {
        return;
    }
    const PAGES: usize = 40_000;
    let scratch = Scratch::new();
    let name = scratch.path().file_name().expect("a name").to_owned();
    let memory = Memory(Path::new("/dev/shm").join(name));
    let mut command = Command::new(compiled("large"));
    command.arg(scratch.join("log")).arg(&memory.0);
    command.arg(scratch.join("disk")).arg(PAGES.to_string());
    let mut subject = Subject::start(&command, scratch);
    let log = subject.path("log");
    let steps = || fs::read_to_string(&log).map_or(0, |log| log.lines().count());
    subject.wait_until("steps", || steps() > 2);
    subject.checkpoint(&["--memory-limit", "64M"]);
    subject.kill();
    // All of it is otherwise now, and has to be kept in case that the restore fails.
    let file = File::options()
        .write(true)
        .open(&memory.0)
        .expect("open it");
    let other = vec![9; 1 << 20];
    for at in (0..PAGES as u64 * 4096).step_by(other.len()) {
        file.write_all_at(&other, at).expect("write it");
    }
    let before = steps();
    subject.restore(&["--memory-limit", "64M"]);
    subject.wait_until("steps", || steps() > before + 20);
    subject.kill();
}
