//! What came of one program: the tests in it, and whether its output can be believed.

use crate::kernels::HOST;
use crate::plan::{Backend, Job};
use crate::report::Printed;
use crate::skips::Skips;
use std::fmt;

/// What came of one program.
#[derive(Debug)]
pub struct JobResult {
    /// How it stands in the table.
    pub label: String,
    /// To which backend its tests belong.
    pub backend: Backend,
    /// Its tests; a binary counts as one.
    pub tests: Vec<Test>,
    /// Skips that are said by parts of tests, with their reasons.
    partly: Vec<(String, String)>,
    /// Why what it printed is not to be believed.
    doubts: Vec<String>,
    /// All that it printed, if anything is wrong.
    printed: String,
    seconds: u64,
}

/// One test.
#[derive(Debug, PartialEq)]
pub struct Test {
    /// Its name, with modules.
    pub name: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a test.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It could not be run there, for this reason.
    Skipped(String),
}

impl JobResult {
    /// Reads what a program printed.
    pub fn new(job: &Job, is_test: bool, printed: &Printed) -> Self {
        let mut result = Self {
            label: job.label(),
            backend: job.backend.clone(),
            tests: Vec::new(),
            partly: Vec::new(),
            doubts: Vec::new(),
            printed: String::new(),
            seconds: printed.seconds,
        };
        if is_test {
            result.read_tests(printed)
        } else {
            result.tests.push(Test {
                name: job.arguments.join(" "),
                outcome: match printed.status {
                    Some(0) => Outcome::Passed,
                    _ => Outcome::Failed,
                },
            })
        }
        result.read_skips(&printed.stderr);
        let failed = result.count(|outcome| *outcome == Outcome::Failed);
        match printed.status {
            None => result.doubts.push("it has not ended".to_owned()),
            Some(0) => {}
            Some(status) if failed == 0 => result.doubts.push(format!("exit status {status}")),
            Some(_) => {}
        }
        if failed > 0 || !result.doubts.is_empty() {
            result.printed = format!("{}{}", printed.stdout, printed.stderr);
        }
        result
    }

    /// True if a test failed, or the output is not to be believed.
    pub fn is_wrong(&self) -> bool {
        !self.printed.is_empty() || !self.doubts.is_empty()
    }

    /// How many tests have such an outcome.
    fn count(&self, is: impl Fn(&Outcome) -> bool) -> usize {
        self.tests.iter().filter(|test| is(&test.outcome)).count()
    }

    /// The lines `test NAME ... ok`; that none is lost is checked against the sum at the end.
    fn read_tests(&mut self, printed: &Printed) {
        let mut sums = None;
        for line in printed.stdout.lines() {
            if let Some(sum) = line.strip_prefix("test result: ") {
                let number = |what: &str| {
                    let mut parts = sum.split([';', '.']).map(str::trim);
                    let part = parts.find_map(|part| part.strip_suffix(what))?;
                    part.trim().parse::<usize>().ok()
                };
                sums = number(" passed").zip(number(" failed"));
                continue;
            }
            let test = line
                .strip_prefix("test ")
                .and_then(|test| test.split_once(" ... "));
            let Some((name, word)) = test else { continue };
            let outcome = match word {
                "ok" => Outcome::Passed,
                _ => Outcome::Failed,
            };
            let name = name.trim_end_matches(" - should panic").to_owned();
            self.tests.push(Test { name, outcome });
        }
        let failed = self.count(|outcome| *outcome == Outcome::Failed);
        let counted = (self.tests.len() - failed, failed);
        match sums {
            Some(sums) if sums == counted => {}
            Some(sums) => self
                .doubts
                .push(format!("{counted:?} tests are seen of {sums:?}")),
            None => self
                .doubts
                .push("there is no result of the tests".to_owned()),
        }
        if self.tests.is_empty() {
            self.doubts.push("no test was run".to_owned());
        }
    }

    /// The lines `SKIPPED NAME: REASON`.
    fn read_skips(&mut self, stderr: &str) {
        for line in stderr.lines() {
            let said = line
                .strip_prefix("SKIPPED ")
                .and_then(|said| said.split_once(": "));
            let Some((name, reason)) = said else { continue };
            let mut tests = self.tests.iter_mut();
            let whole = tests.find(|test| {
                let before = test.name.strip_suffix(name);
                before.is_some_and(|before| before.is_empty() || before.ends_with("::"))
            });
            match whole {
                Some(test) if test.outcome == Outcome::Passed => {
                    test.outcome = Outcome::Skipped(reason.to_owned());
                }
                _ => self.partly.push((name.to_owned(), reason.to_owned())),
            }
        }
    }

