//! Prevents: touching a process that cannot be handled, and a refusal that does not say why.

use crate::harness::{Target, program, state_of, wait_until};
use pagetide_process::{
    NoPrivilege, RefusalError, StopError, StopOptions, StoppedProcess, examine,
};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

#[test]
fn an_ordinary_process_is_accepted() {
    let target = Target::start("count", &["3"]);
    let examined = examine(target.pid()).unwrap();
    assert_eq!(examined.identity, target.identity());
    assert_eq!(examined.comm, "count");
    assert_eq!(examined.thread_count, 4);
    assert_eq!(examined.uid, rustix::process::getuid().as_raw());
}

#[test]
fn numbers_that_are_no_process_are_refused() {
    for pid in [0, -1, i32::MAX] {
        let error = examine(pid).unwrap_err();
        assert!(
            matches!(error, RefusalError::NoSuchProcess { .. }),
            "{error}"
        );
    }
}

#[test]
fn a_thread_is_refused_and_its_process_named() {
    let target = Target::start("count", &["1"]);
    let stopped = target.stop();
    let thread = stopped.threads()[1].get();
    drop(stopped);
    let error = examine(thread).unwrap_err();
    assert!(
        matches!(error, RefusalError::NotAProcess { process, .. } if process == target.pid()),
        "{error}"
    );
}

#[test]
fn a_thread_of_the_kernel_is_refused() {
    // Inside a PID namespace process 2 is not the kernel's; there is no thread of it to see then.
    let name = std::fs::read_to_string("/proc/2/comm").unwrap_or_default();
    if name.trim() != "kthreadd" {
        let init = std::fs::read_to_string("/proc/1/status").unwrap();
        assert!(init.contains("Kthread:\t0"));
        return;
    }
    let error = examine(2).unwrap_err();
    assert!(
        matches!(error, RefusalError::KernelThread { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("kthreadd"));
}

#[test]
fn ourselves_are_refused() {
    let own = i32::try_from(std::process::id()).unwrap();
    let error = examine(own).unwrap_err();
    assert!(matches!(error, RefusalError::Itself { .. }), "{error}");
}

#[test]
fn a_zombie_is_refused_and_its_parent_named() {
    let mut child = Command::new("true").spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    wait_until("zombie", || state_of(pid) == 'Z');
    let error = examine(pid).unwrap_err();
    let own = i32::try_from(std::process::id()).unwrap();
    assert!(
        matches!(error, RefusalError::Zombie { parent, .. } if parent == own),
        "{error}"
    );
    child.wait().unwrap();
}

#[test]
fn a_process_whose_first_thread_has_ended_is_refused() {
    let target = Target::start("dead_first", &[]);
    target.wait_for_state('Z');
    let error = examine(target.pid()).unwrap_err();
    assert!(
        matches!(error, RefusalError::FirstThreadEnded { .. }),
        "{error}"
    );
    let error = StoppedProcess::stop(&target.identity(), StopOptions::default()).unwrap_err();
    assert!(
        matches!(error, StopError::FirstThreadEnded { .. }),
        "{error}"
    );
}

#[test]
fn a_traced_process_is_refused_and_its_tracer_named() {
    // The tracer is this process, which holds it stopped.
    let target = Target::start("count", &["2"]);
    let stopped = target.stop();
    let error = examine(target.pid()).unwrap_err();
    assert!(
        matches!(&error, RefusalError::AlreadyTraced { tracer_comm, .. } if tracer_comm == "pagetide-tracer"),
        "{error}"
    );
    let error = StoppedProcess::stop(&target.identity(), StopOptions::default()).unwrap_err();
    assert!(matches!(error, StopError::AlreadyTraced { .. }), "{error}");
    stopped.resume().unwrap();
    examine(target.pid()).unwrap();
}

#[test]
fn a_32_bit_program_is_refused() {
    // A static ELF32 file: header, one program header, and `jmp .` at 0x08048054.
    let mut elf = Vec::new();
    elf.extend_from_slice(&[0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let half = |value: u16| value.to_le_bytes();
    let word = |value: u32| value.to_le_bytes();
    elf.extend_from_slice(&half(2)); // executable
    elf.extend_from_slice(&half(3)); // 386
    for value in [1, 0x0804_8054, 52, 0, 0] {
        elf.extend_from_slice(&word(value));
    }
    for value in [52, 32, 1, 0, 0, 0] {
        elf.extend_from_slice(&half(value));
    }
    for value in [1, 0, 0x0804_8000, 0x0804_8000, 86, 86, 5, 0x1000] {
        elf.extend_from_slice(&word(value));
    }
    elf.extend_from_slice(&[0xeb, 0xfe]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("loop32");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&elf).unwrap();
    drop(file);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut child = Command::new(&path)
        .spawn()
        .expect("this kernel runs 32-bit programs");
    let pid = i32::try_from(child.id()).unwrap();
    let identity = pagetide_process::ProcessIdentity::of(pid).unwrap();
    // Starting it returns before execve(2) is over; a stop waits for that.
    let stopped = StoppedProcess::stop(&identity, StopOptions::default());
    let refused = examine(pid);
    let alive = identity.is_alive_and_same();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(refused, Err(RefusalError::ThirtyTwoBit { .. })));
    assert!(matches!(stopped, Err(StopError::ThirtyTwoBit { .. })));
    assert!(alive);
}

#[test]
fn a_process_of_another_user_is_refused_without_privilege() {
    if !rustix::process::geteuid().is_root() {
        // Without privilege ourselves, the first process of the system is such a one.
        let error = examine(1).unwrap_err();
        assert!(matches!(error, RefusalError::NoPrivilege { .. }), "{error}");
        return;
    }
    // Re-run this test as nobody, who finds process 1 to be root's.
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let copy = directory.path().join("tests");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let output = Command::new(&copy)
        .args([
            "--exact",
            "refusals::a_process_of_another_user_is_refused_without_privilege",
        ])
        .uid(65534)
        .gid(65534)
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

#[test]
fn the_reasons_read_well() {
    for (reason, text) in [
        (NoPrivilege::OtherUser { uid: 7 }, "it belongs to user 7"),
        (
            NoPrivilege::PtraceScope { uid: 7, scope: 1 },
            "kernel.yama.ptrace_scope is 1, which forbids tracing a process that is not a descendant",
        ),
    ] {
        assert_eq!(reason.to_string(), text);
    }
    assert!(program("count").exists());
}
