//! Reading a kernel state, in the stop: from outside what can be, the rest by each thread itself.

use crate::blocker::Blocker;
use crate::kernel_state::ask::{
    Answer, Question, ThreadAnswers, ThreadQuestions, ask_one, ask_together, fit_at_once,
};
use crate::kernel_state::credentials::{self, Credentials};
use crate::kernel_state::error::KernelStateError;
use crate::kernel_state::switches::{self, ProcessSwitches};
use crate::kernel_state::thread_addresses::{self, RobustFutexes};
use crate::kernel_state::timers::{self, IntervalTimer, PosixTimer};
use crate::kernel_state::{
    AlternateStack, KernelState, MemoryPolicy, PendingSignal, StateSince2, ThreadKernelState,
    blockers, clocks, group_stop, locked_memory, memory_policy, namespaces, processor,
    registrations, scheduling, semaphores, shared_space, signals, tracing,
};
use crate::proc_files::{self, Status};
use crate::remote_error::RemoteCallError;
use crate::rings::{self, RingsOfThreads};
use crate::seizing::is_gone;
use crate::stop::StoppedProcess;
use crate::tracees::Tracees;
use nix::libc;
use pagetide_kernel::proc_file;
use pagetide_kernel::ptrace::{self, RseqConfiguration, SignalInfo, SignalQueue, ThreadId};
use pagetide_kernel::robust_list::robust_list;
use pagetide_kernel::scheduling::SchedulingAttributes;
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

const PR_GET_PDEATHSIG: u64 = 2;
/// One entry of a local descriptor table.
const LDT_ENTRY_BYTES: usize = 8;

/// What only the thread of ours that traces can read of a thread.
struct Traced {
    thread: ThreadId,
    pending: Vec<SignalInfo>,
    /// `None`: the kernel cannot tell.
    rseq: Option<Option<RseqConfiguration>>,
    has_io_ports: bool,
}

impl KernelState {
    /// Reads it, and names what of it a restore could not bring back. What cannot be known is named, too. What
    /// [`Self::outside_blockers`] names is not looked for again.
    ///
    /// Workers of io_uring inside the process are no threads of it here.
    pub fn read(stopped: &mut StoppedProcess) -> Result<(Self, Vec<Blocker>), KernelStateError> {
        let (state, blockers, _) = Self::read_with_rings(stopped)?;
        Ok((state, blockers))
    }

    /// The same, and what [`StoppedProcess::rings_of_threads`] tells: all of it is asked of the threads at once.
    pub fn read_with_rings(
        stopped: &mut StoppedProcess,
    ) -> Result<(Self, Vec<Blocker>, RingsOfThreads), KernelStateError> {
        Reading::of(stopped)
    }

    /// What could not be brought back of the things for which a process need not be stopped, because it takes as long
    /// as there are other processes or mappings: processes it traces, queues of asynchronous I/O, processes outside of `members` that
    /// have its memory.
    ///
    /// Needs ptrace access (read).
    pub fn outside_blockers(pid: i32, members: &[i32]) -> Result<Vec<Blocker>, KernelStateError> {
        let threads = proc_files::threads(pid).map_err(|source| {
            let path = PathBuf::from(format!("/proc/{pid}/task"));
            KernelStateError::Proc { path, source }
        })?;
        let mut blockers: Vec<Blocker> = blockers::asynchronous_io(pid)?.into_iter().collect();
        blockers.extend(tracing::blockers(pid, &threads));
        blockers.extend(shared_space::blockers(pid, members));
        blockers.extend(semaphores::undo_blockers(pid, &threads, members));
        Ok(blockers)
    }
}

struct Reading {
    pid: i32,
    blockers: Vec<Blocker>,
    rings: RingsOfThreads,
    default_scheduling: Option<SchedulingAttributes>,
}

/// What the whole process has to be asked, by its first thread.
#[derive(Default)]
struct AskedOfProcess {
    signal_actions: Vec<signals::SignalAction>,
    interval_timers: [IntervalTimer; 3],
    has_ldt: bool,
    registrations: registrations::Registrations,
}

