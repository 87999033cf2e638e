//! `pagetide show`: what one snapshot holds.

use super::opening::{open_store, view_at};
use crate::args::StoreAt;
use crate::output::{self, Page};
use pagetide::{MemberNames, Poisoned, members_of, numa_of, poisoned_of};
use pagetide_pages::PageSize;
use pagetide_snapshot::{Backing, Capture, Region, Sharing, View};
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
struct Answer {
    id: u64,
    parent: Option<u64>,
    spaces: Vec<SpaceAnswer>,
    attachments: Vec<AttachmentAnswer>,
    /// On which NUMA nodes memory lay; empty on a machine with one.
    numa: Vec<NumaAnswer>,
    poisoned: Vec<PoisonedAnswer>,
}

/// Memory that cannot be read: whoever touches it gets a SIGBUS.
#[derive(Serialize)]
pub struct PoisonedAnswer {
    pub pid: i32,
    pub start: String,
    pub end: String,
}

/// Those of process `pid`, or of all.
pub fn poisoned(all: &[Poisoned], pid: Option<i32>) -> Vec<PoisonedAnswer> {
    let wanted = |one: &&Poisoned| pid.is_none_or(|pid| pid == one.pid);
    let answer = |one: &Poisoned| PoisonedAnswer {
        pid: one.pid,
        start: format!("{:016x}", one.start),
        end: format!("{:016x}", one.end),
    };
    all.iter().filter(wanted).map(answer).collect()
}

#[derive(Serialize)]
struct SpaceAnswer {
    name: String,
    page_bytes: u64,
    regions: Vec<RegionAnswer>,
}

#[derive(Serialize)]
struct NumaAnswer {
    pid: Option<i32>,
    start: String,
    end: String,
    policy: String,
    /// Pages by node.
    nodes: BTreeMap<u32, u64>,
    page_bytes: u64,
}

#[derive(Serialize)]
struct AttachmentAnswer {
    name: String,
    length_bytes: u64,
}

/// One region for machines; `map.json` of an export holds the same.
#[derive(Serialize)]
pub struct RegionAnswer {
    pub start: String,
    pub end: String,
    pub protection: String,
    pub shared: bool,
    pub backing: BackingAnswer,
    pub name: String,
    pub advice: Vec<String>,
    pub captured: bool,
    /// The space whose pages it shows, if it is memory that is shared.
    pub shows: Option<String>,
    pub reason: Option<String>,
}

/// What stands behind a region.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum BackingAnswer {
    Anonymous,
    File {
        path: String,
        offset_bytes: u64,
        device: u64,
        inode: u64,
        size_bytes: u64,
        modified_ns: i64,
        build_id: String,
    },
    SharedMemory {
        path: String,
        offset_bytes: u64,
        device: u64,
        inode: u64,
    },
    Kernel,
}

/// A region with addresses in 16 hexadecimal digits.
pub fn region(region: &Region, size: PageSize) -> RegionAnswer {
    let (start, end) = size.span_of(region.pages);
    let flag = |on, letter| if on { letter } else { '-' };
    let path = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    RegionAnswer {
        start: format!("{start:016x}"),
        end: format!("{end:016x}"),
        protection: [
            flag(region.protection.read, 'r'),
            flag(region.protection.write, 'w'),
            flag(region.protection.execute, 'x'),
        ]
        .iter()
        .collect(),
        shared: region.sharing == Sharing::Shared,
        backing: match &region.backing {
            Backing::Anonymous => BackingAnswer::Anonymous,
            Backing::Kernel => BackingAnswer::Kernel,
            Backing::File {
                path: bytes,
                offset_bytes,
                device,
                inode,
                size_bytes,
                modified_ns,
                build_id,
            } => BackingAnswer::File {
                path: path(bytes),
                offset_bytes: *offset_bytes,
                device: *device,
                inode: *inode,
                size_bytes: *size_bytes,
                modified_ns: *modified_ns,
                build_id: build_id.iter().map(|byte| format!("{byte:02x}")).collect(),
            },
            Backing::SharedMemory {
                path: bytes,
                offset_bytes,
                device,
                inode,
            } => BackingAnswer::SharedMemory {
                path: path(bytes),
                offset_bytes: *offset_bytes,
                device: *device,
                inode: *inode,
            },
        },
        name: region.name.clone(),
        advice: region.advice.clone(),
        captured: region.capture == Capture::Captured,
        shows: region.shows.as_ref().map(|shown| shown.space.clone()),
        reason: match &region.capture {
            Capture::Captured => None,
            Capture::NotCaptured { reason } => Some(reason.clone()),
        },
    }
}

