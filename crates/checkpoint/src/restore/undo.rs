//! What a restore has done before it is certain, in one log: processes that were born, files and sockets that were opened or made,
//! shared memory that was made or overwritten. Dropping it undoes all of that, the processes first, so that none of them is left
//! that could see the rest go.

use super::birth::Newborns;
use super::made::NewObjects;
use pagetide_process::Reopened;

/// See the head of this file. The fields are dropped in their order.
pub(super) struct UndoLog<'a> {
    /// The processes. They end.
    pub born: Newborns,
    /// The open files. Those are removed that were made for sockets.
    pub reopened: Reopened,
    /// Objects, which are removed, and what was there already, which gets back what it held.
    pub made: NewObjects<'a>,
}

impl<'a> UndoLog<'a> {
    /// No process has been born yet.
    pub fn new(made: NewObjects<'a>, reopened: Reopened) -> Self {
        UndoLog {
            born: Newborns::default(),
            reopened,
            made,
        }
    }

    /// All processes run: nothing is undone any more.
    pub fn keep(mut self) {
        self.born.live();
        self.made.keep();
        self.reopened.keep();
    }
}
