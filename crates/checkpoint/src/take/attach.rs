//! What travels with a snapshot besides memory: registers and the like, what is to be remembered for the next one, and what only
//! a restore needs.

use super::context::Context;
use super::standstill::Instantaneous;
use crate::error::TakeError;
use crate::manifest::{self, MemberNames};
use crate::memo::Memos;
use crate::numa::NumaRecord;
use crate::object_records;
use crate::poison::{self, Poisoned};
use pagetide_process::{OutsideState, ProcessState};

/// Attaches all of it. Returns what is to be remembered.
#[tracing::instrument(level = "debug", skip_all, name = "attach")]
pub(crate) fn all(
    context: &mut Context<'_>,
    found: &mut Instantaneous,
    poisoned: &[Poisoned],
) -> Result<Memos, TakeError> {
    let writer = &mut context.writing.writer;
    let mut memos = Memos::new();
    for (member, stopped) in context.members.list().iter().zip(&mut found.members) {
        let Some(stopped) = stopped else { continue };
        let outside = match &member.outside {
            Some(outside) => outside.clone(),
            None => OutsideState::read(member.identity())?,
        };
        let state = ProcessState {
            outside,
            threads: std::mem::take(&mut stopped.threads),
        };
        writer.attach(member.names.process.as_str(), state.to_bytes())?;
        // Without a memo the next snapshot is full.
        let memo = std::mem::take(&mut stopped.memo);
        if let Some(bytes) = memo.to_bytes() {
            writer.attach(member.names.memo.as_str(), bytes)?;
        }
        let numa = NumaRecord::of_process(member.pid(), &stopped.layout.mappings);
        if let Some(bytes) = numa.to_bytes() {
            writer.attach(member.names.numa.as_str(), bytes)?;
        }
        memos.insert(member.pid(), memo);
    }
    let tree = context.options.tree;
    found.restorable.attach(writer, |pid| {
        if tree {
            MemberNames::in_tree(pid).kernel
        } else {
            MemberNames::alone().kernel
        }
    })?;
    if let Some(bytes) = object_records::to_bytes(&found.objects.records()) {
        writer.attach(object_records::ATTACHMENT, bytes)?;
    }
    if tree && let Some(bytes) = manifest::to_bytes(&found.processes) {
        writer.attach(manifest::TREE_ATTACHMENT, bytes)?;
    }
    if let Some(bytes) = poison::to_bytes(poisoned) {
        writer.attach(poison::ATTACHMENT, bytes)?;
    }
    Ok(memos)
}
