//! Waits that end at a time: what has passed of one when a stop interrupts it counts.
//!
//! An interrupted call is entered again by the kernel with the arguments it had, so one with a relative timeout would
//! begin it anew at each stop, and under a schedule that is quicker than the timeout never end. (Some calls the kernel
//! continues with what is left, by restart_syscall(2); but what is left cannot be asked for, so it would be missing in a
//! snapshot.) Here such a call is entered again with what is left of its time, in the register that has the time,
//! or in memory below the thread's stack that this register is made to point to.
//!
//! Three things must be known, or the wait is left as it is:
//!
//! - *How long it has been under way.* That is looked up before the stop: which call the thread sleeps in, and since when
//!   (`asleep`). It is the same call still if the thread was asleep right before it was interrupted and
//!   has had no other switch since it was looked at than the one into the stop. When unsure: a new call. A wait never ends early.
//! - *That nobody looks at the register afterwards* (`unread`). So what the program sees is a call that took the time it
//!   was to take, and nothing needs to be put back: not by this program, nor by the next run, which finds a call with
//!   a shorter timeout like any other; and a snapshot of the thread holds a wait with what was left of it.
//! - *For a time in memory: that the stack has memory that belongs to nobody*, as remote calls need it (`self_healing`). The kernel
//!   reads it when the call is entered, before the program runs.
//!
//! What is left is written in the stop, for the snapshot, and again when the thread goes, so that the stop counts, too.
//! (Where the kernel has written what was left over the time, only the latter is done, and there.) A wait that is due is
//! entered with no time left: then the kernel tells what it tells at the end of one.
//!
//! Timeouts of sockets (SO_RCVTIMEO, SO_SNDTIMEO) are in no register: see `socket`.

mod asleep;
mod calls;
mod socket;
mod unread;

use crate::landing::StackMapping;
use crate::proc_files::{self, Stat};
use crate::restart::{self, ERESTARTNOHAND};
use crate::self_healing::{RED_ZONE, ROOM, own_stack};
use asleep::{Clocks, Scheduled};
use calls::{Form, Limit, RING_ARGUMENT_BYTES, RING_TIME, arguments};
use pagetide_kernel::proc_file;
use pagetide_kernel::ptrace::{self, Registers, ThreadId};
use socket::SocketWait;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where in the room below the red zone the argument of an io_uring is; the time stands before it.
const RING_ARGUMENT_AT: u64 = 16;
/// Where in them the note of a socket is.
const NOTE_AT: u64 = 64;

/// Between the last look at a sleeping thread and its interruption; if it takes longer, the thread may have been back.
const LOOK_MAX: Duration = Duration::from_micros(50);

/// A call that a thread sleeps in.
#[derive(Debug)]
struct Wait {
    /// What `/proc/PID/task/TID/syscall` says of it.
    said: Vec<u8>,
    call: i64,
    arguments: [u64; 6],
    rsp: u64,
    rip: u64,
    switches: u64,
    ends: Ends,
    last_look: Look,
    /// The registers that the stop gave the thread.
    entered: Option<Registers>,
}

/// By what the wait ends.
#[derive(Debug)]
enum Ends {
    /// By an argument, at this time. True if the register with it may be changed.
    Argument(Limit, Instant, bool),
    /// By an option of the socket.
    Socket(SocketWait),
}

/// The last look at the thread before it is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    NotYet,
    Asleep(Instant),
    Sure,
    Unsure,
}

/// The waits of a process, looked up before a stop.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    pid: i32,
    memory: Option<Arc<File>>,
    stacks: Arc<[StackMapping]>,
    list: HashMap<ThreadId, Wait>,
}

/// The words of `/proc/PID/task/TID/syscall`: the call, its arguments, the stack pointer, the instruction pointer.
fn words(said: &[u8]) -> Option<(i64, [u64; 6], u64, u64)> {
    let text = std::str::from_utf8(said).ok()?;
    let mut words = text.split_whitespace();
    // "running" outside of calls; -1 in the kernel for another reason.
    let call = words.next()?.parse().ok().filter(|call: &i64| *call >= 0)?;
    let mut number = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    let mut arguments = [0; 6];
    for argument in &mut arguments {
        *argument = number()?;
    }
    let (rsp, rip) = (number()?, number()?);
    // Workers of the kernel inside the process (io_uring) have no registers of their own.
    (rip != 0).then_some((call, arguments, rsp, rip))
}

fn said_of(pid: i32, thread: ThreadId) -> Option<Vec<u8>> {
    proc_file::read(format!("/proc/{pid}/task/{thread}/syscall")).ok()
}

/// Memory below the red zone for a thread with this stack pointer.
fn room_below(rsp: u64) -> u64 {
    rsp.wrapping_sub(RED_ZONE + ROOM) & !63
}

