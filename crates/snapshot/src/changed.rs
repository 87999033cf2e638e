//! What differs between two snapshots: both are walked once, side by side. No page is read.

use crate::model::PageState;
use crate::runs::Resolved;
use crate::shown::Sight;
use crate::view::View;
use pagetide_pages::{PageIndex, PageRange, PageSet};

/// The pages of the space `name` whose content differs between `a` and `b`, or that only one of them
/// has.
pub fn changed(a: &View, b: &View, name: &str) -> PageSet {
    let sides = [a, b].map(|view| (view, view.space_index(name)));
    let everything = |(view, space): (&View, Option<usize>)| -> PageSet {
        let runs = space.map(|space| &view.inner.runs[space]);
        runs.into_iter().flatten().map(|run| run.pages).collect()
    };
    let [(_, Some(in_a)), (_, Some(in_b))] = sides else {
        return everything(sides[0]).union(&everything(sides[1]));
    };
    if a.spaces()[in_a].page_size != b.spaces()[in_b].page_size {
        return everything(sides[0]).union(&everything(sides[1]));
    }
    let mut found = PageSet::new();
    let recorded = [records(a, in_a), records(b, in_b)];
    side_by_side(recorded, |range, pair| match pair {
        (None, None) => {}
        (Some(left), Some(right)) => {
            if !same_target((a, &left), (b, &right)) {
                compare((a, in_a, left), (b, in_b, right), &mut found);
            }
        }
        _ => found.insert(range),
    });
    found
}

/// A run as it is recorded, or of a run that is shown what one region shows.
#[derive(Clone, Copy)]
struct Record {
    run: Resolved,
    sight: Option<Sight>,
}

/// Something that covers pages and can be cut.
trait Cut: Copy {
    fn pages(&self) -> PageRange;
    fn cut(&self, range: PageRange) -> Option<Self>;
}

impl Cut for Resolved {
    fn pages(&self) -> PageRange {
        self.pages
    }

    fn cut(&self, range: PageRange) -> Option<Self> {
        Self::cut(*self, range)
    }
}

impl Cut for Record {
    fn pages(&self) -> PageRange {
        self.run.pages
    }

    fn cut(&self, range: PageRange) -> Option<Self> {
        Some(Self {
            run: self.run.cut(range)?,
            sight: self.sight.and_then(|sight| sight.cut(range)),
        })
    }
}

fn records(view: &View, space: usize) -> impl Iterator<Item = Record> + '_ {
    let runs = view.inner.runs[space].iter();
    runs.flat_map(move |&run| {
        let is_shown = run.state == PageState::Shown;
        let sights = is_shown.then(|| view.inner.sights(space, run.pages));
        let shown = sights.into_iter().flatten().filter_map(move |sight| {
            let run = run.cut(sight.pages)?;
            let sight = Some(sight);
            Some(Record { run, sight })
        });
        let plain = (!is_shown).then_some(Record { run, sight: None });
        plain.into_iter().chain(shown)
    })
}

/// Cuts two ascending lists where either begins or ends, and hands over what both have there.
fn side_by_side<T: Cut>(
    [left, right]: [impl Iterator<Item = T>; 2],
    mut visit: impl FnMut(PageRange, (Option<T>, Option<T>)),
) {
    let (mut left, mut right) = (left.peekable(), right.peekable());
    let mut at = PageIndex(0);
    loop {
        while left.next_if(|item| item.pages().end() <= at).is_some() {}
        while right.next_if(|item| item.pages().end() <= at).is_some() {}
        let (one, other) = (left.peek(), right.peek());
        let edges = [one, other].into_iter().flatten().flat_map(|item| {
            let pages = item.pages();
            [pages.start(), pages.end()]
        });
        let Some(until) = edges.filter(|&edge| edge > at).min() else {
            return;
        };
        let range = PageRange::new(at, until);
        let part = |item: Option<&T>| item.and_then(|item| item.cut(range));
        visit(range, (part(one), part(other)));
        at = until;
    }
}

/// Whether both show the same pages of the same space, of which that space itself tells.
fn same_target((a, left): (&View, &Record), (b, right): (&View, &Record)) -> bool {
    let (Some(left), Some(right)) = (left.sight, right.sight) else {
        return false;
    };
    left.first == right.first && a.spaces()[left.space].name == b.spaces()[right.space].name
}

/// Adds the pages that differ. Both records are of the same pages.
fn compare(
    (a, in_a, left): (&View, usize, Record),
    (b, in_b, right): (&View, usize, Record),
    found: &mut PageSet,
) {
    let seen = [a.inner.seen(in_a, left.run), b.inner.seen(in_b, right.run)];
    side_by_side(seen, |range, pair| match pair {
        (None, None) => {}
        (Some(left), Some(right)) => {
            if !same_place(a, &left, b, &right) {
                add_differing(found, (a, in_a, &left), (b, in_b, &right));
            }
        }
        _ => found.insert(range),
    });
}

/// Whether two runs over the same pages are the same without a look at the hashes.
fn same_place(a: &View, left: &Resolved, b: &View, right: &Resolved) -> bool {
    if left.state != right.state {
        return false;
    }
    if !left.state.is_hashed() {
        return true;
    }
    let files =
        [(a, left), (b, right)].map(|(view, run)| &view.inner.layers[run.layer as usize].header);
    left.ordinal == right.ordinal && files[0] == files[1]
}

fn add_differing(
    found: &mut PageSet,
    (a, in_a, left): (&View, usize, &Resolved),
    (b, in_b, right): (&View, usize, &Resolved),
) {
    let has_bytes = |run: &Resolved| !matches!(run.state, PageState::Guard | PageState::Unbacked);
    if !has_bytes(left) || !has_bytes(right) {
        return found.insert(left.pages);
    }
    for page in left.pages.pages() {
        let hashes = (
            a.inner.hash_in(in_a, left, page),
            b.inner.hash_in(in_b, right, page),
        );
        if hashes.0 != hashes.1 {
            found.insert(PageRange::single(page));
        }
    }
}
