//! The same system calls run by many threads of the stopped target at the same time. That takes little longer than by one:
//! most of the time of a call goes by while its thread is put on a processor and taken off again.

use crate::remote_error::RemoteCallError;
use crate::session::call::{LOOK_AFTER, Patience, Step, UnderWay, given_up};
use crate::session::{Ending, INTERRUPT_TIMEOUT, Session};
use crate::stop::StoppedProcess;
use crate::syscall_names::SystemCall;
use crate::system_calls::checked;
use crate::tracees::{SessionReport, Tracees};
use pagetide_kernel::ptrace::{self, ThreadId, WaitReport};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// How long all of them together may take before they are ended one by one.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Numbers and arguments of calls.
pub(crate) type Calls = Vec<(i64, [u64; 6])>;

/// What the calls of one thread gave: their results, or what the kernel said instead, and what they wrote.
pub(crate) type Answers = (Vec<Result<u64, Errno>>, Vec<u8>);

impl StoppedProcess {
    /// Has each of the threads run the calls that `calls` gives for it and the address of as many bytes of its own as are
    /// asked for, which are put back afterwards. The results are in the order of `threads`.
    ///
    /// Not for calls that may wait or that make threads. Threads under seccomp make none, which is an error of each.
    pub(crate) fn call_in_all(
        &mut self,
        threads: Vec<(ThreadId, usize)>,
        calls: impl Fn(ThreadId, u64) -> Calls + Send + 'static,
    ) -> Result<Vec<Result<Answers, RemoteCallError>>, RemoteCallError> {
        self.must_run()?;
        let no_landing = RemoteCallError::NoLanding {
            pid: self.identity().pid,
        };
        let (Some(landing), Some(memory)) = (self.landing(), self.terrain.memory()) else {
            return Err(no_landing);
        };
        let stacks = self.terrain.stacks();
        Ok(self.tracer().run(move |tracees| {
            let prepared = threads.into_iter().map(|(thread, room_bytes)| {
                let memory = memory.clone();
                let (mut session, status) =
                    Session::prepare(tracees, Some(thread), &landing, &stacks, memory)?;
                // Its filters would have to be asked of each call.
                if !status.is_ok_and(|status| status.number("Seccomp") == 0) {
                    return Err(RemoteCallError::UnderSeccomp { thread });
                }
                let address = session.put_bytes(&vec![0; room_bytes])?;
                Ok(Caller {
                    waiting: calls(thread, address).into_iter(),
                    answers: (Vec::new(), vec![0; room_bytes]),
                    address,
                    session,
                    doing: Doing::Nothing,
                    error: None,
                })
            });
            let mut callers: Vec<Result<Caller, RemoteCallError>> = prepared.collect();
            run_all(tracees, &mut callers);
            let result = |caller: Caller| match caller.error {
                Some(error) => Err(error),
                None => Ok(caller.answers),
            };
            callers
                .into_iter()
                .map(|caller| caller.and_then(result))
                .collect()
        }))
    }
}

/// One of the threads.
struct Caller {
    session: Session,
    /// The calls that it has not begun, the next one first.
    waiting: std::vec::IntoIter<(i64, [u64; 6])>,
    answers: Answers,
    /// Where the bytes are that calls write.
    address: u64,
    doing: Doing,
    error: Option<RemoteCallError>,
}

enum Doing {
    Nothing,
    Call(UnderWay),
    Ending(Ending),
}

/// Until each has ended its session.
fn run_all(tracees: &mut Tracees, callers: &mut [Result<Caller, RemoteCallError>]) {
    let pid = tracees.pid();
    let mut going = HashMap::with_capacity(callers.len());
    // In the order in which they are likely to report.
    let mut awaited = VecDeque::with_capacity(callers.len());
    for (index, caller) in callers.iter_mut().enumerate() {
        if let Ok(caller) = caller {
            let begun = match caller.session.enter(pid) {
                Ok(()) => caller.next_call(pid),
                error => error,
            };
            caller.go_on(begun, pid);
            if caller.is_under_way() {
                going.insert(caller.session.thread, index);
                awaited.push_back(caller.session.thread);
            }
        }
    }
    let mut patience = Patience::until(Instant::now() + TIMEOUT);
    while !going.is_empty() {
        let (thread, report) = tracees.wait_in_sessions(&mut awaited, Instant::now() + LOOK_AFTER);
        let whose = thread.and_then(|thread| going.get(&thread).copied());
        match (report, whose) {
            (SessionReport::Report(report), Some(index)) => {
                let Ok(caller) = &mut callers[index] else {
                    continue;
                };
                caller.take(report, pid);
                if caller.is_under_way() {
                    awaited.push_back(caller.session.thread);
                } else {
                    going.remove(&caller.session.thread);
                }
            }
            (SessionReport::Report(_), None) => {}
            (SessionReport::Gone, _) => {
                for index in going.into_values() {
                    callers[index] = Err(RemoteCallError::Gone { pid });
                }
                return;
            }
            (SessionReport::Timeout, _) => {
                for thread in going.keys().take(1) {
                    patience.look_after(pid, *thread);
                }
                if patience.is_over() {
                    give_up(tracees, callers, going.into_values().collect());
                    return;
                }
            }
        }
    }
}

