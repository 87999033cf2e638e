//! Prevents that any page of any version differs from what was put: random chains of snapshots,
//! with changing layouts, pages put twice, zeros and elision, against a map from page to content.

use crate::common::*;
use crate::model::*;
use pagetide_pages::{PageIndex, PageRange, PageSet};
use pagetide_snapshot::*;
use proptest::prelude::*;
use std::sync::Arc;

#[derive(Clone, Debug)]
enum Step {
    /// Pieces: first page, seeds of its pages.
    Put(usize, Vec<(u64, Vec<u8>)>),
    State(usize, u64, u64, PageState),
    /// First page, seeds of the pages of the file.
    File(u64, Vec<u8>),
    Layout(Layout),
}

#[derive(Clone, Debug)]
pub struct Version {
    /// How far back the parent is; none makes it full.
    parent: Option<usize>,
    layout: Layout,
    steps: Vec<Step>,
    options: WriteOptions,
    leave_one_wrong: bool,
    /// Whether it is written with the shadow.
    has_shadow: bool,
}

impl Version {
    fn options(&self, shadow: &Shadow) -> WriteOptions {
        WriteOptions {
            shadow: self.has_shadow.then(|| shadow.clone()),
            ..self.options.clone()
        }
    }
}

fn layout() -> impl Strategy<Value = Layout> {
    // Mostly long regions: a page is like its neighbour unless a sparse bit says otherwise.
    let mask = || (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(a, b, c)| !(a & b & c));
    let stretch =
        || (0_u32..24, 0_u32..16).prop_map(|(start, length)| ((1 << length) - 1_u32) << start);
    ([mask(), mask(), mask()], stretch(), stretch(), 0_u64..6).prop_map(
        |(captured, shows, of_file, offset)| Layout {
            captured,
            shows,
            of_file,
            offset,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let seed = || prop_oneof![3 => 0_u8..12, 2 => ALIKE..=255];
    let seeds = move || prop::collection::vec(seed(), 1..6);
    let piece = (0..PAGES, seeds());
    let states = vec![PageState::Zero, PageState::Guard, PageState::Unbacked];
    prop_oneof![
        5 => (0_usize..3, prop::collection::vec(piece, 1..5)).prop_map(|(s, p)| Step::Put(s, p)),
        2 => (0_usize..3, 0..PAGES, 1_u64..8, prop::sample::select(states))
            .prop_map(|(s, f, n, state)| Step::State(s, f, n, state)),
        3 => (0..PAGES, 1_u64..12).prop_map(|(f, n)| Step::State(MEM, f, n, PageState::Shown)),
        2 => (0..PAGES, seeds()).prop_map(|(f, seeds)| Step::File(f, seeds)),
        1 => layout().prop_map(Step::Layout),
    ]
}

pub fn version() -> impl Strategy<Value = Version> {
    let options = (
        1_usize..4,
        prop::sample::select(&[512_usize, 1024, 2048, 1 << 20][..]),
        any::<bool>(),
        any::<bool>(),
        prop::sample::select(
            &[
                Compression::None,
                Compression::Lz4,
                Compression::Zstd(1),
                Compression::Zstd(-3),
            ][..],
        ),
    )
        .prop_map(
            |(threads, frame_bytes, elide_unchanged, deduplicate, compression)| WriteOptions {
                threads,
                compression,
                frame_bytes,
                elide_unchanged,
                deduplicate,
                ..WriteOptions::default()
            },
        );
    (
        prop_oneof![1 => Just(None), 6 => Just(Some(0)), 2 => Just(Some(1))],
        layout(),
        prop::collection::vec(step(), 0..8),
        options,
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.8),
    )
        .prop_map(
            |(parent, layout, steps, options, leave_one_wrong, has_shadow)| Version {
                parent,
                layout,
                steps,
                options,
                leave_one_wrong,
                has_shadow,
            },
        )
}

/// Adds a version to those that are done, with whatever it has wrong put right.
pub fn add(
    (store, lock, shadow): (&Store, &WriterLock, &Shadow),
    done: &mut Vec<(View, Model)>,
    version: &Version,
) {
    let parent = version
        .parent
        .and_then(|back| done.len().checked_sub(1 + back));
    let parent = parent.map(|at| &done[at]);
    let options = version.options(shadow);
    let mut writer = store
        .begin(lock, parent.map(|p| &p.0), options)
        .expect("a writer");
    let mut puts = Puts::default();
    let layout = apply(version, &mut writer, &mut puts);
    let parent = parent.map(|parent| &parent.1);
    for wrong in Model::new(layout, parent, &puts).wrong() {
        let (Wrong::Misfit(space, page) | Wrong::Missing(space, page)) = wrong;
        puts[space].insert(page, Own::Is(Content::Unbacked));
        writer
            .put_state(space, span(page, 1), PageState::Unbacked)
            .expect("put");
    }
    let model = Model::new(layout, parent, &puts);
    done.push((writer.commit().expect("commit"), model));
}

/// Tells the writer and the model the same; gives the layout that holds in the end.
fn apply(version: &Version, writer: &mut SnapshotWriter, puts: &mut Puts) -> Layout {
    let mut layout = version.layout;
    writer.set_spaces(layout.spaces()).expect("spaces");
    for step in &version.steps {
        match step {
            Step::Layout(other) => {
                layout = *other;
                writer.set_spaces(layout.spaces()).expect("spaces");
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
                    for (number, bytes) in (first.0..).zip(bytes.chunks(length)) {
                        puts[*space].insert(number, Own::Is(Content::of(bytes)));
                    }
                }
                let pieces: Vec<_> = bytes.iter().map(|(f, b)| (*f, b.as_slice())).collect();
                writer.put_pages(*space, &pieces).expect("put");
            }
            Step::State(space, first, count, state) => {
                let own = match state {
                    PageState::Guard => Own::Is(Content::Guard),
                    PageState::Unbacked => Own::Is(Content::Unbacked),
                    PageState::Shown => Own::Shown,
                    _ => Own::Is(Content::Zero),
                };
                puts[*space].extend((*first..first + count).map(|page| (page, own.clone())));
                writer
                    .put_state(*space, span(*first, *count), *state)
                    .expect("put");
            }
            Step::File(first, seeds) => {
                let hashes: Vec<PageHash> = seeds
                    .iter()
                    .map(|&seed| hash(seed, SIZES[MEM] as usize))
                    .collect();
                let own = hashes.iter().map(|&hash| Own::Is(Content::File(hash)));
                puts[MEM].extend((*first..).zip(own));
                writer
                    .put_file_pages(MEM, PageIndex(*first), &hashes)
                    .expect("put");
            }
        }
    }
    layout
}

