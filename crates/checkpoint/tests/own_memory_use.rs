//! Prevents that who embeds pagetide loses a page, or gets back what never was: by how an `OwnMemory` is used.

mod own;
mod snaps;
