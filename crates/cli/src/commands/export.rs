//! `pagetide export`: a snapshot as plain files or as an ELF core.

use super::opening::{open_store_to_act, view_at};
use super::show;
use crate::args::{Export, ExportFormat};
use crate::wrong::Wrong;
use anyhow::Context;
use pagetide::{CoreExtent, MemberNames};
use pagetide_snapshot::{Capture, View};
use rustix::fs::{AtFlags, Mode, OFlags, Stat, fstat, mkdirat, openat, statat, unlinkat};
use rustix::io::Errno;
use serde::Serialize;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// `map.json`: what the files of a raw export are.
#[derive(Serialize)]
struct Map {
    snapshot: u64,
    pid: Option<i32>,
    space: String,
    page_bytes: u64,
    regions: Vec<show::RegionAnswer>,
    /// Memory that cannot be read, and is a hole in the files.
    poisoned: Vec<show::PoisonedAnswer>,
}

pub fn run(options: &Export) -> anyhow::Result<()> {
    let store = open_store_to_act(&options.store, options.trust_store)?;
    let view = view_at(&store, options.at)?;
    let members = members(&view, options.pid)?;
    match options.format {
        ExportFormat::Raw => {
            check_empty(&options.output)?;
            for (pid, names) in &members {
                let out = Output::at(&options.output)?;
                let out = match pid {
                    None => out,
                    Some(pid) => out.inside(&pid.to_string())?,
                };
                raw(&view, *pid, names, &out)?;
            }
            Ok(())
        }
        ExportFormat::Core => {
            let [(_, names)] = &members[..] else {
                let message = format!(
                    "snapshot {} holds {} processes: choose one with --pid ({})",
                    view.id(),
                    members.len(),
                    pids(&members)
                );
                return Err(Wrong::Refused(message).into());
            };
            let (place, name) = Output::around(&options.output)?;
            let out = place.create(&name)?;
            let extent = if options.all {
                CoreExtent::All
            } else {
                CoreExtent::AsTheKernel
            };
            let written = pagetide::write_core(&view, names, extent, &out);
            if written.is_err() {
                // Half a core would look like a whole one.
                place.remove(&name, &out);
            }
            written.with_context(|| format!("export to {}", options.output.display()))
        }
    }
}

type Members = Vec<(Option<i32>, MemberNames)>;

fn pids(members: &Members) -> String {
    let pids: Vec<String> = members
        .iter()
        .filter_map(|(pid, _)| Some((*pid)?.to_string()))
        .collect();
    pids.join(", ")
}

/// The processes of a snapshot, or the one that was asked for.
fn members(view: &View, wanted: Option<i32>) -> anyhow::Result<Members> {
    let all = pagetide::members_of(view);
    if all.is_empty() {
        let message = format!("snapshot {} holds no process", view.id());
        return Err(Wrong::Refused(message).into());
    }
    let Some(wanted) = wanted else { return Ok(all) };
    match all.iter().find(|(pid, _)| *pid == Some(wanted)) {
        Some(found) => Ok(vec![found.clone()]),
        None => {
            let holds = match all[0].0 {
                None => "is of one process alone: leave out --pid".to_owned(),
                Some(_) => format!("holds the processes {}", pids(&all)),
            };
            let message = format!("snapshot {} {holds}", view.id());
            Err(Wrong::Refused(message).into())
        }
    }
}

fn check_empty(directory: &Path) -> anyhow::Result<()> {
    let wrong = match fs::read_dir(directory) {
        Ok(mut entries) => entries.next().map(|_| "is not empty"),
        Err(error) if error.kind() == ErrorKind::NotADirectory => Some("is not a directory"),
        Err(_) => None,
    };
    match wrong {
        None => Ok(()),
        Some(wrong) => {
            let message = format!("{} {wrong}: name a new directory", directory.display());
            Err(Wrong::Refused(message).into())
        }
    }
}

