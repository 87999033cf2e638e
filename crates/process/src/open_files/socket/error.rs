//! Why sockets could not be opened again.

use crate::blocker::Blocker;
use std::io;

/// Why sockets could not be opened again. None of them is open then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Something of a socket does not come back, and the user has not accepted that.
    #[error("{0}")]
    Refused(Box<Blocker>),
    /// A socket holds values that no socket can have.
    #[error("the state of open file {index} is damaged: {what}")]
    Damaged {
        /// Which one, as the caller counts.
        index: usize,
        /// Which value.
        what: &'static str,
    },
    /// A system call failed.
    #[error("cannot {what} the socket of open file {index}")]
    Open {
        /// Which one, as the caller counts.
        index: usize,
        /// What was done.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl SocketError {
    /// True if something that is here now is in the way.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Refused(_) => true,
            Self::Open { source, .. } => source.kind() == io::ErrorKind::AddrInUse,
            _ => false,
        }
    }

    /// For `map_err`.
    pub(super) fn open(index: usize, what: &str) -> impl FnOnce(io::Error) -> Self + use<> {
        let what = what.to_owned();
        move |source| Self::Open {
            index,
            what,
            source,
        }
    }
}
