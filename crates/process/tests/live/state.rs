//! Prevents: a process state that does not survive being stored, and damage that is not noticed.

use crate::harness::{Target, program};
use pagetide_process::{OutsideState, ProcessState, StateDecodeError};

#[test]
fn a_state_survives_being_stored() {
    let target = Target::start("count", &["5"]);
    let stopped = target.stop();
    let state = ProcessState::collect(&stopped).unwrap();
    assert_eq!(state.threads.len(), 6);
    assert_eq!(
        state.outside,
        OutsideState::read(stopped.identity()).unwrap()
    );
    assert_eq!(state.outside.exe, program("count"));
    assert_eq!(state.outside.comm, "count");
    assert!(state.outside.cmdline.ends_with(b"count\x005\0"));
    assert_eq!(
        state.outside.ppid,
        i32::try_from(std::process::id()).unwrap()
    );
    assert!(state.outside.layout.start_stack != 0 && state.outside.layout.start_brk != 0);
    assert!(state.outside.auxv.len() > 64);
    let bytes = state.to_bytes();
    assert_eq!(ProcessState::from_bytes(&bytes).unwrap(), state);
}

#[test]
fn damage_is_an_error_and_never_a_panic() {
    let target = Target::start("count", &["1"]);
    let bytes = ProcessState::collect(&target.stop()).unwrap().to_bytes();
    for length in 0..bytes.len().min(2000) {
        assert!(
            ProcessState::from_bytes(&bytes[..length]).is_err(),
            "{length}"
        );
    }
    let mut newer = bytes.clone();
    newer[4] = 2;
    assert!(matches!(
        ProcessState::from_bytes(&newer),
        Err(StateDecodeError::NewerVersion { found: 2, known: 1 })
    ));
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(matches!(
        ProcessState::from_bytes(&longer),
        Err(StateDecodeError::TrailingBytes { count: 1 })
    ));
    assert!(matches!(
        ProcessState::from_bytes(b"something else"),
        Err(StateDecodeError::NotAState)
    ));
    // Lengths that promise more than there is, anywhere: no panic, no giant allocation.
    for index in 8..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[index] = 0xff;
        if let Ok(state) = ProcessState::from_bytes(&damaged) {
            assert!(state.threads.len() <= 2);
        }
    }
}
