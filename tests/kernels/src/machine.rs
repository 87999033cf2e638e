//! Runs what is planned for one kernel, here or in a guest, and brings back what was printed.
//!
//! A guest runs one script with all jobs. What a job prints is kept there until it ends, and comes out
//! between two lines that start with `@@`, each line marked as standard output or error.

use crate::artifacts::Built;
use crate::kernels::HOST;
use crate::plan::Plan;
use crate::report::{Offered, Printed};
use crate::results::JobResult;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs::Permissions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

/// How often a guest may fail to start. An emulator that runs one processor of the guest a moment behind the other shows
/// it code that the kernel is just changing (an Oops on `int3` in the first seconds).
const BOOTS_MAX: u32 = 3;

/// A program that runs longer than this is stuck.
const JOB_SECONDS: u32 = 300;

/// A guest that runs longer than this is stopped.
const GUEST_SECONDS: u32 = 1200;

/// Where tests in a guest find what they need.
const PLACES: [&str; 3] = [
    "PAGETIDE_BIN=/work/pagetide",
    "PAGETIDE_TARGETS=/work/targets",
    "PAGETIDE_LIVE_TARGETS=/work/live",
];

/// How much of the tests without an end is run, here and in guests.
const EXTENT: [(&str, &str); 3] = [
    ("PAGETIDE_EPOCHS", "3"),
    ("PAGETIDE_CASES", "8"),
    ("PAGETIDE_TORTURE_SECONDS", "24"),
];

/// What came of one kernel.
#[derive(Debug)]
pub struct Report {
    /// The kernel's own name.
    pub release: String,
    /// What `pagetide probe` says of each backend.
    pub backends: Vec<Offered>,
    /// What was run, in the order of the plan.
    pub jobs: Vec<JobResult>,
}

/// Runs all that is planned for `kernel`.
pub fn run(kernel: &str, plan: &Plan, built: &Built) -> Result<Report> {
    let jobs = plan.jobs_of(kernel);
    let mut commands = vec![vec!["probe".to_owned(), "--json".to_owned()]];
    let mut programs = vec![built.pagetide.as_path()];
    for job in &jobs {
        let program = built.program(job)?;
        programs.push(&program.path);
        let mut words = job.arguments.clone();
        if program.is_test {
            words.push("--test-threads=2".to_owned());
        }
        commands.push(words);
    }
    eprintln!("kernels: {kernel}: {} programs", jobs.len());
    let printed = match kernel {
        HOST => here(&programs, &commands, built)?,
        guest => in_guest(guest, &programs, &commands, built)?,
    };
    let mut printed = printed.into_iter();
    let (release, backends) = probed(&printed.next().unwrap_or_default())
        .with_context(|| format!("{kernel}: `pagetide probe` has not worked"))?;
    let mut results = Vec::new();
    for job in jobs {
        let is_test = built.program(job)?.is_test;
        let result = JobResult::new(job, is_test, &printed.next().unwrap_or_default());
        if result.is_wrong() {
            eprint!("kernels: {kernel}: {result}");
        }
        results.push(result);
    }
    Ok(Report {
        release,
        backends,
        jobs: results,
    })
}

/// Tells whoever waits that a program has ended.
fn progress(kernel: &str, done: usize, program: &Path, words: &[String], printed: &Printed) {
    // The first is the probe.
    let Some(number) = done.checked_sub(1) else {
        return;
    };
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let (name, _) = name.split_once('-').unwrap_or((&name, ""));
    let status = printed
        .status
        .map_or("no status".to_owned(), |status| format!("exit {status}"));
    eprintln!(
        "kernels: {kernel}: {number} {name} {}: {status}, {} s",
        words.join(" "),
        printed.seconds
    );
}

/// The kernel and its backends, by `pagetide probe --json`.
fn probed(printed: &Printed) -> Result<(String, Vec<Offered>)> {
    let probe: Value = serde_json::from_str(&printed.stdout)
        .with_context(|| format!("{}{}", printed.stdout, printed.stderr))?;
    let kernel = probe["kernel"].as_str().context("no kernel")?.to_owned();
    let backends = probe["backends"].as_array().context("no backends")?;
    let backends = backends.iter().map(|backend| {
        let text = |key: &str| backend[key].as_str().unwrap_or_default().to_owned();
        Offered {
            name: text("name"),
            refusal: (backend["usable"] != true).then(|| text("reason")),
        }
    });
    Ok((kernel, backends.collect()))
}

