//! What a soft-dirty tracker remembers from one harvest to the next: of each page that has content of its
//! own, where the kernel keeps it, and what each part of the address space is mapped to.
//!
//! The kernel's bits say what was stored to. They do not say that a page was dropped, or that another took
//! its place with its bits: moving memory by mremap(2) moves whole page tables, and same-page merging
//! replaces pages. In all these cases the content lies in another frame than before, or nowhere.

use crate::labels::Labels;
use pagetide_kernel::maps::Mapping;
use pagetide_kernel::pagemap::PagemapEntry;
use pagetide_pages::{PageCount, PageIndex, PageRange, PageSet};

/// Where a page's own content lies, less the page's index, so that a run of pages in a run of frames has
/// one label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whereabouts {
    /// In a frame of memory.
    Frame(u64),
    /// In a slot of this swap type; markers and guards are of types of their own.
    Slot(u8, u64),
}

/// What a page is mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Zeros.
    Anonymous,
    /// A file: device, inode, and its page less the page's index.
    File((u32, u32), u64, u64),
}

/// See the head of this file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub backing: Labels<Backing>,
    pub places: Labels<Whereabouts>,
}

/// The frame numbers of pages are hidden from this user.
pub(crate) struct Hidden;

/// Where the content of the page lies, if it has content of its own: a page that is neither in memory nor
/// in swap shows what it is mapped to, and so does a page of a file.
pub(crate) fn place(page: PageIndex, entry: PagemapEntry) -> Result<Option<Whereabouts>, Hidden> {
    if entry.is_present() {
        if entry.is_file_or_shared() {
            return Ok(None);
        }
        let frame = entry.frame_number().ok_or(Hidden)?;
        return Ok(Some(Whereabouts::Frame(frame.wrapping_sub(page.0))));
    }
    let slot = entry.swap_slot();
    Ok(slot.map(|(kind, slot)| Whereabouts::Slot(kind, slot.wrapping_sub(page.0))))
}

/// What a private mapping shows where it holds nothing of its own.
pub(crate) fn backing(mapping: &Mapping) -> Backing {
    if !mapping.has_file() {
        Backing::Anonymous
    } else {
        let first = mapping.offset_bytes / pagetide_pages::PageSize::KIB_4.bytes();
        let distance = first.wrapping_sub(mapping.pages().start().0);
        Backing::File(mapping.device, mapping.inode, distance)
    }
}

impl Seen {
    /// The pages that may show something else than they did in `before`, not counting stores.
    pub fn changed_since(&self, before: &Self) -> PageSet {
        self.fresh_since(before)
            .union(&self.places.differing(&before.places))
    }

    /// The pages that were not mapped to the same in `before`.
    pub fn fresh_since(&self, before: &Self) -> PageSet {
        let now = self.backing.pages();
        now.subtract(&self.backing.alike(&before.backing))
    }

    /// As bytes, to be read by [`Seen::from_bytes`] of the same version.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.number(VERSION);
        out.number(self.backing.runs().len() as u64);
        for (pages, backing) in self.backing.runs() {
            out.range(*pages);
            match backing {
                Backing::Anonymous => out.number(0),
                Backing::File((major, minor), inode, distance) => {
                    let numbers = [1, u64::from(*major), u64::from(*minor), *inode];
                    numbers.into_iter().for_each(|number| out.number(number));
                    out.distance(*distance);
                }
            }
        }
        out.at = 0;
        out.number(self.places.runs().len() as u64);
        for (pages, place) in self.places.runs() {
            out.range(*pages);
            match place {
                Whereabouts::Frame(distance) => {
                    out.number(0);
                    out.distance(*distance);
                }
                Whereabouts::Slot(kind, distance) => {
                    out.number(1 + u64::from(*kind));
                    out.distance(*distance);
                }
            }
        }
        out.bytes
    }

    /// `None` if the bytes are not whole, or of another version.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut input = Reader {
            rest: bytes,
            at: 0,
            distance: 0,
        };
        let mut seen = Self::default();
        if input.number()? != VERSION {
            return None;
        }
        for _ in 0..input.number()? {
            let pages = input.range()?;
            let backing = match input.number()? {
                0 => Backing::Anonymous,
                1 => {
                    let major = u32::try_from(input.number()?).ok()?;
                    let minor = u32::try_from(input.number()?).ok()?;
                    Backing::File((major, minor), input.number()?, input.distance()?)
                }
                _ => return None,
            };
            seen.backing.push(pages, backing);
        }
        input.at = 0;
        for _ in 0..input.number()? {
            let pages = input.range()?;
            let place = match input.number()? {
                0 => Whereabouts::Frame(input.distance()?),
                kind => Whereabouts::Slot(u8::try_from(kind - 1).ok()?, input.distance()?),
            };
            seen.places.push(pages, place);
        }
        input.rest.is_empty().then_some(seen)
    }
}

