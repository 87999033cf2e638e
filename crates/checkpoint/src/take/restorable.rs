//! What a process is made of besides memory and registers: open files, and what the kernel keeps for it. Read in the stop,
//! attached to the snapshot, and needed by a restore alone. What a restore could not bring back is named.

use crate::blockers::{self, stays};
use crate::family::children;
use crate::left_behind;
use crate::mapping_blockers::{AIO, mapping_blockers};
use crate::members::AllStopped;
use crate::poison::{self, Poisoned};
use crate::report::NotCaptured;
use pagetide_kernel::kcmp::share_address_space;
use pagetide_kernel::maps::Mapping;
use pagetide_process::{
    Blocker, BlockerKind, KernelState, OPEN_FILES_ATTACHMENT, OpenFiles, RingsOfThreads,
    StoppedProcess, other_clocks, shared_space,
};
use pagetide_snapshot::{Region, SnapshotWriter, WriteError};
use std::path::Path;

/// See the head of this file.
#[derive(Default)]
pub(crate) struct Restorable {
    is_asked_for: bool,
    files: Option<OpenFiles>,
    /// By process.
    kernel: Vec<(i32, KernelState)>,
    /// What a restore could not bring back.
    pub blockers: Vec<Blocker>,
    /// What the threads of each stopped process say of their rings, as they are asked for all at once; nothing of others.
    pub rings: Vec<RingsOfThreads>,
}

impl Restorable {
    /// Reads it from the stopped processes. What cannot be read cannot be brought back, and the rest of the snapshot is as
    /// good without it.
    #[tracing::instrument(level = "debug", skip_all, name = "what a restore needs")]
    pub fn read(stopped: &mut AllStopped, tree: bool) -> Self {
        let pids = stopped.iter().flatten().map(|one| one.identity().pid);
        let ours: Vec<(i32, i32)> = pids
            .flat_map(|pid| {
                let numbers = left_behind::own_descriptors(pid);
                numbers.into_iter().map(move |number| (pid, number))
            })
            .collect();
        let all: Vec<_> = stopped.iter().flatten().collect();
        let mut read = Self {
            is_asked_for: true,
            ..Self::default()
        };
        let first = all.first().map_or(0, |first| first.identity().pid);
        match OpenFiles::read(&all, &ours) {
            Ok((files, blockers)) => {
                read.files = Some(files);
                read.blockers = blockers;
            }
            Err(error) => read.unreadable(first, BlockerKind::OpenFiles, "its open files", &error),
        }
        if !tree {
            let pids = all.iter().map(|process| process.identity().pid);
            read.blockers.extend(pids.flat_map(children_of));
        }
        read.blockers.extend(shared_spaces(&all));
        for process in stopped.iter_mut() {
            let Some(process) = process else {
                read.rings.push(RingsOfThreads::default());
                continue;
            };
            let pid = process.identity().pid;
            let threads = process.threads().len();
            let _span = tracing::debug_span!("kernel state", pid, threads).entered();
            let rings = match KernelState::read_with_rings(process) {
                Ok((state, blockers, rings)) => {
                    read.kernel.push((pid, state));
                    read.blockers.extend(blockers);
                    rings
                }
                Err(error) => {
                    read.unreadable(
                        pid,
                        BlockerKind::KernelState,
                        "what the kernel keeps for it",
                        &error,
                    );
                    process.rings_of_threads()
                }
            };
            read.blockers.extend(rings.blockers(pid));
            read.rings.push(rings);
        }
        read.blockers.extend(read.other_clocks());
        read
    }

    /// Names those that have other clocks than the first process.
    fn other_clocks(&self) -> Vec<Blocker> {
        let offsets = |state: &KernelState| {
            let clocks = state.since_2.clocks?;
            Some((clocks.monotonic_offset_ns, clocks.boottime_offset_ns))
        };
        let first = self.kernel.first().and_then(|(_, state)| offsets(state));
        let others = self
            .kernel
            .iter()
            .filter(|(_, state)| offsets(state) != first);
        others
            .map(|(pid, _)| other_clocks(*pid, "the first process of its tree"))
            .collect()
    }

    /// The stops of these processes are none of their own: they come back running.
    pub fn forget_stops(&mut self, pids: &[i32]) {
        let stopped = self.kernel.iter_mut().filter(|(pid, _)| pids.contains(pid));
        stopped.for_each(|(_, state)| state.since_2.group_stop = None);
    }

    /// Names what else was found.
    pub fn name(&mut self, blockers: Vec<Blocker>) {
        if self.is_asked_for {
            self.blockers.extend(blockers);
        }
    }

    fn unreadable(
        &mut self,
        pid: i32,
        kind: BlockerKind,
        what: &str,
        error: &dyn std::error::Error,
    ) {
        self.blockers.push(Blocker {
            pid,
            kind,
            place: "process".to_owned(),
            what: format!("{what} could not be read: {}", whole(error)),
            advice: "take the checkpoint with more privileges".to_owned(),
            instead: None,
        });
    }

    /// Names what can be told of the processes at any time, and takes too long for a stop. Of one that has ended meanwhile
    /// the mappings tell the rest, see `mapping_blockers`.
    pub fn look_from_outside(&mut self) {
        let pids: Vec<i32> = self.kernel.iter().map(|(pid, _)| *pid).collect();
        for &pid in &pids {
            match KernelState::outside_blockers(pid, &pids) {
                Ok(blockers) => self.blockers.extend(blockers),
                Err(_) if !Path::new(&format!("/proc/{pid}/task")).exists() => {}
                Err(error) => self.unreadable(
                    pid,
                    BlockerKind::Unknown,
                    "whom it traces, and its queues",
                    &error,
                ),
            }
        }
    }

