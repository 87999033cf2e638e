//! Programs from seeds. What a program is likely to find in memory is kept in mind, so that most
//! operations hit something; the kernel decides what really becomes of them.
//!
//! Some operations make a checkpoint compare more than it otherwise would, such as having an io_uring.
//! They would hide what they do not concern, so each program has only some of them: its flavour.

use crate::operations::{self, Choice};
use crate::random::Random;
use crate::run::REPEATED;
use crate::stage::during::stays_in_place;

/// Pages of the area that operations work on.
pub const AREA_PAGES: u64 = 4096;
/// Shared objects that can be there at a time.
pub const OBJECTS: u64 = 16;
/// Children that can take orders at a time.
pub const CHILDREN: u64 = 3;
/// Threads that can store at a time.
pub const THREADS: u64 = 3;
/// Files that are there before the target begins.
pub const PREPARED: u64 = 3;
/// Pages of each.
pub const PREPARED_PAGES: u64 = 48;

/// What sort of program it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flavour {
    /// io_uring and aio.
    pub rings: bool,
    /// Rings whose queues lie in the target's own memory.
    pub own_rings: bool,
    /// A userfaultfd of the target.
    pub uffd: bool,
    /// Threads that store all the time.
    pub threads: bool,
    /// Children that stay.
    pub children: bool,
    /// Huge pages of the pool.
    pub hugetlb: bool,
    /// Other programs are executed.
    pub exec: bool,
    /// Mappings are sealed.
    pub seals: bool,
    /// Swap, merging and the like are switched on and off.
    pub machine: bool,
    /// Files get old enough to count as unchanged.
    pub aged: bool,
    /// Packets come to memory of the target (AF_XDP).
    pub packets: bool,
    /// A machine of KVM has memory of the target.
    pub guests: bool,
}

impl Flavour {
    fn of(random: &mut Random) -> Flavour {
        let rings = random.one_in(4);
        Flavour {
            rings,
            own_rings: rings && random.one_in(4),
            uffd: random.one_in(4),
            threads: random.one_in(2),
            children: random.one_in(2),
            hugetlb: random.one_in(4),
            exec: random.one_in(4),
            seals: random.one_in(8),
            machine: random.one_in(3),
            aged: random.one_in(4),
            packets: random.one_in(8),
            guests: random.one_in(4),
        }
    }

    /// Switches on what is named: the name of a field.
    ///
    /// # Errors
    ///
    /// If nothing has that name.
    pub fn switch_on(&mut self, name: &str) -> Result<(), String> {
        let switch = match name {
            "rings" => &mut self.rings,
            "own_rings" => &mut self.own_rings,
            "uffd" => &mut self.uffd,
            "threads" => &mut self.threads,
            "children" => &mut self.children,
            "hugetlb" => &mut self.hugetlb,
            "exec" => &mut self.exec,
            "seals" => &mut self.seals,
            "machine" => &mut self.machine,
            "aged" => &mut self.aged,
            "packets" => &mut self.packets,
            "guests" => &mut self.guests,
            _ => return Err(format!("no flavour is named {name}")),
        };
        *switch = true;
        Ok(())
    }

    fn or(self, other: Flavour) -> Flavour {
        Flavour {
            rings: self.rings | other.rings | other.own_rings,
            own_rings: self.own_rings | other.own_rings,
            uffd: self.uffd | other.uffd,
            threads: self.threads | other.threads,
            children: self.children | other.children,
            hugetlb: self.hugetlb | other.hugetlb,
            exec: self.exec | other.exec,
            seals: self.seals | other.seals,
            machine: self.machine | other.machine,
            aged: self.aged | other.aged,
            packets: self.packets | other.packets,
            guests: self.guests | other.guests,
        }
    }
}

/// What is probably there, while a program is made.
#[derive(Debug)]
pub struct Model {
    /// The source of all choices.
    pub random: Random,
    /// The sort of program.
    pub flavour: Flavour,
    /// Pages that were mapped: first and count, youngest last.
    pub areas: Vec<(u64, u64)>,
    /// Kind and pages of each object.
    pub objects: Vec<Option<(&'static str, u64)>>,
    /// Where the buffer of the ring is.
    pub buffer: Option<(u64, u64)>,
    /// Where the userfaultfd is registered.
    pub registered: Option<(u64, u64)>,
}

impl Model {
    /// A place where a mapping may come to lie, `count` pages.
    pub fn new_place(&mut self, count: u64) -> u64 {
        self.random.dice(AREA_PAGES - count)
    }

