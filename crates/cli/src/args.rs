//! What the user may say. Parsing touches nothing: no file, no process.

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use pagetide_pages::{PageRange, PageSize};
use pagetide_snapshot::Compression;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Incremental checkpoints of live processes: full once, then only what was written.
#[derive(Debug, Parser)]
#[command(
    name = "pagetide",
    version,
    max_term_width = 100,
    after_help = "Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused; all of them: --help"
)]
pub struct Arguments {
    /// The most memory that pagetide may take (64M, 2G)
    #[arg(long, global = true, value_name = "SIZE", value_parser = memory_size)]
    pub memory_limit: Option<u64>,
    #[command(subcommand)]
    pub command: Command,
}

impl Arguments {
    /// What was said on the command line. Ends the program where that is help, or wrong.
    pub fn said() -> Self {
        let matches = Self::grouped().get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// The command line with what its help says at the end.
    pub fn documented() -> clap::Command {
        let mut command =
            Self::command().after_long_help(format!("{EXIT_STATUS}\n\n{ENVIRONMENT}"));
        for (name, examples) in EXAMPLES {
            command = command.mut_subcommand(name, |subcommand| {
                let examples = examples.replace('\n', "\n  ");
                let end = format!("Examples:\n  {examples}\n\n{EXIT_STATUS}\n\n{ENVIRONMENT}");
                subcommand.after_long_help(end)
            });
        }
        command
    }

    /// The command line with the list of commands by what one wants to do, short enough for a screen.
    pub fn grouped() -> clap::Command {
        let command = Self::documented();
        let mut list = String::new();
        for (title, names) in GROUPS {
            for (place, name) in names.iter().enumerate() {
                let title = if place == 0 { title } else { "" };
                let about = command.find_subcommand(name).and_then(|it| it.get_about());
                let about = about.map(ToString::to_string).unwrap_or_default();
                list += &format!("{title:<10}  {name:<11}  {about}\n");
            }
        }
        command.help_template(format!(
            "{{about}}\n{{usage-heading}} {{usage}}\n{list}{{options}}{{after-help}}"
        ))
    }
}

const EXIT_STATUS: &str = "Exit status:
  0 done, 1 failed, 2 wrong usage, 3 refused (the process or the store cannot be handled)
  4 the process under `checkpoint --every` has ended
  129, 130, 143 ended by SIGHUP, SIGINT, SIGTERM; `run` and `restore` exit as the program does";

const ENVIRONMENT: &str = "Environment:
  PAGETIDE_LOG  what to log on standard error: error, warn, info, debug or trace, also by module (pagetide=debug)
  NO_COLOR      no colours";

/// Two of each command.
const EXAMPLES: [(&str, &str); 17] = [
    ("probe", "pagetide probe\npagetide probe --json"),
    (
        "checkpoint",
        "pagetide checkpoint 4711 --store /var/ckpt\npagetide checkpoint 4711 --store /var/ckpt --every 5s --tree",
    ),
    (
        "run",
        "pagetide run --store /var/ckpt --every 1m -- python3 job.py\npagetide run --store ckpt --every 5s --report ckpt.log -- make",
    ),
    (
        "log",
        "pagetide log /var/ckpt\npagetide log /var/ckpt --json",
    ),
    (
        "show",
        "pagetide show /var/ckpt\npagetide show /var/ckpt --at -2",
    ),
    (
        "diff",
        "pagetide diff /var/ckpt 1 2\npagetide diff /var/ckpt 1 2 --json",
    ),
    (
        "verify",
        "pagetide verify /var/ckpt\npagetide verify /var/ckpt --json",
    ),
    (
        "prune",
        "pagetide prune /var/ckpt --keep-last 100\npagetide prune /var/ckpt --keep-last 10 --keep-hourly 24 --keep-daily 30 --dry-run",
    ),
    (
        "squash",
        "pagetide squash /var/ckpt 3..9\npagetide squash /var/ckpt 3..9 --json",
    ),
    (
        "export",
        "pagetide export /var/ckpt --format core -o core.4711\npagetide export /var/ckpt --at 3 --format raw -o pages",
    ),
    (
        "rollback",
        "pagetide rollback 4711 /var/ckpt\npagetide rollback 4711 /var/ckpt --at 3",
    ),
    (
        "restore",
        "pagetide restore /var/ckpt --detach\npagetide restore /var/ckpt --at -2 --dry-run",
    ),
    (
        "inspect",
        "pagetide inspect 4711\npagetide inspect 4711 --tree --json",
    ),
    (
        "pages",
        "pagetide pages 4711\npagetide pages 4711 --at 7f0012345000",
    ),
    (
        "detach",
        "pagetide detach 4711\npagetide detach 4711 --json",
    ),
    (
        "completions",
        "pagetide completions bash > /etc/bash_completion.d/pagetide\npagetide completions fish",
    ),
    (
        "man",
        "pagetide man | man -l -\npagetide man --directory /usr/local/share/man/man1",
    ),
];

/// The commands by what one wants to do.
const GROUPS: [(&str, &[&str]); 5] = [
    ("Take", &["checkpoint", "run", "inspect", "detach"]),
    ("Bring back", &["restore", "rollback", "export"]),
    (
        "A store",
        &["log", "show", "diff", "verify", "prune", "squash"],
    ),
    ("A process", &["pages", "probe"]),
    ("Packagers", &["completions", "man"]),
];

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what this kernel and user allow, and what is used
    Probe(Probe),
    /// Take snapshots of a process: one full, then deltas
    Checkpoint(Checkpoint),
    /// Start a command under checkpoints, exit as it does
    Run(Run),
    /// List the snapshots of a store, newest last
    Log(StoreOnly),
    /// Show the spaces, regions and attachments of one
    Show(StoreAt),
    /// Show which regions and pages differ between two
    Diff(Diff),
    /// Check every byte of every snapshot
    Verify(StoreOnly),
    /// Take away all snapshots but those to keep
    Prune(Prune),
    /// Take away the snapshots between two
    Squash(Squash),
    /// Write a snapshot as plain files or as an ELF core
    Export(Export),
    /// Put memory and registers of a live process back
    Rollback(Rollback),
    /// Start the process of a snapshot again
    Restore(Restore),
    /// Show what would keep a process from being restored
    Inspect(Inspect),
    /// Count the pages of a process, a region a line
    Pages(Pages),
    /// Remove what pagetide left in a process
    Detach(Detach),
    /// Print a completion script for a shell
    Completions(Completions),
    /// Print the manual, or write its pages
    Man(Man),
}

