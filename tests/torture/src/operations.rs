//! The operations of the target, and how often each is chosen.

use crate::devices;
use crate::model::{
    AREA_PAGES, CHILDREN, Flavour, Model, OBJECTS, PREPARED, PREPARED_PAGES, THREADS,
};
use crate::rings;

/// How often, against the others, and the line it makes; `None` if there is nothing it fits.
pub type Choice = (u64, fn(&mut Model) -> Option<String>);

/// The choices that a program of this flavour has.
pub fn choices(flavour: Flavour) -> Vec<Choice> {
    let mut choices: Vec<Choice> = vec![
        (220, write),
        (30, |m| Some(format!("read {}", range(m)))),
        (60, |m| Some(new_mapping(m))),
        (30, replace),
        (20, unmap),
        (40, protect),
        (90, advise),
        (8, |m| {
            Some(format!("advise_main {} {}", by_another(m), range(m)))
        }),
        (40, remap),
        (12, stray),
        (14, |m| Some(new_object(m))),
        (40, change_object),
        (20, kernel_stores),
        (16, pipe),
        (12, lock),
        (14, heap_and_stack),
        (14, fork),
        (8, numa),
        (8, setting),
        (14, driver_stores),
        (10, segment),
    ];
    let flavours: [(bool, Choice); 10] = [
        (flavour.rings, (60, rings::ring)),
        (flavour.uffd, (60, uffd)),
        (flavour.threads, (12, thread)),
        (flavour.children, (90, child)),
        (flavour.hugetlb, (30, hugetlb)),
        (flavour.exec, (2, exec)),
        (flavour.seals, (4, |m| Some(format!("seal {} 1", m.page())))),
        (flavour.machine, (6, machine)),
        (flavour.packets, (40, devices::packets)),
        (flavour.guests, (40, devices::guest)),
    ];
    choices.extend(
        flavours
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, choice)| *choice),
    );
    choices
}

/// Nothing is there afterwards, so something is made.
fn exec(m: &mut Model) -> Option<String> {
    m.areas.clear();
    m.objects.fill(None);
    let mut steps = vec!["exec".to_owned()];
    steps.extend((0..3).map(|_| new_object(m)));
    steps.extend((0..6).map(|_| new_mapping(m)));
    Some(steps.join(";"))
}

fn range(m: &mut Model) -> String {
    let (first, count) = m.range();
    format!("{first} {count}")
}

fn write(m: &mut Model) -> Option<String> {
    let how = m.random.pick(&[0, 0, 1, 2, 2, 3, 3, 4]);
    Some(format!("write {} {} {how}", range(m), m.seed()))
}

fn protection(m: &mut Model) -> u64 {
    m.random.pick(&[3, 3, 3, 3, 3, 3, 3, 3, 3, 7, 2, 1, 0])
}

/// A mapping at a place of its own, or over what is there.
pub fn new_mapping(m: &mut Model) -> String {
    let count = if m.random.one_in(4) {
        1 + m.random.dice(160)
    } else {
        1 + m.random.dice(24)
    };
    let (object, length) = m.object();
    let part = m.random.dice(length);
    let kinds = [
        "anon",
        "anon",
        "anon",
        "anon",
        "noreserve",
        "populate",
        "locked",
        "growsdown",
        "huge",
        "shared",
        "shared",
    ];
    let (kind, count) = if m.random.one_in(2) {
        (
            m.mappable(object),
            1 + m.random.dice((length - part).min(200)),
        )
    } else {
        (m.random.pick(&kinds), count)
    };
    // Huge pages begin and end where they can.
    let (first, count) = match kind {
        "huge" => (m.random.dice(6) * 512, 512),
        _ => (m.new_place(count), count),
    };
    m.mapped(first, count);
    let verb = if m.random.one_in(4) { "map" } else { "over" };
    format!(
        "{verb} {kind} {first} {count} {} {object} {part}",
        protection(m)
    )
}

/// A mapping exactly where one was.
fn replace(m: &mut Model) -> Option<String> {
    let (first, count) = m.range();
    let (object, length) = m.object();
    let part = m.random.dice(length);
    let verb = m.random.pick(&["over", "again"]);
    let of_object = m.mappable(object);
    let kind = m
        .random
        .pick(&["anon", "anon", "anon", "shared", of_object, of_object]);
    Some(format!(
        "{verb} {kind} {first} {count} {} {object} {part}",
        protection(m)
    ))
}

