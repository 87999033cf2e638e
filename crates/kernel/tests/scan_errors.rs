//! Prevents: a wrong idea of when PAGEMAP_SCAN fails, and with what: requests that it does not take, address spaces that
//! are gone, signals that come meanwhile.

#![allow(unsafe_code)]

use linux_raw_sys::general::pm_scan_arg;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use pagetide_kernel::pagemap_scan::{
    Categories, Pagemap, ScanError, ScanFlags, ScanRequest, ScannedRange,
};
use pagetide_testing::child::Child;
use pagetide_testing::{PAGE, Region, harvesting, needs};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

#[test]
fn unknown_categories_and_flags_and_crooked_addresses_are_refused() {
    needs!(scan);
    let region = Region::filled(2, 1);
    let pagemap = Pagemap::of_self().unwrap();
    let plain = ScanRequest::over(region.start(), region.end());
    let unknown = Categories::from_bits_retain(1 << 40);
    let refused = [
        ScanRequest {
            returned: unknown,
            ..plain
        },
        ScanRequest {
            all_of: unknown,
            ..plain
        },
        ScanRequest {
            any_of: unknown,
            ..plain
        },
        ScanRequest {
            inverted: unknown,
            ..plain
        },
        ScanRequest {
            flags: ScanFlags::from_bits_retain(1 << 7),
            ..plain
        },
        ScanRequest {
            start: region.start() + 1,
            ..plain
        },
    ];
    for request in refused {
        match pagemap.scan_once(&request, &mut [ScannedRange::EMPTY]) {
            Err(ScanError::Kernel { source, .. }) => {
                assert_eq!(source.raw_os_error(), Some(libc::EINVAL), "{request:?}");
            }
            other => panic!("{request:?}: {other:?}"),
        }
    }
}

/// The request as the kernel gets it: what no [`ScanRequest`] can say.
fn send(argument: *const pm_scan_arg) -> i32 {
    use std::os::fd::{AsFd, AsRawFd};
    let pagemap = Pagemap::of_self().unwrap();
    const PAGEMAP_SCAN: libc::c_ulong = 0xC060_6610;
    // SAFETY: the kernel checks the pointers; what it may write to through them belongs to the caller.
    let answer = unsafe { libc::ioctl(pagemap.as_fd().as_raw_fd(), PAGEMAP_SCAN, argument) };
    match answer {
        -1 => std::io::Error::last_os_error().raw_os_error().unwrap(),
        _ => 0,
    }
}

#[test]
fn wrong_sizes_and_pointers_are_refused() {
    needs!(scan);
    let region = Region::filled(2, 1);
    let mut slots = [ScannedRange::EMPTY; 2];
    let mut right = pm_scan_arg {
        size: size_of::<pm_scan_arg>() as u64,
        flags: 0,
        start: region.start(),
        end: region.end(),
        walk_end: 0,
        vec: slots.as_mut_ptr().expose_provenance() as u64,
        vec_len: 2,
        max_pages: 0,
        category_inverted: 0,
        category_mask: 0,
        category_anyof_mask: 0,
        return_mask: 0,
    };
    assert_eq!(send(&raw const right), 0);
    for size in [0, 8, 95, 97, 104] {
        right.size = size;
        assert_eq!(send(&raw const right), libc::EINVAL, "{size}");
    }
    right.size = 96;
    assert_eq!(send(std::ptr::null()), libc::EFAULT);
    let slots = std::mem::replace(&mut right.vec, 0);
    assert_eq!(send(&raw const right), libc::EINVAL, "a length of nothing");
    right.vec = 0xffff_8000_0000_0000;
    assert_eq!(
        send(&raw const right),
        libc::EFAULT,
        "a vector of the kernel"
    );
    right.vec = slots;
    (right.start, right.end) = (region.end(), region.start());
    assert_eq!(
        send(&raw const right),
        libc::EFAULT,
        "an end before the start"
    );
}

