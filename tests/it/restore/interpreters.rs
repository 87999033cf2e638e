//! Prevents that a computation by an interpreter, with its threads, its just-in-time code and its memory, comes to something else
//! because it was interrupted.

use pagetide_tests::{Program, Scratch, Steps, Subject, cycle, skipped};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SCHEDULE: [&str; 4] = ["--every", "80ms", "--count", "3"];
/// So many steps are known.
/// So many that no test lasts as long.
const STEPS: usize = 5000;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("targets/scripts")
        .join(name)
}

fn is_there(program: &str, words: &[&str], test: &str) -> bool {
    let found = Command::new(program)
        .args(words)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        skipped(test, &format!("there is no {program} that does {words:?}"));
    }
    found
}

#[test]
fn python_with_threads_and_numpy() {
    let python = "/usr/bin/python3";
    if !is_there(
        python,
        &["-c", "import numpy"],
        "python_with_threads_and_numpy",
    ) {
        return;
    }
    let command = |log: &Path, rest: &str| {
        let mut command = Command::new(python);
        command
            .arg(script("compute.py"))
            .arg(log)
            .args([&STEPS.to_string(), rest]);
        // The library for matrices would make threads that wait actively.
        command.env("OPENBLAS_NUM_THREADS", "2");
        command
    };
    // What it comes to when nobody interrupts it.
    let scratch = Scratch::new();
    let truth = scratch.join("truth");
    let status = command(&truth, "0").status().expect("run python");
    assert!(status.success());
    let truth = std::fs::read_to_string(truth).expect("read what it came to");
    let truth: Vec<String> = truth.lines().map(str::to_owned).collect();
    assert_eq!(truth.len(), STEPS);

    let interrupted = command(&scratch.join("log"), "20");
    let mut subject = Subject::start(&interrupted, scratch);
    cycle(
        &mut subject,
        &mut Steps::new(10).expecting(truth),
        &SCHEDULE,
    );
}

#[test]
fn node_with_timers_and_a_worker() {
    if !is_there("node", &["--version"], "node_with_timers_and_a_worker") {
        return;
    }
    let mut chain: u32 = 1;
    let truth = (1..=STEPS).map(|number| {
        for _ in 0..1000 {
            chain = chain.wrapping_mul(1_103_515_245).wrapping_add(12345);
        }
        format!("{number} {chain}")
    });
    let truth = truth.collect();
    let scratch = Scratch::new();
    let mut command = Command::new("node");
    command
        .arg(script("timers.js"))
        .arg(scratch.join("log"))
        .arg("20");
    let mut subject = Subject::start(&command, scratch);
    cycle(
        &mut subject,
        &mut Steps::new(10).expecting(truth),
        &SCHEDULE,
    );
}

/// The shell reads statements from a pipe with a name, which the test keeps open.
struct Database {
    statements: File,
    rows: u64,
    asked: u64,
    rows_at: Vec<(u32, u64)>,
}

impl Database {
    /// Asks for the number of rows, their sum, and the mark.
    fn ask(&mut self, subject: &Subject) -> (u64, u64, u64) {
        self.asked += 1;
        let name = format!("answer {}", self.asked);
        writeln!(
            self.statements,
            "select '{name}', count(*), sum(value), (select max(mark) from marks) from kept;"
        )
        .expect("ask");
        let find = |output: String| {
            let line = output
                .lines()
                .find(|line| line.starts_with(&format!("{name}|")))?
                .to_owned();
            output.ends_with('\n').then_some(line)
        };
        subject.wait_until("an answer", || find(subject.output()).is_some());
        let line = find(subject.output()).expect("it is there");
        let numbers: Vec<u64> = line
            .split('|')
            .skip(1)
            .map(|word| word.parse().unwrap_or(0))
            .collect();
        (numbers[0], numbers[1], numbers[2])
    }

    fn add(&mut self, count: u64) {
        for _ in 0..count {
            self.rows += 1;
            writeln!(
                self.statements,
                "insert into kept values ({0}, {0} * 3);",
                self.rows
            )
            .expect("add a row");
        }
    }
}

impl Program for Database {
    fn goes_on(&mut self, subject: &Subject) {
        self.add(50);
        let (count, sum, _) = self.ask(subject);
        assert_eq!(
            (count, sum),
            (self.rows, 3 * self.rows * (self.rows + 1) / 2)
        );
    }

    fn mark(&mut self, subject: &Subject, mark: u32) {
        writeln!(self.statements, "insert into marks values ({mark});").expect("mark");
        assert_eq!(self.ask(subject).2, u64::from(mark));
        self.rows_at.retain(|(known, _)| *known != mark);
        self.rows_at.push((mark, self.rows));
    }

    fn restored(&mut self, subject: &Subject, _id: u64, mark: u32) {
        let rows = self.rows_at.iter().find(|(known, _)| *known == mark);
        self.rows = rows.expect("a mark").1;
        let (count, _, marked) = self.ask(subject);
        assert_eq!((count, marked), (self.rows, u64::from(mark)));
    }
}

#[test]
fn a_database_in_memory() {
    if !is_there("sqlite3", &["--version"], "a_database_in_memory") {
        return;
    }
    let scratch = Scratch::new();
    let pipe = scratch.join("statements");
    let status = Command::new("mkfifo").arg(&pipe).status();
    assert!(status.is_ok_and(|status| status.success()));
    let statements = File::options()
        .read(true)
        .write(true)
        .open(&pipe)
        .expect("open the pipe");
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec stdbuf -oL sqlite3 :memory: <\"$0\""])
        .arg(&pipe);
    let mut subject = Subject::start(&command, scratch);
    let mut database = Database {
        statements,
        rows: 0,
        asked: 0,
        rows_at: Vec::new(),
    };
    let tables = "create table kept (number integer primary key, value integer); create table marks (mark integer);";
    writeln!(database.statements, "{tables}").expect("make tables");
    cycle(&mut subject, &mut database, &SCHEDULE);
}
