//! `pagetide pages PID PID2`: which page frames two processes share.

use super::answers::{MappingAnswer, mapping};
use crate::output::{self, Page};
use pagetide_pages::PageSize;
use pagetide_process::{SharedRange, SharedRegion, shared_frames};
use serde::Serialize;

const SIZE: PageSize = PageSize::KIB_4;

#[derive(Serialize)]
struct Answer {
    pid: i32,
    other_pid: i32,
    shared_bytes: u64,
    /// What `pid` has in memory, the zero page left out.
    of_bytes: u64,
    regions: Vec<RegionAnswer>,
}

#[derive(Serialize)]
struct RegionAnswer {
    #[serde(flatten)]
    mapping: MappingAnswer,
    shared_bytes: u64,
    ranges: Vec<RangeAnswer>,
}

#[derive(Serialize)]
struct RangeAnswer {
    start: String,
    end: String,
    other_start: String,
}

pub fn run(pid: i32, other: i32, json: bool) -> anyhow::Result<()> {
    pagetide_process::examine_for_reading(other)?;
    let shared = shared_frames(pid, other)?;
    let answer = Answer {
        pid,
        other_pid: other,
        shared_bytes: SIZE.bytes_of(shared.pages),
        of_bytes: SIZE.bytes_of(shared.of),
        regions: shared.regions.iter().map(region).collect(),
    };
    if json {
        output::json(&answer)
    } else {
        page(&answer).print()
    }
}

fn region(region: &SharedRegion) -> RegionAnswer {
    let range = |range: &SharedRange| {
        let (start, end) = SIZE.span_of(range.pages);
        RangeAnswer {
            start: format!("{start:016x}"),
            end: format!("{end:016x}"),
            other_start: format!("{:016x}", SIZE.address_of(range.other_start)),
        }
    };
    let pages = region
        .ranges
        .iter()
        .map(|range| range.pages.count().0)
        .sum::<u64>();
    RegionAnswer {
        mapping: mapping(&region.mapping, &[]),
        shared_bytes: pages * SIZE.bytes(),
        ranges: region.ranges.iter().map(range).collect(),
    }
}

fn page(answer: &Answer) -> Page {
    let row = |region: &RegionAnswer| {
        let RegionAnswer { mapping, .. } = region;
        // A region is shared with one place as a rule; of several the first is named.
        let at = region.ranges.first().map_or("", |range| &range.other_start);
        let more = match region.ranges.len() {
            0 | 1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        vec![
            format!("{}-{}", mapping.start, mapping.end),
            (region.shared_bytes / 1024).to_string(),
            format!("{at}{more}"),
            mapping.name.clone(),
        ]
    };
    let rows = answer.regions.iter().map(row).collect();
    let other = format!("in process {}", answer.other_pid);
    let header = ["region", "shared (KiB)", other.as_str(), "name"];
    let mut page = Page::new();
    page.table(&header, &[1], rows).line("");
    page.line(format!(
        "{} of {} that process {} has in memory are frames that process {} has, too",
        output::bytes(answer.shared_bytes),
        output::bytes(answer.of_bytes),
        answer.pid,
        answer.other_pid,
    ));
    page
}
