/* Each thread waits in another call, over and over, for no longer than it is told, and counts how often the time was over.
 * Arguments: the time in milliseconds, then the names of the calls, or none for all. A call that ends early, or otherwise
 * than by its time, is told at once, and ends the program. */
#include "common.h"
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>

static long limit_ms;
static struct timespec limit;
/* Where the kernel cannot write what is left: it says EINTR then. */
static const struct timespec *sealed_limit;
static const struct timeval *sealed_micro_limit;

struct kind {
    const char *name;
    long (*wait)(void);
    /* What the call says when its time is over: 0, or a negative error. */
    long over;
    atomic_uint ticks;
    atomic_ullong first_end_ms;
};

static unsigned long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (unsigned long long)now.tv_sec * 1000000000ull + (unsigned long long)now.tv_nsec;
}

static long said(long result) { return result < 0 ? -errno : result; }

static int an_epoll(void) {
    static _Thread_local int epoll = -1;
    if (epoll < 0) epoll = epoll_create1(EPOLL_CLOEXEC);
    return epoll;
}

static struct epoll_event event;

static long by_epoll_wait(void) { return said(epoll_wait(an_epoll(), &event, 1, (int)limit_ms)); }
static long by_epoll_pwait(void) {
    sigset_t none;
    sigemptyset(&none);
    return said(epoll_pwait(an_epoll(), &event, 1, (int)limit_ms, &none));
}
static long by_epoll_pwait2(void) { return said(syscall(SYS_epoll_pwait2, an_epoll(), &event, 1, &limit, NULL, 8)); }

static long by_sigtimedwait(void) {
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, SIGRTMIN + 3);
    return said(sigtimedwait(&one, NULL, &limit));
}

static long by_semtimedop(void) {
    static int set = -1;
    if (set < 0) {
        /* So that it goes with the program. */
        if (unshare(CLONE_NEWIPC)) die("unshare");
        set = semget(IPC_PRIVATE, 1, 0600);
    }
    struct sembuf take = {0, -1, 0};
    return said(semtimedop(set, &take, 1, &limit));
}

static aio_context_t an_aio(void) {
    static _Thread_local aio_context_t context;
    if (!context && syscall(SYS_io_setup, 1, &context)) die("io_setup");
    return context;
}
static long by_io_getevents(void) {
    struct io_event got;
    return said(syscall(SYS_io_getevents, an_aio(), 1, 1, &got, &limit));
}
static long by_io_pgetevents(void) {
    struct io_event got;
    return said(syscall(SYS_io_pgetevents, an_aio(), 1, 1, &got, &limit, NULL));
}

static long by_io_uring_enter(void) {
    static int ring = -1;
    if (ring < 0) {
        struct io_uring_params parameters = {0};
        ring = (int)syscall(SYS_io_uring_setup, 1, &parameters);
        if (ring < 0) die("io_uring_setup");
    }
    struct io_uring_getevents_arg argument = {.ts = (uintptr_t)&limit};
    unsigned flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
    return said(syscall(SYS_io_uring_enter, ring, 0, 1, flags, &argument, sizeof argument));
}

static void set_limit(int fd, int option) {
    struct timeval time = {limit_ms / 1000, limit_ms % 1000 * 1000};
    if (setsockopt(fd, SOL_SOCKET, option, &time, sizeof time)) die("setsockopt");
}
/* The program must never see another timeout than its own. */
static long with_limit(int fd, int option, long result) {
    struct timeval time;
    socklen_t length = sizeof time;
    if (getsockopt(fd, SOL_SOCKET, option, &time, &length)) die("getsockopt");
    long seen = time.tv_sec * 1000 + time.tv_usec / 1000;
    return seen == limit_ms ? result : -1000000 - seen;
}
static int a_pair(int option) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) die("socketpair");
    set_limit(pair[0], option);
    return pair[0];
}
static long by_recv(void) {
    static int fd = -1;
    if (fd < 0) fd = a_pair(SO_RCVTIMEO);
    char byte;
    return with_limit(fd, SO_RCVTIMEO, said(recv(fd, &byte, 1, 0)));
}
static long by_read(void) {
    static int fd = -1;
    if (fd < 0) fd = a_pair(SO_RCVTIMEO);
    char byte;
    return with_limit(fd, SO_RCVTIMEO, said(read(fd, &byte, 1)));
}
static long by_send(void) {
    static int fd = -1;
    static char bytes[65536];
    if (fd < 0) {
        fd = a_pair(SO_SNDTIMEO);
        while (send(fd, bytes, sizeof bytes, MSG_DONTWAIT) > 0) {}
        while (send(fd, bytes, 1, MSG_DONTWAIT) > 0) {}
    }
    return with_limit(fd, SO_SNDTIMEO, said(send(fd, bytes, 1, 0)));
}
static long by_accept(void) {
    static int fd = -1;
    if (fd < 0) {
        fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        if (fd < 0 || bind(fd, (void *)&any, sizeof any) || listen(fd, 1)) die("listen");
        set_limit(fd, SO_RCVTIMEO);
    }
    return with_limit(fd, SO_RCVTIMEO, said(accept(fd, NULL, NULL)));
}
/* To a socket whose queue is full. */
static long by_connect(void) {
    static int fd = -1;
    static struct sockaddr_un name = {.sun_family = AF_UNIX};
    static socklen_t length = sizeof name;
    if (fd < 0) {
        int full = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (full < 0 || bind(full, (void *)&name, sizeof(sa_family_t)) || listen(full, 0)) die("listen");
        if (getsockname(full, (void *)&name, &length)) die("getsockname");
        for (;;) {
            int filler = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
            if (connect(filler, (void *)&name, length)) break;
        }
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        set_limit(fd, SO_SNDTIMEO);
    }
    return with_limit(fd, SO_SNDTIMEO, said(connect(fd, (void *)&name, length)));
}

