//! Privilege that a command has no use for is given up before it reads anything: what it reads may have been made by somebody
//! who knows of a mistake of ours.

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs,
};

/// For commands that only tell what is in a store: of all capabilities at most the one to read files of others stays, and no
/// program that is executed can have more. To be called before there are other threads.
pub fn only_read() -> std::io::Result<()> {
    let now = capabilities(None)?;
    let kept = CapabilitySet::DAC_READ_SEARCH;
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