impl Waits {
    /// Looks at the threads while the process runs. To be called by the thread that will trace it.
    pub(crate) fn survey(pid: i32, memory: Option<Arc<File>>, stacks: Arc<[StackMapping]>) -> Self {
        let mut waits = Self {
            pid,
            memory,
            stacks,
            list: HashMap::new(),
        };
        let Some(mut clocks) = Clocks::new() else {
            return waits;
        };
        // One that has ended meanwhile has none.
        for thread in proc_files::threads(pid).unwrap_or_default() {
            if let Some(wait) = waits.look(thread, &mut clocks) {
                waits.list.insert(thread, wait);
            }
        }
        waits
    }

    fn look(&self, thread: ThreadId, clocks: &mut Clocks) -> Option<Wait> {
        let said = said_of(self.pid, thread)?;
        let (call, arguments, rsp, rip) = words(&said)?;
        let limit = Limit::of(call, &arguments);
        if limit.is_none() && !socket::may_wait(call) {
            return None;
        }
        // One that a signal has stopped is said to be in its call, but does not wait.
        if Stat::of_thread(self.pid, thread).ok()?.state() != 'S' {
            return None;
        }
        let scheduled = Scheduled::of(self.pid, thread)?;
        let ends = match limit {
            Some(limit) => {
                let memory = self.memory.as_deref()?;
                let time = limit.time(&arguments, Some(memory))?;
                let may_change = unread::is_unread(memory, rip, limit.argument.index());
                if !may_change && !limit.writes_rest {
                    return None;
                }
                let since = clocks.asleep_since(self.pid, thread, scheduled)?;
                Ends::Argument(limit, since.checked_add(time)?, may_change)
            }
            None => {
                let mut socket = SocketWait::of(self.pid, call, &arguments)?;
                if let Some(memory) = self.memory.as_deref() {
                    let note = room_below(rsp) + NOTE_AT;
                    socket.recall(memory, note, thread, &said, scheduled.switches);
                }
                socket.asleep_since(clocks.asleep_since(self.pid, thread, scheduled)?)?;
                Ends::Socket(socket)
            }
        };
        Some(Wait {
            said,
            call,
            arguments,
            rsp,
            rip,
            switches: scheduled.switches,
            ends,
            last_look: Look::NotYet,
            entered: None,
        })
    }

    /// Right before a thread is interrupted.
    pub(crate) fn before_interruption(&mut self, thread: ThreadId) {
        let pid = self.pid;
        if let Some(wait) = self.list.get_mut(&thread) {
            let now = Instant::now();
            let same = said_of(pid, thread).is_some_and(|said| said == wait.said);
            wait.last_look = if same {
                Look::Asleep(now)
            } else {
                Look::Unsure
            };
        }
    }

    /// Right after.
    pub(crate) fn after_interruption(&mut self, thread: ThreadId) {
        if let Some(wait) = self.list.get_mut(&thread) {
            wait.last_look = match wait.last_look {
                Look::Asleep(since) if since.elapsed() <= LOOK_MAX => Look::Sure,
                _ => Look::Unsure,
            };
        }
    }

    /// The registers with which a stopped thread goes on waiting for what is left; `None` if it is in no wait that is known.
    pub(crate) fn go_on(&mut self, thread: ThreadId, registers: &Registers) -> Option<Registers> {
        let mut wait = self.list.remove(&thread)?;
        let error = restart::pending_error(registers)?;
        let (pid, memory) = (self.pid, self.memory.clone()?);
        if wait.last_look != Look::Sure || !wait.is_in(registers) {
            return None;
        }
        let switches = Scheduled::of(pid, thread)?.switches;
        if switches != wait.switches + 1 {
            return None;
        }
        let entered = match &wait.ends {
            Ends::Argument(limit, ..) if limit.has_written_rest(error) => *registers,
            Ends::Argument(limit, end, true) if limit.is_interrupted(error) => {
                self.with_rest(registers, *limit, *end, &memory)?
            }
            Ends::Socket(_) if error == restart::EINTR => again(registers),
            _ => return None,
        };
        wait.entered = Some(entered);
        self.list.insert(thread, wait);
        Some(entered)
    }

    /// The registers with what is left until `end`.
    fn with_rest(
        &self,
        registers: &Registers,
        limit: Limit,
        end: Instant,
        memory: &File,
    ) -> Option<Registers> {
        let left = end.saturating_duration_since(Instant::now());
        if limit.form == Form::Milliseconds {
            let left = Limit::milliseconds(left);
            return Some(again(&limit.argument.set(registers, left)));
        }
        let room = self.room(registers)?;
        memory.write_all_at(&limit.words(left), room).ok()?;
        let mut place = room;
        if limit.form == Form::RingArgument {
            place = room + RING_ARGUMENT_AT;
            let given = arguments(registers)[limit.argument.index()];
            let mut argument: [u8; RING_ARGUMENT_BYTES] = calls::bytes(memory, given)?;
            argument[RING_TIME].copy_from_slice(&room.to_le_bytes());
            memory.write_all_at(&argument, place).ok()?;
        }
        Some(again(&limit.argument.set(registers, place)))
    }