impl Command {
    /// Where the steps are to be traced, if anywhere.
    pub fn trace(&self) -> Option<&Path> {
        match self {
            Self::Checkpoint(options) => options.taking.trace.as_deref(),
            Self::Run(options) => options.taking.trace.as_deref(),
            _ => None,
        }
    }

    /// True if it answers with JSON.
    pub fn is_for_machines(&self) -> bool {
        match self {
            Self::Probe(options) => options.json,
            Self::Checkpoint(options) => options.taking.json,
            Self::Run(options) => options.taking.json,
            Self::Log(options) | Self::Verify(options) => options.json,
            Self::Show(options) => options.json,
            Self::Diff(options) => options.json,
            Self::Prune(options) => options.json,
            Self::Squash(options) => options.json,
            Self::Rollback(options) => options.json,
            Self::Restore(options) => options.json,
            Self::Inspect(options) => options.json,
            Self::Pages(options) => options.json,
            Self::Detach(options) => options.json,
            Self::Export(_) | Self::Completions(_) | Self::Man(_) => false,
        }
    }
}

/// Options of `probe`.
#[derive(Debug, Args)]
pub struct Probe {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// How snapshots are taken: shared by `checkpoint` and `run`.
#[derive(Debug, Args)]
pub struct Taking {
    /// Directory of the store; it is made if it does not exist
    #[arg(long, value_name = "DIR")]
    pub store: PathBuf,
    /// Add the process to the store though its snapshots are of another one
    #[arg(long)]
    pub add: bool,
    /// Rely on the store though others can write to it, or to a directory on the way to it
    #[arg(long)]
    pub trust_store: bool,
    /// How written pages are found
    #[arg(long, value_enum, default_value_t = BackendName::Auto)]
    pub backend: BackendName,
    /// The children of the process, too, and their children, all at one instant
    #[arg(long)]
    pub tree: bool,
    /// Store what mappings show of files, too, instead of relying on files that nobody writes to
    #[arg(long)]
    pub store_files: bool,
    /// Without what only `restore` needs (open files, signals, timers): the stop is shorter
    #[arg(long)]
    pub memory_only: bool,
    /// Copy while the process is stopped, or most of it while it runs [default: by the amount]
    #[arg(long, value_enum)]
    pub mode: Option<ModeName>,
    /// How long the process may take to stop, and how long nothing may move while it stands still: then it is let go, whatever hangs
    /// [default: 5s; with --every, 2s to stop]
    #[arg(long, value_name = "DUR", value_parser = duration)]
    pub stop_timeout: Option<Duration>,
    /// Most memory for copied pages (64M, 1G; a number alone is MiB)
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = buffer_size)]
    pub buffer: u64,
    /// Most page tables that a snapshot may make for memory that holds nothing: bytes, or with K, M, G or T; a mapping that
    /// needs more is compared instead of tracked [default: a sixteenth of the memory that is left]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub page_table_limit: Option<u64>,
    /// Most memory for pages written lately, of which only changed words are stored when they are written again: bytes, or
    /// with K, M, G or T; 0 for none. Only with a schedule [default: a sixteenth of what the process has, 1G at most]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub shadow_limit: Option<u64>,
    /// Prune the store to the newest N snapshots now and then: when it has an eighth more, and at the end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub keep_last: Option<u64>,
    /// How pages are compressed: none, lz4, zstd, or zstd:N with a level from -7 to 19
    #[arg(long, value_name = "HOW", default_value = "zstd:1", value_parser = compression, conflicts_with = "level")]
    pub compress: Compression,
    /// The same as --compress zstd:N
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-7..=22))]
    pub level: Option<i32>,
    /// Write when each step of each snapshot began and ended to FILE, as Chrome's trace viewer, Perfetto and speedscope read it
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Print one JSON object a line for each snapshot
    #[arg(long)]
    pub json: bool,
}

