//! A global allocator that counts, and that ends the program before it takes more than it may.
//!
//! A limit that is reached ends the program at once, with exit code 3 and a line on standard error: there is no way to refuse
//! an allocation that the whole of Rust would survive. To a process under a checkpoint that is as if the program had been
//! killed. What is mapped without an allocator (mmap(2)) does not count.

#![allow(unsafe_code)]

use nix::libc;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

const EXIT_REFUSED: libc::c_int = 3;
const MESSAGE: &[u8] =
    b"pagetide: this takes more memory than --memory-limit allows: raise it, or take what is asked for in smaller parts\n";

/// See the head of this file. For `#[global_allocator]`.
#[derive(Debug)]
pub struct CountedMemory {
    bytes: AtomicUsize,
    peak: AtomicUsize,
    limit: AtomicUsize,
}

impl Default for CountedMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl CountedMemory {
    /// Without a limit.
    pub const fn new() -> Self {
        Self {
            bytes: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            limit: AtomicUsize::new(usize::MAX),
        }
    }

    /// From now on no more than so many bytes.
    pub fn limit(&self, bytes: usize) {
        self.limit.store(bytes, Ordering::Relaxed);
    }

    /// Bytes that are allocated.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The most bytes that were allocated at once, since this was last asked for.
    pub fn take_peak(&self) -> usize {
        self.peak.swap(self.bytes(), Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        let now = self
            .bytes
            .fetch_add(bytes, Ordering::Relaxed)
            .saturating_add(bytes);
        if now > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(now, Ordering::Relaxed);
        }
        if now > self.limit.load(Ordering::Relaxed) {
            end();
        }
    }

    fn remove(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

fn end() -> ! {
    // SAFETY: the pointer and the length are those of a constant.
    unsafe { libc::write(2, MESSAGE.as_ptr().cast(), MESSAGE.len()) };
    // SAFETY: the call takes a number and does not return. Nothing is cleaned up, as if the program had been killed.
    unsafe { libc::_exit(EXIT_REFUSED) }
}

// SAFETY: all memory comes from the system's allocator, with the layouts that are given; counting touches none of it and
// does not allocate.
unsafe impl GlobalAlloc for CountedMemory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.add(layout.size());
        // SAFETY: the caller's promise is the one that is asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.add(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.remove(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both are there for a moment.
        self.add(size);
        // SAFETY: as above.
        let new = unsafe { System.realloc(pointer, layout, size) };
        if new.is_null() {
            self.remove(size)
        } else {
            self.remove(layout.size())
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allocated_counts_until_it_is_freed() {
        let memory = CountedMemory::new();
        let layout = Layout::from_size_align(1000, 8).expect("a layout");
        // SAFETY: the layout has a size.
        let pointer = unsafe { memory.alloc(layout) };
        assert!(!pointer.is_null());
        assert_eq!((memory.bytes(), memory.take_peak()), (1000, 1000));
        // SAFETY: it was allocated with this layout, and the new size is not zero.
        let pointer = unsafe { memory.realloc(pointer, layout, 3000) };
        assert_eq!((memory.bytes(), memory.take_peak()), (3000, 4000));
        let layout = Layout::from_size_align(3000, 8).expect("a layout");
        // SAFETY: it has this layout now, and is used no more.
        unsafe { memory.dealloc(pointer, layout) };
        assert_eq!((memory.bytes(), memory.take_peak()), (0, 3000));
        assert_eq!(memory.take_peak(), 0);
    }
}
