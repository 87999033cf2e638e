//! How a schedule keeps its store short: not after each snapshot, since a prune costs about as much whether one goes or many,
//! and never while anybody stands still. A prune that fails is told, and tried again later.

use crate::failure;
use crate::output;
use pagetide_snapshot::{Keep, PruneError, Pruned};
use std::time::{Duration, Instant};

/// There may be more than asked for by this part of it.
const SLACK: u64 = 8;
/// A failure that repeats is told again after this time.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// See the head of this file.
pub struct Keeping {
    last: Option<u64>,
    /// How many there are more than asked for, or may be.
    over: u64,
    told: Option<(String, Instant)>,
}

impl Keeping {
    /// So many of the newest are to be kept; none: all.
    pub fn new(last: Option<u64>) -> Self {
        Self {
            last,
            // What others have left in the store is not known.
            over: u64::MAX,
            told: None,
        }
    }

    /// One more was taken. When there are enough too many, `prune` takes them away.
    pub fn one_more(&mut self, prune: impl FnOnce(&Keep) -> Result<Pruned, PruneError>) {
        self.over = self.over.saturating_add(1);
        if self.last.is_some_and(|last| self.over > last / SLACK) {
            self.prune(prune);
        }
    }

    /// No more will be taken.
    pub fn end(&mut self, prune: impl FnOnce(&Keep) -> Result<Pruned, PruneError>) {
        if self.over > 0 {
            self.prune(prune);
        }
    }

    fn prune(&mut self, prune: impl FnOnce(&Keep) -> Result<Pruned, PruneError>) {
        let Some(last) = self.last else { return };
        let keep = Keep {
            last,
            ..Keep::default()
        };
        // Also after a failure: the next try is when as many have come again.
        self.over = 0;
        let Err(error) = prune(&keep) else {
            self.told = None;
            return;
        };
        let message = failure::message(&error.into());
        let is_told =
            |(told, at): &(String, Instant)| *told == message && at.elapsed() < TELL_AGAIN;
        if !self.told.as_ref().is_some_and(is_told) {
            output::note!("pagetide: not pruned for now: {message}; snapshots go on");
            self.told = Some((message, Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_prunes_at_first_then_now_and_then_and_at_the_end() {
        let mut keeping = Keeping::new(Some(16));
        let mut pruned = Vec::new();
        for number in 0..8 {
            keeping.one_more(|keep| {
                assert_eq!(keep.last, 16);
                pruned.push(number);
                match number {
                    3 => Err(PruneError::NothingKept),
                    _ => Ok(Pruned::default()),
                }
            });
        }
        keeping.end(|_| {
            pruned.push(100);
            Ok(Pruned::default())
        });
        keeping.end(|_| panic!("there are no more than asked for"));
        assert_eq!(pruned, [0, 3, 6, 100]);
        let mut all = Keeping::new(None);
        all.one_more(|_| panic!("all are kept"));
        all.end(|_| panic!("all are kept"));
    }
}
