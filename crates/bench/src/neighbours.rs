//! `make neighbours`: what servers under load notice of checkpoints that go on beside them: requests a second, and how
//! long the slowest in a hundred take. Each server is measured without checkpoints, with one a second, and with five a
//! second, in turns. The first snapshot of each turn, which is full, is taken before the clock runs.

mod client;
mod connection;
mod servers;

use anyhow::{Context, bail, ensure};
use comfy_table::{Table, presets};
use servers::Running;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How often each condition is measured, and for how long at a time.
const TURNS: usize = 3;
const MEASURED: Duration = Duration::from_secs(3);
const WARM_UP: Duration = Duration::from_secs(2);
/// Clients, each of which has one request under way.
const CLIENTS: usize = 8;

/// What goes on beside the load: nothing, or checkpoints so often.
const CONDITIONS: [Option<&str>; 3] = [None, Some("1s"), Some("200ms")];

/// What was measured under one condition.
#[derive(Default)]
struct Figures {
    latencies_us: Vec<u32>,
    seconds: f64,
    snapshots: usize,
    longest_stop_us: u64,
}

impl Figures {
    fn a_second(&self) -> f64 {
        self.latencies_us.len() as f64 / self.seconds
    }

    /// So long 99 of 100 requests took at most, in ms.
    fn p99_ms(&mut self) -> f64 {
        self.latencies_us.sort_unstable();
        let at = self.latencies_us.len() * 99 / 100;
        f64::from(self.latencies_us.get(at).copied().unwrap_or(0)) / 1000.0
    }

    fn told(&mut self, without: Option<f64>) -> String {
        let mut text = format!("{:.0}/s", self.a_second());
        if let Some(without) = without {
            let change = (self.a_second() / without - 1.0) * 100.0;
            text.push_str(&format!(" ({change:+.1} %)"));
        }
        text.push_str(&format!(", p99 {:.2} ms", self.p99_ms()));
        if self.snapshots > 0 {
            let longest = self.longest_stop_us as f64 / 1000.0;
            text.push_str(&format!(
                "; {} snapshots, stop <= {longest:.1} ms",
                self.snapshots
            ));
        }
        text
    }
}

/// Measures all servers that can be started, and prints a table in Markdown.
pub fn measure() -> anyhow::Result<()> {
    let missing = servers::missing();
    if !missing.is_empty() {
        bail!("not installed; as root: apt-get install --no-install-recommends {missing}");
    }
    let pagetide = beside_us("pagetide")?;
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header([
        "program",
        "without",
        "--every 1s",
        "--every 200ms",
    ]);
    for server in servers::ALL {
        eprintln!("{} ...", server.name);
        let directory = tempfile::tempdir()?;
        let running = server
            .start(directory.path())
            .with_context(|| format!("start {}", server.name))?;
        let figures =
            of_server(&running, &pagetide).with_context(|| format!("measure {}", server.name))?;
        let mut cells = vec![server.name.to_owned()];
        let mut without = None;
        for mut figures in figures {
            cells.push(figures.told(without));
            without.get_or_insert(figures.a_second());
        }
        table.add_row(cells);
    }
    println!("{CLIENTS} clients over loopback, {TURNS} turns of {MEASURED:?} each\n");
    println!("{table}");
    Ok(())
}

/// A program of this build.
fn beside_us(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(
        path.exists(),
        "{} is not built: cargo build --release -p pagetide-cli",
        path.display()
    );
    Ok(path)
}

fn of_server(running: &Running, pagetide: &Path) -> anyhow::Result<[Figures; 3]> {
    client::load(running, CLIENTS, WARM_UP)?;
    let mut all = CONDITIONS.map(|_| Figures::default());
    for _ in 0..TURNS {
        for (condition, figures) in CONDITIONS.iter().zip(&mut all) {
            let beside = match condition {
                None => None,
                Some(interval) => Some(Checkpoints::begin(pagetide, running.pid(), interval)?),
            };
            let since = Instant::now();
            let latencies = client::load(running, CLIENTS, MEASURED)?;
            figures.seconds += since.elapsed().as_secs_f64();
            figures.latencies_us.extend(latencies);
            if let Some(beside) = beside {
                let (snapshots, longest_stop_us) = beside.end()?;
                figures.snapshots += snapshots;
                figures.longest_stop_us = figures.longest_stop_us.max(longest_stop_us);
            }
        }
    }
    Ok(all)
}

/// `pagetide checkpoint --every`, whose first snapshot has been taken. Dropped: ended, with its store.
struct Checkpoints {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    _store: tempfile::TempDir,
}

impl Checkpoints {
    fn begin(pagetide: &Path, pid: u32, interval: &str) -> anyhow::Result<Self> {
        let store = tempfile::tempdir()?;
        let mut child = Command::new(pagetide)
            .args(["checkpoint", "--tree", "--json", "--every", interval])
            .args(["--store".as_ref(), store.path().join("store").as_os_str()])
            .arg(pid.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let output = child.stdout.take().context("its output is a pipe")?;
        let mut begun = Self {
            child,
            lines: BufReader::new(output).lines(),
            _store: store,
        };
        begun
            .lines
            .next()
            .context("it ended before the first snapshot")??;
        Ok(begun)
    }

    /// Ends it; how many snapshots were taken after the first one, and the longest stop in us.
    fn end(mut self) -> anyhow::Result<(usize, u64)> {
        self.interrupt();
        let (mut snapshots, mut longest) = (0, 0);
        for line in self.lines.by_ref() {
            let line = line?;
            let after = line.split("\"stop_us\":").nth(1);
            let digits = after.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
            let stop_us = digits.and_then(|digits| digits.parse().ok());
            longest = longest.max(stop_us.context("a report has stop_us")?);
            snapshots += 1;
        }
        Ok((snapshots, longest))
    }

    fn interrupt(&self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            // It may have ended by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.interrupt();
        let _ = self.child.wait();
    }
}
