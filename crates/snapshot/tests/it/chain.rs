//! Prevents that any page of any version differs from what was put: random chains of snapshots,
//! with changing layouts, pages put twice, zeros and elision, against a map from page to content.

use crate::common::*;
use pagetide_pages::{PageIndex, PageRange, PageSet};
use pagetide_snapshot::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const PAGES: u64 = 24;
const NAMES: [&str; 2] = ["mem", "arena"];
const SIZES: [u64; 2] = [512, 1024];

#[derive(Clone, Debug)]
enum Step {
    /// Pieces: first page, seeds of its pages.
    Put(usize, Vec<(u64, Vec<u8>)>),
    State(usize, u64, u64, PageState),
    Layout([u32; 2]),
}

#[derive(Clone, Debug)]
struct Version {
    /// How far back the parent is; none makes it full.
    parent: Option<usize>,
    /// A bit for each page that is in a captured region.
    layout: [u32; 2],
    steps: Vec<Step>,
    threads: usize,
    frame_bytes: usize,
    elide: bool,
    leave_gaps: bool,
}

fn layout() -> impl Strategy<Value = [u32; 2]> {
    // Mostly long regions: a page is like its neighbour unless a sparse bit says otherwise.
    let mask = (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(a, b, c)| !(a & b & c));
    [mask.clone(), mask]
}

fn step() -> impl Strategy<Value = Step> {
    let piece = (0..PAGES, prop::collection::vec(0_u8..12, 1..6));
    let states = vec![PageState::Zero, PageState::Guard, PageState::Unbacked];
    prop_oneof![
        5 => (0_usize..2, prop::collection::vec(piece, 1..5)).prop_map(|(s, p)| Step::Put(s, p)),
        2 => (0_usize..2, 0..PAGES, 1_u64..8, prop::sample::select(states))
            .prop_map(|(s, f, n, state)| Step::State(s, f, n, state)),
        1 => layout().prop_map(Step::Layout),
    ]
}

fn version() -> impl Strategy<Value = Version> {
    (
        prop_oneof![1 => Just(None), 6 => Just(Some(0)), 2 => Just(Some(1))],
        layout(),
        prop::collection::vec(step(), 0..8),
        1_usize..4,
        prop::sample::select(&[512_usize, 1024, 2048, 1 << 20][..]),
        any::<bool>(),
        prop::bool::weighted(0.2),
    )
        .prop_map(
            |(parent, layout, steps, threads, frame_bytes, elide, leave_gaps)| Version {
                parent,
                layout,
                steps,
                threads,
                frame_bytes,
                elide,
                leave_gaps,
            },
        )
}

fn captured(mask: u32) -> PageSet {
    let set = (0..PAGES).filter(|page| mask >> page & 1 == 1);
    set.map(|page| PageRange::single(PageIndex(page))).collect()
}

fn spaces(layout: [u32; 2]) -> Vec<Space> {
    let regions = |mask| {
        let captured = captured(mask);
        let others = PageSet::from(pages(0, PAGES + 2)).subtract(&captured);
        let mut regions: Vec<Region> = captured
            .ranges()
            .iter()
            .map(|r| Region::anonymous(*r))
            .collect();
        regions.extend(
            others
                .ranges()
                .iter()
                .map(|r| not_captured(r.start().0, r.end().0)),
        );
        regions.sort_by_key(|region| region.pages.start());
        regions
    };
    let space = |n: usize| Space::new(NAMES[n], size(SIZES[n]), regions(layout[n]));
    vec![space(0), space(1)]
}

type Pages = [BTreeMap<u64, Content>; 2];

