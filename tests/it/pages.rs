//! Prevents that `pages` tells other numbers than the kernel's own: of a process that stands still, every
//! mapping is compared with smaps and numa_maps, and pages whose state is known with what is said of them.
//!
//! smaps gives whole KiB, rounded down for each mapping. All its numbers but Pss are multiples of 4 KiB and
//! must be equal; Pss must be equal once it is rounded down, too. A total of Pss is therefore up to 1 KiB a
//! mapping larger than the sum of smaps.

mod ask;
mod corners;
mod kinds;
mod reader;

use crate::bad::{fails, is_root};
use ask::{PAGE, numa_maps, pages, pages_between_equal_smaps, start_of};
use kinds::{Kinds, assert_is, assert_pages};
use pagetide_tests::{
    Frozen, Scratch, Target, compiled, list, number, pagetide, pagetide_by, pagetide_path, skipped,
    text,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Every mapping agrees with smaps and numa_maps, and the totals with their sums. Mappings that processes of
/// no concern have, too, are excepted from what depends on who else maps a page.
#[track_caller]
fn assert_agrees(frozen: &Frozen, of_others: impl Fn(&str) -> bool) -> Value {
    let (answer, smaps) = pages_between_equal_smaps(frozen, &of_others);
    let nodes = numa_maps(frozen.pid());
    let regions = list(&answer, "regions");
    let starts: Vec<u64> = regions.iter().map(start_of).collect();
    assert_eq!(starts, smaps.keys().copied().collect::<Vec<_>>());
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    let mut pss = (0, 0);
    for (region, (start, (name, counts))) in regions.iter().zip(&smaps) {
        let of = |names: &[&str]| names.iter().map(|name| counts[*name]).sum::<u64>();
        let mut equal = vec![
            ("size_bytes", of(&["Size"])),
            ("rss_bytes", of(&["Rss"])),
            ("swap_bytes", of(&["Swap"])),
        ];
        if !of_others(name) {
            let huge = ["AnonHugePages", "ShmemPmdMapped", "FilePmdMapped"];
            let hugetlb = ["Private_Hugetlb", "Shared_Hugetlb"];
            equal.extend([
                ("uss_bytes", of(&["Private_Clean", "Private_Dirty"])),
                ("swap_pss_bytes", of(&["SwapPss"])),
                ("locked_bytes", of(&["Locked"])),
                ("hugetlb_bytes", of(&hugetlb)),
                ("huge_bytes", of(&huge) + of(&hugetlb)),
                ("page_bytes", of(&["KernelPageSize"])),
            ]);
            let told = number(region, "pss_bytes");
            assert_eq!(told / 1024 * 1024, of(&["Pss"]), "Pss of {region}");
            pss = (pss.0 + told, pss.1 + of(&["Pss"]));
        }
        for (field, expected) in equal {
            assert_eq!(number(region, field), expected, "{field} of {region}");
            *sums.entry(field).or_default() += expected;
        }
        let told: BTreeMap<String, u64> = serde_json::from_value(region["numa_bytes"].clone())
            .unwrap_or_else(|error| panic!("{error}: {region}"));
        let expected = nodes.get(start).cloned().unwrap_or_default();
        assert_eq!(told, expected, "nodes of {region}");
    }
    let totals = &answer["totals"];
    for field in ["size_bytes", "rss_bytes", "swap_bytes", "hugetlb_bytes"] {
        assert_eq!(number(totals, field), sums[field], "{field} of {totals}");
    }
    // The others have pages of others only, so nothing that is unique.
    assert_eq!(number(totals, "uss_bytes"), sums["uss_bytes"], "{totals}");
    let rounded_off = pss.0 - pss.1;
    assert!(rounded_off < 1024 * regions.len() as u64, "{rounded_off}");
    answer
}

/// A redis-server whose program and libraries nobody else maps: copies of its own.
fn private_redis(directory: &Scratch) -> Option<Target> {
    let found = Command::new("sh")
        .args([
            "-c",
            "server=$(command -v redis-server) && echo $server && ldd $server",
        ])
        .output()
        .expect("run sh");
    if !found.status.success() {
        return None;
    }
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    let mut loader = None;
    for path in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let copy = directory.join(Path::new(path).file_name()?.to_str()?);
        fs::copy(path, &copy).expect("copy a library");
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("make it executable");
        if path.contains("/ld-linux") {
            loader = Some(copy);
        }
    }
    let socket = directory.join("socket");
    let mut command = Command::new(loader.expect("a loader among the libraries"));
    command.env_clear().env("LC_ALL", "C");
    command.arg("--library-path").arg(directory.path());
    command.arg(directory.join("redis-server"));
    command.args([
        "--port",
        "0",
        "--save",
        "",
        "--appendonly",
        "no",
        "--unixsocket",
    ]);
    command.arg(&socket).arg("--dir").arg(directory.path());
    command.args(["--enable-debug-command", "yes"]);
    let mut target = Target::spawn(&mut command);
    while !target.line().contains("eady to accept connections") {}
    let filled = Command::new("redis-cli")
        .arg("-s")
        .arg(&socket)
        .args(["debug", "populate", "30000", "key", "1000"])
        .stdout(Stdio::null())
        .status();
    assert!(filled.expect("run redis-cli").success());
    Some(target)
}