pub fn check_view(view: &View, model: &Model) {
    for (space, bytes) in SIZES.iter().enumerate() {
        let (length, model) = (*bytes as usize, model.contents(space));
        assert_eq!(contents(view, space).expect("read"), model);
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
            let in_file = matches!(read, Err(ReadError::InFile { .. }));
            assert_eq!(in_file, state == Some(PageState::File));
            assert_eq!(read.ok().map(|()| buffer), bytes);
        }
        let found = std::sync::Mutex::new(PageSet::new());
        view.read_parallel(space, pages(0, u64::MAX), 2, |range, content| {
            let mut found = found.lock().expect("no panic");
            for (number, page) in range.pages().enumerate() {
                assert!(!found.contains(page));
                let content = nth(content, number, length);
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
        let shadow = Shadow::new(1 << 20);
        let mut done: Vec<(View, Model)> = Vec::new();
        for version in &versions {
            let parent = version.parent.and_then(|back| done.len().checked_sub(1 + back));
            let parent = parent.map(|at| &done[at]);
            let mut writer = store.begin(&lock, parent.map(|p| &p.0), version.options(&shadow)).expect("a writer");
            let mut puts = Puts::default();
            let layout = apply(version, &mut writer, &mut puts);
            let parent = parent.map(|parent| &parent.1);
            // Everything that is wrong is put right, or everything but one thing.
            let left = usize::from(version.leave_one_wrong);
            for wrong in Model::new(layout, parent, &puts).wrong().into_iter().skip(left) {
                let (Wrong::Misfit(space, page) | Wrong::Missing(space, page)) = wrong;
                puts[space].insert(page, Own::Is(Content::Unbacked));
                writer.put_state(space, span(page, 1), PageState::Unbacked).expect("put");
            }
            let model = Model::new(layout, parent, &puts);
            let counters = writer.counters();
            prop_assert_eq!(
                counters.written_pages,
                counters.stored_pages
                    + counters.zero_pages
                    + counters.elided_pages
                    + counters.deduplicated_pages
            );
            let wrong = model.wrong();
            if wrong.is_empty() {
                done.push((writer.commit().expect("commit"), model));
                continue;
            }
            prop_assert!(version.leave_one_wrong, "{:?}", wrong);
            let misfit = wrong.iter().any(|wrong| matches!(wrong, Wrong::Misfit(..)));
            match writer.commit() {
                Err(WriteError::MissingPages { .. }) => {}
                Err(WriteError::BadPages { .. }) => prop_assert!(misfit),
                other => prop_assert!(false, "with {:?}: {:?}", wrong, other),
            }
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
                let again = reopened.view(b.id()).expect("a view");
                for (space, name) in NAMES.iter().enumerate() {
                    let expected = model_a.changed(model_b, space);
                    prop_assert_eq!(store.changed(a, b, name), expected.clone());
                    prop_assert_eq!(store.changed(a, &again, name), expected);
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
