//! On which NUMA node each page of a process lies, and moving pages between nodes: move_pages(2).
//!
//! Since Linux 2.6.18. For another process both need `PTRACE_MODE_READ_REALCREDS`; moving pages that other
//! processes map, too, needs CAP_SYS_NICE. Asking maps nothing and moves nothing. A kernel without
//! NUMA support answers ENOSYS. Source: move_pages(2).

#![allow(unsafe_code)]

use nix::libc;
use pagetide_pages::{PageIndex, PageSize};

/// The number of a NUMA node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node(pub u32);

/// Why one page has no node: a negated errno of move_pages(2). ENOENT: the page is not there (never
/// touched, swapped out). EFAULT: nothing is mapped, or the zero page. EACCES: other processes map it,
/// too. EBUSY: it is in use just now, or pinned. EIO, EINVAL: it cannot be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{}", std::io::Error::from_raw_os_error(self.0))]
pub struct PageErrno(pub i32);

impl PageErrno {
    /// What the kernel means by it when it is asked for the node of a page, in words.
    pub fn of_page(self) -> &'static str {
        match self.0 {
            libc::ENOENT => "the page is not there: never touched, dropped, or in swap (ENOENT)",
            libc::EFAULT => "nothing is mapped, or it is the zero page (EFAULT)",
            _ => self.of_move(),
        }
    }

    /// What the kernel means by it when it is asked to move a page, in words.
    pub fn of_move(self) -> &'static str {
        match self.0 {
            libc::ENOENT => "the page is not there (ENOENT)",
            libc::EFAULT => "nothing is mapped, or it is the zero page (EFAULT)",
            libc::EACCES => {
                "other processes map the page, too: MPOL_MF_MOVE_ALL moves it, with CAP_SYS_NICE (EACCES)"
            }
            libc::EBUSY => "the page is in use just now or pinned: again later (EBUSY)",
            libc::EIO => "the page cannot be written back before it is moved (EIO)",
            libc::EINVAL => "a dirty page that its file system cannot move (EINVAL)",
            libc::ENOMEM => "there is no room on the node (ENOMEM)",
            libc::EINTR => "the kernel was interrupted before it came to this page (EINTR)",
            _ => "for a reason that move_pages(2) does not name",
        }
    }
}

