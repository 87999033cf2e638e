//! Privilege that a command has no use for is given up before it reads anything: what it reads may have been made by somebody
//! who knows of a mistake of ours.

mod calls;

use anyhow::Context;
use landlock::{
    ABI, Access, AccessFs, PathBeneath, PathFd, PathFdError, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs,
};
use std::path::Path;

/// For commands that only tell what is in a store: of all capabilities at most the one to read files of others stays, no
/// files can be opened but for reading and in the store, and no calls made that such commands have no use for. What is
/// compressed is read by processes that have none of that either. To be called before there are other threads.
pub fn only_read(store: &Path) -> anyhow::Result<()> {
    pagetide::decompress_apart(true).context("make processes that decompress")?;
    keep(CapabilitySet::DAC_READ_SEARCH).context("give up capabilities")?;
    only_files_in(store).context("give up all files outside of the store")?;
    calls::allow_only_reading().context("give up system calls")
}

/// For commands that read a store and act on it: what is compressed is read by processes that have no privilege, made now (`at_once`)
/// or, but for the first, when they are needed.
pub fn decompress_apart(at_once: bool) -> anyhow::Result<()> {
    pagetide::decompress_apart(at_once).context("make processes that decompress")
}

/// Gives up all other capabilities, for good: no program that is executed can have more.
fn keep(kept: CapabilitySet) -> std::io::Result<()> {
    let now = capabilities(None)?;
    set_no_new_privs(true)?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: now.effective & kept,
            permitted: now.permitted & kept,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(())
}

/// As far as the kernel can: landlock(7) exists since Linux 5.13, where it is not switched off. False if it cannot at all, or if
/// there is no such directory.
fn only_files_in(store: &Path) -> anyhow::Result<bool> {
    let store = match PathFd::new(store) {
        Ok(store) => store,
        // Whoever opens it says so better.
        Err(PathFdError::OpenCall { .. }) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))?
        .create()?
        .add_rule(PathBeneath::new(store, read))?
        .restrict_self()?;
    tracing::debug!(?status, "files outside of the store were given up");
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File, OpenOptions};
    use std::io::{ErrorKind, Write};
    use std::net::UdpSocket;

    /// All of it belongs to threads, so one can give it up while others go on.
    #[test]
    fn a_thread_that_only_reads_can_do_nothing_else() {
        let top = tempfile::tempdir().expect("a directory");
        let (store, outside) = (top.path().join("store"), top.path().join("outside"));
        fs::create_dir(&store).expect("make a directory");
        let inside = store.join("file");
        fs::write(&inside, "inside").expect("write a file");
        fs::write(&outside, "outside").expect("write a file");
        let in_thread = || {
            keep(CapabilitySet::DAC_READ_SEARCH).expect("give up capabilities");
            let is_fenced = only_files_in(&store).expect("give up files");
            calls::allow_only_reading().expect("give up calls");
            assert_eq!(fs::read(&inside).expect("read the store"), b"inside");
            if is_fenced {
                let kind = |file: std::io::Result<File>| file.map(drop).map_err(|e| e.kind());
                let denied = Err(ErrorKind::PermissionDenied);
                assert_eq!(kind(File::open(&outside)), denied);
                assert_eq!(kind(OpenOptions::new().append(true).open(&inside)), denied);
                assert_eq!(kind(File::create(store.join("new"))), denied);
            }
            let socket = UdpSocket::bind("127.0.0.1:0").map(drop);
            assert_eq!(
                socket.map_err(|e| e.kind()),
                Err(ErrorKind::PermissionDenied)
            );
            let own = rustix::process::getpid();
            let signalled = rustix::process::test_kill_process(own);
            assert_eq!(signalled, Err(rustix::io::Errno::PERM));
            assert!(fs::remove_file(&inside).is_err());
            // It can still make threads, for those have to be as poor as it is.
            std::thread::scope(|scope| {
                let other = scope.spawn(|| UdpSocket::bind("127.0.0.1:0").is_err());
                assert!(other.join().expect("no panic"));
            });
            is_fenced
        };
        let is_fenced = std::thread::scope(|scope| scope.spawn(in_thread).join());
        if !is_fenced.expect("no panic") {
            let line = "SKIPPED files outside of the store: this kernel has no landlock";
            writeln!(std::io::stderr(), "{line}").expect("say so");
        }
        assert!(UdpSocket::bind("127.0.0.1:0").is_ok());
        assert_eq!(fs::read(&outside).expect("read it"), b"outside");
    }
}
