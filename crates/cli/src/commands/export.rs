//! `pagetide export`: a snapshot as plain files or as an ELF core.

use super::{open_store, show, view_at};
use crate::args::{Export, ExportFormat};
use crate::failure::Wrong;
use anyhow::Context;
use pagetide::MEMORY_SPACE;
use pagetide_snapshot::{Capture, View};
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// `map.json`: what the files of a raw export are.
#[derive(Serialize)]
struct Map {
    snapshot: u64,
    space: String,
    page_bytes: u64,
    regions: Vec<show::RegionAnswer>,
}

pub fn run(options: &Export) -> anyhow::Result<()> {
    let store = open_store(&options.store)?;
    let view = view_at(&store, options.at)?;
    match options.format {
        ExportFormat::Raw => raw(&view, &options.output),
        ExportFormat::Core => {
            let out = create(&options.output)?;
            let written = pagetide::write_core(&view, &out);
            if written.is_err() {
                // Half a core would look like a whole one.
                let _ = fs::remove_file(&options.output);
            }
            written.with_context(|| format!("export to {}", options.output.display()))
        }
    }
}

fn raw(view: &View, directory: &Path) -> anyhow::Result<()> {
    let wrong = match fs::read_dir(directory) {
        Ok(mut entries) => entries.next().map(|_| "is not empty"),
        Err(error) if error.kind() == ErrorKind::NotADirectory => Some("is not a directory"),
        Err(_) => None,
    };
    if let Some(wrong) = wrong {
        let message = format!("{} {wrong}: name a new directory", directory.display());
        return Err(Wrong::Refused(message).into());
    }
    let index = view
        .space_index(MEMORY_SPACE)
        .ok_or_else(|| Wrong::Refused(format!("snapshot {} holds no process", view.id())))?;
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
        space: space.name.clone(),
        page_bytes: space.page_size.bytes(),
        regions: space
            .regions
            .iter()
            .map(|region| show::region(region, space.page_size))
            .collect(),
    };
    let path = directory.join("map.json");
    serde_json::to_writer_pretty(create(&path)?, &map)
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
