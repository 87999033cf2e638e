//! One address space, held by open files that stay bound to it whatever program its process runs later.

use crate::error::AttachError;
use crate::page_tables::PageTables;
use pagetide_kernel::memory::ProcessMemory;
use pagetide_kernel::pagemap_scan::{Categories, Pagemap};
use pagetide_kernel::probe;
use pagetide_process::start_of_stack;

/// See the head of this file.
pub(crate) struct AddressSpace {
    pub memory: ProcessMemory,
    pub pagemap: Pagemap,
    pub knows_guards: bool,
    /// Of the program that ran when it was opened.
    pub start_of_stack: Option<u64>,
}

impl AddressSpace {
    /// What its page tables say.
    pub fn page_tables(&self) -> PageTables<'_> {
        PageTables {
            pagemap: &self.pagemap,
            knows_guards: self.knows_guards,
        }
    }

    pub fn open(pid: i32) -> Result<Self, AttachError> {
        Ok(Self {
            start_of_stack: start_of_stack(pid),
            memory: ProcessMemory::open(pid)?,
            pagemap: Pagemap::of_process(pid)?,
            knows_guards: probe::known_categories().contains(Categories::GUARD),
        })
    }
}
