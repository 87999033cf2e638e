/* Tells what of stopped processes can be seen from outside, but not in /proc: of each thread the registers, masks,
 * queued signals and registrations with the kernel; of each descriptor what is behind it. Takes pids, and prints
 * lines of pid, key and value, with tabs between them. Leaves the processes stopped. */
#include "common.h"
#include <dirent.h>
#include <elf.h>
#include <linux/ioprio.h>
#include <linux/kcmp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/user.h>
#include <termios.h>

#define XSTATE_BYTES (64 * 1024)
#define PEEKED 64
#define DESCRIPTORS_MAX 4096
#define RSEQ_BYTES 32

struct rseq_registration {
    uint64_t address;
    uint32_t size, signature, flags, pad;
};

struct descriptor {
    int pid, number;
    dev_t device;
    ino_t inode;
};

static struct descriptor all[DESCRIPTORS_MAX];
static int all_count;
static int now_pid; /* whose lines are printed */
static char prefix[64];

static void tell(const char *key, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    printf("%d\t%s%s\t", now_pid, prefix, key);
    vprintf(format, arguments);
    putchar('\n');
    va_end(arguments);
}

static void tell_bytes(const char *key, const void *bytes, size_t length) {
    const unsigned char *byte = bytes;
    printf("%d\t%s%s\t", now_pid, prefix, key);
    for (size_t at = 0; at < length; at++) printf("%02x", byte[at]);
    putchar('\n');
}

static int by_number(const void *a, const void *b) {
    return *(const int *)a - *(const int *)b;
}

/* The numbers that are names in a directory, in order. */
static int numbers_in(const char *path, int *into) {
    DIR *directory = opendir(path);
    if (!directory) die(path);
    int count = 0;
    for (struct dirent *entry; (entry = readdir(directory)) && count < DESCRIPTORS_MAX;)
        if (entry->d_name[0] >= '0' && entry->d_name[0] <= '9') into[count++] = atoi(entry->d_name);
    closedir(directory);
    qsort(into, (size_t)count, sizeof *into, by_number);
    return count;
}

static void tell_registers(int tid) {
    struct user_regs_struct r;
    struct iovec vector = {&r, sizeof r};
    if (ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &vector)) die("registers");
#define REGISTER(name) tell("register " #name, "%llx", (unsigned long long)r.name)
    REGISTER(rax), REGISTER(rbx), REGISTER(rcx), REGISTER(rdx), REGISTER(rsi), REGISTER(rdi), REGISTER(rbp);
    REGISTER(rsp), REGISTER(r8), REGISTER(r9), REGISTER(r10), REGISTER(r11), REGISTER(r12), REGISTER(r13);
    REGISTER(r14), REGISTER(r15), REGISTER(rip), REGISTER(orig_rax), REGISTER(eflags), REGISTER(fs_base);
    REGISTER(gs_base), REGISTER(cs), REGISTER(ss), REGISTER(ds), REGISTER(es), REGISTER(fs), REGISTER(gs);
    static unsigned char xstate[XSTATE_BYTES];
    vector = (struct iovec){xstate, sizeof xstate};
    if (ptrace(PTRACE_GETREGSET, tid, NT_X86_XSTATE, &vector)) die("extended registers");
    tell_bytes("xstate", xstate, vector.iov_len);
    /* The instruction that the thread called the kernel by, if it did, and the one before it. */
    unsigned char code[7] = {0};
    struct iovec here = {code, sizeof code}, there = {(void *)(r.rip - sizeof code), sizeof code};
    if (process_vm_readv(tid, &here, 1, &there, 1, 0) == (ssize_t)sizeof code) tell_bytes("code", code, sizeof code);

    struct rseq_registration rseq = {0};
    if (ptrace(PTRACE_GET_RSEQ_CONFIGURATION, tid, sizeof rseq, &rseq) < 0) return;
    tell("rseq", "%llx %u %x %u", (unsigned long long)rseq.address, rseq.size, rseq.signature, rseq.flags);
    uint64_t area[RSEQ_BYTES / 8], sequence[4];
    struct iovec area_here = {area, sizeof area}, area_there = {(void *)rseq.address, sizeof area};
    if (!rseq.address || process_vm_readv(tid, &area_here, 1, &area_there, 1, 0) < 0 || !area[1]) return;
    struct iovec sequence_here = {sequence, sizeof sequence}, sequence_there = {(void *)area[1], sizeof sequence};
    if (process_vm_readv(tid, &sequence_here, 1, &sequence_there, 1, 0) < 0) return;
    if (r.rip - sequence[1] < sequence[2]) tell("aborted at", "%llx", (unsigned long long)sequence[3]);
}

