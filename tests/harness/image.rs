//! What a process holds, twice: read from the process itself, and from an export of a snapshot. The
//! two must be equal in every region and every byte.
//!
//! The process is read with `/proc/PID/maps` and `/proc/PID/mem` alone. It must be stopped by the
//! caller (see [`crate::frozen::Frozen`]).

use crate::frozen::Frozen;
use crate::maps::Mapped;
use crate::maps::maps;
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::FileExt;
use std::path::Path;

const PAGE: usize = 4096;
const CHUNK: usize = 1 << 20;

/// Mappings that belong to the kernel. No other may be missing from a snapshot.
const OF_THE_KERNEL: [&str; 5] = [
    "[vvar]",
    "[vvar_vclock]",
    "[vsyscall]",
    "[uprobes]",
    "[uprobes-trampoline]",
];

/// The mappings and the bytes of a process at one instant.
pub struct Image {
    /// Neighbours that differ in nothing that a process can notice count as one: whether the kernel
    /// keeps them as one depends on things like when they were registered for tracking.
    regions: Vec<(u64, u64, String)>,
    last_name: String,
    /// Pages that are not all zero.
    pages: BTreeMap<u64, Box<[u8]>>,
    /// Pages of the process that could not be read. They hold nothing.
    pub unreadable: Vec<u64>,
    /// Pages in which a file on a disk ends that is mapped shared, and how many bytes of them the file has. What was stored
    /// past its end is cleared by the kernel when it writes the file back, at a time of its own choice.
    ends: BTreeMap<u64, usize>,
}

/// What statfs(2) says of memory.
const IN_MEMORY: [i64; 2] = [nix::libc::TMPFS_MAGIC, nix::libc::HUGETLBFS_MAGIC];

/// Where in a shared mapping of a file on a disk the file ends, if that is within a page: the page, and its bytes.
fn end_of_file(pid: i32, mapped: &Mapped) -> Option<(u64, usize)> {
    if !mapped.permissions.ends_with('s') {
        return None;
    }
    let link = format!("/proc/{pid}/map_files/{:x}-{:x}", mapped.start, mapped.end);
    let metadata = std::fs::metadata(&link)
        .ok()
        .filter(|file| file.is_file())?;
    let kind = rustix::fs::statfs(link.as_str()).ok()?.f_type;
    if IN_MEMORY.contains(&kind) {
        return None;
    }
    let (whole, rest) = (metadata.len() / PAGE as u64, metadata.len() as usize % PAGE);
    let page = (mapped.start + whole * PAGE as u64).checked_sub(mapped.offset)?;
    let inside = (mapped.start..mapped.end).contains(&page);
    (rest != 0 && inside).then_some((page, rest))
}

impl Image {
    /// What the stopped process holds.
    pub fn of_process(frozen: &Frozen) -> Self {
        let pid = frozen.pid();
        let memory = File::open(format!("/proc/{pid}/mem")).expect("open its memory");
        let mut image = Self {
            regions: Vec::new(),
            last_name: String::new(),
            pages: BTreeMap::new(),
            unreadable: Vec::new(),
            ends: BTreeMap::new(),
        };
        for mapped in maps(pid) {
            if OF_THE_KERNEL.contains(&mapped.name.as_str()) {
                continue;
            }
            image.ends.extend(end_of_file(pid, &mapped));
            image.read_region(&memory, &mapped);
            image.map(mapped.start, mapped.end, mapped.permissions, &mapped.name);
        }
        image
    }

    fn map(&mut self, start: u64, end: u64, permissions: String, name: &str) {
        // Where the heap follows the program at once, the kernel may make one mapping of both.
        let name = if name == "[heap]" { "" } else { name };
        match self.regions.last_mut() {
            Some(last) if last.1 == start && last.2 == permissions && self.last_name == name => {
                last.1 = end;
            }
            _ => self.regions.push((start, end, permissions)),
        }
        name.clone_into(&mut self.last_name);
    }

    fn read_region(&mut self, memory: &File, mapped: &Mapped) {
        // No larger than it must be: there may be tens of thousands of small regions.
        let mut buffer = vec![0; CHUNK.min((mapped.end - mapped.start) as usize)];
        let mut at = mapped.start;
        while at < mapped.end {
            let length = CHUNK.min((mapped.end - at) as usize);
            let chunk = &mut buffer[..length];
            if memory.read_exact_at(chunk, at).is_ok() {
                self.keep(at, chunk);
            } else {
                for page in (at..at + length as u64).step_by(PAGE) {
                    match memory.read_exact_at(&mut chunk[..PAGE], page) {
                        Ok(()) => self.keep(page, &chunk[..PAGE]),
                        Err(_) => self.unreadable.push(page),
                    }
                }
            }
            at += length as u64;
        }
    }

    fn keep(&mut self, start: u64, bytes: &[u8]) {
        for (number, page) in bytes.chunks(PAGE).enumerate() {
            if page != &[0; PAGE][..] {
                let address = start + (number * PAGE) as u64;
                self.pages.insert(address, page.into());
            }
        }
    }

