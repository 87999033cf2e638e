//! What whoever restores has decided of sockets.

use super::state::SocketState;
use super::tcp;
use crate::blocker::Blocker;
use crate::opener::Opener;
use std::collections::BTreeSet;

/// What the user wants to become of sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketChoices {
    /// Names of the blockers that are accepted, as [`Blocker::name`] tells them.
    pub accepted: BTreeSet<String>,
    /// What becomes of TCP connections.
    pub tcp: TcpChoice,
}

/// What becomes of TCP connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcpChoice {
    /// They go on, if the peer is there. Needs CAP_NET_ADMIN.
    #[default]
    Restore,
    /// They are reset: the program reads ECONNRESET.
    Reset,
}

impl TcpChoice {
    /// True if what keeps a process from being restored is nothing with this choice.
    pub fn settles(self, blocker: &Blocker) -> bool {
        self == Self::Reset && tcp::BLOCKERS.contains(&blocker.kind)
    }
}

impl SocketChoices {
    /// Those of the socket's blockers that stand against opening it again.
    pub(crate) fn refused<'a>(
        &'a self,
        state: &'a SocketState,
    ) -> impl Iterator<Item = &'a Blocker> {
        state.blockers().iter().filter(|blocker| {
            !self.tcp.settles(blocker) && !self.accepted.contains(&blocker.name())
        })
    }
}

/// As whom the socket of a number is opened.
pub(crate) type OpenerOf<'a> = dyn Fn(usize) -> &'a Opener + 'a;
