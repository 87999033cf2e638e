//! The advice and locks of mappings, as they were in the stop.
//!
//! The kernel tells them in `/proc/PID/smaps` alone, and walks all page tables for it: some 3 us a mapping and 50 ns
//! a page. Nothing cheaper tells whether they have changed. So it is read
//!
//! - *in the stop*, if that takes next to nothing;
//! - otherwise *before it and after it*. What both say was so in the stop, unless it was changed and changed back in
//!   between. If they differ, the processes are stopped again, and then more time may be spent inside.
//!
//! Of a process whose page tables take too long for any stop, the look after the last stop is taken at its word.

use crate::capture::SIZE;
use pagetide_kernel::maps::{Mapping, MappingFlags, MapsError};
use pagetide_pages::{PageRange, PageSet};
use std::time::{Duration, Instant};

/// So long may be spent in a stop, by how often the processes were stopped for this snapshot already. After the last
/// one, what was found is what is taken.
const INSIDE: [Duration; 3] = [
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(50),
];
/// What reading takes at most on a machine with nothing else to do: for a mapping, a page that is there, and an entry of
/// the page tables.
const MAPPING_NS: u64 = 3_000;
const PAGE_NS: u64 = 60;
const ENTRY_NS: u64 = 3;
const ENTRY_BYTES: u64 = 8;
/// A look after a stop serves as the one before the next, if that comes so soon.
const SERVES: Duration = Duration::from_secs(1);

/// The names that we give to VmFlags which are advice or locks.
const ADVICE: [(&str, &str); 15] = [
    ("sr", "sequential"),
    ("rr", "random"),
    ("dc", "dontfork"),
    ("dd", "dontdump"),
    ("wf", "wipeonfork"),
    ("hg", "hugepage"),
    ("nh", "nohugepage"),
    ("mg", "mergeable"),
    ("lo", "locked"),
    // Told since Linux 6.17.
    ("lf", "lockonfault"),
    ("gd", "growsdown"),
    ("ht", "hugetlb"),
    ("nr", "noreserve"),
    (DROPPABLE_FLAG, DROPPABLE),
    ("sl", SEALED),
];

/// Memory that the kernel may take away at any time: MAP_DROPPABLE of mmap(2), since Linux 6.11.
pub(crate) const DROPPABLE: &str = "droppable";
const DROPPABLE_FLAG: &str = "dp";
/// What such memory always is besides.
const OF_DROPPABLE: [&str; 3] = ["dd", "wf", "nr"];
/// A mapping that cannot be changed any more: mseal(2), since Linux 6.10.
pub(crate) const SEALED: &str = "sealed";

/// What of the advice the mapping has had since it was made, as a program that has given none would see it.
const FROM_BIRTH: [&str; 6] = [
    "growsdown",
    "hugetlb",
    "noreserve",
    "maywrite",
    "accounted",
    DROPPABLE,
];

/// The advice of madvise(2) that the kernel keeps as an attribute of a mapping, and other attributes that a mapping
/// made again needs, from its VmFlags.
fn advice_of(flags: &[String]) -> Vec<String> {
    let is_droppable = flags.iter().any(|flag| flag == DROPPABLE_FLAG);
    let has = |flag: &str| {
        let is_implied = is_droppable && OF_DROPPABLE.contains(&flag);
        !is_implied && flags.iter().any(|found| found == flag)
    };
    let named = ADVICE.iter().filter(|(flag, _)| has(flag));
    let mut advice: Vec<String> = named.map(|(_, name)| (*name).to_owned()).collect();
    // No advice, but attributes that tell what a mapping was once: open for writing, or writable itself.
    if has("sh") && has("mw") && !has("wr") {
        advice.push("maywrite".to_owned());
    }
    if has("ac") && !has("wr") {
        advice.push("accounted".to_owned());
    }
    advice
}

/// The advice of the mappings of one process at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Advice(Vec<(PageRange, Vec<String>)>);

impl Advice {
    fn of_flags(flags: &MappingFlags) -> Self {
        // Advice describes; without it nothing is lost but the description.
        let all = flags.parse().unwrap_or_default();
        let of_one =
            |(mapping, flags): &(Mapping, Vec<String>)| (mapping.pages(), advice_of(flags));
        Self(all.iter().map(of_one).collect())
    }

    /// The advice of process `pid` as it is now, and its mappings. Walks all page tables: slow.
    pub fn read(pid: i32) -> Result<(Self, Vec<Mapping>), MapsError> {
        let flags = MappingFlags::read(pid)?;
        let mappings = flags.parse()?.into_iter().map(|(mapping, _)| mapping);
        Ok((Self::of_flags(&flags), mappings.collect()))
    }

