//! What the tests share: small pages, small chains, and the arithmetic to give a doctored file
//! sound checksums again. Offsets are written as in `docs/FORMAT.md`, not taken from the code.

use pagetide_pages::{PageCount, PageIndex, PageRange, PageSize};
use pagetide_snapshot::*;
use std::collections::BTreeMap;
use std::sync::Arc;

pub fn pages(start: u64, end: u64) -> PageRange {
    PageRange::new(PageIndex(start), PageIndex(end))
}

pub fn size(bytes: u64) -> PageSize {
    PageSize::new(bytes).expect("a page size")
}

pub fn region(start: u64, end: u64) -> Region {
    Region::anonymous(pages(start, end))
}

pub fn not_captured(start: u64, end: u64) -> Region {
    Region {
        capture: Capture::NotCaptured {
            reason: "a device".into(),
        },
        ..region(start, end)
    }
}

/// One thread and frames of 1 KiB, so that even small chains have many.
pub fn options() -> WriteOptions {
    WriteOptions {
        threads: 1,
        frame_bytes: 1024,
        ..WriteOptions::default()
    }
}

/// As `options`, and each page is stored once.
pub fn once() -> WriteOptions {
    WriteOptions {
        deduplicate: true,
        ..options()
    }
}

/// From this seed on pages are alike but for a word each.
pub const ALIKE: u8 = 200;

/// Bytes that depend on `seed` alone: zeros for 0, the same byte for small seeds, noise for others.
pub fn page(seed: u8, bytes: usize) -> Vec<u8> {
    if seed >= ALIKE {
        let mut page = page(8, bytes);
        page[usize::from(seed % 8) * 64..][..8].fill(seed);
        return page;
    }
    if seed < 8 {
        return vec![seed; bytes];
    }
    let mut state = u64::from(seed);
    let noise = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as u8
    });
    noise.take(bytes).collect()
}

/// What a page is, as the naive model has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Bytes(Vec<u8>),
    Zero,
    Guard,
    Unbacked,
    File(PageHash),
}

impl From<PageContent<'_>> for Content {
    /// The content of one page.
    fn from(content: PageContent<'_>) -> Self {
        match content {
            PageContent::Bytes(bytes) => Self::Bytes(bytes.to_vec()),
            PageContent::Zero => Self::Zero,
            PageContent::Guard => Self::Guard,
            PageContent::Unbacked => Self::Unbacked,
            PageContent::File(hashes) => Self::File(hashes[0]),
        }
    }
}

/// The content of page number `number` of a range with `content`.
pub fn nth(content: PageContent<'_>, number: usize, bytes: usize) -> Content {
    Content::from(match content {
        PageContent::Bytes(all) => PageContent::Bytes(&all[number * bytes..][..bytes]),
        PageContent::File(all) => PageContent::File(&all[number..][..1]),
        other => other,
    })
}

/// `region`, showing the pages of `space` from `first` on.
pub fn showing(region: Region, space: &str, first: u64) -> Region {
    Region {
        shows: Some(Shown {
            space: space.into(),
            first_page: PageIndex(first),
        }),
        ..region
    }
}

/// `region`, backed by a file.
pub fn of_file(region: Region) -> Region {
    Region {
        backing: Backing::File {
            path: b"/usr/lib/libc.so\xff".to_vec(),
            offset_bytes: 4096,
            device: 5,
            inode: 77,
            size_bytes: 99999,
            modified_ns: -3,
            build_id: vec![0xab, 0, 7],
        },
        ..region
    }
}

/// The hash of the page that `page` makes of `seed`.
pub fn hash(seed: u8, bytes: usize) -> PageHash {
    PageHash::of(&page(seed, bytes))
}

impl Content {
    pub fn of(bytes: &[u8]) -> Self {
        if bytes.iter().all(|&byte| byte == 0) {
            Self::Zero
        } else {
            Self::Bytes(bytes.to_vec())
        }
    }
}

/// Every page of a space of a view, read page by page.
pub fn contents(view: &View, space: usize) -> Result<BTreeMap<u64, Content>, ReadError> {
    let bytes = view.spaces()[space].page_size.len();
    let mut found = BTreeMap::new();
    view.read(space, pages(0, u64::MAX), |range, content| {
        for (number, page) in range.pages().enumerate() {
            let content = nth(content, number, bytes);
            assert!(found.insert(page.0, content).is_none(), "a page came twice");
        }
        Ok::<(), ReadError>(())
    })?;
    Ok(found)
}

