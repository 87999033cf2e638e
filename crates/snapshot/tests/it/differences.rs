//! Prevents that a page which is stored as the words that differ from its parent's comes back as anything else: through
//! chains of such pages, pruned and squashed, read in every way.

use crate::common::*;
use crate::prune::keep;
use pagetide_pages::{PageIndex, PageRange, PageSet, PageSize};
use pagetide_snapshot::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

const PAGE: usize = 4096;

/// A store that is written to by one who keeps a shadow.
struct Chain {
    storage: MemoryStorage,
    store: Store,
    lock: WriterLock,
    options: WriteOptions,
    pages: u64,
    /// What the newest snapshot is.
    now: BTreeMap<u64, Vec<u8>>,
    last: Option<View>,
}

impl Chain {
    fn new(pages: u64, shadow_bytes: u64) -> Self {
        let storage = MemoryStorage::new();
        let store = Store::create(Arc::new(storage.clone())).expect("a store");
        Self {
            lock: store.lock().expect("the lock"),
            storage,
            store,
            options: WriteOptions {
                shadow: Some(Shadow::new(shadow_bytes)),
                deduplicate: true,
                ..WriteOptions::default()
            },
            pages,
            now: (0..pages).map(|page| (page, half_noise(page))).collect(),
            last: None,
        }
    }

    fn commit(&mut self, written: &[u64]) -> WriteCounters {
        let parent = self.last.as_ref();
        let options = self.options.clone();
        let writer = self.store.begin(&self.lock, parent, options);
        let mut writer = writer.expect("a writer");
        let all = region(0, self.pages);
        let space = Space::new("mem", PageSize::KIB_4, vec![all]);
        writer.set_spaces(vec![space]).expect("spaces");
        let piece = |page: &u64| (PageIndex(*page), self.now[page].as_slice());
        let pieces: Vec<_> = written.iter().map(piece).collect();
        writer.put_pages(0, &pieces).expect("put");
        let counters = writer.counters();
        self.last = Some(writer.commit().expect("commit"));
        counters
    }

    fn all(&self) -> Vec<u64> {
        (0..self.pages).collect()
    }

    /// Writes a word into a page.
    fn write(&mut self, page: u64, word: usize, value: u64) {
        let bytes = self.now.get_mut(&page).expect("a page");
        bytes[word * 8..][..8].copy_from_slice(&value.to_le_bytes());
    }

    fn file_bytes(&self, id: u64) -> u64 {
        let file = self.storage.get(&snapshot_name(id)).expect("a file");
        file.len() as u64
    }
}

/// Noise, and as many zeros.
fn half_noise(seed: u64) -> Vec<u8> {
    let noise = (0..256).map(|word| {
        let mixed = (seed * 1000 + word + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    });
    let mut bytes: Vec<u8> = noise.flat_map(u64::to_le_bytes).collect();
    bytes.resize(PAGE, 0);
    bytes
}

/// Reads a snapshot in every way there is; each must find the same.
fn must_be(view: &View, expected: &BTreeMap<u64, Vec<u8>>) {
    let everything = pages(0, u64::MAX);
    let found: BTreeMap<u64, Content> = contents(view, 0).expect("read");
    let as_content = |(page, bytes): (&u64, &Vec<u8>)| (*page, Content::of(bytes));
    assert_eq!(found, expected.iter().map(as_content).collect());
    let collected = Mutex::new(BTreeMap::new());
    let note = |range: PageRange, bytes: &[u8]| {
        let mut collected = collected.lock().expect("no panic");
        for (page, bytes) in range.pages().zip(bytes.chunks(PAGE)) {
            assert!(collected.insert(page.0, bytes.to_vec()).is_none());
        }
    };
    let see = |range: PageRange, content: PageContent<'_>| {
        match content {
            PageContent::Bytes(bytes) => note(range, bytes),
            _ => note(range, &vec![0; range.count().0 as usize * PAGE]),
        }
        Ok::<(), ReadError>(())
    };
    view.read_parallel(0, everything, 3, see).expect("read");
    assert_eq!(
        std::mem::take(&mut *collected.lock().expect("no panic")),
        *expected
    );
    let see_loose = |range, found: RangeContent<'_>| match found {
        RangeContent::Settled(content) => see(range, content),
        RangeContent::Loose(_) => panic!("nothing decompresses elsewhere"),
    };
    view.read_ranges_loose(0, &[everything], see_loose)
        .expect("read");
    assert_eq!(
        std::mem::take(&mut *collected.lock().expect("no panic")),
        *expected
    );
    let wanted: PageSet = std::iter::once(everything).collect();
    let mut reader = BatchReader::new().expect("a reader");
    for batch in view.batches(0, &wanted) {
        for (range, bytes) in reader.read(view, &batch).expect("read") {
            note(range, bytes);
        }
    }
    let mut with_bytes = expected.clone();
    with_bytes.retain(|_, bytes| bytes.iter().any(|&byte| byte != 0));
    assert_eq!(collected.into_inner().expect("no panic"), with_bytes);
}

