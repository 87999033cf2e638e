//! Finds sequences of puts and commits after which a page is not what was put last. The input is a
//! program of four-byte steps, run against a map from page to content as well. There is an object,
//! and memory of two regions: one of a file, and one that shows the object.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pagetide_kernel::counted_memory::CountedMemory;
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSize};
use pagetide_snapshot::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Counts what is allocated: no input may make it much.
#[global_allocator]
static MEMORY: CountedMemory = CountedMemory::new();

/// Metadata may be 64 MiB long, and is held packed, unpacked and decoded.
const MOST_BYTES: usize = 256 << 20;

const PAGES: u64 = 32;
const PAGE_BYTES: usize = 512;
const MEM: usize = 0;
const OBJECT: usize = 1;
const SEEDS: u8 = 16;

type Pages = BTreeMap<u64, (PageState, u8)>;

/// Where the regions are: the memory, where in it the second region begins and what it shows, and
/// how long the object is.
#[derive(Clone, Copy)]
struct Layout {
    first: u64,
    count: u64,
    split: u64,
    shown: u64,
    object: u64,
}

impl Layout {
    fn holds(&self, space: usize, page: u64) -> bool {
        match space {
            MEM => (self.first..self.first + self.count).contains(&page),
            _ => page < self.object,
        }
    }

    fn admits(&self, space: usize, page: u64, state: PageState) -> bool {
        let second = space == MEM && page >= self.first + self.split;
        self.holds(space, page)
            && match state {
                PageState::Shown => second,
                PageState::File => space == MEM && !second,
                _ => true,
            }
    }

    fn target(&self, page: u64) -> u64 {
        page - (self.first + self.split) + self.shown
    }

    fn spaces(&self) -> Vec<Space> {
        let size = PageSize::new(PAGE_BYTES as u64).expect("a page size");
        let region = |first, count| {
            Region::anonymous(PageRange::with_count(PageIndex(first), PageCount(count)))
        };
        let of_file = Region {
            backing: Backing::File {
                path: b"/bin/x".to_vec(),
                offset_bytes: 0,
                device: 1,
                inode: 2,
                size_bytes: 3,
                modified_ns: 4,
                build_id: Vec::new(),
            },
            ..region(self.first, self.split)
        };
        let showing = Region {
            shows: Some(Shown {
                space: "object".into(),
                first_page: PageIndex(self.shown),
            }),
            ..region(self.first + self.split, self.count - self.split)
        };
        let mem = [of_file, showing].into_iter().filter(|region| !region.pages.is_empty());
        vec![
            Space::new("mem", size, mem.collect()),
            Space::new("object", size, vec![region(0, self.object)]),
        ]
    }
}

/// What each space holds, and where.
#[derive(Clone)]
struct Model {
    own: [Pages; 2],
    layout: Layout,
}

impl Model {
    fn at(&self, space: usize, page: u64) -> Option<(PageState, u8)> {
        match *self.own[space].get(&page)? {
            (PageState::Shown, _) if space == OBJECT => None,
            (PageState::Shown, _) => self.at(OBJECT, self.layout.target(page)),
            other => Some(other),
        }
    }

    fn is_whole(&self) -> bool {
        [MEM, OBJECT].into_iter().all(|space| {
            (0..2 * PAGES).filter(|&page| self.layout.holds(space, page)).all(|page| {
                let own = self.own[space].get(&page);
                own.is_some_and(|own| self.layout.admits(space, page, own.0))
                    && self.at(space, page).is_some()
            })
        })
    }
}

fn hash(seed: u8) -> PageHash {
    PageHash::of(&page(seed))
}

/// The bytes of a page: from seed 5 on pages are alike but for a word.
fn page(seed: u8) -> [u8; PAGE_BYTES] {
    let mut page = [seed.min(5); PAGE_BYTES];
    page[usize::from(seed % 4) * 8..][..8].fill(seed);
    page
}

fn seed_of(bytes: &[u8]) -> u8 {
    let seed = (0..SEEDS).find(|&seed| page(seed) == bytes);
    seed.expect("bytes that were put")
}

fn check(view: &View, model: &Model) {
    let all = PageRange::new(PageIndex(0), PageIndex(u64::MAX));
    for space in [MEM, OBJECT] {
        let mut found = Pages::new();
        view.read(space, all, |range, content| {
            for (number, page) in range.pages().enumerate() {
                let what = match content {
                    PageContent::Bytes(bytes) => {
                        let bytes = &bytes[number * PAGE_BYTES..][..PAGE_BYTES];
                        (PageState::Data, seed_of(bytes))
                    }
                    PageContent::Zero => (PageState::Zero, 0),
                    PageContent::Guard => (PageState::Guard, 0),
                    PageContent::Unbacked => (PageState::Unbacked, 0),
                    PageContent::File(hashes) => {
                        let seed = (0..SEEDS).find(|&seed| hash(seed) == hashes[number]);
                        (PageState::File, seed.expect("a hash that was put"))
                    }
                };
                assert_eq!(view.page_state(space, page), Some(what.0));
                found.insert(page.0, what);
            }
            Ok::<(), ReadError>(())
        })
        .expect("read");
        let own = model.own[space].keys();
        let expected = own.filter_map(|&page| Some((page, model.at(space, page)?)));
        assert_eq!(found, expected.collect());
    }
}

