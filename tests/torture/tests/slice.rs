//! Prevents that a change of memory of any kind is missed: programs of random operations on memory, at
//! fixed seeds and at one of the environment's choice, by every backend that this kernel has.
//!
//! `PAGETIDE_TORTURE_SECONDS` says how long each backend is tried, `PAGETIDE_SEED` where the last programs
//! come from.

use pagetide_tests::{from_environment, pagetide, skipped, text};
use pagetide_torture::conditions::Conditions;
use pagetide_torture::generate::{Length, program};
use pagetide_torture::kinds;
use pagetide_torture::program::{kind, parse};
use pagetide_torture::report;
use pagetide_torture::run::{Extent, Found, run, run_all};
use std::collections::BTreeSet;
use std::time::Duration;

/// Programs come from these, and from one that the environment may choose.
const SEEDS: [u64; 2] = [3, 19];

/// Programs in which a page was lost once, as they were found and cut down.
const REMEMBERED: [&str; 2] = [
    include_str!("../programs/poisoned_here_written_there.txt"),
    include_str!("../programs/joined_by_a_moved_mapping.txt"),
];

/// Nothing, or why this kernel cannot use the backend.
fn obstacle(backend: &str) -> Option<String> {
    let answer = pagetide(["probe", "--json"]).done().json();
    let backends = pagetide_tests::list(&answer, "backends");
    let found = backends.iter().find(|one| text(one, "name") == backend);
    match found {
        None => Some(format!("pagetide knows no backend {backend}")),
        Some(one) if one["usable"] == true => None,
        Some(one) => Some(one["reason"].as_str().unwrap_or("no reason").to_owned()),
    }
}

fn slice(test: &str, backend: &str) {
    if let Some(reason) = obstacle(backend) {
        skipped(test, &reason);
        return;
    }
    let conditions = Conditions {
        backend: backend.to_owned(),
        disk: std::env::temp_dir(),
        patience: Duration::from_secs(120),
    };
    for program in REMEMBERED {
        let outcome = run(&parse(program), &conditions, None);
        assert!(
            outcome.is_ok(),
            "{}\n{program}",
            outcome
                .err()
                .map_or_else(String::new, |failure| failure.what)
        );
    }
    let chosen = from_environment("PAGETIDE_SEED", 7);
    let seconds: u64 = from_environment("PAGETIDE_TORTURE_SECONDS", 45);
    let mut deltas = 0;
    let each = Duration::from_secs(seconds) / (SEEDS.len() as u32 + 1);
    for seed in SEEDS.into_iter().chain([chosen]) {
        let (tally, found) = run_all(
            seed,
            Length::default(),
            Extent::Time(each),
            &conditions,
            |_, _| {},
        );
        println!("{test}: PAGETIDE_SEED={seed}: {tally}");
        if let Some(found) = found {
            fail(&found, &conditions);
        }
        deltas += tally.delta;
        let (done, refused) = tally.operations();
        assert!(done > refused, "most operations were refused: {tally}");
    }
    // On a slow machine there is time for one program a seed, and some take one snapshot only.
    assert!(deltas > 0, "no delta was compared");
}

fn fail(found: &Found, conditions: &Conditions) -> ! {
    report::report(found, conditions, Duration::from_secs(120), |line| {
        println!("{line}")
    });
    panic!("seed {}: {}", found.seed, found.failure.what);
}

mod wp_async {
    #[test]
    fn random_programs_lose_no_page() {
        super::slice("wp_async::random_programs_lose_no_page", "wp-async");
    }
}

mod soft_dirty {
    #[test]
    fn random_programs_lose_no_page() {
        super::slice("soft_dirty::random_programs_lose_no_page", "soft-dirty");
    }
}

mod rehash {
    #[test]
    fn random_programs_lose_no_page() {
        super::slice("rehash::random_programs_lose_no_page", "rehash");
    }
}

mod own_memory {
    use pagetide_tests::from_environment;
    use pagetide_torture::own::{Search, kept, replay, search};
    use std::time::Duration;

    /// Prevents that `OwnMemory` misses a change of memory of its own process, in the same way.
    #[test]
    fn random_programs_lose_no_page() {
        if let Some(reason) = super::obstacle("wp-async") {
            return super::skipped("own_memory::random_programs_lose_no_page", &reason);
        }
        let how = Search {
            binary: env!("CARGO_BIN_EXE_torture").into(),
            disk: std::env::temp_dir(),
            patience: Duration::from_secs(120),
            shrink: Duration::from_secs(120),
        };
        for program in kept() {
            if let Err(what) = replay(&how, &program) {
                panic!("{what}\n{}", program.join("\n"));
            }
        }
        let seconds = from_environment("PAGETIDE_TORTURE_SECONDS", 45) / 4;
        let seed = from_environment("PAGETIDE_SEED", 7);
        let time = Duration::from_secs(seconds);
        let tally = search(&how, seed, time, |line| println!("{line}"));
        let tally = tally.unwrap_or_else(|what| panic!("{what}"));
        println!("own_memory: PAGETIDE_SEED={seed}: {tally}");
        assert!(tally.delta > 0, "no delta was compared: {tally}");
        let (done, refused) = tally.operations();
        assert!(done > refused, "most operations were refused: {tally}");
    }
}

/// Nothing in the list of examples can go unnoticed out of the programs, and nothing else is in them.
#[test]
fn every_kind_that_has_an_example_is_chosen_at_times() {
    let chosen: BTreeSet<String> = (0..150)
        .flat_map(|seed| program(seed, Length::default()))
        .map(|line| kind(&line))
        .collect();
    let examples: BTreeSet<String> = kinds::examples()
        .iter()
        .filter_map(|steps| Some(kind(steps.last()?)))
        .collect();
    let missing: Vec<_> = examples.difference(&chosen).collect();
    assert!(missing.is_empty(), "never chosen: {missing:?}");
    let without: Vec<_> = chosen
        .difference(&examples)
        .filter(|kind| !kind.starts_with(['!', '@']))
        .collect();
    assert!(without.is_empty(), "without an example: {without:?}");
}
