//! Shared memory, captured once by object and not once by mapping: shared anonymous memory, memfd, System V
//! and tmpfs memory, and files that are mapped shared.
//!
//! An object is a space of its own, named by device and inode, whose pages are those of the object. Every
//! mapping of it is a region that shows them. The object is read by its own file descriptor: others may
//! write to it without any trace in the page tables of those who are stopped, so what it holds is compared
//! with the parent by content, its holes are asked for (reading them through a mapping would allocate
//! them), and what lies past its end can have no content.

use crate::capture::{CaptureError, Copied, SIZE, Verdict};
use crate::file_pages::FileHashes;
use crate::files::{self, FileKey, FileReport, Files};
use crate::layout::{self, FileDescription};
use crate::mapped_file::{file_page, read_pieces};
use crate::member::Member;
use crate::object_records::ObjectRecord;
use crate::parent::in_file;
use crate::spaces::Spaces;
use crate::sparse::holes;
use pagetide_kernel::maps::{Mapping, MappingName};
use pagetide_kernel::shared_memory;
use pagetide_pages::{PageIndex, PageRange, PageSet};
use pagetide_snapshot::{Capture, PageHash, PageState, Protection, Region, Shown, View};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;

/// The space that holds the object behind a shared mapping.
fn space_name((device, inode): FileKey) -> String {
    format!("shm:{device}:{inode}")
}

/// What a region that maps an object shows.
pub(crate) fn shown(mapping: &Mapping) -> Shown {
    Shown {
        space: space_name(files::key(mapping)),
        first_page: file_page(mapping, mapping.pages().start()),
    }
}

/// One object, as far as it is mapped.
pub(crate) struct Object {
    pub key: FileKey,
    /// The index of its space.
    pub number: usize,
    pages: PageSet,
    /// One of the mappings, for its name and backing.
    mapping: Mapping,
    record: Option<ObjectRecord>,
    /// Pages that nobody can read: their memory has failed.
    failed: PageSet,
    /// Where each mapping shows it: whose, which mapping.
    shown_at: Vec<(usize, PageRange, PageIndex)>,
}

/// All objects that some stopped processes map.
#[derive(Default)]
pub(crate) struct Objects {
    list: Vec<Object>,
    by_key: HashMap<FileKey, usize>,
}

/// What objects are compared with.
pub(crate) struct Earlier<'a> {
    pub parent: Option<&'a View>,
    /// The stamps of the files that were settled at the parent.
    pub settled: HashSet<files::Stamps>,
    pub report: &'a FileReport,
    pub files: &'a Files,
    pub hashes: &'a FileHashes,
}

impl Objects {
    /// Adds what `mapping` of the process with index `member` shows.
    pub fn add(&mut self, member: usize, mapping: &Mapping, spaces: &mut Spaces) {
        let key = files::key(mapping);
        let at = *self.by_key.entry(key).or_insert_with(|| {
            self.list.push(Object {
                key,
                number: spaces.number(&space_name(key)),
                pages: PageSet::new(),
                mapping: mapping.clone(),
                record: None,
                failed: PageSet::new(),
                shown_at: Vec::new(),
            });
            self.list.len() - 1
        });
        let first = file_page(mapping, mapping.pages().start());
        let object = &mut self.list[at];
        object
            .pages
            .insert(PageRange::with_count(first, mapping.pages().count()));
        object.shown_at.push((member, mapping.pages(), first));
    }

    /// The objects, in the order in which they were found.
    pub fn list(&self) -> &[Object] {
        &self.list
    }

    /// Pages of the object with this place in the list turned out to be such as nobody can read.
    pub fn set_failed(&mut self, at: usize, pages: PageSet) {
        self.list[at].failed = pages;
    }

    /// The pages of the process with index `member` that show such pages.
    pub fn failed_in(&self, member: usize) -> PageSet {
        let mut failed = PageSet::new();
        for object in self.list.iter().filter(|object| !object.failed.is_empty()) {
            for &(_, pages, first) in object.shown_at.iter().filter(|at| at.0 == member) {
                let shown = object
                    .failed
                    .within(PageRange::with_count(first, pages.count()));
                for part in shown.ranges() {
                    let start = PageIndex(pages.start().0 + (part.start().0 - first.0));
                    failed.insert(PageRange::with_count(start, part.count()));
                }
            }
        }
        failed
    }

    /// Looks at the objects themselves: how long they are, and what else is needed to make them again. All of an object
    /// that is memory is captured, and not only what is mapped of it.
    pub fn look(&mut self, files: &Files, report: &FileReport) -> Result<(), CaptureError> {
        self.list
            .iter_mut()
            .try_for_each(|object| object.look(files, report))
    }

    /// What is known of them besides their pages.
    pub fn records(&self) -> Vec<ObjectRecord> {
        self.list
            .iter()
            .filter_map(|object| object.record.clone())
            .collect()
    }

    /// Describes every object's space.
    pub fn describe(&self, files: &mut Files, report: &FileReport, spaces: &mut Spaces) {
        for object in &self.list {
            let about = FileDescription {
                facts: report.facts(&object.mapping),
                build_id: files.build_id(&object.mapping, report),
                path: None,
            };
            let region = |&pages: &PageRange| {
                let mut mapping = object.mapping.clone();
                mapping.offset_bytes = SIZE.address_of(pages.start());
                let region =
                    layout::region(&mapping, about.clone(), Vec::new(), Capture::Captured, None);
                Region {
                    pages,
                    protection: Protection {
                        read: true,
                        write: true,
                        execute: false,
                    },
                    ..region
                }
            };
            let regions = object.pages.ranges().iter().map(region).collect();
            spaces.describe(object.number, regions);
        }
    }
}

