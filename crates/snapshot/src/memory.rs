//! How much memory this program may take for what is read from stores: one limit for all stores and views, since memory is one.
//! Buffers, caches and threads are as many as fit, and what has to be held as a whole and does not fit is refused.

use std::sync::atomic::{AtomicU64, Ordering};

static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);

/// What a thread needs that decodes frames and hands them on.
const THREAD_BYTES: u64 = 16 << 20;

/// From now on reading takes about so many bytes at the most, for all stores of this program together. A snapshot whose
/// tables do not fit is [`crate::ReadError::TooLarge`]. Without this there is no limit.
pub fn limit_memory(bytes: u64) {
    LIMIT.store(bytes, Ordering::Relaxed);
}

/// The limit.
pub fn memory_limit() -> u64 {
    LIMIT.load(Ordering::Relaxed)
}

/// How much a cache may hold that would hold `usual_bytes`.
pub(crate) fn cache_bytes(usual_bytes: usize) -> usize {
    let share = usize::try_from(memory_limit() / 8).unwrap_or(usize::MAX);
    usual_bytes.min(share)
}

/// How many of `threads` there may be.
pub(crate) fn threads(threads: usize) -> usize {
    let fit = usize::try_from(memory_limit() / 2 / THREAD_BYTES).unwrap_or(usize::MAX);
    threads.min(fit.max(1))
}

/// The most that a table may be long. Decoded it takes about as much again, and there may be one of each snapshot of a chain.
pub(crate) fn table_bytes() -> u64 {
    memory_limit() / 4
}
