//! Where regions lie in the space of the snapshots. Numbers only: what is mapped there is the business of `ground`.

use super::error::OwnMemoryError;
use crate::arena::Arena;
use crate::capture::SIZE;
use pagetide_kernel::own_region::OwnRegion;
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};

/// A region of memory of this process, and its place in the space.
///
/// Naming memory is `unsafe`, once: what is named can be overwritten behind every reference to it. Safe code can neither
/// name it nor make a placement of numbers:
///
/// ```compile_fail,E0133
/// let mut memory = vec![0u8; 8192];
/// let region = pagetide::OwnRegion::new(memory.as_mut_ptr(), 4096);
/// ```
///
/// ```compile_fail,E0560
/// # use pagetide_pages::PageIndex;
/// let place = pagetide::Placement { address: 4096, length_bytes: 4096, first_page: PageIndex(0) };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    region: OwnRegion,
    first_page: PageIndex,
    through_it_only: bool,
}

impl Placement {
    /// Places `region` at `first_page` of the space, such as the guest frame number of its first byte.
    pub fn new(region: OwnRegion, first_page: PageIndex) -> Self {
        Self {
            region,
            first_page,
            through_it_only: false,
        }
    }

    /// Promises that the shared memory in this region changes through the region only: by stores of this process
    /// and of its KVM guests to these addresses, and by system calls that are given these addresses. Then it is
    /// tracked, as private memory always is.
    ///
    /// Without this promise shared memory is compared: every page of it that holds something is read and hashed
    /// at each capture, because the kernel does not tell what changes it otherwise:
    ///
    /// - stores through another mapping, in this process or in another one: a vhost-user backend, a forked child,
    /// - write(2), copy_file_range(2), splice(2) and the like to its descriptor,
    /// - holes that are punched into it (fallocate(2), MADV_REMOVE, as a balloon does), and truncation.
    ///
    /// Another mapping in this process, and a change of the object's length, is noticed and is an error; that it
    /// has lost pages is noticed, as far as it has fewer than at the last capture, and it is compared then. Of all
    /// else, and for each hole that is punched, tell by [`WrittenPages::mark`](crate::WrittenPages::mark). Private
    /// memory and files that are mapped private need no promise, and this does nothing for them.
    #[must_use]
    pub fn written_through_it_only(self) -> Self {
        Self {
            through_it_only: true,
            ..self
        }
    }

    /// The region.
    pub fn region(&self) -> OwnRegion {
        self.region
    }

    /// The page of the space that the region's first byte belongs to.
    pub fn first_page(&self) -> PageIndex {
        self.first_page
    }

    pub(super) fn is_written_through_it_only(&self) -> bool {
        self.through_it_only
    }

    /// True if both have the same memory at the same place of the space, and are watched in the same way, where they have
    /// something in common.
    pub(super) fn is_in_line_with(&self, other: &Self) -> bool {
        let distance = |of: &Self| of.mapped().start().0.wrapping_sub(of.first_page.0);
        distance(self) == distance(other) && self.through_it_only == other.through_it_only
    }

    /// Its pages by address.
    pub(super) fn mapped(&self) -> PageRange {
        let end = self
            .region
            .address()
            .saturating_add(self.region.length_bytes());
        SIZE.covering(self.region.address(), end)
    }

    /// Its pages in the space.
    pub(super) fn in_space(&self) -> PageRange {
        PageRange::with_count(self.first_page, self.mapped().count())
    }
}

/// All placements, by address.
pub(super) struct Places {
    list: Vec<Placement>,
}

impl Places {
    /// Whole pages, that overlap neither in memory nor in the space.
    pub fn new(placements: &[Placement]) -> Result<Self, OwnMemoryError> {
        let mut list = placements.to_vec();
        list.sort_by_key(|placement| placement.region.address());
        let (mut taken, mut taken_in_space) = (PageSet::new(), PageSet::new());
        for placement in &list {
            let (address, length_bytes) =
                (placement.region.address(), placement.region.length_bytes());
            let end = address.checked_add(length_bytes);
            let whole = SIZE.is_aligned(address) && SIZE.is_aligned(length_bytes);
            let last = placement
                .first_page
                .0
                .checked_add(length_bytes / SIZE.bytes());
            if end.is_none() || last.is_none() || !whole || length_bytes == 0 {
                return Err(OwnMemoryError::Range {
                    address,
                    length_bytes,
                    reason: "it is not made of whole pages of 4096 bytes".to_owned(),
                });
            }
            let (pages, in_space) = (placement.mapped(), placement.in_space());
            if !taken.within(pages).is_empty() || !taken_in_space.within(in_space).is_empty() {
                return Err(OwnMemoryError::Overlap { address });
            }
            taken.insert(pages);
            taken_in_space.insert(in_space);
        }
        Ok(Self { list })
    }

    pub fn list(&self) -> &[Placement] {
        &self.list
    }

    /// All pages, by address.
    pub fn mapped(&self) -> PageSet {
        self.list.iter().map(Placement::mapped).collect()
    }

    /// The parts of the range of addresses that belong to placements, with where each lies in the space.
    pub fn in_space(&self, mapped: PageRange) -> impl Iterator<Item = (PageRange, PageRange)> {
        let from = self
            .list
            .partition_point(|placement| placement.mapped().end() <= mapped.start());
        self.list[from..].iter().map_while(move |placement| {
            let common = placement.mapped().intersection(mapped)?;
            let offset = common.start().0 - placement.mapped().start().0;
            let start = PageIndex(placement.first_page.0 + offset);
            Some((common, PageRange::with_count(start, common.count())))
        })
    }

    /// Where pages of the space lie in memory, as far as they do.
    pub fn mapped_of(&self, in_space: &PageSet) -> PageSet {
        let of_one = |placement: &Placement| {
            let (from, to) = (placement.in_space().start().0, placement.mapped().start().0);
            let there = in_space.within(placement.in_space());
            let moved = there.ranges().iter().map(move |range| {
                let start = PageIndex(range.start().0 - from + to);
                PageRange::with_count(start, range.count())
            });
            moved.collect::<Vec<PageRange>>()
        };
        self.list.iter().flat_map(of_one).collect()
    }

    /// Where one page lies in the space.
    pub fn page_in_space(&self, page: PageIndex) -> Option<PageIndex> {
        let mut found = self.in_space(PageRange::single(page));
        found.next().map(|(_, pages)| pages.start())
    }

    /// What is in the arena, by place in the space.
    pub fn placed<'a>(&self, arena: &'a Arena) -> Vec<(PageIndex, &'a [u8])> {
        let mut placed = Vec::new();
        for (first, mut bytes) in arena.pieces().into_iter().flat_map(|(_, pieces)| pieces) {
            let count = PageCount((bytes.len() / SIZE.len()) as u64);
            // Placements are sorted by address, so the parts of a piece come in its order.
            for (_, pages) in self.in_space(PageRange::with_count(first, count)) {
                let (part, rest) = bytes.split_at(SIZE.bytes_of(pages.count()) as usize);
                placed.push((pages.start(), part));
                bytes = rest;
            }
        }
        placed
    }
}