impl Object {
    fn error(&self, errno: Errno) -> CaptureError {
        CaptureError::Object {
            name: layout::display_name(&self.mapping),
            source: errno.into(),
        }
    }

    fn look(&mut self, files: &Files, report: &FileReport) -> Result<(), CaptureError> {
        let Some(file) = files.open(self.key) else {
            return Err(self.error(Errno::BADF));
        };
        let stat = rustix::fs::fstat(file).map_err(|errno| self.error(errno))?;
        let in_memory = report
            .facts(&self.mapping)
            .is_some_and(|facts| facts.in_memory);
        let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        let mut record = ObjectRecord {
            space: space_name(self.key),
            size_bytes,
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            links: stat.st_nlink,
            in_memory,
            segment_key: None,
        };
        if let MappingName::SystemV(key) = self.mapping.name {
            record.segment_key = Some(key);
            let id = i32::try_from(self.mapping.inode).unwrap_or(-1);
            if let Ok(segment) = shared_memory::segment(id) {
                record.mode = segment.mode;
            }
        }
        self.record = Some(record);
        if in_memory {
            let end = PageIndex(size_bytes.div_ceil(SIZE.bytes()));
            self.pages.insert(PageRange::new(PageIndex(0), end));
        }
        Ok(())
    }

    /// Copies what has changed of it.
    pub fn capture(
        &self,
        members: &[Member],
        earlier: &Earlier<'_>,
        copied: &mut Copied<'_>,
    ) -> Result<(), CaptureError> {
        let Some(file) = earlier.files.open(self.key) else {
            return Err(self.error(Errno::BADF));
        };
        let stat = rustix::fs::fstat(file).map_err(|errno| self.error(errno))?;
        let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        let end = PageIndex(size_bytes.div_ceil(SIZE.bytes()));
        let inside = self.pages.within(PageRange::new(PageIndex(0), end));
        let past_the_end = self.pages.subtract(&inside);
        let facts = earlier.report.facts(&self.mapping);
        let empty = if facts.is_some_and(|facts| facts.in_memory) {
            holes(file, size_bytes).intersect(&inside)
        } else {
            PageSet::new()
        };
        let outside = past_the_end.ranges().iter();
        let states = outside.map(|&range| (range, PageState::Unbacked));
        let zeros = empty.ranges().iter();
        let states = states.chain(zeros.map(|&range| (range, PageState::Zero)));
        copied.states.extend(states);
        let mut wanted = inside.subtract(&empty);
        let tail = PageIndex(size_bytes / SIZE.bytes());
        let has_tail = tail < end && wanted.contains(tail);
        if has_tail {
            wanted.remove(PageRange::single(tail));
        }

        let parent = earlier
            .parent
            .and_then(|view| Some((view, view.space_index(&space_name(self.key))?)));
        let standing = earlier.report.standing(self.key);
        if let (Some(stamps), Some((view, space))) = (standing, parent)
            && earlier.settled.contains(stamps)
        {
            // The file is what it was, so its pages are.
            wanted = wanted.subtract(&in_file(view, space, &wanted));
        }
        let judge = |page: PageIndex, bytes: &[u8]| {
            let hash = PageHash::of(bytes);
            // A page that only the file held is kept, as long as the file may change.
            let known = parent.filter(|&(view, space)| {
                standing.is_some() || view.page_state(space, page) != Some(PageState::File)
            });
            if known.and_then(|(view, space)| view.page_hash(space, page)) == Some(hash) {
                return Verdict::Unchanged;
            }
            match standing.and_then(|_| earlier.hashes.of(self.key, page)) {
                Some(in_file) if in_file == hash => Verdict::InFile(hash),
                _ => Verdict::Keep,
            }
        };
        let read = |pieces: &[PageRange], bytes: &mut [u8]| self.read(file, pieces, bytes);
        copied.keep_some(wanted.ranges(), read, judge)?;
        if has_tail {
            let read =
                |_: &[PageRange], bytes: &mut [u8]| self.read_tail(members, file, tail, bytes);
            copied.keep_some(&[PageRange::single(tail)], read, judge)?;
        }
        Ok(())
    }

    fn read(
        &self,
        file: &OwnedFd,
        pieces: &[PageRange],
        bytes: &mut [u8],
    ) -> Result<Vec<PageRange>, CaptureError> {
        let offset = |piece: PageRange| SIZE.address_of(piece.start());
        read_pieces(file, pieces, bytes, offset).map_err(|errno| self.error(errno))
    }

    /// The page in which the object ends. A mapping shows what was stored past the end, a read does not.
    fn read_tail(
        &self,
        members: &[Member],
        file: &OwnedFd,
        page: PageIndex,
        bytes: &mut [u8],
    ) -> Result<Vec<PageRange>, CaptureError> {
        for &(member, pages, first) in &self.shown_at {
            let shown = PageRange::with_count(first, pages.count());
            if !shown.contains(page) {
                continue;
            }
            let at = PageIndex(pages.start().0 + (page.0 - first.0));
            let memory = &members[member].space.memory;
            let unreadable = memory.read_pages(SIZE, &[PageRange::single(at)], bytes)?;
            if unreadable.is_empty() {
                return Ok(unreadable);
            }
        }
        self.read(file, &[PageRange::single(page)], bytes)
    }
}
