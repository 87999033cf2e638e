//! What a restore makes in the system before it is certain, and what it overwrites: taken away again, and put as it was, if
//! nothing comes of it.

use super::error::RestoreError;
use super::journal::Journal;
use super::object::Object;
use pagetide_kernel::shared_memory::{self, AttachedSegment};
use pagetide_process::Name;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

/// So many bytes of a segment are copied at once.
const AT_ONCE: usize = 64 << 10;

/// An object that was there already, and what it held where it was overwritten.
enum ExistingObject {
    File {
        file: File,
        /// Its length, once it may have changed.
        length_bytes: Option<u64>,
        overwritten: Mutex<Journal>,
    },
    Segment {
        id: i32,
        overwritten: Journal,
    },
}

impl ExistingObject {
    fn overwrite(&mut self, object: &Object<'_>) -> Result<(), RestoreError> {
        match self {
            Self::File {
                file,
                length_bytes,
                overwritten,
            } => {
                let overwritten = &*overwritten;
                let note = |at, bytes: &[u8]| {
                    let mut all = overwritten.lock().unwrap_or_else(PoisonError::into_inner);
                    all.add(at, bytes)
                };
                *length_bytes = Some(object.tell_tail(file, &note)?);
                object.put_back(file, &note)
            }
            Self::Segment { id, overwritten } => {
                let attached = object.attach(*id)?;
                let mut chunk = vec![0; AT_ONCE];
                for at in (0..attached.length()).step_by(AT_ONCE) {
                    let chunk = &mut chunk[..AT_ONCE.min(attached.length() - at)];
                    attached.read_at(at, chunk);
                    object.told(overwritten.add(at as u64, chunk))?;
                }
                object.fill_segment(&attached)
            }
        }
    }

    /// Undoes that. Whatever failed has been told; more cannot be done about what cannot be written.
    fn undo(&mut self) {
        match self {
            Self::File {
                file,
                length_bytes: Some(length_bytes),
                overwritten,
            } => {
                let overwritten = overwritten.get_mut();
                let overwritten = overwritten.unwrap_or_else(PoisonError::into_inner);
                overwritten.play(|at, bytes| drop(file.write_all_at(bytes, at)));
                file.set_len(*length_bytes).ok();
            }
            Self::File { .. } => {}
            Self::Segment { id, overwritten } => {
                if let Ok(attached) = AttachedSegment::attach(*id) {
                    overwritten.play(|at, bytes| {
                        attached.write_at(usize::try_from(at).unwrap_or(usize::MAX), bytes);
                    });
                }
            }
        }
    }
}

/// See the head of this file. Dropping it takes all away that was made.
#[derive(Default)]
pub(super) struct NewObjects<'a> {
    files: Vec<Name>,
    segments: Vec<i32>,
    /// Segments that may go with the last one who has them attached, which must not happen before the processes have them.
    held: Vec<AttachedSegment>,
    present: Vec<(Object<'a>, ExistingObject)>,
}

impl<'a> NewObjects<'a> {
    /// A file was made that has this name.
    pub fn name(&mut self, name: Name) {
        self.files.push(name);
    }

    /// A System V segment was made.
    pub fn segment(&mut self, id: i32) {
        self.segments.push(id);
    }

    /// Keeps a segment from going before the processes have it.
    pub fn hold(&mut self, attached: AttachedSegment) {
        self.held.push(attached);
    }

    /// This file was there already, and is to be written.
    pub fn present_file(&mut self, object: Object<'a>, file: File) {
        let present = ExistingObject::File {
            file,
            length_bytes: None,
            overwritten: Mutex::default(),
        };
        self.present.push((object, present));
    }

    /// This segment was there already, and is to be written.
    pub fn present_segment(&mut self, object: Object<'a>, id: i32) {
        let overwritten = Journal::default();
        self.present
            .push((object, ExistingObject::Segment { id, overwritten }));
    }

    /// Makes what was there already as it was in the snapshot: a late step, for others may see it. The processes have all
    /// segments by now, so none is held any more: they are to see only their own attachments (`shm_nattch`) when they run.
    pub fn put_back(&mut self) -> Result<(), RestoreError> {
        for (object, present) in &mut self.present {
            present.overwrite(object)?;
        }
        self.held.clear();
        Ok(())
    }

    /// The processes have it now.
    pub fn keep(mut self) {
        self.files.clear();
        self.segments.clear();
        self.present.clear();
    }
}

impl Drop for NewObjects<'_> {
    fn drop(&mut self) {
        self.files.iter().for_each(Name::remove);
        for &id in &self.segments {
            shared_memory::remove_segment(id).ok();
        }
        for (_, present) in &mut self.present {
            present.undo();
        }
    }
}
