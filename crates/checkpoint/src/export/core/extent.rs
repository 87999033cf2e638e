//! How much of its memory a process wants in a core: what it was told by MADV_DONTDUMP, and the kinds of memory that its
//! `coredump_filter` names. Sources: core(5), madvise(2).

use crate::export::region::ExportError;
use crate::file_pages::OutsideFiles;
use crate::manifest::MemberNames;
use crate::memo::Memo;
use pagetide_pages::{PageCount, PageRange, PageSet};
use pagetide_process::KernelState;
use pagetide_snapshot::{Backing, Capture, PageContent, PageState, Region, Sharing, View};

/// How much of a process's memory a core holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CoreExtent {
    /// What the kernel would dump: no memory that was advised MADV_DONTDUMP, and of the rest the kinds that the process's
    /// `coredump_filter` names.
    #[default]
    AsTheKernel,
    /// All that the snapshot holds.
    All,
}

/// Bits of `coredump_filter`.
const PRIVATE_ANONYMOUS: u32 = 1 << 0;
const SHARED_ANONYMOUS: u32 = 1 << 1;
const PRIVATE_FILES: u32 = 1 << 2;
const SHARED_FILES: u32 = 1 << 3;
const ELF_HEADERS: u32 = 1 << 4;
const PRIVATE_HUGE: u32 = 1 << 5;
const SHARED_HUGE: u32 = 1 << 6;

/// What the kernel gives to the first process, for snapshots that do not say.
const DEFAULT: u32 = PRIVATE_ANONYMOUS | SHARED_ANONYMOUS | ELF_HEADERS | PRIVATE_HUGE;

const ELF_MAGIC: &[u8] = b"\x7fELF";

/// Decides for each region how much of it is dumped.
pub(super) struct Dumped<'a> {
    view: &'a View,
    space: usize,
    /// What the process has changed of files; nothing if the snapshot does not say.
    copies: Option<PageSet>,
    /// Nothing if all is.
    filter: Option<u32>,
}

impl<'a> Dumped<'a> {
    pub fn of(view: &'a View, names: &MemberNames, space: usize, extent: CoreExtent) -> Self {
        let recorded = || {
            let state = KernelState::from_bytes(view.attachment(&names.kernel)?).ok()?;
            Some(state.switches.coredump_filter)
        };
        let filter = match extent {
            CoreExtent::All => None,
            CoreExtent::AsTheKernel => Some(recorded().unwrap_or(DEFAULT)),
        };
        let memo = view.attachment(&names.memo).and_then(Memo::from_bytes);
        Dumped {
            view,
            space,
            copies: memo.map(|memo| memo.private_copies),
            filter,
        }
    }

    /// The pages of `region` that are dumped, from its first on.
    pub fn part(&self, region: &Region) -> PageRange {
        let pages = |count| PageRange::with_count(region.pages.start(), count);
        if region.capture != Capture::Captured {
            return pages(PageCount(0));
        }
        let Some(filter) = self.filter else {
            return region.pages;
        };
        if region.backing == Backing::Kernel {
            return region.pages;
        }
        let has = |name: &str| region.advice.iter().any(|advice| advice == name);
        if has("dontdump") {
            return pages(PageCount(0));
        }
        let wanted = self.kinds(region);
        if filter & wanted != 0 {
            return region.pages;
        }
        let is_header = region.sharing == Sharing::Private
            && filter & ELF_HEADERS != 0
            && self.begins_a_program(region);
        pages(PageCount(u64::from(is_header)))
    }

    /// Of which kinds a region is: it is dumped if the filter names any.
    fn kinds(&self, region: &Region) -> u32 {
        let is_huge = region.advice.iter().any(|advice| advice == "hugetlb");
        match (is_huge, region.sharing) {
            (true, Sharing::Private) => PRIVATE_HUGE,
            (true, Sharing::Shared) => SHARED_HUGE,
            (false, Sharing::Shared) if is_nameless(&region.backing) => SHARED_ANONYMOUS,
            (false, Sharing::Shared) => SHARED_FILES,
            (false, Sharing::Private) if region.backing == Backing::Anonymous => PRIVATE_ANONYMOUS,
            (false, Sharing::Private) if self.holds_own(region) => {
                PRIVATE_ANONYMOUS | PRIVATE_FILES
            }
            (false, Sharing::Private) => PRIVATE_FILES,
        }
    }

    /// True if a private mapping of a file holds anything that the file does not have.
    fn holds_own(&self, region: &Region) -> bool {
        if let Some(copies) = &self.copies {
            return !copies.within(region.pages).is_empty();
        }
        let mut runs = self.view.runs(self.space, region.pages);
        runs.any(|(_, state)| state == PageState::Data)
    }

    /// True if this is the beginning of a file that is a program or a library.
    fn begins_a_program(&self, region: &Region) -> bool {
        let Backing::File {
            offset_bytes: 0, ..
        } = region.backing
        else {
            return false;
        };
        let first = PageRange::single(region.pages.start());
        let (mut begins, files) = (false, OutsideFiles::default());
        let read = self
            .view
            .read::<ExportError>(self.space, first, |pages, content| {
                let mut from_file = Vec::new();
                let bytes = match content {
                    PageContent::Bytes(bytes) => bytes,
                    PageContent::File(hashes) => {
                        files.read(region, pages, hashes, &mut from_file)?;
                        &from_file
                    }
                    _ => return Ok(()),
                };
                begins = bytes.starts_with(ELF_MAGIC);
                Ok(())
            });
        // Of a file that is another now no core needs the beginning.
        read.is_ok() && begins && region.protection.read
    }
}

/// True if what is shared has no name in any file system, as memory of memfd_create(2), System V, or what was deleted.
fn is_nameless(backing: &Backing) -> bool {
    match backing {
        Backing::File { path, .. } | Backing::SharedMemory { path, .. } => {
            path.ends_with(b" (deleted)")
                || path.first() != Some(&b'/')
                || path.starts_with(b"/SYSV")
        }
        Backing::Anonymous | Backing::Kernel => true,
    }
}
