//! The new processes before there is anything in them: as many as the snapshot has, children of each other as it
//! says, with the pids and sessions that they had.

use super::error::RestoreError;
use super::plan::RestorePlan;
use crate::apart;
use crate::manifest::{TreeProcess, tree_of};
use pagetide_kernel::pidfd::PidFd;
use pagetide_kernel::spawn::{self, Fate, Seed, SpawnError};
use pagetide_process::enter_control_groups;
use pagetide_snapshot::View;
use rustix::process::Signal;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

/// The processes that were made, until they live: an early end kills them.
#[derive(Default)]
pub(super) struct Newborns {
    roots: Vec<i32>,
    numbers: HashMap<i32, i32>,
    /// They themselves: once one lives, it may end, and its parent may give its pid free.
    held: Vec<PidFd>,
    /// Those that lead a session, and did not.
    apart: HashSet<i32>,
}

/// How a process that ended is made to end again.
fn fate(process: &TreeProcess) -> Fate {
    match (process.ended, process.exit_status & 0x7f) {
        (false, _) => Fate::Waits,
        (true, 0) => Fate::Exits((process.exit_status >> 8) & 0xff),
        (true, signal) => Fate::Killed(signal),
    }
}

impl Newborns {
    /// Makes them all. They wait.
    pub fn bear(
        view: &View,
        plans: &[RestorePlan<'_>],
        new_pid: bool,
    ) -> Result<Self, RestoreError> {
        let mut processes = tree_of(view).unwrap_or_default();
        if processes.is_empty() {
            processes.extend(plans.iter().map(|plan| TreeProcess {
                pid: plan.pid,
                parent: 0,
                ended: false,
                exit_status: 0,
            }));
        }
        let all: HashSet<i32> = processes.iter().map(|process| process.pid).collect();
        let ended = processes.iter().filter(|process| process.ended);
        let ended: HashSet<i32> = ended.map(|process| process.pid).collect();
        let mut born = Self::default();
        let terminal = Terminal::own();
        let family = Family {
            processes: &processes,
            plans,
            new_pid,
        };
        for root in processes
            .iter()
            .filter(|process| !all.contains(&process.parent))
        {
            let mut order = Vec::new();
            let mut seed = family.seed(root, &mut order)?;
            if !seed.leads_session && terminal.is_of_another(family.user(root.pid)) {
                seed.leads_session = true;
                born.apart.insert(root.pid);
            }
            let made = spawn_patiently(&seed).map_err(|error| match error {
                SpawnError::Taken { pid } => RestoreError::Taken {
                    pid,
                    owner: owner_of(pid),
                },
                other => other.into(),
            })?;
            born.roots.extend(made.first());
            // They wait for us now, and none of them waits for its children.
            for (&pid, then) in made.iter().zip(&order) {
                let failed = |source| RestoreError::Held { pid, source };
                let held = PidFd::open(pid).map_err(failed)?;
                if ended.contains(then) {
                    // Its parent has been told of it when that is over, and is not told later.
                    held.wait_for_end(PATIENCE).map_err(failed)?;
                }
                born.held.push(held);
            }
            born.numbers.extend(order.into_iter().zip(made));
        }
        Ok(born)
    }

    /// The pid now of the process that had this one.
    pub fn now(&self, then: i32) -> i32 {
        self.numbers.get(&then).copied().unwrap_or(then)
    }

    /// True if a process of the snapshot had this pid.
    pub fn has(&self, then: i32) -> bool {
        self.numbers.contains_key(&then)
    }

    /// The pid now of the process that had this one, if there was one.
    pub fn who_was(&self, then: i32) -> Option<i32> {
        self.numbers.get(&then).copied()
    }

    /// True if the process that had this pid is a child of this program now.
    pub fn is_root(&self, then: i32) -> bool {
        self.roots.contains(&self.now(then))
    }

    /// True if the process that had this pid leads a session now, and did not: the terminal of ours is not its user's.
    pub fn is_apart(&self, then: i32) -> bool {
        self.apart.contains(&then)
    }

    /// What is otherwise than it was, for people.
    pub fn notes(&self) -> Vec<String> {
        let apart = self.apart.iter();
        let note = |then| {
            format!(
                "process {} leads a session of its own: the terminal of pagetide is not that of its user",
                self.now(then)
            )
        };
        apart.map(|&then| note(then)).collect()
    }

    /// Puts each into the control groups that it was in. What is otherwise than it was, for people.
    pub fn enter_control_groups(&self, plans: &[RestorePlan<'_>]) -> Vec<String> {
        let enter =
            |plan: &RestorePlan<'_>| enter_control_groups(self.now(plan.pid), &plan.kernel.cgroups);
        plans.iter().flat_map(enter).collect()
    }

    /// Ends them all. One that was built already does not end with its parent any more.
    pub fn kill(&self) {
        for process in &self.held {
            // It may have ended.
            process.send_signal(Signal::KILL).ok();
        }
    }

    /// They are left to themselves.
    pub fn live(&mut self) {
        self.roots.clear();
    }
}

impl Drop for Newborns {
    fn drop(&mut self) {
        if self.roots.is_empty() {
            return;
        }
        self.kill();
        for &root in &self.roots {
            spawn::kill_and_reap(root);
        }
    }
}

/// The pids and thread ids that the snapshot has, and a restore gives again; none if they are to be new. Refuses those that
/// somebody has, before anything is touched: it may be the very process, which still runs.
pub(super) fn claim_numbers(
    view: &View,
    plans: &[RestorePlan<'_>],
    new_pid: bool,
) -> Result<Vec<i32>, RestoreError> {
    if new_pid {
        return Ok(Vec::new());
    }
    let tree = tree_of(view).unwrap_or_default();
    let processes = tree.iter().map(|process| process.pid);
    let threads = plans.iter().flat_map(|plan| &plan.state.threads);
    let numbers: Vec<i32> = processes
        .chain(threads.map(|state| state.thread.get()))
        .collect();
    apart::leave_numbers(&numbers);
    let taken = |pid: &&i32| !is_free_soon(**pid);
    match numbers.iter().find(taken) {
        Some(&pid) => Err(RestoreError::Taken {
            pid,
            owner: owner_of(pid),
        }),
        None => Ok(numbers),
    }
}

/// True if nobody has a pid, also if that is so only after a while: whoever was killed just now takes a moment to end, and to be
/// waited for.
fn is_free_soon(pid: i32) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Path::new(&format!("/proc/{pid}")).exists() {
        if !is_ending(pid) || Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(PAUSE_BETWEEN_TRIES);
    }
    true
}

/// True if a process has ended and waits to be reaped, or SIGKILL is on its way to it.
fn is_ending(pid: i32) -> bool {
    const SIGKILL: u64 = 1 << 8;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mut lines = status.lines().filter_map(|line| line.split_once(':'));
    lines.any(|(name, value)| match name {
        "State" => value.trim().starts_with(['Z', 'X']),
        "SigPnd" | "ShdPnd" => {
            u64::from_str_radix(value.trim(), 16).is_ok_and(|set| set & SIGKILL != 0)
        }
        _ => false,
    })
}

struct Family<'a> {
    processes: &'a [TreeProcess],
    plans: &'a [RestorePlan<'a>],
    new_pid: bool,
}

