//! Prevents: kernels without PAGEMAP_SCAN being told something else. What is worked out from the entries
//! is held against the ioctl, over memory that has pages of all kinds.

use nix::libc;
use pagetide_kernel::pagemap_scan::{
    Categories, Pagemap, ScanError, ScanFlags, ScanRequest, ScannedRange,
};
use pagetide_kernel::probe::known_categories;
use pagetide_kernel::scan_by_entries::TOLD_BY_ENTRIES;
use pagetide_kernel::userfaultfd::WriteProtector;
use pagetide_testing::machine::Machine;
use pagetide_testing::{HUGE, PAGE, Region, file_of, memfd, needs, skipped};

type Reported = Vec<(u64, u64, Categories)>;

/// Ranges that touch and are alike are one: the ioctl may split where it walks.
fn add(reported: &mut Reported, range: &ScannedRange) {
    let (start, end, categories) = (range.start(), range.end(), range.categories());
    match reported.last_mut() {
        Some(last) if last.1 == start && last.2 == categories => last.1 = end,
        _ => reported.push((start, end, categories)),
    }
}

/// Both answers are the same; gives how many ranges there are.
#[track_caller]
fn compare(pagemap: &Pagemap, request: ScanRequest) -> usize {
    let (mut by_ioctl, mut by_entries) = (Reported::new(), Reported::new());
    let vector = &mut [ScannedRange::EMPTY; 512];
    // Not `scan`, which would answer from the entries itself.
    let progress = pagemap.scan_once(&request, vector).unwrap();
    assert!(progress.complete, "{progress:?}");
    vector[..progress.filled]
        .iter()
        .for_each(|range| add(&mut by_ioctl, range));
    pagemap
        .scan_by_entries(&request, |range| add(&mut by_entries, range))
        .unwrap();
    assert_eq!(by_entries, by_ioctl, "{request:?}");
    by_ioctl.len()
}

fn over(region: &Region) -> ScanRequest {
    ScanRequest::over(region.start(), region.end())
}

/// Every mask over one told category, alone and with another, as it is and flipped.
#[track_caller]
fn compare_all_masks(region: &Region) {
    let pagemap = Pagemap::of_self().unwrap();
    let told = TOLD_BY_ENTRIES & known_categories();
    let returning = |request| ScanRequest {
        returned: told,
        ..request
    };
    assert!(compare(&pagemap, returning(over(region))) > 0);
    for one in told.iter() {
        for another in told.iter() {
            for inverted in [Categories::empty(), one, one | another] {
                let all_of = ScanRequest {
                    inverted,
                    all_of: one | another,
                    ..over(region)
                };
                let any_of = ScanRequest {
                    inverted,
                    any_of: one | another,
                    ..over(region)
                };
                let both = ScanRequest {
                    inverted,
                    all_of: one,
                    any_of: another,
                    ..over(region)
                };
                for request in [all_of, any_of, both] {
                    compare(&pagemap, request);
                    compare(&pagemap, returning(request));
                }
            }
        }
    }
}

#[test]
fn entries_tell_what_the_ioctl_tells_of_private_memory() {
    needs!(scan);
    let region = Region::private(32);
    // Written, read as the zero page, never touched, written and dropped, made inaccessible.
    region.fill(0..4, 1);
    (4..8).for_each(|page| assert_eq!(region.load(page), 0));
    region.fill(12..20, 1);
    region.advise(12..16, libc::MADV_DONTNEED).unwrap();
    region.protect(16..18, libc::PROT_NONE);
    compare_all_masks(&region);
}

#[test]
fn entries_tell_what_the_ioctl_tells_of_files_and_shared_memory() {
    needs!(scan);
    let private = Region::of_file(&file_of(4, 7), 4, false);
    private.store(0, 2);
    assert_eq!(private.load(1), 7);
    compare_all_masks(&private);
    let shared = Region::of_file(&memfd("told", 4), 4, true);
    shared.store(1, 2);
    compare_all_masks(&shared);
}