    /// What `export --format raw` wrote to `directory`. Only memory of the kernel may be missing.
    #[track_caller]
    pub fn of_export(directory: &Path) -> Self {
        let path = directory.join("map.json");
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let map: Value = serde_json::from_slice(&bytes).expect("map.json is JSON");
        let mut image = Self {
            regions: Vec::new(),
            last_name: String::new(),
            pages: BTreeMap::new(),
            unreadable: Vec::new(),
            ends: BTreeMap::new(),
        };
        let mut files = 0;
        for region in crate::json::list(&map, "regions") {
            let hex = |name| u64::from_str_radix(crate::json::text(region, name), 16).expect("hex");
            let (start, end) = (hex("start"), hex("end"));
            if region["captured"] != true {
                let name = crate::json::text(region, "name");
                assert!(OF_THE_KERNEL.contains(&name), "not captured: {region}");
                continue;
            }
            files += 1;
            let path = directory
                .join("mem")
                .join(format!("{start:016x}-{end:016x}.bin"));
            let file = File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_eq!(file.metadata().expect("its length").len(), end - start);
            let mut buffer = vec![0; CHUNK.min((end - start) as usize)];
            for at in (start..end).step_by(CHUNK) {
                let chunk = &mut buffer[..CHUNK.min((end - at) as usize)];
                file.read_exact_at(chunk, at - start)
                    .expect("read an exported region");
                image.keep(at, chunk);
            }
            let sharing = if region["shared"] == true { "s" } else { "p" };
            let permissions = format!("{}{sharing}", crate::json::text(region, "protection"));
            image.map(start, end, permissions, crate::json::text(region, "name"));
        }
        let written = std::fs::read_dir(directory.join("mem")).expect("list the export");
        assert_eq!(written.count(), files, "files that map.json does not list");
        image
    }

    /// A number that stands for all of it.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (start, end, permissions) in &self.regions {
            hasher.write_u64(*start);
            hasher.write_u64(*end);
            hasher.write(permissions.as_bytes());
        }
        for (address, bytes) in &self.pages {
            hasher.write_u64(*address);
            hasher.write(bytes);
        }
        hasher.finish()
    }

    /// The number of pages that are not all zero.
    pub fn page_count(&self) -> usize {
        self.pages.len()
    }

    /// The number of such pages from `start` up to `end`.
    pub fn pages_within(&self, start: u64, end: u64) -> u64 {
        self.pages.range(start..end).count() as u64
    }

    /// The bytes at `address`, which must not cross a page.
    pub fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let offset = address as usize % PAGE;
        match self.pages.get(&(address - offset as u64)) {
            Some(page) => page[offset..offset + length].to_vec(),
            None => vec![0; length],
        }
    }

    /// Takes these bytes, which must not cross a page, for zero.
    pub fn clear(&mut self, address: u64, length: u64) {
        let offset = address as usize % PAGE;
        let start = address - offset as u64;
        if let Some(page) = self.pages.get_mut(&start) {
            page[offset..offset + length as usize].fill(0);
            if page.iter().all(|byte| *byte == 0) {
                self.pages.remove(&start);
            }
        }
    }

    fn is_same_page(&self, other: &Self, address: u64) -> bool {
        let end = |image: &Self| image.ends.get(&address).copied();
        let end = end(self).or_else(|| end(other)).unwrap_or(PAGE);
        let bytes = |image: &Self| match image.pages.get(&address) {
            Some(page) => page[..end].to_vec(),
            None => vec![0; end],
        };
        bytes(self) == bytes(other)
    }

    /// The addresses of all pages in which two images differ.
    pub fn differing_pages(&self, other: &Self) -> Vec<u64> {
        let addresses = self.pages.keys().chain(other.pages.keys());
        let mut wrong: Vec<u64> = addresses
            .copied()
            .filter(|address| !self.is_same_page(other, *address))
            .collect();
        wrong.sort_unstable();
        wrong.dedup();
        wrong
    }

    /// The page at which two images differ, and how, for the first of them; or which regions do.
    /// `self` is what the process held.
    pub fn difference(&self, export: &Self) -> Option<String> {
        let list = |these: &Self, others: &Self| {
            let others: HashSet<_> = others.regions.iter().collect();
            let only = these.regions.iter().filter(|r| !others.contains(r));
            only.map(|(start, end, permissions)| format!("{start:x}-{end:x} {permissions}"))
                .collect::<Vec<_>>()
        };
        let (missing, extra) = (list(self, export), list(export, self));
        if !missing.is_empty() || !extra.is_empty() {
            return Some(format!(
                "only in the process: {missing:?}; only in the export: {extra:?}"
            ));
        }
        let wrong = self.differing_pages(export);
        let zero = [0; PAGE];
        let first = *wrong.first()?;
        let of = |image: &Self| {
            image
                .pages
                .get(&first)
                .map_or(zero.to_vec(), |p| p.to_vec())
        };
        let (truth, stored) = (of(self), of(export));
        let at = (0..PAGE).find(|&at| truth[at] != stored[at])?;
        let words = |bytes: &[u8]| format!("{:02x?}", &bytes[at..(at + 16).min(PAGE)]);
        let region = self
            .regions
            .iter()
            .find(|(start, end, _)| (*start..*end).contains(&first));
        Some(format!(
            "{} pages differ, the first {first:x} at +{at:#x} (of {region:x?}): process {}, export {}; all: {:x?}",
            wrong.len(),
            words(&truth),
            words(&stored),
            &wrong[..wrong.len().min(64)],
        ))
    }
}
