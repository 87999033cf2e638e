//! Prevents: bytes of the wrong page, of the wrong process, or of nothing, passed off as the target's
//! memory. A page is either read, or named as unreadable, or the read is an error.

// Lists of pieces, of which some have one.
#![allow(clippy::single_range_in_vec_init)]

use nix::libc;
use pagetide_kernel::maps;
use pagetide_kernel::memory::{MemoryError, ProcessMemory};
use pagetide_kernel::pagemap_scan::Pagemap;
use pagetide_pages::{PageIndex, PageRange, PageSize};
use pagetide_testing::child::{Child, execute_self};
use pagetide_testing::machine::Machine;
use pagetide_testing::{PAGE, Region, needs, skipped};

fn own_memory() -> ProcessMemory {
    ProcessMemory::open(std::process::id().cast_signed()).unwrap()
}

/// The first byte of every page read, and the positions in `region` of those that could not be.
fn read(
    memory: &ProcessMemory,
    region: &Region,
    pieces: &[std::ops::Range<usize>],
) -> (Vec<u8>, Vec<u64>) {
    let ranges: Vec<PageRange> = pieces
        .iter()
        .map(|piece| region.range(piece.clone()))
        .collect();
    let pages: usize = pieces.iter().map(std::ops::Range::len).sum();
    let mut bytes = vec![0xAA; pages * PAGE];
    let unreadable = memory
        .read_pages(PageSize::KIB_4, &ranges, &mut bytes)
        .unwrap();
    let first = region.pages().start().0;
    let positions = unreadable.iter().flat_map(|range| range.pages());
    (
        bytes.chunks(PAGE).map(|page| page[0]).collect(),
        positions.map(|PageIndex(index)| index - first).collect(),
    )
}

/// Eight pages that hold 1, 2, ... 8.
fn numbered() -> Region {
    let region = Region::private(8);
    (0..8).for_each(|page| region.fill(page..page + 1, page as u8 + 1));
    region
}

#[test]
fn pieces_are_read_one_after_the_other() {
    let region = numbered();
    let (bytes, unreadable) = read(&own_memory(), &region, &[6..8, 0..1, 3..3, 2..5]);
    assert_eq!((bytes, unreadable), (vec![7, 8, 1, 3, 4, 5], vec![]));
}

#[test]
fn whole_pages_are_read() {
    let region = numbered();
    let mut bytes = vec![0; 8 * PAGE];
    let memory = own_memory();
    memory
        .read_pages(PageSize::KIB_4, &[region.pages()], &mut bytes)
        .unwrap();
    let expected: Vec<u8> = (1..=8).flat_map(|value| [value; PAGE]).collect();
    assert!(bytes == expected);
}

#[test]
fn t25_pages_without_read_permission_are_read() {
    let region = numbered();
    region.protect(2..3, libc::PROT_NONE);
    region.protect(5..8, libc::PROT_NONE);
    let (bytes, unreadable) = read(&own_memory(), &region, &[0..4, 4..8]);
    assert_eq!((bytes, unreadable), (vec![1, 2, 3, 4, 5, 6, 7, 8], vec![]));
}

#[test]
fn t25_holes_are_named_and_what_follows_is_read() {
    let region = numbered();
    region.unmap(0..1);
    region.unmap(3..5);
    region.unmap(7..8);
    let (bytes, unreadable) = read(&own_memory(), &region, &[0..8]);
    assert_eq!(
        (bytes, unreadable),
        (vec![0, 2, 3, 0, 0, 6, 7, 0], vec![0, 3, 4, 7])
    );
}

#[test]
fn pages_past_the_end_of_the_file_are_named() {
    let file = pagetide_testing::file_of(4, 9);
    let region = Region::of_file(&file, 4, true);
    file.set_len(2 * PAGE as u64 - 100).unwrap();
    let (bytes, unreadable) = read(&own_memory(), &region, &[0..4]);
    assert_eq!((bytes, unreadable), (vec![9, 9, 0, 0], vec![2, 3]));
}

#[test]
fn guards_are_named() {
    let region = numbered();
    if region
        .advise(2..4, pagetide_testing::MADV_GUARD_INSTALL)
        .is_err()
    {
        return skipped("guards_are_named", "no guard regions");
    }
    let (bytes, unreadable) = read(&own_memory(), &region, &[0..8]);
    assert_eq!(
        (bytes, unreadable),
        (vec![1, 2, 0, 0, 5, 6, 7, 8], vec![2, 3])
    );
}

