//! Which memory of this process is in use by which `OwnMemory`. Two over the same pages would steal each other's
//! marks, and one would put back what the other tracks.

use super::error::OwnMemoryError;
use crate::capture::SIZE;
use pagetide_pages::PageSet;
use std::sync::{Mutex, PoisonError};

/// The claims of this process, and those that were its parent's when it was forked.
static CLAIMS: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

struct Entry {
    pid: u32,
    number: u64,
    pages: PageSet,
}

/// Pages that nobody else in this process may claim as long as this lives.
#[derive(Debug)]
pub(super) struct Claim {
    pid: u32,
    number: u64,
}

impl Claim {
    /// Claims `pages`, by address, for process `pid`, which is this one.
    pub fn new(pid: u32, pages: &PageSet) -> Result<Self, OwnMemoryError> {
        let mut claims = CLAIMS.lock().unwrap_or_else(PoisonError::into_inner);
        // A child has copies of its parent's claims, but other memory.
        claims.retain(|claim| claim.pid == pid);
        refuse_claimed(claims.iter(), pages)?;
        let number = claims.last().map_or(0, |last| last.number + 1);
        claims.push(Entry {
            pid,
            number,
            pages: pages.clone(),
        });
        Ok(Self { pid, number })
    }

    /// Claims `pages` in place of what it claimed. On an error it claims what it did.
    pub fn change(&self, pages: &PageSet) -> Result<(), OwnMemoryError> {
        let mut claims = CLAIMS.lock().unwrap_or_else(PoisonError::into_inner);
        let is_own = |claim: &&Entry| (claim.pid, claim.number) == (self.pid, self.number);
        refuse_claimed(claims.iter().filter(|claim| !is_own(claim)), pages)?;
        let own = claims
            .iter_mut()
            .find(|claim| (claim.pid, claim.number) == (self.pid, self.number));
        if let Some(own) = own {
            own.pages = pages.clone();
        }
        Ok(())
    }
}

/// Fails if one of the `claims` has some of the pages.
fn refuse_claimed<'a>(
    claims: impl Iterator<Item = &'a Entry>,
    pages: &PageSet,
) -> Result<(), OwnMemoryError> {
    for claim in claims {
        let common = claim.pages.intersect(pages);
        if let Some(&first) = common.ranges().first() {
            let (start, end) = SIZE.span_of(first);
            return Err(OwnMemoryError::InUse {
                address: start,
                length_bytes: end - start,
            });
        }
    }
    Ok(())
}

impl Drop for Claim {
    fn drop(&mut self) {
        if std::process::id() != self.pid {
            // A forked child, where another thread of the parent may have held the lock.
            return;
        }
        let mut claims = CLAIMS.lock().unwrap_or_else(PoisonError::into_inner);
        claims.retain(|claim| (claim.pid, claim.number) != (self.pid, self.number));
    }
}