    /// Forgets what lay wholly in a range.
    pub fn unmapped(&mut self, first: u64, count: u64) {
        let lies_in = |area: &(u64, u64)| area.0 >= first && area.0 + area.1 <= first + count;
        self.areas.retain(|area| !lies_in(area));
    }

    /// Remembers a mapping, which replaces what was there.
    pub fn mapped(&mut self, first: u64, count: u64) {
        self.unmapped(first, count);
        if self.areas.len() >= 40 {
            self.areas.remove(0);
        }
        self.areas.push((first, count));
    }

    /// A mapping that probably is there.
    pub fn area(&mut self) -> (u64, u64) {
        match self.areas.len() as u64 {
            0 => (self.random.dice(AREA_PAGES - 16), 16),
            count => self.areas[self.random.dice(count) as usize],
        }
    }

    /// Some pages, mostly of one mapping.
    pub fn range(&mut self) -> (u64, u64) {
        if self.random.one_in(30) {
            let count = 1 + self.random.dice(48);
            return (self.new_place(count), count);
        }
        let (first, count) = self.area();
        if self.random.one_in(4) {
            return (first, count);
        }
        let skipped = self.random.dice(count);
        let most = match self.random.one_in(3) {
            true => count - skipped,
            false => (count - skipped).min(4),
        };
        (first + skipped, 1 + self.random.dice(most))
    }

    /// One page.
    pub fn page(&mut self) -> u64 {
        self.range().0
    }

    /// An object that probably is there: its number and pages.
    pub fn object(&mut self) -> (u64, u64) {
        let known: Vec<(u64, u64)> = (0..)
            .zip(&self.objects)
            .filter_map(|(number, object)| Some((number, (*object)?)))
            // Those of huge pages fit nowhere.
            .filter_map(|(number, (kind, pages))| (kind != "hugetlb").then_some((number, pages)))
            .collect();
        match known.is_empty() {
            true => (self.random.dice(OBJECTS), 8),
            false => self.random.pick(&known),
        }
    }

    /// How an object may be mapped: those for reading alone not as shared.
    pub fn mappable(&mut self, object: u64) -> &'static str {
        match self.objects[object as usize] {
            Some(("file", _)) => "private",
            _ => self.random.pick(&["object", "object", "private"]),
        }
    }

    /// A number to make content from.
    pub fn seed(&mut self) -> u64 {
        self.random.dice(1 << 32)
    }
}

/// How long programs are, and what all of them have.
#[derive(Clone, Copy, Debug, Default)]
pub struct Length {
    /// What every program has, whatever its seed.
    pub always: Flavour,
    /// Epochs of each program; by the seed if `None`.
    pub epochs: Option<u64>,
    /// Operations of each epoch; by the seed if `None`.
    pub operations: Option<u64>,
}

/// The program of a seed.
pub fn program(seed: u64, length: Length) -> Vec<String> {
    let mut random = Random::new(seed);
    let flavour = Flavour::of(&mut random).or(length.always);
    let epochs = 10 + random.dice(12);
    let epochs = length.epochs.unwrap_or(epochs);
    let mut model = Model {
        random,
        flavour,
        areas: Vec::new(),
        objects: vec![None; OBJECTS as usize],
        buffer: None,
        registered: None,
    };
    let choices = operations::choices(flavour);
    let mut lines = beginning(&mut model, &choices);
    for _ in 0..epochs {
        let count = 40 + model.random.dice(240);
        let count = length.operations.unwrap_or(count);
        epoch(&mut model, &choices, count, &mut lines);
    }
    lines
}