#[test]
fn secret_memory_is_named() {
    let Some(file) = pagetide_testing::secret_file() else {
        return skipped("secret_memory_is_named", "no memfd_secret");
    };
    file.set_len(2 * PAGE as u64).unwrap();
    let region = Region::of_file(&file, 2, true);
    region.store(0, 5);
    let (bytes, unreadable) = read(&own_memory(), &region, &[0..2]);
    assert_eq!((bytes, unreadable), (vec![0, 0], vec![0, 1]));
}

#[test]
fn t26_kernel_data_is_named() {
    let maps = pagetide_kernel::maps::mappings(std::process::id().cast_signed()).unwrap();
    let is_data = |name: &_| matches!(name, pagetide_kernel::maps::MappingName::KernelData(_));
    let memory = own_memory();
    let mut seen = 0;
    for mapping in maps.iter().filter(|mapping| is_data(&mapping.name)) {
        let pages = mapping.pages();
        let mut bytes = vec![0xAA; mapping.length_bytes() as usize];
        let unreadable = memory
            .read_pages(PageSize::KIB_4, &[pages], &mut bytes)
            .unwrap();
        // Some pages of [vvar] are ordinary ones, depending on the machine's clocks.
        let named: u64 = unreadable.iter().map(|range| range.count().0).sum();
        assert!(named >= 1 && named <= pages.count().0, "{mapping:x?}");
        seen += 1;
    }
    // Only newer kernels have a second one, [vvar_vclock].
    assert!(seen >= 1);
}

#[test]
fn more_pieces_than_one_call_takes() {
    const PAGES: usize = 5000;
    let region = Region::private(PAGES);
    (0..PAGES).for_each(|page| region.store(page, page as u8));
    region.unmap(1023..1025);
    region.protect(2048..2050, libc::PROT_NONE);
    region.unmap(4094..4095);
    let pieces: Vec<_> = (0..PAGES).step_by(2).map(|page| page..page + 1).collect();
    let (bytes, unreadable) = read(&own_memory(), &region, &pieces);
    assert_eq!(unreadable, [1024, 4094]);
    for (piece, byte) in pieces.iter().zip(bytes) {
        let gone = unreadable.contains(&(piece.start as u64));
        assert_eq!(byte, if gone { 0 } else { piece.start as u8 }, "{piece:?}");
    }
}

#[test]
fn large_pages_are_read_whole() {
    let region = Region::filled(1024, 3);
    region.store(1023, 4);
    let size = PageSize::new(2 << 20).unwrap();
    let mut bytes = vec![0; 4 << 20];
    let memory = own_memory();
    let unreadable = memory.read_pages(
        size,
        &[size.covering(region.start(), region.end())],
        &mut bytes,
    );
    assert_eq!(unreadable.unwrap(), []);
    assert_eq!(
        (bytes[0], bytes[1023 * PAGE], bytes[1023 * PAGE + 1]),
        (3, 4, 3)
    );
}

#[test]
fn a_page_of_a_huge_mapping_is_not_taken_from_elsewhere() {
    needs!(scan);
    let Some(region) = Region::transparent_huge(1, 1) else {
        return skipped(
            "a_page_of_a_huge_mapping_is_not_taken_from_elsewhere",
            "no huge pages",
        );
    };
    region.store(7, 8);
    let (bytes, _) = read(&own_memory(), &region, &[6..9]);
    assert_eq!(bytes, [1, 8, 1]);
}

#[test]
fn nothing_is_read_into_nothing() {
    let unreadable = own_memory()
        .read_pages(PageSize::KIB_4, &[], &mut [])
        .unwrap();
    assert_eq!(unreadable, []);
}

#[test]
fn exact_reads_and_writes() {
    let region = numbered();
    let memory = own_memory();
    let mut across = [0; 4];
    memory.read(region.address(1) - 2, &mut across).unwrap();
    assert_eq!(across, [1, 1, 2, 2]);
    memory.write(region.address(1) - 2, &[9; 4]).unwrap();
    assert_eq!(
        (
            region.load_at(PAGE - 2),
            region.load(1),
            region.load_at(PAGE + 2)
        ),
        (9, 9, 2)
    );
}