/// Options of `checkpoint`.
#[derive(Debug, Args)]
pub struct Checkpoint {
    /// The process
    #[arg(value_parser = process_number)]
    pub pid: i32,
    #[command(flatten)]
    pub taking: Taking,
    /// Keep going, one snapshot each DUR (200ms, 1s, 5m)
    #[arg(long, value_name = "DUR", value_parser = duration)]
    pub every: Option<Duration>,
    /// With --every: stop after N snapshots
    #[arg(long, value_name = "N", requires = "every", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// With --every: end after N failures in a row, instead of trying again with growing pauses
    #[arg(long, value_name = "N", requires = "every", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_failures: Option<u64>,
    /// Take a full snapshot though a delta would do
    #[arg(long)]
    pub full: bool,
    /// How to leave the process after the last snapshot
    #[arg(long, value_enum, default_value_t = LeaveName::Running)]
    pub leave: LeaveName,
    /// With --leave killed: something that cannot be brought back, by its name, and despite which it is killed
    #[arg(long, value_name = "NAME")]
    pub accept: Vec<String>,
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub taking: Taking,
    /// One snapshot each DUR (200ms, 1s, 5m)
    #[arg(long, value_name = "DUR", value_parser = duration)]
    pub every: Duration,
    /// Take no more snapshots after N failures in a row, instead of trying again with growing pauses; the command goes on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_failures: Option<u64>,
    /// Add the lines about snapshots to this file instead of writing them to standard error
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// A store.
#[derive(Debug, Args)]
pub struct StoreOnly {
    /// Directory of the store
    pub store: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A store and a snapshot in it.
#[derive(Debug, Args)]
pub struct StoreAt {
    /// Directory of the store
    pub store: PathBuf,
    /// The snapshot: a number that `log` lists, latest or -1 for the newest, -2 for the one before it [default: the newest]
    #[arg(long, value_name = "ID", value_parser = which, allow_negative_numbers = true)]
    pub at: Option<Which>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// Directory of the store
    pub store: PathBuf,
    /// One snapshot
    pub a: u64,
    /// The other
    pub b: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `prune`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("kept").required(true).multiple(true))]
pub struct Prune {
    /// Directory of the store
    pub store: PathBuf,
    /// Keep the newest N
    #[arg(long, value_name = "N", group = "kept", value_parser = clap::value_parser!(u64).range(1..))]
    pub keep_last: Option<u64>,
    /// Keep the newest of each of the last N hours that have any (UTC)
    #[arg(long, value_name = "N", group = "kept", value_parser = clap::value_parser!(u64).range(1..))]
    pub keep_hourly: Option<u64>,
    /// Keep the newest of each of the last N days that have any (UTC)
    #[arg(long, value_name = "N", group = "kept", value_parser = clap::value_parser!(u64).range(1..))]
    pub keep_daily: Option<u64>,
    /// Only say which would go
    #[arg(long)]
    pub dry_run: bool,
    /// Rely on the store though others can write to it, or to a directory on the way to it
    #[arg(long)]
    pub trust_store: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Options of `squash`.
#[derive(Debug, Args)]
pub struct Squash {
    /// Directory of the store
    pub store: PathBuf,
    /// Two snapshots, of which the second comes from the first (3..9): both stay, the second as a delta to the first
    #[arg(value_name = "A..B", value_parser = two_snapshots)]
    pub range: (u64, u64),
    /// Rely on the store though others can write to it, or to a directory on the way to it
    #[arg(long)]
    pub trust_store: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Options of `export`.
#[derive(Debug, Args)]
pub struct Export {
    /// Directory of the store
    pub store: PathBuf,
    /// The snapshot: a number that `log` lists, latest or -1 for the newest, -2 for the one before it [default: the newest]
    #[arg(long, value_name = "ID", value_parser = which, allow_negative_numbers = true)]
    pub at: Option<Which>,
    /// raw: a file a region in a new directory; core: an ELF core for a debugger
    #[arg(long, value_enum)]
    pub format: ExportFormat,
    /// Of a process tree: the process to export [raw: all of them]
    #[arg(long, value_name = "PID")]
    pub pid: Option<i32>,
    /// Where to write: a directory for raw, a file for core; it must not exist yet (raw: or be empty)
    #[arg(short, long, value_name = "PATH")]
    pub output: PathBuf,
    /// core: all memory, also what was advised MADV_DONTDUMP and what the process's coredump_filter leaves out [raw: always]
    #[arg(long)]
    pub all: bool,
    /// Rely on the store though others can write to it, or to a directory on the way to it
    #[arg(long)]
    pub trust_store: bool,
}

/// Options of `rollback`.
#[derive(Debug, Args)]
pub struct Rollback {
    /// The process
    #[arg(value_parser = process_number)]
    pub pid: i32,
    /// Directory of the store
    pub store: PathBuf,
    /// The snapshot: a number that `log` lists, latest or -1 for the newest, -2 for the one before it [default: the newest]
    #[arg(long, value_name = "ID", value_parser = which, allow_negative_numbers = true)]
    pub at: Option<Which>,
    /// Rely on the store though others can write to it, or to a directory on the way to it
    #[arg(long)]
    pub trust_store: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Options of `restore`.
#[derive(Debug, Args)]
pub struct Restore {
    /// Directory of the store
    pub store: PathBuf,
    /// The snapshot: a number that `log` lists, latest or -1 for the newest, -2 for the one before it [default: the newest]
    #[arg(long, value_name = "ID", value_parser = which, allow_negative_numbers = true)]
    pub at: Option<Which>,
    /// End when the process runs, instead of waiting for it and exiting with its status; what led to a
    /// terminal or to a process outside leads to /dev/null then
    #[arg(long)]
    pub detach: bool,
    /// Leave it stopped (SIGSTOP) before its first instruction
    #[arg(long)]
    pub stopped: bool,
    /// Let the kernel choose its number: for a program that does not hold it
    #[arg(long)]
    pub new_pid: bool,
    /// Let it run as soon as the memory is there that it needs first; the rest comes meanwhile. If pagetide is killed before
    /// all is there, so is the process. Its next snapshot is full
    #[arg(long)]
    pub lazy: bool,
    /// This is the process that serves memory behind a command that has ended
    #[arg(long, hide = true, requires = "lazy", requires = "detach")]
    pub behind: bool,
    /// What becomes of TCP connections: gone on with, or reset
    #[arg(long, value_enum, default_value_t = TcpName::Restore)]
    pub tcp: TcpName,
    /// What the clocks show that count from the boot on: after a reboot they go on from where they were, or are those of this system
    #[arg(long, value_enum, default_value_t = ClockName::GoOn)]
    pub clock: ClockName,
    /// Only paths in this directory may be opened, made or connected to [default: all; --dry-run lists them]
    #[arg(long, value_name = "DIR")]
    pub allow: Vec<PathBuf>,
    /// Start nothing: list the paths that would be opened, and what cannot be brought back
    #[arg(long)]
    pub dry_run: bool,
    /// Rely on the store though others can write to it, or to a directory on the way to it
    #[arg(long)]
    pub trust_store: bool,
    /// Something that cannot be brought back, by its name, and that the process may go without
    #[arg(long, value_name = "NAME")]
    pub accept: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Options of `inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// The process; it is stopped for a moment
    #[arg(value_parser = process_number)]
    pub pid: i32,
    /// The children of the process, too, and their children
    #[arg(long)]
    pub tree: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Options of `pages`.
#[derive(Debug, Args)]
pub struct Pages {
    /// The process; it is not stopped, and what it does meanwhile shows
    #[arg(value_parser = process_number)]
    pub pid: i32,
    /// Another process: tell which page frames the two share (root only)
    #[arg(value_name = "PID2", value_parser = process_number, conflicts_with_all = ["at", "range"])]
    pub other: Option<i32>,
    /// Explain the page at this address (0x7f0012345000, 7f0012345000, or decimal)
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub at: Option<Address>,
    /// Count only what lies between two addresses, the second one excluded (7f0012345000-7f0012445000)
    #[arg(long, value_name = "A-B", value_parser = address_range, conflicts_with = "at")]
    pub range: Option<PageRange>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Options of `detach`.
#[derive(Debug, Args)]
pub struct Detach {
    /// The process
    #[arg(value_parser = process_number)]
    pub pid: i32,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Options of `completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Options of `man`.
#[derive(Debug, Args)]
pub struct Man {
    /// Write a page for each command to this directory, instead of printing all as one
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
}

/// A backend by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// The best that works here
    Auto,
    /// userfaultfd in asynchronous write-protect mode (Linux 6.7)
    WpAsync,
    /// Soft-dirty bits
    SoftDirty,
    /// No help from the kernel: read and compare everything
    Rehash,
}

/// When pages are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeName {
    /// All while the process is stopped
    Stop,
    /// Most while it runs, the rest while it is stopped
    Precopy,
}

/// What becomes of TCP connections in a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TcpName {
    /// They go on where they were
    Restore,
    /// The process finds them reset by the peer
    Reset,
}

/// What CLOCK_MONOTONIC and CLOCK_BOOTTIME show to what was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ClockName {
    /// They go on from where they were
    GoOn,
    /// What they show to pagetide
    Host,
}

/// What becomes of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LeaveName {
    /// It runs on
    Running,
    /// It stays stopped (SIGSTOP) at the instant of the snapshot
    Stopped,
    /// It is killed once the snapshot is durable, unless it could not be restored from it
    Killed,
}

