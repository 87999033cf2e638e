//! What is probably there while a program is made, and of which sort it is.

use crate::random::Random;

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
    /// One by chance.
    pub fn of(random: &mut Random) -> Self {
        let rings = random.one_in(4);
        Self {
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

    /// What either of the two has.
    pub fn or(self, other: Self) -> Self {
        Self {
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
        let most = if self.random.one_in(3) {
            count - skipped
        } else {
            (count - skipped).min(4)
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
        if known.is_empty() {
            (self.random.dice(OBJECTS), 8)
        } else {
            self.random.pick(&known)
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