#[test]
fn addresses_of_the_kernel_are_refused_with_efault() {
    needs!(scan);
    let pagemap = Pagemap::of_self().unwrap();
    let vsyscall = 0xffff_ffff_ff60_0000;
    let request = ScanRequest::over(vsyscall, vsyscall + PAGE as u64);
    match pagemap.scan_once(&request, &mut [ScannedRange::EMPTY]) {
        Err(ScanError::Kernel { source, .. }) => {
            assert_eq!(source.raw_os_error(), Some(libc::EFAULT))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_dead_address_space_scans_as_gone_or_as_empty() {
    needs!(scan);
    // Newer kernels answer ESRCH, older ones report nothing at all and no error.
    let region = Region::filled(4, 1);
    let child = Child::run(|board| board.tell(0, 1));
    child.wait(0);
    let pagemap = Pagemap::of_process(child.pid()).unwrap();
    assert!(pagemap.is_alive());
    child.kill();
    let vector = &mut [ScannedRange::EMPTY; 4];
    match pagemap.scan_once(&harvesting(region.start(), region.end()), vector) {
        Ok(progress) => assert_eq!(progress.filled, 0),
        Err(ScanError::SpaceGone { .. }) => {}
        Err(other) => panic!("{other:?}"),
    }
    assert!(!pagemap.is_alive());
}

#[test]
fn a_replaced_address_space_is_dead_to_its_old_pagemap() {
    let child = Child::run(|board| {
        board.tell(0, 1);
        board.wait(1);
        pagetide_testing::child::execute_sleep();
    });
    child.wait(0);
    let before = Pagemap::of_process(child.pid()).unwrap();
    child.tell(1, 1);
    child.wait_for_program("/bin/sleep");
    assert!(!before.is_alive());
    assert!(Pagemap::of_process(child.pid()).unwrap().is_alive());
}

#[test]
fn a_process_that_does_not_exist_has_no_pagemap() {
    let error = Pagemap::of_process(i32::MAX).unwrap_err();
    assert_eq!(error.source.kind(), std::io::ErrorKind::NotFound);
    assert!(error.path.ends_with("pagemap"));
}

static SIGNALS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count_signal(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// A scan is interrupted (EINTR) by what ends its caller, and by no other signal, whether calls are restarted or not.
#[test]
fn signals_that_do_not_kill_interrupt_no_scan() {
    needs!(scan);
    const PAGES: usize = 1 << 15;
    // No two written pages beside each other: the kernel hands over its buffer again and again, where it looks for signals.
    let region = Region::private(PAGES);
    (0..PAGES).step_by(2).for_each(|page| region.store(page, 1));
    let action = SigAction::new(
        SigHandler::Handler(count_signal),
        SaFlags::empty(),
        SigSet::empty(),
    );
    // SAFETY: the handler adds to an atomic number only.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
    let request = ScanRequest {
        all_of: Categories::PRESENT,
        returned: Categories::PRESENT,
        ..ScanRequest::over(region.start(), region.end())
    };
    let pagemap = Pagemap::of_self().unwrap();
    let mut vector = vec![ScannedRange::EMPTY; PAGES];
    let is_over = AtomicBool::new(false);
    // SAFETY: the call takes nothing.
    let scanner = unsafe { libc::pthread_self() };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                // SAFETY: the thread lives until this one has ended.
                unsafe { libc::pthread_kill(scanner, libc::SIGUSR1) };
            }
        });
        let mut scans = 0;
        while SIGNALS.load(Ordering::Relaxed) < 2000 || scans < 20 {
            let before = SIGNALS.load(Ordering::Relaxed);
            let progress = pagemap.scan_once(&request, &mut vector);
            let filled = progress.map(|progress| (progress.filled, progress.complete));
            is_over.store(filled.is_err(), Ordering::Relaxed);
            assert_eq!(filled.unwrap(), (PAGES / 2, true));
            // Only a scan during which one came shows anything.
            scans += u32::from(SIGNALS.load(Ordering::Relaxed) > before);
        }
        is_over.store(true, Ordering::Relaxed);
    });
}