/// The terminal that controls us, and so whatever is in our session.
struct Terminal {
    /// Its owner, if that is known; none if there is no such terminal.
    owner: Option<Option<u32>>,
}

impl Terminal {
    fn own() -> Self {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let (_, fields) = stat.rsplit_once(") ").unwrap_or_default();
        // tty_nr, the seventh; the state is the third.
        let number: i32 = fields
            .split(' ')
            .nth(4)
            .and_then(|word| word.parse().ok())
            .unwrap_or(0);
        let number = number.cast_unsigned();
        let (major, minor) = (
            (number >> 8) & 0xfff,
            (number & 0xff) | ((number >> 12) & 0xf_ff00),
        );
        let streams = [
            rustix::stdio::stdin(),
            rustix::stdio::stdout(),
            rustix::stdio::stderr(),
        ];
        let owner = || {
            let stats = streams
                .iter()
                .filter_map(|stream| rustix::fs::fstat(stream).ok());
            let wanted = rustix::fs::makedev(major, minor);
            let mut found = stats.filter(|stat| stat.st_rdev == wanted);
            found.next().map(|stat| stat.st_uid)
        };
        Self {
            owner: (number != 0).then(owner),
        }
    }

    /// True if there is one, and somebody else than this user owns it.
    fn is_of_another(&self, user: u32) -> bool {
        user != 0 && self.owner.is_some_and(|owner| owner != Some(user))
    }
}

impl Family<'_> {
    fn user(&self, pid: i32) -> u32 {
        let plan = self.plans.iter().find(|plan| plan.pid == pid);
        plan.map_or(0, |plan| plan.state.outside.uids[1])
    }

    fn session(&self, pid: i32) -> Option<i32> {
        let plan = self.plans.iter().find(|plan| plan.pid == pid)?;
        Some(plan.state.outside.sid)
    }

    /// The seed of a process with those of its children, and their pids in the order in which they are made.
    fn seed(&self, process: &TreeProcess, order: &mut Vec<i32>) -> Result<Seed, RestoreError> {
        let pid = process.pid;
        order.push(pid);
        let session = self.session(pid);
        let parents = self.session(process.parent);
        // A child has its parent's session or leads its own, unless the parent began its session later.
        if let (Some(session), Some(parents)) = (session, parents)
            && session != pid
            && session != parents
        {
            return Err(RestoreError::Session {
                pid,
                session,
                parent: process.parent,
            });
        }
        let children = self.processes.iter().filter(|child| child.parent == pid);
        Ok(Seed {
            pid: (!self.new_pid).then_some(pid),
            leads_session: session == Some(pid),
            fate: fate(process),
            children: children
                .map(|child| self.seed(child, order))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// A pid is free only a moment after its owner has gone, so one that nobody is seen to have is asked for again.
fn spawn_patiently(seed: &Seed) -> Result<Vec<i32>, SpawnError> {
    for _ in 0..TRIES_FOR_A_NUMBER {
        match spawn::spawn(seed) {
            Err(SpawnError::Taken { pid }) if !Path::new(&format!("/proc/{pid}")).exists() => {
                std::thread::sleep(PAUSE_BETWEEN_TRIES);
            }
            other => return other,
        }
    }
    spawn::spawn(seed)
}

/// How often a pid is asked for that nobody is seen to have: whoever had it may wait long for a processor to end on.
const TRIES_FOR_A_NUMBER: usize = 2000;
const PAUSE_BETWEEN_TRIES: Duration = Duration::from_millis(5);
/// How long an end that was asked for may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who has a pid, for people.
pub(super) fn owner_of(pid: i32) -> String {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let value = |key| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .map(str::trim)
    };
    let pid = pid.to_string();
    match (comm.trim(), value("Tgid:"), value("State:")) {
        ("", ..) => "a process that is just ending".to_owned(),
        (comm, Some(process), _) if process != pid => {
            format!("a thread of process {process} ({comm})")
        }
        (comm, _, Some(state)) if state.starts_with('Z') => {
            format!("the process {comm}, which has ended and waits to be reaped")
        }
        (comm, ..) => format!("the process {comm}"),
    }
}
