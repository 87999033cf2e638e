//! How much memory tracking may take for page tables.

use pagetide_kernel::memory_cgroup::memory_left;

/// The part of what is left that tracking may take, if nothing was said.
const PART: u64 = 16;

/// The most page tables, in bytes, that one snapshot may make in process `pid`: what was `asked` for, or a sixteenth of
/// what is left to the process by its memory cgroups and by the machine.
pub(crate) fn of(pid: i32, asked: Option<u64>) -> u64 {
    asked.unwrap_or_else(|| memory_left(pid).map_or(u64::MAX, |left| left / PART))
}
