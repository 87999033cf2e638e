//! Pages that are dropped, and huge pages that come and go.

use super::calls;
use super::world::World;
use nix::libc;
use pagetide_testing::machine::Machine;
use pagetide_testing::{HUGE, PAGE};

const TABLE: usize = HUGE / PAGE;

pub fn dropped(world: &mut World) {
    let region = world.settled(16, 1);
    region.advise(2..6, libc::MADV_DONTNEED).unwrap();
    world.expect(4);
    region.store(3, 1);
    world.expect(1);
    region.store(4, 5);
    region.advise(3..5, libc::MADV_DONTNEED).unwrap();
    world.expect(1);
    region.store(7, 9);
    region.advise(7..8, libc::MADV_DONTNEED).unwrap();
    region.fill(7..8, 1);
    world.expect(0);
}

/// The shared zero page has no bit of its own.
pub fn dropped_and_read(world: &mut World) {
    let region = world.settled(16, 1);
    region.advise(2..6, libc::MADV_DONTNEED).unwrap();
    assert_eq!((region.load(3), region.load(4)), (0, 0));
    world.expect(4);
    region.store(3, 2);
    world.expect(1);
}

pub fn dropped_with_its_page_table(world: &mut World) {
    let region = world.settled(3 * TABLE, 1);
    region
        .advise(TABLE..2 * TABLE, libc::MADV_DONTNEED)
        .unwrap();
    world.expect(TABLE as u64);
    region.unmap(0..TABLE);
    region.replace(0..TABLE);
    region.store(5, 2);
    world.expect(TABLE as u64);
}

pub fn huge_pages_split(world: &mut World) {
    let Some(region) = calls::huge(2, 1) else {
        return world.skip("no huge pages");
    };
    world.watch(&region);
    world.settle();
    region.store(5, 2);
    world.expect(1);
    region
        .advise(TABLE + 7..TABLE + 9, libc::MADV_DONTNEED)
        .unwrap();
    world.expect(2);
    region.store(TABLE + 8, 2);
    region.store(TABLE + 20, 2);
    world.expect(2);
    region.protect(40..44, libc::PROT_READ);
    region.store(50, 2);
    world.expect(1);
}

pub fn huge_pages_collapse(world: &mut World) {
    let region = pagetide_testing::Region::map(
        HUGE,
        pagetide_testing::READ_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        None,
    );
    let region = region.unwrap();
    region.advise(0..TABLE, libc::MADV_NOHUGEPAGE).unwrap();
    (0..TABLE).step_by(2).for_each(|page| region.store(page, 1));
    world.watch(&region);
    world.settle();
    region.store(7, 2);
    region.advise(0..TABLE, libc::MADV_HUGEPAGE).unwrap();
    if region.advise(0..TABLE, libc::MADV_COLLAPSE).is_err() {
        // It is refused where the pages are write-protected; nothing may be lost by it.
        return world.expect(1);
    }
    region.store(9, 2);
    world.expect(2);
    region.store(11, 2);
    world.expect(1);
}

pub fn huge_pages_are_moved(world: &mut World) {
    let (Some(from), Some(to)) = (calls::huge(1, 1), calls::huge(1, 2)) else {
        return world.skip("no huge pages");
    };
    world.watch(&from);
    world.watch(&to);
    world.settle();
    from.move_to(0..TABLE, &to, 0, true);
    world.expect(2 * TABLE as u64);
    to.store(3, 9);
    world.expect(1);
}

/// The huge zero page.
pub fn huge_pages_are_dropped_and_read(world: &mut World) {
    let Some(region) = calls::huge(2, 1) else {
        return world.skip("no huge pages");
    };
    world.watch(&region);
    world.settle();
    region.advise(0..TABLE, libc::MADV_DONTNEED).unwrap();
    assert_eq!(region.load(6), 0);
    world.expect(TABLE as u64);
    region.store(6, 3);
    world.expect(1);
}

/// T59: these have no bits, so they are refused, or the store is seen.
pub fn huge_pages_of_hugetlbfs(world: &mut World) {
    let mut machine = Machine::lock();
    if let Err(reason) = machine.huge_pages(2) {
        return world.skip(&reason);
    }
    let region = pagetide_testing::Region::hugetlb(1, false).unwrap();
    region.fill(0..TABLE, 1);
    world.watch(&region);
    world.settle();
    region.store(5, 2);
    world.expect(1);
}

pub fn guards(world: &mut World) {
    let region = world.settled(16, 1);
    if let Err(error) = region.advise(2..5, pagetide_testing::MADV_GUARD_INSTALL) {
        return world.skip(&format!("guard regions: {error}"));
    }
    world.expect(3);
    world.expect(0);
    region
        .advise(2..4, pagetide_testing::MADV_GUARD_REMOVE)
        .unwrap();
    region.store(3, 4);
    world.expect(2);
}
