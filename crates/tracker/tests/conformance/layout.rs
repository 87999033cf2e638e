//! Mappings that come, go, move, grow and change.

use super::calls;
use super::world::World;
use nix::libc;
use pagetide_kernel::maps::{MappingName, mappings};
use pagetide_pages::{PageRange, PageSize};
use pagetide_testing::{HUGE, PAGE, READ_WRITE, Region, file_of, memfd};

const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
const TABLE: usize = HUGE / PAGE;

pub fn a_fresh_mapping(world: &mut World) {
    world.settled(8, 1);
    let region = Region::private(8);
    world.watch(&region);
    region.store(3, 2);
    world.expect(8);
    region.unmap(2..6);
    world.expect(0);
    region.replace(2..6);
    world.expect(4);
}

pub fn a_mapping_over_another(world: &mut World) {
    let region = world.settled(16, 1);
    region.replace(2..6);
    region.replace(8..10);
    region.store(8, 1);
    region.fill(9..10, 1);
    world.expect(5);
    region.unmap(0..16);
    region.replace(0..16);
    world.expect(12);
    region.fill(0..16, 1);
    world.expect(16);
}

/// T22: the mark of a fresh mapping may be lost when it merges.
pub fn a_mapping_that_merges_with_its_neighbour(world: &mut World) {
    let region = world.settled(16, 1);
    region.replace_with(4..8, libc::PROT_NONE, PRIVATE);
    let _ = region.advise(4..8, libc::MADV_NOHUGEPAGE);
    region.protect(4..8, READ_WRITE);
    region.store(5, 9);
    world.expect(4);
    region.replace_with(0..4, libc::PROT_READ, PRIVATE);
    let _ = region.advise(0..4, libc::MADV_NOHUGEPAGE);
    region.protect(0..4, READ_WRITE);
    world.expect(4);
}

pub fn another_kind_of_mapping_that_holds_nothing(world: &mut World) {
    let file = file_of(8, 7);
    let region = Region::of_file(&file, 8, false);
    world.watch(&region);
    world.settle();
    region.replace(0..4);
    world.expect(4);
    let other = Region::of_file(&file_of(8, 8), 4, false);
    other.move_to(0..4, &region, 0, false);
    world.expect(4);
    // The same file, at another offset.
    let file = file_of(8, 0);
    (0..8).for_each(|page| {
        use std::os::unix::fs::FileExt;
        file.write_at(&[page as u8 + 1], page * PAGE as u64)
            .unwrap();
    });
    let shifted = Region::map(
        4 * PAGE,
        READ_WRITE,
        libc::MAP_PRIVATE,
        Some((&file, 4 * PAGE)),
    );
    let plain = Region::of_file(&file, 4, false);
    plain.move_to(0..4, &region, 4, false);
    world.expect(4);
    shifted.unwrap().move_to(0..4, &region, 4, false);
    world.expect(4);
}

pub fn moved_to_a_free_place(world: &mut World) {
    let from = world.settled(8, 1);
    let to = Region::private(8);
    to.unmap(0..8);
    world.watch(&to);
    from.move_to(2..6, &to, 3, false);
    world.expect(4);
    to.store(4, 2);
    world.expect(1);
}

pub fn moved_by_whole_page_tables(world: &mut World) {
    let from = world.settled(2 * TABLE, 1);
    let to = world.settled(2 * TABLE, 2);
    to.unmap(0..TABLE);
    world.settle();
    from.move_to(0..TABLE, &to, 0, false);
    world.expect(TABLE as u64);
    // Back to where it was, in one step for the tracker.
    to.store(3, 9);
    to.move_to(0..TABLE, &from, 0, false);
    world.expect(TABLE as u64);
}

pub fn moved_over_another_mapping(world: &mut World) {
    let from = world.settled(2 * TABLE, 1);
    let to = world.settled(2 * TABLE, 2);
    // Some pages of a table, and a whole one.
    from.move_to(0..4, &to, 8, false);
    from.move_to(TABLE..2 * TABLE, &to, TABLE, false);
    world.expect(4 + TABLE as u64);
}

pub fn moved_and_kept(world: &mut World) {
    let from = world.settled(2 * TABLE, 1);
    let to = world.settled(2 * TABLE, 2);
    from.move_to(0..2 * TABLE, &to, 0, true);
    world.expect(4 * TABLE as u64);
    from.store(1, 3);
    world.expect(1);
}

/// The kernel moves whole page tables with their bits: nothing but the frames tells.
pub fn two_areas_change_places(world: &mut World) {
    let (one, two) = (world.settled(TABLE, 1), world.settled(TABLE, 2));
    let free = Region::private(TABLE);
    free.unmap(0..TABLE);
    one.move_to(0..TABLE, &free, 0, false);
    two.move_to(0..TABLE, &one, 0, false);
    free.move_to(0..TABLE, &two, 0, false);
    world.expect(2 * TABLE as u64);
    assert_eq!((one.load(7), two.load(7)), (2, 1));
}

pub fn grown_in_place(world: &mut World) {
    let region = Region::filled(8, 1);
    world.watch_pages(PageSize::KIB_4.covering(region.start(), region.address(32)));
    world.settle();
    region.resize_in_place(0..8, 16).unwrap();
    world.expect(8);
    let region = region.assume_pages(16);
    region.store(12, 2);
    world.expect(1);
}

