//! The adversary of `OwnMemory`: random programs that do to memory of their own process whatever a program can, while
//! that process takes snapshots of it by the library. After every capture the snapshot must equal the memory, as
//! `/proc/self/mem` reads it.
//!
//! A program runs in a process of its own (`torture --own-program FILE`), so that one that dies or hangs is told like
//! any other failure. It is text, one step a line, as the programs of the other adversary are:
//!
//! | step | what is done |
//! |---|---|
//! | `region KIND PAGES` | a region, before `!new`. KIND `anon` `huge` `memfd` `alone` `zero` (shared anonymous) `file` `disk` (private, of a memfd or a file on a disk) |
//! | `store R P V`, `fill R P N V`, `load R P N` | stores and loads by the processor |
//! | `read R P V`, `direct R P V`, `vm R P V`, `mem R P V` | read(2), the same of a file open for direct I/O, process_vm_writev(2), `/proc/self/mem` |
//! | `advise NAME R P N`, `protect HOW R P N` | madvise(2), mprotect(2) |
//! | `replace KIND R P N`, `unmap R P N`, `heal` | another mapping over it; a hole; anonymous memory in all holes |
//! | `move R P N R2 P2`, `leave R P N R2 P2` | mremap(2) to another place; the same with MREMAP_DONTUNMAP |
//! | `pwrite F P V`, `punch F P N`, `shrink F P`, `other F P V`, `keep F`, `unkeep` | what others do to the file F: by descriptor, a hole, cut off and grown again, by another mapping that goes at once, or stays |
//! | `child R P V`, `idle`, `reap` | a forked child stores and ends; one that stays; the end of those that stay |
//! | `ring R P N`, `fixed R P V`, `unring`, `ownring`, `unownring` | an io_uring with fixed buffers, a read into them; one whose queues lie in own memory |
//! | `!new` | the `OwnMemory` is made, or made again, with a store of its own |
//! | `!check` | a snapshot, compared |
//! | `!back HOW` | a capture that is not stored: `give` `drop` `forget` `panic` `fail` (the storage does) |
//! | `!late R P V` | a capture; a store; only then it is stored |
//! | `!during R N` | a thread stores while N snapshots are taken |
//! | `!slow R P V` | a direct read that is under way during a snapshot and ends after it |
//! | `!forked` | a forked child tries all that it must not |
//! | `!rollback N` | the memory is put back to the Nth newest snapshot |
//! | `!mark R P N` | told to be written; memory that is `alone` is told of by itself whenever it must be |

mod driver;
mod generate;
mod run;
mod world;

pub use driver::run_program;
pub use generate::program;
pub use run::{Search, in_this_process, kept, replay, search};
