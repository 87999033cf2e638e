//! Whom open files signal: set when all processes are there, since owners are processes.

use super::error::ReopenError;
use super::model::{Kind, OpenFiles};
use super::reopen::Reopened;
use crate::opener::Openers;
use pagetide_kernel::descriptor_owner::{OwnerKind, set_owner, set_signal};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::collections::HashSet;
use std::io;

impl OpenFiles {
    /// Seals memory that was handed over, which could not be mapped as it is with its seals, and sets the owners of
    /// descriptions, their signals, and O_ASYNC, after all processes exist. `pid_now` tells the number
    /// that a process has now; an owner that it does not know is signalled no more. A thread that is no process keeps its
    /// number if all processes do.
    pub fn finish(
        &self,
        reopened: &Reopened,
        openers: &Openers,
        pid_now: &dyn Fn(i32) -> Option<i32>,
    ) -> Result<(), ReopenError> {
        self.seal_objects(reopened, openers)?;
        let all_keep = self
            .tables
            .iter()
            .all(|table| pid_now(table.pid) == Some(table.pid));
        for (description, file) in self.descriptions.iter().zip(&reopened.descriptions) {
            let Some(file) = file else { continue };
            if matches!(description.kind, Kind::StandardStream(_)) {
                continue;
            }
            let failed = |source: io::Error| ReopenError::Owner {
                what: description.name(),
                source,
            };
            if let Some(owner) = &description.owner {
                let kind = match owner.kind {
                    0 => OwnerKind::Thread,
                    1 => OwnerKind::Process,
                    _ => OwnerKind::Group,
                };
                let same = (kind == OwnerKind::Thread && all_keep).then_some(owner.number);
                let now = (owner.number != 0)
                    .then(|| pid_now(owner.number).or(same))
                    .flatten();
                if let Some(now) = now {
                    set_owner(file, kind, now).map_err(failed)?;
                }
                if owner.signal != 0 {
                    set_signal(file, owner.signal).map_err(failed)?;
                }
            }
            let async_flag = OFlags::from_bits_retain(description.status_flags) & ASYNC;
            if !async_flag.is_empty() {
                let failed = |source: rustix::io::Errno| failed(source.into());
                let flags = fcntl_getfl(file).map_err(failed)?;
                fcntl_setfl(file, flags | ASYNC).map_err(failed)?;
            }
        }
        Ok(())
    }
}

impl OpenFiles {
    fn seal_objects(&self, reopened: &Reopened, openers: &Openers) -> Result<(), ReopenError> {
        let mut done = HashSet::new();
        let all = self.descriptions.iter().zip(&reopened.descriptions);
        for (index, (description, file)) in all.enumerate() {
            let (Kind::Object(state), Some(file)) = (&description.kind, file) else {
                continue;
            };
            let object = self.objects.get(state.object as usize);
            let Some(object) = object.filter(|object| object.content.is_none()) else {
                continue;
            };
            if done.insert(state.object) {
                object.seal(file, self.opener_of(index, &reopened.holders, openers))?;
            }
        }
        Ok(())
    }
}

/// O_ASYNC of fcntl(2), by the name of the kernel FASYNC.
const ASYNC: OFlags = OFlags::from_bits_retain(0o20_000);
