//! Which pages of a process's memory fork(2) left shared with a relative, so that they are not read in a way that
//! un-shares them.
//!
//! process_vm_readv(2) pins the pages it reads (FOLL_PIN), and since Linux 5.19 the kernel pins an anonymous page only
//! after it has made it the process's own: a page shared with a parent or a child is copied, one merged with its
//! equals (MADV_MERGEABLE) is split off, and a huge page shared so takes another from the pool. `/proc/PID/mem` only
//! refers to pages while it reads (FOLL_GET) and leaves them where they are, but it takes two to four times as long.
//!
//! Whether a page is mapped once is bit 56 of its entry in `/proc/PID/pagemap`, at 20 to 150 ns a page and half a
//! microsecond a call: for pages that lie scattered that is a third of the copy. So a few *witnesses* are asked first:
//! pages that were written while the program was loaded and never can be again, the relocated data of its program
//! file and its libraries. Whoever was forked from the process, or whoever it was forked from, and whoever of those
//! has not executed another program, maps them, too. If all witnesses are mapped once, no such relative lives, and
//! nothing is shared. A program without such pages has every entry looked at.

use crate::maps::Mapping;
use crate::pagemap::PagemapEntry;
use crate::pagemap_scan::Pagemap;
use pagetide_pages::{PageCount, PageIndex, PageRange};
use std::sync::{Mutex, PoisonError};

/// Witnesses are taken from this many mappings at the lowest and at the highest addresses: the program file lies at
/// one end and its loader, which is there from the beginning, at the other.
const AT_EACH_END: usize = 2;

/// Entries of pages this far apart are still read in one call, which costs as much as some twenty of them.
const GAP: u64 = 16;

/// Asks about the pages of one address space.
#[derive(Debug)]
pub(crate) struct Sharing {
    pid: i32,
    /// `None` if it cannot be opened: everything counts as shared.
    pagemap: Option<Pagemap>,
    witnesses: Mutex<Vec<PageIndex>>,
}

impl Sharing {
    /// Opens the page tables of process `pid`. There are no witnesses yet.
    pub fn of(pid: i32) -> Self {
        Self {
            pid,
            pagemap: Pagemap::of_process(pid).ok(),
            witnesses: Mutex::default(),
        }
    }

    /// Looks for witnesses among `mappings`, those of the process, in the order of their addresses, unless there are
    /// some that still tell.
    pub fn find_witnesses(&self, mappings: &[Mapping]) {
        let Some(pagemap) = &self.pagemap else { return };
        let mut witnesses = self.lock();
        if self.has_merged_pages() {
            // What is merged is shared with anybody, and no relative tells of it.
            witnesses.clear();
            return;
        }
        let tells = |&page: &PageIndex| is_own_copy(entry(pagemap, page));
        if !witnesses.is_empty() && witnesses.iter().all(tells) {
            return;
        }
        let mut relocated = mappings
            .iter()
            .filter(|mapping| mapping.read && !mapping.write && !mapping.execute)
            .filter(|mapping| mapping.has_file() && !mapping.shared)
            .filter_map(|mapping| {
                let pages = mapping.pages();
                let last = PageIndex(pages.end().0 - 1);
                [pages.start(), last].into_iter().find(tells)
            });
        *witnesses = relocated.by_ref().take(AT_EACH_END).collect();
        let mut others: Vec<PageIndex> = relocated.rev().take(AT_EACH_END).collect();
        witnesses.append(&mut others);
    }

    /// True if the kernel says of the process that pages of it are merged with others. Source: Linux 5.19,
    /// `Documentation/admin-guide/mm/ksm.rst`; a kernel without the file merges nothing, or does not tell.
    fn has_merged_pages(&self) -> bool {
        let path = format!("/proc/{}/ksm_merging_pages", self.pid);
        let count = std::fs::read_to_string(path).unwrap_or_default();
        !matches!(count.trim(), "" | "0")
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<PageIndex>> {
        self.witnesses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// True if it is known that the process shares none of its anonymous pages.
    fn is_alone(&self, pagemap: &Pagemap) -> bool {
        let witnesses = self.lock();
        let own = |&page: &PageIndex| entry(pagemap, page).is_some_and(is_exclusive_copy);
        !witnesses.is_empty() && witnesses.iter().all(own)
    }

    /// Those of `pieces`, base pages of 4 KiB, that must not be pinned, in their order.
    pub fn not_to_be_pinned(&self, pieces: &[PageRange]) -> Vec<PageRange> {
        let Some(pagemap) = &self.pagemap else {
            return pieces.to_vec();
        };
        if self.is_alone(pagemap) {
            return Vec::new();
        }
        let mut shared: Vec<PageRange> = Vec::new();
        let mut rest = pieces;
        while let Some(first) = rest.first() {
            let near = |pair: &&[PageRange]| {
                let (one, next) = (pair[0], pair[1]);
                one.end() <= next.start() && next.start().0 - one.end().0 <= GAP
            };
            let count = 1 + rest.windows(2).take_while(near).count();
            let (together, others) = rest.split_at(count);
            rest = others;
            let all = PageRange::new(first.start(), together[count - 1].end());
            let mut found = Vec::new();
            let mut at = together.iter().peekable();
            let read = pagemap.each_entry(all, |page, entry| {
                while at.next_if(|piece| piece.end() <= page).is_some() {}
                let wanted = at.peek().is_some_and(|piece| piece.contains(page));
                if wanted && may_be_shared(entry) {
                    push(&mut found, page);
                }
            });
            match read {
                Ok(()) => shared.append(&mut found),
                // Beyond the end of the address space there are no entries, and nothing to pin.
                Err(_) => shared.extend_from_slice(together),
            }
        }
        shared
    }
}

fn entry(pagemap: &Pagemap, page: PageIndex) -> Option<PagemapEntry> {
    let mut found = None;
    let read = pagemap.each_entry(PageRange::single(page), |_, entry| found = Some(entry));
    read.ok().and(found)
}

/// True if a page of a private mapping of a file is a copy of the process's own, in memory.
fn is_own_copy(entry: Option<PagemapEntry>) -> bool {
    entry.is_some_and(|entry| entry.is_present() && !entry.is_file_or_shared())
}

fn is_exclusive_copy(entry: PagemapEntry) -> bool {
    is_own_copy(Some(entry)) && entry.is_exclusive()
}

/// True for a page that may be another's, too: in memory and mapped more than once, or in swap, where nothing tells.
fn may_be_shared(entry: PagemapEntry) -> bool {
    if entry.is_present() {
        !entry.is_file_or_shared() && !entry.is_exclusive()
    } else {
        entry.is_swapped()
    }
}

/// Adds the next page in ascending order.
fn push(ranges: &mut Vec<PageRange>, page: PageIndex) {
    match ranges.last_mut() {
        Some(last) if last.end() == page => {
            *last = PageRange::with_count(last.start(), PageCount(last.count().0 + 1));
        }
        _ => ranges.push(PageRange::single(page)),
    }
}
