//! Programs from seeds. What a program is likely to find in memory is kept in mind, so that most
//! operations hit something; the kernel decides what really becomes of them.
//!
//! Some operations make a checkpoint compare more than it otherwise would, such as having an io_uring.
//! They would hide what they do not concern, so each program has only some of them: its flavour.

use crate::model::CHILDREN;
use crate::model::Flavour;
use crate::model::Model;
use crate::model::OBJECTS;
use crate::operations::{self, Choice};
use crate::program::REPEATED;
use crate::random::Random;
use crate::stage::during::stays_in_place;

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
    let stop = if model.random.one_in(6) {
        "leave"
    } else {
        "signal"
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