static void tell_queue(int tid, unsigned flags, const char *what) {
    siginfo_t queued[PEEKED];
    struct __ptrace_peeksiginfo_args arguments = {.off = 0, .flags = flags, .nr = PEEKED};
    long count = ptrace(PTRACE_PEEKSIGINFO, tid, &arguments, queued);
    for (long at = 0; at < count; at++) {
        char key[64];
        snprintf(key, sizeof key, "%s %ld", what, at);
        printf("%d\t%s%s\t%d %d %d ", now_pid, prefix, key, queued[at].si_signo, queued[at].si_code, queued[at].si_errno);
        const unsigned char *byte = (const unsigned char *)&queued[at];
        for (size_t place = 16; place < 48; place++) printf("%02x", byte[place]);
        putchar('\n');
    }
}

static void tell_thread(int pid, int tid) {
    snprintf(prefix, sizeof prefix, "thread %d ", tid);
    if (ptrace(PTRACE_SEIZE, tid, 0, 0)) die("seize");
    if (waitpid(tid, NULL, __WALL) != tid) die("wait for a thread");
    tell_registers(tid);
    uint64_t mask = 0;
    if (ptrace(PTRACE_GETSIGMASK, tid, sizeof mask, &mask)) die("signal mask");
    tell("mask", "%llx", (unsigned long long)mask);
    tell_queue(tid, 0, "queued");
    if (tid == pid) {
        snprintf(prefix, sizeof prefix, "process ");
        tell_queue(tid, PTRACE_PEEKSIGINFO_SHARED, "queued");
        snprintf(prefix, sizeof prefix, "thread %d ", tid);
    }
    if (ptrace(PTRACE_DETACH, tid, 0, 0)) die("detach");

    void *head = NULL;
    size_t length = 0;
    if (!syscall(SYS_get_robust_list, tid, &head, &length)) tell("robust list", "%p %zu", head, length);
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
        uint32_t least, most;
    } attributes = {0};
    if (!syscall(SYS_sched_getattr, tid, &attributes, sizeof attributes, 0))
        tell("scheduling", "%u %llx %d %u %llu %llu %llu %u %u", attributes.policy, (unsigned long long)attributes.flags,
             attributes.nice, attributes.priority, (unsigned long long)attributes.runtime,
             (unsigned long long)attributes.deadline, (unsigned long long)attributes.period, attributes.least, attributes.most);
    unsigned long processors[16] = {0};
    syscall(SYS_sched_getaffinity, tid, sizeof processors, processors);
    tell_bytes("affinity", processors, sizeof processors);
    tell("I/O priority", "%ld", syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid));
    tell("shares files", "%d", syscall(SYS_kcmp, pid, tid, KCMP_FILES, 0, 0) == 0);
    tell("shares directories", "%d", syscall(SYS_kcmp, pid, tid, KCMP_FS, 0, 0) == 0);
}

static void tell_number(int fd, const char *what, int level, int option) {
    int value = 0;
    socklen_t length = sizeof value;
    if (!getsockopt(fd, level, option, &value, &length)) tell(what, "%d", value);
}