#[test]
fn an_exact_read_into_a_hole_is_an_error_with_its_address() {
    let region = numbered();
    region.unmap(1..2);
    match own_memory().read(region.address(1) - 2, &mut [0; 4]) {
        Err(MemoryError::Read {
            address,
            length,
            source,
            ..
        }) => {
            assert_eq!((address, length), (region.address(1) - 2, 4));
            assert_eq!(source.raw_os_error(), Some(libc::EIO));
        }
        other => panic!("{other:?}"),
    }
    let written = own_memory().write(region.address(1), &[1]);
    assert!(
        matches!(written, Err(MemoryError::Write { length: 1, .. })),
        "{written:?}"
    );
}

#[test]
fn read_only_and_unreadable_private_pages_are_written_as_copies() {
    let file = pagetide_testing::file_of(2, 7);
    let region = Region::of_file(&file, 2, false);
    region.protect(0..1, libc::PROT_READ);
    region.protect(1..2, libc::PROT_NONE);
    let memory = own_memory();
    memory.write(region.address(0), b"x").unwrap();
    memory.write(region.address(1), b"y").unwrap();
    region.protect(0..2, libc::PROT_READ);
    assert_eq!((region.load(0), region.load(1)), (b'x', b'y'));
    // From memory that may be written to into memory that may not, in one piece.
    region.protect(0..1, libc::PROT_READ | libc::PROT_WRITE);
    memory
        .fill(region.address(1) - 2, b"abcd")
        .expect("the rest is written as a debugger writes");
    let ends = [PAGE - 2, PAGE - 1, PAGE, PAGE + 1].map(|at| region.load_at(at));
    assert_eq!(&ends, b"abcd");
    let hole = Region::private(1);
    hole.unmap(0..1);
    assert!(memory.fill(hole.start(), b"x").is_err());
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_at(&file, &mut byte, 0).unwrap();
    assert_eq!(byte, [7], "the file is as it was");
}

#[test]
fn a_shared_mapping_that_may_not_be_written_is_not() {
    let file = pagetide_testing::file_of(1, 7);
    let region = Region::of_file(&file, 1, true);
    region.protect(0..1, libc::PROT_READ);
    let written = own_memory().write(region.start(), b"x");
    assert!(
        matches!(written, Err(MemoryError::Write { .. })),
        "{written:?}"
    );
    assert_eq!(region.load(0), 7);
}

#[test]
fn writes_from_outside_are_seen_as_written() {
    needs!(wp_async);
    use pagetide_kernel::pagemap_scan::Pagemap;
    let region = numbered();
    let protector = pagetide_kernel::userfaultfd::WriteProtector::of_self().unwrap();
    protector.register(region.start(), 8 * PAGE as u64).unwrap();
    region.protect(0..8, libc::PROT_READ);
    let protector_end = region.end();
    assert!(protector_end > region.start());
    let pagemap = Pagemap::of_self().unwrap();
    assert_eq!(region.take_written(&pagemap).len(), 8);
    own_memory().write(region.address(5), b"x").unwrap();
    assert_eq!(region.take_written(&pagemap), [5]);
}

#[test]
fn memory_of_another_process_is_read_and_written() {
    let region = numbered();
    let child = Child::run(|board| {
        region.store(2, 42);
        board.tell(0, 1);
        board.wait(1);
        board.tell(2, u32::from(region.load(3)));
    });
    child.wait(0);
    let memory = ProcessMemory::open(child.pid()).unwrap();
    assert_eq!(read(&memory, &region, &[1..4]).0, [2, 42, 4]);
    memory.write(region.address(3), &[77]).unwrap();
    child.tell(1, 1);
    assert_eq!(child.wait(2), 77);
    assert_eq!(
        (region.load(2), region.load(3)),
        (3, 4),
        "ours is not touched"
    );
}

#[test]
fn of_a_dead_process_everything_says_so() {
    let region = numbered();
    let child = Child::run(|board| board.tell(0, 1));
    child.wait(0);
    let memory = ProcessMemory::open(child.pid()).unwrap();
    memory.check_alive().unwrap();
    child.kill();
    all_say_gone(&memory, &region);
}

fn all_say_gone(memory: &ProcessMemory, region: &Region) {
    let gone = |what: &str, answer: Result<(), MemoryError>| {
        assert!(
            matches!(answer, Err(MemoryError::SpaceGone { .. })),
            "{what}: {answer:?}"
        );
    };
    gone("check_alive", memory.check_alive());
    gone("read", memory.read(region.start(), &mut [0; 3]));
    gone("write", memory.write(region.start(), &[0; 3]));
    let mut page = vec![0; PAGE];
    let first = region.range(0..1);
    let read = memory.read_pages(PageSize::KIB_4, &[first], &mut page);
    gone("read_pages", read.map(drop));
    let read = memory.read_pages(PageSize::KIB_4, &[], &mut []);
    gone("read_pages of nothing", read.map(drop));
}

