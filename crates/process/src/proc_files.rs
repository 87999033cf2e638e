//! The few text files of `/proc` this crate reads, parsed. Source: `proc(5)`. Decides nothing.

use pagetide_kernel::proc_file;
use pagetide_kernel::ptrace::ThreadId;
use pagetide_kernel::time_namespace::offsets;
use std::fs;
use std::io;
use std::sync::OnceLock;

/// PF_KTHREAD of `stat` field 9: a thread of the kernel itself.
pub(crate) const FLAG_KERNEL_THREAD: u64 = 0x0020_0000;
/// `/proc/PID/stat`: the command name, and the fields behind it as text.
#[derive(Debug, Clone)]
pub(crate) struct Stat {
    pub(crate) comm: String,
    fields: Vec<String>,
}

/// By how many ticks the boot time clock of this program is ahead of the kernel's: what it reads is ahead by that, too.
fn ahead_ticks() -> u64 {
    /// Of a clock tick, of which there are a hundred in a second (USER_HZ).
    const TICK_NS: i64 = 10_000_000;
    static AHEAD: OnceLock<u64> = OnceLock::new();
    *AHEAD.get_or_init(|| {
        let own = offsets(std::process::id().cast_signed()).unwrap_or_default();
        own.boottime_ns.div_euclid(TICK_NS).cast_unsigned()
    })
}

impl Stat {
    pub(crate) fn of_process(pid: i32) -> io::Result<Self> {
        Self::read(&format!("/proc/{pid}/stat"))
    }

    pub(crate) fn of_thread(pid: i32, thread: ThreadId) -> io::Result<Self> {
        Self::read(&format!("/proc/{pid}/task/{thread}/stat"))
    }

    fn read(path: &str) -> io::Result<Self> {
        Self::parse(&proc_file::read_text(path)?).ok_or_else(|| unexpected(path))
    }

    /// The name may hold any byte, blanks and parentheses too; the last ')' ends it.
    fn parse(text: &str) -> Option<Self> {
        let (before, fields) = text.rsplit_once(')')?;
        let (_, comm) = before.split_once('(')?;
        Some(Self {
            comm: comm.to_owned(),
            fields: fields.split_whitespace().map(str::to_owned).collect(),
        })
    }

    /// Field `number` as `proc(5)` counts them (3 is the state). Fields the kernel hides or that an
    /// older kernel lacks read as 0.
    pub(crate) fn field(&self, number: usize) -> u64 {
        let text = self.text(number);
        text.parse::<u64>()
            .or_else(|_| text.parse::<i64>().map(i64::cast_unsigned))
            .unwrap_or(0)
    }

    fn text(&self, number: usize) -> &str {
        number
            .checked_sub(3)
            .and_then(|index| self.fields.get(index))
            .map_or("", String::as_str)
    }

    pub(crate) fn state(&self) -> char {
        self.text(3).chars().next().unwrap_or('?')
    }

    pub(crate) fn flags(&self) -> u64 {
        self.field(9)
    }

    /// As the kernel counts it, whatever the clocks of this program show.
    pub(crate) fn start_time_ticks(&self) -> u64 {
        self.field(22).wrapping_sub(ahead_ticks())
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state(), 'Z' | 'X' | 'x')
    }
}

/// `/proc/PID/status`, kept as text and asked by key.
#[derive(Debug, Clone)]
pub(crate) struct Status(String);

impl Status {
    pub(crate) fn of_process(pid: i32) -> io::Result<Self> {
        Self::read(&format!("/proc/{pid}/status"))
    }

    pub(crate) fn of_thread(pid: i32, thread: ThreadId) -> io::Result<Self> {
        Self::read(&format!("/proc/{pid}/task/{thread}/status"))
    }

    fn read(path: &str) -> io::Result<Self> {
        Ok(Self(proc_file::read_text(path)?))
    }

    /// As if the kernel had said this.
    #[cfg(test)]
    pub(crate) fn from_text(text: String) -> Self {
        Self(text)
    }

    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.0.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name == key).then_some(value.trim())
        })
    }

    /// The first number of a value; 0 if the kernel does not give the key.
    pub(crate) fn number(&self, key: &str) -> u64 {
        self.value(key)
            .and_then(|value| value.split_whitespace().next())
            .and_then(|word| word.parse().ok())
            .unwrap_or(0)
    }

    /// The process or thread that traces this one.
    pub(crate) fn tracer(&self) -> Option<i32> {
        i32::try_from(self.number("TracerPid"))
            .ok()
            .filter(|pid| *pid != 0)
    }
}

/// The threads of a process that exist now, dead unreaped ones included.
pub(crate) fn threads(pid: i32) -> io::Result<Vec<ThreadId>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let Ok(entry) = entry else {
            // The process ended while it was listed.
            break;
        };
        if let Some(number) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        {
            threads.push(ThreadId::new(number));
        }
    }
    Ok(threads)
}

/// The command name of a process or thread, for messages.
pub(crate) fn comm_of(number: i32) -> String {
    proc_file::read_text(format!("/proc/{number}/comm"))
        .map_or_else(|_| String::from("?"), |name| name.trim_end().to_owned())
}

fn unexpected(path: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{path} does not read as expected"),
    )
}

#[cfg(test)]
mod hostile_tests {
    use super::*;
    use pagetide_testing::hostile::survives;

    #[test]
    fn hostile_names_in_stat() {
        let sound =
            b"4711 (a) R 1 (b) S 1 4711 4711 0 -1 4194304 100 0 0 0 1 2 0 0 20 0 1 0 98765 1 2 3";
        survives(sound, |text| {
            let Some(stat) = Stat::parse(&String::from_utf8_lossy(text)) else {
                return false;
            };
            let numbers = (stat.state(), stat.flags(), stat.start_time_ticks());
            text != sound || (numbers == ('S', 4_194_304, 98_765) && stat.comm == "a) R 1 (b")
        });
    }

    #[test]
    fn hostile_names_in_status() {
        let sound =
            b"Name:\ta\\nTracerPid:\\t1\nState:\tS (sleeping)\nTracerPid:\t0\nThreads:\t3\n";
        survives(sound, |text| {
            let status = Status::from_text(String::from_utf8_lossy(text).into_owned());
            let told = (status.tracer(), status.number("Threads"));
            text != sound || told == (None, 3)
        });
    }
}
