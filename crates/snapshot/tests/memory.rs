//! Prevents that reading takes memory in proportion to what a snapshot says of lengths instead of what it holds. All in one test: what
//! is allocated is counted for the whole program.

use pagetide_kernel::counted_memory::CountedMemory;
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSize};
use pagetide_snapshot::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
}
