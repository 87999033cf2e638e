//! `pagetide pages`: what the page tables say of a process, a region a line, or of one page.

mod answers;
mod at;
mod shared;

use crate::args::Pages;
use crate::output::{self, Page};
use answers::{MappingAnswer, UnavailableAnswer, mapping, note, unavailable};
use pagetide_process::{PageUsage, RegionUsage, Usage};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Serialize)]
struct Answer {
    pid: i32,
    regions: Vec<RegionAnswer>,
    totals: UsageAnswer,
    unavailable: Vec<UnavailableAnswer>,
}

#[derive(Serialize)]
struct RegionAnswer {
    #[serde(flatten)]
    mapping: MappingAnswer,
    page_bytes: u64,
    numa_policy: Option<String>,
    #[serde(flatten)]
    usage: UsageAnswer,
}

#[derive(Serialize)]
struct UsageAnswer {
    size_bytes: u64,
    present_bytes: u64,
    swapped_bytes: u64,
    written_bytes: Option<u64>,
    soft_dirty_bytes: Option<u64>,
    zero_bytes: Option<u64>,
    huge_bytes: u64,
    file_bytes: u64,
    object_resident_bytes: Option<u64>,
    object_swapped_bytes: Option<u64>,
    object_hole_bytes: Option<u64>,
    #[serde(skip)]
    object_present_bytes: Option<u64>,
    exclusive_bytes: u64,
    guard_bytes: u64,
    hugetlb_bytes: u64,
    rss_bytes: u64,
    uss_bytes: u64,
    pss_bytes: Option<u64>,
    swap_bytes: u64,
    swap_pss_bytes: Option<u64>,
    locked_bytes: Option<u64>,
    /// Pages by the name of the flag.
    page_flags: Option<BTreeMap<String, u64>>,
    /// Bytes by the number of the node.
    numa_bytes: Option<BTreeMap<u32, u64>>,
    memory_cgroups: Option<Vec<CgroupAnswer>>,
}

#[derive(Serialize)]
struct CgroupAnswer {
    /// 0 for pages that are charged to none.
    inode: u64,
    path: Option<String>,
    pages: u64,
}

pub fn run(options: &Pages) -> anyhow::Result<()> {
    pagetide_process::examine_for_reading(options.pid)?;
    if let Some(address) = options.at {
        return at::run(options.pid, address, options.json);
    }
    if let Some(other) = options.other {
        return shared::run(options.pid, other, options.json);
    }
    let usage = pagetide_process::page_usage(options.pid, options.range)?;
    let answer = answer(options.pid, &usage);
    if options.json {
        return output::json(&answer);
    }
    note(&answer.unavailable);
    page(&answer).print()
}

fn answer(pid: i32, usage: &PageUsage) -> Answer {
    let paths = &usage.cgroup_paths;
    let region = |region: &RegionUsage| RegionAnswer {
        mapping: mapping(&region.mapping, &region.flags),
        page_bytes: region.page_bytes,
        numa_policy: region.numa_policy.clone(),
        usage: counted(&region.usage, paths),
    };
    Answer {
        pid,
        regions: usage.regions.iter().map(region).collect(),
        totals: counted(&usage.totals, paths),
        unavailable: unavailable(&usage.unavailable),
    }
}

fn counted(usage: &Usage, paths: &BTreeMap<u64, PathBuf>) -> UsageAnswer {
    let cgroup = |(&inode, &pages): (&u64, &u64)| CgroupAnswer {
        inode,
        path: paths.get(&inode).map(|path| path.display().to_string()),
        pages,
    };
    UsageAnswer {
        size_bytes: usage.size_bytes,
        present_bytes: usage.present_bytes,
        swapped_bytes: usage.swapped_bytes,
        written_bytes: usage.written_bytes,
        soft_dirty_bytes: usage.soft_dirty_bytes,
        zero_bytes: usage.zero_bytes,
        huge_bytes: usage.huge_bytes,
        file_bytes: usage.file_bytes,
        object_resident_bytes: usage.object_resident_bytes,
        object_swapped_bytes: usage.object_swapped_bytes,
        object_hole_bytes: usage.object_hole_bytes,
        object_present_bytes: usage.object_present_bytes,
        exclusive_bytes: usage.exclusive_bytes,
        guard_bytes: usage.guard_bytes,
        hugetlb_bytes: usage.hugetlb_bytes,
        rss_bytes: usage.rss_bytes,
        uss_bytes: usage.uss_bytes,
        pss_bytes: usage.pss_bytes(),
        swap_bytes: usage.swap_bytes,
        swap_pss_bytes: usage.swap_pss_bytes,
        locked_bytes: usage.locked_bytes,
        page_flags: usage
            .page_flags
            .as_ref()
            .map(|flags| flags.iter().map(|(f, n)| (f.to_string(), *n)).collect()),
        numa_bytes: usage.numa_bytes.clone(),
        memory_cgroups: usage
            .cgroup_pages
            .as_ref()
            .map(|cgroups| cgroups.iter().map(cgroup).collect()),
    }
}

