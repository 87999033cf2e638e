//! One mapping counted, page by page, without looking at address space that holds nothing.

use super::error::PageUsageError;
use super::sources::{Frames, Sources};
use super::swap::{SwapKind, swap_entry};
use super::usage::{PSS_SHIFT, Usage};
use pagetide_kernel::kpageflags::{FlagName, PageFlags};
use pagetide_kernel::maps::{Mapping, MappingName};
use pagetide_kernel::pagemap::PagemapEntry;
use pagetide_kernel::pagemap_scan::{Categories, ScanRequest, ScannedRange};
use pagetide_kernel::smaps::CountedMapping;
use pagetide_pages::{PageCount, PageRange, PageSize};
use std::collections::BTreeMap;

const SIZE: PageSize = PageSize::KIB_4;
const PAGE: u64 = SIZE.bytes();

/// Most entries that are read at once.
const AT_ONCE: PageCount = PageCount(16 * 1024);

/// Addresses from here on are the kernel's half: `[vsyscall]` is shown there, but in no page table of the
/// process.
const KERNEL_HALF: u64 = 1 << 63;

/// Pages with equal categories. Without PAGEMAP_SCAN nothing is known of them.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) pages: PageRange,
    pub(super) categories: Option<Categories>,
}

/// How the pages of a mapping are to be understood.
#[derive(Clone, Copy)]
pub(super) struct Nature {
    hugetlb: bool,
    /// Frames may be mapped that the kernel does not count: memory of the kernel or of a device.
    uncounted: bool,
    /// No file stands behind it.
    anonymous: bool,
    /// MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB: behind it stands a file without a name, which has nothing.
    own_huge_pages: bool,
}

impl Nature {
    pub(super) fn of(counted: &CountedMapping) -> Self {
        Self {
            hugetlb: counted.has_flag("ht"),
            uncounted: counted.has_flag("pf") || counted.has_flag("mm"),
            anonymous: !counted.mapping.has_file(),
            own_huge_pages: counted.has_flag("ht")
                && !counted.mapping.shared
                && is_anonymous_huge_file(&counted.mapping.name),
        }
    }

    /// Whether a page is the huge zero page. The scan does not say so, and the entry says "file" of it, which no other page
    /// of anonymous memory is.
    pub(super) fn is_huge_zero(self, entry: PagemapEntry, huge: bool) -> bool {
        self.anonymous && huge && entry.is_present() && entry.is_file_or_shared()
    }

    /// Whether it is memory of the kernel or of a device, or lies in the kernel's half of the address space.
    pub(super) fn is_of_the_kernel(self, mapping: &Mapping) -> bool {
        self.uncounted || mapping.start >= KERNEL_HALF
    }

    /// Whether an empty entry does not tell that there is nothing: the page table forgets pages of files. Huge pages that only
    /// this process has are never swapped, and have no file to be read from again.
    pub(super) fn forgets(self) -> bool {
        !self.anonymous && !self.own_huge_pages
    }

    /// Whether the kernel counts a present page at all. It does not look at frames that are mapped without
    /// being counted, and then says neither "file" nor "exclusive" of them.
    pub(super) fn is_counted(self, entry: PagemapEntry, zero: bool) -> bool {
        let looked_at = entry.is_file_or_shared() || entry.is_exclusive();
        // But of the huge zero page it says "file".
        looked_at && !(zero && self.anonymous) || !(zero || self.uncounted)
    }
}

/// The name of the file that the kernel makes for MAP_ANONYMOUS | MAP_HUGETLB.
fn is_anonymous_huge_file(name: &MappingName) -> bool {
    matches!(name, MappingName::Path(path) if path.as_os_str() == "/anon_hugepage (deleted)")
}