/// Tells the writer and the model the same; gives the layout that holds in the end.
fn apply(version: &Version, writer: &mut SnapshotWriter, model: &mut Pages) -> [u32; 2] {
    let mut layout = version.layout;
    writer.set_spaces(spaces(layout)).expect("spaces");
    for step in &version.steps {
        match step {
            Step::Layout(other) => {
                layout = *other;
                writer.set_spaces(spaces(layout)).expect("spaces");
            }
            Step::Put(space, pieces) => {
                let length = SIZES[*space] as usize;
                let bytes: Vec<(PageIndex, Vec<u8>)> = pieces
                    .iter()
                    .map(|(first, seeds)| {
                        (
                            PageIndex(*first),
                            seeds.iter().flat_map(|&s| page(s, length)).collect(),
                        )
                    })
                    .collect();
                for (first, bytes) in &bytes {
                    for (number, bytes) in bytes.chunks(length).enumerate() {
                        model[*space].insert(first.0 + number as u64, Content::of(bytes));
                    }
                }
                let pieces: Vec<_> = bytes.iter().map(|(f, b)| (*f, b.as_slice())).collect();
                writer.put_pages(*space, &pieces).expect("put");
            }
            Step::State(space, first, count, state) => {
                let content = match state {
                    PageState::Guard => Content::Guard,
                    PageState::Unbacked => Content::Unbacked,
                    _ => Content::Zero,
                };
                for number in *first..first + count {
                    model[*space].insert(number, content.clone());
                }
                writer
                    .put_state(*space, span(*first, *count), *state)
                    .expect("put");
            }
        }
    }
    layout
}

