//! A store in memory. It keeps apart what has been written and what would survive a power cut, and
//! can be told to fail: it exists to test what happens when a disk does.

use super::interface::{Access, LockFailure, PartialFile, Right, Storage, StorageLock, StoredFile};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What goes wrong, and when. Operations count from 0, from when the fault is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This operation fails, and those after it work again.
    FailOnce(u64),
    /// This operation and all after it fail: the process or the machine is gone.
    FailFrom(u64),
    /// Appending fails once this many more bytes have been written.
    FullAfter(u64),
    /// Everything that writes is refused.
    ReadOnly,
}

/// What a power cut leaves of what had not been made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterCrash {
    /// Nothing.
    Lost,
    /// File names all, file contents half.
    Torn,
    /// Everything: only the process died.
    Kept,
}

/// Files in memory. Clones share the files.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage {
    shared: Arc<Mutex<Files>>,
}

#[derive(Debug, Default)]
struct Files {
    contents: Vec<Content>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    locked: Vec<Right>,
    /// How many are inside of the gate, and whether that is one who is alone there.
    inside: (usize, bool),
    fault: Option<Fault>,
    operations: u64,
}

#[derive(Clone, Debug, Default)]
struct Content {
    current: Vec<u8>,
    durable: Vec<u8>,
    holders: usize,
}

impl MemoryStorage {
    /// A place with no files.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what goes wrong from now on, and counts operations from 0 again.
    pub fn set_fault(&self, fault: Option<Fault>) {
        let mut files = self.files();
        files.fault = fault;
        files.operations = 0;
    }

    /// How many operations there were since the fault was set.
    pub fn operations(&self) -> u64 {
        self.files().operations
    }

    /// What would be found after a power cut at this moment, with no fault set and no lock held.
    pub fn crashed(&self, after: AfterCrash) -> Self {
        let files = self.files();
        let names = match after {
            AfterCrash::Lost => &files.durable_names,
            AfterCrash::Torn | AfterCrash::Kept => &files.names,
        };
        let survived = Self::new();
        for (name, &number) in names {
            let content = &files.contents[number];
            survived.put(name, content.after(after));
        }
        survived
    }

