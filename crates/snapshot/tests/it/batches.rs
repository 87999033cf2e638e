//! Prevents: pages that are fetched in another order being other pages, a page that is left out, one damaged frame that takes others with
//! it.

use crate::common::{Content, contents, pages, small_chain, snapshot_name};
use pagetide_pages::{PageCount, PageSet};
use pagetide_snapshot::{BatchReader, PageState, SnapshotId, Storage, View};
use std::collections::BTreeMap;

/// All pages of a space that have bytes.
fn data(view: &View, space: usize) -> PageSet {
    let runs = view.runs(space, pages(0, u64::MAX));
    let data = runs.filter(|(_, state)| *state == PageState::Data);
    data.map(|(range, _)| range).collect()
}

/// The pages that can be fetched in batches, and how many batches cannot.
fn fetched(view: &View, space: usize, wanted: &PageSet) -> (BTreeMap<u64, Content>, usize) {
    let bytes = view.spaces()[space].page_size.len();
    let mut reader = BatchReader::new().expect("a reader");
    let (mut found, mut failed) = (BTreeMap::new(), 0);
    for batch in view.batches(space, wanted) {
        let Ok(ranges) = reader.read(view, &batch) else {
            failed += 1;
            continue;
        };
        for (range, all) in ranges {
            for (page, content) in range.pages().zip(all.chunks(bytes)) {
                let content = Content::Bytes(content.to_vec());
                assert!(found.insert(page.0, content).is_none(), "a page came twice");
            }
        }
    }
    (found, failed)
}

#[test]
fn batches_hold_what_a_reading_in_order_gives() {
    let (_, store) = small_chain();
    let newest = store.newest().expect("read").expect("a snapshot").id;
    for id in 1..=newest.0 {
        let view = store.view(SnapshotId(id)).expect("a view");
        for space in 0..view.spaces().len() {
            let mut truth = contents(&view, space).expect("contents");
            truth.retain(|_, content| matches!(content, Content::Bytes(_)));
            let all = data(&view, space);
            assert_eq!(fetched(&view, space, &all), (truth.clone(), 0));
            // Of some pages no others come.
            let some: PageSet = all
                .ranges()
                .iter()
                .map(|range| pages(range.start().0, range.start().0 + 1))
                .collect();
            truth.retain(|page, _| some.contains(pagetide_pages::PageIndex(*page)));
            assert_eq!(fetched(&view, space, &some), (truth, 0));
        }
    }
}

#[test]
fn what_was_written_last_is_of_the_newest_deltas() {
    let (_, store) = small_chain();
    let first = store.view(SnapshotId(1)).expect("a view");
    let all = data(&first, 0);
    assert!(
        first.written_last(0, &all, PageCount(u64::MAX)).is_empty(),
        "it is full"
    );
    let newest = store.newest().expect("read").expect("a snapshot").id;
    let view = store.view(newest).expect("a view");
    for space in 0..view.spaces().len() {
        let all = data(&view, space);
        let last = view.written_last(space, &all, PageCount(u64::MAX));
        assert!(last.subtract(&all).is_empty());
        assert!(view.written_last(space, &all, PageCount(0)).is_empty());
    }
}

#[test]
fn a_damaged_file_takes_its_own_batches_only() {
    let (storage, store) = small_chain();
    let newest = store.newest().expect("read").expect("a snapshot").id;
    let view = store.view(newest).expect("a view");
    let name = snapshot_name(newest.0);
    let all = data(&view, 0);
    let (before, _) = fetched(&view, 0, &all);
    storage.remove(&name).expect("remove a file");
    let (after, failed) = fetched(&view, 0, &all);
    assert!(failed > 0);
    assert!(!after.is_empty() && after.len() < before.len());
    assert!(after.iter().all(|(page, content)| before[page] == *content));
}