fn check_view(view: &View, model: &Pages) {
    for (space, model) in model.iter().enumerate() {
        assert_eq!(&contents(view, space).expect("read"), model);
        let length = SIZES[space] as usize;
        for number in 0..PAGES + 8 {
            let (page, mut buffer) = (PageIndex(number), vec![0xaa; length]);
            let (state, hash, bytes) = match model.get(&number) {
                None => (None, None, None),
                Some(Content::Guard) => (Some(PageState::Guard), None, None),
                Some(Content::Unbacked) => (Some(PageState::Unbacked), None, None),
                Some(Content::File(hash)) => (Some(PageState::File), Some(*hash), None),
                Some(Content::Zero) => {
                    let zeros = vec![0; length];
                    (
                        Some(PageState::Zero),
                        Some(PageHash::of(&zeros)),
                        Some(zeros),
                    )
                }
                Some(Content::Bytes(b)) => (
                    Some(PageState::Data),
                    Some(PageHash::of(b)),
                    Some(b.clone()),
                ),
            };
            assert_eq!(view.page_state(space, page), state);
            assert_eq!(view.page_hash(space, page), hash);
            let read = view.read_page(space, page, &mut buffer);
            assert_eq!(read.ok().map(|()| buffer), bytes);
        }
        let found = std::sync::Mutex::new(PageSet::new());
        view.read_parallel(space, pages(0, u64::MAX), 2, |range, content| {
            let mut found = found.lock().expect("no panic");
            for (number, page) in range.pages().enumerate() {
                assert!(!found.contains(page));
                let content = match content {
                    PageContent::Bytes(b) => {
                        Content::Bytes(b[number * length..][..length].to_vec())
                    }
                    PageContent::Zero => Content::Zero,
                    PageContent::Guard => Content::Guard,
                    PageContent::Unbacked => Content::Unbacked,
                    PageContent::File(hashes) => Content::File(hashes[number]),
                };
                assert_eq!(Some(&content), model.get(&page.0));
            }
            found.insert(range);
            Ok::<(), ReadError>(())
        })
        .expect("read");
        let all: PageSet = model
            .keys()
            .map(|&n| PageRange::single(PageIndex(n)))
            .collect();
        assert_eq!(found.into_inner().expect("no panic"), all);
        let runs: Vec<_> = view.runs(space, pages(0, u64::MAX)).collect();
        assert_eq!(
            runs.iter().map(|(range, _)| *range).collect::<PageSet>(),
            all
        );
        assert!(runs.windows(2).all(|w| w[0].0.end() < w[1].0.start()
            || (w[0].0.end() == w[1].0.start() && w[0].1 != w[1].1)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_page_of_every_version_is_what_was_put(versions in prop::collection::vec(version(), 1..7)) {
        let storage = MemoryStorage::new();
        let store = Store::create(Arc::new(storage.clone())).expect("a store");
        let lock = store.lock().expect("the lock");
        let mut done: Vec<(View, Pages)> = Vec::new();
        for version in &versions {
            let parent = version.parent.and_then(|back| done.len().checked_sub(1 + back));
            let parent = parent.map(|at| &done[at]);
            let options = WriteOptions {
                threads: version.threads,
                frame_bytes: version.frame_bytes,
                elide_unchanged: version.elide,
                ..WriteOptions::default()
            };
            let mut writer = store.begin(&lock, parent.map(|p| &p.0), options).expect("a writer");
            let mut own = Pages::default();
            let layout = apply(version, &mut writer, &mut own);
            // What holds: the parent's pages, the own ones over them, in the captured regions.
            let mut model = parent.map_or_else(Pages::default, |p| p.1.clone());
            let mut gaps = false;
            for space in 0..2 {
                model[space].extend(std::mem::take(&mut own[space]));
                let captured = captured(layout[space]);
                model[space].retain(|&n, _| captured.contains(PageIndex(n)));
                for number in captured.pages().map(|p| p.0).collect::<Vec<_>>() {
                    if model[space].contains_key(&number) {
                        continue;
                    }
                    gaps = true;
                    if !version.leave_gaps {
                        model[space].insert(number, Content::Unbacked);
                        let single = PageRange::single(PageIndex(number));
                        writer.put_state(space, single, PageState::Unbacked).expect("put");
                    }
                }
            }
            let counters = writer.counters();
            prop_assert_eq!(
                counters.written_pages,
                counters.stored_pages + counters.zero_pages + counters.elided_pages
            );
            if gaps && version.leave_gaps {
                let refused = matches!(writer.commit(), Err(WriteError::MissingPages { .. }));
                prop_assert!(refused, "a snapshot with gaps was committed");
                continue;
            }
            done.push((writer.commit().expect("commit"), model));
        }
        let reopened = open(&storage).expect("a store");
        for (view, model) in &done {
            check_view(view, model);
            let again = reopened.view(view.id()).expect("a view");
            prop_assert_eq!(again.info(), view.info());
            prop_assert_eq!(again.spaces(), view.spaces());
            check_view(&again, model);
        }
        for (a, model_a) in &done {
            for (b, model_b) in &done {
                for space in 0..2 {
                    let differ = |n: &u64| model_a[space].get(n) != model_b[space].get(n);
                    let expected: PageSet = (0..PAGES + 8).filter(differ)
                        .map(|n| PageRange::single(PageIndex(n))).collect();
                    let again = reopened.view(b.id()).expect("a view");
                    prop_assert_eq!(store.changed(a, b, NAMES[space]), expected.clone());
                    prop_assert_eq!(store.changed(a, &again, NAMES[space]), expected);
                }
            }
        }
        let report = verify(&reopened);
        prop_assert!(report.ok, "{:?}", report.damaged);
        let ids: Vec<u64> = reopened.snapshots().expect("a list").good.iter().map(|i| i.id.0).collect();
        prop_assert_eq!(ids, (1..=done.len() as u64).collect::<Vec<_>>());
    }
}

#[test]
fn unchanged_pages_take_no_room() {
    let (_, store) = small_chain();
    let lock = store.lock().expect("the lock");
    let parent = store.view(SnapshotId(3)).expect("a view");
    let mut writer = store
        .begin(&lock, Some(&parent), options())
        .expect("a writer");
    writer.set_spaces(parent.spaces().to_vec()).expect("spaces");
    let mut bytes = vec![0; 512];
    for number in [5, 6, 7] {
        parent
            .read_page(0, PageIndex(number), &mut bytes)
            .expect("read");
        writer
            .put_pages(0, &[(PageIndex(number), &bytes)])
            .expect("put");
    }
    assert_eq!(writer.counters().elided_pages.0, 3);
    let view = writer.commit().expect("commit");
    assert_eq!((view.info().pages.0, view.info().zero_pages.0), (0, 0));
    assert!(store.changed(&parent, &view, "mem").is_empty());
}

#[test]
fn noise_is_stored_at_its_own_length() {
    let store = Store::create(Arc::new(MemoryStorage::new())).expect("a store");
    let lock = store.lock().expect("the lock");
    let mut noise = vec![0; 256 * 4096];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let mut writer = store
        .begin(&lock, None, WriteOptions::default())
        .expect("a writer");
    writer
        .set_spaces(vec![Space::new("mem", size(4096), vec![region(0, 256)])])
        .expect("spaces");
    writer.put_pages(0, &[(PageIndex(0), &noise)]).expect("put");
    let stored = writer.commit().expect("commit").info().stored_bytes;
    assert!(
        stored as f64 <= noise.len() as f64 * 1.01,
        "{stored} bytes for {}",
        noise.len()
    );
}
