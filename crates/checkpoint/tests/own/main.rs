//! Prevents that who embeds pagetide loses a page, or gets back what never was: by how an `OwnMemory` is used, in which
//! order captures are stored, and how memory is put back.

#[path = "../../../kernel/tests/common/mod.rs"]
mod common;
#[path = "../snaps/mod.rs"]
mod snaps;

mod abuse;
mod back;
mod captures;
mod epochs;
mod examples;
mod lazily;
mod regions;
mod sound;
