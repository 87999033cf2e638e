//! Sockets of this process read, closed, and opened again.