    /// The advice given for `mapping`.
    pub fn of(&self, mapping: &Mapping) -> Vec<String> {
        let pages = mapping.pages();
        let found = self
            .0
            .binary_search_by_key(&pages.start(), |(pages, _)| pages.start());
        found.map_or_else(|_| Vec::new(), |at| self.0[at].1.clone())
    }

    /// True if that advice was given for `mapping`.
    pub fn has(&self, mapping: &Mapping, name: &str) -> bool {
        self.of(mapping).iter().any(|given| given == name)
    }

    /// The pages of which that was told.
    pub fn pages_with(&self, name: &str) -> PageSet {
        let told = self
            .0
            .iter()
            .filter(|(_, advice)| advice.iter().any(|given| given == name));
        told.map(|(pages, _)| *pages).collect()
    }

    /// What was told of pages of `range`, a mapping at another time.
    fn within(&self, range: PageRange) -> impl Iterator<Item = &Vec<String>> {
        let from = self
            .0
            .partition_point(|(pages, _)| pages.end() <= range.start());
        let found = self.0[from..]
            .iter()
            .take_while(move |(pages, _)| pages.start() < range.end());
        found.map(|(_, advice)| advice)
    }

    /// The advice that `mapping` had between this look and a later one; `None` if they do not tell. A mapping has one
    /// advice: where it has grown since, what it was is enough. One that was not there before has had none, if it has
    /// none now.
    fn until(&self, later: &Self, mapping: &Mapping) -> Option<Vec<String>> {
        let pages = mapping.pages();
        let mut now = later.within(pages);
        let advice = now.next()?;
        let mut then = self.within(pages).peekable();
        let as_born = advice.iter().all(|name| FROM_BIRTH.contains(&&**name));
        let known = match then.peek() {
            None => as_born,
            Some(_) => then.all(|then| then == advice),
        };
        (known && now.all(|now| now == advice)).then(|| advice.clone())
    }

    fn between(&self, later: &Self, mappings: &[Mapping]) -> Option<Self> {
        let told = mappings.iter().map(|mapping| {
            let advice = self.until(later, mapping)?;
            Some((mapping.pages(), advice))
        });
        Some(Self(told.collect::<Option<_>>()?))
    }
}

/// What was read last of one process, and when.
#[derive(Default)]
pub(crate) struct LastLook(Option<(Instant, Advice)>);

/// How the advice of one process becomes known in one stop.
pub(crate) enum Look {
    /// It is read inside.
    Inside,
    /// This was before, if anything; it is read again after it.
    Around(Advice),
}

/// The time that may be spent in one stop of all processes.
pub(crate) struct Budget {
    left: Duration,
    is_last: bool,
}

impl Budget {
    /// That of the stop after `stops` others for the same snapshot.
    pub fn after(stops: usize) -> Self {
        Self {
            left: INSIDE[stops.min(INSIDE.len() - 1)],
            is_last: stops + 1 >= INSIDE.len(),
        }
    }

    /// Takes what reading the flags of a process costs, if there is as much.
    fn take(&mut self, pid: i32, mappings: usize) -> bool {
        let left = self.left.checked_sub(expected(pid, mappings));
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }
}

impl LastLook {
    /// The look before a stop.
    pub fn before(&mut self, pid: i32, mappings: usize, budget: &mut Budget) -> Look {
        if budget.take(pid, mappings) {
            return Look::Inside;
        }
        if let Some((when, advice)) = &self.0
            && when.elapsed() < SERVES
        {
            return Look::Around(advice.clone());
        }
        Look::Around(self.now(pid))
    }

    /// That of a process which was found only when all others stood still.
    pub fn none_before(pid: i32, mappings: usize, budget: &mut Budget) -> Look {
        if budget.take(pid, mappings) {
            Look::Inside
        } else {
            Look::Around(Advice::default())
        }
    }

    fn now(&mut self, pid: i32) -> Advice {
        let flags = MappingFlags::read(pid).ok();
        let advice = flags
            .as_ref()
            .map_or_else(Advice::default, Advice::of_flags);
        self.0 = Some((Instant::now(), advice.clone()));
        advice
    }

