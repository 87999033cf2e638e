//! What is run and what it needs: test programs, binaries, and the C programs that tests work on.

use crate::plan::{Job, Plan};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Everything that was built.
#[derive(Debug)]
pub struct Built {
    /// Package and target, and the program.
    programs: BTreeMap<(String, String), Program>,
    /// The binary `pagetide`.
    pub pagetide: PathBuf,
    /// The compiled programs of `tests/targets`.
    pub targets: PathBuf,
    /// Those of `crates/process/tests/live/targets`.
    pub live_targets: PathBuf,
    _directory: tempfile::TempDir,
}

/// Something that can be run.
#[derive(Clone, Debug)]
pub struct Program {
    /// Where it lies.
    pub path: PathBuf,
    /// True if it is a test program, false if it is a binary.
    pub is_test: bool,
}

impl Built {
    /// The program that a job runs.
    pub fn program(&self, job: &Job) -> Result<&Program> {
        let name = (job.package.clone(), job.target.clone());
        let found = self.programs.get(&name);
        found.with_context(|| format!("there is no program {}/{}", name.0, name.1))
    }
}

/// Builds all that the plan names, in the profile of the tests; what the plan leaves open, it fills in.
pub fn build(plan: &mut Plan) -> Result<Built> {
    let mut programs = BTreeMap::new();
    // All packages together: for some of them cargo would choose other features, and build anew.
    cargo(&["test", "--no-run", "--workspace"], &mut programs)?;
    let tests = programs
        .keys()
        .map(|(package, target)| (package.as_str(), target.as_str()));
    plan.expand(tests);
    let binaries = plan.jobs.iter().filter(|job| {
        let name = (job.package.clone(), job.target.clone());
        !programs.contains_key(&name)
    });
    let packages: BTreeSet<String> = binaries.map(|job| job.package.clone()).collect();
    for package in packages {
        cargo(&["build", "--package", &package], &mut programs)?;
    }
    let pagetide = programs
        .get(&("pagetide-cli".to_owned(), "pagetide".to_owned()))
        .context("cargo has built no pagetide")?
        .path
        .clone();
    let directory = tempfile::Builder::new()
        .prefix("pagetide-kernels-")
        .tempdir()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let live_targets = directory.path().join("live");
    let targets = directory.path().join("targets");
    compile_all(
        &root.join("crates/process/tests/live/targets"),
        &live_targets,
    )?;
    compile_all(&root.join("tests/targets"), &targets)?;
    Ok(Built {
        programs,
        pagetide,
        targets,
        live_targets,
        _directory: directory,
    })
}

/// Runs cargo and keeps the programs that it names.
fn cargo(words: &[&str], programs: &mut BTreeMap<(String, String), Program>) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(words)
        .args(["--locked", "--message-format=json-render-diagnostics"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit());
    let output = command.output().context("run cargo")?;
    ensure!(output.status.success(), "{command:?} failed");
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: Value = serde_json::from_str(line).context("read cargo's messages")?;
        let Some(path) = message["executable"].as_str() else {
            continue;
        };
        let target = message["target"]["name"].as_str().unwrap_or_default();
        let is_test = message["profile"]["test"].as_bool() == Some(true);
        // The unit tests of a library or a binary are no target of their own.
        let own = if is_test { "test" } else { "bin" };
        let kinds = message["target"]["kind"].as_array();
        if !kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind == own)) {
            continue;
        }
        let name = (package_of(&message)?, target.to_owned());
        let path = PathBuf::from(path);
        programs.insert(name, Program { path, is_test });
    }
    Ok(())
}

/// The package's name, from its manifest: ids of packages have had several forms.
fn package_of(message: &Value) -> Result<String> {
    let path = message["manifest_path"].as_str().unwrap_or_default();
    let manifest = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let mut names = manifest.lines().filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "name").then(|| value.trim().trim_matches('"').to_owned())
    });
    names.next().with_context(|| format!("{path} has no name"))
}

/// Compiles every C program of a directory, each to a program of its name.
fn compile_all(sources: &Path, into: &Path) -> Result<()> {
    std::fs::create_dir_all(into)?;
    let entries = std::fs::read_dir(sources).with_context(|| sources.display().to_string())?;
    for entry in entries {
        let source = entry?.path();
        if source.extension().is_none_or(|extension| extension != "c") {
            continue;
        }
        let program = into.join(source.file_stem().context("a file without a name")?);
        let status = Command::new("cc")
            .args(["-std=gnu17", "-g", "-O1", "-pthread", "-o"])
            .args([&program, &source])
            .status()
            .context("run cc")?;
        if !status.success() {
            bail!("{} does not compile", source.display());
        }
    }
    Ok(())
}
