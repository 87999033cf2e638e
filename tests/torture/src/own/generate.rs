//! Programs from seeds. Some things make captures compare or copy more than they otherwise would, and would hide what
//! they do not concern: rings, direct reads, a ring in own memory. Each program has only some of them.

use crate::random::Random;

const KINDS: [&str; 7] = ["anon", "anon", "huge", "memfd", "alone", "zero", "file"];
const ADVICE: [&str; 16] = [
    "dontneed",
    "dontneed",
    "remove",
    "remove",
    "cold",
    "pageout",
    "willneed",
    "populate_read",
    "populate_write",
    "hugepage",
    "nohugepage",
    "collapse",
    "mergeable",
    "wipeonfork",
    "guard",
    "unguard",
];

/// What sort of program it is.
struct Flavour {
    rings: bool,
    own_ring: bool,
    direct: bool,
    children: bool,
    layout: bool,
    guards: bool,
    keeps: bool,
}

/// The program of a seed.
pub fn program(seed: u64) -> Vec<String> {
    let mut random = Random::new(seed);
    let random = &mut random;
    let rings = random.one_in(4);
    let flavour = Flavour {
        rings,
        own_ring: random.one_in(8),
        direct: random.one_in(4),
        children: random.one_in(3),
        layout: random.one_in(2),
        guards: random.one_in(3),
        keeps: random.one_in(6),
    };
    let mut lines = Vec::new();
    for _ in 0..=random.dice(3) {
        let kind = if random.one_in(8) {
            "disk"
        } else {
            random.pick(&KINDS)
        };
        lines.push(format!("region {kind} {}", size(random, kind)));
    }
    for _ in 0..random.dice(20) {
        lines.push(operation(random, &flavour));
    }
    lines.push("heal".to_owned());
    lines.push("!new".to_owned());
    for _ in 0..4 + random.dice(24) {
        for _ in 0..random.dice(14) {
            lines.push(operation(random, &flavour));
        }
        if flavour.layout && !random.one_in(8) {
            lines.push("heal".to_owned());
        }
        if random.one_in(6) {
            lines.push(step(random, &flavour));
        }
        lines.push("!check".to_owned());
    }
    lines
}

fn size(random: &mut Random, kind: &str) -> u64 {
    match kind {
        "huge" => 1024,
        _ if random.one_in(4) => 1 + random.dice(1000),
        _ => 1 + random.dice(100),
    }
}

/// A place that is often one of few, so that things meet.
fn place(random: &mut Random) -> String {
    let page = if random.one_in(2) {
        random.dice(12)
    } else {
        random.dice(1000)
    };
    format!("{} {page}", random.dice(4))
}

fn count(random: &mut Random) -> u64 {
    if random.one_in(4) {
        1 + random.dice(600)
    } else {
        1 + random.dice(12)
    }
}

fn operation(random: &mut Random, flavour: &Flavour) -> String {
    let (at, value) = (place(random), random.dice(256));
    match random.dice(24) {
        0..=5 => format!("store {at} {value}"),
        6..=7 => format!("fill {at} {} {value}", count(random)),
        8 => format!("load {at} {}", count(random)),
        9 => format!("{} {at} {value}", random.pick(&["read", "vm", "mem"])),
        10..=13 => {
            let name = random.pick(&ADVICE);
            let name = match name {
                "guard" | "unguard" if !flavour.guards => "dontneed",
                name => name,
            };
            format!("advise {name} {at} {}", count(random))
        }
        14 => {
            let how = random.pick(&["none", "read", "rw", "rw"]);
            format!("protect {how} {at} {}", count(random))
        }
        15..=17 => {
            let what = random.pick(&["pwrite", "punch", "other", "pwrite", "punch", "shrink"]);
            let number = match what {
                "punch" => count(random),
                _ => value,
            };
            format!("{what} {at} {number}")
        }
        18..=19 if flavour.layout => layout(random, &at),
        20 if flavour.children => match random.dice(5) {
            0 => "idle".to_owned(),
            1 => "reap".to_owned(),
            _ => format!("child {at} {value}"),
        },
        21 if flavour.rings => ring(random, &at),
        22 if flavour.direct => format!("direct {at} {value}"),
        23 if flavour.keeps => {
            if random.one_in(2) {
                format!("keep {}", random.dice(4))
            } else {
                "unkeep".to_owned()
            }
        }
        23 if flavour.own_ring => random.pick(&["ownring", "unownring"]).to_owned(),
        _ => format!("store {at} {value}"),
    }
}

fn layout(random: &mut Random, at: &str) -> String {
    let count = count(random);
    match random.dice(6) {
        0 => format!("unmap {at} {count}"),
        1 => format!("leave {at} {count} {}", place(random)),
        2 => format!("move {at} {count} {}", place(random)),
        _ => {
            let kind = random.pick(&["anon", "private", "shared"]);
            format!("replace {kind} {at} {count}")
        }
    }
}

fn ring(random: &mut Random, at: &str) -> String {
    match random.dice(6) {
        0 | 1 => format!("ring {at} {}", count(random)),
        2 => "unring".to_owned(),
        _ => format!("fixed {at} {}", random.dice(256)),
    }
}

fn step(random: &mut Random, flavour: &Flavour) -> String {
    let (at, value) = (place(random), random.dice(256));
    match random.dice(10) {
        0..=2 => {
            let how = random.pick(&["give", "drop", "forget", "panic", "fail"]);
            format!("!back {how}")
        }
        3 => format!("!late {at} {value}"),
        4 => format!("!during {} {}", random.dice(4), 1 + random.dice(3)),
        5 if flavour.direct => format!("!slow {at} {value}"),
        6 if flavour.children => "!forked".to_owned(),
        7 => format!("!rollback {}", random.dice(3)),
        8 => "!new".to_owned(),
        _ => format!("!mark {at} {}", count(random)),
    }
}
