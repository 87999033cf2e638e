//! What a kernel offers, and what a program under it printed.

/// A backend, by the word of `pagetide probe`.
#[derive(Debug)]
pub struct Offered {
    /// Its name.
    pub name: String,
    /// Why it cannot be used; nothing if it can.
    pub refusal: Option<String>,
}

/// What a program printed, and how it ended.
#[derive(Debug, Default)]
pub struct Printed {
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// Its exit status; nothing if it has not ended.
    pub status: Option<i32>,
    /// How long it took.
    pub seconds: u64,
}
