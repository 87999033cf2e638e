//! Where the files of a store are kept, as a small trait: a directory, memory, later an object
//! store. Nothing here knows what the files mean.

mod directory;
mod held;
mod interface;
mod memory;

pub use directory::DirectoryStorage;
pub use held::Untrusted;
pub use interface::{Access, LockFailure, PartialFile, Right, Storage, StorageLock, StoredFile};
pub use memory::{AfterCrash, Fault, MemoryStorage};
