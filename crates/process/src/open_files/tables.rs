//! Which descriptors processes have, and which of them are one open file description.

use super::error::OpenFilesError;
use super::fdinfo::FdInfo;
use super::sorted::Sorted;
use crate::blocker::Blocker;
use crate::blocker_kind::BlockerKind;
use crate::stop::StoppedProcess;
use pagetide_kernel::kcmp::{compare_files, share_descriptors, share_directories};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::PathBuf;

/// One descriptor of one process.
pub(crate) struct Listed {
    pub(crate) pid: i32,
    pub(crate) number: i32,
    pub(crate) info: FdInfo,
    /// Its description, by its place among all of them.
    pub(crate) description: u32,
}

/// All descriptors of all processes, found by number.
pub(crate) struct ByNumber<'a> {
    pub(crate) listed: &'a [Listed],
    places: HashMap<i32, Vec<usize>>,
}

impl<'a> ByNumber<'a> {
    pub(crate) fn new(listed: &'a [Listed]) -> Self {
        let mut places: HashMap<i32, Vec<usize>> = HashMap::new();
        for (place, one) in listed.iter().enumerate() {
            places.entry(one.number).or_default().push(place);
        }
        Self { listed, places }
    }

    pub(crate) fn with(&self, number: i32) -> impl Iterator<Item = &'a Listed> {
        let places = self.places.get(&number).map_or(&[][..], Vec::as_slice);
        places.iter().map(|place| &self.listed[*place])
    }
}

/// All descriptors of a process but those of `skip`, by number.
pub(crate) fn list(pid: i32, skip: &[(i32, i32)]) -> Result<Vec<Listed>, OpenFilesError> {
    let path = format!("/proc/{pid}/fd");
    let failed = |source: io::Error| OpenFilesError::Proc {
        path: PathBuf::from(&path),
        source,
    };
    let mut listed = Vec::new();
    for entry in fs::read_dir(&path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        let Some(number) = number.filter(|number| !skip.contains(&(pid, *number))) else {
            continue;
        };
        if let Some(info) = FdInfo::read(pid, number).map_err(failed)? {
            listed.push(Listed {
                pid,
                number,
                info,
                description: 0,
            });
        }
    }
    listed.sort_by_key(|one| one.number);
    Ok(listed)
}

/// Numbers the descriptions in the order in which they first appear, and returns how many there are.
pub(crate) fn number_descriptions(listed: &mut [Listed]) -> Result<u32, OpenFilesError> {
    let of = |index: usize| (listed[index].pid, listed[index].number);
    let mut known = Sorted::default();
    let mut numbers: Vec<u32> = Vec::with_capacity(listed.len());
    let mut count = 0;
    for index in 0..listed.len() {
        let compare = |other: usize| compare_files(of(other), of(index));
        let same = known.find_or_insert(index, compare);
        let number = match same.map_err(OpenFilesError::Compare)? {
            Some(same) => numbers[same],
            None => {
                count += 1;
                count - 1
            }
        };
        numbers.push(number);
    }
    for (one, number) in listed.iter_mut().zip(numbers) {
        one.description = number;
    }
    Ok(count)
}

/// What threads do not share with their process, and what processes share that should each have their own.
pub(crate) fn unusual_sharing(
    stopped: &StoppedProcess,
    earlier: &[&StoppedProcess],
) -> Vec<Blocker> {
    let pid = stopped.identity().pid;
    let mut blockers = Vec::new();
    let advice = "nothing can be done about it: the program is made that way";
    let mut push = |kind: BlockerKind, place: String, what: String, instead: &str| {
        blockers.push(Blocker {
            pid,
            kind,
            place,
            what,
            advice: advice.to_owned(),
            instead: Some(instead.to_owned()),
        });
    };
    for thread in stopped.threads().iter().map(|thread| thread.get()) {
        if thread == pid {
            continue;
        }
        let place = || format!("thread:{thread}");
        if matches!(share_descriptors(pid, thread), Ok(false)) {
            let what = format!("thread {thread} has descriptors of its own");
            let instead = "the thread has the descriptors of the process";
            push(BlockerKind::ThreadDescriptors, place(), what, instead);
        }
        if matches!(share_directories(pid, thread), Ok(false)) {
            let what = format!("thread {thread} has a current directory of its own");
            let instead = "the thread has the current directory of the process";
            push(BlockerKind::ThreadDirectory, place(), what, instead);
        }
    }
    for other in earlier.iter().map(|other| other.identity().pid) {
        if matches!(share_descriptors(pid, other), Ok(true)) {
            let what = format!("the process has one table of descriptors with process {other}");
            let instead = "each process has its own descriptors";
            push(
                BlockerKind::SharedDescriptors,
                format!("process:{other}"),
                what,
                instead,
            );
        }
        if matches!(share_directories(pid, other), Ok(true)) {
            let what = format!("the process has one current directory with process {other}");
            let instead = "each process has its own current directory";
            push(
                BlockerKind::SharedDirectory,
                format!("process:{other}"),
                what,
                instead,
            );
        }
    }
    blockers
}