/// What the snapshot says of NUMA nodes, for all processes in it.
fn numa(view: &View) -> Vec<NumaAnswer> {
    let of_member = |(pid, names): (Option<i32>, MemberNames)| {
        let regions = numa_of(view, &names.numa).unwrap_or_default();
        regions.into_iter().map(move |region| NumaAnswer {
            pid,
            start: format!("{:016x}", region.start),
            end: format!("{:016x}", region.end),
            policy: region.policy,
            nodes: region.nodes.into_iter().collect(),
            page_bytes: region.page_bytes,
        })
    };
    members_of(view).into_iter().flat_map(of_member).collect()
}

fn answer(view: &View) -> Answer {
    Answer {
        id: view.id().0,
        parent: view.info().parent.map(|id| id.0),
        spaces: view
            .spaces()
            .iter()
            .map(|space| SpaceAnswer {
                name: space.name.clone(),
                page_bytes: space.page_size.bytes(),
                regions: space
                    .regions
                    .iter()
                    .map(|found| region(found, space.page_size))
                    .collect(),
            })
            .collect(),
        attachments: view
            .attachments()
            .iter()
            .map(|attachment| AttachmentAnswer {
                name: attachment.name.clone(),
                length_bytes: attachment.bytes.len() as u64,
            })
            .collect(),
        numa: numa(view),
        poisoned: poisoned(&poisoned_of(view), None),
    }
}

pub fn run(options: &StoreAt) -> anyhow::Result<()> {
    let store = open_store(&options.store)?;
    let answer = answer(&view_at(&store, options.at)?);
    if options.json {
        output::json(&answer)
    } else {
        page(&answer).print()
    }
}

/// The answer for people.
fn page(answer: &Answer) -> Page {
    let mut page = Page::new();
    page.line(match answer.parent {
        Some(parent) => format!("snapshot {}, a delta to {parent}", answer.id),
        None => format!("snapshot {}, full", answer.id),
    });
    for space in &answer.spaces {
        page.line("").line(format!(
            "space {}, pages of {} bytes",
            space.name, space.page_bytes
        ));
        let cells = |region: &RegionAnswer| {
            let sharing = if region.shared { "s" } else { "p" };
            let note = match (&region.reason, region.advice.is_empty()) {
                (Some(reason), _) => format!("not captured: {reason}"),
                (None, false) => region.advice.join(","),
                (None, true) => String::new(),
            };
            vec![
                format!("{}-{}", region.start, region.end),
                format!("{}{sharing}", region.protection),
                region.name.clone(),
                note,
            ]
        };
        let rows = space.regions.iter().map(cells).collect();
        page.table(&["region", "prot", "name", "notes"], &[], rows);
    }
    if !answer.numa.is_empty() {
        page.line("").line("NUMA nodes");
        let cells = |numa: &NumaAnswer| {
            let nodes = numa.nodes.iter();
            let nodes: Vec<String> = nodes
                .map(|(node, pages)| format!("N{node}={pages}"))
                .collect();
            let pid = numa.pid.map_or(String::new(), |pid| pid.to_string());
            let region = format!("{}-{}", numa.start, numa.end);
            vec![region, pid, numa.policy.clone(), nodes.join(" ")]
        };
        let rows = answer.numa.iter().map(cells).collect();
        page.table(&["region", "pid", "policy", "pages"], &[], rows);
    }
    for one in &answer.poisoned {
        let place = format!("{}-{}", one.start, one.end);
        page.line("");
        page.line(format!("poisoned: {place} of process {}", one.pid));
    }
    page.line("");
    for attachment in &answer.attachments {
        let size = output::bytes(attachment.length_bytes);
        page.line(format!("attachment {}, {size}", attachment.name));
    }
    page
}