/// Counts one mapping.
/// `is_part`: of which a part is left, so that what smaps says of all of it does not hold.
pub(super) fn count(
    sources: &Sources,
    counted: &CountedMapping,
    is_part: bool,
) -> Result<Usage, PageUsageError> {
    let of_whole = |name| (!is_part).then(|| counted.bytes(name));
    let mapping = &counted.mapping;
    let knows_zero = !sources.categories.is_empty() || sources.has_flags();
    let mut usage = Usage {
        size_bytes: mapping.length_bytes(),
        zero_bytes: knows_zero.then_some(0),
        soft_dirty_bytes: sources.soft_dirty.then_some(0),
        pss_fixed: sources.has_counts().then_some(0),
        swap_bytes: of_whole("Swap").unwrap_or(0),
        swap_pss_bytes: of_whole("SwapPss"),
        locked_bytes: of_whole("Locked"),
        page_flags: sources.has_flags().then(BTreeMap::new),
        cgroup_pages: sources.has_cgroups().then(BTreeMap::new),
        ..Usage::default()
    };
    if !sources.has_counts() {
        usage.pss_fixed = of_whole("Pss").map(|pss| pss << PSS_SHIFT);
    }
    if sources.categories.is_empty() {
        usage.huge_bytes = ["AnonHugePages", "ShmemPmdMapped", "FilePmdMapped"]
            .iter()
            .map(|name| counted.bytes(name))
            .sum();
    }
    if mapping.start >= KERNEL_HALF {
        return Ok(usage);
    }
    let registered = is_registered(sources, mapping.pages())?;
    let mut tally = Tally {
        usage,
        nature: Nature::of(counted),
        frames_shown: sources.frames,
        flags: [0; 64],
        protected_bytes: 0,
        slots_bytes: 0,
    };
    for group in groups(spans(sources, mapping.pages())?) {
        tally.add_group(sources, &group)?;
    }
    Ok(tally.finish(registered, is_part))
}

/// Whether the mapping is registered for asynchronous write-protection.
pub(super) fn is_registered(sources: &Sources, pages: PageRange) -> Result<bool, PageUsageError> {
    if !sources.categories.contains(Categories::WP_ALLOWED) {
        return Ok(false);
    }
    let (start, end) = SIZE.span_of(pages);
    let request = ScanRequest {
        all_of: Categories::WP_ALLOWED,
        returned: Categories::WP_ALLOWED,
        max_pages: 1,
        ..ScanRequest::over(start, end)
    };
    let vector = &mut [ScannedRange::EMPTY];
    Ok(sources.pagemap.scan_once(&request, vector)?.filled > 0)
}

/// The pages that are not empty. All of them where there is no PAGEMAP_SCAN.
pub(super) fn spans(sources: &Sources, pages: PageRange) -> Result<Vec<Span>, PageUsageError> {
    if sources.categories.is_empty() {
        let categories = None;
        return Ok(vec![Span { pages, categories }]);
    }
    let (start, end) = SIZE.span_of(pages);
    // "Written" is told by the entries: some kernels leave it out of a scan with other categories.
    let known = sources.categories - Categories::WRITTEN;
    let mut any_of = Categories::PRESENT | Categories::SWAPPED;
    if sources.soft_dirty {
        any_of |= known & Categories::SOFT_DIRTY;
    }
    let request = ScanRequest {
        any_of,
        returned: known,
        ..ScanRequest::over(start, end)
    };
    let mut spans = Vec::new();
    let mut vector = vec![ScannedRange::EMPTY; 1024];
    sources.pagemap.scan(&request, &mut vector, |range| {
        spans.push(Span {
            pages: SIZE.covering(range.start(), range.end()),
            categories: Some(range.categories()),
        });
    })?;
    Ok(spans)
}

/// Spans that are read together, none of them longer than is read at once.
pub(super) fn groups(spans: Vec<Span>) -> Vec<Vec<Span>> {
    let mut groups: Vec<Vec<Span>> = Vec::new();
    for span in spans {
        for pages in span.pages.pieces(AT_ONCE) {
            let piece = Span { pages, ..span };
            match groups.last_mut() {
                Some(group) if pages.end().0 - group[0].pages.start().0 <= AT_ONCE.0 => {
                    group.push(piece);
                }
                _ => groups.push(vec![piece]),
            }
        }
    }
    groups
}

struct Tally {
    usage: Usage,
    nature: Nature,
    frames_shown: bool,
    flags: [u64; 64],
    /// Write-protected, whether there is a page or only a marker.
    protected_bytes: u64,
    /// What reads as swapped and is not known to be something else.
    slots_bytes: u64,
}

