//! Prevents that bytes that are shown where they were decompressed are shown as those of other pages: what lies together in the
//! frames is shown in one piece, which it must not be where pages or bytes do not follow one another. A test program of its own, as
//! what decompresses is chosen once for a program.

use pagetide_pages::{PageCount, PageIndex, PageRange, PageSize};
use pagetide_snapshot::{
    Decompress, MemoryStorage, PageContent, RangeContent, ReadError, Region, Space, Store,
    WriteOptions, decompress_elsewhere,
};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const PAGE: usize = 4096;
const PAGES: u64 = 400;

/// Decompresses here, and shows the bytes as another process would.
struct Nearby;

impl Decompress for Nearby {
    fn decompress(&self, packed: &[u8], raw: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(zstd::bulk::decompress_to_buffer(packed, raw).ok())
    }

    fn decompress_there(
        &self,
        packed_bytes: usize,
        put: &mut dyn FnMut(&mut [u8]) -> io::Result<()>,
        raw_bytes: usize,
        see: &mut dyn FnMut(&[AtomicU8]),
    ) -> io::Result<Option<usize>> {
        let mut packed = vec![0; packed_bytes];
        put(&mut packed)?;
        let mut raw = vec![0; raw_bytes];
        let length = zstd::bulk::decompress_to_buffer(&packed, &mut raw)?;
        see(&raw.into_iter().map(AtomicU8::new).collect::<Vec<_>>());
        Ok(Some(length))
    }
}

/// A page of its own for each number, half of it noise.
fn page(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for byte in &mut bytes[..PAGE / 2] {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state as u8;
    }
    bytes
}

#[test]
fn bytes_shown_where_they_lie_are_those_of_their_pages() {
    let store = Store::create(Arc::new(MemoryStorage::new())).unwrap();
    let lock = store.lock().unwrap();
    let mut writer = store.begin(&lock, None, WriteOptions::default()).unwrap();
    let range = PageRange::with_count(PageIndex(16), PageCount(PAGES));
    let space = Space::new("mem", PageSize::KIB_4, vec![Region::anonymous(range)]);
    writer.set_spaces(vec![space]).unwrap();
    // In the order they are stored: some ascending, some backwards, some in another order, some like others and some empty.
    let order = (0..150)
        .chain((150..250).rev())
        .chain((250..400).map(|at| 250 + (at - 250) * 7 % 150));
    let wanted: BTreeMap<u64, Vec<u8>> = (0..PAGES)
        .map(|at| match at % 23 {
            5 => (at, page(at - 1)),
            11 => (at, vec![0; PAGE]),
            _ => (at, page(at)),
        })
        .collect();
    for at in order {
        writer
            .put_pages(0, &[(PageIndex(16 + at), &wanted[&at])])
            .unwrap();
    }
    let view = writer.commit().unwrap();

    assert!(decompress_elsewhere(Box::new(Nearby)));
    let found = Mutex::new(BTreeMap::new());
    let (loose, longest) = (AtomicUsize::new(0), AtomicUsize::new(0));
    view.read_ranges_loose::<ReadError>(0, &[range], |pages, content| {
        let length = pages.count().0 as usize * PAGE;
        let bytes = match content {
            RangeContent::Settled(PageContent::Bytes(bytes)) => bytes.to_vec(),
            RangeContent::Settled(_) => vec![0; length],
            RangeContent::Loose(bytes) => {
                loose.fetch_add(1, Ordering::Relaxed);
                longest.fetch_max(pages.count().0 as usize, Ordering::Relaxed);
                bytes
                    .iter()
                    .map(|byte| byte.load(Ordering::Relaxed))
                    .collect()
            }
        };
        assert_eq!(bytes.len(), length);
        let mut found = found.lock().unwrap();
        for (at, bytes) in pages.pages().zip(bytes.chunks(PAGE)) {
            let twice = found.insert(at.0 - 16, bytes.to_vec());
            assert!(twice.is_none(), "{at:?} is shown twice");
        }
        Ok(())
    })
    .unwrap();
    assert!(loose.into_inner() > 0, "nothing was shown where it lies");
    assert!(found.into_inner().unwrap() == wanted);
    let one_frame = 128 * 1024 / PAGE;
    let longest = longest.into_inner();
    assert!(longest <= 2 * one_frame, "{longest} pages in one piece");
}