static void tell_socket(int fd) {
    static const struct {
        const char *name;
        int level, option;
    } options[] = {
        {"domain", SOL_SOCKET, SO_DOMAIN},        {"type", SOL_SOCKET, SO_TYPE},
        {"protocol", SOL_SOCKET, SO_PROTOCOL},    {"listens", SOL_SOCKET, SO_ACCEPTCONN},
        {"reuseaddr", SOL_SOCKET, SO_REUSEADDR},  {"reuseport", SOL_SOCKET, SO_REUSEPORT},
        {"keepalive", SOL_SOCKET, SO_KEEPALIVE},  {"receive buffer", SOL_SOCKET, SO_RCVBUF},
        {"send buffer", SOL_SOCKET, SO_SNDBUF},   {"passcred", SOL_SOCKET, SO_PASSCRED},
        {"broadcast", SOL_SOCKET, SO_BROADCAST},  {"priority", SOL_SOCKET, SO_PRIORITY},
        {"v6only", IPPROTO_IPV6, IPV6_V6ONLY},    {"nodelay", IPPROTO_TCP, TCP_NODELAY},
        {"keepidle", IPPROTO_TCP, TCP_KEEPIDLE},  {"keepintvl", IPPROTO_TCP, TCP_KEEPINTVL},
        {"keepcnt", IPPROTO_TCP, TCP_KEEPCNT},    {"defer accept", IPPROTO_TCP, TCP_DEFER_ACCEPT},
        {"lowat", SOL_SOCKET, SO_RCVLOWAT},       {"oobinline", SOL_SOCKET, SO_OOBINLINE},
    };
    for (size_t at = 0; at < sizeof options / sizeof *options; at++) tell_number(fd, options[at].name, options[at].level, options[at].option);
    struct linger linger = {0};
    socklen_t length = sizeof linger;
    if (!getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &length)) tell("linger", "%d %d", linger.l_onoff, linger.l_linger);
    struct timeval patience[2] = {0};
    length = sizeof *patience;
    getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience[0], &length);
    getsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience[1], &length);
    tell_bytes("timeouts", patience, sizeof patience);
    union {
        struct sockaddr any;
        struct sockaddr_storage storage;
    } address;
    memset(&address, 0, sizeof address);
    length = sizeof address;
    if (!getsockname(fd, &address.any, &length)) tell_bytes("name", &address, length);
    length = sizeof address;
    if (!getpeername(fd, &address.any, &length)) tell_bytes("peer", &address, length);
    struct tcp_info info = {0};
    length = sizeof info;
    if (!getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length)) {
        tell("tcp state", "%u", info.tcpi_state);
        if (info.tcpi_state == TCP_LISTEN) tell("backlog", "%u", info.tcpi_sacked);
    }
    /* Asking what is queued would take an error away: only where something is. */
    int queued = 0;
    int listens = 0;
    length = sizeof listens;
    getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length);
    if (listens || ioctl(fd, FIONREAD, &queued) || queued <= 0) return;
    tell("bytes queued", "%d", queued);
    static char bytes[65536];
    ssize_t peeked = recv(fd, bytes, sizeof bytes, MSG_PEEK | MSG_DONTWAIT);
    if (peeked > 0) tell_bytes("queued", bytes, (size_t)peeked);
}

static void tell_pipe(int fd, int pid, int number) {
    tell("pipe size", "%d", fcntl(fd, F_GETPIPE_SZ));
    int queued = 0;
    if (ioctl(fd, FIONREAD, &queued)) return;
    tell("bytes queued", "%d", queued);
    if (queued == 0) return;
    /* The bytes are copied, not taken, by an end of our own. */
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, number);
    int from = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC), pair[2];
    if (from < 0 || pipe(pair)) die("a pipe");
    fcntl(pair[1], F_SETPIPE_SZ, fcntl(fd, F_GETPIPE_SZ));
    ssize_t copied = tee(from, pair[1], (size_t)queued, SPLICE_F_NONBLOCK);
    char *bytes = malloc((size_t)queued);
    if (copied > 0 && bytes && read(pair[0], bytes, (size_t)copied) == copied) tell_bytes("queued", bytes, (size_t)copied);
    free(bytes);
    close(pair[0]), close(pair[1]), close(from);
}

/* A number that stands for the content of a file that only its descriptors lead to. */
static void tell_content(int fd, off_t length) {
    uint64_t sum = 0xcbf29ce484222325ull;
    static unsigned char bytes[65536];
    tell("length", "%lld", (long long)length);
    for (off_t at = 0; at < length;) {
        ssize_t got = pread(fd, bytes, sizeof bytes, at);
        if (got <= 0) return;
        for (ssize_t place = 0; place < got; place++) sum = (sum ^ bytes[place]) * 0x100000001b3ull;
        at += got;
    }
    tell("content", "%llx", (unsigned long long)sum);
}

