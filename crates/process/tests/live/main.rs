//! A real process is stopped, looked at, entered and let go, and must not notice. Each module
//! names the failure it prevents. The programs in `targets/` are compiled with `cc`.

mod frozen;
mod harness;
mod interrupted_calls;
mod kernel_state;
mod kernel_state_blockers;
mod open_files;
mod open_files_blocked;
mod refusals;
mod registers;
mod remote_calls;
mod seccomp;
mod signals;
mod state;
mod stopping;
mod tracer_death;