fn unmap(m: &mut Model) -> Option<String> {
    let (first, count) = m.range();
    m.unmapped(first, count);
    Some(format!("unmap {first} {count}"))
}

fn protect(m: &mut Model) -> Option<String> {
    let protection = m.random.pick(&[3, 3, 3, 3, 7, 1, 0, 5]);
    Some(format!("protect {} {protection}", range(m)))
}

/// Every advice of madvise(2) but those that take memory away from the machine.
const ADVICE: [&str; 25] = [
    "normal",
    "random",
    "sequential",
    "willneed",
    "dontneed",
    "free",
    "remove",
    "dontfork",
    "dofork",
    "mergeable",
    "unmergeable",
    "hugepage",
    "nohugepage",
    "dontdump",
    "dodump",
    "wipeonfork",
    "keeponfork",
    "cold",
    "pageout",
    "populate_read",
    "populate_write",
    "dontneed_locked",
    "collapse",
    "guard_install",
    "guard_remove",
];

fn advise(m: &mut Model) -> Option<String> {
    let frequent = [
        "dontneed",
        "dontneed",
        "free",
        "remove",
        "pageout",
        "guard_install",
        "guard_remove",
        "guard_remove",
        "cold",
    ];
    let advice = if m.random.one_in(2) {
        m.random.pick(&frequent)
    } else {
        m.random.pick(&ADVICE)
    };
    let (first, count) = match advice {
        // It works on whole huge pages that are there, and not where tracking has protected them.
        "collapse" => {
            let first = m.random.dice(6) * 512;
            m.mapped(first, 512);
            let seed = m.seed();
            return Some(format!(
                "over anon {first} 512 3;write {first} 300 {seed} 3;advise collapse {first} 512"
            ));
        }
        "guard_remove" => m.area(),
        _ => m.range(),
    };
    Some(format!("advise {advice} {first} {count}"))
}

fn by_another(m: &mut Model) -> &'static str {
    m.random
        .pick(&["cold", "pageout", "willneed", "dontneed", "free"])
}

fn remap(m: &mut Model) -> Option<String> {
    let (first, count) = m.range();
    let to = m.new_place(count.max(64));
    let line = match m.random.dice(8) {
        0 | 1 => format!("resize {first} {count} {}", 1 + m.random.dice(count + 12)),
        2..=4 => {
            m.unmapped(first, count);
            let new = if m.random.one_in(3) {
                1 + m.random.dice(count + 8)
            } else {
                count
            };
            m.mapped(to, new);
            format!("move {first} {count} {to} {new}")
        }
        5 | 6 => {
            m.mapped(to, count);
            format!("dontunmap {first} {count} {to}")
        }
        _ => {
            let (object, length) = m.object();
            let at = m.random.dice(length);
            if m.random.one_in(2) {
                format!("file_pages {first} {count} {at}")
            } else {
                let new = 1 + object;
                m.mapped(to, new);
                format!("move {first} 0 {to} {new}")
            }
        }
    };
    Some(line)
}

fn stray(m: &mut Model) -> Option<String> {
    let which = m.random.dice(4);
    let (first, count) = m.range();
    let line = match m.random.dice(4) {
        0 | 1 => {
            // Nobody moves what has room to grow.
            let fence = format!("over anon {} 1 0", first + count);
            let new = count + 1 + m.random.dice(40);
            format!(
                "{fence};away {which} {first} {count} {new};store_away {which} {} 0",
                m.seed()
            )
        }
        2 => format!("back {which} {}", m.new_place(256)),
        _ => format!("store_away {which} {} {}", m.seed(), m.random.dice(5)),
    };
    Some(line)
}

/// An object, or a file that is there already.
pub fn new_object(m: &mut Model) -> String {
    let number = m.random.dice(OBJECTS);
    let files = if m.flavour.aged { 2 } else { 4 };
    if m.random.one_in(files) {
        m.objects[number as usize] = Some(("file", PREPARED_PAGES));
        return format!("open {number} {}", m.random.dice(PREPARED));
    }
    let kind = m.random.pick(&["memfd", "tmpfs", "disk"]);
    let pages = 1 + m.random.dice(96);
    m.objects[number as usize] = Some((kind, pages));
    format!("object {kind} {number} {pages} {}", m.seed())
}