/// Runs everything on this machine.
fn here(programs: &[&Path], commands: &[Vec<String>], built: &Built) -> Result<Vec<Printed>> {
    let mut all = Vec::new();
    for (program, words) in programs.iter().zip(commands) {
        let started = std::time::Instant::now();
        let output = Command::new("timeout")
            .arg(JOB_SECONDS.to_string())
            .arg(program)
            .args(words)
            .env("PAGETIDE_BIN", &built.pagetide)
            .envs(EXTENT)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("run {}", program.display()))?;
        let printed = Printed {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            status: output.status.code(),
            seconds: started.elapsed().as_secs(),
        };
        progress(HOST, all.len(), program, words, &printed);
        all.push(printed);
    }
    Ok(all)
}

/// Boots a guest and runs everything in it, one after the other.
fn in_guest(
    kernel: &str,
    programs: &[&Path],
    commands: &[Vec<String>],
    built: &Built,
) -> Result<Vec<Printed>> {
    let directory = tempfile::Builder::new()
        .prefix("pagetide-kernels-")
        .tempdir()?;
    let script = directory.path().join("jobs");
    std::fs::write(&script, script_of(programs, commands)?)?;
    std::fs::set_permissions(&script, Permissions::from_mode(0o755))?;
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(here.join("guest"));
    for program in programs {
        command.arg("--file").arg(program);
    }
    for (directory, name) in [(&built.targets, "targets"), (&built.live_targets, "live")] {
        let file = format!("{}:{name}", directory.display());
        command.args(["--file", &file]);
    }
    for place in PLACES {
        command.args(["--env", place]);
    }
    for (name, value) in EXTENT {
        command.args(["--env", &format!("{name}={value}")]);
    }
    // There it is nobody's memory.
    command.args(["--env", "PAGETIDE_MEMORY_MAY_FAIL=1"]);
    command
        .args(["--program", "setpriv", "--program", "mount"])
        .args(["--timeout", &GUEST_SECONDS.to_string(), kernel, "--"])
        .arg(&script)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    for _ in 1..BOOTS_MAX {
        let (status, all) = boot(&mut command, kernel, programs, commands)?;
        if status.success() || !all.is_empty() {
            return Ok(all);
        }
        eprintln!("kernels: {kernel}: the guest has not started: {status}; once more");
    }
    let (status, all) = boot(&mut command, kernel, programs, commands)?;
    if !status.success() && all.is_empty() {
        bail!("{kernel}: the guest has not started: {status}");
    }
    Ok(all)
}

/// What came of one boot: nothing if the guest has not got as far as the first program.
fn boot(
    command: &mut Command,
    kernel: &str,
    programs: &[&Path],
    commands: &[Vec<String>],
) -> Result<(ExitStatus, Vec<Printed>)> {
    let mut guest = command.spawn().context("run tests/kernels/guest")?;
    let output = guest.stdout.take().context("its output is a pipe")?;
    let mut all: Vec<Printed> = Vec::new();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("read what the guest prints")?;
        let line = String::from_utf8_lossy(&line);
        match line.split_at_checked(3) {
            Some(("@@<", _)) => all.push(Printed::default()),
            Some(("@@o", text)) => append(&mut all, |printed| &mut printed.stdout, text),
            Some(("@@e", text)) => append(&mut all, |printed| &mut printed.stderr, text),
            Some(("@@>", numbers)) => {
                let done = all.len().saturating_sub(1);
                let printed = all.last_mut().context("an end without a beginning")?;
                let mut numbers = numbers.split_whitespace();
                printed.status = Some(numbers.next().context("no status")?.parse()?);
                printed.seconds = numbers.next().context("no seconds")?.parse()?;
                if let Some((program, words)) = programs.get(done).zip(commands.get(done)) {
                    progress(kernel, done, program, words, printed);
                }
            }
            _ if line.trim().is_empty() => {}
            _ => eprintln!("kernels: {kernel}: {line}"),
        }
    }
    Ok((guest.wait()?, all))
}

fn append(all: &mut [Printed], part: fn(&mut Printed) -> &mut String, text: &str) {
    if let Some(printed) = all.last_mut() {
        let part = part(printed);
        part.push_str(text);
        part.push('\n');
    }
}

/// The script that a guest runs.
fn script_of(programs: &[&Path], commands: &[Vec<String>]) -> Result<String> {
    let mut script = format!(
        "#!/bin/sh\n\
         job() {{\n\
         echo '@@<'\n\
         begun=$(date +%s)\n\
         timeout {JOB_SECONDS} \"$@\" </dev/null >/run/out 2>/run/err\n\
         status=$?\n\
         sed 's/^/@@o/' /run/out\n\
         sed 's/^/@@e/' /run/err\n\
         echo\n\
         echo \"@@>$status $(($(date +%s) - begun))\"\n\
         }}\n"
    );
    for (program, words) in programs.iter().zip(commands) {
        let name = program.file_name().context("a program without a name")?;
        let _ = write!(script, "job './{}'", name.to_string_lossy());
        for word in words {
            let _ = write!(script, " '{word}'");
        }
        script.push('\n');
    }
    Ok(script)
}
