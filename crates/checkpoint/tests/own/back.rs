//! Going back in time: baselines in memory and snapshots, compared with copies that the test has made.

use crate::snaps::{Numbers, content, exact, own, place, snap};
use nix::libc;
use pagetide::{
    Baseline, OwnMemory, OwnMemoryError, OwnMemoryOptions, OwnTracker, OwnTrackerOptions,
};
use pagetide_pages::PageCount;
use pagetide_snapshot::storage::Fault;
use pagetide_snapshot::{MemoryStorage, Store};
use pagetide_testing::{PAGE, Region, needs};
use std::sync::Arc;

fn tracker(region: &Region) -> OwnTracker {
    let made = OwnTracker::new(&[place(region, 0)], OwnTrackerOptions::default());
    made.expect("a good region")
}

#[test]
fn a_reset_writes_what_was_written_and_no_more() {
    needs!(wp_async);
    let region = Region::filled(2000, 5);
    let mut tracker = tracker(&region);
    let baseline = tracker.baseline().unwrap();
    let truth = content(&region);
    assert_eq!(tracker.reset_to(&baseline).unwrap(), PageCount(0));
    for round in 0..20u8 {
        for page in [3, 4, 5, 900 + usize::from(round)] {
            region.store(page, 77);
        }
        assert_eq!(tracker.reset_to(&baseline).unwrap(), PageCount(4));
        assert!(content(&region) == truth, "round {round}");
    }
    assert_eq!(tracker.reset_to(&baseline).unwrap(), PageCount(0));
}

/// Changes memory in one of the ways in which a program does.
fn change(region: &Region, numbers: &mut Numbers) {
    let page = numbers.below(region.page_count() as u64 - 40) as usize;
    match numbers.below(8) {
        0 => region.advise(page..page + 30, libc::MADV_DONTNEED).unwrap(),
        1 => region.replace(page..page + 20),
        2 => region.fill(page..page + 3, numbers.below(3) as u8),
        3 => {
            // By the kernel.
            let zero = std::fs::File::open("/dev/urandom").unwrap();
            let memory = std::fs::OpenOptions::new()
                .write(true)
                .open("/proc/self/mem");
            let mut bytes = [0; 100];
            std::os::unix::fs::FileExt::read_at(&zero, &mut bytes, 0).unwrap();
            let at = region.address(page) + 4000;
            std::os::unix::fs::FileExt::write_at(&memory.unwrap(), &bytes, at).unwrap();
        }
        _ => region.store(page, numbers.below(5) as u8),
    }
}

#[test]
fn baselines_and_snapshots_do_not_take_each_others_marks() {
    needs!(wp_async);
    for seed in 1..5 {
        let mut numbers = Numbers(seed * 0x2545_f491);
        let region = Region::filled(300, 5);
        let mut own = own(&region);
        let mut known: Vec<(Baseline, Vec<u8>)> = Vec::new();
        let mut views = Vec::new();
        for step in 0..120 {
            for _ in 0..numbers.below(5) {
                change(&region, &mut numbers);
            }
            match numbers.below(6) {
                0 | 1 => {
                    let what = format!("seed {seed}, step {step}");
                    views.push((exact(&mut own, &region, &what).view, content(&region)));
                }
                2 if known.len() < 4 => known.push((own.baseline().unwrap(), content(&region))),
                3 if !views.is_empty() => {
                    let at = numbers.below(views.len() as u64) as usize;
                    own.roll_back(&views[at].0).unwrap();
                    assert!(content(&region) == views[at].1, "seed {seed}, step {step}");
                }
                4 if known.len() == 4 => drop(known.swap_remove(0)),
                5 => drop(own.capture().unwrap()),
                _ if !known.is_empty() => {
                    let at = numbers.below(known.len() as u64) as usize;
                    own.reset_to(&known[at].0).unwrap();
                    assert!(content(&region) == known[at].1, "seed {seed}, step {step}");
                }
                _ => {}
            }
        }
    }
}

#[test]
fn whatever_kind_of_memory_it_is_it_goes_back() {
    needs!(wp_async);
    let file = tempfile::tempfile().unwrap();
    file.set_len(64 * PAGE as u64).unwrap();
    let all = [
        Region::shared(64),
        Region::of_file(&file, 64, false),
        Region::private(64),
    ];
    for (number, region) in all.iter().enumerate() {
        region.fill(3..20, 9);
        let mut tracker = tracker(region);
        let baseline = tracker.baseline().unwrap();
        let truth = content(region);
        for round in 0..4 {
            region.store(7, 1 + round);
            region.fill(30..33, round);
            region.advise(10..15, libc::MADV_DONTNEED).unwrap();
            region.protect(8..9, libc::PROT_READ);
            tracker.reset_to(&baseline).unwrap();
            region.protect(8..9, pagetide_testing::READ_WRITE);
            assert!(content(region) == truth, "kind {number}, round {round}");
        }
    }
}