fn change_object(m: &mut Model) -> Option<String> {
    let (object, length) = m.object();
    let (other, _) = m.object();
    let kind = m.objects[object as usize].map_or("", |(kind, _)| kind);
    let at = m.random.dice(length);
    let count = 1 + m.random.dice(length - at);
    if kind == "file" && !m.random.one_in(8) {
        // Of files that are to get old, one alone is written to, and seldom.
        if m.flavour.aged && !m.random.one_in(20) {
            return None;
        }
        let file = if m.flavour.aged {
            0
        } else {
            m.random.dice(PREPARED)
        };
        let page = m.random.dice(PREPARED_PAGES);
        return Some(format!("!prepared {file} {page} {}", m.seed()));
    }
    let line = match m.random.dice(23) {
        0..=9 => format!(
            "pwrite {object} {at} {} {}",
            m.seed(),
            m.random.pick(&[4095, 4095, 100, 0])
        ),
        10..=12 => format!("allocate punch {object} {at} {count}"),
        13 => format!(
            "allocate {} {object} {at} {count}",
            m.random.pick(&["zero", "keep", "collapse", "insert"])
        ),
        14 | 15 => {
            // What lies past the end in the last page of a file on disk is zeroed when it is written
            // back, whenever that is. In memory it stays.
            let part = match kind {
                "disk" => 0,
                _ => m.random.dice(4096),
            };
            format!("truncate {object} {}", at * 4096 + part)
        }
        16 | 17 => format!("truncate {object} {}", length * 4096),
        18 => format!(
            "copy_range {object} {at} {other} {} {count}",
            m.random.dice(16)
        ),
        19 => format!(
            "sendfile {object} {at} {other} {count} {}",
            m.random.dice(16)
        ),
        20 => format!("fsync {object}"),
        21 => format!("drop_cache {object}"),
        _ => {
            m.objects[object as usize] = None;
            format!("close {object}")
        }
    };
    Some(line)
}

fn kernel_stores(m: &mut Model) -> Option<String> {
    let (page, seed) = (m.page(), m.seed());
    let (object, length) = m.object();
    let line = match m.random.dice(6) {
        0 | 1 => format!("pread {page} {seed}"),
        2 => format!("preadv {page} {seed}"),
        3 => format!("read_direct {page} {object} {}", m.random.dice(length)),
        4 => format!("vm_write {page} {seed}"),
        _ => format!("mem_write {page} {seed}"),
    };
    Some(line)
}

fn pipe(m: &mut Model) -> Option<String> {
    let (object, length) = m.object();
    let line = match m.random.dice(5) {
        0 | 1 => format!("vmsplice {} {}", range(m), m.random.dice(2)),
        2 => format!("splice {object} {}", m.random.dice(length)),
        3 => format!("unsplice {} {}", m.page(), m.seed()),
        _ => format!("drain {}", m.page()),
    };
    Some(line)
}

fn lock(m: &mut Model) -> Option<String> {
    let verb = m
        .random
        .pick(&["lock", "lock_onfault", "unlock", "unlock", "sync"]);
    Some(format!("{verb} {}", range(m)))
}

fn heap_and_stack(m: &mut Model) -> Option<String> {
    let line = match m.random.dice(6) {
        0 => format!("stack {} {}", m.random.dice(200), m.seed()),
        1 => format!("signal {} {}", m.random.dice(2), m.seed()),
        2 | 3 => format!("brk {} {}", m.random.dice(3).min(1), m.random.dice(12)),
        _ => format!(
            "write_heap {} {} {}",
            m.random.dice(12),
            m.seed(),
            m.random.dice(5)
        ),
    };
    Some(line)
}

fn fork(m: &mut Model) -> Option<String> {
    let verb = m.random.pick(&["fork", "fork", "vfork", "clone_vm"]);
    Some(format!("{verb} {} {}", range(m), m.seed()))
}

fn numa(m: &mut Model) -> Option<String> {
    let line = if m.random.one_in(2) {
        format!("mbind {} {}", range(m), m.random.dice(4))
    } else {
        format!("move_pages {} {}", range(m), m.random.dice(2))
    };
    Some(line)
}

fn setting(m: &mut Model) -> Option<String> {
    let line = match m.random.dice(4) {
        0 => format!("merge_all {}", m.random.dice(2)),
        1 => format!("thp_disable {}", m.random.dice(2)),
        _ => format!("name {} n{}", range(m), m.random.dice(5)),
    };
    Some(line)
}

fn driver_stores(m: &mut Model) -> Option<String> {
    let verb = m.random.pick(&["!poke", "!mem", "!mem", "!vm", "!vm"]);
    Some(format!("{verb} {} {}", m.page(), m.seed()))
}