    /// What held in the stop, in which `mappings` were there and `inside` was read; `None` if that cannot be told, and
    /// another stop may tell more.
    pub fn after(
        &mut self,
        pid: i32,
        look: &Look,
        inside: Option<&MappingFlags>,
        mappings: &[Mapping],
        budget: &Budget,
    ) -> Option<Advice> {
        match (look, inside) {
            (_, Some(flags)) => Some(Advice::of_flags(flags)),
            // It ended before it could be read.
            (Look::Inside, None) => Some(Advice::default()),
            (Look::Around(before), None) => {
                let after = self.now(pid);
                let between = before.between(&after, mappings);
                between.or_else(|| budget.is_last.then_some(after))
            }
        }
    }
}

/// How long reading takes.
fn expected(pid: i32, mappings: usize) -> Duration {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        number.unwrap_or(0) * 1024
    };
    let pages = bytes("VmRSS:") / SIZE.bytes();
    let entries = bytes("VmPTE:") / ENTRY_BYTES;
    Duration::from_nanos(mappings as u64 * MAPPING_NS + pages * PAGE_NS + entries * ENTRY_NS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagetide_kernel::maps;
    use pagetide_pages::PageIndex;

    fn advice(of: &[(u64, u64, &[&str])]) -> Advice {
        let one = |&(start, end, names): &(u64, u64, &[&str])| {
            let mapping = mapping(start, end);
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            (mapping.pages(), names)
        };
        Advice(of.iter().map(one).collect())
    }

    fn own() -> (i32, Vec<Mapping>) {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        (pid, maps::mappings(pid).expect("maps"))
    }

    fn mapping(start: u64, end: u64) -> Mapping {
        let (_, mappings) = own();
        Mapping {
            start: SIZE.address_of(PageIndex(start)),
            end: SIZE.address_of(PageIndex(end)),
            ..mappings[0].clone()
        }
    }

    #[track_caller]
    fn told(before: &Advice, after: &Advice, expected: Option<&[&str]>) {
        let found = before.until(after, &mapping(16, 32));
        assert_eq!(
            found,
            expected.map(|names| names.iter().map(|&name| name.to_owned()).collect())
        );
    }

    #[test]
    fn only_what_both_looks_say_is_taken_for_what_held_between_them() {
        let locked = advice(&[(8, 16, &[]), (16, 32, &["locked"])]);
        let plain = advice(&[(8, 16, &["locked"]), (16, 32, &[])]);
        told(&locked, &locked, Some(&["locked"]));
        told(&plain, &plain, Some(&[]));
        told(&plain, &locked, None);
        told(&locked, &plain, None);
    }

    #[test]
    fn a_mapping_that_grows_shrinks_or_is_new_is_told_by_what_is_there() {
        let short = advice(&[(16, 20, &["dontfork"])]);
        let long = advice(&[(16, 48, &["dontfork"])]);
        let parts = advice(&[(16, 20, &["dontfork"]), (20, 32, &[])]);
        told(&short, &long, Some(&["dontfork"]));
        told(&long, &short, Some(&["dontfork"]));
        told(&long, &parts, None);
        told(&parts, &long, None);
        let none = Advice::default();
        told(&none, &long, None);
        told(
            &none,
            &advice(&[(16, 32, &["noreserve"])]),
            Some(&["noreserve"]),
        );
        told(&long, &none, None);
    }

    #[test]
    fn after_the_last_stop_the_look_after_it_is_taken() {
        let (pid, mappings) = own();
        let flags = MappingFlags::read(pid).expect("smaps");
        let mut other = Advice::of_flags(&flags);
        for (_, names) in &mut other.0 {
            names.push("random".to_owned());
        }
        let look = Look::Around(other);
        let after = |stops| {
            let budget = Budget::after(stops);
            LastLook::default().after(pid, &look, None, &mappings, &budget)
        };
        assert_eq!(after(0), None);
        assert_eq!(after(1), None);
        let taken = after(2).expect("what is there");
        assert!(
            taken
                .0
                .iter()
                .all(|(_, names)| !names.contains(&"random".to_owned()))
        );
        assert!(!taken.0.is_empty());
    }

    #[test]
    fn time_in_the_stop_is_given_out_once() {
        let (pid, mappings) = own();
        let mut budget = Budget::after(2);
        let given = (0..100_000)
            .take_while(|_| budget.take(pid, mappings.len()))
            .count();
        assert!((1..100_000).contains(&given), "{given}");
        let mut budget = Budget::after(0);
        assert!(!budget.take(pid, 1_000_000), "3 s of mappings");
        assert!(matches!(
            LastLook::none_before(pid, 1_000_000, &mut budget),
            Look::Around(before) if before == Advice::default()
        ));
    }
}