impl Reading {
    fn of(
        stopped: &mut StoppedProcess,
    ) -> Result<(KernelState, Vec<Blocker>, RingsOfThreads), KernelStateError> {
        let pid = stopped.identity().pid;
        let mut reading = Self {
            pid,
            blockers: Vec::new(),
            rings: RingsOfThreads::default(),
            default_scheduling: scheduling::default_attributes(),
        };
        let (shared, traced) = stopped
            .tracer()
            .run(read_traced)
            .map_err(|(what, thread, source)| reading.failed(what, thread)(source))?;
        let numbers: Vec<ThreadId> = traced.iter().map(|traced| traced.thread).collect();
        let first_status = reading.status(ThreadId::new(pid))?;
        let mut process = ProcessParts {
            switches: reading.switches(&first_status)?,
            posix_timers: reading.posix_timers(&numbers)?,
            status: first_status,
            asked: AskedOfProcess::default(),
        };
        let mut threads = Vec::with_capacity(traced.len());
        for traced in traced {
            threads.push(reading.outside_of(traced)?);
        }
        reading.ask_all(stopped, &mut threads, &mut process)?;
        let since_2 = reading.since_2(stopped, process.asked.registrations)?;
        // Time goes by for timers. The signal of one that has gone off before it was asked must not be missing.
        let (late_shared, mut late) = stopped
            .tracer()
            .run(read_pending)
            .map_err(|(what, thread, source)| reading.failed(what, thread)(source))?;
        let shared = signals::pending(shared, &process.status, "ShdPnd");
        let late_shared = signals::still_pending(late_shared, &shared);
        process.gone_off(&shared, &late_shared);
        for (state, _) in &mut threads {
            let Some(late) = late.remove(&state.thread) else {
                continue;
            };
            let late = signals::still_pending(late, &state.pending_signals);
            let early = std::mem::replace(&mut state.pending_signals, late);
            timers::gone_off(&mut process.posix_timers, &early, &state.pending_signals);
        }
        let threads = threads.into_iter().map(|(state, _)| state).collect();
        if process.asked.has_ldt {
            reading.blockers.push(blockers::local_descriptor_table(pid));
        }
        reading
            .blockers
            .extend(namespaces::blockers(pid, &numbers)?);
        let first = ThreadId::new(pid);
        let limits = reading.file(&first, "limits")?;
        let state = KernelState {
            pid,
            signal_actions: process.asked.signal_actions,
            pending_signals: late_shared,
            group_stop: stopped.group_stop().unwrap_or(0),
            interval_timers: process.asked.interval_timers,
            posix_timers: process.posix_timers,
            limits: switches::parse_limits(&String::from_utf8_lossy(&limits)),
            switches: process.switches,
            cgroups: String::from_utf8_lossy(&reading.file(&first, "cgroup")?).into_owned(),
            threads,
            since_2,
        };
        Ok((state, reading.blockers, reading.rings))
    }

    /// What the first version of the format did not have.
    fn since_2(
        &self,
        stopped: &mut StoppedProcess,
        registrations: registrations::Registrations,
    ) -> Result<StateSince2, KernelStateError> {
        let pid = self.pid;
        let future_locks = match locked_memory::ask(stopped) {
            // A thread that cannot be asked is named already.
            Err(RemoteCallError::Gone { pid }) => return Err(KernelStateError::Gone { pid }),
            told => told.unwrap_or(0),
        };
        let group_stop = stopped.group_stop();
        let group_stop = group_stop.map(|signal| group_stop::read(pid, signal));
        Ok(StateSince2 {
            group_stop: group_stop.transpose()?,
            registrations,
            future_locks,
            clocks: clocks::read(pid),
        })
    }

    fn failed(
        &self,
        what: &'static str,
        thread: ThreadId,
    ) -> impl FnOnce(io::Error) -> KernelStateError + use<> {
        let pid = self.pid;
        move |source| {
            if is_gone(&source) {
                KernelStateError::Gone { pid }
            } else {
                KernelStateError::Kernel {
                    what,
                    thread,
                    source,
                }
            }
        }
    }

    fn file(&self, thread: &ThreadId, name: &str) -> Result<Vec<u8>, KernelStateError> {
        let pid = self.pid;
        let path = PathBuf::from(format!("/proc/{pid}/task/{thread}/{name}"));
        proc_file::read(&path).map_err(|source| self.proc_failed(path, source))
    }

    fn proc_failed(&self, path: PathBuf, source: io::Error) -> KernelStateError {
        if is_gone(&source) {
            KernelStateError::Gone { pid: self.pid }
        } else {
            KernelStateError::Proc { path, source }
        }
    }

    fn status(&self, thread: ThreadId) -> Result<Status, KernelStateError> {
        let pid = self.pid;
        Status::of_thread(pid, thread).map_err(|source| {
            let path = PathBuf::from(format!("/proc/{pid}/task/{thread}/status"));
            self.proc_failed(path, source)
        })
    }

