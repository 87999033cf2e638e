//! What this machine must allow a process to have, told before any is made. Source: `vm.max_map_count` of
//! proc_sys_vm(5).

use super::error::RestoreError;
use crate::manifest::members_of;
use pagetide_process::ProcessState;
use pagetide_snapshot::{Region, View};

/// Mappings that a process has only while it is made: the memory for its calls on both sides of what is mapped in between.
const WHILE_MADE: u64 = 3;

const FILE: &str = "/proc/sys/vm/max_map_count";

/// Refuses a snapshot of which a process has more mappings than this machine allows. Where the kernel does not tell, it
/// will tell when it comes to that.
pub fn check(view: &View) -> Result<(), RestoreError> {
    let allowed = std::fs::read_to_string(FILE).ok();
    match allowed.and_then(|text| text.trim().parse().ok()) {
        Some(allowed) => check_against(view, allowed),
        None => Ok(()),
    }
}

fn check_against(view: &View, allowed: u64) -> Result<(), RestoreError> {
    for (pid, names) in members_of(view) {
        let Some(space) = view.space_index(&names.space) else {
            continue;
        };
        let needed = needed(&view.spaces()[space].regions);
        if needed > allowed {
            let state = view.attachment(&names.process);
            let state = state.and_then(|bytes| ProcessState::from_bytes(bytes).ok());
            let recorded = state.map(|state| state.outside.identity.pid);
            return Err(RestoreError::TooManyMappings {
                pid: pid.or(recorded).unwrap_or(0),
                needed,
                allowed,
            });
        }
    }
    Ok(())
}

/// How many mappings a process with these regions has, while it is made. `[vsyscall]` is none.
fn needed(regions: &[Region]) -> u64 {
    let counted = regions.iter().filter(|region| region.name != "[vsyscall]");
    counted.count() as u64 + WHILE_MADE
}
