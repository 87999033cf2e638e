//! Prevents: something the kernel keeps for a process that is read wrongly, changed by being read, or not the same in a
//! process that it is put into.

use crate::harness::{Target, program};
use pagetide_process::{
    Blocker, KernelState, PosixTimer, StateDecodeError, StoppedProcess, ThreadId,
};
use std::process::Command;

/// With restartable sequences left to the program itself.
fn start(how: &str, threads: usize) -> Target {
    Target::from_command(
        Command::new(program("kernel_state"))
            .args([how, &threads.to_string()])
            .env("GLIBC_TUNABLES", "glibc.pthread.rseq=0"),
    )
}

fn read(target: &Target) -> (KernelState, Vec<Blocker>) {
    let mut stopped = target.stop();
    let read = KernelState::read(&mut stopped).unwrap();
    stopped.resume().unwrap();
    read
}

/// As a restore does it, but that the process has its threads already.
fn apply(state: &KernelState, stopped: &mut StoppedProcess) {
    let pid = stopped.identity().pid;
    let threads = stopped.threads().to_vec();
    let pairs: Vec<(ThreadId, ThreadId)> = state
        .threads
        .iter()
        .map(|thread| ThreadId::new(thread.thread))
        .zip(threads)
        .collect();
    assert_eq!(pairs.len(), state.threads.len());
    let mut calls = stopped.remote_calls_by(pairs[0].1).unwrap();
    state.apply_to_process(pid, &mut calls).unwrap();
    drop(calls);
    let by_number = state.by_number();
    for (was, thread) in &pairs {
        let mut calls = stopped.remote_calls_by(*thread).unwrap();
        let of_thread = by_number.of(*was).unwrap();
        state
            .apply_to_thread(of_thread, *thread, &mut calls)
            .unwrap();
    }
    for batch in state.timer_batches() {
        let made = pairs.iter().find(|pair| Some(pair.0) == batch.maker);
        let thread = made.unwrap_or(&pairs[0]).1;
        let mut calls = stopped.remote_calls_by(thread).unwrap();
        batch.create(thread, &mut calls).unwrap();
    }
    for (was, thread) in pairs.iter().rev() {
        let mut calls = stopped.remote_calls_by(*thread).unwrap();
        let is_first = thread.get() == pid;
        state
            .apply_last(by_number.of(*was).unwrap(), *thread, is_first, &mut calls)
            .unwrap();
    }
}

/// With threads by their place and without times, which go on.
fn comparable(state: &KernelState) -> KernelState {
    let mut state = state.clone();
    state.since_2.clocks = None;
    let numbers: Vec<i32> = state.threads.iter().map(|thread| thread.thread).collect();
    let place = |thread: i32| {
        let place = numbers.iter().position(|number| *number == thread);
        place.map_or(0, |place| i32::try_from(place).unwrap() + 1)
    };
    state.pid = place(state.pid);
    for thread in &mut state.threads {
        thread.thread = place(thread.thread);
    }
    for timer in &mut state.posix_timers {
        timer.notify_thread = place(timer.notify_thread);
        timer.clock_thread = place(timer.clock_thread);
        timer.remaining_ns = 0;
    }
    for timer in &mut state.interval_timers {
        timer.remaining_us = 0;
    }
    state
}

fn is_no_later(before: u64, after: u64, interval: u64) -> bool {
    match (before, after) {
        // Its signal waited; the next interval begins.
        (0, after) if interval != 0 => after != 0 && after <= interval,
        (before, after) => (before != 0) == (after != 0) && after <= before,
    }
}

fn assert_times_go_on(before: &KernelState, after: &KernelState) {
    for (before, after) in before.posix_timers.iter().zip(&after.posix_timers) {
        let (was, is) = (before.remaining_ns, after.remaining_ns);
        assert!(
            is_no_later(was, is, before.interval_ns),
            "{before:?} {after:?}"
        );
    }
    for (which, before) in before.interval_timers.iter().enumerate() {
        // The kernel gives a timer of processor time a tick more than it is asked for: 10 ms at most.
        let tick = if which == 0 { 0 } else { 10_000 };
        let after = &after.interval_timers[which];
        let (was, is) = (before.remaining_us, after.remaining_us);
        assert!(
            is_no_later(was, is.saturating_sub(tick), before.interval_us),
            "{before:?} {after:?}"
        );
    }
}