    /// The bytes of a file, past all faults.
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        let files = self.files();
        let &number = files.names.get(name)?;
        Some(files.contents[number].current.clone())
    }

    /// Puts a finished file there, past all faults, in place of one of that name.
    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut files = self.files();
        let number = files.contents.len();
        files.contents.push(Content {
            durable: bytes.clone(),
            current: bytes,
            holders: 0,
        });
        files.names.insert(name.to_owned(), number);
        files.durable_names.insert(name.to_owned(), number);
    }

    /// The names of all files, past all faults.
    pub fn names(&self) -> Vec<String> {
        self.files().names.keys().cloned().collect()
    }

    /// A place of its own with the same files, durable ones, and no fault.
    pub fn duplicate(&self) -> Self {
        self.crashed(AfterCrash::Kept)
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content {
    fn after(&self, after: AfterCrash) -> Vec<u8> {
        match after {
            AfterCrash::Lost => self.durable.clone(),
            AfterCrash::Kept => self.current.clone(),
            AfterCrash::Torn => {
                // Of the bytes that differ from the durable ones, the first half arrived.
                let half = (self.durable.len() + self.current.len()) / 2;
                let mut torn = self.durable.clone();
                torn.resize(half.max(torn.len()), 0);
                torn[..half].copy_from_slice(&self.current[..half]);
                torn
            }
        }
    }
}

impl Files {
    /// Counts an operation and fails it if it is its turn.
    fn step(&mut self, writes: bool) -> io::Result<()> {
        let turn = self.operations;
        self.operations += 1;
        match self.fault {
            Some(Fault::FailOnce(at)) if turn == at => Err(io::Error::other("injected failure")),
            Some(Fault::FailFrom(at)) if turn >= at => Err(io::Error::other("injected crash")),
            Some(Fault::ReadOnly) if writes => Err(ErrorKind::ReadOnlyFilesystem.into()),
            _ => Ok(()),
        }
    }

    /// Takes room for `bytes` bytes; gives how many fit.
    fn room(&mut self, bytes: usize) -> usize {
        match &mut self.fault {
            Some(Fault::FullAfter(left)) => {
                let taken = (*left).min(bytes as u64);
                *left -= taken;
                taken as usize
            }
            _ => bytes,
        }
    }
}

impl Storage for MemoryStorage {
    fn location(&self) -> String {
        "memory".to_owned()
    }

    fn prepare(&self) -> io::Result<()> {
        self.files().step(true)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut files = self.files();
        files.step(false)?;
        Ok(files.names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn StoredFile>> {
        let mut files = self.files();
        files.step(false)?;
        let number = *files.names.get(name).ok_or(ErrorKind::NotFound)?;
        Ok(Box::new(MemoryFile {
            storage: self.clone(),
            number,
            holds: AtomicBool::new(false),
        }))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn PartialFile>> {
        let mut files = self.files();
        files.step(true)?;
        let number = files.contents.len();
        files.contents.push(Content::default());
        files.names.insert(name.to_owned(), number);
        Ok(Box::new(MemoryPartial {
            storage: self.clone(),
            name: name.to_owned(),
            number,
            published: false,
        }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut files = self.files();
        files.step(true)?;
        files.names.remove(name).ok_or(ErrorKind::NotFound)?;
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.files();
        files.step(true)?;
        if files.names.contains_key(to) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let number = files.names.remove(from).ok_or(ErrorKind::NotFound)?;
        files.names.insert(to.to_owned(), number);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut files = self.files();
        files.step(true)?;
        files.durable_names = files.names.clone();
        Ok(())
    }

    fn lock(&self, right: Right) -> Result<Box<dyn StorageLock>, LockFailure> {
        let mut files = self.files();
        files.step(true).map_err(LockFailure::Io)?;
        if files.locked.contains(&right) {
            return Err(LockFailure::Held(Some(
                "another writer in memory".to_owned(),
            )));
        }
        files.locked.push(right);
        Ok(Box::new(MemoryLock {
            storage: self.clone(),
            right,
        }))
    }

    fn gate(&self, access: Access) -> io::Result<Option<Box<dyn StorageLock>>> {
        let mut files = self.files();
        files.step(false)?;
        let (count, alone) = files.inside;
        if alone || access == Access::Exclusive && count > 0 {
            return Ok(None);
        }
        files.inside = (count + 1, access == Access::Exclusive);
        Ok(Some(Box::new(MemoryGate {
            storage: self.clone(),
        })))
    }
}

#[derive(Debug)]
struct MemoryLock {
    storage: MemoryStorage,
    right: Right,
}

impl StorageLock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        let right = self.right;
        self.storage.files().locked.retain(|held| *held != right);
    }
}

#[derive(Debug)]
struct MemoryGate {
    storage: MemoryStorage,
}

impl StorageLock for MemoryGate {}

impl Drop for MemoryGate {
    fn drop(&mut self) {
        let mut files = self.storage.files();
        files.inside = (files.inside.0 - 1, false);
    }
}

struct MemoryFile {
    storage: MemoryStorage,
    number: usize,
    holds: AtomicBool,
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        if self.holds.load(Ordering::Relaxed) {
            self.storage.files().contents[self.number].holders -= 1;
        }
    }
}

impl StoredFile for MemoryFile {
    fn length(&self) -> io::Result<u64> {
        let mut files = self.storage.files();
        files.step(false)?;
        Ok(files.contents[self.number].current.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut files = self.storage.files();
        files.step(false)?;
        let content = &files.contents[self.number].current;
        let start = usize::try_from(offset).map_err(|_| ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buffer.len());
        let bytes = end.and_then(|end| content.get(start..end));
        buffer.copy_from_slice(bytes.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn hold(&self) -> io::Result<()> {
        let mut files = self.storage.files();
        files.step(false)?;
        if !self.holds.swap(true, Ordering::Relaxed) {
            files.contents[self.number].holders += 1;
        }
        Ok(())
    }

    fn is_held(&self) -> io::Result<bool> {
        let mut files = self.storage.files();
        files.step(false)?;
        let own = usize::from(self.holds.load(Ordering::Relaxed));
        Ok(files.contents[self.number].holders > own)
    }
}

struct MemoryPartial {
    storage: MemoryStorage,
    name: String,
    number: usize,
    published: bool,
}

impl PartialFile for MemoryPartial {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut files = self.storage.files();
        files.step(true)?;
        let fits = files.room(bytes.len());
        files.contents[self.number]
            .current
            .extend_from_slice(&bytes[..fits]);
        if fits < bytes.len() {
            return Err(ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn rewrite(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut files = self.storage.files();
        files.step(true)?;
        let start = usize::try_from(offset).map_err(|_| ErrorKind::InvalidInput)?;
        let current = &mut files.contents[self.number].current;
        let room = current
            .get_mut(start..start.saturating_add(bytes.len()))
            .ok_or(ErrorKind::InvalidInput)?;
        room.copy_from_slice(bytes);
        Ok(())
    }

    fn publish(mut self: Box<Self>, name: &str) -> io::Result<Box<dyn StoredFile>> {
        let mut files = self.storage.files();
        // The file is synced.
        files.step(true)?;
        let content = &mut files.contents[self.number];
        content.durable = content.current.clone();
        // The file is renamed.
        files.step(true)?;
        if files.names.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        files.names.remove(&self.name);
        files.names.insert(name.to_owned(), self.number);
        // The directory is synced.
        let synced = files.step(true);
        if synced.is_ok() {
            files.durable_names = files.names.clone();
        } else if !matches!(files.fault, Some(Fault::FailFrom(_))) {
            files.names.remove(name);
        }
        self.published = true;
        synced?;
        files.contents[self.number].holders += 1;
        Ok(Box::new(MemoryFile {
            storage: self.storage.clone(),
            number: self.number,
            holds: AtomicBool::new(true),
        }))
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut files = self.storage.files();
        files.step(true)?;
        let content = &mut files.contents[self.number];
        content.durable = content.current.clone();
        Ok(())
    }

    fn replace(mut self: Box<Self>, name: &str) -> io::Result<()> {
        let mut files = self.storage.files();
        files.step(true)?;
        files.names.remove(&self.name);
        files.names.insert(name.to_owned(), self.number);
        self.published = true;
        // The directory is synced.
        files.step(true)?;
        files.durable_names = files.names.clone();
        Ok(())
    }
}

impl Drop for MemoryPartial {
    fn drop(&mut self) {
        let mut files = self.storage.files();
        if !self.published && files.step(true).is_ok() {
            files.names.remove(&self.name);
        }
    }
}