const VERSION: u64 = 1;

/// Numbers in groups of seven bits, the lowest first; ranges and distances relative to the last.
#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    at: u64,
    distance: u64,
}

impl Writer {
    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    fn range(&mut self, pages: PageRange) {
        self.number(pages.start().0 - self.at);
        self.number(pages.count().0);
        self.at = pages.end().0;
    }

    fn distance(&mut self, distance: u64) {
        let step = distance.wrapping_sub(self.distance).cast_signed();
        // The sign goes to the lowest bit, so that small steps are short either way.
        self.number((step << 1 ^ step >> 63).cast_unsigned());
        self.distance = distance;
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    at: u64,
    distance: u64,
}

impl Reader<'_> {
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn range(&mut self) -> Option<PageRange> {
        let start = self.at.checked_add(self.number()?)?;
        let count = PageCount(self.number()?);
        self.at = start.checked_add(count.0)?;
        Some(PageRange::with_count(PageIndex(start), count))
    }

    fn distance(&mut self) -> Option<u64> {
        let step = self.number()?;
        let step = (step >> 1).cast_signed() ^ -(step & 1).cast_signed();
        self.distance = self.distance.wrapping_add(step.cast_unsigned());
        Some(self.distance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> PageRange {
        PageRange::new(PageIndex(start), PageIndex(end))
    }

    fn seen() -> Seen {
        let mut seen = Seen::default();
        seen.backing.push(range(10, 40), Backing::Anonymous);
        seen.backing.push(
            range(40, 50),
            Backing::File((8, 1), u64::MAX, 7u64.wrapping_sub(40)),
        );
        seen.backing
            .push(range(1 << 35, (1 << 35) + 1), Backing::Anonymous);
        seen.places.push(range(10, 20), Whereabouts::Frame(123_456));
        seen.places
            .push(range(20, 21), Whereabouts::Frame(0u64.wrapping_sub(3)));
        seen.places
            .push(range(30, 31), Whereabouts::Slot(31, u64::MAX >> 14));
        seen.places
            .push(range(1 << 35, (1 << 35) + 1), Whereabouts::Slot(0, 1));
        seen
    }

    #[test]
    fn what_was_seen_is_read_as_it_was_written_and_refused_when_cut() {
        let bytes = seen().to_bytes();
        assert_eq!(Seen::from_bytes(&bytes), Some(seen()));
        for length in 0..bytes.len() {
            assert_eq!(Seen::from_bytes(&bytes[..length]), None, "{length}");
        }
        assert_eq!(Seen::from_bytes(&[&bytes[..], &[0]].concat()), None);
    }

    #[test]
    fn a_page_of_a_file_and_an_empty_one_have_no_content_of_their_own() {
        let place = |bits| place(PageIndex(5), PagemapEntry(bits)).ok();
        assert_eq!(place(0), Some(None));
        assert_eq!(place(1 << 55), Some(None), "a fresh mapping");
        assert_eq!(place(1 << 63 | 1 << 61 | 77), Some(None), "a file's page");
        assert_eq!(place(1 << 63 | 77), Some(Some(Whereabouts::Frame(72))));
        assert_eq!(
            place(1 << 62 | 9 << 5 | 3),
            Some(Some(Whereabouts::Slot(3, 4)))
        );
        assert_eq!(place(1 << 63), None, "a hidden frame number");
    }

    #[test]
    fn pages_that_changed_places_have_changed() {
        let (before, mut now) = (seen(), seen());
        assert!(now.changed_since(&before).is_empty());
        now.places = Labels::default();
        now.places.push(range(10, 15), Whereabouts::Frame(123_456));
        now.places.push(range(15, 20), Whereabouts::Frame(123_457));
        let changed = now.changed_since(&before);
        let expected = [range(15, 21), range(30, 31), range(1 << 35, (1 << 35) + 1)];
        assert_eq!(changed.ranges(), expected);
    }

    #[test]
    fn pages_mapped_to_something_else_have_changed_though_they_hold_nothing() {
        let (before, mut now) = (seen(), seen());
        now.backing = Labels::default();
        now.backing.push(range(10, 45), Backing::Anonymous);
        assert_eq!(now.fresh_since(&before).ranges(), [range(40, 45)]);
    }
}