#[test]
fn what_is_put_into_another_process_is_read_there() {
    let full = start("full", 2);
    let (state, blockers) = read(&full);
    assert_eq!(blockers, []);
    let state = KernelState::from_bytes(&state.to_bytes()).unwrap();
    let plain = start("plain", 2);
    let mut stopped = plain.stop();
    let (before, _) = KernelState::read(&mut stopped).unwrap();
    apply(&state, &mut stopped);
    let (after, blockers) = KernelState::read(&mut stopped).unwrap();
    assert_eq!(blockers, []);
    assert_times_go_on(&state, &after);
    assert_ne!(comparable(&state), comparable(&before));
    assert_eq!(comparable(&state), comparable(&after));
}

fn is_6_12_or_later() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let numbers: Vec<u32> = release
        .split(|letter: char| !letter.is_ascii_digit())
        .map_while(|number| number.parse().ok())
        .collect();
    numbers >= vec![6, 12]
}

/// Against what the program is known to have done; the test above would not see what is never read.
#[test]
fn all_that_the_program_did_is_read() {
    let full = start("full", 2);
    let (state, _) = read(&full);
    let [first, second, third] = &state.threads[..] else {
        panic!("{} threads", state.threads.len());
    };
    assert_eq!(first.name, b"a (name) 0");
    assert_eq!(first.alternate_stack.address, 0x1000_0000_1000);
    assert_eq!(first.alternate_stack.size_bytes, 12288);
    assert_eq!(second.alternate_stack.flags, 1 << 31);
    assert_eq!(third.robust_list.head, 0x1000_0000_8000);
    assert_eq!(third.tid_address, 0x1000_0000_8100);
    let rseq = third.rseq.unwrap();
    assert_eq!(
        (rseq.address, rseq.size_bytes, rseq.signature),
        (0x1000_0000_8200, 32, 0x5305_3053)
    );
    let scheduling = [first, second, third].map(|thread| &thread.scheduling);
    let policies = scheduling.map(|of| (of.policy, of.nice, of.priority, of.runtime_ns));
    // Linux 6.12 and later give a slice of the program's own choice.
    let slice_ns = if is_6_12_or_later() { 4_000_000 } else { 0 };
    assert_eq!(policies, [(0, 5, 0, 0), (1, 0, 3, 0), (3, 7, 0, slice_ns)]);
    assert_eq!(scheduling.map(|of| of.flags), [0, 1, 0]);
    assert_eq!(
        scheduling.map(|of| of.io_priority),
        [2 << 13 | 1, 2 << 13 | 2, 2 << 13 | 3]
    );
    assert_eq!(scheduling[0].processors, [1]);
    assert_eq!(scheduling[0].timer_slack_ns, 12345);
    assert!(second.processor.tsc_faults && !third.processor.tsc_faults);
    assert_eq!(second.processor.machine_check_kill, 1);
    assert_eq!(third.personality, 0x0004_0000);
    assert_eq!(first.parent_death_signal, 9);
    assert!(first.no_new_privs && !third.no_new_privs);
    assert_eq!(first.credentials.uids, [2001, 2002, 2003, 2003]);
    assert_eq!(third.credentials.gids, [1001, 1002, 1005, 1001]);
    assert_eq!(second.credentials.groups, [7, 70, 701]);
    assert_eq!(second.credentials.securebits, 0x5c);
    assert_eq!(first.credentials.ambient, 1 << 10);
    assert_eq!(first.credentials.inheritable, 1 << 13 | 1 << 10 | 1);
    assert_eq!(third.credentials.permitted >> 32, 1 << 2);
    assert_eq!(first.credentials.bounding & (1 << 22 | 1), 0);
    let private: Vec<i32> = first
        .pending_signals
        .iter()
        .map(|pending| pending.signal())
        .collect();
    assert_eq!(private, [37, 37, 37, 12]);
    let shared: Vec<i32> = state
        .pending_signals
        .iter()
        .map(|pending| pending.signal())
        .collect();
    for signal in [38, 38, 10, 20, 14, 41] {
        assert!(shared.contains(&signal), "{shared:?}");
    }
    let value = u64::from_le_bytes(state.pending_signals[0].info[24..32].try_into().unwrap());
    assert_eq!(value, 0xabcd_ef01_2345_6789);
    let ids: Vec<i32> = state.posix_timers.iter().map(|timer| timer.id).collect();
    assert_eq!(ids, [2, 4, 5, 6, 8, 9, 10, 11]);
    let timer = |id| state.posix_timers.iter().find(|timer| timer.id == id);
    let directed: &PosixTimer = timer(8).unwrap();
    assert_eq!((directed.notify, directed.notify_thread), (4, third.thread));
    assert_eq!(timer(10).unwrap().clock_thread, second.thread);
    assert_eq!(timer(4).unwrap().interval_ns, 70_000_000_000);
    assert_eq!(state.interval_timers[0].interval_us, 4_000_000_000);
    assert_eq!(state.interval_timers[2].interval_us, 3_000_004);
    let action = |signal| {
        let of = state.signal_actions.iter();
        of.clone().find(|action| action.signal == signal).unwrap()
    };
    assert_eq!(action(13).handler, 1);
    assert_eq!(action(17).flags & 3, 3);
    assert_eq!(action(40).mask, 1 << 9 | 1 << 63);
    assert_eq!((state.limits[7].soft, state.limits[7].hard), (111, 222));
    let switches = state.switches;
    assert_eq!((switches.umask, switches.oom_score_adj), (0o137, 345));
    assert_eq!(switches.coredump_filter, 0x7b);
    assert!(switches.child_subreaper);
    assert_eq!((switches.dumpable, switches.thp_disabled), (0, 1));
}

