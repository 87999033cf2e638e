// files DIRECTORY: opens files of all kinds there, has a child that shares them, and says "ready PID-OF-CHILD". Told a line, it
// checks that none of them has changed, and says "ok", or what has.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what, int line) {
    printf("%s in line %d: %s\n", what, line, strerror(errno));
    fflush(stdout);
    exit(1);
}

// The result of a call that must not fail.
#define DO(call) ({ long result_ = (long)(call); if (result_ < 0) die(#call, __LINE__); result_; })

static int file_with(const char *name, const char *text, int flags) {
    int file = DO(open(name, O_RDWR | O_CREAT | O_TRUNC, 0640));
    DO(write(file, text, strlen(text)));
    close(file);
    return DO(open(name, flags));
}

static int pipe_ends[2], packet_ends[2], read_file, deleted, counter, timer;

static const char *check(void) {
    static char buffer[8192];
    uint64_t count = 0;
    if (lseek(read_file, 0, SEEK_CUR) != 3) return "position of a file";
    if (lseek(deleted, 0, SEEK_CUR) != 5) return "position of a deleted file";
    if (!(fcntl(pipe_ends[0], F_GETFL) & O_NONBLOCK)) return "flags of a pipe";
    if (read(pipe_ends[0], buffer, sizeof buffer) != 10 || memcmp(buffer, "hello pipe", 10)) return "content of a pipe";
    if (read(packet_ends[0], buffer, sizeof buffer) != 3) return "first packet";
    if (read(packet_ends[0], buffer, sizeof buffer) != 4) return "second packet";
    if (read(counter, &count, 8) != 8 || count != 1) return "semaphore";
    if (read(timer, &count, 8) != 8 || count != 1) return "expired timer";
    return "ok";
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    // What whoever started us has left open is not ours.
    DO(syscall(SYS_close_range, 3, ~0U, 0));
    DO(chdir(argv[1]));

    // Regular files, one of them open twice, and one description under three numbers.
    read_file = file_with("read", "some text to read", O_RDONLY);
    DO(lseek(read_file, 3, SEEK_SET));
    DO(dup(read_file));
    DO(dup3(read_file, 300, O_CLOEXEC));
    DO(open("read", O_RDONLY | O_CLOEXEC));
    int log = file_with("log", "line\n", O_WRONLY | O_APPEND);
    DO(write(log, "next\n", 5));
    int both = file_with("both", "0123456789", O_RDWR | O_NOATIME | O_DSYNC);
    DO(lseek(both, 7, SEEK_SET));

    // Without a name: deleted, with a hole; the same through another description; and never named.
    deleted = file_with("gone", "begin", O_RDWR);
    DO(pwrite(deleted, "end", 3, 1 << 20));
    DO(ftruncate(deleted, 2 << 20));
    DO(unlink("gone"));
    DO(lseek(deleted, 5, SEEK_SET));
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", deleted);
    DO(open(path, O_RDONLY));
    int nameless = DO(open(".", O_TMPFILE | O_RDWR, 0600));
    DO(write(nameless, "nameless", 8));

    // Directories and files that are only named.
    int directory = DO(open(".", O_RDONLY | O_DIRECTORY));
    DO(open("read", O_PATH | O_CLOEXEC));
    DO(symlink("nowhere", "link"));
    DO(open("link", O_PATH | O_NOFOLLOW));

    // Pipes: both ends, in packets, opened again, and one whose writer is gone.
    DO(pipe2(pipe_ends, O_NONBLOCK));
    DO(fcntl(pipe_ends[1], F_SETPIPE_SZ, 8192));
    DO(write(pipe_ends[1], "hello pipe", 10));
    snprintf(path, sizeof path, "/proc/self/fd/%d", pipe_ends[0]);
    DO(open(path, O_RDONLY));
    DO(pipe2(packet_ends, O_DIRECT));
    DO(write(packet_ends[1], "one", 3));
    DO(write(packet_ends[1], "four", 4));
    int ended[2];
    DO(pipe(ended));
    DO(write(ended[1], "the end", 7));
    close(ended[1]);
    DO(mkfifo("fifo", 0600));
    int fifo = DO(open("fifo", O_RDWR));
    DO(write(fifo, "in fifo", 7));
    DO(open("fifo", O_RDONLY | O_NONBLOCK));

    // What the kernel counts, times and tells.
    counter = DO(eventfd(3, EFD_SEMAPHORE | EFD_CLOEXEC));
    int events = DO(eventfd(0, EFD_NONBLOCK));
    struct itimerspec far = {{5, 1}, {100000, 0}}, now = {{0, 0}, {0, 1}}, often = {{0, 1000000}, {0, 1}};
    DO(timerfd_settime(DO(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)), 0, &far, 0));
    struct itimerspec moment = {{0, 0}, {4000000000, 5}};
    DO(timerfd_settime(DO(timerfd_create(CLOCK_REALTIME, 0)), TFD_TIMER_ABSTIME, &moment, 0));
    timer = DO(timerfd_create(CLOCK_BOOTTIME, 0));
    DO(timerfd_settime(timer, 0, &now, 0));
    int ticking = DO(timerfd_create(CLOCK_MONOTONIC, 0));
    DO(timerfd_settime(ticking, 0, &often, 0));
    DO(timerfd_create(CLOCK_MONOTONIC, 0));
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMAX);
    DO(signalfd(-1, &set, SFD_NONBLOCK));
    DO(mkdir("watched", 0700));
    int watcher = DO(inotify_init1(IN_CLOEXEC));
    int first = DO(inotify_add_watch(watcher, "read", IN_MODIFY));
    DO(inotify_add_watch(watcher, "watched", IN_CREATE | IN_DELETE | IN_ONLYDIR));
    DO(inotify_rm_watch(watcher, first));
    struct { struct inotify_event event; char name[256]; } ignored;
    DO(read(watcher, &ignored, sizeof ignored));
    DO(inotify_add_watch(watcher, "log", IN_CLOSE_WRITE | IN_ONESHOT));

    // Memory.
    int memory = DO(memfd_create("some memory", MFD_ALLOW_SEALING));
    DO(pwrite(memory, "far", 3, 1 << 20));
    DO(fcntl(memory, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK));
    DO(memfd_create("", 0));

    // Devices.
    DO(open("/dev/null", O_RDWR));
    DO(open("/dev/zero", O_RDONLY));
    DO(open("/dev/urandom", O_RDONLY | O_CLOEXEC));
    DO(open("/proc/sys/kernel/ostype", O_RDONLY));

    // Sockets.
    int pair[2];
    DO(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    DO(write(pair[0], "in socket", 9));

    // Locks.
    int locked = file_with("locked", "0123456789", O_RDWR);
    DO(flock(locked, LOCK_EX));
    struct flock range = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 2, .l_len = 3};
    int other = DO(open("locked", O_RDWR));
    DO(fcntl(other, F_OFD_SETLK, &range));
    struct flock rest = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 0};
    DO(fcntl(locked, F_SETLK, &rest));

    // Owners.
    signal(SIGURG, SIG_IGN);
    DO(fcntl(events, F_SETOWN, getpid()));
    DO(fcntl(pair[1], F_SETOWN, getpid()));
    DO(fcntl(pair[1], F_SETSIG, SIGURG));
    DO(fcntl(pair[1], F_SETFL, O_ASYNC));

    // A child that shares all of that, and both have something of their own.
    int child = DO(fork());
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        DO(close(directory));
        DO(open("/dev/full", O_WRONLY));
        DO(chdir("watched"));
        struct flock own = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 50, .l_len = 5};
        DO(fcntl(locked, F_SETLK, &own));
        DO(write(events, &(uint64_t){1}, 8));
        for (;;) pause();
    }
    uint64_t count;
    while (read(events, &count, 8) != 8) usleep(1000);

    // Processes.
    int process = DO(syscall(SYS_pidfd_open, child, 0));
    DO(open("/proc/self/status", O_RDONLY));
    snprintf(path, sizeof path, "/proc/%d/comm", child);
    DO(open(path, O_RDONLY));

    // What is waited for: also under a number that is closed, and under one that is another file now.
    int waits = DO(epoll_create1(EPOLL_CLOEXEC));
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0x123456789abcdef0};
    DO(epoll_ctl(waits, EPOLL_CTL_ADD, events, &event));
    event.events = EPOLLIN | EPOLLET | EPOLLONESHOT;
    DO(epoll_ctl(waits, EPOLL_CTL_ADD, pipe_ends[0], &event));
    DO(epoll_ctl(waits, EPOLL_CTL_ADD, process, &event));
    int closed = DO(eventfd(1, 0));
    int reused = DO(eventfd(2, 0));
    event.events = EPOLLOUT;
    DO(epoll_ctl(waits, EPOLL_CTL_ADD, closed, &event));
    DO(epoll_ctl(waits, EPOLL_CTL_ADD, reused, &event));
    DO(dup2(closed, 310));
    DO(dup2(reused, 311));
    DO(close(closed));
    DO(dup2(counter, reused));

    usleep(20000);
    printf("ready\n%d\n", child);
    fflush(stdout);
    char line[16];
    while (fgets(line, sizeof line, stdin)) {
        puts(check());
        fflush(stdout);
    }
    kill(child, SIGKILL);
    return 0;
}
