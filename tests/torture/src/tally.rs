//! What was done: operations by kind, refused ones by error, snapshots and pages.

use std::collections::BTreeMap;
use std::fmt;

/// Steps that are not operations on memory.
const OF_SNAPSHOTS: [&str; 10] = [
    "!check",
    "!leave",
    "!begin",
    "!every",
    "!kill",
    "!rollback",
    "!detach",
    "!store",
    "!review",
    "!age",
];

/// Counts of one program, or of many.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Operations that were done, by kind.
    pub done: BTreeMap<String, u64>,
    /// Operations that the kernel refused, by kind and error.
    pub refused: BTreeMap<String, BTreeMap<String, u64>>,
    /// Snapshots that were compared.
    pub compared: u64,
    /// Snapshots that were full, and that were deltas.
    pub full: u64,
    /// See `full`.
    pub delta: u64,
    /// Snapshots taken while the target ran.
    pub overlapped: u64,
    /// Pages that snapshots reported as written.
    pub written_pages: u64,
    /// Pages that were not zero in what was compared.
    pub compared_pages: u64,
    /// Programs run to their end.
    pub programs: u64,
}

impl Tally {
    /// Counts an operation by its outcome.
    pub fn count(&mut self, kind: String, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => *self.done.entry(kind).or_default() += 1,
            Err(error) => {
                let errors = self.refused.entry(kind).or_default();
                *errors.entry(error).or_default() += 1;
            }
        }
    }

    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        for (kind, count) in &other.done {
            *self.done.entry(kind.clone()).or_default() += count;
        }
        for (kind, errors) in &other.refused {
            let here = self.refused.entry(kind.clone()).or_default();
            for (error, count) in errors {
                *here.entry(error.clone()).or_default() += count;
            }
        }
        self.compared += other.compared;
        self.full += other.full;
        self.delta += other.delta;
        self.overlapped += other.overlapped;
        self.written_pages += other.written_pages;
        self.compared_pages += other.compared_pages;
        self.programs += other.programs;
    }

    /// Operations on memory that were done, and refused. Taking snapshots is none.
    pub fn operations(&self) -> (u64, u64) {
        let is_operation = |kind: &str| !OF_SNAPSHOTS.iter().any(|name| kind.starts_with(name));
        let done = self.done.iter().filter(|(kind, _)| is_operation(kind));
        let refused = self.refused.iter().filter(|(kind, _)| is_operation(kind));
        (
            done.map(|(_, count)| count).sum(),
            refused.flat_map(|(_, errors)| errors.values()).sum(),
        )
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (done, refused) = self.operations();
        write!(
            f,
            "{done} operations done, {refused} refused, {} programs, {} snapshots compared ({} full, {} delta, \
             {} more while running), {} pages written, {} compared",
            self.programs,
            self.compared,
            self.full,
            self.delta,
            self.overlapped,
            self.written_pages,
            self.compared_pages
        )
    }
}

/// Operations by kind, and refused ones by kind and error.
#[derive(Debug)]
pub struct ByKind<'a>(pub &'a Tally);

impl fmt::Display for ByKind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, count) in &self.0.done {
            write!(f, "  {kind}: {count}")?;
        }
        for (kind, errors) in &self.0.refused {
            write!(f, "\n  refused {kind}:")?;
            for (error, count) in errors {
                write!(f, " {count} x {error}")?;
            }
        }
        Ok(())
    }
}
