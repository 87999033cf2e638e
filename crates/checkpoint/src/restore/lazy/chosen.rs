//! Which pages of a process can come later: pages of private anonymous memory that nobody needs at once.

use super::super::plan::RestorePlan;
use crate::advice::DROPPABLE;
use crate::capture::SIZE;
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};
use pagetide_snapshot::{Backing, Capture, PageState, Region, Sharing, View};

/// What the newest deltas wrote is there from the beginning, up to so much.
const WRITTEN_LAST: PageCount = PageCount((16 << 20) / SIZE.bytes());
/// A region with fewer pages is filled at once.
const FEW: PageCount = PageCount(16);
/// Around a stack pointer: below it, and above.
const STACK_BELOW: u64 = 16 << 10;
const STACK_ABOVE: u64 = 64 << 10;

/// Advice of a region that is filled at once: pages that are locked have to be there, a stack grows, a child gets huge pages
/// elsewhere, or gets no pages of such a region, or zeros; and of memory that the kernel may drop there is nothing to come.
const AT_ONCE: [&str; 6] = [
    "locked",
    "growsdown",
    "hugetlb",
    "wipeonfork",
    "dontfork",
    DROPPABLE,
];

/// What comes later.
pub(in super::super) struct Chosen {
    /// The pages.
    pub pages: PageSet,
    /// The regions that they are in.
    pub regions: Vec<PageRange>,
}

fn may_come_later(region: &Region) -> bool {
    region.backing == Backing::Anonymous
        && region.sharing == Sharing::Private
        && region.shows.is_none()
        && !matches!(region.capture, Capture::NotCaptured { .. })
        && !region.name.starts_with("[stack")
        && !region
            .advice
            .iter()
            .any(|advice| AT_ONCE.contains(&advice.as_str()))
}

impl Chosen {
    pub fn of(view: &View, plan: &RestorePlan<'_>) -> Self {
        let mut pages = PageSet::new();
        for region in plan.regions.iter().filter(|region| may_come_later(region)) {
            let data = view
                .runs(plan.space, region.pages)
                .filter(|(_, state)| *state == PageState::Data);
            let data: PageSet = data.map(|(pages, _)| pages).collect();
            if data.count() >= FEW {
                pages = pages.union(&data);
            }
        }
        let pages = pages.subtract(&needed_at_once(plan));
        let last = view.written_last(plan.space, &pages, WRITTEN_LAST);
        let pages = pages.subtract(&last);
        let regions = plan.regions.iter().map(|region| region.pages);
        let regions = regions.filter(|region| !pages.within(*region).is_empty());
        Self {
            regions: regions.collect(),
            pages,
        }
    }
}

/// What threads touch with their first instructions, and what the kernel touches for them in places where it cannot wait.
fn needed_at_once(plan: &RestorePlan<'_>) -> PageSet {
    let mut at_once = PageSet::new();
    let mut need = |start: u64, length: u64| {
        if start != 0 {
            let first = start / SIZE.bytes();
            let last = start.saturating_add(length) / SIZE.bytes();
            at_once.insert(PageRange::new(PageIndex(first), PageIndex(last + 1)));
        }
    };
    for thread in &plan.state.threads {
        let registers = &thread.registers;
        need(
            registers.rsp.saturating_sub(STACK_BELOW),
            STACK_BELOW + STACK_ABOVE,
        );
        need(registers.rip, 1);
        need(
            registers.fs_base.saturating_sub(SIZE.bytes()),
            2 * SIZE.bytes(),
        );
    }
    for thread in &plan.kernel.threads {
        need(thread.robust_list.head, thread.robust_list.length_bytes);
        need(thread.tid_address, 8);
        if let Some(area) = &thread.rseq {
            need(area.address, u64::from(area.size_bytes));
        }
    }
    at_once
}
