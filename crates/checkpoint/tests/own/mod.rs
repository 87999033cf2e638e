//! By how an `OwnMemory` is used, in which order captures are stored, and how memory is put back.

mod abuse;
mod back;
mod captures;
mod epochs;
mod examples;
mod lazily;
mod regions;
mod sound;
