//! Why memory is read in full and compared with the parent snapshot instead of being tracked. A reason
//! concerns one mapping or a whole process. It is found where the memory is looked at, and told in the report.

use std::fmt;

/// Why a mapping, or all memory of a process, is compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ComparedBecause {
    /// The tracker cannot watch the mapping; what it said.
    Refused(String),
    /// The process has nearly as many mappings as it may have, and memory that is tracked is not joined with
    /// memory that comes beside it.
    ManyMappings {
        /// How many it has.
        mappings: usize,
        /// How many it may have (vm.max_map_count).
        most: u64,
    },
    /// Somebody has a file of `/proc` open that shows what the process writes, or clears what is known of it.
    OwnScanner {
        /// The process that has it open: the process itself, or another of the checkpoint.
        holder: i32,
        /// The number of the descriptor in it.
        descriptor: i32,
        /// The file.
        path: String,
    },
    /// The process has a userfaultfd of its own.
    OwnUserfaultfd {
        /// The number of the descriptor.
        descriptor: i32,
    },
    /// A ring (io_uring) may write to memory of the process that nothing lists.
    UnlistedRing,
    /// A ring may take its buffers from a ring of buffers in the process's memory, which the kernel writes to.
    BufferRing,
    /// Registered buffers are not where they were registered any more.
    MovedBuffers,
    /// A thread has a ring registered, which needs no descriptor and no mapping.
    RegisteredRing,
    /// A thread could not be asked whether it has such a ring.
    NotAsked {
        /// Why not, for people.
        why: String,
    },
    /// The process has used a ring, and another process has one whose queues may lie in its memory.
    RingElsewhere,
    /// The kernel has pinned more pages of it than are listed.
    Pinned,
    /// It has a packet socket (AF_XDP) that may write to its memory.
    PacketBuffers,
    /// It has a device open that writes to memory by itself.
    Device,
    /// What had been sent to its memory before the snapshot arrived after it, with no trace. It is copied again for
    /// the next one.
    WrittenUnseen,
    /// There was another such writer at the last snapshot.
    UnlistedRingBefore,
    /// Reads of the kernel may be under way, and this backend would miss what they write.
    ReadsUnderWay,
}

impl ComparedBecause {
    /// The name by which machines know it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::ManyMappings { .. } => "many-mappings",
            Self::OwnScanner { .. } => "own-scanner",
            Self::OwnUserfaultfd { .. } => "own-userfaultfd",
            Self::UnlistedRing => "unlisted-ring",
            Self::BufferRing => "buffer-ring",
            Self::MovedBuffers => "moved-buffers",
            Self::RegisteredRing => "registered-ring",
            Self::NotAsked { .. } => "not-asked",
            Self::RingElsewhere => "ring-elsewhere",
            Self::Pinned => "pinned",
            Self::PacketBuffers => "packet-buffers",
            Self::Device => "device",
            Self::WrittenUnseen => "written-unseen",
            Self::UnlistedRingBefore => "unlisted-ring-before",
            Self::ReadsUnderWay => "reads-under-way",
        }
    }
}

impl fmt::Display for ComparedBecause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused(said) => said,
            Self::ManyMappings { mappings, most } => {
                return write!(
                    f,
                    "the process has {mappings} mappings of at most {most} (vm.max_map_count), and tracking new memory \
                     would add more"
                );
            }
            Self::OwnScanner {
                holder,
                descriptor,
                path,
            } => {
                return write!(
                    f,
                    "process {holder} has {path} open (descriptor {descriptor}) and may look by it for what was written, which \
                     tracking would disturb"
                );
            }
            Self::OwnUserfaultfd { descriptor } => {
                return write!(
                    f,
                    "it has a userfaultfd of its own (descriptor {descriptor}), which tracking would disturb"
                );
            }
            Self::UnlistedRing => {
                "an io_uring of it may write to memory that nothing lists"
            }
            Self::BufferRing => {
                "an io_uring of it may take buffers from a ring in its memory that the kernel writes to"
            }
            Self::MovedBuffers => {
                "buffers that it has registered with an io_uring were moved, and nothing tells where to"
            }
            Self::RegisteredRing => {
                "a thread of it has an io_uring registered, which nothing else shows"
            }
            Self::NotAsked { why } => {
                return write!(
                    f,
                    "a thread cannot be asked for an io_uring that nothing else shows: {why}"
                );
            }
            Self::RingElsewhere => {
                "another process has an io_uring that may write to its memory"
            }
            Self::Pinned => {
                "the kernel has pinned pages of it, and nothing lists all of them"
            }
            Self::PacketBuffers => {
                "it has an AF_XDP socket, which writes to memory that nothing lists"
            }
            Self::Device => "it has a device open that writes to memory by itself",
            Self::WrittenUnseen => {
                "something wrote to its memory with no trace while the snapshot was taken, and is in the next one"
            }
            Self::UnlistedRingBefore => {
                "at the last snapshot something might write to memory of it that nothing lists"
            }
            Self::ReadsUnderWay => {
                "it does asynchronous I/O, and this backend misses what arrives during a snapshot"
            }
        })
    }
}
