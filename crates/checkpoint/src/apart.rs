//! What is read of stores is decompressed in processes that can do nothing else: zstd is a library of C, and what it is given
//! may have been made by somebody who knows of a mistake in it. All else that reads stores is Rust.

use pagetide_kernel::apart::Apart;
use pagetide_snapshot::{
    DECOMPRESS_BYTES_MAX, Decompress, Decompressor, decompress_elsewhere, memory_limit,
};
use std::io;
use std::sync::atomic::AtomicU8;
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};

/// What a process may take, about: twice the longest input of usual length.
const PROCESS_BYTES: u64 = 16 << 20;

static POOL: OnceLock<Pool> = OnceLock::new();

/// Processes that decompress. About as many as there are cores, each started when all others are busy.
struct Pool {
    state: Mutex<State>,
    came_back: Condvar,
}

#[derive(Default)]
struct State {
    free: Vec<Apart>,
    /// How many more may be started.
    left: usize,
    /// How many there are, busy ones included.
    alive: usize,
}

/// From now on everything that this program reads of stores is decompressed in other processes, which have no privilege, no
/// files, and a filter that lets them do nothing but compute (see [`pagetide_kernel::apart`]): for programs that
/// have more rights than whoever may have written a store. `at_once` starts all of them now, which is
/// for a program that gives up the right to make processes; otherwise the first, and others when they are needed. They are copies of this
/// program, so for one that tracks much memory of its own this costs more than it is worth.
///
/// # Errors
///
/// No process can be made.
pub fn decompress_apart(at_once: bool) -> io::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let fit = usize::try_from(memory_limit() / 4 / PROCESS_BYTES).unwrap_or(usize::MAX);
    // One more than there are cores, since each waits until what it has decompressed is written.
    let most = if at_once { cores } else { cores + 1 };
    let mut state = State {
        left: most.min(fit.max(1)),
        ..State::default()
    };
    // The first makes itself ready while the store is opened, and is forked from a program that is still small.
    let now = if at_once { state.left } else { 1 };
    for _ in 0..now {
        let apart = state.start()?;
        state.free.push(apart);
    }
    let pool = POOL.get_or_init(|| Pool {
        state: Mutex::new(state),
        came_back: Condvar::new(),
    });
    decompress_elsewhere(Box::new(pool));
    Ok(())
}

/// Ends those of the processes that have nothing to do, for a program that will not read much for a while. They are started again when
/// they are needed.
pub fn rest_decompressing() {
    if let Some(pool) = POOL.get() {
        let mut state = pool.state.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = std::mem::take(&mut state.free);
        state.left += ended.len();
        state.alive -= ended.len();
    }
}

/// Ends those that have nothing to do and one of these pids, which somebody else is to get.
pub(crate) fn leave_numbers(numbers: &[i32]) {
    if let Some(pool) = POOL.get() {
        let mut state = pool.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.leave(numbers);
    }
}

impl State {
    fn leave(&mut self, numbers: &[i32]) {
        let before = self.free.len();
        self.free.retain(|apart| !numbers.contains(&apart.pid()));
        let ended = before - self.free.len();
        self.left += ended;
        self.alive -= ended;
    }

    fn start(&mut self) -> io::Result<Apart> {
        let mut decompressor = Decompressor::new()?;
        let (most, work) = (
            DECOMPRESS_BYTES_MAX,
            move |packed: &[u8], raw: &mut [u8]| decompressor.decompress(packed, raw),
        );
        let apart = Apart::start(most, most, work)?;
        self.left -= 1;
        self.alive += 1;
        Ok(apart)
    }
}

impl Pool {
    /// One that is free, once there is one.
    fn take(&self) -> io::Result<Apart> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(free) = state.free.pop() {
                return Ok(free);
            }
            if state.left > 0 {
                match state.start() {
                    Ok(started) => return Ok(started),
                    Err(error) if state.alive == 0 => return Err(error),
                    // Those that there are have to do.
                    Err(error) => {
                        tracing::warn!(%error, "cannot make another process that decompresses");
                        state.left = 0;
                    }
                }
            }
            if state.alive == 0 {
                return Err(io::Error::other("no process that decompresses is left"));
            }
            state = self
                .came_back
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give_back(&self, apart: Apart) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !apart.has_ended() {
            state.free.push(apart)
        } else {
            state.alive -= 1
        }
        drop(state);
        self.came_back.notify_all();
    }
}

impl Decompress for &'static Pool {
    fn decompress(&self, packed: &[u8], raw: &mut [u8]) -> io::Result<Option<usize>> {
        let mut apart = self.take()?;
        let outcome = apart.run(packed, raw);
        self.give_back(apart);
        outcome
    }

    fn decompress_there(
        &self,
        packed_bytes: usize,
        put: &mut dyn FnMut(&mut [u8]) -> io::Result<()>,
        raw_bytes: usize,
        see: &mut dyn FnMut(&[AtomicU8]),
    ) -> io::Result<Option<usize>> {
        let mut apart = self.take()?;
        let outcome = apart.run_there(packed_bytes, put, raw_bytes, see);
        self.give_back(apart);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Prevents that a pid which a process is to have again is taken by what reads its snapshot.
    #[test]
    fn a_number_that_is_needed_is_left() {
        let mut state = State {
            left: 3,
            ..State::default()
        };
        for _ in 0..3 {
            let apart = state.start().unwrap();
            state.free.push(apart);
        }
        let pids: Vec<i32> = state.free.iter().map(Apart::pid).collect();
        let is_there = |pid: i32| Path::new(&format!("/proc/{pid}")).exists();
        state.leave(&[pids[1], 1]);
        assert_eq!(
            pids.iter().map(|&pid| is_there(pid)).collect::<Vec<_>>(),
            [true, false, true]
        );
        assert_eq!((state.left, state.alive, state.free.len()), (1, 2, 2));
        let again = state.start().unwrap();
        assert_eq!((state.left, state.alive), (0, 3));
        drop(again);
    }
}
