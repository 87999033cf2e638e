//! The Linux interfaces pagetide stands on, one file each: typed and safe outside, and the only
//! room of the project with `unsafe`.
//!
//! Each file says since when the interface exists, what privilege it needs, every way in which a
//! call stops early, and which errors it gives. Nothing here decides anything: what to do with a
//! page that was written is the business of the crates above.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("pagetide knows the kernel interfaces of Linux on x86-64 only");

pub mod acting;
pub mod apart;
pub mod cachestat;
pub mod cgroups;
pub mod clear_refs;
pub mod counted_memory;
pub mod descriptor_owner;
pub mod file_context;
pub mod file_handle;
mod frame_file;
pub mod inherited;
pub mod inotify;
pub mod io_priority;
pub mod io_uring;
pub mod kcmp;
pub mod keeper;
pub mod kpagecgroup;
pub mod kpagecount;
pub mod kpageflags;
pub mod lease;
pub mod loose;
pub mod maps;
pub mod memory;
pub mod memory_cgroup;
pub mod move_pages;
pub mod numa_maps;
pub mod object_pages;
pub mod own_descriptors;
pub mod own_region;
pub mod pagemap;
pub mod pagemap_scan;
pub mod pidfd;
pub mod probe;
pub mod proc_file;
pub mod process_group;
pub mod progress;
pub mod ptrace;
pub mod record_locks;
pub mod robust_list;
pub mod scan_by_entries;
pub mod scheduling;
pub mod shared_memory;
mod sharing;
pub mod signalfd;
pub mod smaps;
pub mod socket;
pub mod socket_option;
pub mod spawn;
pub mod time_namespace;
pub mod timerfd;
pub mod userfaultfd;
pub mod wake_up;