pub fn grown_elsewhere(world: &mut World) {
    let region = world.settled(8, 1);
    region.replace_with(4..5, libc::PROT_NONE, PRIVATE);
    world.settle();
    region.store(1, 2);
    let grown = calls::grow_elsewhere(&region, 0..4, 64);
    world.watch_pages(grown);
    world.expect(64);
    calls::unmap(grown);
}

pub fn shrunk_and_grown_again(world: &mut World) {
    let region = world.settled(16, 1);
    region.resize_in_place(0..16, 8).unwrap();
    region.resize_in_place(0..8, 16).unwrap();
    world.expect(8);
}

pub fn permissions(world: &mut World) {
    let region = world.settled(16, 1);
    region.store(1, 2);
    region.protect(0..8, libc::PROT_READ);
    world.expect(1);
    region.protect(0..8, libc::PROT_NONE);
    world.expect(0);
    region.protect(0..8, READ_WRITE);
    region.store(2, 2);
    region.protect(2..3, libc::PROT_NONE);
    world.expect(1);
}

pub fn the_stack_grows(world: &mut World) {
    let region = Region::private(64);
    region.unmap(0..64);
    region.replace_with(48..64, READ_WRITE, PRIVATE | libc::MAP_GROWSDOWN);
    region.fill(48..64, 1);
    world.watch(&region);
    world.settle();
    region.store(47, 2);
    region.store(50, 2);
    world.expect(2);
    region.store(32, 3);
    world.expect(15);
}

pub fn the_break_moves(world: &mut World) {
    let start = calls::move_break(32).next_multiple_of(PAGE as u64);
    let page = |page: u64| start + page * PAGE as u64;
    world.watch_pages(PageSize::KIB_4.covering(start, page(32)));
    (0..8).for_each(|number| calls::store(page(number), 1));
    world.settle();
    calls::store(start, 2);
    let end = calls::move_break(16);
    calls::store(end - 1, 2);
    assert!(!world.check().is_empty());
    calls::move_break(-16);
    calls::store(page(1), 3);
    world.expect(1);
    // Given up and had again: the pages are new.
    calls::move_break(-31);
    calls::move_break(31);
    assert!(world.check().count().0 >= 6);
    calls::move_break(-32);
}

pub fn remapped_file_pages(world: &mut World) {
    let file = memfd("remapped", 8);
    let region = Region::of_file(&file, 8, true);
    (0..8).for_each(|page| region.store(page, page as u8 + 1));
    world.watch(&region);
    world.settle();
    if let Err(error) = calls::remap_file_pages(&region, 2..4, 6) {
        return world.skip(&format!("remap_file_pages: {error}"));
    }
    world.expect(2);
    assert_eq!(region.load(2), 7);
    // T59: shared memory has no bits that last, so it is refused, or the store is seen.
    region.store(1, 9);
    world.expect(1);
}

/// T59: no store tells of what the kernel writes there.
pub fn memory_of_the_kernel(world: &mut World) {
    let of_kernel = |name: &_| matches!(name, MappingName::Vdso | MappingName::KernelData(_));
    let all = mappings(std::process::id().cast_signed()).unwrap();
    let of_kernel = all.iter().filter(|mapping| of_kernel(&mapping.name));
    let pages: Vec<PageRange> = of_kernel.map(|mapping| mapping.pages()).collect();
    let harvest = world.tracker.harvest(&pages).unwrap();
    let refused = harvest.layout().refused.iter();
    let mut refused: Vec<PageRange> = refused.map(|refused| refused.pages).collect();
    refused.sort_unstable();
    assert_eq!(refused, pages);
    harvest.commit();
}

/// Memory by tens of megabytes that was never touched, then here and there, and is dropped again with its page tables.
pub fn large_parts_that_hold_nothing(world: &mut World) {
    let pages = 40 * TABLE;
    let region = Region::private(pages);
    world.watch(&region);
    world.settle();
    region.store(20 * TABLE + 5, 1);
    world.expect(1);
    region.store(20 * TABLE + 5, 2);
    region.store(20 * TABLE + 6, 2);
    region.store(31 * TABLE, 2);
    world.expect(3);
    // In the same chunk as a page that was harvested, and in one that was empty until now.
    region.store(20 * TABLE + 7, 3);
    region.store(9 * TABLE, 3);
    let _ = world.harvest().give_back();
    region.store(10 * TABLE, 3);
    world.expect(3);
    region.advise(0..pages, libc::MADV_DONTNEED).unwrap();
    world.expect(6);
    region.store(20 * TABLE + 5, 4);
    world.expect(1);
    world.expect(0);
}

/// What holds nothing at one place takes the place of what does, and the other way about.
pub fn empty_parts_that_move(world: &mut World) {
    let pages = 24 * TABLE;
    let (empty, full) = (Region::private(pages), Region::private(pages));
    world.watch(&empty);
    world.watch(&full);
    full.fill(0..pages, 1);
    world.settle();
    let free = Region::private(pages);
    free.unmap(0..pages);
    empty.move_to(0..pages, &free, 0, false);
    full.move_to(0..pages, &empty, 0, false);
    free.move_to(0..pages, &full, 0, false);
    world.check();
    full.store(12 * TABLE, 2);
    empty.store(12 * TABLE, 2);
    world.expect(2);
    full.replace(0..pages);
    full.store(13 * TABLE, 3);
    world.check();
    full.store(13 * TABLE, 4);
    world.expect(1);
}
