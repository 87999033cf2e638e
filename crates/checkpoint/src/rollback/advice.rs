//! The advice and locks part of a rollback: what a program has told the kernel of its mappings since the snapshot is taken
//! back, and what it had told then is told again, also of what had to be mapped anew. What cannot be put back is named.
//! Sources: madvise(2), mlock(2).

use crate::advice::{Advice, DROPPABLE, SEALED};
use crate::capture::SIZE;
use pagetide_kernel::maps::{Mapping, MapsError};
use pagetide_pages::{PageRange, PageSet};
use pagetide_process::{RemoteCallError, RemoteCalls};
use pagetide_snapshot::{Backing, Region};

const SYS_MADVISE: i64 = nix::libc::SYS_madvise;
const SYS_MLOCK2: i64 = nix::libc::SYS_mlock2;
const SYS_MUNLOCK: i64 = nix::libc::SYS_munlock;
const MLOCK_ONFAULT: u64 = 1;

/// Advice that is there or not: its name, how it is given, and how it is taken back, if it can be.
const SWITCHES: [(&str, i32, Option<i32>); 6] = [
    (
        "dontfork",
        nix::libc::MADV_DONTFORK,
        Some(nix::libc::MADV_DOFORK),
    ),
    (
        "dontdump",
        nix::libc::MADV_DONTDUMP,
        Some(nix::libc::MADV_DODUMP),
    ),
    (
        "wipeonfork",
        nix::libc::MADV_WIPEONFORK,
        Some(nix::libc::MADV_KEEPONFORK),
    ),
    (
        "mergeable",
        nix::libc::MADV_MERGEABLE,
        Some(nix::libc::MADV_UNMERGEABLE),
    ),
    // Either takes the other away, and nothing takes away both.
    ("hugepage", nix::libc::MADV_HUGEPAGE, None),
    ("nohugepage", nix::libc::MADV_NOHUGEPAGE, None),
];

/// How memory is expected to be read. Only one of these is so.
const ORDERS: [(&str, i32); 2] = [
    ("sequential", nix::libc::MADV_SEQUENTIAL),
    ("random", nix::libc::MADV_RANDOM),
];

/// Other attributes, which a mapping has from the moment on when it is made.
const FROM_BIRTH: [&str; 3] = ["noreserve", "growsdown", DROPPABLE];
/// What nothing takes back.
const FOR_GOOD: [&str; 1] = [SEALED];

/// One call that is to be made.
struct Call {
    number: i64,
    pages: PageRange,
    argument: u64,
}

/// The calls that put back advice and locks.
pub(super) struct Advised {
    calls: Vec<Call>,
}

fn has(names: &[String], name: &str) -> bool {
    names.iter().any(|found| found == name)
}

/// Each part of the regions that is one mapping now, with what is so of it.
fn each_part<'a>(
    now: &Advice,
    mappings: &[Mapping],
    regions: &'a [Region],
    mut told: impl FnMut(&'a Region, PageRange, &[String]),
) {
    let regions = regions.iter();
    for region in regions.filter(|region| region.backing != Backing::Kernel) {
        let first = mappings.partition_point(|one| one.pages().end() <= region.pages.start());
        for mapping in &mappings[first..] {
            let Some(common) = mapping.pages().intersection(region.pages) else {
                break;
            };
            told(region, common, &now.of(mapping));
        }
    }
}

impl Advised {
    /// What has to be done, where `now` is so of these mappings, and all of `fresh` is mapped anew.
    pub fn plan(now: &Advice, mappings: &[Mapping], regions: &[Region], fresh: &PageSet) -> Self {
        let mut advised = Self { calls: Vec::new() };
        each_part(now, mappings, regions, |region, part, now| {
            for &pages in PageSet::from(part).subtract(fresh).ranges() {
                advised.put_back(pages, now, &region.advice);
            }
        });
        for region in regions.iter().filter(|one| one.backing != Backing::Kernel) {
            for &pages in fresh.within(region.pages).ranges() {
                advised.put_back(pages, &[], &region.advice);
            }
        }
        advised
    }