/// The time is over for these. All of them are interrupted before the first one is waited for.
fn give_up(
    tracees: &mut Tracees,
    callers: &mut [Result<Caller, RemoteCallError>],
    late: Vec<usize>,
) {
    for &index in &late {
        if let Ok(caller) = &callers[index] {
            // Gone meanwhile is seen when it is waited for.
            ptrace::interrupt(caller.session.thread).ok();
        }
    }
    let deadline = Instant::now() + INTERRUPT_TIMEOUT;
    for index in late {
        if let Ok(caller) = &mut callers[index] {
            caller.give_up(tracees, deadline);
        }
    }
}

impl Caller {
    fn is_under_way(&self) -> bool {
        !matches!(self.doing, Doing::Nothing)
    }

    /// Begins the next call, or the end.
    fn next_call(&mut self, pid: i32) -> Result<(), RemoteCallError> {
        let Some((number, args)) = self.waiting.next() else {
            let (_, bytes) = &mut self.answers;
            *bytes = self.session.read(self.address, bytes.len())?;
            return self.begin_end(pid);
        };
        let mut under_way = UnderWay::new(SystemCall(number), args);
        self.session.begin(&mut under_way, pid)?;
        self.doing = Doing::Call(under_way);
        Ok(())
    }

    fn begin_end(&mut self, pid: i32) -> Result<(), RemoteCallError> {
        let ending = self.session.begin_end(pid)?;
        self.doing = Doing::Ending(ending);
        Ok(())
    }

    fn take(&mut self, report: WaitReport, pid: i32) {
        let done = match std::mem::replace(&mut self.doing, Doing::Nothing) {
            Doing::Nothing => Ok(()),
            Doing::Call(under_way) => self.step(under_way, report, pid),
            Doing::Ending(ending) => self.step_to_end(ending, report, pid),
        };
        self.go_on(done, pid);
    }

    fn step(
        &mut self,
        mut under_way: UnderWay,
        report: WaitReport,
        pid: i32,
    ) -> Result<(), RemoteCallError> {
        match self.session.step(&mut under_way, report, pid)? {
            Step::Goes => {}
            Step::Again => self.session.begin(&mut under_way, pid)?,
            Step::Done(result) => {
                self.session.after_call(pid)?;
                let (results, _) = &mut self.answers;
                results.push(checked(result));
                return self.next_call(pid);
            }
        }
        self.doing = Doing::Call(under_way);
        Ok(())
    }

    fn step_to_end(
        &mut self,
        mut ending: Ending,
        report: WaitReport,
        pid: i32,
    ) -> Result<(), RemoteCallError> {
        self.session.step_to_end(&mut ending, report, pid)?;
        if ending.stands {
            self.session.complete_end(ending)
        } else {
            self.doing = Doing::Ending(ending);
            Ok(())
        }
    }

    /// After an error the thread is made what it was, unless that is what failed.
    fn go_on(&mut self, done: Result<(), RemoteCallError>, pid: i32) {
        let Err(error) = done else { return };
        let is_first = self.error.is_none();
        self.error.get_or_insert(error);
        if is_first && self.begin_end(pid).is_err() {
            self.doing = Doing::Nothing;
        }
    }

    /// The call was interrupted. The thread is made what it was, with nobody else meanwhile.
    fn give_up(&mut self, tracees: &mut Tracees, deadline: Instant) {
        let pid = tracees.pid();
        if let Doing::Call(mut under_way) = std::mem::replace(&mut self.doing, Doing::Nothing) {
            let mut patience = Patience::interrupted_until(deadline);
            let (thread, call) = (self.session.thread, under_way.call());
            let late = self.session.follow(tracees, &mut under_way, &mut patience);
            self.error.get_or_insert(match late {
                Err(error) => error,
                Ok(_) => given_up(pid, thread, call),
            });
            if self.begin_end(pid).is_err() {
                return;
            }
        }
        let deadline = deadline.max(Instant::now() + LOOK_AFTER);
        if let Doing::Ending(ending) = std::mem::replace(&mut self.doing, Doing::Nothing)
            && let Err(error) = self.session.end_now(tracees, ending, deadline)
        {
            self.error.get_or_insert(error);
        }
    }
}
