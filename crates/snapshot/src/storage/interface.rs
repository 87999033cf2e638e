//! What a storage can do.

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;

/// A place for files that are written once, under `/`-separated names.
pub trait Storage: Send + Sync + Debug {
    /// The place, for messages.
    fn location(&self) -> String;

    /// Makes the place ready to take files. What is there already stays.
    fn prepare(&self) -> io::Result<()>;

    /// The names of all files, in no order. The place itself missing is `NotFound`.
    fn list(&self) -> io::Result<Vec<String>>;

    /// A finished file, for reading.
    fn open(&self, name: &str) -> io::Result<Box<dyn StoredFile>>;

    /// A new file. It has the name `name` until it is published; a file of this name that a crash
    /// left behind is replaced.
    fn create(&self, name: &str) -> io::Result<Box<dyn PartialFile>>;

    /// Removes a file. That there is none is `NotFound`.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Gives a finished file another name, for good once `sync` has returned. If there is a file of that name it stays, and
    /// the error is `AlreadyExists`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Makes durable which names there are.
    fn sync(&self) -> io::Result<()>;

    /// One of the rights to change what is here, held until what is returned is dropped.
    fn lock(&self, right: Right) -> Result<Box<dyn StorageLock>, LockFailure>;

    /// Keeps finished files where they are, until what is returned is dropped: shared by readers while they look for what
    /// they need, exclusive while files are taken away. `None` if it cannot be had now.
    fn gate(&self, access: Access) -> io::Result<Option<Box<dyn StorageLock>>>;
}

/// What of a storage only one at a time may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Add snapshots.
    Write,
    /// Make chains shorter.
    Prune,
}

/// How a gate is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// With others that look.
    Shared,
    /// Alone.
    Exclusive,
}

/// A finished file.
pub trait StoredFile: Send + Sync {
    /// Its length in bytes.
    fn length(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset` on; `UnexpectedEof` if the file ends before.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// From now on, as long as this is open, the file counts as in use.
    fn hold(&self) -> io::Result<()>;

    /// Whether somebody holds the file, over all processes.
    fn is_held(&self) -> io::Result<bool>;
}

/// A file that is being written. Dropped before it is published, it goes away.
pub trait PartialFile: Send {
    /// Adds all of `bytes` at the end.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Overwrites bytes that have been appended before.
    fn rewrite(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes everything durable, then gives the file its final name, durably. If there is a file
    /// of that name it stays, and the error is `AlreadyExists`. After an error the file does not
    /// exist under the final name. What is returned is the finished file, held.
    fn publish(self: Box<Self>, name: &str) -> io::Result<Box<dyn StoredFile>>;

    /// Makes everything durable but the name.
    fn sync(&mut self) -> io::Result<()>;

    /// Takes the place of the finished file `name`, durably. After an error either of both is there.
    fn replace(self: Box<Self>, name: &str) -> io::Result<()>;
}

/// The right to write to a storage.
pub trait StorageLock: Send + Sync + Debug {
    /// The descriptor that holds it, if it is one that holds it as long as a copy of it is open: a forked child has
    /// a copy.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Why the lock of a storage could not be had.
#[derive(Debug)]
pub enum LockFailure {
    /// Somebody else has it; who, if that is known.
    Held(Option<String>),
    /// The storage failed.
    Io(io::Error),
}
