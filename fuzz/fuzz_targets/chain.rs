//! Finds sequences of puts and commits after which a page is not what was put last. The input is a
//! program of four-byte steps, run against a map from page to content as well.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSize};
use pagetide_snapshot::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const PAGES: u64 = 32;
const PAGE_BYTES: usize = 512;

type Pages = BTreeMap<u64, (PageState, u8)>;

fn spaces(first: u64, count: u64) -> Vec<Space> {
    let size = PageSize::new(PAGE_BYTES as u64).expect("a page size");
    let region = Region::anonymous(PageRange::with_count(PageIndex(first), PageCount(count)));
    vec![Space::new("mem", size, vec![region])]
}

fn check(view: &View, model: &Pages) {
    let all = PageRange::new(PageIndex(0), PageIndex(u64::MAX));
    let mut found = Pages::new();
    view.read(0, all, |range, content| {
        for (number, page) in range.pages().enumerate() {
            let what = match content {
                PageContent::Bytes(bytes) => {
                    let bytes = &bytes[number * PAGE_BYTES..][..PAGE_BYTES];
                    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
                    (PageState::Data, bytes[0])
                }
                PageContent::Zero => (PageState::Zero, 0),
                PageContent::Guard => (PageState::Guard, 0),
                PageContent::Unbacked => (PageState::Unbacked, 0),
                PageContent::File(_) => (PageState::File, 0),
            };
            found.insert(page.0, what);
        }
        Ok::<(), ReadError>(())
    })
    .expect("read");
    assert_eq!(&found, model);
}

fuzz_target!(|input: &[u8]| {
    let storage = MemoryStorage::new();
    let store = Store::create(Arc::new(storage)).expect("a store");
    let lock = store.lock().expect("the lock");
    let mut done: Vec<(View, Pages)> = Vec::new();
    for version in input.chunks(64).take(16) {
        let parent = done.last();
        let options = WriteOptions {
            threads: 1,
            frame_bytes: 1024,
            elide_unchanged: version[0] & 1 == 0,
            ..WriteOptions::default()
        };
        let mut writer = store.begin(&lock, parent.map(|p| &p.0), options).expect("a writer");
        let mut model = parent.map_or_else(Pages::new, |parent| parent.1.clone());
        let (mut first, mut count) = (0, PAGES);
        writer.set_spaces(spaces(first, count)).expect("spaces");
        for step in version[1..].chunks_exact(4) {
            let at = u64::from(step[1]) % PAGES;
            let many = 1 + u64::from(step[2]) % 6;
            let range = PageRange::with_count(PageIndex(at), PageCount(many));
            let state = match step[0] % 8 {
                0 => PageState::Zero,
                1 => PageState::Guard,
                2 => PageState::Unbacked,
                3 => {
                    (first, count) = (at, many * 4);
                    writer.set_spaces(spaces(first, count)).expect("spaces");
                    continue;
                }
                _ => {
                    let bytes = vec![step[3] % 5; many as usize * PAGE_BYTES];
                    writer.put_pages(0, &[(PageIndex(at), &bytes)]).expect("put");
                    let state = match step[3] % 5 {
                        0 => PageState::Zero,
                        _ => PageState::Data,
                    };
                    model.extend(range.pages().map(|page| (page.0, (state, step[3] % 5))));
                    continue;
                }
            };
            writer.put_state(0, range, state).expect("put");
            model.extend(range.pages().map(|page| (page.0, (state, 0))));
        }
        model.retain(|page, _| (first..first + count).contains(page));
        let complete = model.len() as u64 == count;
        match writer.commit() {
            Ok(view) => {
                assert!(complete, "a snapshot with gaps was committed");
                done.push((view, model));
            }
            Err(WriteError::MissingPages { .. }) => assert!(!complete, "nothing is missing"),
            Err(error) => panic!("{error}"),
        }
    }
    for (view, model) in &done {
        check(view, model);
        check(&store.view(view.id()).expect("a view"), model);
    }
});
