//! The process that is checkpointed: this program again, with a gigabyte of memory, writing to it when
//! told so over a pipe.

use anyhow::{Context, ensure};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Memory of the target.
pub const MIB: usize = 1024;
pub const PAGE: usize = 4096;

/// Memory that compresses about as a server's heap does: half of each page noise, half repetition.
pub fn fill(memory: &mut [u8]) {
    let mut noise = 0x9e37_79b9_7f4a_7c15u64;
    for (number, page) in memory.chunks_mut(PAGE).enumerate() {
        let (random, plain) = page.split_at_mut(PAGE / 2);
        for word in random.chunks_mut(8) {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            word.copy_from_slice(&noise.to_le_bytes()[..word.len()]);
        }
        plain.fill((number % 251) as u8);
    }
}

/// Writes eight bytes into `count` pages, chosen at random and different from round to round.
pub fn scatter(memory: &mut [u8], count: usize, round: &mut u64) {
    let pages = (memory.len() / PAGE) as u64;
    for _ in 0..count {
        *round = round
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let at = ((*round >> 33) % pages) as usize * PAGE + 64;
        memory[at..at + 8].copy_from_slice(&round.to_le_bytes());
    }
}

/// The target's side: commands on stdin, answers on stdout, ends with its input.
pub fn serve() -> anyhow::Result<()> {
    let mut memory = vec![1u8; MIB << 20];
    fill(&mut memory);
    let mut round = 1;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "ready")?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let answer = match line.split_once(' ') {
            Some(("write", count)) => {
                scatter(&mut memory, count.parse()?, &mut round);
                0
            }
            _ => crate::limits::fork_once()?.as_nanos(),
        };
        writeln!(stdout, "{answer}")?;
    }
    Ok(())
}

/// A running target.
pub struct Target {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Target {
    /// Starts one and waits until its memory is filled.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_as("target")
    }

    /// Starts this program with another argument, to be such a process as it says.
    pub fn start_as(argument: &str) -> anyhow::Result<Self> {
        Self::start_program(&std::env::current_exe()?, argument)
    }

    /// As [`Self::start_as`], from a copy of this program.
    pub fn start_program(program: &Path, argument: &str) -> anyhow::Result<Self> {
        let mut child = Command::new(program)
            .arg(argument)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the target")?;
        let commands = child.stdin.take().context("no pipe to the target")?;
        let answers = child.stdout.take().context("no pipe from the target")?;
        let mut target = Self {
            child,
            commands,
            answers: BufReader::new(answers),
        };
        ensure!(target.answer()? == "ready", "the target did not start");
        Ok(target)
    }

    pub fn pid(&self) -> anyhow::Result<i32> {
        Ok(i32::try_from(self.child.id())?)
    }

    fn answer(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Makes it write to `count` random pages.
    pub fn write(&mut self, count: usize) -> anyhow::Result<()> {
        writeln!(self.commands, "write {count}")?;
        self.answer().map(drop)
    }

    /// How long fork(2) takes in it.
    pub fn fork(&mut self) -> anyhow::Result<Duration> {
        writeln!(self.commands, "fork")?;
        Ok(Duration::from_nanos(self.answer()?.parse()?))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
