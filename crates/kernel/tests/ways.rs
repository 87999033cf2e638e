//! Prevents: missing a store that no instruction of the process makes. Ways into memory that are neither
//! in `userfaultfd.rs` (read(2), `/proc/PID/mem`) nor in `unseen_writes.rs`: all of these are seen.

use nix::libc;
use nix::sys::uio::{RemoteIoVec, process_vm_writev};
use nix::unistd::Pid;
use pagetide_kernel::pagemap_scan::Categories;
use pagetide_testing::kvm::Guest;
use pagetide_testing::watched::{Watcher, loads};
use pagetide_testing::{PAGE, Region, needs, poison, skipped};
use std::io::{IoSlice, Write};
use std::os::fd::AsFd;

const PAGES: usize = 8;

#[test]
fn process_vm_writev_is_seen() {
    needs!(wp_async);
    let watcher = Watcher::of_self();
    let region = Region::filled(PAGES, 1);
    watcher.settle(&region);
    let remote = [RemoteIoVec {
        base: region.address(3) as usize + 5,
        len: PAGE,
    }];
    let written = process_vm_writev(Pid::this(), &[IoSlice::new(&[9; PAGE])], &remote);
    assert_eq!(written, Ok(PAGE));
    assert_eq!(watcher.written(&region), [3, 4]);
    assert_eq!((region.load_at(3 * PAGE + 5), region.load(4)), (9, 9));
}

#[test]
fn splicing_out_of_a_pipe_is_seen_and_into_it_is_no_write() {
    needs!(wp_async);
    let watcher = Watcher::of_self();
    let region = Region::filled(PAGES, 1);
    watcher.settle(&region);
    let (end, mut start) = std::io::pipe().expect("pipe");
    start.write_all(&[9; 100]).expect("write");
    assert_eq!(
        pagetide_testing::splice(end.as_fd(), &region, 3, 100).unwrap(),
        100
    );
    assert_eq!(watcher.written(&region), [3]);
    assert_eq!((region.load(3), region.load_at(3 * PAGE + 100)), (9, 1));
    assert_eq!(
        pagetide_testing::splice(start.as_fd(), &region, 5, PAGE).unwrap(),
        PAGE
    );
    assert_eq!(watcher.written(&region), [], "the pipe shows the page");
    region.store(5, 8);
    assert_eq!(watcher.written(&region), [5]);
}

#[test]
fn a_guest_of_kvm_that_stores_is_seen() {
    needs!(wp_async);
    let test = "a_guest_of_kvm_that_stores_is_seen";
    let watcher = Watcher::of_self();
    let region = Region::filled(PAGES, 1);
    // mov byte [0x3000], 9; hlt
    region.store_bytes(PAGE, &[0xc6, 0x06, 0x00, 0x30, 0x09, 0xf4]);
    let guest = match Guest::of(&region) {
        Ok(guest) => guest,
        Err(error) => return skipped(test, &format!("KVM: {error}")),
    };
    watcher.settle(&region);
    for round in 0..3 {
        if let Err(error) = guest.run(1) {
            return skipped(test, &format!("KVM: {error}"));
        }
        let written = watcher.written(&region);
        assert!(written.contains(&3), "round {round}: {written:?}");
        assert_eq!(region.load(3), 9);
    }
    assert_eq!(loads(&region)[4..], [1; 4]);
}

#[test]
fn a_page_moved_out_by_a_userfaultfd_reads_written_and_so_does_its_new_place() {
    needs!(wp_async);
    let test = "a_page_moved_out_by_a_userfaultfd_reads_written_and_so_does_its_new_place";
    let watcher = Watcher::of_self();
    let (region, other) = (Region::filled(PAGES, 1), Region::filled(PAGES, 2));
    for region in [&region, &other] {
        watcher.settle(region);
        region.advise(5..6, libc::MADV_DONTNEED).unwrap();
    }
    if !poison::move_or_skip(
        test,
        &watcher.protector,
        region.address(3),
        other.address(5),
    ) {
        return;
    }
    assert_eq!(
        (watcher.written(&region), watcher.written(&other)),
        (vec![3, 5], vec![5])
    );
    assert_eq!((region.load(3), other.load(5)), (0, 1));
    other.store(5, 7);
    assert_eq!(watcher.written(&other), [5]);
}

#[test]
fn a_page_filled_by_a_userfaultfd_reads_written() {
    needs!(wp_async);
    let test = "a_page_filled_by_a_userfaultfd_reads_written";
    let watcher = Watcher::of_self();
    let (region, source) = (Region::filled(PAGES, 1), Region::filled(1, 9));
    watcher.settle(&region);
    region.advise(3..4, libc::MADV_DONTNEED).unwrap();
    if !poison::copy_or_skip(
        test,
        &watcher.protector,
        source.address(0),
        region.address(3),
    ) {
        return;
    }
    assert!(region.state(3).contains(Categories::PRESENT));
    assert_eq!(watcher.written(&region), [3]);
    assert_eq!(region.load(3), 9);
}
