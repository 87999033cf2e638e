//! Waiting a little between two tries.

use std::thread::{sleep, yield_now};
use std::time::Duration;

/// `wait4` has no time limit, and what it waits for takes a few microseconds as a rule: try at
/// once and again for a while, then sleep, longer each time.
#[derive(Debug)]
pub(super) struct Pause {
    tries: u32,
}

impl Pause {
    const TRIES_BEFORE_SLEEP: u32 = 200;
    const TRIES_FOR_ALL: u32 = 16;

    pub(super) fn new() -> Self {
        Self { tries: 0 }
    }

    pub(super) fn is_long(&self) -> bool {
        self.tries > Self::TRIES_BEFORE_SLEEP
    }

    /// True now and then: the time for a question that costs more.
    pub(super) fn is_for_all(&self) -> bool {
        self.is_long() || self.tries % Self::TRIES_FOR_ALL == Self::TRIES_FOR_ALL - 1
    }

    pub(super) fn wait(&mut self) {
        self.tries += 1;
        if self.is_long() {
            let step = (self.tries - Self::TRIES_BEFORE_SLEEP).min(20);
            sleep(Duration::from_micros(u64::from(step) * 50));
        } else {
            yield_now();
        }
    }
}
