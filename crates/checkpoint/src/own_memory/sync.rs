//! The locks of the hand-over, by one name, so that a model checker can put its own in their place.

pub(super) use std::sync::{Condvar, Mutex, MutexGuard};
