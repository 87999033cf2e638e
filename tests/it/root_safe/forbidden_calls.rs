//! Calls that change what a path leads to, whatever that is by then, may not be in the source: files are made, removed and given
//! away by descriptors of their directories, or of themselves.

use std::fs;
use std::path::{Path, PathBuf};

/// What may not be written, as it stands in the source.
const FORBIDDEN: [&str; 24] = [
    "remove_file(",
    "remove_dir(",
    "remove_dir_all(",
    "fs::rename(",
    "fs::hard_link(",
    "fs::copy(",
    "fs::write(",
    "fs::set_permissions(",
    "fs::create_dir(",
    "create_dir_all(",
    "File::create(",
    "File::create_new(",
    "::symlink(",
    "lchown(",
    "fs::chown(",
    " chown(",
    "chmod(",
    " unlink(",
    "fs::unlink(",
    "libc::unlink",
    "libc::chown",
    " mkdir(",
    "mknod",
    "AT_SYMLINK_FOLLOW",
];

/// Where one may be, and why.
const ALLOWED: [(&str, &str, &str); 12] = [
    (
        "checkpoint/src/restore/object.rs",
        "chmod(",
        "fchmod(2), of what was made here",
    ),
    (
        "checkpoint/src/restore/sources.rs",
        "chmod(",
        "fchmod(2), of what was made here",
    ),
    (
        "process/src/open_files/pipe.rs",
        "chmod(",
        "fchmod(2), of a pipe that was made here",
    ),
    (
        "process/src/open_files/object.rs",
        "chmod(",
        "fchmod(2), of what was made here",
    ),
    (
        "process/src/open_files/socket/place.rs",
        "fs::create_dir(",
        "in a new directory of our own",
    ),
    (
        "process/src/open_files/socket/place.rs",
        "create_dir_all(",
        "below a root directory of our own",
    ),
    (
        "process/src/kernel_state/switches.rs",
        "fs::write(",
        "/proc/PID/oom_score_adj and the like",
    ),
    (
        "kernel/src/shared_memory.rs",
        "fs::write(",
        "/proc/sys/kernel/shm_next_id",
    ),
    (
        "cli/src/commands/export.rs",
        "create_dir_all(",
        "what the user has named, before anything is in it",
    ),
    (
        "cli/src/commands/packaging.rs",
        "create_dir_all(",
        "what a packager has named, for manual pages",
    ),
    (
        "snapshot/src/storage/directory.rs",
        "remove_file(",
        "in the store, which is ours alone",
    ),
    (
        "snapshot/src/storage/directory.rs",
        "fs::rename(",
        "in the store, which is ours alone",
    ),
];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("list the source").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && name != "tests" {
            sources(&path, found);
        } else if name
            .to_str()
            .is_some_and(|name| name.ends_with(".rs") && name != "tests.rs")
        {
            found.push(path);
        }
    }
}

#[test]
fn no_call_changes_what_a_path_leads_to() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    let mut all = Vec::new();
    for one in [
        "kernel",
        "process",
        "checkpoint",
        "snapshot",
        "tracker",
        "pages",
        "cli",
    ] {
        sources(&crates.join(one).join("src"), &mut all);
    }
    assert!(all.len() > 150, "{}", all.len());
    let mut wrong = Vec::new();
    for path in all {
        let text = fs::read_to_string(&path).expect("read the source");
        let own = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or("");
        let shown = path
            .strip_prefix(&crates)
            .expect("inside")
            .to_str()
            .expect("plain");
        for (number, line) in own.lines().enumerate() {
            let is_code = !line.trim_start().starts_with("//");
            for call in FORBIDDEN
                .iter()
                .filter(|call| is_code && line.contains(**call))
            {
                let allowed = ALLOWED
                    .iter()
                    .any(|(file, other, _)| *file == shown && other == call);
                if !allowed {
                    wrong.push(format!("{shown}:{}: {}", number + 1, line.trim()));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "use a descriptor of the directory, or of the file: {wrong:#?}"
    );
}
