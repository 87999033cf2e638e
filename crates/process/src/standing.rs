//! How many processes stand still by this program. Whatever would keep it from letting them go waits until there are none.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// For whoever only looks.
static COUNT: AtomicUsize = AtomicUsize::new(0);
static GATE: Mutex<Gate> = Mutex::new(Gate {
    standing: 0,
    is_shut: false,
});
static CHANGED: Condvar = Condvar::new();
static TOLD: OnceLock<fn(bool)> = OnceLock::new();

struct Gate {
    standing: usize,
    /// Nobody stands, and nobody may be stopped.
    is_shut: bool,
}

fn gate() -> MutexGuard<'static, Gate> {
    GATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait(gate: MutexGuard<'static, Gate>) -> MutexGuard<'static, Gate> {
    CHANGED.wait(gate).unwrap_or_else(PoisonError::into_inner)
}

/// One process stands still, or is being stopped, as long as this lives.
#[derive(Debug)]
pub(crate) struct Standing;

impl Standing {
    pub fn begin() -> Self {
        let mut gate = gate();
        while gate.is_shut {
            gate = wait(gate);
        }
        if gate.standing == 0 {
            tell(true);
        }
        gate.standing += 1;
        COUNT.store(gate.standing, Ordering::Relaxed);
        Self
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        let mut gate = gate();
        gate.standing -= 1;
        COUNT.store(gate.standing, Ordering::Relaxed);
        if gate.standing == 0 {
            tell(false);
            CHANGED.notify_all();
        }
    }
}

fn tell(any: bool) {
    if let Some(told) = TOLD.get() {
        told(any);
    }
}

/// See `StoppedProcess::any`.
pub(crate) fn any() -> bool {
    COUNT.load(Ordering::Relaxed) > 0
}

/// See `StoppedProcess::on_change`.
pub(crate) fn on_change(told: fn(bool)) {
    let _ = TOLD.set(told);
}

/// See `StoppedProcess::while_none_stands`.
pub(crate) fn while_none<T>(work: impl FnOnce() -> T) -> T {
    let mut shut = gate();
    while shut.standing > 0 || shut.is_shut {
        shut = wait(shut);
    }
    shut.is_shut = true;
    drop(shut);
    let done = work();
    gate().is_shut = false;
    CHANGED.notify_all();
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    /// One test, since there is one gate.
    #[test]
    fn nobody_is_stopped_while_the_gate_is_shut_and_it_is_not_shut_while_anybody_stands() {
        let first = Standing::begin();
        let (shut, is_shut) = mpsc::channel();
        let (open, may_open) = mpsc::channel();
        let shutting = std::thread::spawn(move || {
            while_none(|| {
                shut.send(()).expect("the test waits");
                may_open.recv().expect("the test goes on");
            });
        });
        // A second process of a tree is stopped while the first stands.
        let second = Standing::begin();
        assert!(is_shut.recv_timeout(Duration::from_millis(50)).is_err());
        drop(first);
        assert!(is_shut.recv_timeout(Duration::from_millis(50)).is_err());
        drop(second);
        is_shut.recv().expect("now it is shut");
        let late = std::thread::spawn(|| drop(Standing::begin()));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!late.is_finished(), "nobody is stopped now");
        open.send(()).expect("it waits for this");
        late.join().expect("no panic");
        shutting.join().expect("no panic");
    }
}