/// The form of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// A sparse file for each region, and map.json
    Raw,
    /// An ELF core
    Core,
}

/// An address as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub value: u64,
    /// What it is if nothing is mapped at `value`: digits alone are hexadecimal, as in `/proc/PID/maps`,
    /// or else decimal.
    pub or_else: Option<u64>,
}

/// Which snapshot of a store is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one with this number.
    Id(u64),
    /// So many before the newest, which is 0.
    BeforeNewest(usize),
}

/// `7`, `latest`, `-1`.
fn which(text: &str) -> Result<Which, String> {
    let back = |digits: &str| digits.parse::<usize>().ok()?.checked_sub(1);
    let found = match text.strip_prefix('-') {
        _ if text == "latest" => Some(Which::BeforeNewest(0)),
        Some(digits) => back(digits).map(Which::BeforeNewest),
        None => text.parse().ok().map(Which::Id),
    };
    let wrong = "a snapshot is a number that `pagetide log DIR` lists, latest, or -1 for the newest, -2 for the one before it";
    found.ok_or_else(|| wrong.to_owned())
}

/// `3..9`.
fn two_snapshots(text: &str) -> Result<(u64, u64), String> {
    let two = text.split_once("..");
    let two = two.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    match two {
        Some((a, b)) if a < b => Ok((a, b)),
        Some(_) => Err("the first one is to be the older one: 3..9".to_owned()),
        None => Err("two snapshots are needed, as `pagetide log DIR` lists them: 3..9".to_owned()),
    }
}

