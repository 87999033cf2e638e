//! Prevents that reading takes memory in proportion to what a snapshot says of lengths instead of what it holds. All in one test: what
//! is allocated is counted for the whole program.

use pagetide_kernel::counted_memory::CountedMemory;
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSize};
use pagetide_snapshot::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[global_allocator]
static MEMORY: CountedMemory = CountedMemory::new();

const PAGES: u64 = 2048;
const REGIONS: u64 = 4000;
const FILE_PAGES: u64 = 1 << 16;

fn range(first: u64, count: u64) -> PageRange {
    PageRange::with_count(PageIndex(first), PageCount(count))
}

/// An object that is shown by very many regions, an endless region of zeros, and a file of many pages.
fn store() -> (Store, View) {
    let store = Store::create(Arc::new(MemoryStorage::new())).expect("a store");
    let lock = store.lock().expect("the lock");
    let mut writer = store
        .begin(&lock, None, WriteOptions::default())
        .expect("a writer");
    let mut regions: Vec<Region> = (0..REGIONS)
        .map(|number| {
            let mut region = Region::anonymous(range(number * PAGES, PAGES));
            region.shows = Some(Shown {
                space: "object".to_owned(),
                first_page: PageIndex(0),
            });
            region
        })
        .collect();
    let zeros = range(REGIONS * PAGES, 1 << 51);
    regions.push(Region::anonymous(zeros));
    let mut of_file = Region::anonymous(range(0, FILE_PAGES));
    of_file.backing = Backing::File {
        path: b"/file".to_vec(),
        offset_bytes: 0,
        device: 1,
        inode: 1,
        size_bytes: FILE_PAGES * 4096,
        modified_ns: 0,
        build_id: Vec::new(),
    };
    let spaces = vec![
        Space::new("mem", PageSize::KIB_4, regions),
        Space::new(
            "object",
            PageSize::KIB_4,
            vec![Region::anonymous(range(0, PAGES))],
        ),
        Space::new("file", PageSize::KIB_4, vec![of_file]),
    ];
    writer.set_spaces(spaces).expect("spaces");
    writer
        .put_state(0, range(0, REGIONS * PAGES), PageState::Shown)
        .expect("shown");
    writer.put_state(0, zeros, PageState::Zero).expect("zeros");
    for page in 0..PAGES {
        let bytes = [&page.to_le_bytes()[..], &[1; 4088]].concat();
        writer
            .put_pages(1, &[(PageIndex(page), &bytes)])
            .expect("a page");
    }
    let hashes: Vec<PageHash> = (0..FILE_PAGES)
        .map(|n| PageHash::of(&n.to_le_bytes()))
        .collect();
    writer
        .put_file_pages(2, PageIndex(0), &hashes)
        .expect("hashes");
    let view = writer.commit().expect("a snapshot");
    drop(lock);
    (store, view)
}

#[test]
fn reading_takes_memory_by_what_is_stored_and_not_by_what_is_said() {
    let (store, view) = store();
    let all = range(0, 1 << 52);
    let (shown, zero) = (AtomicU64::new(0), AtomicU64::new(0));
    let before = MEMORY.bytes();
    MEMORY.take_peak();
    let read = view.read_parallel::<ReadError>(0, all, 2, |pages, content| {
        match content {
            PageContent::Bytes(_) => shown.fetch_add(pages.count().0, Ordering::Relaxed),
            PageContent::Zero => zero.fetch_add(pages.count().0, Ordering::Relaxed),
            _ => 0,
        };
        Ok(())
    });
    read.expect("all of it");
    let peak = MEMORY.take_peak() - before;
    assert_eq!(shown.into_inner(), REGIONS * PAGES);
    assert_eq!(zero.into_inner(), 1 << 51);
    assert!(peak < 16 << 20, "{peak} bytes");
    // Pages of files come in small pieces, with their hashes, in both ways.
    let largest = AtomicU64::new(0);
    let see = |pages: PageRange, content: PageContent<'_>| {
        let PageContent::File(hashes) = content else {
            panic!("{content:?}");
        };
        assert_eq!(hashes.len() as u64, pages.count().0);
        assert_eq!(hashes[0], PageHash::of(&pages.start().0.to_le_bytes()));
        largest.fetch_max(pages.count().0, Ordering::Relaxed);
        Ok::<(), ReadError>(())
    };
    view.read_parallel(2, all, 2, see).expect("all of it");
    view.read(2, all, see).expect("all of it");
    assert_eq!(largest.into_inner(), 256);
    // What is verified is little, too.
    MEMORY.take_peak();
    let before = MEMORY.bytes();
    let report = store.verify(&|_| {}).expect("it can be read");
    assert!(report.ok);
    let peak = MEMORY.take_peak() - before;
    assert!(peak < 32 << 20, "{peak} bytes");
    caches_are_as_large_as_fits(&view);
    threads_are_as_many_as_fit(&view);
}

/// By default eight frames are kept, of 128 KiB each.
fn caches_are_as_large_as_fits(view: &View) {
    let kept = |limit: u64| {
        limit_memory(limit);
        let before = MEMORY.bytes();
        for page in (0..PAGES).step_by(32) {
            let mut bytes = [0; 4096];
            let read = view.read_page(1, PageIndex(page), &mut bytes);
            read.expect("a page");
            assert_eq!(bytes[..8], page.to_le_bytes());
        }
        MEMORY.bytes().saturating_sub(before)
    };
    let (little, usual) = (kept(4 << 20), kept(u64::MAX));
    assert!(little < 800 << 10, "{little} bytes");
    assert!(little + usual >= 1 << 20, "{little} and {usual} bytes");
}

fn threads_are_as_many_as_fit(view: &View) {
    let at_once = |limit: u64| {
        limit_memory(limit);
        let (now, most) = (AtomicU64::new(0), AtomicU64::new(0));
        let visited = view.read_parallel::<ReadError>(1, range(0, PAGES), 4, |_, _| {
            most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
            now.fetch_sub(1, Ordering::Relaxed);
            Ok(())
        });
        visited.expect("all of it");
        most.into_inner()
    };
    assert_eq!(at_once(32 << 20), 1);
    assert!(at_once(u64::MAX) > 1);
}