/// The bar: 60 bytes a page, headers and all, and a fifteenth of what zstd makes of the pages.
#[test]
fn a_few_bytes_written_take_a_few_bytes() {
    let mut chain = Chain::new(1000, 64 << 20);
    let all = chain.all();
    assert_eq!(chain.commit(&all).difference_pages.0, 0);
    for page in 0..1000 {
        chain.write(
            page,
            (page * 7 % 512) as usize,
            page.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        );
    }
    let counters = chain.commit(&all);
    assert_eq!(counters.difference_pages.0, 1000);
    assert_eq!(counters.stored_pages.0, 1000);
    let bytes = chain.file_bytes(2);
    assert!(bytes <= 60 * 1000, "{bytes} bytes");
    let whole: Vec<u8> = chain.now.values().flatten().copied().collect();
    let packed = zstd::bulk::compress(&whole, 1).expect("compressed").len() as u64;
    assert!(
        bytes * 15 <= packed,
        "{bytes} bytes where zstd makes {packed}"
    );
    must_be(
        &chain.store.view(SnapshotId(2)).expect("a view"),
        &chain.now,
    );
    assert!(verify(&chain.store).ok);
}

#[test]
fn no_page_is_made_from_more_than_eight_differences() {
    let mut chain = Chain::new(4, 1 << 20);
    let all = chain.all();
    chain.commit(&all);
    let mut states = Vec::new();
    let mut differences = Vec::new();
    for number in 0..20 {
        chain.write(1, number as usize, number + 1);
        differences.push(chain.commit(&[1]).difference_pages.0);
        states.push(chain.now.clone());
    }
    let whole: Vec<usize> = (0..20).filter(|&n| differences[n] == 0).collect();
    assert_eq!(whole, [8, 17]);
    for (state, id) in states.iter().zip(2..) {
        must_be(&chain.store.view(SnapshotId(id)).expect("a view"), state);
    }
    must_be(chain.last.as_ref().expect("a view"), &chain.now);
    assert!(verify(&chain.store).ok);
}

