//! Prevents that a snapshot is called damaged, or passed over for an older one, because what decompresses it cannot be had: that
//! says nothing of the snapshot. A test program of its own, as what decompresses is chosen once for a program.

use pagetide_pages::{PageCount, PageIndex, PageRange, PageSize};
use pagetide_snapshot::{
    Decompress, MemoryStorage, ReadError, Region, Space, Store, WriteOptions, decompress_elsewhere,
};
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

struct Gone;

impl Decompress for Gone {
    fn decompress(&self, _packed: &[u8], _raw: &mut [u8]) -> io::Result<Option<usize>> {
        Err(io::Error::from_raw_os_error(24))
    }

    fn decompress_there(
        &self,
        _packed_bytes: usize,
        _put: &mut dyn FnMut(&mut [u8]) -> io::Result<()>,
        _raw_bytes: usize,
        _see: &mut dyn FnMut(&[AtomicU8]),
    ) -> io::Result<Option<usize>> {
        Err(io::Error::from_raw_os_error(24))
    }
}

#[test]
fn what_cannot_be_decompressed_now_is_not_damaged() {
    let store = Store::create(Arc::new(MemoryStorage::new())).unwrap();
    let lock = store.lock().unwrap();
    let mut writer = store.begin(&lock, None, WriteOptions::default()).unwrap();
    let pages = PageRange::with_count(PageIndex(16), PageCount(1));
    let space = Space::new("mem", PageSize::KIB_4, vec![Region::anonymous(pages)]);
    writer.set_spaces(vec![space]).unwrap();
    writer.put_pages(0, &[(PageIndex(16), &[7; 4096])]).unwrap();
    let view = writer.commit().unwrap();
    assert!(store.newest().unwrap().is_some());

    assert!(decompress_elsewhere(Box::new(Gone)));
    let no_file = |error: &ReadError| match error {
        ReadError::Io { source, .. } => source.raw_os_error() == Some(24),
        _ => false,
    };
    assert!(no_file(&store.newest().unwrap_err()));
    assert!(no_file(&store.snapshots().unwrap_err()));
    assert!(no_file(&store.view(view.id()).unwrap_err()));
    let mut page = vec![0; 4096];
    assert!(no_file(
        &view.read_page(0, PageIndex(16), &mut page).unwrap_err()
    ));
    assert!(no_file(&store.verify(&|_| ()).unwrap_err()));
}
