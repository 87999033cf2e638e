//! The threads of a process and what each of them is doing: found by number, and counted, so that a process of many threads
//! costs as much a thread as one of few.

use pagetide_kernel::ptrace::ThreadId;
use std::collections::BTreeMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Now {
    /// Seized, and asked to stop.
    Running,
    /// In a PTRACE_EVENT_STOP.
    Stopped,
    /// Ended but not reported: the first thread of a process whose other threads live.
    Ended,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct List {
    first: ThreadId,
    threads: BTreeMap<ThreadId, Now>,
    running: usize,
}

impl List {
    /// An empty one, of the process whose first thread is `first`.
    pub(super) fn new(first: ThreadId) -> Self {
        Self {
            first,
            threads: BTreeMap::new(),
            running: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.threads.len()
    }

    pub(super) fn knows(&self, thread: ThreadId) -> bool {
        self.threads.contains_key(&thread)
    }

    pub(super) fn of(&self, thread: ThreadId) -> Option<Now> {
        self.threads.get(&thread).copied()
    }

    /// Notes what a thread is doing, whether it is known or not.
    pub(super) fn put(&mut self, thread: ThreadId, now: Now) {
        self.running += usize::from(now == Now::Running);
        let before = self.threads.insert(thread, now);
        self.running -= usize::from(before == Some(Now::Running));
    }

    pub(super) fn remove(&mut self, thread: ThreadId) {
        let before = self.threads.remove(&thread);
        self.running -= usize::from(before == Some(Now::Running));
    }

    pub(super) fn clear(&mut self) {
        self.threads.clear();
        self.running = 0;
    }

    /// True if any is running.
    pub(super) fn runs(&self) -> bool {
        self.running > 0
    }

    /// All of them, the first one first, the others by number.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ThreadId, Now)> {
        let first = self.of(self.first).map(|now| (self.first, now));
        let others = self.threads.iter().map(|(&thread, &now)| (thread, now));
        let others = others.filter(|(thread, _)| *thread != self.first);
        first.into_iter().chain(others)
    }

    /// Those that are doing this, in the same order.
    pub(super) fn doing(&self, now: Now) -> impl Iterator<Item = ThreadId> {
        let all = self.iter().filter(move |(_, does)| *does == now);
        all.map(|(thread, _)| thread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_counted_and_the_first_comes_first() {
        let thread = ThreadId::new;
        let mut list = List::new(thread(70));
        for number in [90, 70, 5, 80] {
            list.put(thread(number), Now::Running);
        }
        assert!(list.runs() && list.knows(thread(5)) && !list.knows(thread(6)));
        list.put(thread(5), Now::Stopped);
        list.put(thread(5), Now::Stopped);
        list.put(thread(90), Now::Stopped);
        list.put(thread(70), Now::Stopped);
        assert!(list.runs());
        assert_eq!(list.doing(Now::Running).collect::<Vec<_>>(), [thread(80)]);
        list.remove(thread(80));
        list.remove(thread(80));
        assert!(!list.runs());
        let stopped: Vec<_> = list.doing(Now::Stopped).map(ThreadId::get).collect();
        assert_eq!((list.len(), &stopped[..]), (3, &[70, 5, 90][..]));
        list.clear();
        assert_eq!(
            (list.len(), list.runs(), list.of(thread(5))),
            (0, false, None)
        );
    }
}
