//! Prevents: a wrong idea of what the kernel tells of an address space whose pages are missing, and of what it does not tell.

#![allow(unsafe_code)]

use nix::libc;
use pagetide_kernel::userfaultfd::missing::{
    MISSING_CREATION_FLAGS, MissingEvent, MissingPages, NotPut,
};
use pagetide_testing::{MADV_GUARD_INSTALL, PAGE, Region, skipped};
use rustix::mm::UserfaultfdFlags;

/// The missing pages of this process, those of `region` registered.
fn missing(region: &Region) -> MissingPages {
    let flags = UserfaultfdFlags::from_bits_retain(MISSING_CREATION_FLAGS);
    // SAFETY: each test puts what it touches, or touches it in a thread that it lets go on.
    let fd = unsafe { rustix::mm::userfaultfd(flags) }.expect("a userfaultfd");
    let missing = MissingPages::enable(fd).expect("its events");
    let length = region.end() - region.start();
    missing.register(region.start(), length).expect("register");
    missing
}

#[test]
fn a_page_that_comes_takes_the_place_of_a_guard() {
    let region = Region::private(2);
    let missing = missing(&region);
    if region.advise(0..2, MADV_GUARD_INSTALL).is_err() {
        let test = "a_page_that_comes_takes_the_place_of_a_guard";
        return skipped(test, "no guard regions");
    }
    let put = missing.copy(region.address(0), &[7; PAGE]);
    assert_eq!(put.stopped, None, "the guard was kept");
    assert_eq!(region.load(0), 7);
    if missing.can_poison() {
        let poisoned = missing.poison(region.address(1), PAGE as u64);
        assert_eq!(poisoned.stopped, Some(NotPut::Present));
    }
    let mut events = Vec::new();
    missing.read(&mut events).expect("read events");
    assert!(events.is_empty(), "{events:?}");
}

#[test]
fn dropping_pages_waits_until_it_was_told_and_no_page_is_put_before() {
    let region = Region::private(4);
    let missing = missing(&region);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            region
                .advise(1..3, libc::MADV_DONTNEED)
                .expect("drop pages")
        });
        while !missing.is_changing() {
            std::thread::yield_now();
        }
        let put = missing.copy(region.address(0), &[7; PAGE]);
        assert_eq!(put.stopped, Some(NotPut::Changing));
        let mut events = Vec::new();
        // It counts as changing a moment before there is something to read.
        while events.is_empty() {
            missing.read(&mut events).expect("read events");
        }
        match events[..] {
            [MissingEvent::Dropped { start, end }] => {
                assert_eq!((start, end), (region.address(1), region.address(3)));
            }
            _ => panic!("{events:?}"),
        }
    });
    assert!(!missing.is_changing());
    let put = missing.copy(region.address(0), &[7; 4 * PAGE]);
    assert_eq!((put.stopped, put.done_bytes), (None, 4 * PAGE as u64));
    assert_eq!((region.load(0), region.load(3)), (7, 7));
    // There is something now.
    let again = missing.copy(region.address(0), &[8; PAGE]);
    assert_eq!(again.stopped, Some(NotPut::Present));
    let outside = missing.copy(region.end() + (64 << 20), &[8; PAGE]);
    assert_eq!(outside.stopped, Some(NotPut::NotThere));
}
