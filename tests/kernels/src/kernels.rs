//! Which kernels there are.

/// The kernel that this program runs under.
pub const HOST: &str = "host";

/// All kernels, as they stand in the table and as `tests/kernels/guest` knows them.
pub const KERNELS: [&str; 3] = [HOST, "6.12", "6.1"];
