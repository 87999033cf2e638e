//! What an entry of the page table stands for that is not in memory.

use pagetide_kernel::pagemap::PagemapEntry;

/// What an entry that reads as swapped stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SwapKind {
    /// A place in a swap area.
    Area,
    /// A mark in an empty slot: write-protected, a guard, or poisoned. There is no content.
    Marker,
    /// A page on its way to another frame, in memory of a device, or damaged.
    Special,
    /// The kernel does not show it to this user.
    Hidden,
}

/// What an entry that is not in memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SwapEntry {
    /// What it stands for.
    pub kind: SwapKind,
    /// Number of the swap area; `None` if it is hidden.
    pub swap_type: Option<u8>,
    /// Place in the swap area, in pages; of a marker, its bits (1 write-protected, 2 poisoned, 4 guard).
    pub offset: Option<u64>,
}

impl SwapEntry {
    /// What a marker says of its empty slot; `None` for anything else.
    pub fn marks(&self) -> Option<Vec<&'static str>> {
        let bits = self.offset.filter(|_| self.kind == SwapKind::Marker)?;
        let marks = [
            (1, "write-protected"),
            (2, "poisoned: reading it is a SIGBUS"),
            (4, "guard region"),
        ];
        let set = marks.iter().filter(|(bit, _)| bits & bit != 0);
        Some(set.map(|(_, name)| *name).collect())
    }
}

/// The last swap type stands for markers (since 5.19), and those from here up to it for other things than
/// swap areas.
const FIRST_SPECIAL_TYPE: u8 = 23;
const MARKER_TYPE: u8 = 31;

/// The swap entry of a page that is not in memory; `shown` if the kernel shows it to this user.
pub(super) fn swap_entry(entry: PagemapEntry, shown: bool) -> Option<SwapEntry> {
    let (swap_type, offset) = entry.swap_slot()?;
    let kind = match swap_type {
        _ if !shown => {
            return Some(SwapEntry {
                kind: SwapKind::Hidden,
                swap_type: None,
                offset: None,
            });
        }
        ..FIRST_SPECIAL_TYPE => SwapKind::Area,
        MARKER_TYPE => SwapKind::Marker,
        _ => SwapKind::Special,
    };
    Some(SwapEntry {
        kind,
        swap_type: Some(swap_type),
        offset: Some(offset),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(swap_type: u64, offset: u64) -> PagemapEntry {
        PagemapEntry(1 << 62 | offset << 5 | swap_type)
    }

    #[test]
    fn swap_areas_markers_and_others_are_told_apart() {
        let kind = |swap_type| swap_entry(entry(swap_type, 9), true).map(|swap| swap.kind);
        assert_eq!(kind(0), Some(SwapKind::Area));
        assert_eq!(kind(22), Some(SwapKind::Area));
        assert_eq!(kind(24), Some(SwapKind::Special));
        assert_eq!(kind(31), Some(SwapKind::Marker));
        let shown = swap_entry(entry(3, 9), true).expect("it is swapped");
        assert_eq!((shown.swap_type, shown.offset), (Some(3), Some(9)));
    }

    #[test]
    fn what_markers_say_is_told() {
        let marks = |offset| swap_entry(entry(31, offset), true).and_then(|swap| swap.marks());
        assert_eq!(marks(1), Some(vec!["write-protected"]));
        assert_eq!(marks(2), Some(vec!["poisoned: reading it is a SIGBUS"]));
        assert_eq!(marks(5), Some(vec!["write-protected", "guard region"]));
        let area = swap_entry(entry(0, 5), true).expect("it is swapped");
        assert_eq!(area.marks(), None);
    }

    #[test]
    fn what_is_hidden_is_not_taken_for_the_first_place_of_the_first_area() {
        let hidden = swap_entry(entry(0, 0), false).expect("it is swapped");
        assert_eq!(hidden.kind, SwapKind::Hidden);
        assert_eq!((hidden.swap_type, hidden.offset), (None, None));
        assert_eq!(swap_entry(PagemapEntry(1 << 63 | 5), true), None);
        assert_eq!(swap_entry(PagemapEntry(0), true), None);
    }
}