fn raw(view: &View, pid: Option<i32>, names: &MemberNames, output: &Output) -> anyhow::Result<()> {
    let index = view
        .space_index(&names.space)
        .with_context(|| format!("snapshot {} has no space {}", view.id(), names.space))?;
    let space = &view.spaces()[index];
    let memory = output.inside("mem")?;
    for region in &space.regions {
        if region.capture != Capture::Captured {
            continue;
        }
        let (start, end) = space.page_size.span_of(region.pages);
        let name = format!("{start:016x}-{end:016x}.bin");
        let out = memory.create(name.as_ref())?;
        pagetide::write_region(view, index, region, space.page_size, &out, 0)
            .with_context(|| format!("export to {}", memory.path.join(&name).display()))?;
    }
    let map = Map {
        snapshot: view.id().0,
        pid,
        space: space.name.clone(),
        page_bytes: space.page_size.bytes(),
        regions: space
            .regions
            .iter()
            .map(|region| show::region(region, space.page_size))
            .collect(),
        poisoned: show::poisoned(&pagetide::poisoned_of(view), pid),
    };
    let path = output.path.join("map.json");
    let mut out = BufWriter::new(output.create("map.json".as_ref())?);
    serde_json::to_writer_pretty(&mut out, &map)
        .map_err(std::io::Error::from)
        .and_then(|()| out.flush())
        .with_context(|| format!("write {}", path.display()))
}

/// A directory that is written to, by a descriptor of it: it is the same whatever its path leads to meanwhile.
struct Output {
    directory: OwnedFd,
    /// For messages.
    path: PathBuf,
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

impl Output {
    /// A directory, which is made if it does not exist.
    fn at(path: &Path) -> anyhow::Result<Self> {
        let failed = || format!("make {}", path.display());
        fs::create_dir_all(path).with_context(failed)?;
        let directory = rustix::fs::open(path, DIRECTORY, Mode::empty());
        Ok(Self {
            directory: directory.with_context(failed)?,
            path: path.to_owned(),
        })
    }

    /// The directory of a file that is to be made, and the file's name.
    fn around(path: &Path) -> anyhow::Result<(Self, OsString)> {
        let name = path.file_name();
        let name = name.with_context(|| format!("{} names no file", path.display()))?;
        let parent = path.parent().filter(|parent| *parent != Path::new(""));
        let parent = parent.unwrap_or(Path::new("."));
        let directory = rustix::fs::open(parent, DIRECTORY, Mode::empty());
        let output = Self {
            directory: directory.with_context(|| format!("create {}", path.display()))?,
            path: parent.to_owned(),
        };
        Ok((output, name.to_owned()))
    }

    /// A directory in it, which is made if it does not exist. No link leads there.
    fn inside(&self, name: &str) -> anyhow::Result<Self> {
        let path = self.path.join(name);
        let made = match mkdirat(&self.directory, name, Mode::from_raw_mode(0o777)) {
            Err(Errno::EXIST) => Ok(()),
            made => made,
        };
        let flags = DIRECTORY | OFlags::NOFOLLOW;
        let opened = made.and_then(|()| openat(&self.directory, name, flags, Mode::empty()));
        let directory = opened.with_context(|| format!("make {}", path.display()))?;
        Ok(Self { directory, path })
    }

    /// A new file that only its owner can read: what a process had in memory may be secret.
    fn create(&self, name: &OsStr) -> anyhow::Result<File> {
        let path = self.path.join(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&self.directory, name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => Ok(file.into()),
            Err(Errno::EXIST) => {
                let message = format!("{} exists already: name a new file", path.display());
                Err(Wrong::Refused(message).into())
            }
            Err(error) => {
                Err(anyhow::Error::new(error).context(format!("create {}", path.display())))
            }
        }
    }

    /// Removes a file that was made, if it still has its name.
    fn remove(&self, name: &OsStr, file: &File) {
        let found = statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW);
        let is_it = |found: &Stat| {
            fstat(file).is_ok_and(|it| (it.st_dev, it.st_ino) == (found.st_dev, found.st_ino))
        };
        if found.is_ok_and(|found| is_it(&found)) {
            unlinkat(&self.directory, name, AtFlags::empty()).ok();
        }
    }
}