/// The number of a process. Who names the program instead is told which numbers it has.
fn process_number(text: &str) -> Result<i32, String> {
    match text.parse() {
        Ok(pid) if pid > 0 => return Ok(pid),
        Ok(_) => return Err("pids begin with 1".to_owned()),
        Err(_) => {}
    }
    let mut called: Vec<i32> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let comm = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            // The kernel keeps 15 bytes of a name.
            let name = text.as_bytes();
            !name.is_empty() && comm.trim_end().as_bytes() == &name[..name.len().min(15)]
        })
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    called.sort_unstable();
    let numbers: Vec<String> = called.iter().map(i32::to_string).collect();
    Err(match &numbers[..] {
        [] => "a pid is needed, as pidof(1), pgrep(1) and `systemctl show -P MainPID` say it"
            .to_owned(),
        numbers => format!(
            "a pid is needed; processes of this name have: {}",
            numbers.join(", ")
        ),
    })
}

/// `64M`, or `64` for the same.
fn compression(text: &str) -> Result<Compression, String> {
    match text.split_once(':') {
        None if text == "none" => return Ok(Compression::None),
        None if text == "lz4" => return Ok(Compression::Lz4),
        None if text == "zstd" => return Ok(Compression::default()),
        Some(("zstd", level)) => {
            let level = level.parse().ok();
            if let Some(level) = level.filter(|level| (-7..=19).contains(level)) {
                return Ok(Compression::Zstd(level));
            }
        }
        _ => {}
    }
    Err("pages are compressed with none, lz4, zstd, or zstd:N, where N is from -7 to 19".to_owned())
}