    /// What is wrong.
    pub fn complaints(&self, kernel: &str, skips: &Skips) -> Vec<String> {
        let place = format!("{kernel}: {}", self.label);
        let doubts = self.doubts.iter().map(|doubt| format!("{place}: {doubt}"));
        let mut all: Vec<String> = doubts.collect();
        for test in &self.tests {
            if test.outcome == Outcome::Failed {
                all.push(format!("{place}: {}", test.name));
            }
        }
        // On the host the tests themselves know what may be skipped.
        if kernel != HOST {
            for (name, reason) in self.skips() {
                if !skips.allow(kernel, name, reason) {
                    all.push(format!(
                        "{place}: {name} was skipped and is not listed: {reason}"
                    ));
                }
            }
        }
        all
    }

    /// All that was skipped, with the reasons.
    pub fn skips(&self) -> impl Iterator<Item = (&str, &str)> {
        let whole = self.tests.iter().filter_map(|test| match &test.outcome {
            Outcome::Skipped(reason) => Some((test.name.as_str(), reason.as_str())),
            _ => None,
        });
        let partly = self
            .partly
            .iter()
            .map(|(name, reason)| (name.as_str(), reason.as_str()));
        whole.chain(partly)
    }
}

impl fmt::Display for JobResult {
    /// A line, and all output if something is wrong.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let passed = self.count(|outcome| *outcome == Outcome::Passed);
        let failed = self.count(|outcome| *outcome == Outcome::Failed);
        let skipped = self.tests.len() - passed - failed;
        writeln!(
            f,
            "    {}: {passed} passed, {failed} failed, {skipped} not available, {} s",
            self.label, self.seconds
        )?;
        for line in self.printed.lines() {
            writeln!(f, "        | {line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;

    fn result(stdout: &str, stderr: &str, status: Option<i32>, is_test: bool) -> JobResult {
        let plan = Plan::parse("run all any p/t --seed 1").unwrap();
        let printed = Printed {
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
            status,
            seconds: 0,
        };
        JobResult::new(&plan.jobs[0], is_test, &printed)
    }

    const STDOUT: &str = "running 3 tests\ntest m::a ... ok\ntest b ... ok\ntest c ... FAILED\n\
        test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; finished in 0.1s\n";

    #[test]
    fn tests_are_counted_and_skips_are_theirs() {
        let skips = Skips::parse("6.1 m::a no scan").unwrap();
        let got = result(
            STDOUT,
            "SKIPPED a: no scan\nSKIPPED part: no luck\n",
            Some(101),
            true,
        );
        let outcomes: Vec<&Outcome> = got.tests.iter().map(|test| &test.outcome).collect();
        let skipped = Outcome::Skipped("no scan".to_owned());
        assert_eq!(outcomes, [&skipped, &Outcome::Passed, &Outcome::Failed]);
        let complaints = got.complaints("6.1", &skips);
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        assert!(complaints[0].ends_with(": c") && complaints[1].contains("part was skipped"));
        assert_eq!(got.complaints("6.12", &skips).len(), 3);
        assert_eq!(got.complaints(HOST, &skips).len(), 1);
    }

    #[test]
    fn output_that_cannot_be_true_is_doubted() {
        let skips = Skips::parse("").unwrap();
        let doubts = |stdout: &str, status| {
            let result = result(stdout, "", status, true);
            result.complaints("6.1", &skips).len()
        };
        let good = STDOUT
            .replace("c ... FAILED", "c ... ok")
            .replace("2 passed; 1", "3 passed; 0");
        assert_eq!(doubts(&good, Some(0)), 0);
        assert_eq!(doubts(&good, Some(1)), 1);
        assert_eq!(doubts(&good, None), 1);
        assert_eq!(doubts(&good.replace("test b ... ok\n", ""), Some(0)), 1);
        assert_eq!(doubts("test b ... ok\n", Some(0)), 1);
        assert_eq!(doubts("test result: ok. 0 passed; 0 failed;", Some(0)), 1);
    }

    #[test]
    fn a_binary_is_one_test_named_by_its_arguments() {
        let skips = Skips::parse("").unwrap();
        let good = result("", "", Some(0), false);
        assert_eq!(
            (good.tests[0].name.as_str(), good.tests.len()),
            ("--seed 1", 1)
        );
        assert!(good.complaints("6.1", &skips).is_empty());
        assert_eq!(
            result("", "", Some(1), false)
                .complaints("6.1", &skips)
                .len(),
            1
        );
    }
}