impl Tally {
    fn add_group(&mut self, sources: &Sources, group: &[Span]) -> Result<(), PageUsageError> {
        let (Some(first), Some(last)) = (group.first(), group.last()) else {
            return Ok(());
        };
        let range = PageRange::new(first.pages.start(), last.pages.end());
        let entries = sources.pagemap.entries(range)?;
        let of_span = |span: &Span| {
            let skip = (span.pages.start().0 - range.start().0) as usize;
            let pages = entries
                .iter()
                .skip(skip)
                .take(span.pages.count().0 as usize);
            pages
                .map(|&entry| (entry, span.categories))
                .collect::<Vec<_>>()
        };
        let pages: Vec<_> = group.iter().flat_map(of_span).collect();
        let numbers: Vec<u64> = pages.iter().filter_map(|(e, _)| e.frame_number()).collect();
        let frames = sources.look_up(&numbers)?;
        let mut next_frame = 0;
        for (entry, categories) in pages {
            let frame = entry.frame_number().map(|_| {
                next_frame += 1;
                next_frame - 1
            });
            self.add_page(entry, categories, &frames, frame);
        }
        Ok(())
    }

    fn add_page(
        &mut self,
        entry: PagemapEntry,
        categories: Option<Categories>,
        frames: &Frames,
        frame: Option<usize>,
    ) {
        let usage = &mut self.usage;
        let is = |category| categories.is_some_and(|all| all.contains(category));
        if let Some(soft_dirty) = usage
            .soft_dirty_bytes
            .as_mut()
            .filter(|_| entry.is_soft_dirty())
        {
            *soft_dirty += PAGE;
        }
        if entry.is_write_protected() {
            self.protected_bytes += PAGE;
        }
        if entry.is_guard() || is(Categories::GUARD) {
            usage.guard_bytes += PAGE;
        } else if let Some(swap) = swap_entry(entry, self.frames_shown)
            && matches!(swap.kind, SwapKind::Area | SwapKind::Hidden)
        {
            self.slots_bytes += PAGE;
        }
        if !entry.is_present() {
            return;
        }
        let of_frame = |table: &Option<Vec<u64>>| Some(table.as_ref()?[frame?]);
        let flags = (|| Some(frames.flags.as_ref()?[frame?]))();
        let huge_zero = self.nature.is_huge_zero(entry, is(Categories::HUGE));
        let zero = is(Categories::ZERO_PAGE)
            || huge_zero
            || flags.is_some_and(|flags: PageFlags| flags.contains(PageFlags::ZERO_PAGE));
        let bytes = |condition| if condition { PAGE } else { 0 };
        usage.present_bytes += PAGE;
        usage.file_bytes += bytes(entry.is_file_or_shared() && !huge_zero);
        usage.exclusive_bytes += bytes(entry.is_exclusive());
        usage.huge_bytes +=
            bytes(is(Categories::HUGE) || categories.is_none() && self.nature.hugetlb);
        usage.hugetlb_bytes += bytes(self.nature.hugetlb);
        if let Some(zeros) = &mut usage.zero_bytes {
            *zeros += bytes(zero);
        }
        if !self.nature.hugetlb && self.nature.is_counted(entry, zero) {
            usage.rss_bytes += PAGE;
            usage.uss_bytes += bytes(entry.is_exclusive());
            if let (Some(pss), Some(users)) = (&mut usage.pss_fixed, of_frame(&frames.counts)) {
                *pss += (PAGE << PSS_SHIFT) / users.max(1);
            }
        }
        if let Some(PageFlags(mut bits)) = flags {
            while bits != 0 {
                self.flags[bits.trailing_zeros() as usize] += 1;
                bits &= bits - 1;
            }
        }
        if let (Some(pages), Some(cgroup)) = (&mut usage.cgroup_pages, of_frame(&frames.cgroups)) {
            *pages.entry(cgroup).or_default() += 1;
        }
    }

    fn finish(self, registered: bool, is_part: bool) -> Usage {
        let mut usage = self.usage;
        if is_part {
            usage.swap_bytes = self.slots_bytes;
        }
        usage.swapped_bytes = if self.frames_shown || !registered {
            self.slots_bytes
        } else {
            self.slots_bytes.min(usage.swap_bytes)
        };
        // An empty slot without a marker is not protected: it counts as written.
        usage.written_bytes = registered.then(|| usage.size_bytes - self.protected_bytes);
        if let Some(flags) = &mut usage.page_flags {
            let set = (0u32..).zip(self.flags).filter(|(_, pages)| *pages > 0);
            flags.extend(set.map(|(bit, pages)| (FlagName(bit), pages)));
        }
        usage
    }
}
