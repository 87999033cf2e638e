//! The kinds of what keeps a process from being restored, each with its name. docs/BLOCKERS.md says of each what to do.

use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode};
use std::fmt;

macro_rules! kinds {
    ($($kind:ident = $name:literal: $what:literal,)*) => {
        /// What sort of thing a restore cannot bring back.
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum BlockerKind {
            $(#[doc = $what] $kind,)*
            /// One that this version does not know, by its name.
            Other(String),
        }

        impl BlockerKind {
            /// All that this version knows.
            pub const ALL: &'static [BlockerKind] = &[$(BlockerKind::$kind,)*];

            /// The name by which users know it, and snapshots have it.
            pub fn name(&self) -> &str {
                match self {
                    $(BlockerKind::$kind => $name,)*
                    BlockerKind::Other(name) => name,
                }
            }

            /// The kind of this name.
            pub fn of_name(name: &str) -> BlockerKind {
                match name {
                    $($name => BlockerKind::$kind,)*
                    other => BlockerKind::Other(other.to_owned()),
                }
            }
        }
    };
}

kinds! {
    NamespacePid = "namespace-pid": "The process lives in another PID namespace.",
    NamespaceUser = "namespace-user": "The same of its user namespace.",
    NamespaceMnt = "namespace-mnt": "The same of its mount namespace.",
    NamespaceNet = "namespace-net": "The same of its network namespace.",
    NamespaceIpc = "namespace-ipc": "The same of its IPC namespace.",
    NamespaceUts = "namespace-uts": "The same of its UTS namespace.",
    NamespaceCgroup = "namespace-cgroup": "The same of its control group namespace.",
    NamespaceTime = "namespace-time": "The same of its time namespace.",
    Traces = "traces": "It traces another process.",
    Aio = "aio": "It has a queue of asynchronous I/O (io_setup(2)).",
    IoUring = "io-uring": "It has an io_uring, open or registered with a thread.",
    Seccomp = "seccomp": "A thread is under seccomp.",
    ShadowStack = "shadow-stack": "A thread has a shadow stack.",
    IoPorts = "io-ports": "A thread may use I/O ports.",
    Ldt = "ldt": "It has a local descriptor table (modify_ldt(2)).",
    SemaphoreUndo = "semaphore-undo": "A thread may have used System V semaphores with SEM_UNDO.",
    CpuTimer = "cpu-timer": "A timer counts the processor time of another process, or of a thread that has ended.",
    Rseq = "rseq": "The kernel does not tell whether a thread registered restartable sequences (before 5.13).",
    SyscallDispatch = "syscall-dispatch": "A thread diverts its system calls (syscall user dispatch).",
    KernelState = "kernel-state": "What the kernel keeps for the process or a thread cannot be known.",
    OpenFiles = "open-files": "Its open files could not be read.",
    Unknown = "unknown": "What is asked from outside could not be read.",
    Child = "child": "A child is not in the checkpoint.",
    WorkingDirectory = "working-directory": "No path leads to its current directory.",
    RootDirectory = "root-directory": "No path leads to its root directory.",
    ThreadDescriptors = "thread-descriptors": "A thread has descriptors of its own.",
    ThreadDirectory = "thread-directory": "A thread has a current directory of its own.",
    SharedSpace = "shared-space": "A process has the memory of another one.",
    SharedDescriptors = "shared-descriptors": "Two processes have one table of descriptors.",
    SharedDirectory = "shared-directory": "Two processes have one current directory.",
    Path = "path": "A file that its path does not lead to: it was deleted, or something is mounted over it.",
    ServedFile = "served-file": "A file of a file system that a program or another machine serves (FUSE, NFS).",
    Unreadable = "unreadable": "A file that cannot be looked at.",
    DeletedFile = "deleted-file": "A file without a name that is too large to be stored.",
    HugeFile = "huge-file": "A file of huge pages that nothing maps shared, and that has content.",
    BlockDevice = "block-device": "A block device.",
    Device = "device": "A character device that may hold any state.",
    Tun = "tun": "A network tunnel.",
    Kvm = "kvm": "A virtual machine, or a part of it.",
    Drm = "drm": "A graphics device.",
    DmaBuf = "dma-buf": "A buffer or fence of a device.",
    SecretMemory = "secret-memory": "Memory that the kernel keeps secret (memfd_secret(2)).",
    MessageQueue = "message-queue": "A POSIX message queue.",
    Namespace = "namespace": "An open namespace.",
    Bpf = "bpf": "A BPF object.",
    Userfaultfd = "userfaultfd": "A userfaultfd.",
    PerfEvent = "perf-event": "A performance counter.",
    Fanotify = "fanotify": "A fanotify group.",
    Landlock = "landlock": "A set of Landlock rules.",
    MountContext = "mount-context": "A file system that is being mounted.",
    SeccompNotify = "seccomp-notify": "It supervises system calls of others.",
    UnknownFile = "unknown-file": "A file of a kind that is not known.",
    Pidfd = "pidfd": "A descriptor of a process that is not in the checkpoint.",
    Proc = "proc": "A file of `/proc` that is not opened again.",
    OutsidePipe = "outside-pipe": "A pipe whose other end a process outside has.",
    EpollEntry = "epoll-entry": "An epoll waits for files that no process has open any more.",
    EventfdSemaphore = "eventfd-semaphore": "The kernel does not tell whether an eventfd is a semaphore (before 6.5).",
    InotifyWatch = "inotify-watch": "An inotify watches files that no path is found of.",
    InotifyEvents = "inotify-events": "An inotify holds events that were not read yet.",
    Terminal = "terminal": "A pseudoterminal that one of the processes serves.",
    TerminalMaster = "terminal-master": "The master side of a pseudoterminal.",
    Lease = "lease": "A lease, or a lock that is not known.",
    SignalOwner = "signal-owner": "A descriptor signals a process that is outside.",
    UnreadableSocket = "unreadable-socket": "A socket that cannot be read.",
    SocketNamespace = "socket-namespace": "A socket of another network namespace.",
    SocketFilter = "socket-filter": "A socket with a filter.",
    Netlink = "netlink": "A netlink socket of another protocol than route, diag or generic, or one in which something waits.",
    MulticastGroup = "multicast-group": "A UDP socket in a multicast group.",
    UdpCorked = "udp-corked": "A UDP socket in which a datagram is being put together.",
    UdpEncapsulation = "udp-encapsulation": "A UDP socket that unwraps packets for the kernel.",
    RawSocket = "raw-socket": "A raw socket.",
    PingSocket = "ping-socket": "A socket for ICMP echoes.",
    MptcpSocket = "mptcp-socket": "A multipath TCP socket.",
    SctpSocket = "sctp-socket": "An SCTP socket.",
    UdpliteSocket = "udplite-socket": "A UDP-Lite socket.",
    DccpSocket = "dccp-socket": "A DCCP socket.",
    SmcSocket = "smc-socket": "An SMC socket.",
    PacketSocket = "packet-socket": "A packet socket.",
    VsockSocket = "vsock-socket": "A socket to or from a virtual machine.",
    BluetoothSocket = "bluetooth-socket": "A Bluetooth socket.",
    CanSocket = "can-socket": "A CAN bus socket.",
    AlgSocket = "alg-socket": "A socket of the kernel's cryptography.",
    KcmSocket = "kcm-socket": "A socket of the kernel connection multiplexer.",
    XdpSocket = "xdp-socket": "An AF_XDP socket.",
    TipcSocket = "tipc-socket": "A TIPC socket.",
    QrtrSocket = "qrtr-socket": "A Qualcomm router socket.",
    MctpSocket = "mctp-socket": "An MCTP socket.",
    KeySocket = "key-socket": "A socket for IPsec keys.",
    PppSocket = "ppp-socket": "A PPP socket.",
    UnknownSocket = "unknown-socket": "A socket of a family, type or protocol that is not known.",
    UnixPeer = "unix-peer": "A Unix socket whose peer is outside.",
    UnixUrgent = "unix-urgent": "A Unix socket in which an urgent byte waits.",
    UnixError = "unix-error": "A Unix socket with an error that the program has not been told yet.",
    UnixRights = "unix-rights": "A Unix socket in which descriptors wait to be received.",
    UnixCredentials = "unix-credentials": "A Unix socket in which messages wait that tell who sent them.",
    UnixPath = "unix-path": "A Unix socket bound to a path in another root directory.",
    UnixBacklog = "unix-backlog": "A Unix socket on which connections wait to be accepted.",
    UnixSender = "unix-sender": "A Unix socket in which messages of a process outside wait that tell its address.",
    TcpBacklog = "tcp-backlog": "A TCP socket on which connections wait to be accepted.",
    TcpState = "tcp-state": "A TCP connection that is being made.",
    TlsSocket = "tls-socket": "A TCP connection encrypted by the kernel.",
    TcpUlp = "tcp-ulp": "A TCP connection with another protocol of the kernel on it.",
    TcpUrgent = "tcp-urgent": "A TCP connection in which an urgent byte waits.",
    TcpRepair = "tcp-repair": "A TCP connection, and looking into it needs CAP_NET_ADMIN.",
    HugeShared = "huge-shared": "Shared memory of huge pages.",
    DeviceMapping = "device-mapping": "Memory of a device or of the kernel.",
    NotCaptured = "not-captured": "Memory that is not in the snapshot.",
    Poisoned = "poisoned": "Poisoned memory that cannot be made so again.",
    Uprobes = "uprobes": "What a tracing tool has put into the program.",
}

impl fmt::Display for BlockerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialEq<&str> for BlockerKind {
    fn eq(&self, name: &&str) -> bool {
        self.name() == *name
    }
}

/// As its name, which is what snapshots had before the kinds had a type.
impl Encode for BlockerKind {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.name().encode(encoder)
    }
}

impl<Context> Decode<Context> for BlockerKind {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Ok(Self::of_name(&String::decode(decoder)?))
    }
}

bincode::impl_borrow_decode!(BlockerKind);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_stored_as_its_name_and_an_unknown_one_stays() {
        let config = bincode::config::standard();
        let names = BlockerKind::ALL.iter().map(BlockerKind::name);
        for name in names.chain(["of-a-later-version"]) {
            let kind = BlockerKind::of_name(name);
            let bytes = bincode::encode_to_vec(&kind, config).expect("encoded");
            assert_eq!(
                Ok(&bytes),
                bincode::encode_to_vec(name.to_owned(), config)
                    .as_ref()
                    .map_err(|_| ())
            );
            let (back, _): (BlockerKind, usize) =
                bincode::decode_from_slice(&bytes, config).expect("decoded");
            assert_eq!((&back, back.name()), (&kind, name));
        }
    }
}