/// A snapshot that was not finished leaves pages in the shadow that are no parent's.
/// Prevents that a page which newer snapshots have differences to is made from more of them than it was, when the files below are
/// put together: those newer ones would exceed the eight.
#[test]
fn a_squash_makes_no_page_deeper() {
    let mut chain = Chain::new(40, 64 << 20);
    let all = chain.all();
    chain.commit(&all);
    let write = |chain: &mut Chain, value: u64| {
        chain.write(0, 3, value);
        chain.commit(&[0]).difference_pages.0
    };
    // The snapshots 2 to 8: seven differences, one over the other.
    (1..=7).for_each(|value| assert_eq!(write(&mut chain, value), 1));
    // A new writer knows nothing of them, and stores it whole: 9. Then again up to eight differences: 10 to 17.
    chain.options.shadow = Some(Shadow::new(64 << 20));
    assert_eq!(write(&mut chain, 8), 0);
    (9..=16).for_each(|value| assert_eq!(write(&mut chain, value), 1));
    let squashed = chain.store.squash(SnapshotId(8), SnapshotId(10));
    squashed.expect("squashed");
    let newest = chain.store.newest().expect("read").expect("a snapshot");
    assert_eq!(newest.id, SnapshotId(17));
    let view = chain.store.view(newest.id).expect("all is there");
    must_be(&view, &chain.now);
    // It is a difference still where that is no deeper.
    let squashed = chain.store.squash(SnapshotId(10), SnapshotId(16));
    squashed.expect("squashed");
    let view = chain.store.view(newest.id).expect("all is there");
    must_be(&view, &chain.now);
}

#[test]
fn what_was_never_committed_is_no_parent() {
    let mut chain = Chain::new(4, 1 << 20);
    let all = chain.all();
    chain.commit(&all);
    let before = chain.now.clone();
    chain.write(2, 5, 99);
    let parent = chain.last.as_ref();
    let mut writer = chain
        .store
        .begin(&chain.lock, parent, chain.options.clone())
        .expect("a writer");
    let space = Space::new("mem", PageSize::KIB_4, vec![region(0, 4)]);
    writer.set_spaces(vec![space]).expect("spaces");
    let piece = (PageIndex(2), chain.now[&2].as_slice());
    writer.put_pages(0, &[piece]).expect("put");
    drop(writer);
    chain.now = before;
    chain.write(2, 6, 98);
    assert_eq!(chain.commit(&[2]).difference_pages.0, 0);
    must_be(
        &chain.store.view(SnapshotId(2)).expect("a view"),
        &chain.now,
    );
}

/// Where nothing of the pages stays as it was, they are whole, and the snapshot is no longer than without a shadow.
#[test]
fn pages_that_are_new_are_stored_whole() {
    let lengths = [0, 64 << 20].map(|limit| {
        let mut chain = Chain::new(600, limit);
        let all = chain.all();
        chain.commit(&all);
        chain.now = (0..600)
            .map(|page| (page, half_noise(page + 5000)))
            .collect();
        assert_eq!(chain.commit(&all).difference_pages.0, 0);
        chain.file_bytes(2)
    });
    assert_eq!(lengths[0], lengths[1]);
}

/// Bytes that move take as few as bytes that change, though every word differs.
#[test]
fn pages_that_moved_take_a_few_bytes() {
    let mut chain = Chain::new(400, 64 << 20);
    let all = chain.all();
    chain.commit(&all);
    for number in 0..10 {
        for bytes in chain.now.values_mut() {
            bytes.rotate_right(5);
        }
        let differences = chain.commit(&all).difference_pages.0;
        let expected = if number == 8 { 0 } else { 400 };
        assert_eq!(differences, expected, "{number}");
    }
    let bytes = chain.file_bytes(2);
    assert!(bytes <= 100 * 400, "{bytes} bytes");
    for id in [2, 9, 10, 11] {
        chain.store.view(SnapshotId(id)).expect("a view");
    }
    must_be(chain.last.as_ref().expect("a view"), &chain.now);
    chain
        .store
        .squash(SnapshotId(3), SnapshotId(8))
        .expect("squashed");
    must_be(
        &chain.store.view(SnapshotId(11)).expect("a view"),
        &chain.now,
    );
    assert!(verify(&chain.store).ok);
}

#[derive(Clone, Debug)]
struct Turn {
    /// Page, word, value; or a page that is new, or zeros.
    words: Vec<(u64, usize, u64)>,
    new: Vec<(u64, u64)>,
    /// Pages whose bytes are moved on.
    moved: Vec<(u64, u64)>,
    /// Pages that get the bytes of another.
    copies: Vec<(u64, u64)>,
    prune: Option<u64>,
    squash: Option<(usize, usize)>,
    reopen: bool,
}

