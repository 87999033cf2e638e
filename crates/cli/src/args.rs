//! What the user may say. Parsing touches nothing: no file, no process.

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use pagetide_pages::{PageRange, PageSize};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Incremental checkpoints of live processes: full once, then only what was written.
#[derive(Debug, Parser)]
#[command(
    name = "pagetide",
    version,
    max_term_width = 100,
    after_help = "Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused, 130 and 143 by a signal"
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

    /// The command line with the list of commands by what one wants to do, short enough for a screen.
    pub fn grouped() -> clap::Command {
        let command = Self::command();
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
            "{{about}}\n{{usage-heading}} {{usage}}\n\n{list}\n{{options}}{{after-help}}"
        ))
    }
}

/// The commands by what one wants to do.
const GROUPS: [(&str, &[&str]); 5] = [
    ("Take", &["checkpoint", "run", "inspect", "detach"]),
    ("Bring back", &["restore", "rollback", "export"]),
    ("A store", &["log", "show", "diff", "verify"]),
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
    /// Most memory for copied pages, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(4..=1 << 20))]
    pub buffer: u64,
    /// Most page tables that a snapshot may make for memory that holds nothing: bytes, or with K, M, G or T; a mapping that
    /// needs more is compared instead of tracked [default: a sixteenth of the memory that is left]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub page_table_limit: Option<u64>,
    /// zstd level
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-7..=22))]
    pub level: i32,
    /// Print one JSON object a line for each snapshot
    #[arg(long)]
    pub json: bool,
}

/// Options of `checkpoint`.
#[derive(Debug, Args)]
pub struct Checkpoint {
    /// The process
    #[arg(value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: i32,
    #[command(flatten)]
    pub taking: Taking,
    /// Keep going, one snapshot each DUR (200ms, 1s, 5m)
    #[arg(long, value_name = "DUR", value_parser = duration)]
    pub every: Option<Duration>,
    /// With --every: stop after N snapshots
    #[arg(long, value_name = "N", requires = "every", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
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
    /// The snapshot [default: the newest]
    #[arg(long, value_name = "ID")]
    pub at: Option<u64>,
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

/// Options of `export`.
#[derive(Debug, Args)]
pub struct Export {
    /// Directory of the store
    pub store: PathBuf,
    /// The snapshot [default: the newest]
    #[arg(long, value_name = "ID")]
    pub at: Option<u64>,
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
    #[arg(value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: i32,
    /// Directory of the store
    pub store: PathBuf,
    /// The snapshot [default: the newest]
    #[arg(long, value_name = "ID")]
    pub at: Option<u64>,
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
    /// The snapshot [default: the newest]
    #[arg(long, value_name = "ID")]
    pub at: Option<u64>,
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
    #[arg(value_parser = clap::value_parser!(i32).range(1..))]
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
    #[arg(value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: i32,
    /// Another process: tell which page frames the two share (root only)
    #[arg(value_name = "PID2", value_parser = clap::value_parser!(i32).range(1..), conflicts_with_all = ["at", "range"])]
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
    #[arg(value_parser = clap::value_parser!(i32).range(1..))]
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
