//! `restore --lazy --detach`: somebody has to serve memory when the command has ended. So the command starts itself again
//! behind it, and that one restores, says what it did, goes on until all memory is there, and ends.

use anyhow::Context;
use pagetide_kernel::pidfd::PidFd;
use rustix::fs::{FileType, Mode, OFlags};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, ExitCode, Stdio};

/// Out of the way of the descriptors of a process that is restored.
const AT_LEAST: i32 = 4096;

/// The command behind which there is another: starts that one, and ends when it says so, or with its exit code.
pub fn start() -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe().context("find this program's own file")?;
    let (told, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut command = Command::new(program);
    command
        .args(std::env::args_os().skip(1))
        .arg("--behind")
        .stdin(Stdio::from(tell));
    let mut child = command.spawn().context("start this program again")?;
    // It holds a copy of the writing end, which would keep the pipe open.
    drop(command);
    let mut word = [0];
    if File::from(told).read(&mut word)? == 1 {
        return Ok(ExitCode::SUCCESS);
    }
    // It has said why.
    let code = child.wait()?.code().unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// The one behind, which has the pipe to the command in the place of the standard input.
pub struct Behind {
    tell: OwnedFd,
}

impl Behind {
    /// Takes the place of the command that started this one.
    pub fn new() -> anyhow::Result<Self> {
        let tell = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), AT_LEAST)?;
        let command = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        let input = PidFd::open(command).and_then(|command| command.get_fd(0));
        let input = match input {
            Ok(input) => input,
            // It has none.
            Err(_) => nothing()?,
        };
        rustix::stdio::dup2_stdin(&input)?;
        Ok(Self { tell })
    }

    /// The processes run: lets the command end, and whoever reads its output.
    pub fn done(self) -> anyhow::Result<()> {
        File::from(self.tell).write_all(&[1])?;
        // Signals to the command's group or from its terminal are not meant for this one. The processes were born before and
        // stay where they are.
        rustix::process::setsid()?;
        let nothing = nothing()?;
        rustix::stdio::dup2_stdin(&nothing)?;
        rustix::stdio::dup2_stdout(&nothing)?;
        let errors = rustix::fs::fstat(std::io::stderr())?;
        // Errors still go to a terminal or a file; who reads a pipe waits for its end.
        if FileType::from_raw_mode(errors.st_mode) == FileType::Fifo {
            rustix::stdio::dup2_stderr(&nothing)?;
        }
        Ok(())
    }
}

fn nothing() -> anyhow::Result<OwnedFd> {
    Ok(rustix::fs::open(
        "/dev/null",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}