fn turn(pages: u64) -> impl Strategy<Value = Turn> {
    let some = |most| prop::collection::vec((0..pages, 0..pages), 0..most);
    (
        prop::collection::vec((0..pages, 0_usize..512, any::<u64>()), 0..40),
        some(3),
        some(6),
        some(3),
        prop::option::weighted(0.2, 1_u64..6),
        prop::option::weighted(0.2, (0_usize..8, 1_usize..6)),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(words, new, moved, copies, prune, squash, reopen)| Turn {
            words,
            new,
            moved,
            copies,
            prune,
            squash,
            reopen,
        })
}

fn take_turn(chain: &mut Chain, turn: &Turn) -> WriteCounters {
    for &(page, word, value) in &turn.words {
        chain.write(page, word, value);
    }
    for &(page, seed) in &turn.new {
        let bytes = if seed % 3 == 0 {
            vec![0; PAGE]
        } else {
            half_noise(seed + 77)
        };
        chain.now.insert(page, bytes);
    }
    for &(page, by) in &turn.moved {
        let bytes = chain.now.get_mut(&page).expect("a page");
        bytes.rotate_right(1 + by as usize % 9);
    }
    for &(to, from) in &turn.copies {
        let bytes = chain.now[&from].clone();
        chain.now.insert(to, bytes);
    }
    let words = turn.words.iter().map(|&(page, ..)| page);
    let others = turn
        .new
        .iter()
        .chain(&turn.moved)
        .chain(&turn.copies)
        .map(|&(page, _)| page);
    let mut written: Vec<u64> = words.chain(others).collect();
    written.sort_unstable();
    written.dedup();
    let counters = chain.commit(&written);
    if turn.reopen {
        let id = chain.last.take().expect("a view").id();
        chain.last = Some(chain.store.view(id).expect("a view"));
    }
    counters
}

fn ids(store: &Store) -> Vec<SnapshotId> {
    let listed = store.snapshots().expect("a list");
    listed.good.iter().map(|info| info.id).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Random chains, pruned and squashed while they grow, against plain copies of what was written.
    #[test]
    fn every_page_is_what_was_written(
        turns in prop::collection::vec(turn(40), 1..24),
        limit in prop::sample::select(&[0_u64, 30 * 4300, 1 << 20][..]),
        deduplicate in any::<bool>(),
    ) {
        let mut chain = Chain::new(40, limit);
        chain.options.deduplicate = deduplicate;
        let all = chain.all();
        chain.commit(&all);
        let mut states = BTreeMap::from([(1, chain.now.clone())]);
        let mut differences = 0;
        for turn in &turns {
            differences += take_turn(&mut chain, turn).difference_pages.0;
            let id = chain.last.as_ref().map_or(0, |view| view.id().0);
            states.insert(id, chain.now.clone());
            if let Some(last) = turn.prune {
                let held = chain.last.take();
                drop(held);
                chain.store.prune(&keep(last), false).expect("pruned");
                chain.last = Some(chain.store.view(SnapshotId(id)).expect("a view"));
            }
            if let Some((first, count)) = turn.squash {
                let ids = ids(&chain.store);
                let at = |n: usize| ids[n % ids.len()];
                chain.last = None;
                let _ = chain.store.squash(at(first), at(first + count));
                chain.last = Some(chain.store.view(SnapshotId(id)).expect("a view"));
            }
            must_be(chain.last.as_ref().expect("a view"), &chain.now);
        }
        for id in ids(&chain.store) {
            must_be(&chain.store.view(id).expect("a view"), &states[&id.0]);
        }
        let report = verify(&chain.store);
        prop_assert!(report.ok, "{:?}", report.damaged);
        if limit == 1 << 20 && turns.iter().filter(|turn| turn.words.len() > 12).count() > 3 {
            prop_assert!(differences > 0);
        }
    }
}

