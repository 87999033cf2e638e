//! `pagetide export`: a snapshot as plain files or as an ELF core.

use super::{open_store_to_act, show, view_at};
use crate::args::{Export, ExportFormat};
use crate::failure::Wrong;
use anyhow::Context;
use pagetide::MemberNames;
use pagetide_snapshot::{Capture, View};
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// `map.json`: what the files of a raw export are.
#[derive(Serialize)]
struct Map {
    snapshot: u64,
    pid: Option<i32>,
    space: String,
    page_bytes: u64,
    regions: Vec<show::RegionAnswer>,
}

pub fn run(options: &Export) -> anyhow::Result<()> {
    let store = open_store_to_act(&options.store, options.trust_store)?;
    let view = view_at(&store, options.at)?;
    let members = members(&view, options.pid)?;
    match options.format {
        ExportFormat::Raw => {
            check_empty(&options.output)?;
            for (pid, names) in &members {
                let directory = match pid {
                    None => options.output.clone(),
                    Some(pid) => options.output.join(pid.to_string()),
                };
                raw(&view, *pid, names, &directory)?;
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
            let out = create(&options.output)?;
            let written = pagetide::write_core(&view, names, &out);
            if written.is_err() {
                // Half a core would look like a whole one.
                let _ = fs::remove_file(&options.output);
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

fn raw(view: &View, pid: Option<i32>, names: &MemberNames, directory: &Path) -> anyhow::Result<()> {
    let index = view
        .space_index(&names.space)
        .with_context(|| format!("snapshot {} has no space {}", view.id(), names.space))?;
    let space = &view.spaces()[index];
    let memory = directory.join("mem");
    fs::create_dir_all(&memory).with_context(|| format!("make {}", memory.display()))?;
    for region in &space.regions {
        if region.capture != Capture::Captured {
            continue;
        }
        let (start, end) = space.page_size.span_of(region.pages);
        let path = memory.join(format!("{start:016x}-{end:016x}.bin"));
        let out = create(&path)?;
        pagetide::write_region(view, index, region, space.page_size, &out, 0)
            .with_context(|| format!("export to {}", path.display()))?;
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
    };
    let path = directory.join("map.json");
    let mut out = BufWriter::new(create(&path)?);
    serde_json::to_writer_pretty(&mut out, &map)
        .map_err(std::io::Error::from)
        .and_then(|()| out.flush())
        .with_context(|| format!("write {}", path.display()))
}

/// A new file that only its owner can read: what a process had in memory may be secret.
fn create(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => {
                let message = format!("{} exists already: name a new file", path.display());
                Wrong::Refused(message).into()
            }
            _ => anyhow::Error::new(error).context(format!("create {}", path.display())),
        })
}