    /// A file with one number; `None` if the kernel has no such file.
    fn number_in(
        &self,
        file: &str,
        parse: impl FnOnce(&str) -> Option<i64>,
    ) -> Result<Option<i64>, KernelStateError> {
        let path = PathBuf::from(format!("/proc/{}/{file}", self.pid));
        match proc_file::read_text(&path) {
            Ok(text) => parse(text.trim()).map(Some).ok_or_else(|| {
                let source = io::ErrorKind::InvalidData.into();
                KernelStateError::Proc { path, source }
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.proc_failed(path, source)),
        }
    }

    /// What can be read of them from outside.
    fn switches(&self, status: &Status) -> Result<ProcessSwitches, KernelStateError> {
        let umask = status.value("Umask").unwrap_or("");
        let score = self.number_in("oom_score_adj", |text| text.parse().ok())?;
        let hexadecimal = |text: &str| i64::from_str_radix(text, 16).ok();
        // Absent on a kernel without core dumps.
        let filter = self.number_in("coredump_filter", hexadecimal)?;
        Ok(ProcessSwitches {
            umask: u32::from_str_radix(umask, 8).unwrap_or(0o022),
            oom_score_adj: score.and_then(|score| score.try_into().ok()).unwrap_or(0),
            coredump_filter: filter.and_then(|bits| bits.try_into().ok()).unwrap_or(0),
            autogroup_nice: switches::autogroup(self.pid).map(|(_, nice)| nice),
            ..ProcessSwitches::default()
        })
    }

    /// The timers without their times. Those that cannot be made again are left out.
    fn posix_timers(&mut self, threads: &[ThreadId]) -> Result<Vec<PosixTimer>, KernelStateError> {
        let pid = self.pid;
        let path = PathBuf::from(format!("/proc/{pid}/timers"));
        let text = match proc_file::read_text(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let thread = ThreadId::new(pid);
                self.blockers.push(blockers::untold(pid, thread, "timers"));
                return Ok(Vec::new());
            }
            Err(source) => return Err(self.proc_failed(path, source)),
        };
        let mut threads: Vec<i32> = threads.iter().map(|thread| thread.get()).collect();
        threads.sort_unstable();
        let mut timers = timers::parse(&text);
        timers.retain_mut(|timer| match timers::settle(timer, pid, &threads) {
            Ok(()) => true,
            Err(counts) => {
                self.blockers.push(blockers::timer(pid, timer.id, &counts));
                false
            }
        });
        Ok(timers)
    }

    fn outside_of(
        &mut self,
        traced: Traced,
    ) -> Result<(ThreadKernelState, Status), KernelStateError> {
        let (pid, thread) = (self.pid, traced.thread);
        let status = self.status(thread)?;
        self.blockers
            .extend(blockers::of_status(pid, thread, &status));
        if traced.has_io_ports {
            self.blockers.push(blockers::io_ports(pid, thread));
        }
        if traced.rseq.is_none() {
            self.blockers.push(blockers::untold_rseq(pid, thread));
        }
        let mut name = self.file(&thread, "comm")?;
        name.pop_if(|last| *last == b'\n');
        let robust_list = robust_list(thread).map_err(self.failed("robust list", thread))?;
        let state = ThreadKernelState {
            thread: thread.get(),
            name,
            alternate_stack: AlternateStack::default(),
            robust_list: RobustFutexes::from(robust_list),
            tid_address: 0,
            rseq: traced.rseq.flatten().map(Into::into),
            scheduling: scheduling::read(thread, self.default_scheduling.as_ref())?,
            memory_policy: MemoryPolicy::default(),
            processor: processor::answered(&status, [None; 3]),
            personality: self.personality(thread)?,
            credentials: Credentials::from_status(&status),
            no_new_privs: status.number("NoNewPrivs") != 0,
            parent_death_signal: 0,
            pending_signals: signals::pending(traced.pending, &status, "SigPnd"),
        };
        Ok((state, status))
    }

    fn personality(&self, thread: ThreadId) -> Result<u32, KernelStateError> {
        let text = self.file(&thread, "personality")?;
        let text = String::from_utf8_lossy(&text);
        u32::from_str_radix(text.trim(), 16).map_err(|error| KernelStateError::Kernel {
            what: "personality",
            thread,
            source: io::Error::new(io::ErrorKind::InvalidData, error),
        })
    }

