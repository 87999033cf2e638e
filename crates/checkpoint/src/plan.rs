//! Which pages of a stopped process a snapshot gets, and how: a function of what is known of them, without a system call.
//!
//! A delta is a layer over its parent. Where it has nothing, the parent shows through:
//!
//! ```text
//! mappings     |  heap, stack           | a file, private | shared | reserved |
//! parent       | A  A  A  A  A  A  A  A | f  f  a  f  f   | o o o  | 0  0  0  |
//! tracker      | .  w  .  .  w  .  .  . |                 |        |          |
//! page tables  |                        | .  c  c  g  .   |        |          |
//! delta        |    B        B          |    ?  ?  g      | o o o  | 0  0  0  |
//! together     | A  B  A  A  B  A  A  A | f  b  a  g  f   | o o o  | 0  0  0  |
//!
//!   A B a b  bytes of the process             f  what the file has: its hash is stored, and not the bytes
//!   w        reported as written              o  what the object has, which is a space of its own
//!   c        a copy of the process's own      g  a guard region
//!   0        nothing is there                 ?  compared with the parent, and stored if it differs
//! ```
//!
//! So a page is *read* (and stored, whatever it is), *compared*, recorded as *zero*, *in the file*, *shown* or a *guard*, or it
//! is in none of these sets: then the parent or the pre-copy has it. No page is in two of them.

use pagetide_pages::PageSet;

/// What is known of the pages of one stopped process.
pub(crate) struct Evidence<'a> {
    /// Memory of which the tracker tells what is written.
    pub tracked: PageSet,
    /// Memory that may have changed unseen.
    pub compared: PageSet,
    /// Private mappings of files.
    pub over_file: PageSet,
    /// Of these, the process's own copies.
    pub copies: &'a PageSet,
    /// Of these, guard regions.
    pub guards: PageSet,
    /// Of these, pages of files that may stand for what they show.
    pub standing: PageSet,
    /// Of these, pages of which the hash of what the file has is known.
    pub hashed: PageSet,
    /// Private huge pages, of which those that are not there must not be read.
    pub huge: PageSet,
    /// Of these, those that are there.
    pub held: PageSet,
    /// Address space that can hold nothing. The tracker may watch it, too.
    pub reserved: PageSet,
    /// Pages that were never allocated, and must not be read.
    pub empty: PageSet,
    /// Mappings that show objects.
    pub objects: PageSet,
    /// What the tracker has reported, of all memory.
    pub written: &'a PageSet,
    /// Buffers that the kernel may write to unseen.
    pub buffers: &'a PageSet,
    /// Pages whose state or bytes pre-copy has stored.
    pub covered: &'a PageSet,
    /// Pages that pre-copy has harvested, and of which it has stored nothing.
    pub postponed: &'a PageSet,
    /// Pages that an earlier stop for this snapshot copied.
    pub again: &'a PageSet,
    /// What the parent says; `None` for a full snapshot.
    pub then: Option<ParentEvidence<'a>>,
}

/// What the parent says of the pages of the process.
pub(crate) struct ParentEvidence<'a> {
    /// Buffers that the kernel might have written to unseen.
    pub buffers: &'a PageSet,
    /// Pages that something was on its way into.
    pub in_flight: &'a PageSet,
    /// The process's own copies of pages of files.
    pub copies: &'a PageSet,
    /// Private mappings that show the same of the same files, which have not changed.
    pub unchanged: PageSet,
    /// Of the private mappings of files, pages that were left in their file.
    pub in_file: PageSet,
    /// Pages that showed an object.
    pub shown: PageSet,
}

/// What to do with which pages.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub read: PageSet,
    pub compare: PageSet,
    pub zero: PageSet,
    pub in_file: PageSet,
    pub shown: PageSet,
    pub guards: PageSet,
}