static long by_futex(void) {
    static int word;
    return said(syscall(SYS_futex, &word, FUTEX_WAIT, 0, &limit, NULL, 0));
}
static long by_nanosleep(void) { return said(syscall(SYS_nanosleep, &limit, NULL)); }
/* As sleep(3) does it: the kernel writes what is left over what was asked for. */
static long by_nanosleep_again(void) {
    struct timespec left = limit;
    return said(nanosleep(&left, &left));
}
static long by_clock_nanosleep(void) { return -clock_nanosleep(CLOCK_BOOTTIME, 0, &limit, NULL); }
static long by_poll(void) { return said(poll(NULL, 0, (int)limit_ms)); }
static long by_ppoll(void) { return said(ppoll(NULL, 0, &limit, NULL)); }
static long by_sealed_ppoll(void) { return said(syscall(SYS_ppoll, NULL, 0, sealed_limit, NULL, 8)); }
static long by_select(void) {
    struct timeval time = {limit_ms / 1000, limit_ms % 1000 * 1000};
    return said(syscall(SYS_select, 0, NULL, NULL, NULL, &time));
}
static long by_sealed_select(void) { return said(syscall(SYS_select, 0, NULL, NULL, NULL, sealed_micro_limit)); }
static long by_sealed_pselect(void) { return said(syscall(SYS_pselect6, 0, NULL, NULL, NULL, sealed_limit, NULL)); }

static struct kind kinds[] = {
    {"epoll_wait", by_epoll_wait, 0, 0, 0},
    {"epoll_pwait", by_epoll_pwait, 0, 0, 0},
    {"epoll_pwait2", by_epoll_pwait2, 0, 0, 0},
    {"sigtimedwait", by_sigtimedwait, -EAGAIN, 0, 0},
    {"semtimedop", by_semtimedop, -EAGAIN, 0, 0},
    {"io_getevents", by_io_getevents, 0, 0, 0},
    {"io_pgetevents", by_io_pgetevents, 0, 0, 0},
    {"io_uring_enter", by_io_uring_enter, -ETIME, 0, 0},
    {"recv", by_recv, -EAGAIN, 0, 0},
    {"read", by_read, -EAGAIN, 0, 0},
    {"send", by_send, -EAGAIN, 0, 0},
    {"accept", by_accept, -EAGAIN, 0, 0},
    {"connect", by_connect, -EAGAIN, 0, 0},
    {"futex", by_futex, -ETIMEDOUT, 0, 0},
    {"nanosleep", by_nanosleep, 0, 0, 0},
    {"nanosleep_again", by_nanosleep_again, 0, 0, 0},
    {"clock_nanosleep", by_clock_nanosleep, 0, 0, 0},
    {"poll", by_poll, 0, 0, 0},
    {"ppoll", by_ppoll, 0, 0, 0},
    {"sealed_ppoll", by_sealed_ppoll, 0, 0, 0},
    {"select", by_select, 0, 0, 0},
    {"sealed_select", by_sealed_select, 0, 0, 0},
    {"sealed_pselect", by_sealed_pselect, 0, 0, 0},
};
#define KINDS (sizeof kinds / sizeof *kinds)

/* Also into the file that LIMITS_LOG names, for a program that nobody can ask. */
static void first_end(struct kind *kind, unsigned long long now_ms) {
    atomic_store(&kind->first_end_ms, now_ms);
    const char *path = getenv("LIMITS_LOG");
    if (!path) return;
    int log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log < 0 || dprintf(log, "%s %llu\n", kind->name, now_ms) < 0) die("write the log");
    close(log);
}

