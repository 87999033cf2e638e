//! The spaces of a snapshot in the making: their indices, which stay as they are from the first page that
//! is stored on, and their regions, which are known last.

use crate::arena::Arena;
use crate::capture::SIZE;
use crate::options::Progress;
use pagetide_pages::PageSet;
use pagetide_snapshot::{Region, SnapshotWriter, Space, WriteError};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// So many pieces are stored between two signs of progress.
const PIECES_AT_ONCE: usize = 256;

/// See the head of this file.
#[derive(Default)]
pub(crate) struct Spaces {
    spaces: Vec<Space>,
    numbers: HashMap<String, usize>,
    pub stored: Amount,
}

/// How many bytes of pages were stored of one snapshot, of about how many: those that are copied while the processes run
/// count, too.
#[derive(Default)]
pub(crate) struct Amount {
    progress: Option<Progress>,
    done: AtomicU64,
    total: AtomicU64,
}

impl Amount {
    /// So many bytes are still to come. Only of the last ones is it known that they are: `is_last`.
    pub fn expect(&self, bytes: u64, is_last: bool) {
        let rest = bytes + u64::from(!is_last);
        let total = self.done.load(Ordering::Relaxed) + rest;
        self.total.fetch_max(total, Ordering::Relaxed);
        if is_last {
            self.total.store(total, Ordering::Relaxed);
        }
    }

    /// So many more were stored.
    pub fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let total = self.total.load(Ordering::Relaxed);
        if let Some(progress) = &self.progress {
            (progress.0)(done, total.max(done));
        }
    }
}

impl Spaces {
    /// None yet; whoever is told how much was stored.
    pub fn told(progress: Option<Progress>) -> Self {
        let stored = Amount {
            progress,
            ..Amount::default()
        };
        Self {
            stored,
            ..Self::default()
        }
    }

    /// The index of the space of this name; a new one if there is none.
    pub fn number(&mut self, name: &str) -> usize {
        if let Some(known) = self.numbers.get(name) {
            return *known;
        }
        let number = self.spaces.len();
        self.spaces.push(Space::new(name, SIZE, Vec::new()));
        self.numbers.insert(name.to_owned(), number);
        number
    }

    /// The index of a space that has one.
    pub fn number_of(&self, name: &str) -> usize {
        let known = self.numbers.get(name).copied();
        known.expect("every space is given a number before it is asked for")
    }

    /// Says which regions a space has.
    pub fn describe(&mut self, number: usize, regions: Vec<Region>) {
        self.spaces[number].regions = regions;
    }

    /// The regions that a space was said to have.
    pub fn regions_of(&self, number: usize) -> &[Region] {
        &self.spaces[number].regions
    }

    /// Tells the writer.
    pub fn tell(&self, writer: &mut SnapshotWriter) -> Result<(), WriteError> {
        writer.set_spaces(self.spaces.clone())
    }

    /// Stores what the arena holds.
    pub fn store(&self, arena: &Arena, writer: &mut SnapshotWriter) -> Result<(), WriteError> {
        self.store_without(&HashMap::new(), arena, writer)
    }

    /// The same, but for the pages of each space that are in `left_out`, by its number.
    pub fn store_without(
        &self,
        left_out: &HashMap<usize, PageSet>,
        arena: &Arena,
        writer: &mut SnapshotWriter,
    ) -> Result<(), WriteError> {
        self.tell(writer)?;
        for (space, pieces) in arena.pieces_without(left_out) {
            // Processes may stand still meanwhile; whoever watches sees that it goes on.
            for some in pieces.chunks(PIECES_AT_ONCE) {
                writer.put_pages(space, some)?;
                self.stored
                    .add(some.iter().map(|(_, bytes)| bytes.len() as u64).sum());
                pagetide_kernel::progress::step();
            }
        }
        Ok(())
    }
}