#[test]
fn redis_agrees_with_smaps_and_numa_maps() {
    let test = "redis_agrees_with_smaps_and_numa_maps";
    if !is_root(test) {
        return;
    }
    let directory = Scratch::new();
    let Some(redis) = private_redis(&directory) else {
        return skipped(test, "there is no redis-server");
    };
    let frozen = redis.freeze();
    let answer = assert_agrees(&frozen, |name| name == "[vdso]");
    let totals = &answer["totals"];
    assert!(number(totals, "rss_bytes") > 30 << 20, "{totals}");
    assert!(number(totals, "uss_bytes") > 30 << 20, "{totals}");
    let flags = &totals["page_flags"];
    assert!(number(flags, "ANON") * PAGE > 30 << 20, "{flags}");
    // Every page in memory is charged to some cgroup, or to none.
    let cgroups = list(totals, "memory_cgroups");
    let charged: u64 = cgroups.iter().map(|cgroup| number(cgroup, "pages")).sum();
    assert_eq!(charged * PAGE, number(totals, "present_bytes"), "{totals}");
    frozen.assert_still_stopped();
}

#[test]
fn without_privilege_the_rest_is_told_and_what_is_missing_named() {
    if !is_root("without privilege") {
        return;
    }
    let programs = Scratch::new();
    let open = |path: &Path| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("open it to all");
    };
    open(programs.path());
    let copy = |from: &Path, name: &str| {
        let to = programs.join(name);
        fs::copy(from, &to).expect("copy a program");
        open(&to);
        to
    };
    let pagetide = copy(pagetide_path(), "pagetide");
    let program = copy(&compiled("pages"), "pages");
    let by_nobody = |program: &Path| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(program);
        command
    };
    let mut command = by_nobody(&program);
    let target = Target::start_by(command.arg(programs.path()));
    let mut kinds = Kinds {
        target,
        directory: Scratch::new(),
    };
    let pid = kinds.target.pid_text();
    let call =
        |words: &[&str]| pagetide_by(by_nobody(&pagetide).arg("pages").arg(&pid).args(words));
    let answer = call(&["--json"]).done().json();
    let missing = |answer: &Value| -> Vec<String> {
        let list = list(answer, "unavailable").iter();
        list.map(|one| {
            assert!(!text(one, "reason").is_empty(), "{one}");
            text(one, "what").to_owned()
        })
        .collect()
    };
    let privileged = [
        "frame-numbers",
        "swap-slots",
        "page-flags",
        "page-counts",
        "memory-cgroups",
    ];
    for what in privileged {
        assert!(
            missing(&answer).iter().any(|found| found == what),
            "{what}: {answer}"
        );
    }
    let region = kinds.region(&answer, "zero");
    assert_pages(
        &region,
        &[
            ("present", 4),
            ("zero", 3),
            ("rss", 1),
            ("uss", 1),
            ("pss", 1),
        ],
    );
    let region = kinds.region(&answer, "shared");
    assert_pages(&region, &[("rss", 3), ("uss", 1), ("pss", 2), ("file", 3)]);
    for field in ["page_flags", "memory_cgroups"] {
        assert!(
            region[field].is_null() && answer["totals"][field].is_null(),
            "{region}"
        );
    }
    // Root is told the same, and more.
    let more = kinds.pages();
    let all = kinds.region(&more, "shared");
    for field in [
        "present_bytes",
        "rss_bytes",
        "uss_bytes",
        "pss_bytes",
        "numa_bytes",
    ] {
        assert_eq!(all[field], region[field], "{field}");
    }
    assert!(
        !missing(&more)
            .iter()
            .any(|found| privileged.contains(&found.as_str())),
        "{more}"
    );
    let at = format!("{:x}", kinds.address("anonymous"));
    let page = call(&["--json", "--at", &at]).done().json();
    assert_is(&page, &["present", "exclusive"], &["zero", "swapped"]);
    for field in ["frame", "page_flags", "map_count", "memory_cgroup"] {
        assert!(page[field].is_null(), "{field}: {page}");
    }
    let people = call(&[]).done();
    assert!(
        people.stderr.contains("page-flags not told: "),
        "{people:#?}"
    );
    assert!(people.stderr.contains("CAP_SYS_ADMIN"), "{people:#?}");
    assert!(!people.stdout.contains("not told"), "{people:#?}");
    // Not its own.
    let foreign = Target::start("pages", [kinds.directory.path()]);
    let outcome = pagetide_by(by_nobody(&pagetide).args(["pages", &foreign.pid_text()]));
    fails(&outcome, 3, &["no permission", "CAP_SYS_PTRACE"]);
}

