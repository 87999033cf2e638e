//! Writes the chain that `tests/it/golden_2.rs` reads, into the directory given. It was run once when
//! the format was fixed; it is not part of a test run.

use pagetide_pages::{PageIndex, PageRange, PageSize};
use pagetide_snapshot::*;

fn pages(start: u64, end: u64) -> PageRange {
    PageRange::new(PageIndex(start), PageIndex(end))
}

fn repeated(text: &str, length: usize) -> Vec<u8> {
    text.bytes().cycle().take(length).collect()
}

fn uneven(length: usize) -> Vec<u8> {
    (0..length).map(|n| ((n * n / 7 + n) % 251) as u8).collect()
}

fn spaces(heap_end: u64) -> Result<Vec<Space>, Box<dyn std::error::Error>> {
    let heap = Region {
        name: "[heap]".into(),
        advice: vec!["hugepage".into(), "dontfork".into()],
        ..Region::anonymous(pages(0x10, heap_end))
    };
    let text = Region {
        protection: Protection {
            read: true,
            write: false,
            execute: true,
        },
        backing: Backing::File {
            path: b"/usr/bin/true\xff".to_vec(),
            offset_bytes: 8192,
            device: 0xfd01,
            inode: 123456,
            size_bytes: 26936,
            modified_ns: -1_500_000_000,
            build_id: vec![0xc0, 0xff, 0xee, 0],
        },
        ..Region::anonymous(pages(0x20, 0x24))
    };
    let vdso = Region {
        backing: Backing::Kernel,
        capture: Capture::NotCaptured {
            reason: "the kernel makes it".into(),
        },
        ..Region::anonymous(pages(0x30, 0x32))
    };
    let shared = |first: u64, count: u64, object_page: u64| Region {
        sharing: Sharing::Shared,
        backing: Backing::SharedMemory {
            path: b"/memfd:buffer".to_vec(),
            offset_bytes: object_page * 4096,
            device: 8,
            inode: 1234,
        },
        shows: Some(Shown {
            space: "shm:8:1234".into(),
            first_page: PageIndex(object_page),
        }),
        ..Region::anonymous(pages(first, first + count))
    };
    let object = Region::anonymous(pages(0, 4));
    let huge = Region::anonymous(pages(0, 2));
    Ok(vec![
        Space::new(
            "mem",
            PageSize::KIB_4,
            vec![heap, text, vdso, shared(0x40, 5, 0), shared(0x50, 2, 2)],
        ),
        Space::new("guest", PageSize::new(65536)?, vec![huge]),
        Space::new("shm:8:1234", PageSize::KIB_4, vec![object]),
    ])
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("which directory?")?;
    let store = Store::create_directory(path)?;
    let lock = store.lock()?;
    let hashes = |texts: &[&str]| -> Vec<PageHash> {
        let page = |text: &&str| PageHash::of(&repeated(text, 4096));
        texts.iter().map(page).collect()
    };
    let options = WriteOptions {
        frame_bytes: 8192,
        deduplicate: true,
        ..WriteOptions::default()
    };
    let mut writer = store.begin(&lock, None, options.clone())?;
    writer.set_spaces(spaces(0x18)?)?;
    writer.attach("registers", b"rip=0x401000".to_vec())?;
    writer.attach("empty", Vec::new())?;
    let heap = [
        repeated("page sixteen ", 4096),
        uneven(4096),
        repeated("eighteen", 4096),
        vec![0; 8192],
    ]
    .concat();
    writer.put_pages(0, &[(PageIndex(0x10), &heap)])?;
    writer.put_state(0, pages(0x15, 0x18), PageState::Guard)?;
    writer.put_file_pages(0, PageIndex(0x20), &hashes(&["file 0", "file 1", "file 2"]))?;
    writer.put_state(0, pages(0x23, 0x24), PageState::Unbacked)?;
    writer.put_state(0, pages(0x40, 0x44), PageState::Shown)?;
    writer.put_state(0, pages(0x44, 0x45), PageState::Unbacked)?;
    writer.put_state(0, pages(0x50, 0x52), PageState::Shown)?;
    writer.put_state(0, pages(0x41, 0x42), PageState::Guard)?;
    writer.put_state(1, pages(0, 1), PageState::Zero)?;
    writer.put_pages(1, &[(PageIndex(1), &repeated("shared", 65536))])?;
    // Two of these pages are in the heap too.
    let object = [
        uneven(4096),
        vec![0; 4096],
        repeated("object two ", 4096),
        repeated("eighteen", 4096),
    ]
    .concat();
    writer.put_pages(2, &[(PageIndex(0), &object)])?;
    let full = writer.commit()?;

    let mut writer = store.begin(&lock, Some(&full), options)?;
    writer.set_spaces(spaces(0x19)?)?;
    writer.attach("registers", b"rip=0x401005".to_vec())?;
    writer.put_pages(
        0,
        &[
            (PageIndex(0x11), &repeated("written over ", 4096)),
            (PageIndex(0x10), &repeated("page sixteen ", 4096)),
            (PageIndex(0x12), &[0; 4096]),
            (PageIndex(0x18), &uneven(4096)),
        ],
    )?;
    writer.put_pages(0, &[(PageIndex(0x11), &repeated("changed ", 4096))])?;
    writer.put_pages(0, &[(PageIndex(0x21), &repeated("copied ", 4096))])?;
    writer.put_file_pages(0, PageIndex(0x22), &hashes(&["replaced"]))?;
    writer.put_pages(2, &[(PageIndex(2), &repeated("changed ", 4096))])?;
    writer.put_pages(0, &[(PageIndex(0x51), &repeated("own ", 4096))])?;
    writer.commit()?;

    println!("{}", store.id());
    for info in store.snapshots()?.good {
        println!("{}", info.content_hash);
    }
    Ok(())
}
