//! The table: a line for each test program, or for each test of those that run under every backend; a
//! column for each backend of each kernel. What does not depend on a backend stands across a kernel's columns.

use crate::machine::Report;
use crate::plan::Backend;
use crate::results::{Outcome, Test};
use std::collections::BTreeMap;
use std::fmt;

/// The backends, in the order of the columns, and the modules of their tests.
const BACKENDS: [(&str, &str); 3] = [
    ("wp-async", "wp_async"),
    ("soft-dirty", "soft_dirty"),
    ("rehash", "rehash"),
];

/// The table.
#[derive(Default)]
pub struct Table {
    kernels: Vec<Kernel>,
    /// In the order in which they came.
    rows: Vec<String>,
    cells: BTreeMap<CellKey, Cell>,
    /// Kernel and reason, and how many tests say it.
    reasons: BTreeMap<(String, String), usize>,
}

struct Kernel {
    name: String,
    release: String,
    unusable: Vec<(String, String)>,
}

/// Row, kernel, and the backend; none if it makes no difference.
type CellKey = (String, String, Option<&'static str>);

#[derive(Default)]
struct Cell {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match (self.passed, self.failed, self.skipped) {
            (1, 0, 0) => "ok".to_owned(),
            (passed, 0, 0) => format!("{passed} ok"),
            (0, 0, _) => "n/a".to_owned(),
            (passed, 0, skipped) => format!("{passed} ok {skipped} n/a"),
            (_, failed, _) => format!("{failed} FAILED"),
        };
        f.pad(&text)
    }
}

impl Table {
    /// Adds what came of one kernel.
    pub fn add(&mut self, kernel: &str, report: Report) {
        let unusable = report.backends.into_iter();
        let unusable = unusable.filter_map(|backend| Some((backend.name, backend.refusal?)));
        self.kernels.push(Kernel {
            name: kernel.to_owned(),
            release: report.release,
            unusable: unusable.collect(),
        });
        for job in &report.jobs {
            let mut tests: Vec<&Test> = job.tests.iter().collect();
            // Tests that run side by side end in any order.
            tests.sort_by(|one, other| one.name.cmp(&other.name));
            for test in tests {
                let (backend, rest) = backend_of(&job.backend, &test.name);
                let row = match rest {
                    None => job.label.clone(),
                    Some(rest) => format!("{}: {rest}", job.label),
                };
                if !self.rows.contains(&row) {
                    self.rows.push(row.clone());
                }
                let cell = self
                    .cells
                    .entry((row, kernel.to_owned(), backend))
                    .or_default();
                match test.outcome {
                    Outcome::Passed => cell.passed += 1,
                    Outcome::Failed => cell.failed += 1,
                    Outcome::Skipped(_) => cell.skipped += 1,
                }
            }
            for (_, reason) in job.skips() {
                let said = self.reasons.entry((kernel.to_owned(), reason.to_owned()));
                *said.or_default() += 1;
            }
        }
    }

    /// The cell of a row under a backend of a kernel.
    fn cell(&self, row: &str, kernel: &Kernel, backend: &str) -> String {
        let known = BACKENDS.iter().find(|(name, _)| *name == backend);
        let key = |name| (row.to_owned(), kernel.name.clone(), name);
        match self.cells.get(&key(known.map(|(name, _)| *name))) {
            Some(cell) => cell.to_string(),
            None if kernel.unusable.iter().any(|(name, _)| name == backend) => "-".to_owned(),
            None => String::new(),
        }
    }
}

/// The backend of a test, and its name without the module, if it has a line of its own.
fn backend_of(backend: &Backend, test: &str) -> (Option<&'static str>, Option<String>) {
    match backend {
        Backend::Any => (None, None),
        Backend::Named(wanted) => {
            let known = BACKENDS.iter().find(|(name, _)| name == wanted);
            (known.map(|(name, _)| *name), None)
        }
        Backend::Modules => {
            let mut column = None;
            let mut rest = Vec::new();
            for part in test.split("::") {
                match BACKENDS.iter().find(|(_, module)| *module == part) {
                    Some((name, _)) => column = Some(*name),
                    None => rest.push(part),
                }
            }
            (column, Some(rest.join("::")))
        }
    }
}