#[test]
fn entries_tell_what_the_ioctl_tells_of_protected_memory() {
    needs!(scan);
    let _alone = pagetide_testing::child::without_children();
    let region = Region::filled(16, 1);
    region.advise(4..8, libc::MADV_DONTNEED).unwrap();
    let protector = WriteProtector::of_self().unwrap();
    protector
        .register(region.start(), 16 * PAGE as u64)
        .unwrap();
    assert_eq!(region.take_written(&Pagemap::of_self().unwrap()).len(), 16);
    region.store(1, 3);
    region.store(5, 3);
    region.advise(10..12, libc::MADV_DONTNEED).unwrap();
    compare_all_masks(&region);
}

#[test]
fn entries_tell_what_the_ioctl_tells_of_guards() {
    needs!(scan);
    let region = Region::filled(8, 1);
    match region.advise(2..5, pagetide_testing::MADV_GUARD_INSTALL) {
        Ok(()) => compare_all_masks(&region),
        Err(error) => skipped(
            "entries_tell_what_the_ioctl_tells_of_guards",
            &error.to_string(),
        ),
    }
}

#[test]
fn entries_tell_what_the_ioctl_tells_of_swap() {
    needs!(scan);
    let _alone = pagetide_testing::child::without_children();
    let mut machine = Machine::lock();
    if let Err(reason) = machine.swap() {
        return skipped("entries_tell_what_the_ioctl_tells_of_swap", &reason);
    }
    let region = Region::filled(8, 1);
    region.page_out(0..6);
    assert_eq!(region.load(2), 1);
    compare_all_masks(&region);
}

#[test]
fn entries_tell_what_the_ioctl_tells_of_huge_pages() {
    needs!(scan);
    let Some(region) = Region::transparent_huge(2, 1) else {
        return skipped(
            "entries_tell_what_the_ioctl_tells_of_huge_pages",
            "no huge pages",
        );
    };
    region.advise(700..701, libc::MADV_DONTNEED).unwrap();
    assert_eq!(region.page_count(), 2 * HUGE / PAGE);
    compare_all_masks(&region);
}

#[test]
fn a_limit_of_pages_is_kept() {
    let region = Region::filled(8, 1);
    let limited = ScanRequest {
        any_of: Categories::PRESENT,
        max_pages: 3,
        ..over(&region)
    };
    let mut found = Reported::new();
    let pagemap = Pagemap::of_self().unwrap();
    pagemap
        .scan_by_entries(&limited, |range| add(&mut found, range))
        .unwrap();
    let end = region.address(3);
    assert_eq!(found, [(region.start(), end, Categories::empty())]);
}

#[test]
fn what_entries_do_not_tell_is_refused_by_name() {
    let region = Region::filled(1, 1);
    let pagemap = Pagemap::of_self().unwrap();
    let refusal = |request: ScanRequest| {
        let error = pagemap
            .scan_by_entries(&request, |_| panic!("it was told"))
            .unwrap_err();
        assert!(matches!(error, ScanError::NotTold { .. }), "{error}");
        error.to_string()
    };
    let untold = Categories::all().difference(TOLD_BY_ENTRIES);
    for (name, category) in untold.iter_names() {
        let asked = [
            ScanRequest {
                any_of: category,
                ..over(&region)
            },
            ScanRequest {
                all_of: category,
                ..over(&region)
            },
            ScanRequest {
                inverted: category,
                ..over(&region)
            },
            ScanRequest {
                returned: category,
                ..over(&region)
            },
        ];
        for request in asked {
            assert!(refusal(request).contains(name));
        }
    }
    let flags = ScanFlags::WRITE_PROTECT_MATCHING;
    assert!(
        refusal(ScanRequest {
            flags,
            ..over(&region)
        })
        .contains("write-protected")
    );
}

/// Where there is no ioctl, a scan is answered all the same.
#[test]
fn a_scan_is_answered_on_every_kernel() {
    let region = Region::private(4);
    region.fill(1..3, 1);
    let request = ScanRequest {
        any_of: Categories::PRESENT,
        ..over(&region)
    };
    let mut found = Reported::new();
    let pagemap = Pagemap::of_self().unwrap();
    pagemap
        .scan(&request, &mut [ScannedRange::EMPTY; 4], |range| {
            add(&mut found, range)
        })
        .unwrap();
    assert_eq!(
        found,
        [(region.address(1), region.address(3), Categories::empty())]
    );
}