/// Why the kernel did not answer at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MovePagesError {
    /// This kernel was built without NUMA.
    #[error("this kernel does not tell nodes of memory (CONFIG_NUMA)")]
    Unsupported,
    /// The process is gone.
    #[error("process {pid} no longer exists")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// Any other refusal: EPERM, ENODEV (no such node), EACCES (the node is not allowed to the process).
    #[error("move_pages of process {pid}")]
    Kernel {
        /// The process.
        pid: i32,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// Pages asked for in one call: the kernel works through smaller pieces of its own.
const AT_ONCE: usize = 16 * 1024;

/// MPOL_MF_MOVE of numaif(3): pages that only this process maps.
const MOVE: libc::c_int = 1 << 1;
/// MPOL_MF_MOVE_ALL: also those that others map, too.
const MOVE_ALL: libc::c_int = 1 << 2;

/// The node of each of `pages` (base pages) of process `pid`, 0 for the caller itself, in order.
pub fn nodes_of(
    pid: i32,
    pages: &[PageIndex],
) -> Result<Vec<Result<Node, PageErrno>>, MovePagesError> {
    call_by_batches(pid, pages, None, MOVE)
}

/// Moves each of `pages` of process `pid`, 0 for the caller itself, to `node`, and tells where each
/// lies then. Its content stays. Pages that other processes map stay where they are. Of pages that could be taken for the
/// move and then not be moved (they are pinned) the kernel tells the count only: those say EBUSY here.
pub fn move_to(
    pid: i32,
    pages: &[PageIndex],
    node: Node,
) -> Result<Vec<Result<Node, PageErrno>>, MovePagesError> {
    call_by_batches(pid, pages, Some(node), MOVE)
}

/// The same for pages that other processes map, too. Needs CAP_SYS_NICE: EPERM without.
pub fn move_all_to(
    pid: i32,
    pages: &[PageIndex],
    node: Node,
) -> Result<Vec<Result<Node, PageErrno>>, MovePagesError> {
    call_by_batches(pid, pages, Some(node), MOVE_ALL)
}

fn call_by_batches(
    pid: i32,
    pages: &[PageIndex],
    target: Option<Node>,
    whose: libc::c_int,
) -> Result<Vec<Result<Node, PageErrno>>, MovePagesError> {
    let mut nodes = Vec::with_capacity(pages.len());
    for batch in pages.chunks(AT_ONCE) {
        nodes.extend(call(pid, batch, target, whose)?);
    }
    Ok(nodes)
}

fn call(
    pid: i32,
    pages: &[PageIndex],
    target: Option<Node>,
    whose: libc::c_int,
) -> Result<Vec<Result<Node, PageErrno>>, MovePagesError> {
    let address = |page: &PageIndex| PageSize::KIB_4.address_of(*page) as *const libc::c_void;
    let addresses: Vec<*const libc::c_void> = pages.iter().map(address).collect();
    let number = |node: Node| libc::c_int::try_from(node.0).unwrap_or(libc::c_int::MAX);
    let targets: Option<Vec<libc::c_int>> = target.map(|node| vec![number(node); pages.len()]);
    let nodes = targets.as_ref().map_or(std::ptr::null(), Vec::as_ptr);
    // What the kernel does not get to stays so, and is no node.
    let mut status = vec![-libc::EINTR; pages.len()];
    // SAFETY: the three arrays have as many entries as the call is told, and live for its length; the
    // kernel writes to `status` only. The addresses are those of another address space, or are only looked
    // up: memory of this process keeps its content.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            libc::c_long::from(pid),
            addresses.len(),
            addresses.as_ptr(),
            nodes,
            status.as_mut_ptr(),
            whose,
        )
    };
    if answer < 0 {
        let source = std::io::Error::last_os_error();
        return Err(match source.raw_os_error() {
            Some(libc::ENOSYS) => MovePagesError::Unsupported,
            Some(libc::ESRCH) => MovePagesError::Gone { pid },
            _ => MovePagesError::Kernel { pid, source },
        });
    }
    match targets {
        Some(targets) if answer > 0 => {
            // Since Linux 4.17: so many could not be moved. What went with them in one piece has no answer.
            let now = call(pid, pages, None, whose)?;
            let told =
                status
                    .iter()
                    .zip(now)
                    .zip(targets)
                    .map(|((&status, now), target)| match now {
                        _ if status != -libc::EINTR => told(status),
                        Ok(node) if number(node) != target => Err(PageErrno(libc::EBUSY)),
                        answered => answered,
                    });
            Ok(told.collect())
        }
        _ => Ok(status.into_iter().map(told).collect()),
    }
}

/// One entry of the status array: a node, or a negated errno.
fn told(status: libc::c_int) -> Result<Node, PageErrno> {
    u32::try_from(status)
        .map(Node)
        .map_err(|_| PageErrno(-status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_a_page_is_told_in_words() {
        for (errno, name) in [
            (libc::EACCES, "EACCES"),
            (libc::EBUSY, "EBUSY"),
            (libc::EFAULT, "EFAULT"),
            (libc::EIO, "EIO"),
            (libc::EINVAL, "EINVAL"),
            (libc::ENOENT, "ENOENT"),
            (libc::ENOMEM, "ENOMEM"),
            (libc::EINTR, "EINTR"),
        ] {
            let error = PageErrno(errno);
            for words in [error.of_page(), error.of_move()] {
                assert!(words.ends_with(&format!("({name})")), "{words}");
            }
            assert_eq!(told(-errno), Err(error));
        }
        assert_eq!(told(3), Ok(Node(3)));
        assert!(PageErrno(libc::EPERM).of_page().contains("does not name"));
    }
}