fn buffer_size(text: &str) -> Result<u64, String> {
    let bytes = match text.parse::<u64>() {
        Ok(mib) => mib.checked_mul(1 << 20),
        Err(_) => Some(size(text)?),
    };
    bytes
        .filter(|bytes| (4 << 20..=1 << 40).contains(bytes))
        .ok_or_else(|| "the buffer is 4M at least and 1T at most".to_owned())
}

/// Hexadecimal with or without `0x`, or decimal.
fn address(text: &str) -> Result<Address, String> {
    let wrong = || format!("{text:?} is not an address: hexadecimal or decimal digits are needed");
    if text.starts_with(['+', '-']) {
        return Err(wrong());
    }
    let prefixed = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let hexadecimal = u64::from_str_radix(prefixed.unwrap_or(text), 16).ok();
    let decimal = prefixed.is_none().then(|| text.parse().ok()).flatten();
    match (hexadecimal, decimal) {
        _ if prefixed.is_some_and(|digits| digits.starts_with(['+', '-'])) => Err(wrong()),
        (Some(value), or_else) => Ok(Address { value, or_else }),
        (None, Some(value)) => Ok(Address {
            value,
            or_else: None,
        }),
        (None, None) => Err(wrong()),
    }
}

/// `4096`, `64K`, `512M`, `1GiB`.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_uppercase();
    let unit = unit
        .strip_suffix("IB")
        .or(unit.strip_suffix('B'))
        .unwrap_or(&unit);
    let shift = match unit {
        "" => Some(0),
        "K" => Some(10),
        "M" => Some(20),
        "G" => Some(30),
        "T" => Some(40),
        _ => None,
    };
    let number: Option<u64> = digits.parse().ok();
    let size = number
        .zip(shift)
        .and_then(|(number, shift)| number.checked_mul(1 << shift));
    size.ok_or_else(|| "a size is a number of bytes, or one with a unit: 64K, 512M, 1G".to_owned())
}

