//! Prevents that putting descriptors back takes the square of how many there are, in calls or in our own steps. Calls are
//! counted. Our own steps are not timed: what is quadratic would do tens of billions here, and not end.

use super::model::{Description, Descriptor, DescriptorTable, Kind, OpenFiles};
use super::reopen::{Holders, Reopened};
use super::{EpollEntry, EpollState, Late, Now, ProcessFile, ProcessFileKind};
use crate::remote_error::RemoteCallError;
use crate::system_calls::{Batch, SystemCalls};
use std::fs::File;
use std::os::fd::OwnedFd;

const MANY: i32 = 200_000;
const PID: i32 = 7;

/// Counts calls, which all succeed.
#[derive(Default)]
struct Counter {
    calls: usize,
}

impl SystemCalls for Counter {
    fn call(&mut self, _number: i64, _args: [u64; 6]) -> Result<u64, RemoteCallError> {
        self.calls += 1;
        Ok(0)
    }

    fn call_with(
        &mut self,
        number: i64,
        _bytes: &mut [u8],
        args: &dyn Fn(u64) -> [u64; 6],
    ) -> Result<u64, RemoteCallError> {
        self.call(number, args(16))
    }

    fn call_all(&mut self, batch: Batch) -> Result<(), (usize, RemoteCallError)> {
        self.calls += batch.len();
        Ok(())
    }
}

fn description(kind: Kind) -> Description {
    Description {
        status_flags: 0,
        owner: None,
        locks: Vec::new(),
        kind,
        blockers: Vec::new(),
    }
}

/// A process with an epoll that watches `count` pidfds, which it has behind it.
fn with_pidfds(count: i32) -> (OpenFiles, Reopened) {
    let pidfd = Kind::Process(ProcessFile {
        pid: PID,
        kind: ProcessFileKind::Pidfd,
    });
    let numbers = 1..=count;
    let place = |number: i32| number.unsigned_abs();
    let watched = numbers.clone().map(|number| EpollEntry {
        number,
        events: 1,
        data: 0,
        description: place(number),
    });
    let epoll = Kind::Epoll(EpollState {
        entries: watched.collect(),
    });
    let mut descriptions = vec![description(epoll)];
    descriptions.extend(numbers.map(|_| description(pidfd.clone())));
    let entries = (0..=count).map(|number| Descriptor {
        number,
        close_on_exec: false,
        description: place(number),
    });
    let table = DescriptorTable {
        pid: PID,
        entries: entries.collect(),
        cwd: None,
        root: None,
        posix_locks: Vec::new(),
        blockers: Vec::new(),
    };
    let files = OpenFiles {
        descriptions,
        tables: vec![table],
        ..OpenFiles::default()
    };
    let mut reopened = Reopened::empty(Holders::of(&files));
    let epoll: OwnedFd = File::open("/dev/null").expect("a file").into();
    reopened.descriptions = vec![Some(epoll)];
    (files, reopened)
}

#[test]
fn calls_and_steps_grow_with_how_many_descriptors_there_are() {
    let calls = |count: i32| {
        let (files, reopened) = with_pidfds(count);
        let mut counter = Counter::default();
        let same = |then| (then == PID).then_some(then);
        let now = Now {
            process: &same,
            thread: &same,
        };
        files
            .place(PID, &reopened, &mut counter)
            .expect("all is placed");
        files
            .place_late(PID, &reopened, Late::Processes, now, &mut counter)
            .expect("the rest is placed");
        for place in 0..files.descriptions.len() {
            assert_eq!(reopened.holders.first(place), Some(0));
        }
        counter.calls
    };
    let (one, ten) = (calls(1), calls(10));
    let for_each = (ten - one) / 9;
    let many = usize::try_from(MANY).expect("a count");
    assert_eq!(calls(MANY), one + for_each * (many - 1));
}
