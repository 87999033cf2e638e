// files_blocked KIND DIRECTORY: opens one thing that cannot be brought back, at descriptor 100, and says "ready"; or "skip" and why if this
// machine has none.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static char memory[1 << 20];

static void *own_files(void *unused) {
    (void)unused;
    unshare(CLONE_FILES);
    unshare(CLONE_FS);
    puts("ready");
    fflush(stdout);
    for (;;) pause();
    return 0;
}

static int sleeps(void *unused) {
    (void)unused;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) pause();
    return 0;
}

static int deleted(const char *name) {
    int file = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    unlink(name);
    return file;
}

static int open_kind(const char *kind) {
    if (!strcmp(kind, "userfaultfd")) return syscall(SYS_userfaultfd, O_CLOEXEC);
    if (!strcmp(kind, "io-uring")) { char params[200] = {0}; return syscall(SYS_io_uring_setup, 4, params); }
    if (!strcmp(kind, "perf-event")) {
        // A software counter of the processor's time.
        char attributes[112] = {1, 0, 0, 0, 112};
        return syscall(SYS_perf_event_open, attributes, 0, -1, -1, 0);
    }
    if (!strcmp(kind, "bpf")) { unsigned attributes[32] = {2, 4, 4, 1}; return syscall(SYS_bpf, 0, attributes, sizeof attributes); }
    if (!strcmp(kind, "fanotify")) return fanotify_init(FAN_CLASS_NOTIF, O_RDONLY);
    if (!strcmp(kind, "kvm")) return open("/dev/kvm", O_RDWR);
    if (!strcmp(kind, "tun")) return open("/dev/net/tun", O_RDWR);
    if (!strcmp(kind, "device")) return open("/dev/kmsg", O_RDONLY);
    if (!strcmp(kind, "block-device")) return open("/dev/loop0", O_RDONLY | O_NONBLOCK);
    if (!strcmp(kind, "terminal-master")) return posix_openpt(O_RDWR | O_NOCTTY);
    if (!strcmp(kind, "terminal")) {
        int master = posix_openpt(O_RDWR | O_NOCTTY);
        if (master < 0 || unlockpt(master)) return -1;
        return open(ptsname(master), O_RDWR | O_NOCTTY);
    }
    if (!strcmp(kind, "message-queue")) {
        char name[64];
        sprintf(name, "pagetide-%d", getpid());
        int queue = syscall(SYS_mq_open, name, O_RDWR | O_CREAT, 0600, 0);
        syscall(SYS_mq_unlink, name);
        return queue;
    }
    if (!strcmp(kind, "secret-memory")) return syscall(SYS_memfd_secret, 0);
    if (!strcmp(kind, "landlock")) { unsigned long rules[2] = {1, 0}; return syscall(SYS_landlock_create_ruleset, rules, 8, 0); }
    if (!strcmp(kind, "mount-context")) return syscall(SYS_fsopen, "tmpfs", 0);
    if (!strcmp(kind, "namespace")) return open("/proc/self/ns/mnt", O_RDONLY);
    if (!strcmp(kind, "outside-pipe")) {
        // The child that has the other end is none of the snapshot.
        int ends[2];
        if (pipe(ends)) return -1;
        if (!fork()) { close(ends[0]); sleeps(0); }
        close(ends[1]);
        return ends[0];
    }
    if (!strcmp(kind, "pidfd")) return syscall(SYS_pidfd_open, getppid(), 0);
    if (!strcmp(kind, "proc")) return open("/proc/1/status", O_RDONLY);
    if (!strcmp(kind, "deleted-file")) {
        int file = deleted("large");
        for (int i = 0; i < 65; i++) if (write(file, memory, sizeof memory) < 0) return -1;
        return file;
    }
    if (!strcmp(kind, "path")) {
        int file = open("kept", O_RDWR | O_CREAT, 0600);
        if (link("kept", "other name") || unlink("kept")) return -1;
        return file;
    }
    if (!strcmp(kind, "lease")) {
        int file = open("leased", O_RDONLY | O_CREAT, 0600);
        return fcntl(file, F_SETLEASE, F_RDLCK) ? -1 : file;
    }
    if (!strcmp(kind, "signal-owner")) {
        int file = eventfd(0, 0);
        return fcntl(file, F_SETOWN, getppid()) ? -1 : file;
    }
    if (!strcmp(kind, "epoll-entry")) {
        // The file is open in a child alone, which is none of the snapshot.
        int waits = epoll_create1(0), ends[2];
        struct epoll_event event = {.events = EPOLLIN};
        if (pipe(ends)) return -1;
        epoll_ctl(waits, EPOLL_CTL_ADD, ends[0], &event);
        if (!fork()) { close(ends[1]); sleeps(0); }
        close(ends[0]);
        close(ends[1]);
        return waits;
    }
    if (!strcmp(kind, "inotify-events")) {
        int watcher = inotify_init();
        inotify_add_watch(watcher, ".", IN_CREATE);
        close(open("fresh", O_RDWR | O_CREAT, 0600));
        return watcher;
    }
    if (!strcmp(kind, "inotify-watch")) {
        // A file whose name is gone and which lives on.
        int watcher = inotify_init();
        int file = open("watched", O_RDWR | O_CREAT, 0600);
        (void)file;
        inotify_add_watch(watcher, "watched", IN_MODIFY);
        unlink("watched");
        return watcher;
    }
    // Not in the way at all:
    if (!strcmp(kind, "own-terminal")) return open(ttyname(2), O_RDWR | O_NOCTTY | O_NONBLOCK);
    if (!strcmp(kind, "chroot")) {
        if (mkdir("jail", 0700) || mkdir("jail/cell", 0700) || chroot("jail") || chdir("/cell")) return -1;
        return open("/", O_RDONLY | O_DIRECTORY);
    }
    if (!strcmp(kind, "many")) {
        int waits = epoll_create1(0), file = -1;
        struct epoll_event event = {.events = EPOLLIN};
        for (int i = 0; i < 2000; i++) {
            file = eventfd(i, 0);
            if (file < 0 || epoll_ctl(waits, EPOLL_CTL_ADD, file, &event)) return -1;
        }
        return waits;
    }
    if (!strcmp(kind, "mapped-memory")) {
        int file = memfd_create("mapped", 0);
        if (ftruncate(file, 4096)) return -1;
        char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (page == MAP_FAILED) return -1;
        strcpy(page, "through a mapping");
        return file;
    }
    if (!strcmp(kind, "working-directory")) {
        if (mkdir("away", 0700) || chdir("away") || rmdir("../away")) return -1;
        return eventfd(0, 0);
    }
    errno = EINVAL;
    return -1;
}

int main(int argc, char **argv) {
    if (argc < 3 || chdir(argv[2])) return 2;
    syscall(SYS_close_range, 3, ~0U, 0);
    if (!strcmp(argv[1], "thread")) {
        pthread_t thread;
        pthread_create(&thread, 0, own_files, 0);
        for (;;) pause();
    }
    if (!strcmp(argv[1], "shared")) {
        // CLONE_FILES and CLONE_FS, but no address space.
        int child = clone(sleeps, memory + sizeof memory, CLONE_FILES | CLONE_FS | SIGCHLD, 0);
        printf("ready\n%d\n", child);
        fflush(stdout);
        for (;;) pause();
    }
    int file = open_kind(argv[1]);
    int error = errno;
    puts("ready");
    if (file < 0) printf("skip: %s\n", strerror(error));
    else {
        dup2(file, 100);
        if (file != 100) close(file);
        puts("open");
    }
    fflush(stdout);
    for (;;) pause();
}