fn segment(m: &mut Model) -> Option<String> {
    let count = 1 + m.random.dice(40);
    let first = m.new_place(count);
    let number = m.random.dice(OBJECTS);
    let line = match m.random.dice(4) {
        0 | 1 => {
            m.mapped(first, count);
            format!("segment {number} {first} {count}")
        }
        2 => format!("attach {number} {first}"),
        _ => format!("detach {}", m.area().0),
    };
    Some(line)
}

fn uffd(m: &mut Model) -> Option<String> {
    let (first, count) = match m.registered {
        Some((first, count)) if !m.random.one_in(4) => {
            let skipped = m.random.dice(count);
            (first + skipped, 1 + m.random.dice(count - skipped))
        }
        _ => m.range(),
    };
    let line = match m.random.dice(20) {
        0 | 1 => "uffd".to_owned(),
        2 if m.random.one_in(4) => {
            m.registered = None;
            "uffd_close".to_owned()
        }
        3..=6 => {
            // What is tracked belongs to another userfaultfd, so it must be new.
            let count = 1 + m.random.dice(40);
            let first = m.new_place(count);
            m.mapped(first, count);
            m.registered = Some((first, count));
            let kind = m.random.pick(&["anon", "anon", "anon", "shared"]);
            let mode = 1 + m.random.dice(3);
            format!("over {kind} {first} {count} 3;uffd_register {first} {count} {mode}")
        }
        7 => format!("uffd_unregister {first} {count}"),
        8..=11 => format!("uffd_copy {first} {}", m.seed()),
        12 => format!("uffd_zero {first} {count}"),
        13 | 14 => format!("uffd_protect {first} {count} {}", m.random.dice(2)),
        15..=18 => {
            let (from, _) = m.range();
            format!("uffd_move {from} {count} {first}")
        }
        _ => format!("uffd_poison {first} 1"),
    };
    Some(line)
}

fn thread(m: &mut Model) -> Option<String> {
    let which = m.random.dice(THREADS);
    let line = if m.random.one_in(3) {
        format!("join {which}")
    } else {
        format!("thread {which} {} {}", range(m), m.seed())
    };
    Some(line)
}

/// What another process does to what is shared, or to this one.
fn child(m: &mut Model) -> Option<String> {
    let which = m.random.dice(CHILDREN);
    if m.random.one_in(8) {
        let verb = m.random.pick(&["spawn", "spawn", "spawn", "dismiss"]);
        return Some(format!("{verb} {which}"));
    }
    let line = match m.random.dice(20) {
        0..=7 => write(m),
        8..=11 => change_object(m),
        12 | 13 => advise(m),
        14 => Some(format!("advise_main {} {}", by_another(m), range(m))),
        15 => Some(format!("vm_write {} {}", m.page(), m.seed())),
        16 => Some(format!("mem_write {} {}", m.page(), m.seed())),
        17 => Some(format!("unmap {}", range(m))),
        18 => fork(m),
        19 if m.random.one_in(4) => Some("exec".to_owned()),
        // It has the rings that were there when it was forked.
        _ if m.flavour.rings && m.random.one_in(2) => rings::of_child(m),
        _ => kernel_stores(m),
    };
    let line = line.filter(|line| !line.starts_with('!'))?;
    Some(format!("@{which} {line}"))
}

fn hugetlb(m: &mut Model) -> Option<String> {
    let number = m.random.dice(OBJECTS);
    let first = m.random.dice(AREA_PAGES / 512 - 1) * 512;
    let line = match m.random.dice(6) {
        0 => {
            m.objects[number as usize] = Some(("hugetlb", 512));
            m.mapped(first, 512);
            format!("object hugetlb {number} 512 0;over object {first} 512 3 {number} 0")
        }
        1 => {
            m.mapped(first, 512);
            format!("over hugetlb_shared {first} 512 3")
        }
        2 | 3 => {
            m.mapped(first, 512);
            format!("over hugetlb {first} 512 3")
        }
        4 => format!("advise dontneed {first} 512"),
        _ => format!("write {} 3 {} 0", first + m.random.dice(500), m.seed()),
    };
    Some(line)
}

fn machine(m: &mut Model) -> Option<String> {
    let step = m.random.pick(&[
        "!swap on",
        "!swap off",
        "!merge on",
        "!merge wait",
        "!compact",
        "!drop_caches",
    ]);
    Some(step.to_owned())
}
