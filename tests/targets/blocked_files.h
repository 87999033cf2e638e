/* Open files that cannot be brought back: each is made and returned, or -1 with errno. */
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>

/* A child that keeps what is open and waits; it ends with this process. */
static pid_t child_that_waits(void) {
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) pause();
    }
    return child;
}

static int file_userfaultfd(void) { return (int)syscall(SYS_userfaultfd, O_CLOEXEC); }

static int file_io_uring(void) {
    char parameters[200] = {0};
    return (int)syscall(SYS_io_uring_setup, 4, parameters);
}

/* A software counter of the time on the processor. */
static int file_perf_event(void) {
    uint32_t attributes[28] = {1, 112};
    return (int)syscall(SYS_perf_event_open, attributes, 0, -1, -1, 0);
}

/* An array of one number. */
static int file_bpf(void) {
    uint32_t attributes[32] = {2, 4, 4, 1};
    return (int)syscall(SYS_bpf, 0, attributes, sizeof attributes);
}

static int file_fanotify(void) { return fanotify_init(FAN_CLASS_NOTIF, O_RDONLY); }
static int file_kvm(void) { return open("/dev/kvm", O_RDWR); }
static int file_tun(void) { return open("/dev/net/tun", O_RDWR); }
static int file_device(void) { return open("/dev/kmsg", O_RDONLY); }
static int file_block_device(void) { return open("/dev/loop0", O_RDONLY | O_NONBLOCK); }
static int file_terminal_master(void) { return posix_openpt(O_RDWR | O_NOCTTY); }

/* Its master is open as well. */
static int file_terminal(void) {
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || unlockpt(master)) return -1;
    return open(ptsname(master), O_RDWR | O_NOCTTY);
}

static int file_message_queue(void) {
    char name[64];
    snprintf(name, sizeof name, "pagetide-%d", getpid());
    int queue = (int)syscall(SYS_mq_open, name, O_RDWR | O_CREAT, 0600, 0);
    syscall(SYS_mq_unlink, name);
    return queue;
}

static int file_secret_memory(void) { return (int)syscall(SYS_memfd_secret, 0); }

static int file_landlock(void) {
    uint64_t handled = 1;
    return (int)syscall(SYS_landlock_create_ruleset, &handled, sizeof handled, 0);
}

static int file_mount_context(void) { return (int)syscall(SYS_fsopen, "tmpfs", 0); }
static int file_namespace(void) { return open("/proc/self/ns/mnt", O_RDONLY); }
static int file_pidfd(void) { return (int)syscall(SYS_pidfd_open, getppid(), 0); }
static int file_proc(void) { return open("/proc/1/status", O_RDONLY); }

/* A child has the other end. */
static int file_outside_pipe(void) {
    int ends[2];
    if (pipe(ends) || child_that_waits() < 0) return -1;
    close(ends[1]);
    return ends[0];
}

/* More than is stored of such files. */
static int file_deleted(void) {
    static char bytes[MIB] = {1};
    int file = open("large", O_RDWR | O_CREAT, 0600);
    if (file < 0 || unlink("large")) return -1;
    for (int i = 0; i < 65; i++)
        if (write(file, bytes, sizeof bytes) != sizeof bytes) return -1;
    return file;
}

/* The name by which it was opened is gone, and it lives on by another. */
static int file_path(void) {
    int file = open("kept", O_RDWR | O_CREAT, 0600);
    if (file < 0 || link("kept", "other name") || unlink("kept")) return -1;
    return file;
}

static int file_lease(void) {
    int file = open("leased", O_RDONLY | O_CREAT, 0600);
    return file < 0 || fcntl(file, F_SETLEASE, F_RDLCK) ? -1 : file;
}

static int file_signal_owner(void) {
    int file = eventfd(0, 0);
    return file < 0 || fcntl(file, F_SETOWN, getppid()) ? -1 : file;
}

/* What it waits for is open in a child alone. */
static int file_epoll_entry(void) {
    int waits = epoll_create1(0), ends[2];
    struct epoll_event event = {.events = EPOLLIN};
    if (waits < 0 || pipe(ends) || epoll_ctl(waits, EPOLL_CTL_ADD, ends[0], &event)) return -1;
    if (child_that_waits() < 0) return -1;
    close(ends[0]);
    close(ends[1]);
    return waits;
}

static int file_inotify_events(void) {
    int watcher = inotify_init();
    if (watcher < 0 || inotify_add_watch(watcher, ".", IN_CREATE) < 0) return -1;
    close(open("fresh", O_RDWR | O_CREAT, 0600));
    return watcher;
}

/* The file that is watched has no name any more. */
static int file_inotify_watch(void) {
    int watcher = inotify_init();
    if (open("watched", O_RDWR | O_CREAT, 0600) < 0) return -1;
    if (watcher < 0 || inotify_add_watch(watcher, "watched", IN_MODIFY) < 0) return -1;
    return unlink("watched") ? -1 : watcher;
}
