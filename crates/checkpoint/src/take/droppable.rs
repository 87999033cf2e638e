//! Memory that the kernel may take away at any time (MAP_DROPPABLE of mmap(2), since Linux 6.11). Its content is never stored: the
//! program expects it to be gone at any time, and what the C library keeps there is the state of its random numbers, of which no
//! two processes may have the same. It comes back as such memory, and empty.
//!
//! Only `/proc/PID/smaps` tells it, which is read beside the copying: so it is copied like other memory, and left out of what
//! is stored. Where the buffer is full before that, it is asked for at once.

use super::window::WindowResult;
use crate::advice::{Advice, DROPPABLE};
use crate::capture::{CaptureError, SIZE};
use crate::members::Members;
use crate::spaces::Spaces;
use pagetide_pages::PageSet;
use std::collections::HashMap;

/// The droppable pages of each space, by its number, as they are told of the members that stood.
pub(crate) fn of_all(
    members: &Members,
    spaces: &Spaces,
    stopped: &[Option<WindowResult>],
) -> HashMap<usize, PageSet> {
    let all = members.list().iter().zip(stopped);
    let told = all.filter_map(|(member, stopped)| {
        let pages = stopped.as_ref()?.droppable();
        Some((spaces.number_of(&member.names.space), pages))
    });
    told.filter(|(_, pages)| !pages.is_empty()).collect()
}

/// The same of members that stand now, asked for once, if anybody wants to know it.
#[derive(Default)]
pub(crate) struct Asked(Option<HashMap<usize, PageSet>>);

impl Asked {
    /// Of processes, each with the number of its space. None of one that is gone, of which nothing can be read any more.
    pub fn of(
        &mut self,
        processes: &[(i32, usize)],
    ) -> Result<&HashMap<usize, PageSet>, CaptureError> {
        if self.0.is_none() {
            let mut told = HashMap::new();
            for &(pid, number) in processes {
                match Advice::read(pid) {
                    Ok((advice, _)) => {
                        told.insert(number, advice.pages_with(DROPPABLE));
                    }
                    Err(_) if crate::family::has_ended(pid) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            self.0 = Some(told);
        }
        Ok(self.0.get_or_insert_default())
    }
}

impl WindowResult {
    /// The droppable pages, once the advice of its mappings is known.
    pub fn droppable(&self) -> PageSet {
        self.advice.pages_with(DROPPABLE)
    }

    /// Takes back what was said of such memory being compared: nothing of it is.
    pub fn forget_droppable(&mut self) {
        let droppable = self.droppable();
        self.not_tracked.retain(|told| {
            let is_part = told.end > told.start;
            !is_part || !droppable.contains_range(SIZE.covering(told.start, told.end))
        });
    }
}
