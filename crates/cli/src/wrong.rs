//! What ends a command that is no error of the libraries: words that cannot be followed, and signals.

use std::fmt;

/// Something this command line itself finds wrong.
#[derive(Debug)]
pub enum Wrong {
    /// The words of the call cannot be followed.
    Usage(String),
    /// The process or the store cannot be handled.
    Refused(String),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(what) | Self::Refused(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Wrong {}

/// Ended by a signal; the exit status says by which.
#[derive(Debug)]
pub struct Signalled {
    pub status: u8,
    /// A checkpoint was under way.
    pub given_up: bool,
}

impl fmt::Display for Signalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.given_up {
            "interrupted: the checkpoint under way was given up, and the process runs on"
        } else {
            "interrupted between two checkpoints; the process runs on"
        })
    }
}

impl std::error::Error for Signalled {}
