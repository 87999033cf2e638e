//! What runs apart computes, and can do nothing else.

use super::Apart;
use nix::libc;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use std::fs::{self, File};
use std::io::Write;
use std::net::UdpSocket;

const BYTES: usize = 1 << 20;

fn doubled(input: &[u8], output: &mut [u8]) -> Option<usize> {
    let output = output.get_mut(..input.len())?;
    for (to, from) in output.iter_mut().zip(input) {
        *to = from.wrapping_mul(2);
    }
    (input.first() != Some(&0)).then_some(input.len())
}

fn start(work: impl FnMut(&[u8], &mut [u8]) -> Option<usize>) -> Apart {
    Apart::start(BYTES, BYTES, work).expect("start a process")
}

#[test]
fn it_computes_as_often_as_it_is_asked() {
    let mut apart = start(doubled);
    let mut output = vec![0; BYTES];
    for length in [1, 4096, BYTES] {
        let input = vec![7; length];
        let result = apart.run(&input, &mut output).expect("it lives");
        assert_eq!(result, Some(length));
        assert!(output[..length].iter().all(|byte| *byte == 14));
    }
    assert_eq!(apart.run(&[0, 1], &mut output).expect("it lives"), None);
    assert_eq!(apart.run(&[3], &mut output).expect("it lives"), Some(1));
    let too_long = vec![1; BYTES + 1];
    assert!(apart.run(&too_long, &mut output).is_err());
}

#[test]
fn it_has_no_privilege_no_descriptors_and_a_filter() {
    let mut apart = start(doubled);
    assert_eq!(apart.run(&[1], &mut [0; 1]).expect("it lives"), Some(1));
    let of = |name: &str| format!("/proc/{}/{name}", apart.pid());
    let status = fs::read_to_string(of("status")).expect("read its status");
    let value = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.expect(key).trim().to_owned()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(value(set), "0".repeat(16), "{set} {status}");
    }
    assert_eq!((&*value("NoNewPrivs:"), &*value("Seccomp:")), ("1", "2"));
    let Ok(descriptors) = fs::read_dir(of("fd")) else {
        // Only root sees what is not dumpable.
        return;
    };
    let mut numbers: Vec<_> = descriptors
        .map(|entry| entry.expect("a descriptor").file_name())
        .collect();
    numbers.sort();
    assert_eq!(numbers, ["0", "1"]);
}

#[test]
fn whatever_else_it_tries_ends_it() {
    let attempts: [fn(); 5] = [
        || drop(File::open("/dev/null")),
        || drop(UdpSocket::bind("127.0.0.1:0")),
        || drop(std::process::Command::new("true").spawn()),
        || assert!(rustix::process::getppid().is_some()),
        || assert!(rustix::io::write(std::io::stderr(), b"it could write\n").is_ok()),
    ];
    for (number, attempt) in attempts.into_iter().enumerate() {
        let mut apart = start(move |_, _| {
            attempt();
            Some(0)
        });
        let result = apart.run(&[1], &mut []);
        assert!(result.is_err(), "attempt {number}: {result:?}");
        // It stays so.
        assert!(apart.run(&[1], &mut []).is_err());
    }
}

/// Prevents that another process of the same user reads what is in it, or makes it do something.
#[test]
fn nobody_of_its_user_may_look_into_it() {
    if !rustix::process::geteuid().is_root() {
        let line = "SKIPPED nobody_of_its_user_may_look_into_it: another user needs root";
        writeln!(std::io::stderr(), "{line}").expect("say so");
        return;
    }
    const SOMEBODY: libc::c_long = 65534;
    // This thread becomes somebody else, alone: the libc would take all others along.
    let as_somebody = std::thread::spawn(|| {
        // SAFETY: the call takes numbers only.
        let became = unsafe { libc::syscall(libc::SYS_setresuid, SOMEBODY, SOMEBODY, SOMEBODY) };
        assert_eq!(became, 0, "{}", std::io::Error::last_os_error());
        // That made the whole program closed to others, and what is made of it would be, too.
        // SAFETY: the call takes numbers only.
        let opened = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) };
        assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
        let mut apart = start(doubled);
        assert_eq!(apart.run(&[1], &mut [0; 1]).expect("it lives"), Some(1));
        let memory_of = |pid: u32| File::open(format!("/proc/{pid}/mem")).map_err(|e| e.kind());
        let mut other = std::process::Command::new("sleep").arg("60").spawn();
        let other = other.as_mut().expect("start another process");
        let since = std::time::Instant::now();
        // As soon as it is another program.
        while memory_of(other.id()).is_err() && since.elapsed().as_secs() < 20 {
            std::thread::yield_now();
        }
        let open = memory_of(other.id()).is_ok();
        other.kill().and_then(|()| other.wait()).expect("end it");
        assert!(open, "this user may look into its other processes");
        let closed = memory_of(apart.pid().unsigned_abs()).map(drop);
        assert_eq!(closed, Err(std::io::ErrorKind::PermissionDenied));
    });
    as_somebody.join().expect("no panic");
}

/// Prevents that what was checked is something else when it is used.
#[test]
fn it_cannot_change_its_input() {
    let mut apart = start(|input, _| {
        // SAFETY: nothing here is sound; the process ends by it.
        unsafe { input.as_ptr().cast_mut().write_volatile(9) };
        Some(0)
    });
    assert!(apart.run(&[1], &mut []).is_err() && apart.has_ended());
}

#[test]
fn it_goes_on_when_there_is_no_input() {
    let mut apart = start(doubled);
    let mut nothing = |_: &mut [u8]| Err(std::io::ErrorKind::NotFound.into());
    let result = apart.run_there(1, &mut nothing, 1, &mut |_| panic!("there is no output"));
    let kind = result.map_err(|error| error.kind());
    assert_eq!(kind, Err(std::io::ErrorKind::NotFound));
    assert!(!apart.has_ended());
    assert_eq!(apart.run(&[1], &mut [0; 1]).expect("it lives"), Some(1));
}

#[test]
fn it_ends_with_its_owner() {
    let apart = start(doubled);
    let at = format!("/proc/{}", apart.pid());
    assert!(fs::exists(&at).expect("look"));
    drop(apart);
    assert!(!fs::exists(&at).expect("look"));
}

#[test]
fn t76_strict_mode_cannot_be_entered_under_a_filter() {
    let refused = std::thread::spawn(|| {
        let nothing = SeccompFilter::new(
            [(nix::libc::SYS_sync, Vec::new())].into(),
            SeccompAction::Allow,
            SeccompAction::Errno(1),
            TargetArch::x86_64,
        );
        let filter: BpfProgram = nothing.and_then(TryInto::try_into).expect("a filter");
        seccompiler::apply_filter(&filter).expect("set it");
        // SAFETY: the call takes numbers only, and is refused.
        let strict = unsafe { nix::libc::prctl(nix::libc::PR_SET_SECCOMP, 1) };
        (strict, std::io::Error::last_os_error().raw_os_error())
    });
    let refused = refused.join().expect("no panic");
    assert_eq!(refused, (-1, Some(nix::libc::EINVAL)));
}