/// Makes the chain shorter now and then, under the views that are there.
fn shorten(store: &Store, how: u8, count: usize) {
    let keep = Keep { last: 2, ..Keep::default() };
    match how {
        1 => drop(store.prune(&keep, false).expect("pruned")),
        2 => {
            let to = SnapshotId(count as u64);
            let from = SnapshotId(to.0.saturating_sub(3).max(1));
            // It may be a branch, or in use.
            drop(store.squash(from, to));
        }
        _ => {}
    }
}

fuzz_target!(|input: &[u8]| {
    let storage = MemoryStorage::new();
    let store = Store::create(Arc::new(storage)).expect("a store");
    let lock = store.lock().expect("the lock");
    let shadow = Shadow::new(20 * (PAGE_BYTES as u64 + 200));
    let mut done: Vec<(View, Model)> = Vec::new();
    for version in input.chunks(64).take(16) {
        let parent = done.last();
        let options = WriteOptions {
            threads: 1,
            frame_bytes: 1024,
            elide_unchanged: version[0] & 1 == 0,
            deduplicate: version[0] & 2 == 0,
            shadow: (version[0] & 0x10 == 0).then(|| shadow.clone()),
            ..WriteOptions::default()
        };
        let mut writer = store.begin(&lock, parent.map(|p| &p.0), options).expect("a writer");
        let mut layout = Layout {
            first: 0,
            count: PAGES,
            split: PAGES / 2,
            shown: u64::from(version[0] >> 4),
            object: PAGES,
        };
        let mut puts = [Pages::new(), Pages::new()];
        writer.set_spaces(layout.spaces()).expect("spaces");
        for step in version[1..].chunks_exact(4) {
            let at = u64::from(step[1]) % PAGES;
            let many = 1 + u64::from(step[2]) % 6;
            let range = PageRange::with_count(PageIndex(at), PageCount(many));
            let (space, seed) = (usize::from(step[2] >> 7), step[3] % SEEDS);
            let state = match step[0] % 12 {
                0 => PageState::Zero,
                1 => PageState::Guard,
                2 => PageState::Unbacked,
                3 => {
                    layout = Layout {
                        first: at,
                        count: many * 4,
                        split: u64::from(step[3]) % (many * 4 + 1),
                        shown: u64::from(step[2] >> 4),
                        object: 1 + u64::from(step[3] >> 2),
                    };
                    writer.set_spaces(layout.spaces()).expect("spaces");
                    continue;
                }
                4 | 5 => PageState::Shown,
                6 => {
                    let hashes = vec![hash(seed); many as usize];
                    writer.put_file_pages(space, PageIndex(at), &hashes).expect("put");
                    puts[space].extend(range.pages().map(|p| (p.0, (PageState::File, seed))));
                    continue;
                }
                _ => {
                    let bytes = page(seed).repeat(many as usize);
                    writer.put_pages(space, &[(PageIndex(at), &bytes)]).expect("put");
                    let state = match seed {
                        0 => PageState::Zero,
                        _ => PageState::Data,
                    };
                    puts[space].extend(range.pages().map(|page| (page.0, (state, seed))));
                    continue;
                }
            };
            writer.put_state(space, range, state).expect("put");
            puts[space].extend(range.pages().map(|page| (page.0, (state, 0))));
        }
        let mut model = Model {
            own: parent.map_or_else(Default::default, |parent| parent.1.own.clone()),
            layout,
        };
        for (space, puts) in puts.into_iter().enumerate() {
            let own = &mut model.own[space];
            own.retain(|&page, held| layout.admits(space, page, held.0));
            own.extend(puts);
            own.retain(|&page, _| layout.holds(space, page));
        }
        let whole = model.is_whole();
        match writer.commit() {
            Ok(view) => {
                assert!(whole, "a snapshot with gaps was committed");
                done.push((view, model));
                shorten(&store, version[0] >> 2 & 3, done.len());
            }
            Err(WriteError::MissingPages { .. } | WriteError::BadPages { .. }) => {
                assert!(!whole, "nothing is missing");
            }
            Err(error) => panic!("{error}"),
        }
    }
    for (view, model) in &done {
        check(view, model);
        match store.view(view.id()) {
            Err(ReadError::Pruned { .. } | ReadError::NoSuchSnapshot { .. }) => {}
            found => check(&found.expect("a view"), model),
        }
    }
    let peak = MEMORY.take_peak();
    assert!(peak < MOST_BYTES, "{peak} bytes were allocated at once");
});