/// All a reader can see of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub info: SnapshotInfo,
    pub spaces: Vec<Space>,
    pub attachments: Vec<Attachment>,
    pub contents: Vec<BTreeMap<u64, Content>>,
}

pub fn see(store: &Store, id: u64) -> Result<Seen, ReadError> {
    let view = store.view(SnapshotId(id))?;
    let all = (0..view.spaces().len()).map(|space| contents(&view, space));
    Ok(Seen {
        info: view.info().clone(),
        spaces: view.spaces().to_vec(),
        attachments: view.attachments().to_vec(),
        contents: all.collect::<Result<_, _>>()?,
    })
}

pub fn verify(store: &Store) -> VerifyReport {
    store.verify(&|_| ()).expect("the storage works")
}

pub fn open(storage: &MemoryStorage) -> Result<Store, OpenError> {
    Store::open(Arc::new(storage.clone()))
}

/// A full snapshot and two deltas of three spaces, with every kind of page, region and backing.
pub fn small_chain() -> (MemoryStorage, Store) {
    let storage = MemoryStorage::new();
    let store = Store::create(Arc::new(storage.clone())).expect("a store");
    let lock = store.lock().expect("the lock");
    let file = Region {
        advice: vec!["hugepage".into(), "dontfork".into()],
        name: "text".into(),
        ..of_file(region(20, 24))
    };
    let shared = Region {
        sharing: Sharing::Shared,
        backing: Backing::SharedMemory {
            path: b"/memfd:x".to_vec(),
            offset_bytes: 0,
            device: 1,
            inode: 2,
        },
        ..region(0, 4)
    };
    let vdso = Region {
        backing: Backing::Kernel,
        ..not_captured(40, 42)
    };
    let spaces = |heap_end| {
        vec![
            Space::new(
                "mem",
                size(512),
                vec![
                    region(4, heap_end),
                    file.clone(),
                    vdso.clone(),
                    showing(region(50, 53), "shm:1:3", 1),
                    showing(region(53, 55), "shm:1:3", 0),
                ],
            ),
            Space::new("shm:1:2", size(1024), vec![shared.clone()]),
            Space::new("shm:1:3", size(512), vec![region(0, 4)]),
        ]
    };
    let mut writer = store.begin(&lock, None, options()).expect("a writer");
    writer.set_spaces(spaces(10)).expect("spaces");
    writer.attach("registers", vec![1, 2, 3]).expect("attach");
    let heap: Vec<u8> = [1, 9, 3, 0, 5].iter().flat_map(|&s| page(s, 512)).collect();
    writer.put_pages(0, &[(PageIndex(4), &heap)]).expect("put");
    let guard = PageRange::single(PageIndex(9));
    writer.put_state(0, guard, PageState::Guard).expect("put");
    writer
        .put_state(0, pages(20, 24), PageState::Unbacked)
        .expect("put");
    let hashes = [20, 21, 22].map(|seed| hash(seed, 512));
    writer
        .put_file_pages(0, PageIndex(20), &hashes)
        .expect("put");
    writer
        .put_state(0, pages(50, 55), PageState::Shown)
        .expect("put");
    let guard = PageRange::single(PageIndex(52));
    writer.put_state(0, guard, PageState::Guard).expect("put");
    let object: Vec<u8> = [13, 3, 0, 14].iter().flat_map(|&s| page(s, 512)).collect();
    writer
        .put_pages(2, &[(PageIndex(0), &object)])
        .expect("put");
    writer
        .put_state(1, pages(0, 4), PageState::Zero)
        .expect("put");
    writer
        .put_pages(1, &[(PageIndex(2), &page(7, 1024))])
        .expect("put");
    let first = writer.commit().expect("commit");

    let mut writer = store.begin(&lock, Some(&first), once()).expect("a writer");
    writer.set_spaces(spaces(12)).expect("spaces");
    writer.attach("registers", vec![4]).expect("attach");
    writer.attach("log position", vec![0; 9]).expect("attach");
    writer
        .put_pages(
            0,
            &[
                (PageIndex(10), &page(10, 1024)),
                (PageIndex(21), &page(11, 512)),
            ],
        )
        .expect("put");
    // The bytes of a page that is stored just above.
    writer
        .put_pages(2, &[(PageIndex(1), &page(11, 512))])
        .expect("put");
    writer
        .put_file_pages(0, PageIndex(20), &[hashes[0], hash(23, 512)])
        .expect("put");
    let second = writer.commit().expect("commit");

    let mut writer = store
        .begin(&lock, Some(&second), options())
        .expect("a writer");
    writer.set_spaces(spaces(11)).expect("spaces");
    writer
        .put_pages(
            0,
            &[
                (PageIndex(5), &page(12, 512)),
                (PageIndex(4), &page(0, 512)),
            ],
        )
        .expect("put");
    writer
        .put_pages(1, &[(PageIndex(0), &page(2, 1024))])
        .expect("put");
    writer.commit().expect("commit");
    (storage, store)
}

