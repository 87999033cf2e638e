//! A second look at what was copied, when the process runs again: what has changed since, though its page reads as not
//! written, was on its way before the harvest and arrived after it was copied. Whoever wrote it had pinned the page:
//! a call of another process, or something that is not known. It is copied again for the next snapshot, and told.
//!
//! Only what still is in our own memory is looked at, which is all but what filled the buffer while the process stood.

use super::window::WindowResult;
use crate::arena::Arena;
use crate::capture::SIZE;
use crate::member::Member;
use pagetide_kernel::memory::ProcessMemory;
use pagetide_kernel::pagemap_scan::{Categories, Pagemap, ScanRequest, ScannedRange};
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};
use pagetide_tracker::Backend;

/// So much is read at a time.
const AT_ONCE: PageCount = PageCount(256);

/// The pages of space `number` in `arena` that were written with no trace since they were copied. Nothing where the
/// tracker knows nothing of single writes.
pub(crate) fn second_look(
    member: &Member,
    arena: &Arena,
    number: usize,
    stopped: &WindowResult,
) -> PageSet {
    let backend = member.tracking.as_ref().map(|one| one.tracker.backend());
    if backend != Some(Backend::WpAsync) {
        return PageSet::new();
    }
    let tracked: PageSet = stopped.layout.tracked.iter().copied().collect();
    let look = Look {
        memory: &member.space.memory,
        pagemap: &member.space.pagemap,
        tracked: &tracked,
    };
    let pieces = arena.pieces();
    let own = pieces.iter().filter(|(space, _)| *space == number);
    let mut differ = Vec::new();
    for (first, copied) in own.flat_map(|(_, pieces)| pieces) {
        look.compare(*first, copied, &mut differ);
    }
    look.not_written(&differ.into_iter().collect())
}

struct Look<'a> {
    memory: &'a ProcessMemory,
    pagemap: &'a Pagemap,
    tracked: &'a PageSet,
}

impl Look<'_> {
    /// Adds those of the pages from `first` on that are not `copied` any more. None of a process that is gone.
    fn compare(&self, first: PageIndex, copied: &[u8], differ: &mut Vec<PageRange>) {
        let mut bytes = vec![0; SIZE.bytes_of(AT_ONCE) as usize];
        let mut at = first;
        for copied in copied.chunks(bytes.len()) {
            let now = &mut bytes[..copied.len()];
            let range = PageRange::with_count(at, PageCount((copied.len() / SIZE.len()) as u64));
            at = range.end();
            let Ok(unreadable) = self.memory.read_pages(SIZE, &[range], now) else {
                return;
            };
            let unreadable: PageSet = unreadable.into_iter().collect();
            let pages = copied.chunks(SIZE.len()).zip(now.chunks(SIZE.len()));
            let changed = range
                .pages()
                .zip(pages)
                .filter(|(_, (then, now))| then != now);
            let changed = changed.map(|(page, _)| PageRange::single(page));
            differ.extend(changed.filter(|page| {
                self.tracked.contains_range(*page) && !unreadable.contains_range(*page)
            }));
        }
    }

    /// Those of `pages` that do not read as written now.
    fn not_written(&self, pages: &PageSet) -> PageSet {
        let mut written = PageSet::new();
        let mut vector = [ScannedRange::EMPTY; 64];
        for &range in pages.ranges() {
            let (start, end) = SIZE.span_of(range);
            let request = ScanRequest {
                all_of: Categories::WRITTEN,
                returned: Categories::WRITTEN,
                ..ScanRequest::over(start, end)
            };
            let scanned = self.pagemap.scan(&request, &mut vector, |found| {
                written.insert(SIZE.covering(found.start(), found.end()));
            });
            if scanned.is_err() {
                return PageSet::new();
            }
        }
        pages.subtract(&written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagetide_kernel::maps::{self, MappingName};
    use pagetide_kernel::pagemap_scan::ScanFlags;
    use pagetide_kernel::shared_memory::{self, AttachedSegment, Segment};
    use pagetide_kernel::userfaultfd::WriteProtector;

    const KEY: i32 = 0x7061_6765;
    const ID: i32 = 3 << 15 | 0x1234;
    const PAGES: u64 = 8;

    /// Memory that is attached twice: a store through the one place is not seen at the other.
    #[test]
    fn what_arrives_with_no_trace_is_found_and_what_is_written_is_not() {
        let name = "what_arrives_with_no_trace_is_found_and_what_is_written_is_not";
        let wanted = Segment {
            id: ID,
            length_bytes: PAGES * SIZE.len() as u64,
            key: KEY,
            mode: 0o600,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            attached: 0,
        };
        let Ok(protector) = WriteProtector::of_self() else {
            eprintln!("SKIPPED {name}: no asynchronous write-protection");
            return;
        };
        if let Err(error) = shared_memory::make_segment(&wanted) {
            eprintln!("SKIPPED {name}: a segment with a number: {error}");
            return;
        }
        let seen = AttachedSegment::attach(ID).expect("it was just made");
        let own = std::process::id().cast_signed();
        let all = maps::mappings(own).expect("own mappings");
        let mapping = all.iter().find(|one| one.name == MappingName::SystemV(KEY));
        let mapping = mapping.expect("it is attached");
        let unseen = AttachedSegment::attach(ID);
        shared_memory::remove_segment(ID).expect("it is ours");
        let unseen = unseen.expect("it is there");

        seen.write_at(0, &vec![1; seen.length()]);
        protector
            .register(mapping.start, mapping.length_bytes())
            .expect("shared memory registers");
        let memory = ProcessMemory::open(own).expect("own memory");
        let pagemap = Pagemap::of_self().expect("own pagemap");
        let harvest = ScanRequest {
            flags: ScanFlags::WRITE_PROTECT_MATCHING,
            all_of: Categories::WRITTEN,
            returned: Categories::WRITTEN,
            ..ScanRequest::over(mapping.start, mapping.end)
        };
        pagemap
            .scan(&harvest, &mut [ScannedRange::EMPTY; 8], |_| {})
            .expect("a harvest");
        let copied = seen.to_vec();
        seen.write_at(2 * SIZE.len(), &[7]);
        unseen.write_at(5 * SIZE.len() + 9, &[7]);
        unseen.write_at(7 * SIZE.len(), &[7]);

        let pages = mapping.pages();
        let page = |number: u64| PageRange::single(PageIndex(pages.start().0 + number));
        let tracked = PageSet::from(PageRange::new(pages.start(), page(7).start()));
        let look = Look {
            memory: &memory,
            pagemap: &pagemap,
            tracked: &tracked,
        };
        let mut differ = Vec::new();
        look.compare(pages.start(), &copied, &mut differ);
        assert_eq!(differ, [page(2), page(5)], "the last page is not tracked");
        let late = look.not_written(&differ.into_iter().collect());
        assert_eq!(late, PageSet::from(page(5)));
    }
}