    /// Memory of the thread's own that belongs to nobody.
    fn room(&self, registers: &Registers) -> Option<u64> {
        let stack = own_stack(registers, &self.stacks)?;
        Some(room_below(registers.rsp)).filter(|room| (stack.start..registers.rsp).contains(room))
    }

    /// The thread has been set back to another time.
    pub(crate) fn forget(&mut self, thread: ThreadId) {
        self.list.remove(&thread);
    }

    /// The wait that the stop gave a thread, if its registers are still those.
    fn take(&mut self, thread: ThreadId, registers: &Registers) -> Option<Wait> {
        let wait = self.list.remove(&thread)?;
        // In doubt it is somebody else's.
        (wait.entered == Some(*registers)).then_some(wait)
    }

    /// What is needed to lead a thread into its call, if a socket limits it.
    pub(crate) fn goes_ahead(&mut self, thread: ThreadId) -> Option<Ahead> {
        let wait = self.list.get(&thread)?;
        if !matches!(wait.ends, Ends::Socket(_)) {
            return None;
        }
        let registers = ptrace::registers(thread).ok()??;
        let wait = self.take(thread, &registers)?;
        match wait.ends {
            Ends::Socket(socket) => Some(Ahead {
                note: self.room(&registers)? + NOTE_AT,
                pid: self.pid,
                thread,
                said: wait.said,
                memory: self.memory.clone()?,
                socket,
            }),
            Ends::Argument(..) => None,
        }
    }

    /// The last thing before a stopped thread goes: its time went on meanwhile.
    pub(crate) fn before_it_goes(&mut self, thread: ThreadId) {
        if self.list.contains_key(&thread)
            && let Ok(Some(registers)) = ptrace::registers(thread)
            && let Some(wait) = self.take(thread, &registers)
            && let Ends::Argument(limit, end, _) = wait.ends
            && let Some(memory) = self.memory.clone()
        {
            if limit.has_written_rest(restart::pending_error(&registers).unwrap_or(0)) {
                // There it stands as of the interruption, and the kernel could write there.
                let left = end.saturating_duration_since(Instant::now());
                let place = arguments(&registers)[limit.argument.index()];
                memory.write_all_at(&limit.words(left), place).ok();
            } else if let Some(changed) = self.with_rest(&registers, limit, end, &memory)
                && changed != registers
            {
                // One that was killed just now needs none.
                ptrace::set_registers(thread, &changed).ok();
            }
        }
    }
}

/// A thread that is to go into its call ahead of the others.
#[derive(Debug)]
pub(crate) struct Ahead {
    pid: i32,
    thread: ThreadId,
    said: Vec<u8>,
    memory: Arc<File>,
    /// Where the note of it belongs.
    note: u64,
    pub(crate) socket: SocketWait,
}

impl Ahead {
    pub(crate) fn thread(&self) -> ThreadId {
        self.thread
    }

    /// True if the thread sleeps in the call, or is stopped in it.
    pub(crate) fn is_in_call(&self) -> bool {
        said_of(self.pid, self.thread).is_some_and(|said| said == self.said)
    }

    /// Leaves a note of what has passed before the sleep that is under way.
    pub(crate) fn take_note(&self) {
        if let Some(scheduled) = Scheduled::of(self.pid, self.thread) {
            let switches = scheduled.switches;
            self.socket
                .take_note(&self.memory, self.note, self.thread, &self.said, switches);
        }
    }
}

impl Wait {
    /// True if these are registers of a thread that was interrupted in this call.
    fn is_in(&self, registers: &Registers) -> bool {
        registers.orig_rax.cast_signed() == self.call
            && arguments(registers) == self.arguments
            && registers.rsp == self.rsp
            && registers.rip == self.rip
    }
}

/// Registers with which the kernel enters a call again, unless a handler runs.
fn again(registers: &Registers) -> Registers {
    Registers {
        rax: (-ERESTARTNOHAND).cast_unsigned(),
        ..*registers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_a_sleeping_thread_is_read() {
        let said = b"232 0x3 0x7f00 0x1 0x7530 0x0 0x9 0x7ff0 0x401000\n";
        let read = words(said).expect("a call");
        assert_eq!(read, (232, [3, 0x7f00, 1, 0x7530, 0, 9], 0x7ff0, 0x40_1000));
        for none in [
            &b"running\n"[..],
            b"-1 0x7ff0 0x401000\n",
            b"232 0x3\n",
            b"",
        ] {
            assert_eq!(words(none), None);
        }
    }

    #[test]
    fn the_room_lies_below_the_red_zone() {
        for rsp in [0x7000_0000_u64, 0x7000_0008, 0x7000_003f] {
            let room = room_below(rsp);
            assert!(room + ROOM <= rsp - RED_ZONE, "{rsp:#x}");
            assert_eq!(room % 64, 0);
        }
    }
}
