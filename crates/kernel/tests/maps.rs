//! Prevents: a mapping that is not seen, or seen as something else, because of its name. The target
//! chooses its file names.

use nix::libc;
use pagetide_kernel::maps::{Mapping, MappingName, MapsError, mappings, mappings_with_flags};
use pagetide_testing::{PAGE, Region, needs, skipped};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

fn mapping_of(region: &Region) -> Mapping {
    let all = mappings(own_pid()).unwrap();
    let found = all
        .into_iter()
        .find(|mapping| mapping.start == region.start());
    found.expect("the region is not listed")
}

/// A file of one page with this name in a directory of its own, mapped.
fn named(name: &[u8]) -> (tempfile::TempDir, PathBuf, Region) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(OsStr::from_bytes(name));
    std::fs::write(&path, vec![1u8; PAGE]).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let region = Region::of_file(&file, 1, false);
    (directory, path, region)
}

#[test]
fn the_columns_of_an_anonymous_mapping() {
    let region = Region::filled(3, 1);
    region.protect(0..3, libc::PROT_READ | libc::PROT_EXEC);
    let mapping = mapping_of(&region);
    assert_eq!((mapping.start, mapping.end), (region.start(), region.end()));
    assert_eq!(mapping.pages(), region.pages());
    assert_eq!(mapping.length_bytes(), 3 * PAGE as u64);
    assert!(mapping.read && !mapping.write && mapping.execute && !mapping.shared);
    assert_eq!(
        (mapping.offset_bytes, mapping.device, mapping.inode),
        (0, (0, 0), 0)
    );
    assert!(!mapping.has_file());
    assert_eq!(mapping.name, MappingName::None);
}

#[test]
fn the_columns_of_a_file_mapping() {
    use std::os::unix::fs::MetadataExt;
    let file = pagetide_testing::file_of(4, 1);
    let flags = libc::MAP_SHARED;
    let region = Region::map(2 * PAGE, libc::PROT_READ, flags, Some((&file, 2 * PAGE))).unwrap();
    let mapping = mapping_of(&region);
    assert!(mapping.read && !mapping.write && !mapping.execute && mapping.shared);
    assert_eq!(mapping.offset_bytes, 2 * PAGE as u64);
    let metadata = file.metadata().unwrap();
    assert_eq!(mapping.inode, metadata.ino());
    let device = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
    assert_eq!(mapping.device, device);
    assert!(mapping.has_file());
}

#[test]
fn any_bytes_may_be_a_name() {
    let names: [&[u8]; 8] = [
        b"plain",
        b"\xff\xfe not utf-8 \x80",
        b"  blanks before and after  ",
        b"[heap]",
        b"SYSV",
        b"SYSV0000002a (deleted)",
        b"7f0000000000-7f0000001000 rw-p 00000000 00:00 0",
        "\u{a0}".as_bytes(),
    ];
    for name in names {
        let (_directory, path, region) = named(name);
        assert_eq!(
            mapping_of(&region).name,
            MappingName::Path(path.clone()),
            "{path:?}"
        );
    }
}

#[test]
fn a_newline_in_a_name_is_escaped() {
    let (directory, _, region) = named(b"two\nlines");
    let printed = directory.path().join("two\\012lines");
    assert_eq!(mapping_of(&region).name, MappingName::Path(printed));
}

#[test]
fn a_deleted_file_says_so_in_its_name() {
    let (_directory, path, region) = named(b"gone");
    std::fs::remove_file(&path).unwrap();
    let mut printed = path.into_os_string();
    printed.push(" (deleted)");
    let mapping = mapping_of(&region);
    assert_eq!(mapping.name, MappingName::Path(printed.into()));
    assert!(mapping.has_file());
}

#[test]
fn a_memfd_and_shared_anonymous_memory_are_files() {
    let memfd = Region::of_file(&pagetide_testing::memfd("some name", 1), 1, true);
    let path = MappingName::Path("/memfd:some name (deleted)".into());
    assert_eq!(mapping_of(&memfd).name, path);
    let shared = Region::shared(1);
    let mapping = mapping_of(&shared);
    assert_eq!(
        mapping.name,
        MappingName::Path("/dev/zero (deleted)".into())
    );
    assert!(mapping.has_file() && mapping.shared);
}

#[test]
fn a_system_v_segment_has_its_key() {
    for key in [0x5047_5444, -0x0102_0304] {
        match pagetide_testing::attach_system_v(key) {
            Ok(region) => assert_eq!(mapping_of(&region).name, MappingName::SystemV(key)),
            Err(error) => skipped("a_system_v_segment_has_its_key", &error.to_string()),
        }
    }
}

#[test]
fn a_name_set_by_prctl_is_shown_in_brackets() {
    let region = Region::filled(1, 1);
    if let Err(error) = pagetide_testing::name_memory(&region, c"my arena") {
        return skipped(
            "a_name_set_by_prctl_is_shown_in_brackets",
            &error.to_string(),
        );
    }
    assert_eq!(
        mapping_of(&region).name,
        MappingName::Other("anon:my arena".into())
    );
}

