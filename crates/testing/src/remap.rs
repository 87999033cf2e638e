//! Forms of mremap(2) and remap_file_pages(2) beyond moving and resizing in place.

use super::{PAGE, Region, checked};
use nix::libc;
use std::io;
use std::ops::Range;

impl Region {
    /// mremap(2) of `pages` to `new_pages` pages at a place of the kernel's choice, if there is no room
    /// where they are. Gives the new place if it is another.
    pub fn resize_anywhere(&self, pages: Range<usize>, new_pages: usize) -> Option<Self> {
        let (at, length) = (self.address(pages.start), pages.len() * PAGE);
        let flags = libc::MREMAP_MAYMOVE;
        // SAFETY: source and target belong to regions, to which no Rust reference exists.
        let new = unsafe { libc::mremap(at as *mut _, length, new_pages * PAGE, flags) };
        assert_ne!(
            new,
            libc::MAP_FAILED,
            "mremap: {}",
            io::Error::last_os_error()
        );
        (new as u64 != at).then(|| Self::adopt(new as u64, new_pages))
    }

    /// mremap(2) of nothing to as many pages: for shared memory a second mapping of the same pages, at
    /// a place of the kernel's choice.
    pub fn duplicate(&self, pages: Range<usize>) -> io::Result<Self> {
        let (at, length) = (self.address(pages.start), pages.len() * PAGE);
        // SAFETY: the new mapping is at a place of the kernel's choice and overlaps nothing.
        let new = unsafe { libc::mremap(at as *mut _, 0, length, libc::MREMAP_MAYMOVE) };
        match new {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            new => Ok(Self::adopt(new as u64, pages.len())),
        }
    }

    /// mremap(2) of `pages` to page `to` of `target`, with or without MREMAP_DONTUNMAP.
    pub fn try_move_to(
        &self,
        pages: Range<usize>,
        target: &Self,
        to: usize,
        dont_unmap: bool,
    ) -> io::Result<()> {
        let extra = if dont_unmap {
            libc::MREMAP_DONTUNMAP
        } else {
            0
        };
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | extra;
        self.remap(pages.clone(), pages.len(), flags, target.address(to))
    }

    /// remap_file_pages(2): `pages` show the pages of their file from `shown` on.
    pub fn show(&self, pages: Range<usize>, shown: usize) -> io::Result<()> {
        self.show_bytes(pages.start * PAGE, pages.len() * PAGE, 0, shown)
    }

    /// The same of any range of bytes, with any protection, and with a flag that means nothing.
    pub fn show_bytes(
        &self,
        offset: usize,
        length: usize,
        protection: i32,
        shown: usize,
    ) -> io::Result<()> {
        let at = self.start + offset as u64;
        let number = libc::SYS_remap_file_pages;
        // SAFETY: only what is mapped in this region changes, to which no Rust reference exists.
        let answer =
            unsafe { libc::syscall(number, at, length, protection, shown, libc::MAP_PRIVATE) };
        checked(i32::try_from(answer).expect("an int"))
    }

    /// Takes over a mapping that the kernel has placed.
    fn adopt(start: u64, pages: usize) -> Self {
        let length = pages * PAGE;
        Self {
            start,
            length,
            own: length,
        }
    }
}