/// A full snapshot and three deltas, of which all pages but one are differences: of the first two pages words, of the last
/// a patch.
pub fn chain_of_differences() -> (MemoryStorage, Store) {
    let storage = MemoryStorage::new();
    let store = Store::create(Arc::new(storage.clone())).expect("a store");
    let lock = store.lock().expect("the lock");
    let with_shadow = WriteOptions {
        shadow: Some(Shadow::new(1 << 20)),
        ..options()
    };
    let mut last: Option<View> = None;
    for turn in 0..4 {
        let mut writer = store
            .begin(&lock, last.as_ref(), with_shadow.clone())
            .expect("a writer");
        let space = Space::new("mem", size(512), vec![region(0, 4)]);
        writer.set_spaces(vec![space]).expect("spaces");
        let seeds = [ALIKE + turn, ALIKE + 8 + turn / 2, 9 + turn / 3];
        let mut bytes: Vec<u8> = seeds.iter().flat_map(|&seed| page(seed, 512)).collect();
        // Moved on by a few bytes.
        bytes.extend(vec![turn; usize::from(turn)]);
        bytes.extend(page(10, 512 - usize::from(turn)));
        writer.put_pages(0, &[(PageIndex(0), &bytes)]).expect("put");
        let differences = [0, 2, 3, 2][usize::from(turn)];
        assert_eq!(writer.counters().difference_pages.0, differences);
        last = Some(writer.commit().expect("commit"));
    }
    (storage, store)
}

pub fn snapshot_name(id: u64) -> String {
    format!("snapshots/{id:010}.snap")
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Where the metadata and the index of a snapshot file start.
pub fn sections(file: &[u8]) -> (usize, usize) {
    let metadata = (u64_at(file, 88) as usize).saturating_add(212);
    (metadata, metadata.saturating_add(u64_at(file, 96) as usize))
}

/// Gives the sections and the header of a doctored snapshot file sound checksums again, as far as
/// the lengths in the header allow.
pub fn reseal(file: &mut [u8]) {
    let (metadata, index) = sections(file);
    if metadata <= index && index <= file.len() {
        let hashes =
            [&file[metadata..index], &file[index..]].map(|part| *blake3::hash(part).as_bytes());
        file[112..144].copy_from_slice(&hashes[0]);
        file[144..176].copy_from_slice(&hashes[1]);
    }
    reseal_header(file);
}

pub fn reseal_header(file: &mut [u8]) {
    let content = *blake3::hash(&file[..176]).as_bytes();
    file[176..208].copy_from_slice(&content);
    let crc = crc32c::crc32c(&file[..208]);
    file[208..212].copy_from_slice(&crc.to_le_bytes());
}

/// The record in the metadata section of a snapshot file.
pub fn metadata_record(file: &[u8]) -> Vec<u8> {
    let (metadata, index) = sections(file);
    let length = u64_at(file, metadata) as usize;
    zstd::bulk::decompress(&file[metadata + 8..index], length).expect("a record")
}

/// The file with another record in its metadata section, and sound checksums.
pub fn with_metadata_record(file: &[u8], record: &[u8]) -> Vec<u8> {
    let (metadata, index) = sections(file);
    let mut section = (record.len() as u64).to_le_bytes().to_vec();
    section.extend(zstd::bulk::compress(record, 3).expect("compressed"));
    let mut doctored = file[..metadata].to_vec();
    doctored.extend_from_slice(&section);
    doctored.extend_from_slice(&file[index..]);
    doctored[96..104].copy_from_slice(&(section.len() as u64).to_le_bytes());
    let length = doctored.len() as u64;
    doctored[16..24].copy_from_slice(&length.to_le_bytes());
    reseal(&mut doctored);
    doctored
}

/// `count` pages from `first` on.
pub fn span(first: u64, count: u64) -> PageRange {
    PageRange::with_count(PageIndex(first), PageCount(count))
}