/// Something to work on.
fn beginning(model: &mut Model, choices: &[Choice]) -> Vec<String> {
    let mut lines = Vec::new();
    let add = |line: &str, lines: &mut Vec<String>| lines.push(line.to_owned());
    if model.flavour.machine {
        add("!swap on", &mut lines);
        if model.random.one_in(2) {
            add("!merge on", &mut lines);
        }
    }
    if model.flavour.hugetlb {
        add("!huge 8", &mut lines);
    }
    if model.flavour.aged {
        add("!age", &mut lines);
    }
    for _ in 0..4 {
        lines.push(operations::new_object(model));
    }
    if model.flavour.uffd {
        add("uffd", &mut lines);
    }
    for _ in 0..8 {
        lines.push(operations::new_mapping(model));
    }
    if model.flavour.children {
        (0..CHILDREN).for_each(|which| lines.push(format!("spawn {which}")));
    }
    for _ in 0..20 {
        choose(model, choices, &mut lines);
    }
    lines
}

/// One choice; it may be of several steps, apart by semicolons.
fn choose(model: &mut Model, choices: &[Choice], lines: &mut Vec<String>) {
    let all: u64 = choices.iter().map(|(weight, _)| weight).sum();
    loop {
        let mut at = model.random.dice(all);
        let make = choices.iter().find(|(weight, _)| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here
        });
        // A choice that fits nothing gives no line.
        if let Some(steps) = make.and_then(|(_, make)| make(model)) {
            lines.extend(steps.split(';').map(str::to_owned));
            return;
        }
    }
}

fn epoch(model: &mut Model, choices: &[Choice], count: u64, lines: &mut Vec<String>) {
    let (begins, ends) = (model.random.dice(count), model.random.dice(count));
    let overlap = match model.random.dice(12) {
        0 => Some(format!(
            "!begin {}",
            model.random.pick(&["auto", "stop", "precopy"])
        )),
        1 => Some(format!("!every {}", 5 + model.random.dice(20))),
        _ => None,
    };
    for number in 0..count {
        if let Some(overlap) = &overlap {
            if number == begins.min(ends) {
                lines.push(overlap.clone());
            }
            if number == begins.max(ends) {
                lines.push("!end".to_owned());
            }
        }
        choose(model, choices, lines);
    }
    if model.random.one_in(3) {
        during(model, choices, lines);
    }
    match model.random.dice(24) {
        0 | 1 => lines.push(format!("!kill {}", model.random.dice(600))),
        2 => lines.push("!store".to_owned()),
        3 if model.random.one_in(2) => lines.push("!detach".to_owned()),
        _ => {}
    }
    let mode = model
        .random
        .pick(&["auto", "auto", "auto", "stop", "precopy"]);
    let mode = if model.random.one_in(40) {
        "full"
    } else {
        mode
    };
    let when = model.random.pick(&["before", "after"]);
    let stop = match model.random.one_in(6) {
        true => "leave",
        false => "signal",
    };
    // With --leave stopped there is no time before it.
    let when = if stop == "leave" { "after" } else { when };
    lines.push(format!("!check {mode} {when} {stop}"));
    // What was seen at one snapshot and is looked at once more at the next hides what comes later.
    if model.random.one_in(6) {
        let more = 1 + model.random.dice(2);
        lines.extend((0..more).map(|_| "!check auto after signal".to_owned()));
        if model.flavour.rings {
            lines.push(format!("ring_arrive {} 0", model.seed()));
        }
    }
    if model.random.one_in(10) {
        lines.push(format!("!rollback {}", model.random.dice(3)));
        // What a rollback leaves must be seen by the next snapshot.
        if model.random.one_in(2) {
            lines.push("!check auto after signal".to_owned());
        }
    }
}

/// A snapshot while some operations are done over and over.
fn during(model: &mut Model, choices: &[Choice], lines: &mut Vec<String>) {
    // A read into a ring may land while it stands still.
    if model.flavour.rings {
        return;
    }
    let mode = model.random.pick(&["auto", "auto", "stop", "precopy"]);
    let mut chosen = Vec::new();
    while chosen.len() < REPEATED {
        choose(model, choices, &mut chosen);
        chosen.retain(|line| stays_in_place(line));
    }
    lines.extend(chosen);
    lines.push(format!("!during {mode}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_means_one_program() {
        let length = Length::default();
        for seed in 0..20 {
            assert_eq!(program(seed, length), program(seed, length));
        }
        assert_ne!(program(1, length), program(2, length));
    }
}
