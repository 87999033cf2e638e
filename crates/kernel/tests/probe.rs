//! Prevents: asking the kernel for what it does not have, and believing it has what it has not. The
//! probe's answers are held against what the interfaces do.

use pagetide_kernel::pagemap_scan::{Categories, Pagemap, ScanRequest, ScannedRange};
use pagetide_kernel::probe::{Probe, known_categories};
use pagetide_kernel::userfaultfd::WriteProtector;
use pagetide_testing::{PAGE, Region, needs};

/// Probing clears the soft-dirty bits of the whole process: one test at a time.
fn probe_alone() -> (std::sync::MutexGuard<'static, ()>, Probe) {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let guard = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    (guard, Probe::of_this_kernel())
}

/// T19: newer categories are refused by older kernels, and one such bit fails the whole scan.
#[test]
fn t19_the_known_categories_are_those_that_scan() {
    needs!(scan);
    let region = Region::filled(1, 1);
    let pagemap = Pagemap::of_self().unwrap();
    let accepts = |categories| {
        let request = ScanRequest {
            returned: categories,
            ..ScanRequest::over(region.start(), region.end())
        };
        pagemap
            .scan_once(&request, &mut [ScannedRange::EMPTY])
            .is_ok()
    };
    let known = known_categories();
    assert!(accepts(known), "all at once");
    for category in Categories::all().iter() {
        assert_eq!(accepts(category), known.contains(category), "{category:?}");
    }
    let unknown = Categories::all().difference(known);
    assert!(unknown.is_empty() || !accepts(known | unknown));
}

#[test]
fn the_oldest_categories_are_known_wherever_there_is_a_scan() {
    let (_alone, probe) = probe_alone();
    let oldest = Categories::WP_ALLOWED
        | Categories::WRITTEN
        | Categories::FILE
        | Categories::PRESENT
        | Categories::SWAPPED
        | Categories::ZERO_PAGE
        | Categories::HUGE;
    assert_eq!(probe.pagemap_scan, probe.categories.contains(oldest));
    assert_eq!(probe.categories, known_categories());
}

#[test]
fn asynchronous_protection_is_had_if_the_probe_says_so() {
    let (_alone, probe) = probe_alone();
    let region = Region::filled(1, 1);
    let register = || -> Result<(), Box<dyn std::error::Error>> {
        Ok(WriteProtector::of_self()?.register(region.start(), PAGE as u64)?)
    };
    assert_eq!(
        probe.wp_async.is_ok(),
        register().is_ok(),
        "{:?}",
        probe.wp_async
    );
    assert!(probe.wp_async.is_err() || probe.pagemap_scan);
}

/// T21: `clear_refs` takes the request on kernels that have no soft-dirty bits.
#[test]
fn t21_soft_dirty_is_believed_only_if_a_store_shows_up() {
    let (_alone, probe) = probe_alone();
    std::fs::write("/proc/self/clear_refs", "4").expect("every kernel takes it");
    let region = Region::filled(1, 1);
    let pagemap = Pagemap::of_self().unwrap();
    let entry = pagemap.entries(region.pages()).unwrap()[0];
    assert_eq!(
        probe.soft_dirty.is_ok(),
        entry.is_soft_dirty(),
        "{:?}",
        probe.soft_dirty
    );
}

#[test]
fn the_probe_names_the_kernel_and_leaves_nothing_behind() {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let (_alone, probe) = probe_alone();
    let before = open();
    // Tests of this program run side by side, so only a leak in every round would show.
    let rounds = 50;
    (0..rounds).for_each(|_| drop(Probe::of_this_kernel()));
    assert!(open() < before + rounds);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(probe.kernel, release.trim());
}