const CELL: usize = 11;

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(String::len).max().unwrap_or(0);
        let group = BACKENDS.len() * (CELL + 1) - 1;
        write!(f, "{:width$}", "")?;
        for kernel in &self.kernels {
            let title = if kernel.release.starts_with(&kernel.name) {
                kernel.release.clone()
            } else {
                format!("{} {}", kernel.name, kernel.release)
            };
            write!(f, " | {title:group$}")?;
        }
        write!(f, "\n{:width$}", "test")?;
        for _ in &self.kernels {
            write!(f, " |")?;
            for (name, _) in BACKENDS {
                write!(f, " {name:CELL$}")?;
            }
        }
        writeln!(f)?;
        for row in &self.rows {
            write!(f, "{row:width$}")?;
            for kernel in &self.kernels {
                match self.cells.get(&(row.clone(), kernel.name.clone(), None)) {
                    Some(cell) => write!(f, " | {cell:group$}")?,
                    None => {
                        write!(f, " |")?;
                        for (name, _) in BACKENDS {
                            write!(f, " {:CELL$}", self.cell(row, kernel, name))?;
                        }
                    }
                }
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "\n-: this kernel cannot do it; n/a: the test says why it cannot run there"
        )?;
        for kernel in &self.kernels {
            for (backend, reason) in &kernel.unusable {
                writeln!(f, "{}: {backend} is not available: {reason}", kernel.name)?;
            }
            for ((name, reason), count) in &self.reasons {
                if *name == kernel.name {
                    writeln!(f, "{name}: {count} n/a: {reason}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;
    use crate::report::{Offered, Printed};
    use crate::results::JobResult;

    #[test]
    fn a_test_of_each_backend_is_one_row() {
        let plan = "run all modules p/c\nrun all any p/a\nrun all wp-async p/w";
        let plan = Plan::parse(plan).unwrap();
        let printed = |stdout: &str, stderr: &str| Printed {
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
            status: Some(0),
            seconds: 0,
        };
        let outputs = [
            printed(
                "test m::wp_async::t1 ... ok\ntest m::rehash::t1 ... FAILED\n",
                "",
            ),
            printed("test x ... ok\ntest y ... ok\n", "SKIPPED y: no y here\n"),
            printed("test x ... ok\n", ""),
        ];
        let jobs = plan.jobs.iter().zip(&outputs);
        let jobs = jobs.map(|(job, printed)| JobResult::new(job, true, printed));
        let mut table = Table::default();
        let report = Report {
            release: "6.1.9".to_owned(),
            backends: vec![
                Offered {
                    name: "wp-async".to_owned(),
                    refusal: None,
                },
                Offered {
                    name: "soft-dirty".to_owned(),
                    refusal: Some("no bits".to_owned()),
                },
            ],
            jobs: jobs.collect(),
        };
        table.add("6.1", report);
        let text = table.to_string();
        let words = |beginning: &str| {
            let line = text.lines().find(|line| line.starts_with(beginning));
            let words = line.unwrap_or_default().split_whitespace();
            words
                .skip(2)
                .map(str::to_owned)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(words("p: c: m::t1"), "m::t1 | ok - 1 FAILED", "{text}");
        assert_eq!(words("p: a "), "| 1 ok 1 n/a", "{text}");
        assert_eq!(words("p: w "), "| ok -", "{text}");
        assert!(
            text.contains("6.1: soft-dirty is not available: no bits"),
            "{text}"
        );
        assert!(text.contains("6.1: 1 n/a: no y here"), "{text}");
    }
}