    /// Names mappings that could not be made again.
    pub fn look_at_mappings(&mut self, pid: i32, mappings: &[Mapping]) {
        if self.is_asked_for {
            for found in mapping_blockers(pid, mappings) {
                let same = |known: &Blocker| (known.pid, &known.kind) == (pid, &found.kind);
                if found.kind != AIO || !self.blockers.iter().any(same) {
                    self.blockers.push(found);
                }
            }
        }
    }

    /// Names memory that could not be poisoned again, as these `regions` have it.
    pub fn name_poisoned(&mut self, poisoned: &[Poisoned], regions: &[Region]) {
        if self.is_asked_for {
            self.blockers.extend(poison::blockers(poisoned, regions));
        }
    }

    /// True if the processes cannot be restored by who accepts these names.
    pub fn is_blocked(&self, accepted: &[String]) -> bool {
        let mut blockers = self.blockers.iter();
        self.is_asked_for && blockers.any(|blocker| stays(blocker, accepted))
    }

    /// How many descriptors the processes have.
    pub fn descriptors(&self) -> usize {
        let tables = self.files.iter().flat_map(|files| &files.tables);
        tables.map(|table| table.entries.len()).sum()
    }

    /// Names what of the memory is not in the snapshot.
    pub fn name_missing(&mut self, missing: &[NotCaptured]) {
        if !self.is_asked_for {
            return;
        }
        for one in missing.iter().filter(|one| !one.is_of_kernel()) {
            let place = match one.end {
                0 => "process".to_owned(),
                _ => format!("mapping:{:x}", one.start),
            };
            // A mapping that could not be made again is named already.
            if one.end != 0 && self.blockers.iter().any(|known| known.place == place) {
                continue;
            }
            self.blockers.push(Blocker {
                pid: one.pid,
                kind: BlockerKind::NotCaptured,
                place,
                what: format!("{} is not in the snapshot: {}", one.name, one.reason),
                advice: "end its use before the checkpoint".to_owned(),
                instead: None,
            });
        }
    }

    /// Attaches it.
    pub fn attach(
        &self,
        writer: &mut SnapshotWriter,
        name: impl Fn(i32) -> String,
    ) -> Result<(), WriteError> {
        for (pid, state) in &self.kernel {
            writer.attach(name(*pid), state.to_bytes())?;
        }
        if let Some(files) = &self.files {
            writer.attach(OPEN_FILES_ATTACHMENT, files.to_bytes())?;
        }
        match blockers::to_bytes(&self.blockers).filter(|_| self.is_asked_for) {
            Some(bytes) => writer.attach(blockers::ATTACHMENT, bytes),
            None => Ok(()),
        }
    }
}

/// Names those of the stopped processes that have the memory of an earlier one of them.
fn shared_spaces(all: &[&StoppedProcess]) -> Vec<Blocker> {
    let pids: Vec<i32> = all.iter().map(|process| process.identity().pid).collect();
    let mut blockers = Vec::new();
    for (at, &pid) in pids.iter().enumerate() {
        // Of one that is gone, or where the kernel cannot tell, there is nothing to be named.
        let shares = |other: &&i32| share_address_space(pid, **other).unwrap_or(false);
        if let Some(&other) = pids[..at].iter().find(shares) {
            blockers.push(shared_space(pid, other));
        }
    }
    blockers
}

/// Names the children of a process that is not checkpointed with them.
fn children_of(pid: i32) -> Vec<Blocker> {
    children(pid)
        .into_iter()
        .map(|child| {
            let name = std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
            Blocker {
                pid,
                kind: BlockerKind::Child,
                place: format!("process:{child}"),
                what: format!(
                    "its child {child} ({}) is not in the checkpoint",
                    name.trim_end()
                ),
                advice: "take the checkpoint with --tree".to_owned(),
                instead: Some("it has no such child".to_owned()),
            }
        })
        .collect()
}

/// An error with its causes.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_accepted_or_has_nothing_instead_blocks() {
        let one = |kind: &str, instead: Option<&str>| Blocker {
            pid: 5,
            kind: BlockerKind::of_name(kind),
            place: "fd:3".to_owned(),
            what: String::new(),
            advice: String::new(),
            instead: instead.map(str::to_owned),
        };
        let found = |blockers| Restorable {
            is_asked_for: true,
            blockers,
            ..Restorable::default()
        };
        let accepted = ["pipe:fd:3".to_owned(), "device:fd:3".to_owned()];
        assert!(!found(Vec::new()).is_blocked(&[]));
        let pipe = found(vec![one("pipe", Some("nothing comes"))]);
        assert!(pipe.is_blocked(&[]) && !pipe.is_blocked(&accepted));
        assert!(found(vec![one("device", None)]).is_blocked(&accepted));
        let mut both = found(vec![one("pipe", Some("")), one("socket", Some(""))]);
        assert!(both.is_blocked(&accepted));
        // Of what is not to be restored nothing is asked.
        both.is_asked_for = false;
        assert!(!both.is_blocked(&[]));
    }
}
