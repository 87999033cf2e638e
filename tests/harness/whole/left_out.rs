//! What is not compared, and why. Whatever the kernel tells in the places that are read and what does not stand here is compared.

/// Where it stands, its name there, and why it may differ.
const LEFT_OUT: &[(Place, &str, &str)] = &[
    (
        Place::VmFlags,
        "um",
        "memory is tracked by userfaultfd: ours",
    ),
    (
        Place::VmFlags,
        "uw",
        "memory is tracked by userfaultfd: ours",
    ),
    (
        Place::VmFlags,
        "ui",
        "memory is tracked by userfaultfd: ours",
    ),
    (Place::VmFlags, "sd", "the soft-dirty mark: of trackers"),
    (
        Place::Status,
        "State",
        "that all threads stand still is seen to elsewhere",
    ),
    (
        Place::Status,
        "PPid",
        "whoever restores is the parent; within a tree it is compared by itself",
    ),
    (Place::Status, "TracerPid", "nobody traces"),
    (
        Place::Status,
        "Ngid",
        "the kernel's group for NUMA balancing",
    ),
    (
        Place::Status,
        "FDSize",
        "how large the table of descriptors has once been",
    ),
    (
        Place::Status,
        "SigQ",
        "counts what is queued for all processes of the user",
    ),
    (
        Place::Status,
        "SigPnd",
        "what is queued is compared one by one",
    ),
    (
        Place::Status,
        "ShdPnd",
        "what is queued is compared one by one",
    ),
    (Place::Status, "VmPeak", "history"),
    (Place::Status, "VmHWM", "history"),
    (Place::Status, "VmSize", "mappings are compared one by one"),
    (Place::Status, "VmData", "mappings are compared one by one"),
    (Place::Status, "VmStk", "mappings are compared one by one"),
    (Place::Status, "VmExe", "mappings are compared one by one"),
    (Place::Status, "VmLib", "mappings are compared one by one"),
    (Place::Status, "VmPin", "pinned by the kernel for a moment"),
    (
        Place::Status,
        "VmRSS",
        "what is resident is the kernel's to decide",
    ),
    (
        Place::Status,
        "RssAnon",
        "what is resident is the kernel's to decide",
    ),
    (
        Place::Status,
        "RssFile",
        "what is resident is the kernel's to decide",
    ),
    (
        Place::Status,
        "RssShmem",
        "what is resident is the kernel's to decide",
    ),
    (Place::Status, "VmPTE", "page tables"),
    (
        Place::Status,
        "VmSwap",
        "what is resident is the kernel's to decide",
    ),
    (
        Place::Status,
        "HugetlbPages",
        "what is resident is the kernel's to decide",
    ),
    (Place::Status, "voluntary_ctxt_switches", "history"),
    (Place::Status, "nonvoluntary_ctxt_switches", "history"),
    (
        Place::Fdinfo,
        "eventfd-id",
        "a running number of the kernel",
    ),
    (
        Place::Fdinfo,
        "ino",
        "the link says which file; what has no path gets another number",
    ),
    (
        Place::Fdinfo,
        "it_value",
        "time goes on while a process stands still; armed or not is compared",
    ),
    (
        Place::Fdinfo,
        "ticks",
        "time goes on while a process stands still",
    ),
];

/// Files under `/proc/PID` that list named things.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The line `VmFlags` in `smaps`.
    VmFlags,
    /// `status`.
    Status,
    /// `fdinfo/N`.
    Fdinfo,
}

/// Whether a thing is not compared.
pub(super) fn is_left_out(place: Place, name: &str) -> bool {
    LEFT_OUT
        .iter()
        .any(|entry| entry.0 == place && entry.1 == name)
}

/// Signals that come by themselves while a process stands still: timers that run out, children that were stopped or let
/// go by whoever looks, and what stopped it, which is taken away when it is let go. By number and `si_code`.
pub(super) fn comes_by_itself(signal: i32, code: i32) -> bool {
    const SIGALRM: i32 = 14;
    const SIGCHLD: i32 = 17;
    const SIGSTOP: i32 = 19;
    const SI_TIMER: i32 = -2;
    const SI_KERNEL: i32 = 0x80;
    const CLD_STOPPED: i32 = 5;
    const CLD_CONTINUED: i32 = 6;
    code == SI_TIMER
        || signal == SIGSTOP
        || (signal == SIGALRM && code == SI_KERNEL)
        || (signal == SIGCHLD && matches!(code, CLD_STOPPED | CLD_CONTINUED))
}