/// See the head of this file.
pub(crate) fn plan(known: Evidence<'_>) -> Plan {
    let shows_file = known.over_file.subtract(known.copies);
    let shows_file = shows_file.subtract(&known.guards);
    let unsure = shows_file.subtract(&known.standing);
    // Pages of files that have to be told.
    let mut of_files = shows_file.intersect(&known.standing);

    let harvested = known.written.union(known.postponed).union(known.buffers);
    let mut read = harvested.intersect(&known.tracked);
    let mut compare = known.compared.union(known.copies).union(&known.held);
    match &known.then {
        None => {
            read = read.union(&known.tracked.subtract(known.covered));
            read = read.union(&unsure);
        }
        Some(then) => {
            let unseen = then.buffers.union(then.in_flight);
            read = read.union(&unseen.intersect(&known.tracked));
            // A copy that is gone shows the file again.
            read = read.union(&then.copies.intersect(&unsure));
            compare = compare.union(&unsure.subtract(&then.unchanged));
            // The parent says of these what holds still.
            let holds = then.in_file.intersect(&then.unchanged);
            let holds = holds.intersect(&known.standing);
            let again = of_files.intersect(known.again);
            of_files = of_files.subtract(&holds).union(&again);
            // A file that has changed or may change can no longer stand for its pages.
            let stood = then.in_file.subtract(&holds);
            read = read.union(&stood.subtract(&known.guards));
            // What was shown of an object then is not what the process itself had there.
            read = read.union(&compare.intersect(&then.shown));
        }
    }
    let in_file = of_files.intersect(&known.hashed);
    read = read.union(&of_files);

    // What was copied before and may be stale now is not compared with the parent: it must be put again whatever it is.
    let stale = known.again.union(&known.covered.intersect(&compare));
    let here = known.tracked.union(&compare).union(&unsure);
    read = read.union(&stale.intersect(&here));

    let nothing = known.huge.subtract(&known.held).union(&known.empty);
    let zero = known.reserved.union(&nothing);
    let zero = zero.subtract(&in_file).subtract(&known.guards);
    let read = read.subtract(&in_file).subtract(&zero);
    Plan {
        compare: compare.subtract(&read).subtract(&zero),
        read,
        zero,
        in_file,
        shown: known.objects,
        guards: known.guards,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagetide_pages::{PageIndex, PageRange};
    use proptest::prelude::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Kind {
        Tracked,
        Compared,
        OverFile,
        Huge,
        Reserved,
        ReservedAndTracked,
        Object,
    }

    /// What is known of one page.
    #[derive(Clone, Copy, Debug)]
    struct Page {
        kind: Kind,
        is_copy: bool,
        is_guard: bool,
        stands: bool,
        is_hashed: bool,
        is_held: bool,
        is_empty: bool,
        written: bool,
        buffer: bool,
        covered: bool,
        postponed: bool,
        again: bool,
        buffer_then: bool,
        in_flight_then: bool,
        copy_then: bool,
        unchanged: bool,
        in_file_then: bool,
        shown_then: bool,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Fate {
        Read,
        Compare,
        Zero,
        InFile,
        Shown,
        Guard,
        /// As the parent or the pre-copy has it.
        AsBefore,
    }

    fn page() -> impl Strategy<Value = Page> {
        use Kind::*;
        let kinds = [
            Tracked,
            Compared,
            OverFile,
            Huge,
            Reserved,
            ReservedAndTracked,
            Object,
        ];
        (prop::sample::select(kinds.to_vec()), any::<u32>()).prop_map(|(kind, bits)| {
            let bit = |number: u32| bits & (1 << number) != 0;
            let is = |wanted: Kind| kind == wanted;
            Page {
                kind,
                is_copy: is(OverFile) && bit(0),
                is_guard: is(OverFile) && !bit(0) && bit(1),
                stands: is(OverFile) && bit(2),
                is_hashed: is(OverFile) && bit(2) && bit(3),
                is_held: is(Huge) && bit(4),
                is_empty: (is(OverFile) && !bit(0) || is(Compared)) && bit(5),
                written: bit(6),
                buffer: bit(7),
                covered: (is(Tracked) || is(Compared)) && bit(8),
                postponed: bit(9),
                again: bit(10),
                buffer_then: bit(11),
                in_flight_then: bit(12),
                copy_then: bit(13),
                unchanged: is(OverFile) && bit(14),
                in_file_then: is(OverFile) && bit(15),
                shown_then: bit(16),
            }
        })
    }

    /// The same decision, of one page.
    fn fate(page: &Page, is_delta: bool) -> Fate {
        let tracked = matches!(page.kind, Kind::Tracked | Kind::ReservedAndTracked);
        let harvested = tracked && (page.written || page.buffer || page.postponed);
        let unseen = tracked && (page.buffer_then || page.in_flight_then);
        let has_gone_stale = page.again || page.covered;
        let if_differs = if has_gone_stale || is_delta && page.shown_then {
            Fate::Read
        } else {
            Fate::Compare
        };
        let holds = is_delta && page.in_file_then && page.unchanged && page.stands;
        match page.kind {
            Kind::Object => Fate::Shown,
            Kind::OverFile if page.is_guard => Fate::Guard,
            Kind::OverFile if !page.is_copy && page.stands && (!holds || page.again) => {
                match (page.is_hashed, page.is_empty) {
                    (true, _) => Fate::InFile,
                    (false, true) => Fate::Zero,
                    (false, false) => Fate::Read,
                }
            }
            _ if page.is_empty => Fate::Zero,
            Kind::Reserved | Kind::ReservedAndTracked => Fate::Zero,
            Kind::Huge if !page.is_held => Fate::Zero,
            Kind::Huge | Kind::Compared => if_differs,
            Kind::Tracked if is_delta => {
                if harvested || unseen || page.again {
                    Fate::Read
                } else {
                    Fate::AsBefore
                }
            }
            Kind::Tracked => {
                if harvested || page.again || !page.covered {
                    Fate::Read
                } else {
                    Fate::AsBefore
                }
            }
            // What stood for the file then, and cannot now.
            Kind::OverFile if is_delta && page.in_file_then && !holds => Fate::Read,
            Kind::OverFile if page.is_copy => if_differs,
            Kind::OverFile if page.stands => Fate::AsBefore,
            Kind::OverFile if !is_delta || page.copy_then || page.again => Fate::Read,
            Kind::OverFile if !page.unchanged => if_differs,
            Kind::OverFile => Fate::AsBefore,
        }
    }

    fn set(pages: &[Page], has: impl Fn(&Page) -> bool) -> PageSet {
        let all = pages.iter().enumerate();
        let found = all.filter(|(_, page)| has(page));
        found
            .map(|(index, _)| PageRange::single(PageIndex(index as u64)))
            .collect()
    }

    proptest! {
        #[test]
        fn each_page_has_the_fate_that_it_has_alone_and_no_other(
            pages in prop::collection::vec(page(), 1..64),
            is_delta: bool,
        ) {
            let of = |has: fn(&Page) -> bool| set(&pages, has);
            let [copies, written, buffers] =
                [of(|page| page.is_copy), of(|page| page.written), of(|page| page.buffer)];
            let [covered, postponed, again] =
                [of(|page| page.covered), of(|page| page.postponed), of(|page| page.again)];
            let [buffers_then, in_flight, copies_then] = [
                of(|page| page.buffer_then),
                of(|page| page.in_flight_then),
                of(|page| page.copy_then),
            ];
            let then = ParentEvidence {
                buffers: &buffers_then,
                in_flight: &in_flight,
                copies: &copies_then,
                unchanged: of(|page| page.unchanged),
                in_file: of(|page| page.in_file_then),
                shown: of(|page| page.shown_then),
            };
            let plan = plan(Evidence {
                tracked: of(|page| matches!(page.kind, Kind::Tracked | Kind::ReservedAndTracked)),
                compared: of(|page| page.kind == Kind::Compared),
                over_file: of(|page| page.kind == Kind::OverFile),
                copies: &copies,
                guards: of(|page| page.is_guard),
                standing: of(|page| page.stands),
                hashed: of(|page| page.is_hashed),
                huge: of(|page| page.kind == Kind::Huge),
                held: of(|page| page.is_held),
                reserved: of(|page| matches!(page.kind, Kind::Reserved | Kind::ReservedAndTracked)),
                empty: of(|page| page.is_empty),
                objects: of(|page| page.kind == Kind::Object),
                written: &written,
                buffers: &buffers,
                covered: &covered,
                postponed: &postponed,
                again: &again,
                then: is_delta.then_some(then),
            });
            let fates = [
                (Fate::Read, &plan.read),
                (Fate::Compare, &plan.compare),
                (Fate::Zero, &plan.zero),
                (Fate::InFile, &plan.in_file),
                (Fate::Shown, &plan.shown),
                (Fate::Guard, &plan.guards),
            ];
            for (index, page) in pages.iter().enumerate() {
                let at = PageIndex(index as u64);
                let found = fates.iter().filter(|(_, pages)| pages.contains(at));
                let found: Vec<Fate> = found.map(|(fate, _)| *fate).collect();
                let expected = match fate(page, is_delta) {
                    Fate::AsBefore => vec![],
                    fate => vec![fate],
                };
                prop_assert_eq!(found, expected, "{:?}", page);
                // Nothing of a full snapshot is as it was before, but for what pre-copy has stored.
                let is_told = !is_delta && !page.covered;
                prop_assert!(!is_told || fates.iter().any(|(_, pages)| pages.contains(at)));
            }
            let outside = PageIndex(pages.len() as u64);
            prop_assert!(fates.iter().all(|(_, pages)| !pages.contains(outside)));
        }
    }
}