    fn put_back(&mut self, pages: PageRange, now: &[String], wanted: &[String]) {
        let mut advise = |advice: i32| {
            self.calls.push(Call {
                number: SYS_MADVISE,
                pages,
                argument: u64::from(advice.unsigned_abs()),
            });
        };
        for (name, on, off) in SWITCHES {
            match (has(now, name), has(wanted, name)) {
                (false, true) => advise(on),
                (true, false) => off.into_iter().for_each(&mut advise),
                _ => {}
            }
        }
        let order = |names| ORDERS.iter().find(|(name, _)| has(names, name));
        let (is, was) = (order(now), order(wanted));
        if is != was {
            advise(was.map_or(nix::libc::MADV_NORMAL, |(_, advice)| *advice));
        }
        let locked = |names: &[String]| (has(names, "locked"), has(names, "lockonfault"));
        let lock = match (locked(now), locked(wanted)) {
            // Older kernels do not tell whether pages are locked when they come, which takes none that is not there. A second
            // look tells whether this one does.
            ((false, _), (true, _)) | ((true, false), (true, true)) => {
                Some((SYS_MLOCK2, MLOCK_ONFAULT))
            }
            ((true, true), (true, false)) => Some((SYS_MLOCK2, 0)),
            ((true, _), (false, _)) => Some((SYS_MUNLOCK, 0)),
            _ => None,
        };
        self.calls.extend(lock.map(|(number, argument)| Call {
            number,
            pages,
            argument,
        }));
    }

    /// True if nothing has to be done.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Does it. What the kernel refuses, or a seccomp filter forbids, stays as it is.
    pub fn apply(&self, calls: &mut RemoteCalls<'_>) -> Result<(), RemoteCallError> {
        use RemoteCallError::{Failed, ForbiddenBySeccomp};
        for call in &self.calls {
            let (start, end) = SIZE.span_of(call.pages);
            let arguments = [start, end - start, call.argument, 0, 0, 0];
            match calls.call(call.number, arguments) {
                Ok(_) | Err(Failed { .. } | ForbiddenBySeccomp { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Names what is otherwise than it was when the snapshot was taken.
pub(super) fn left(pid: i32, regions: &[Region]) -> Result<Vec<String>, MapsError> {
    let (now, mappings) = Advice::read(pid)?;
    let mut left = Vec::new();
    each_part(&now, &mappings, regions, |region, part, now| {
        let switches = SWITCHES.iter().map(|(name, ..)| *name);
        let orders = ORDERS.iter().map(|(name, _)| *name);
        let names = switches
            .chain(orders)
            .chain(FROM_BIRTH)
            .chain(FOR_GOOD)
            .chain(["locked", "lockonfault"]);
        for name in names {
            let how = match (has(now, name), has(&region.advice, name)) {
                (true, false) => "was not",
                (false, true) => "was",
                _ => continue,
            };
            let (start, end) = SIZE.span_of(part);
            left.push(format!(
                "{start:#x}-{end:#x} {} {how} {name} at the snapshot, which could not be put back",
                region.name
            ));
        }
    });
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagetide_pages::PageIndex;

    #[track_caller]
    fn calls(now: &[&str], wanted: &[&str], expected: &[(i64, i32)]) {
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>()
        };
        let mut advised = Advised { calls: Vec::new() };
        let pages = PageRange::new(PageIndex(1), PageIndex(2));
        advised.put_back(pages, &names(now), &names(wanted));
        let made: Vec<(i64, u64)> = advised
            .calls
            .iter()
            .map(|call| (call.number, call.argument))
            .collect();
        let expected: Vec<(i64, u64)> = expected
            .iter()
            .map(|(number, argument)| (*number, u64::from(argument.unsigned_abs())))
            .collect();
        assert_eq!(made, expected, "{now:?} -> {wanted:?}");
    }

    #[test]
    fn each_advice_is_given_or_taken_back_and_what_is_as_it_was_is_left() {
        calls(&["dontfork", "locked"], &["dontfork", "locked"], &[]);
        for (name, on, off) in SWITCHES {
            calls(&[], &[name], &[(SYS_MADVISE, on)]);
            let back: Vec<_> = off.into_iter().map(|off| (SYS_MADVISE, off)).collect();
            calls(&[name], &[], &back);
        }
        calls(&["random"], &["sequential"], &[(SYS_MADVISE, 2)]);
        calls(&["random"], &[], &[(SYS_MADVISE, 0)]);
        calls(&[], &["locked"], &[(SYS_MLOCK2, 1)]);
        calls(&["locked"], &[], &[(SYS_MUNLOCK, 0)]);
        calls(&["locked", "lockonfault"], &["locked"], &[(SYS_MLOCK2, 0)]);
        calls(&["locked"], &["locked", "lockonfault"], &[(SYS_MLOCK2, 1)]);
        calls(&[], &["locked", "lockonfault"], &[(SYS_MLOCK2, 1)]);
    }
}