/// After an execve(2) the process has other memory under the same number, possibly mapped at the same
/// addresses: here the same program runs again.
#[test]
fn after_execve_the_new_memory_is_not_taken_for_the_old() {
    const NAME: &std::ffi::CStr = c"after_execve_the_new_memory_is_not_taken_for_the_old";
    if std::env::var_os("PAGETIDE_TEST_IDLE").is_some() {
        loop {
            std::thread::park();
        }
    }
    let region = numbered();
    let child = Child::run(|board| {
        board.tell(0, 1);
        board.wait(1);
        execute_self(NAME);
    });
    child.wait(0);
    let memory = ProcessMemory::open(child.pid()).unwrap();
    let before = pagetide_kernel::pagemap_scan::Pagemap::of_process(child.pid()).unwrap();
    child.tell(1, 1);
    while before.is_alive() {
        std::thread::yield_now();
    }
    // Some mapping of the new program: there process_vm_readv succeeds, by the number alone.
    let readable = loop {
        let maps = pagetide_kernel::maps::mappings(child.pid()).unwrap();
        let found = maps
            .into_iter()
            .find(|mapping| mapping.read && mapping.has_file());
        if let Some(mapping) = found {
            break mapping;
        }
    };
    let mut page = vec![0; PAGE];
    let first = PageRange::single(readable.pages().start());
    let read = memory.read_pages(PageSize::KIB_4, &[first], &mut page);
    assert!(
        matches!(read, Err(MemoryError::SpaceGone { .. })),
        "{read:?}"
    );
    all_say_gone(&memory, &region);
}

#[test]
fn the_memory_of_nobody_cannot_be_opened() {
    match ProcessMemory::open(i32::MAX) {
        Err(MemoryError::Open { path, source }) => {
            assert!(path.ends_with("mem"));
            assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
        }
        other => panic!("{other:?}"),
    }
}

/// How many pages of `region` this process has for itself.
fn own_pages(region: &Region) -> usize {
    let entries = Pagemap::of_self().unwrap().entries(region.pages()).unwrap();
    entries.iter().filter(|entry| entry.is_exclusive()).count()
}

/// Other tests of this program have children of their own, which are not to share the region, too.
fn keep_from_other_children(region: &Region) {
    let whole = 0..region.page_count();
    region.advise(whole, libc::MADV_DONTFORK).unwrap();
}

/// Why reads of what fork left shared do not go through process_vm_readv(2).
#[test]
fn t36_pinning_makes_shared_pages_the_process_s_own_and_proc_mem_leaves_them() {
    use nix::sys::uio::{RemoteIoVec, process_vm_readv};
    use std::os::unix::fs::FileExt;
    let region = numbered();
    let child = Child::run(|_| {});
    // The child's pages are looked at: what this process has left may be shared with a child that
    // another test made at the same time.
    let own_pages = || {
        let pagemap = Pagemap::of_process(child.pid()).unwrap();
        let entries = pagemap.entries(region.pages()).unwrap();
        entries.iter().filter(|entry| entry.is_exclusive()).count()
    };
    assert_eq!(own_pages(), 0);
    let mut bytes = vec![0; 4 * PAGE];
    let memory = std::fs::File::open(format!("/proc/{}/mem", child.pid())).unwrap();
    memory.read_exact_at(&mut bytes, region.address(0)).unwrap();
    assert_eq!(own_pages(), 0, "/proc/PID/mem un-shares");
    let remote = RemoteIoVec {
        base: region.address(0) as usize,
        len: bytes.len(),
    };
    let pid = nix::unistd::Pid::from_raw(child.pid());
    let local = &mut [std::io::IoSliceMut::new(&mut bytes)];
    process_vm_readv(pid, local, &[remote]).unwrap();
    assert_eq!(own_pages(), 4, "process_vm_readv does not un-share");
}