#[test]
fn a_large_reservation_costs_what_is_used() {
    needs!(wp_async);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let length = 64usize << 30;
    let region = Region::map(length, pagetide_testing::READ_WRITE, flags, None).unwrap();
    region.fill(100..200, 3);
    let mut tracker = tracker(&region);
    let baseline = tracker.baseline().unwrap();
    for _ in 0..3 {
        region.store(150, 1);
        region.store(length / PAGE / 2, 7);
        tracker.reset_to(&baseline).unwrap();
        assert_eq!((region.load(150), region.load(length / PAGE / 2)), (3, 0));
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let tables = status.lines().find_map(|line| line.strip_prefix("VmPTE:"));
    let tables = tables.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    assert!(
        tables.expect("VmPTE") < 64 << 10,
        "{tables:?} KiB of page tables"
    );
}

#[test]
fn another_baseline_is_refused_and_one_in_a_child() {
    needs!(wp_async);
    let (one, two) = (Region::filled(16, 5), Region::filled(16, 6));
    let (mut first, mut second) = (tracker(&one), tracker(&two));
    let baseline = first.baseline().unwrap();
    let error = second.reset_to(&baseline).expect_err("it is of another");
    assert!(matches!(error, OwnMemoryError::OtherBaseline), "{error}");
    first.set_regions(&[place(&one, 4)]).unwrap();
    let error = first.reset_to(&baseline).expect_err("of other regions");
    assert!(matches!(error, OwnMemoryError::OtherBaseline), "{error}");
    let baseline = first.baseline().unwrap();
    one.store(3, 1);
    let ended = pagetide_testing::child::run_to_end(|| {
        let refused = first.reset_to(&baseline);
        i32::from(!matches!(refused, Err(OwnMemoryError::Forked { .. })))
    });
    assert_eq!(ended, Ok(0));
    one.unmap(8..9);
    let error = first.reset_to(&baseline).expect_err("a hole");
    assert!(matches!(error, OwnMemoryError::NotMapped { .. }), "{error}");
    one.replace(8..9);
    first.reset_to(&baseline).unwrap();
    assert!((0..16).all(|page| one.load(page) == 5));
}

#[test]
fn a_snapshot_that_cannot_be_read_leaves_memory_alone() {
    needs!(wp_async);
    let region = Region::filled(600, 5);
    let mut numbers = Numbers(3);
    for at in 0..600 * PAGE / 8 {
        region.store_at(at * 8, numbers.below(255) as u8);
    }
    let storage = MemoryStorage::new();
    let store = Store::create(Arc::new(storage.clone())).unwrap();
    let made = OwnMemory::new(
        store.clone(),
        &[place(&region, 0)],
        OwnMemoryOptions::default(),
    );
    let mut own = made.unwrap();
    let first = snap(&mut own).unwrap().view.id();
    region.fill(0..600, 8);
    snap(&mut own).unwrap();
    let truth = content(&region);
    let mut failed = 0;
    for at in 0..20 {
        // A view of its own each time, which has nothing in its cache.
        let view = store.view(first).unwrap();
        storage.set_fault(Some(Fault::FailOnce(at)));
        let outcome = own.roll_back(&view);
        storage.set_fault(None);
        match outcome {
            Ok(_) => break,
            Err(OwnMemoryError::PutBackInPart { .. }) => panic!("it fits into the buffer"),
            Err(_) => assert!(content(&region) == truth, "at {at}"),
        }
        failed += 1;
    }
    assert!(failed > 1, "nothing has failed");
}

#[test]
fn what_could_not_be_put_back_is_named() {
    needs!(wp_async);
    let region = Region::filled(4000, 5);
    let mut numbers = Numbers(3);
    for at in 0..4000 * PAGE / 16 {
        region.store_at(at * 16, numbers.below(255) as u8);
    }
    let storage = MemoryStorage::new();
    let store = Store::create(Arc::new(storage.clone())).unwrap();
    let mut options = OwnMemoryOptions::default();
    options.buffer_bytes = 1 << 20;
    let mut own = OwnMemory::new(store.clone(), &[place(&region, 0)], options).unwrap();
    let before = content(&region);
    let first = snap(&mut own).unwrap().view.id();
    region.fill(0..4000, 8);
    snap(&mut own).unwrap();
    let view = store.view(first).unwrap();
    storage.set_fault(Some(Fault::FailFrom(60)));
    let error = own.roll_back(&view).expect_err("it cannot be read");
    storage.set_fault(None);
    let OwnMemoryError::PutBackInPart { not_put_back, .. } = error else {
        panic!("{error}");
    };
    let missing = region.positions(&not_put_back);
    assert!(!missing.is_empty() && missing.len() < 4000);
    let now = content(&region);
    let pages = now.chunks_exact(PAGE).zip(before.chunks_exact(PAGE));
    let wrong = pages.enumerate().filter(|(_, (now, before))| now != before);
    let wrong: Vec<usize> = wrong.map(|(page, _)| page).collect();
    assert!(
        wrong.iter().all(|page| missing.contains(page)),
        "one is not named"
    );
    own.roll_back(&store.view(first).unwrap()).unwrap();
    assert!(content(&region) == before);
    exact(&mut own, &region, "the chain goes on");
}