const COLUMNS: [&str; 18] = [
    "region (KiB)",
    "prot",
    "size",
    "present",
    "swapped",
    "written",
    "soft-dirty",
    "zero",
    "huge",
    "file",
    "unmapped",
    "hole",
    "exclusive",
    "guard",
    "rss",
    "uss",
    "pss",
    "name",
];

fn row(region: String, protection: String, usage: &UsageAnswer, name: String) -> Vec<String> {
    let kib = |bytes: u64| (bytes / 1024).to_string();
    let maybe = |bytes: Option<u64>| bytes.map_or("-".to_owned(), kib);
    // Of shared memory: pages that the object has in memory, and that this process has not mapped.
    let unmapped = usage
        .object_resident_bytes
        .map(|of_object| of_object.saturating_sub(usage.object_present_bytes.unwrap_or(0)));
    vec![
        region,
        protection,
        kib(usage.size_bytes),
        kib(usage.present_bytes),
        kib(usage.swapped_bytes + usage.object_swapped_bytes.unwrap_or(0)),
        maybe(usage.written_bytes),
        maybe(usage.soft_dirty_bytes),
        maybe(usage.zero_bytes),
        kib(usage.huge_bytes),
        kib(usage.file_bytes),
        maybe(unmapped),
        maybe(usage.object_hole_bytes),
        kib(usage.exclusive_bytes),
        kib(usage.guard_bytes),
        kib(usage.rss_bytes),
        kib(usage.uss_bytes),
        maybe(usage.pss_bytes),
        name,
    ]
}

fn page(answer: &Answer) -> Page {
    let mut rows: Vec<Vec<String>> = answer
        .regions
        .iter()
        .map(|region| {
            let RegionAnswer { mapping, usage, .. } = region;
            let sharing = if mapping.shared { "s" } else { "p" };
            row(
                format!("{}-{}", mapping.start, mapping.end),
                format!("{}{sharing}", mapping.protection),
                usage,
                mapping.name.clone(),
            )
        })
        .collect();
    let totals = &answer.totals;
    let regions = format!("{} regions", answer.regions.len());
    rows.push(row(regions, String::new(), totals, String::new()));
    let right: Vec<usize> = (2..COLUMNS.len() - 1).collect();
    let mut page = Page::new();
    page.table(&COLUMNS, &right, rows).line("");
    let locked = totals.locked_bytes.map(output::bytes);
    page.line(format!(
        "swap {}, locked {}, hugetlb {}",
        output::bytes(totals.swap_bytes),
        locked.as_deref().unwrap_or("not told"),
        output::bytes(totals.hugetlb_bytes),
    ));
    for (node, bytes) in totals.numa_bytes.iter().flatten() {
        page.line(format!("node {node}: {}", output::bytes(*bytes)));
    }
    for cgroup in totals.memory_cgroups.iter().flatten() {
        page.line(match (&cgroup.path, cgroup.inode) {
            (Some(path), _) => format!("memory cgroup {path}: {} pages", cgroup.pages),
            (None, 0) => format!("no memory cgroup: {} pages", cgroup.pages),
            (None, inode) => format!(
                "memory cgroup of inode {inode}, not to be seen from here: {} pages",
                cgroup.pages
            ),
        });
    }
    if let Some(flags) = &totals.page_flags {
        let flags: Vec<String> = flags.iter().map(|(f, n)| format!("{f} {n}")).collect();
        page.line(format!("pages with flags: {}", flags.join(", ")));
    }
    page
}