#[test]
fn reading_changes_nothing() {
    let mut full = start("full", 2);
    let before = full.ask();
    let mut again = None;
    for _ in 0..5 {
        let (mut state, _) = read(&full);
        state = comparable(&state);
        let last = again.replace(state.clone());
        assert!(last.is_none_or(|last| last == state));
    }
    assert_eq!(full.ask(), before);
    full.tell("take\n");
    let mut untouched = start("full", 2);
    untouched.tell("take\n");
    assert_eq!(full.line(), untouched.line());
}

/// What a program sees of itself, but for the addresses of its own code.
#[test]
fn the_other_process_sees_itself_as_the_first_one_did() {
    let words = |line: &str| -> Vec<String> {
        let is_address = |word: &&str| {
            !word.starts_with("55") && !word.starts_with("56") && !word.starts_with("7f")
        };
        line.split(' ')
            .filter(is_address)
            .map(str::to_owned)
            .collect()
    };
    let mut full = start("full", 2);
    let (state, _) = read(&full);
    let mut plain = start("plain", 2);
    let mut stopped = plain.stop();
    apply(&state, &mut stopped);
    stopped.resume().unwrap();
    assert_eq!(words(&plain.ask()), words(&full.ask()));
    for target in [&mut plain, &mut full] {
        target.tell("take\n");
    }
    assert_eq!(plain.line(), full.line());
}

#[test]
fn a_process_with_many_threads_and_handlers_is_read() {
    let target = start("plain", 40);
    let (state, blockers) = read(&target);
    assert_eq!(blockers, []);
    assert_eq!(state.threads.len(), 41);
    assert_eq!(KernelState::from_bytes(&state.to_bytes()).unwrap(), state);
}

#[test]
fn damaged_bytes_are_refused() {
    let full = start("full", 2);
    let bytes = read(&full).0.to_bytes();
    for length in 0..bytes.len() {
        assert!(
            KernelState::from_bytes(&bytes[..length]).is_err(),
            "{length}"
        );
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(matches!(
        KernelState::from_bytes(&longer),
        Err(StateDecodeError::TrailingBytes { count: 1 })
    ));
    let mut newer = bytes.clone();
    newer[4] = 3;
    assert!(matches!(
        KernelState::from_bytes(&newer),
        Err(StateDecodeError::NewerVersion { found: 3, known: 2 })
    ));
    // A length of more than there is memory.
    for place in 8..bytes.len().min(400) {
        let mut damaged = bytes.clone();
        let end = (place + 8).min(damaged.len());
        damaged[place..end].fill(0xff);
        // Whatever it makes of them, it comes back.
        KernelState::from_bytes(&damaged).ok();
    }
}

#[test]
fn impossible_values_are_refused() {
    let full = start("full", 2);
    let (state, _) = read(&full);
    let refused = |change: fn(&mut KernelState)| {
        let mut changed = state.clone();
        change(&mut changed);
        match KernelState::from_bytes(&changed.to_bytes()) {
            Err(StateDecodeError::Impossible { what }) => what,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(|state| state.pid = 0), "pid");
    assert_eq!(refused(|state| state.threads.clear()), "thread id");
    assert_eq!(refused(|state| state.threads[1].thread = -1), "thread id");
    assert_eq!(
        refused(|state| state.signal_actions[0].signal = 65),
        "signal"
    );
    assert_eq!(
        refused(|state| state.pending_signals[0].info.fill(0)),
        "signal"
    );
    assert_eq!(refused(|state| state.posix_timers[0].id = -1), "timer");
}
