//! What lies beneath the records of a view: where a record is a difference, what it is to, and so on down to pages that are
//! whole. Each is a list of runs like that of the view itself.

use crate::format::metadata::captured;
use crate::kept::CompactIndex;
use crate::model::{PageState, Space};
use crate::runs::{self, Resolved};
use pagetide_pages::{PageCount, PageRange};

/// Of one space: what its differences are to; what those of these are to; and so on.
pub type Beneath = Vec<Vec<Resolved>>;

impl Resolved {
    /// Those of its pages that are differences, if `kept` is of the file they are in.
    pub fn differing<'k>(
        &self,
        kept: &'k CompactIndex,
    ) -> impl Iterator<Item = PageRange> + use<'k> {
        let stored = match self.state {
            PageState::Data => self.ordinal..self.ordinal + self.pages.count().0,
            _ => 0..0,
        };
        let (start, ordinal) = (self.pages.start(), self.ordinal);
        kept.differing(stored).map(move |part| {
            let first = start.plus(PageCount(part.start - ordinal));
            PageRange::with_count(first, PageCount(part.end - part.start))
        })
    }
}

/// What lies beneath a space of a snapshot whose own records are `top`, in the file that `kept` is of. Its parent has the
/// records `base`, and beneath those `base_beneath`.
pub fn resolve(
    (base, base_beneath): (&[Resolved], &Beneath),
    space: &Space,
    top: &[Resolved],
    kept: &CompactIndex,
) -> Beneath {
    let own: Vec<PageRange> = top.iter().flat_map(|run| run.differing(kept)).collect();
    if own.is_empty() && base_beneath.is_empty() {
        return Beneath::new();
    }
    let above = std::iter::once(base).chain(base_beneath.iter().map(Vec::as_slice));
    let deepest: &[Resolved] = &[];
    let same = base_beneath.iter().map(Vec::as_slice).chain([deepest]);
    let mut beneath: Beneath = above
        .zip(same)
        .map(|(above, same)| {
            let kept = runs::within(same, captured(space));
            let kept = runs::without(&kept, top);
            runs::overlay(&kept, &runs::within(above, own.iter().copied()))
        })
        .collect();
    while beneath.last().is_some_and(Vec::is_empty) {
        beneath.pop();
    }
    beneath
}
