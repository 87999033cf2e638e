//! What is to be run where: `plan.txt`.

use crate::kernels::KERNELS;
use crate::report::Offered;
use anyhow::{Result, bail};
use std::collections::BTreeMap;

/// The plan.
#[derive(Debug)]
pub struct Plan {
    /// The usable backends that a kernel must have; kernels that are not named may have any.
    backends: BTreeMap<String, Vec<String>>,
    /// In the order of the file.
    pub jobs: Vec<Job>,
}

/// One program to be run.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    kernels: Vec<String>,
    /// To which backend its results belong.
    pub backend: Backend,
    /// The package it belongs to.
    pub package: String,
    /// The test program or binary.
    pub target: String,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// To which backend results belong.
#[derive(Clone, Debug, PartialEq)]
pub enum Backend {
    /// It makes no difference.
    Any,
    /// To this one.
    Named(String),
    /// Each test lies in a module named after its own.
    Modules,
}

impl Plan {
    /// Reads the file.
    pub fn parse(text: &str) -> Result<Self> {
        let mut plan = Self {
            backends: BTreeMap::new(),
            jobs: Vec::new(),
        };
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [] => {}
                [first, ..] if first.starts_with('#') => {}
                ["backends", kernel, names @ ..] => {
                    let names = names.iter().map(|name| (*name).to_owned()).collect();
                    plan.backends.insert((*kernel).to_owned(), names);
                }
                ["run", kernels, backend, program, arguments @ ..] => {
                    let job = Job::new(kernels, backend, program, arguments);
                    plan.jobs.push(match job {
                        Some(job) => job,
                        None => bail!("cannot be understood: {line}"),
                    });
                }
                _ => bail!("cannot be understood: {line}"),
            }
        }
        Ok(plan)
    }

    /// Puts the test programs of a package in the place of `PACKAGE/*`: those that no other line names.
    pub fn expand<'a>(&mut self, tests: impl Iterator<Item = (&'a str, &'a str)> + Clone) {
        let named = |jobs: &[Job], package: &str, target: &str| {
            let same = |job: &Job| job.package == package && job.target == target;
            jobs.iter().any(same)
        };
        let all = std::mem::take(&mut self.jobs);
        for job in &all {
            if job.target != "*" {
                self.jobs.push(job.clone());
                continue;
            }
            let others = tests.clone().filter(|(package, target)| {
                *package == job.package && !named(&all, package, target)
            });
            self.jobs.extend(others.map(|(_, target)| Job {
                target: target.to_owned(),
                ..job.clone()
            }));
        }
    }

    /// What is to be run under this kernel.
    pub fn jobs_of(&self, kernel: &str) -> Vec<&Job> {
        let here = |job: &&Job| job.kernels.iter().any(|name| name == kernel);
        self.jobs.iter().filter(here).collect()
    }

    /// What is wrong with the backends that a kernel offers.
    pub fn complaint_about_backends(&self, kernel: &str, backends: &[Offered]) -> Option<String> {
        let planned = self.backends.get(kernel)?;
        let usable = backends.iter().filter(|backend| backend.refusal.is_none());
        let usable: Vec<String> = usable.map(|backend| backend.name.clone()).collect();
        (*planned != usable).then(|| {
            format!(
                "{kernel}: the usable backends are {}, and should be {}",
                usable.join(" "),
                planned.join(" ")
            )
        })
    }
}

impl Job {
    fn new(kernels: &str, backend: &str, program: &str, arguments: &[&str]) -> Option<Self> {
        let kernels: Vec<String> = match kernels {
            "all" => KERNELS.map(str::to_owned).to_vec(),
            some => some.split(',').map(str::to_owned).collect(),
        };
        let known = |name: &String| KERNELS.contains(&name.as_str());
        let (package, target) = program.split_once('/')?;
        kernels.iter().all(known).then(|| Self {
            kernels,
            backend: match backend {
                "any" => Backend::Any,
                "modules" => Backend::Modules,
                name => Backend::Named(name.to_owned()),
            },
            package: package.to_owned(),
            target: target.to_owned(),
            arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
        })
    }

    /// How it stands in the table.
    pub fn label(&self) -> String {
        let package = self.package.strip_prefix("pagetide-");
        format!("{}: {}", package.unwrap_or(&self.package), self.target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood_and_others_are_errors() {
        let text = "# why\n\nbackends 6.1 soft-dirty rehash\nrun all any a/b\nrun 6.1,6.12 modules c/d -x 1\n";
        let plan = Plan::parse(text).unwrap();
        assert_eq!(plan.jobs_of("host").len(), 1);
        let jobs = plan.jobs_of("6.1");
        assert_eq!((jobs.len(), &jobs[1].backend), (2, &Backend::Modules));
        assert_eq!(
            (jobs[1].label().as_str(), jobs[1].arguments.len()),
            ("c: d", 2)
        );
        for wrong in [
            "run all any",
            "run 5.4 any a/b",
            "run all any ab",
            "walk all any a/b",
        ] {
            assert!(Plan::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_star_stands_for_what_is_not_named() {
        let mut plan = Plan::parse("run all any p/*\nrun 6.1 rehash p/b").unwrap();
        plan.expand([("p", "a"), ("p", "b"), ("q", "c")].into_iter());
        let targets: Vec<&str> = plan.jobs.iter().map(|job| job.target.as_str()).collect();
        assert_eq!(targets, ["a", "b"]);
    }

    #[test]
    fn other_backends_than_planned_are_named() {
        let plan = Plan::parse("backends 6.1 rehash").unwrap();
        let offered = |name: &str, refusal: Option<&str>| Offered {
            name: name.to_owned(),
            refusal: refusal.map(str::to_owned),
        };
        let backends = [
            offered("wp-async", Some("too old")),
            offered("rehash", None),
        ];
        assert_eq!(plan.complaint_about_backends("6.1", &backends), None);
        assert_eq!(plan.complaint_about_backends("host", &[]), None);
        assert!(
            plan.complaint_about_backends("6.1", &backends[..1])
                .is_some()
        );
    }
}