/// Prevents that what only shows in a chain that lives long is never seen: pages near the most differences that there can be, some
/// of them stored whole in between by a writer that had no bytes at hand, put together again and again while newer ones count on
/// them.
#[test]
fn a_chain_that_lives_long_is_what_was_written() {
    (1..=8).for_each(a_long_chain);
}

fn a_long_chain(seed: u64) {
    let mut seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut draw = |below: u64| {
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (seed >> 33) % below
    };
    let mut chain = Chain::new(6, 1 << 20);
    let all = chain.all();
    chain.commit(&all);
    let mut states = BTreeMap::from([(1, chain.now.clone())]);
    for turn in 0..600 {
        let written: Vec<u64> = (0..6).filter(|_| draw(2) == 0).collect();
        for &page in &written {
            chain.write(page, draw(256) as usize, draw(u64::MAX));
        }
        if draw(9) == 0 {
            chain.options.shadow = Some(Shadow::new(1 << 20));
        }
        chain.commit(&written);
        let id = chain.last.take().expect("a view").id();
        states.insert(id.0, chain.now.clone());
        if draw(4) == 0 {
            chain.store.prune(&keep(20), false).expect("pruned");
        }
        if draw(8) == 0 {
            let ids = ids(&chain.store);
            let first = draw(ids.len() as u64) as usize;
            let last = (first + 2 + draw(6) as usize).min(ids.len() - 1);
            // Of two that are next to each other nothing is taken away.
            let _ = chain.store.squash(ids[first], ids[last]);
        }
        let view = chain.store.view(id);
        let view = view.unwrap_or_else(|error| panic!("turn {turn}: {error}"));
        if turn % 20 == 0 {
            must_be(&view, &chain.now);
        }
        chain.last = Some(view);
    }
    let report = verify(&chain.store);
    assert!(report.ok, "{:?}", report.damaged);
    for id in ids(&chain.store) {
        must_be(&chain.store.view(id).expect("a view"), &states[&id.0]);
    }
}

/// Pages that were differences to pages in between stay so, to what comes before.
#[test]
fn squashing_keeps_differences_small() {
    let mut chain = Chain::new(500, 16 << 20);
    let all = chain.all();
    chain.commit(&all);
    for number in 0..6 {
        for page in 0..500 {
            chain.write(page, number, page * 31 + number as u64 + 1);
        }
        chain.commit(&all);
    }
    chain.last = None;
    let one = chain.file_bytes(2);
    chain
        .store
        .squash(SnapshotId(1), SnapshotId(7))
        .expect("squashed");
    let bytes = chain.file_bytes(7);
    assert!(bytes < 4 * one, "{bytes} bytes for six of {one}");
    must_be(
        &chain.store.view(SnapshotId(7)).expect("a view"),
        &chain.now,
    );
    chain.store.prune(&keep(1), false).expect("pruned");
    must_be(
        &chain.store.view(SnapshotId(7)).expect("a view"),
        &chain.now,
    );
    assert!(verify(&chain.store).ok);
}

/// Every byte of a chain of differences, changed, is named or does no harm.
#[test]
fn what_is_damaged_below_is_said_of_what_is_below() {
    let mut chain = Chain::new(3, 1 << 20);
    let all = chain.all();
    chain.commit(&all);
    chain.write(1, 9, 1);
    assert_eq!(chain.commit(&[1]).difference_pages.0, 1);
    let mut file = chain.storage.get(&snapshot_name(1)).expect("a file");
    file[300] ^= 1;
    chain.storage.put(&snapshot_name(1), file);
    let store = open(&chain.storage).expect("a store");
    let report = verify(&store);
    assert!(report.damaged.iter().all(|damage| damage.snapshot.0 == 1));
    assert_eq!(report.lost, [SnapshotId(2)]);
    let mut page = vec![0; PAGE];
    let view = store.view(SnapshotId(2)).expect("a view");
    view.read_page(0, PageIndex(1), &mut page)
        .expect_err("its parent is damaged");
}