#[test]
fn t36_what_fork_left_shared_stays_shared_when_it_is_read() {
    let region = numbered();
    let child = Child::run(|_| {});
    keep_from_other_children(&region);
    let own = std::process::id().cast_signed();
    for pid in [child.pid(), own] {
        let memory = ProcessMemory::open(pid).unwrap();
        for knows_mappings in [false, true] {
            if knows_mappings {
                memory.expect(&maps::mappings(pid).unwrap());
            }
            let (bytes, unreadable) = read(&memory, &region, &[6..8, 0..1, 3..3, 2..4, 4..6]);
            assert_eq!((bytes, unreadable), (vec![7, 8, 1, 3, 4, 5, 6], vec![]));
            assert_eq!(own_pages(&region), 0, "{pid} {knows_mappings}");
        }
    }
    // What is its own lies between what is shared.
    region.fill(2..3, 9);
    region.fill(5..7, 8);
    let (bytes, unreadable) = read(&own_memory(), &region, &[0..8]);
    assert_eq!((bytes, unreadable), (vec![1, 2, 9, 4, 5, 8, 8, 8], vec![]));
    assert_eq!(own_pages(&region), 3);
    let (bytes, _) = read(&ProcessMemory::open(child.pid()).unwrap(), &region, &[0..8]);
    assert_eq!(bytes, (1..=8).collect::<Vec<u8>>());
}

/// What cannot be read lies beside what is shared.
#[test]
fn t36_pages_that_cannot_be_read_among_shared_ones_are_named() {
    let region = numbered();
    region.protect(5..6, libc::PROT_NONE);
    region.unmap(3..4);
    let child = Child::run(|_| {});
    region.advise(0..3, libc::MADV_DONTFORK).unwrap();
    region.advise(4..8, libc::MADV_DONTFORK).unwrap();
    let memory = ProcessMemory::open(child.pid()).unwrap();
    let (bytes, unreadable) = read(&memory, &region, &[0..8]);
    assert_eq!((bytes, unreadable), (vec![1, 2, 3, 0, 5, 6, 7, 8], vec![3]));
    assert_eq!(own_pages(&region), 0);
}

#[test]
fn t36_merged_pages_stay_merged_when_they_are_read() {
    let test = "t36_merged_pages_stay_merged_when_they_are_read";
    let mut machine = Machine::lock();
    let settings = [
        ("/sys/kernel/mm/ksm/sleep_millisecs", "0"),
        ("/sys/kernel/mm/ksm/pages_to_scan", "100000"),
        ("/sys/kernel/mm/ksm/run", "1"),
    ];
    for (path, value) in settings {
        if let Err(error) = machine.set(path, value) {
            return skipped(test, &format!("{path}: {error}"));
        }
    }
    let _alone = pagetide_testing::child::without_children();
    let region = Region::filled(16, 7);
    region.advise(0..16, libc::MADV_MERGEABLE).unwrap();
    let scans = || std::fs::read_to_string("/sys/kernel/mm/ksm/full_scans").unwrap();
    let enough: u64 = scans().trim().parse::<u64>().unwrap() + 20;
    while own_pages(&region) > 1 && scans().trim().parse::<u64>().unwrap() < enough {
        std::thread::yield_now();
    }
    machine.set("/sys/kernel/mm/ksm/run", "0").unwrap();
    let merged = 16 - own_pages(&region);
    if merged == 0 {
        return skipped(test, "nothing was merged");
    }
    let memory = own_memory();
    memory.expect(&maps::mappings(std::process::id().cast_signed()).unwrap());
    let (bytes, unreadable) = read(&memory, &region, &[0..16]);
    assert_eq!((bytes, unreadable), (vec![7; 16], vec![]));
    assert_eq!(16 - own_pages(&region), merged);
}

/// Without a page of the pool to spare, a pin could not be had at all.
#[test]
fn t36_huge_pages_that_fork_left_shared_take_none_from_the_pool() {
    let test = "t36_huge_pages_that_fork_left_shared_take_none_from_the_pool";
    let mut machine = Machine::lock();
    if let Err(reason) = machine.huge_pages(4) {
        return skipped(test, &reason);
    }
    let region = Region::hugetlb(2, false).unwrap();
    region.store(0, 1);
    region.store(512, 2);
    let child = Child::run(|_| {});
    keep_from_other_children(&region);
    let free =
        || std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let before = free().unwrap();
    let memory = ProcessMemory::open(child.pid()).unwrap();
    let (bytes, unreadable) = read(&memory, &region, &[0..2, 512..514]);
    assert_eq!((bytes, unreadable), (vec![1, 0, 2, 0], vec![]));
    assert_eq!(free().unwrap(), before);
}