#[test]
fn what_cannot_be_looked_at_is_refused() {
    let above = fs::read_to_string("/proc/sys/kernel/pid_max").expect("read pid_max");
    let above = above.trim();
    let says = format!("there is no process {above}");
    fails(&pagetide(["pages", above]), 3, &[&says]);
    if fs::read_to_string("/proc/2/comm").is_ok_and(|comm| comm == "kthreadd\n") {
        let says = "2 (kthreadd) is a thread of the kernel";
        fails(&pagetide(["pages", "2", "--json"]), 3, &[says]);
    }
    let mut target = Target::start("bad_states", ["zombie"]);
    let child = target.ask("child");
    fails(&pagetide(["pages", &child]), 3, &["has ended"]);
    let pid = target.pid_text();
    for address in ["0x1000", "1000", "4096"] {
        let outcome = pagetide(["pages", &pid, "--at", address]);
        fails(&outcome, 3, &["has nothing mapped at 0x"]);
    }
    for wrong in ["", "xyz", "-1", "0x"] {
        fails(&pagetide(["pages", &pid, "--at", wrong]), 2, &["error: "]);
    }
}

#[test]
fn an_address_may_be_written_in_each_way() {
    let mut kinds = Kinds::start();
    let (address, pid) = (kinds.address("anonymous"), kinds.target.pid_text());
    let expected = format!("{address:016x}");
    for way in [
        format!("{address:#x}"),
        format!("{address:x}"),
        address.to_string(),
        expected.clone(),
    ] {
        let outcome = pagetide(["pages", &pid, "--json", "--at", &way]).done();
        assert_eq!(text(&outcome.json(), "address"), expected, "{way}");
    }
    let outcome = pagetide(["pages", &pid, "--json", "--at", "0xffffffffff600000"]);
    if outcome.code == Some(0) {
        let page = outcome.json();
        assert_eq!(text(&page["region"], "name"), "[vsyscall]");
        assert_is(&page, &[], &["present", "swapped", "guard"]);
    }
}

#[test]
fn people_get_a_region_a_line_and_a_total() {
    let kinds = Kinds::start();
    let outcome = pagetide(["pages", &kinds.target.pid_text()]).done();
    let regions = pagetide_tests::maps(kinds.target.pid()).len();
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert!(lines[0].starts_with("region (KiB)"), "{outcome:#?}");
    let total = lines[regions + 1];
    assert!(
        total.starts_with(&format!("{regions} regions")),
        "{outcome:#?}"
    );
}
