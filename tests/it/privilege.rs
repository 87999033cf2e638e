//! Prevents that what reads a store of somebody else could do more than that, if it were led to.

use crate::bad::is_root;
use pagetide_tests::{Scratch, Subject, Target, TestStore, pagetide_path};
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// So long anything that is waited for may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// CAP_DAC_READ_SEARCH: capabilities(7).
const READ_SEARCH: u64 = 1 << 2;

fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let list = list.expect("list children");
    let numbers = list.split_whitespace().map(str::parse);
    numbers.map(|number| number.expect("a number")).collect()
}

/// These processes, of which there is one at least, have no capabilities, nothing open but two pipes, and a filter.
fn assert_decompress_only(pids: &[u32]) {
    assert!(!pids.is_empty(), "nobody decompresses");
    for pid in pids {
        let of = |name: &str| format!("/proc/{pid}/{name}");
        let status = fs::read_to_string(of("status")).expect("it lives");
        for line in [
            "CapInh:\t0000000000000000\n",
            "CapPrm:\t0000000000000000\n",
            "CapEff:\t0000000000000000\n",
            "NoNewPrivs:\t1\n",
            "Seccomp:\t2\n",
        ] {
            assert!(status.contains(line), "{line} {status}");
        }
        let files = fs::read_dir(of("fd")).expect("list its descriptors");
        let files = files.map(|file| file.expect("a descriptor").path());
        let files: Vec<PathBuf> = files
            .map(|file| fs::read_link(file).expect("a link"))
            .collect();
        let is_pipe = |file: &PathBuf| file.to_string_lossy().starts_with("pipe:");
        assert!(files.len() == 2 && files.iter().all(is_pipe), "{files:?}");
    }
}

/// Both ends of a pipe that is full: whoever writes to it waits.
fn full_pipe() -> (fs::File, OwnedFd) {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("a pipe");
    while rustix::io::write(&write, &[b'.'; 4096]).is_ok() {}
    rustix::fs::fcntl_setfl(&write, OFlags::empty()).expect("let it wait");
    (fs::File::from(read), write)
}

/// What a restore tells when it is done has to wait here, and all that it needed is still there. Once it has told, that goes.
#[test]
fn a_restore_has_pages_decompressed_by_processes_that_can_do_nothing_else() {
    if !is_root("a restore") {
        return;
    }
    let mut subject = Subject::start(Command::new("sleep").arg("600"), Scratch::new());
    subject.checkpoint(&[]);
    subject.kill();
    let (mut told, tells) = full_pipe();
    let mut restoring = Command::new(pagetide_path())
        .args(["restore", &subject.store().text()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(tells)
        .spawn()
        .expect("start pagetide");
    let restored = u32::try_from(subject.pid()).expect("a process id");
    let of_it = |name: &str| fs::read_to_string(format!("/proc/{restored}/{name}"));
    let runs = || {
        let traced = of_it("status").map(|status| !status.contains("TracerPid:\t0\n"));
        of_it("comm").is_ok_and(|comm| comm == "sleep\n") && traced.is_ok_and(|traced| !traced)
    };
    let since = Instant::now();
    let mut wait_until = |what: &str, is_so: &dyn Fn() -> bool| {
        while !is_so() {
            let ended = restoring.try_wait().expect("look");
            assert!(
                ended.is_none() && since.elapsed() < PATIENCE,
                "{what}: {ended:?}"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        restoring.id()
    };
    let ours = wait_until("it does not run", &runs);
    let others = children(ours).into_iter().filter(|one| *one != restored);
    assert_decompress_only(&others.collect::<Vec<_>>());
    while told.read(&mut [0; 4096]).is_ok() {}
    wait_until("others are left", &|| children(ours) == [restored]);
    subject.is_back();
    subject.kill();
    restoring.wait().expect("it ends");
}

/// In a namespace of its own: a process gets a number, ends, and another one gets the same, since it is the next again. Then the next
/// but one is, which is that of what pagetide starts first.
const NEXT_NUMBER: &str = r#"
    for i in 1 2 3 4 5 6; do /bin/true; done
    sleep 600 & wanted=$!
    "$0" checkpoint $wanted --store "$1" > "$1.report" || exit 10
    kill -9 $wanted; wait $wanted 2> "$1.ended"
    echo $((wanted - 1)) > /proc/sys/kernel/ns_last_pid
    sleep 600 & [ $! = $wanted ] || exit 11
    kill -9 $wanted; wait $wanted 2> "$1.ended"
    echo $((wanted - 2)) > /proc/sys/kernel/ns_last_pid
    "$0" restore "$1" --detach || exit 12
    [ "$(cat /proc/$wanted/comm)" = sleep ] || exit 13
    kill -9 $wanted
"#;

/// The kernel gives numbers in turn, so what decompresses may get the one that the restored process is to have again.
#[test]
fn a_number_that_a_process_is_to_have_again_is_left_to_it() {
    if !is_root("a restore") {
        return;
    }
    let store = TestStore::new();
    let ended = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "sh", "-c", NEXT_NUMBER])
        .arg(pagetide_path())
        .arg(store.text())
        .output()
        .expect("start a shell");
    let says = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.success(), "{}: {says}", ended.status);
}

#[test]
fn commands_that_tell_what_is_in_a_store_can_read_and_nothing_else() {
    if !is_root("privilege to give up") {
        return;
    }
    let scratch = Scratch::new();
    let directory = scratch.path().to_str().expect("a plain path");
    let target = Target::start("many", ["protections", "3000", directory]);
    let store = TestStore::new();
    store.checkpoint(target.pid(), &[]);
    let mut child = Command::new(pagetide_path())
        .args(["show", &store.text(), "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start pagetide");
    let mut output = child.stdout.take().expect("its output");
    // It tells more than a pipe holds, so it waits for us now.
    output.read_exact(&mut [0]).expect("it tells something");
    let status = fs::read_to_string(format!("/proc/{}/status", child.id()));
    let status = status.expect("it has not ended");
    let value = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        u64::from_str_radix(line.expect(key).trim(), 16).expect("a number")
    };
    for set in ["CapEff:", "CapPrm:"] {
        assert_eq!(value(set), READ_SEARCH, "{set} {status}");
    }
    assert_eq!((value("CapInh:"), value("NoNewPrivs:")), (0, 1), "{status}");
    assert_eq!(value("Seccomp:"), 2, "{status}");
    assert_decompress_only(&children(child.id()));
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).expect("read the rest");
    assert!(
        rest.len() > 200_000,
        "{} bytes could fit a pipe",
        rest.len()
    );
    assert!(child.wait().expect("it ends").success());
}