    /// What each thread itself has to ask, and the first one for the process.
    fn ask_all(
        &mut self,
        stopped: &mut StoppedProcess,
        threads: &mut [(ThreadKernelState, Status)],
        process: &mut ProcessParts,
    ) -> Result<(), KernelStateError> {
        let of_thread = thread_questions();
        let mut asked = ThreadQuestions::with_capacity(threads.len());
        let mut answered = Vec::with_capacity(threads.len());
        // Who is to be asked for rings alone.
        let mut users = Vec::new();
        for (state, status) in threads.iter() {
            let thread = ThreadId::new(state.thread);
            let mut questions = of_thread.clone();
            if state.thread == self.pid {
                questions.extend(process.questions());
            }
            // Seccomp has to be asked of each call.
            if status.number("Seccomp") != 0 || !fit_at_once(&questions) {
                answered.push((thread, ask_one(stopped, thread, &questions)));
                users.push(thread);
            } else {
                questions.push(Question::outcome(rings::first_question()));
                asked.insert(thread, questions);
            }
        }
        if !asked.is_empty() {
            let asked = Arc::new(asked);
            match ask_together(stopped, &asked) {
                Ok(answers) => {
                    let rest =
                        |(thread, told)| (thread, Self::without_ring(thread, told, &mut users));
                    answered.extend(answers.into_iter().map(rest));
                }
                Err(error) => {
                    users.extend(asked.keys().copied());
                    self.known::<()>(Err(error), ThreadId::new(self.pid))?;
                }
            }
        }
        stopped.ask_users(users, &mut self.rings);
        let mut answered: HashMap<_, _> = answered.into_iter().collect();
        for (state, status) in threads {
            let thread = ThreadId::new(state.thread);
            let Some(answers) = answered.remove(&thread) else {
                continue;
            };
            let mut answers = self.known(answers, thread)?;
            let of_process = answers.split_off(of_thread.len().min(answers.len()));
            self.answered(state, status, &answers);
            if state.thread == self.pid {
                process.answered(&of_process);
            }
        }
        Ok(())
    }

    /// What a thread told, without the answer to the question about rings, which came last.
    fn without_ring(
        thread: ThreadId,
        mut told: ThreadAnswers,
        users: &mut Vec<ThreadId>,
    ) -> ThreadAnswers {
        match told.as_mut().map(Vec::pop) {
            Ok(Some(Some(answer))) if !rings::may_have_used(answer.result) => {}
            // Nor is anything known of one that could not be asked for all at once.
            _ => users.push(thread),
        }
        told
    }

    /// A thread that cannot be asked is no failure, but keeps its process from being restored.
    fn known<T: Default>(
        &mut self,
        asked: Result<T, RemoteCallError>,
        thread: ThreadId,
    ) -> Result<T, KernelStateError> {
        match asked {
            Ok(answers) => Ok(answers),
            Err(RemoteCallError::Gone { pid }) => Err(KernelStateError::Gone { pid }),
            Err(error) => {
                let blocker = blockers::unknown(self.pid, thread, &error);
                self.blockers.push(blocker);
                Ok(T::default())
            }
        }
    }

    fn answered(
        &mut self,
        state: &mut ThreadKernelState,
        status: &Status,
        answers: &[Option<Answer>],
    ) {
        if !answers.is_empty() && !thread_answered(state, status, answers) {
            let thread = ThreadId::new(state.thread);
            let blocker = blockers::untold(self.pid, thread, "tid address");
            self.blockers.push(blocker);
        }
    }
}

fn thread_questions() -> Vec<Question> {
    let mut questions = vec![
        thread_addresses::stack_question(),
        thread_addresses::tid_address_question(),
        Question::bytes(libc::SYS_prctl, [PR_GET_PDEATHSIG, 0, 0, 0, 0, 0], 1, 4),
        credentials::securebits_question(),
        scheduling::slack_question(),
        memory_policy::question(),
    ];
    questions.extend(processor::questions());
    questions
}

/// False if the kernel did not tell the tid address.
fn thread_answered(
    state: &mut ThreadKernelState,
    status: &Status,
    answers: &[Option<Answer>],
) -> bool {
    let answer = |index: usize| answers.get(index).and_then(Option::as_ref);
    let number = |index| answer(index).map_or(0, |answer| answer.result);
    if let Some(stack) = answer(0) {
        state.alternate_stack = thread_addresses::stack_answered(stack);
    }
    state.tid_address = answer(1).map_or(0, |answer| answer.word(0));
    state.parent_death_signal = answer(2).map_or(0, |answer| answer.half(0).cast_signed());
    state.credentials.securebits = u32::try_from(number(3)).unwrap_or(0);
    state.scheduling.timer_slack_ns = number(4);
    if let Some(policy) = answer(5) {
        state.memory_policy = memory_policy::answered(policy);
    }
    state.processor = processor::answered(status, [answer(6), answer(7), answer(8)]);
    answer(1).is_some()
}

