//! What the kernel does with pages by itself: swap, reclaim, merging.

use super::calls;
use super::world::World;
use nix::libc;
use pagetide_testing::machine::Machine;
use pagetide_testing::{HUGE, PAGE, Region};

const TABLE: usize = HUGE / PAGE;

/// Swap, and nobody who shares pages, which would keep them in memory.
macro_rules! with_swap {
    ($world:ident) => {{
        let alone = pagetide_testing::child::without_children();
        let mut machine = Machine::lock();
        if let Err(reason) = machine.swap() {
            return $world.skip(&reason);
        }
        (alone, machine)
    }};
}

pub fn swapped_out_and_in(world: &mut World) {
    let (_alone, mut machine) = with_swap!(world);
    let region = world.settled(32, 1);
    region.store(1, 2);
    region.page_out(0..8);
    world.expect(1);
    region.page_out(0..8);
    world.expect(0);
    region.page_out(0..8);
    region.store(2, 2);
    region.page_out(0..8);
    assert_eq!(region.load(2), 2);
    world.expect(1);
    region.store(3, 2);
    region.page_out(0..8);
    machine.swap_off();
    world.expect(1);
}

pub fn dropped_while_in_swap(world: &mut World) {
    let (_alone, _machine) = with_swap!(world);
    let region = world.settled(32, 1);
    region.page_out(0..16);
    world.expect(0);
    region.page_out(0..16);
    region.advise(2..6, libc::MADV_DONTNEED).unwrap();
    assert_eq!(region.load(3), 0);
    region.replace(8..10);
    world.expect(6);
}

pub fn moved_while_in_swap(world: &mut World) {
    let (_alone, _machine) = with_swap!(world);
    let (one, two) = (world.settled(TABLE, 1), world.settled(TABLE, 2));
    let free = Region::private(TABLE);
    free.unmap(0..TABLE);
    one.page_out(0..TABLE);
    two.page_out(0..TABLE / 2);
    assert!(world.reported().count().0 <= 2 * TABLE as u64);
    one.move_to(0..TABLE, &free, 0, false);
    two.move_to(0..TABLE, &one, 0, false);
    free.move_to(0..TABLE, &two, 0, false);
    world.expect(2 * TABLE as u64);
}

pub fn freed_and_reclaimed(world: &mut World) {
    let (_alone, _machine) = with_swap!(world);
    let region = world.settled(64, 1);
    region.advise(0..64, libc::MADV_FREE).unwrap();
    region.store(5, 2);
    region.advise(0..64, libc::MADV_PAGEOUT).unwrap();
    let changed = world.check();
    if changed.count().0 <= 1 {
        return world.skip("nothing was reclaimed");
    }
    // Freed in one epoch, reclaimed in the next.
    region.fill(0..64, 3);
    world.settle();
    region.advise(0..64, libc::MADV_FREE).unwrap();
    let _ = world.reported();
    region.advise(0..64, libc::MADV_PAGEOUT).unwrap();
    world.check();
}

/// Merging takes pages out from under their bits.
pub fn merged_pages(world: &mut World) {
    let _alone = pagetide_testing::child::without_children();
    let mut machine = Machine::lock();
    let settings = [
        ("/sys/kernel/mm/ksm/sleep_millisecs", "0"),
        ("/sys/kernel/mm/ksm/pages_to_scan", "100000"),
        ("/sys/kernel/mm/ksm/run", "1"),
    ];
    for (path, value) in settings {
        if let Err(error) = machine.set(path, value) {
            return world.skip(&format!("{path}: {error}"));
        }
    }
    let region = world.settled(32, 1);
    region.advise(0..32, libc::MADV_MERGEABLE).unwrap();
    assert!(calls::flags(&region).iter().any(|flag| flag == "mg"));
    world.settle();
    // Every other page is written and then merged, before anybody looks.
    (0..32)
        .step_by(2)
        .for_each(|page| region.fill(page..page + 1, 7));
    if !calls::wait_until_merged(&region) {
        return world.skip("nothing was merged");
    }
    world.expect(16);
    // One page leaves the merged ones: another may be the only one that is left.
    region.fill(3..4, 8);
    region.store(4, 9);
    world.expect(2);
    region.advise(0..32, libc::MADV_UNMERGEABLE).unwrap();
    region.store(6, 9);
    world.expect(1);
}
