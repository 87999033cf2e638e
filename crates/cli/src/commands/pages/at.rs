//! `pagetide pages --at`: one page explained.

use super::answers::{MappingAnswer, UnavailableAnswer, mapping, note, unavailable};
use crate::args::Address;
use crate::output::{self, Page};
use pagetide_kernel::kpageflags::{FlagName, PageFlags};
use pagetide_kernel::move_pages::PageErrno;
use pagetide_process::{
    ExplainedPage, ObjectState, PageUsageError, SwapEntry, SwapKind, explain_page,
};
use serde::Serialize;

#[derive(Serialize)]
struct Answer {
    pid: i32,
    address: String,
    region: MappingAnswer,
    /// The whole entry of pagemap.
    entry: String,
    present: bool,
    swapped: bool,
    file: bool,
    exclusive: bool,
    guard: bool,
    write_protected: bool,
    written: Option<bool>,
    soft_dirty: Option<bool>,
    zero: Option<bool>,
    huge: Option<bool>,
    frame: Option<u64>,
    /// Nothing is there. Null if that is not known.
    empty: Option<bool>,
    swap: Option<SwapAnswer>,
    /// What the object behind shared memory has here.
    object: Option<&'static str>,
    page_flags: Option<Vec<String>>,
    map_count: Option<u64>,
    memory_cgroup: Option<CgroupAnswer>,
    numa_policy: Option<String>,
    numa_node: Option<u32>,
    /// Why there is no node, in words.
    numa_node_error: Option<&'static str>,
    unavailable: Vec<UnavailableAnswer>,
}

#[derive(Serialize)]
struct SwapAnswer {
    kind: &'static str,
    #[serde(rename = "type")]
    swap_type: Option<u8>,
    offset: Option<u64>,
    /// What a marker says.
    marks: Option<Vec<&'static str>>,
}

impl SwapAnswer {
    fn told(&self) -> String {
        match (&self.marks, self.swap_type, self.offset) {
            (Some(marks), _, _) => format!("marker: {}", marks.join(", ")),
            (None, Some(area), Some(at)) => format!("{}, type {area}, offset {at:#x}", self.kind),
            _ => self.kind.to_owned(),
        }
    }
}

#[derive(Serialize)]
struct CgroupAnswer {
    inode: u64,
    path: Option<String>,
}

impl CgroupAnswer {
    fn told(&self) -> String {
        match (&self.path, self.inode) {
            (Some(path), _) => path.clone(),
            (None, 0) => "none".to_owned(),
            (None, inode) => format!("inode {inode}, not to be seen from here"),
        }
    }
}

pub fn run(pid: i32, address: Address, json: bool) -> anyhow::Result<()> {
    let explained = match (explain_page(pid, address.value), address.or_else) {
        (Err(PageUsageError::NotMapped { .. }), Some(other)) => {
            explain_page(pid, other).map_err(|error| match error {
                // The number most likely meant is the one to be named.
                PageUsageError::NotMapped { pid, .. } => PageUsageError::NotMapped {
                    pid,
                    address: address.value,
                },
                error => error,
            })
        }
        (explained, _) => explained,
    }?;
    let answer = answer(pid, &explained);
    if json {
        return output::json(&answer);
    }
    note(&answer.unavailable);
    page(&answer, explained.page_flags).print()
}

fn answer(pid: i32, page: &ExplainedPage) -> Answer {
    let kind = |swap: &SwapEntry| match swap.kind {
        SwapKind::Area => "area",
        SwapKind::Marker => "marker",
        SwapKind::Hidden => "hidden",
        _ => "special",
    };
    Answer {
        pid,
        address: format!("{:016x}", page.address),
        region: mapping(&page.mapping, &page.flags),
        entry: format!("{:016x}", page.entry.0),
        present: page.entry.is_present(),
        swapped: page.entry.is_swapped(),
        file: page.entry.is_file_or_shared(),
        exclusive: page.entry.is_exclusive(),
        guard: page.entry.is_guard(),
        write_protected: page.entry.is_write_protected(),
        written: page.written,
        soft_dirty: page.soft_dirty,
        zero: page.zero,
        huge: page.huge,
        frame: page.frame,
        swap: page.swap.as_ref().map(|swap| SwapAnswer {
            kind: kind(swap),
            swap_type: swap.swap_type,
            offset: swap.offset,
            marks: swap.marks(),
        }),
        empty: page.empty,
        object: page.object.map(|state| match state {
            ObjectState::Resident => "resident",
            ObjectState::Swapped => "swapped",
            _ => "hole",
        }),
        page_flags: page
            .page_flags
            .map(|flags| flags.names().map(|name| name.to_string()).collect()),
        map_count: page.map_count,
        memory_cgroup: page.cgroup.map(|inode| CgroupAnswer {
            inode,
            path: (page.cgroup_path.as_ref()).map(|path| path.display().to_string()),
        }),
        numa_policy: page.numa_policy.clone(),
        numa_node: page.numa_node,
        numa_node_error: page.no_numa_node.map(PageErrno::of_page),
        unavailable: unavailable(&page.unavailable),
    }
}

fn page(answer: &Answer, flags: Option<PageFlags>) -> Page {
    let region = &answer.region;
    let sharing = if region.shared { "s" } else { "p" };
    let mut page = Page::new();
    page.line(format!(
        "page {} of {}-{} {}{sharing} {}",
        answer.address, region.start, region.end, region.protection, region.name
    ));
    let mut line = |name: &str, value: String| {
        page.line(format!("  {name:<16} {value}"));
    };
    let yes = |told: bool| if told { "yes" } else { "no" }.to_owned();
    line("mapping flags", region.flags.join(" "));
    line("pagemap entry", answer.entry.clone());
    let bits = [
        ("present", Some(answer.present)),
        ("swapped", Some(answer.swapped)),
        ("file or shared", Some(answer.file)),
        ("exclusive", Some(answer.exclusive)),
        ("guard", Some(answer.guard)),
        ("write-protected", Some(answer.write_protected)),
        ("written", answer.written),
        ("soft-dirty", answer.soft_dirty),
        ("zero page", answer.zero),
        ("huge", answer.huge),
        ("empty", answer.empty),
    ];
    for (name, value) in bits {
        line(name, value.map_or("-".to_owned(), yes));
    }
    if let Some(frame) = answer.frame {
        line("frame", format!("{frame:#x}"));
    }
    if let Some(swap) = &answer.swap {
        line("swap entry", swap.told());
    }
    if let Some(object) = answer.object {
        let value = match object {
            "resident" => "has the page in memory",
            "swapped" => "has the page in swap",
            _ => "has no page here: never touched, or dropped",
        };
        line("shared object", value.to_owned());
    }
    if let Some(count) = answer.map_count {
        line("mapped", format!("{count} times"));
    }
    if let Some(cgroup) = &answer.memory_cgroup {
        line("memory cgroup", cgroup.told());
    }
    if let Some(policy) = &answer.numa_policy {
        line("NUMA policy", policy.clone());
    }
    if let Some(node) = answer.numa_node {
        line("NUMA node", node.to_string());
    }
    if let Some(error) = answer.numa_node_error {
        line("NUMA node", format!("none: {error}"));
    }
    for name in flags.into_iter().flat_map(PageFlags::names) {
        let meaning = FlagName::known(name).map_or("not known here", |flag| flag.meaning);
        line(&name.to_string(), meaning.to_owned());
    }
    page
}