static void tell_descriptor(int pid, int pidfd, int number) {
    char path[64], link[4096];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, number);
    ssize_t length = readlink(path, link, sizeof link - 1);
    if (length < 0) die(path);
    link[length] = 0;
    if (!strcmp(link, "anon_inode:[userfaultfd]") || !strncmp(link, "/memfd:pagetide", 15)) return;
    snprintf(prefix, sizeof prefix, "fd %d ", number);
    int fd = (int)syscall(SYS_pidfd_getfd, pidfd, number, 0);
    if (fd < 0) die("a descriptor");
    struct stat status;
    if (fstat(fd, &status)) die("fstat");
    /* The first descriptor of all that is the same open file, and the first with the same object. */
    struct descriptor *self = &all[all_count], *same_file = self, *same_object = self;
    *self = (struct descriptor){pid, number, status.st_dev, status.st_ino};
    for (struct descriptor *other = self; other-- > all;) {
        if (other->device != status.st_dev || other->inode != status.st_ino) continue;
        same_object = other;
        if (syscall(SYS_kcmp, pid, other->pid, KCMP_FILE, number, other->number) == 0) same_file = other;
    }
    if (all_count + 1 < DESCRIPTORS_MAX) all_count++;
    tell("open file of", "%d:%d", same_file->pid, same_file->number);
    int mode = fcntl(fd, F_GETFL);
    if (!(mode & O_PATH)) {
        /* Anonymous inodes are one object for all kinds. */
        if (strncmp(link, "anon_inode:", 11)) tell("object of", "%d:%d", same_object->pid, same_object->number);
        struct f_owner_ex owner = {0};
        if (!fcntl(fd, F_GETOWN_EX, &owner)) tell("owner", "%d %d", owner.type, owner.pid);
        tell("signal", "%d", fcntl(fd, F_GETSIG));
        tell("lease", "%d", fcntl(fd, F_GETLEASE));
        tell("mode", "%o", status.st_mode);
        int seals = fcntl(fd, F_GET_SEALS);
        if (seals >= 0) tell("seals", "%x", (unsigned)seals);
        if (S_ISSOCK(status.st_mode)) tell_socket(fd);
        if (S_ISFIFO(status.st_mode)) tell_pipe(fd, pid, number);
        if (S_ISREG(status.st_mode) && status.st_nlink == 0) tell_content(fd, status.st_size);
        struct termios settings;
        if (S_ISCHR(status.st_mode) && isatty(fd) && !tcgetattr(fd, &settings)) {
            struct winsize size = {0};
            ioctl(fd, TIOCGWINSZ, &size);
            tell_bytes("terminal", &settings, sizeof settings);
            tell_bytes("window", &size, sizeof size);
        }
    }
    close(fd);
}

int main(int count, char **words) {
    static int numbers[DESCRIPTORS_MAX];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int at = 1; at < count; at++) {
        char path[64];
        now_pid = atoi(words[at]);
        snprintf(path, sizeof path, "/proc/%d/task", now_pid);
        int found = numbers_in(path, numbers);
        for (int place = 0; place < found; place++) tell_thread(now_pid, numbers[place]);
        snprintf(prefix, sizeof prefix, "process ");
        for (int other = 1; other < at; other++) {
            int kinds[] = {KCMP_VM, KCMP_FILES, KCMP_FS, KCMP_SIGHAND, KCMP_IO, KCMP_SYSVSEM};
            const char *names[] = {"memory", "files", "directories", "handlers", "I/O", "semaphores"};
            for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++)
                if (syscall(SYS_kcmp, now_pid, atoi(words[other]), kinds[kind], 0, 0) == 0)
                    printf("%d\tprocess shares %s with %s\t1\n", now_pid, names[kind], words[other]);
        }
        int pidfd = (int)syscall(SYS_pidfd_open, now_pid, 0);
        if (pidfd < 0) die("pidfd_open");
        snprintf(path, sizeof path, "/proc/%d/fd", now_pid);
        found = numbers_in(path, numbers);
        for (int place = 0; place < found; place++) tell_descriptor(now_pid, pidfd, numbers[place]);
        close(pidfd);
    }
    return 0;
}