#[test]
fn the_kernels_own_mappings_are_known_by_name() {
    let names: Vec<_> = mappings(own_pid())
        .unwrap()
        .into_iter()
        .map(|m| m.name)
        .collect();
    for name in [
        MappingName::Heap,
        MappingName::Stack,
        MappingName::Vdso,
        MappingName::KernelData("vvar"),
    ] {
        assert!(names.contains(&name), "{name:?} is not among {names:?}");
    }
    let bracketed = |name: &&MappingName| matches!(name, MappingName::Other(_));
    assert_eq!(names.iter().find(bracketed), None);
}

#[test]
fn mappings_are_sorted_and_disjoint() {
    let all = mappings(own_pid()).unwrap();
    assert!(all.windows(2).all(|pair| pair[0].end <= pair[1].start));
    assert!(all.iter().all(|mapping| mapping.start < mapping.end));
}

#[test]
fn flags_come_with_the_mapping_they_belong_to() {
    let region = Region::filled(3, 1);
    region.advise(0..1, libc::MADV_DONTFORK).unwrap();
    region.advise(1..2, libc::MADV_DONTDUMP).unwrap();
    region.protect(2..3, libc::PROT_READ);
    let all = mappings_with_flags(own_pid()).unwrap();
    let flags_of = |page: usize| {
        let found = all
            .iter()
            .find(|(mapping, _)| mapping.start == region.address(page));
        found.expect("listed").1.clone()
    };
    let has = |page: usize, flag: &str| flags_of(page).iter().any(|name| name == flag);
    assert!(has(0, "dc") && !has(1, "dc") && !has(2, "dc"));
    assert!(has(1, "dd") && !has(0, "dd") && !has(2, "dd"));
    assert!(has(0, "wr") && has(2, "rd") && !has(2, "wr"));
    assert!(all.iter().all(|(_, flags)| !flags.is_empty()));
}

#[test]
fn registration_is_among_the_flags() {
    needs!(wp_async);
    let region = Region::filled(1, 1);
    let protector = pagetide_kernel::userfaultfd::WriteProtector::of_self().unwrap();
    protector.register(region.start(), PAGE as u64).unwrap();
    let all = mappings_with_flags(own_pid()).unwrap();
    let found = all
        .iter()
        .find(|(mapping, _)| mapping.start == region.start());
    assert!(found.unwrap().1.iter().any(|flag| flag == "uw"));
}

#[test]
fn both_lists_name_the_same_mappings() {
    let (_directory, _, region) = named(b"\xffbytes");
    let with_flags = mappings_with_flags(own_pid()).unwrap();
    let found = with_flags
        .iter()
        .find(|(mapping, _)| mapping.start == region.start());
    assert_eq!(found.unwrap().0, mapping_of(&region));
}

#[test]
fn a_missing_process_is_an_error_and_a_zombie_has_no_mappings() {
    let missing = mappings(i32::MAX);
    assert!(
        matches!(missing, Err(MapsError::Read { .. })),
        "{missing:?}"
    );
    let child = std::process::Command::new("/bin/true").spawn();
    let mut child = child.expect("spawn");
    let pid = child.id().cast_signed();
    while !std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .unwrap()
        .contains(") Z ")
    {
        std::thread::yield_now();
    }
    assert_eq!(mappings(pid).unwrap(), []);
    child.wait().unwrap();
}

/// Two threads change mappings as fast as they can: splitting, merging, growing, unmapping.
#[test]
fn t67_a_list_that_is_read_meanwhile_is_in_order_and_overlaps_nowhere() {
    const PAGES: usize = 64;
    /// Ends the threads, also if the test has failed.
    struct Stop<'a>(&'a std::sync::atomic::AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }
    let stop = &std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(stop);
        for seed in 0..2usize {
            let region = Region::filled(PAGES, 1);
            let beside = Region::filled(3, 1);
            scope.spawn(move || {
                let mut at = seed;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    at = (at * 31 + 7) % (PAGES - 8);
                    region.protect(at..at + 8, libc::PROT_READ);
                    region.protect(at..at + 4, libc::PROT_NONE);
                    beside.unmap(0..3);
                    beside.replace(0..3);
                    beside.fill(0..3, 1);
                    region.protect(0..PAGES, libc::PROT_READ | libc::PROT_WRITE);
                }
            });
        }
        for _ in 0..500 {
            let all = mappings(own_pid()).unwrap();
            let told = mappings_with_flags(own_pid()).unwrap();
            for list in [all, told.into_iter().map(|(mapping, _)| mapping).collect()] {
                assert!(list.len() > 10);
                assert!(list.iter().all(|mapping| mapping.start < mapping.end));
                let ordered = list.windows(2).all(|pair| pair[0].end <= pair[1].start);
                assert!(ordered, "{list:?}");
            }
        }
    });
}
