//! Stores of every kind: by this process, by the kernel for it, from outside, and copies on write.

use super::calls;
use super::world::World;
use nix::libc;
use nix::sys::uio::{RemoteIoVec, process_vm_writev};
use pagetide_testing::{PAGE, Region, file_of};
use std::io::{IoSlice, Write};
use std::os::unix::fs::FileExt;

pub fn a_store(world: &mut World) {
    let region = world.settled(64, 1);
    world.expect(0);
    region.store(3, 2);
    region.store_at(10 * PAGE - 1, 2);
    world.expect(2);
    region.store(3, 4);
    world.expect(1);
    region.fill(0..64, 9);
    world.expect(64);
}

pub fn a_store_from_outside(world: &mut World) {
    let region = world.settled(16, 1);
    region.protect(8..16, libc::PROT_READ);
    world.settle();
    let remote = RemoteIoVec {
        base: region.address(3) as usize,
        len: 2,
    };
    process_vm_writev(nix::unistd::getpid(), &[IoSlice::new(b"xy")], &[remote]).unwrap();
    world.expect(1);
    let memory = std::fs::File::options()
        .write(true)
        .open("/proc/self/mem")
        .unwrap();
    memory.write_at(b"z", region.address(5)).unwrap();
    // As a debugger does, where the process itself may only read.
    memory.write_at(b"z", region.address(9)).unwrap();
    world.expect(2);
}

pub fn a_read_into_memory(world: &mut World) {
    let region = world.settled(8, 1);
    pagetide_testing::read_into(&region, 2, &file_of(1, 9)).unwrap();
    world.expect(1);
    let (mut end, other) = std::os::unix::net::UnixStream::pair().unwrap();
    end.write_all(b"some").unwrap();
    pagetide_testing::read_into(&region, 3, &other).unwrap();
    world.expect(1);
}

pub fn a_splice_into_memory(world: &mut World) {
    let region = world.settled(8, 1);
    let (read, write) = rustix::pipe::pipe().unwrap();
    rustix::io::write(&write, &[7; PAGE]).unwrap();
    assert_eq!(
        calls::splice_into(&region, 5, &read, PAGE),
        PAGE.cast_signed()
    );
    world.expect(1);
}

pub fn a_private_copy_of_a_file(world: &mut World) {
    let file = file_of(8, 7);
    let region = Region::of_file(&file, 8, false);
    world.watch(&region);
    assert_eq!(region.load(1), 7);
    world.settle();
    assert_eq!(region.load(2), 7);
    world.expect(0);
    region.store(1, 2);
    region.store(5, 2);
    world.expect(2);
    // The copy goes, and the file shows again; once with a look at it, once without. That a file shows
    // again is not for every backend to find: see T27.
    region.store(1, 3);
    region.advise(5..6, libc::MADV_DONTNEED).unwrap();
    if world.tracker.needs_stop() {
        world.expect(2);
        region.advise(1..2, libc::MADV_DONTNEED).unwrap();
        assert_eq!(region.load(1), 7);
        world.expect(1);
    }
}

pub fn a_child_changes_its_own_copy(world: &mut World) {
    let region = world.settled(16, 1);
    let ended = pagetide_testing::child::run_to_end(|| {
        (0..16).for_each(|page| region.store(page, 9));
        0
    });
    assert_eq!(ended, Ok(0));
    world.expect(0);
    region.store(2, 3);
    world.expect(1);
}

pub fn a_copy_after_fork(world: &mut World) {
    let region = world.settled(16, 1);
    region.store(1, 2);
    let child = pagetide_testing::child::Child::run(|_| {});
    region.store(2, 2);
    world.expect(2);
    region.store(3, 2);
    region.advise(4..5, libc::MADV_DONTNEED).unwrap();
    world.expect(2);
    drop(child);
    region.store(5, 2);
    world.expect(1);
}