/// Less than this does not suffice for anything.
const LEAST_MEMORY: u64 = 32 << 20;

/// A size that a program can do with.
fn memory_size(text: &str) -> Result<u64, String> {
    match size(text)? {
        bytes if bytes >= LEAST_MEMORY => Ok(bytes),
        _ => Err("the least limit is 32M".to_owned()),
    }
}

/// Two addresses, hexadecimal with or without `0x` as `/proc/PID/maps` shows them.
fn address_range(text: &str) -> Result<PageRange, String> {
    let wrong = || {
        format!(
            "{text:?} is not a range: two addresses are needed, as in 7f0012345000-7f0012445000"
        )
    };
    let (start, end) = text.split_once('-').ok_or_else(wrong)?;
    let (start, end) = (address(start)?.value, address(end)?.value);
    if start >= end {
        return Err(format!(
            "the range {text:?} is empty: the second address is to be the higher one"
        ));
    }
    Ok(PageSize::KIB_4.covering(start, end))
}

/// Clocks overflow at some length; this one is long enough for anybody.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// `200ms`, `1s`, `5m`.
fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if !duration.is_zero() && duration <= LONGEST => Ok(duration),
        Ok(duration) if !duration.is_zero() => Err("the longest duration is 365days".to_owned()),
        _ => Err("a duration is a number above 0 and a unit: 200ms, 1s, 5m, 1h".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent_and_every_argument_has_a_help_text() {
        let mut command = Arguments::command();
        command.clone().debug_assert();
        command.build();
        for subcommand in command.get_subcommands() {
            assert!(
                subcommand.get_about().is_some(),
                "{}",
                subcommand.get_name()
            );
            for argument in subcommand.get_arguments() {
                let place = format!("{} {}", subcommand.get_name(), argument.get_id());
                assert!(argument.get_help().is_some(), "{place} has no help text");
            }
        }
    }

    #[test]
    fn memory_sizes() {
        assert_eq!(memory_size("64M"), Ok(64 << 20));
        assert_eq!(memory_size("2g"), Ok(2 << 30));
        for wrong in ["", "M", "-1G", "1.5G", "31M", "99999999999G"] {
            assert!(memory_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn which_snapshot() {
        assert_eq!(which("7"), Ok(Which::Id(7)));
        assert_eq!(which("latest"), Ok(Which::BeforeNewest(0)));
        assert_eq!(which("-1"), Ok(Which::BeforeNewest(0)));
        assert_eq!(which("-3"), Ok(Which::BeforeNewest(2)));
        for wrong in ["", "-", "-0", "newest", "1.5", "--1"] {
            assert!(which(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn two_of_them() {
        assert_eq!(two_snapshots("3..9"), Ok((3, 9)));
        for wrong in ["", "3", "3..", "..9", "3..3", "9..3", "3...9", "a..b"] {
            assert!(two_snapshots(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn who_names_a_program_is_told_its_numbers() {
        assert_eq!(process_number("4711"), Ok(4711));
        for wrong in ["0", "-1", "", "no such program"] {
            assert!(process_number(wrong).is_err(), "{wrong}");
        }
        let own = std::fs::read_to_string("/proc/self/comm").expect("our name");
        let told = process_number(own.trim_end()).expect_err("it is a name");
        assert!(told.contains(&std::process::id().to_string()), "{told}");
    }

    #[test]
    fn buffers() {
        assert_eq!(buffer_size("64"), Ok(64 << 20));
        assert_eq!(buffer_size("64M"), Ok(64 << 20));
        assert_eq!(buffer_size("1g"), Ok(1 << 30));
        for wrong in ["3", "3M", "2T", "x", ""] {
            assert!(buffer_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for wrong in ["", "5", "ms", "0s", "-1s", "5x", "366days"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size("0"), Ok(0));
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("64K"), Ok(64 << 10));
        assert_eq!(size("3MiB"), Ok(3 << 20));
        assert_eq!(size("1gb"), Ok(1 << 30));
        for wrong in ["", "M", "-1", "1.5G", "5X", "1BB", "99999999T"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ranges_of_addresses() {
        let of = |text| address_range(text).map(|range| PageSize::KIB_4.span_of(range));
        assert_eq!(of("7f0000-7f2000"), Ok((0x7f_0000, 0x7f_2000)));
        assert_eq!(of("0x7f0001-0x7f0002"), Ok((0x7f_0000, 0x7f_1000)));
        for wrong in ["", "7f0000", "7f2000-7f0000", "7f0000-7f0000", "-", "x-y"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses() {
        let of = |text| address(text).map(|found| (found.value, found.or_else));
        assert_eq!(of("0x7f00"), Ok((0x7f00, None)));
        assert_eq!(of("00007F00"), Ok((0x7f00, None)));
        assert_eq!(of("4096"), Ok((0x4096, Some(4096))));
        assert_eq!(
            of("18446744073699065856"),
            Ok((0xffff_ffff_ff60_0000, None))
        );
        for wrong in [
            "",
            "0x",
            "-1",
            "+1",
            "0x+1",
            "1g",
            "0x1_0",
            "99999999999999999999",
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    /// Prevents a command without examples, and examples that are wrong.
    #[test]
    fn each_command_has_two_examples_that_can_be_said() {
        let command = Arguments::documented();
        for subcommand in command.get_subcommands() {
            let name = subcommand.get_name();
            let found = EXAMPLES.iter().find(|(of, _)| *of == name);
            let (_, examples) = found.unwrap_or_else(|| panic!("{name} has no examples"));
            assert_eq!(examples.lines().count(), 2, "{name}");
            for example in examples.lines() {
                let words = example.split(['|', '>']).next().unwrap_or_default();
                let parsed = Arguments::try_parse_from(words.split_whitespace());
                assert!(parsed.is_ok(), "{example}: {:?}", parsed.err());
            }
            let help = subcommand.clone().render_long_help().to_string();
            for what in ["Examples:", "Exit status:", "Environment:", "PAGETIDE_LOG"] {
                assert!(help.contains(what), "{name}: no {what}");
            }
        }
    }

    /// Prevents a command that one does not find in the help, and a help that scrolls away.
    #[test]
    fn the_help_names_each_command_once_and_fits_a_screen() {
        let mut command = Arguments::grouped().term_width(80);
        let help = command.render_help().to_string();
        let lines: Vec<&str> = help.trim_end().lines().collect();
        assert!(
            lines.len() <= 24 && lines.iter().all(|line| line.len() <= 80),
            "{help}"
        );
        for name in Arguments::command()
            .get_subcommands()
            .map(clap::Command::get_name)
        {
            let named = |line: &&&str| {
                line.get(12..)
                    .is_some_and(|rest| rest.split(' ').next() == Some(name))
            };
            assert_eq!(lines.iter().filter(named).count(), 1, "{name}: {help}");
        }
    }
}
