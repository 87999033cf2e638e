//! Prevents: a target killed by its own seccomp filter for a call of ours.

use crate::harness::Target;
use nix::libc;
use pagetide_process::RemoteCallError;

#[test]
fn a_call_that_the_filter_kills_for_is_not_made() {
    for how in ["no-userfaultfd", "two"] {
        let mut target = Target::start("filtered", &[how]);
        let mut stopped = target.stop();
        let mut calls = stopped.remote_calls().unwrap();
        assert!(
            !calls
                .would_be_allowed(libc::SYS_userfaultfd, [0; 6])
                .unwrap()
        );
        assert!(calls.would_be_allowed(libc::SYS_getpid, [0; 6]).unwrap());
        let error = calls.call(libc::SYS_userfaultfd, [0; 6]).unwrap_err();
        assert!(
            matches!(error, RemoteCallError::ForbiddenBySeccomp { .. }),
            "{error}"
        );
        assert_eq!(
            error.to_string(),
            "a seccomp filter of the process forbids userfaultfd"
        );
        assert_eq!(
            calls.call(libc::SYS_getpid, [0; 6]).unwrap(),
            u64::from(target.pid().cast_unsigned())
        );
        calls.finish().unwrap();
        stopped.resume().unwrap();
        assert_eq!(target.ask(), "alive");
    }
}

#[test]
fn a_lenient_filter_is_no_hindrance() {
    let mut target = Target::start("filtered", &["lenient"]);
    let mut stopped = target.stop();
    let mut calls = stopped.remote_calls().unwrap();
    let number = calls
        .call(libc::SYS_userfaultfd, [0o2_004_001, 0, 0, 0, 0, 0])
        .unwrap();
    calls
        .call(libc::SYS_close, [number, 0, 0, 0, 0, 0])
        .unwrap();
    calls.finish().unwrap();
    stopped.resume().unwrap();
    assert_eq!(target.ask(), "alive");
}

#[test]
fn the_strict_mode_is_refused() {
    let mut target = Target::start("filtered", &["strict"]);
    let mut stopped = target.stop();
    let mut calls = stopped.remote_calls().unwrap();
    assert!(!calls.would_be_allowed(libc::SYS_getpid, [0; 6]).unwrap());
    let error = calls.call(libc::SYS_getpid, [0; 6]).unwrap_err();
    assert!(
        matches!(error, RemoteCallError::SeccompStrict { .. }),
        "{error}"
    );
    calls.finish().unwrap();
    stopped.resume().unwrap();
    assert_eq!(target.ask(), "alive");
}