/// What belongs to the whole process, as far as it is known before its first thread is asked.
struct ProcessParts {
    status: Status,
    switches: ProcessSwitches,
    posix_timers: Vec<PosixTimer>,
    asked: AskedOfProcess,
}

impl ProcessParts {
    /// In the order in which [`Self::answered`] expects the answers.
    fn questions(&self) -> Vec<Question> {
        let mut questions = switches::questions().to_vec();
        let args = [0, 0, 8, 0, 0, 0];
        questions.push(Question::bytes(
            libc::SYS_modify_ldt,
            args,
            1,
            LDT_ENTRY_BYTES,
        ));
        questions.extend((0..3).map(timers::interval_question));
        let signals = signals::signals_to_ask(&self.status);
        questions.extend(signals.into_iter().map(signals::action_question));
        questions.extend(self.posix_timers.iter().flat_map(timers::posix_questions));
        questions.extend(registrations::questions());
        questions
    }

    fn answered(&mut self, answers: &[Option<Answer>]) {
        let mut answers = answers.iter().map(Option::as_ref);
        let mut next = || answers.next().flatten();
        let of_switches = [next(), next(), next(), next(), next()];
        switches::answered(&mut self.switches, of_switches);
        self.asked.has_ldt = next().is_some_and(|answer| answer.result > 0);
        for timer in &mut self.asked.interval_timers {
            *timer = next().map(timers::interval_answered).unwrap_or_default();
        }
        for signal in signals::signals_to_ask(&self.status) {
            let action = next().map(|answer| signals::action_answered(signal, answer));
            self.asked.signal_actions.extend(action);
        }
        for timer in &mut self.posix_timers {
            let (time, overrun) = (next(), next());
            timers::posix_answered(timer, time, overrun);
        }
        self.asked.registrations = registrations::answered([next(), next()]);
    }

    /// Notes which timers went off while they were asked, by the signals that wait for the process since.
    fn gone_off(&mut self, early: &[PendingSignal], late: &[PendingSignal]) {
        timers::gone_off(&mut self.posix_timers, early, late);
        timers::interval_gone_off(&mut self.asked.interval_timers, early, late);
    }
}

type TracedFailure = (&'static str, ThreadId, io::Error);

/// The queue of the process, and each thread.
fn read_traced(tracees: &mut Tracees) -> Result<(Vec<SignalInfo>, Vec<Traced>), TracedFailure> {
    let mut all = Vec::new();
    let mut shared = None;
    for thread in tracees.stopped() {
        let failed = |what| move |error| (what, thread, error);
        let registers = ptrace::registers(thread).map_err(failed("registers"))?;
        // Workers of the kernel inside the process (io_uring) have no user registers.
        if registers.is_none_or(|registers| registers.rip == 0) {
            continue;
        }
        if shared.is_none() {
            let queue = ptrace::pending_signals(thread, SignalQueue::OfProcess);
            shared = Some(queue.map_err(failed("pending signals"))?);
        }
        let rseq = match ptrace::rseq_configuration(thread) {
            Ok(rseq) => Some(rseq),
            Err(error) if is_gone(&error) => return Err(failed("registers")(error)),
            Err(_) => None,
        };
        all.push(Traced {
            thread,
            pending: ptrace::pending_signals(thread, SignalQueue::OfThread)
                .map_err(failed("pending signals"))?,
            rseq,
            // An error: the kernel was built without.
            has_io_ports: ptrace::may_use_io_ports(thread).unwrap_or(false),
        });
    }
    Ok((shared.unwrap_or_default(), all))
}

type Queues = (Vec<SignalInfo>, HashMap<i32, Vec<SignalInfo>>);

/// The signals that wait, for the process and for each thread.
fn read_pending(tracees: &mut Tracees) -> Result<Queues, TracedFailure> {
    let mut queues = HashMap::new();
    let mut shared = None;
    for thread in tracees.stopped() {
        let failed = |error| ("pending signals", thread, error);
        let queue = |of| ptrace::pending_signals(thread, of).map_err(failed);
        if shared.is_none() {
            shared = Some(queue(SignalQueue::OfProcess)?);
        }
        queues.insert(thread.get(), queue(SignalQueue::OfThread)?);
    }
    Ok((shared.unwrap_or_default(), queues))
}