static void *count_ticks(void *which) {
    struct kind *kind = which;
    for (;;) {
        unsigned long long begun = now_ns();
        long result = kind->wait();
        unsigned long long took_us = (now_ns() - begun) / 1000;
        if (result != kind->over || took_us < (unsigned long long)limit_ms * 1000) {
            printf("%s said %ld after %llu us\n", kind->name, result, took_us);
            _exit(98);
        }
        if (!atomic_load(&kind->ticks)) first_end(kind, now_ns() / 1000000);
        atomic_fetch_add(&kind->ticks, 1);
    }
    return NULL;
}

/* A wait whose caller looks at each register afterwards: the kernel leaves all but two as they were. It is woken by an event. */
static int wakes = -1, watched = -1;
static atomic_uint watched_wakes;
static void *watch_registers(void *unused) {
    struct epoll_event got;
    for (;;) {
        unsigned long before[6] = {(unsigned long)watched, (unsigned long)&got, 1, 60000, 0x8888, 0x9999}, after[6];
        long result;
        asm volatile("mov 0(%1), %%rdi\n\tmov 8(%1), %%rsi\n\tmov 16(%1), %%rdx\n\tmov 24(%1), %%r10\n\t"
                     "mov 32(%1), %%r8\n\tmov 40(%1), %%r9\n\tmov $232, %%eax\n\tsyscall\n\t"
                     "mov %%rdi, 0(%2)\n\tmov %%rsi, 8(%2)\n\tmov %%rdx, 16(%2)\n\tmov %%r10, 24(%2)\n\t"
                     "mov %%r8, 32(%2)\n\tmov %%r9, 40(%2)"
                     : "=&a"(result)
                     : "r"(before), "r"(after)
                     : "rdi", "rsi", "rdx", "r10", "r8", "r9", "rcx", "r11", "memory");
        unsigned long long value;
        if (result != 1 || read(wakes, &value, 8) != 8 || memcmp(before, after, sizeof before)) {
            printf("watched call said %ld, limit %lu\n", result, after[3]);
            _exit(97);
        }
        atomic_fetch_add(&watched_wakes, 1);
    }
    return unused;
}

/* A wait that a handler ends says EINTR, as it would alone. */
static atomic_uint handled;
static void handle(int signal) { (void)signal; }
static void *be_interrupted(void *unused) {
    for (;;) {
        long result = said(epoll_wait(an_epoll(), &event, 1, 60000));
        if (result != -EINTR) {
            printf("interrupted call said %ld\n", result);
            _exit(96);
        }
        atomic_fetch_add(&handled, 1);
    }
    return unused;
}

static pthread_t start(void *(*run)(void *), void *argument) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, argument)) die("pthread_create");
    return thread;
}

int main(int count, char **arguments) {
    begin();
    limit_ms = atol(arguments[1]);
    limit = (struct timespec){limit_ms / 1000, limit_ms % 1000 * 1000000};
    char *page = map_anonymous(PAGE);
    memcpy(page, &limit, sizeof limit);
    struct timeval micro = {limit_ms / 1000, limit_ms % 1000 * 1000};
    memcpy(page + 64, &micro, sizeof micro);
    mprotect(page, PAGE, PROT_READ);
    sealed_limit = (void *)page;
    sealed_micro_limit = (void *)(page + 64);
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, SIGRTMIN + 3);
    sigprocmask(SIG_BLOCK, &one, NULL);
    signal(SIGUSR1, handle);
    wakes = eventfd(0, EFD_CLOEXEC);
    watched = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(watched, EPOLL_CTL_ADD, wakes, &(struct epoll_event){.events = EPOLLIN});
    start(watch_registers, NULL);
    pthread_t interrupted = start(be_interrupted, NULL);
    for (size_t at = 0; at < KINDS; at++) {
        int wanted = count <= 2;
        for (int word = 2; word < count; word++) wanted |= !strcmp(arguments[word], kinds[at].name);
        if (wanted) start(count_ticks, &kinds[at]);
    }
    ready();
    while (getenv("LIMITS_LOG")) pause();
    for (;;) {
        char *line = next_line();
        if (!strcmp(line, "wake")) {
            unsigned long long one_more = 1;
            if (write(wakes, &one_more, 8) != 8) die("write");
            pthread_kill(interrupted, SIGUSR1);
            printf("woken %u handled %u\n", atomic_load(&watched_wakes), atomic_load(&handled));
            continue;
        }
        for (size_t at = 0; at < KINDS; at++) {
            unsigned long long end = atomic_load(&kinds[at].first_end_ms);
            printf("%s=%u@%llu ", kinds[at].name, atomic_load(&kinds[at].ticks), end);
        }
        puts("");
    }
}
