/* Changes one thing of itself for each command, and answers `done`, or `cannot` and why. */
#include "common.h"
#include <grp.h>
#include <linux/ioprio.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <xmmintrin.h>

static int file, deleted, memory_file, pipes[2], sockets[2], epoll, event, timer_file;
static char *memory, *code;
static pthread_t other;
static const char *words_place;

static void *idle(void *unused) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    for (;;) pause();
    return unused;
}

static void handler(int signal) { (void)signal; }

static const char *is(int result) { return result < 0 ? strerror(errno) : NULL; }

static int block(int signal) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    return sigprocmask(SIG_BLOCK, &set, NULL);
}

static int queue(int signal, int thread) {
    if (block(signal)) return -1;
    union sigval value = {.sival_int = 4711};
    return thread ? -pthread_sigqueue(pthread_self(), signal, value) : sigqueue(getpid(), signal, value);
}

static int write_text(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    ssize_t written = write(fd, text, strlen(text));
    close(fd);
    return written < 0 ? -1 : 0;
}

static int add_to_set(void) {
    struct epoll_event wanted = {.events = EPOLLIN | EPOLLET, .data.u64 = 99};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, pipes[0], &wanted);
}

static int one_timer(void) {
    timer_t timer;
    struct sigevent when = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2, .sigev_value.sival_int = 5};
    return timer_create(CLOCK_MONOTONIC, &when, &timer);
}

static int arm(void) {
    struct itimerspec when = {.it_value.tv_sec = 1000, .it_interval.tv_sec = 7};
    return timerfd_settime(timer_file, 0, &when, NULL);
}

static int limit(void) {
    struct rlimit few = {100, 200};
    return setrlimit(RLIMIT_NOFILE, &few);
}

static int one_processor(void) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(0, &set);
    return sched_setaffinity(0, sizeof set, &set);
}

static int end_child(void) {
    pid_t child = fork();
    if (child == 0) _exit(3);
    siginfo_t info;
    return child < 0 ? -1 : waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT);
}

static int number(int fd, int level, int option, int value) {
    return setsockopt(fd, level, option, &value, sizeof value);
}

static int add_flags(int fd, int get, int set, int flags) { return fcntl(fd, set, fcntl(fd, get) | flags); }

static const char *perform(const char *command) {
    struct sched_param zero = {0};
    gid_t groups[] = {3, 5};
#define CHANGE(name, action) \
    if (!strcmp(command, name)) return is(action)
    CHANGE("nothing", 0);
    CHANGE("umask", (int)umask(0123));
    CHANGE("directory", chdir("/proc"));
    CHANGE("root", chroot(words_place));
    CHANGE("mask", block(SIGUSR1));
    CHANGE("queue", queue(SIGRTMIN + 1, 0));
    CHANGE("queue for a thread", queue(SIGRTMIN + 2, 1));
    CHANGE("handler", signal(SIGUSR1, handler) == SIG_ERR ? -1 : 0);
    CHANGE("ignore", signal(SIGVTALRM, SIG_IGN) == SIG_ERR ? -1 : 0);
    CHANGE("position", (int)lseek(file, 77, SEEK_SET));
    CHANGE("nonblocking", add_flags(file, F_GETFL, F_SETFL, O_NONBLOCK));
    CHANGE("close on exec", add_flags(file, F_GETFD, F_SETFD, FD_CLOEXEC));
    CHANGE("owner", fcntl(pipes[0], F_SETOWN, getpid()));
    CHANGE("lock", flock(file, LOCK_EX));
    CHANGE("duplicate", dup(file));
    CHANGE("closed", close(dup2(file, 99)) || close(event) ? -1 : 0);
    CHANGE("own open file", dup2(open("/dev/zero", O_RDONLY), 98));
    CHANGE("same open file", dup2(97, 98));
    CHANGE("deleted", (int)pwrite(deleted, "other", 5, 0));
    CHANGE("pipe", (int)write(pipes[1], "x", 1));
    CHANGE("pipe size", fcntl(pipes[0], F_SETPIPE_SZ, 1 << 17));
    CHANGE("socket", (int)write(sockets[0], "y", 1));
    CHANGE("socket option", number(sockets[0], SOL_SOCKET, SO_RCVBUF, 30000));
    CHANGE("epoll", add_to_set());
    CHANGE("event", (int)write(event, "\1\0\0\0\0\0\0\0", 8));
    CHANGE("timerfd", arm());
    CHANGE("seal", fcntl(memory_file, F_ADD_SEALS, F_SEAL_GROW));
    CHANGE("timer", one_timer());
    CHANGE("limit", limit());
    CHANGE("nice", setpriority(PRIO_PROCESS, 0, 5));
    CHANGE("batch", sched_setscheduler(0, SCHED_BATCH, &zero));
    CHANGE("affinity", one_processor());
    CHANGE("I/O priority", (int)syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_PRIO_VALUE(IOPRIO_CLASS_BE, 6)));
    CHANGE("name", prctl(PR_SET_NAME, "changed"));
    CHANGE("slack", prctl(PR_SET_TIMERSLACK, 12345));
    CHANGE("undumpable", prctl(PR_SET_DUMPABLE, 0));
    CHANGE("no new privileges", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    CHANGE("capability", prctl(PR_CAPBSET_DROP, 20));
    CHANGE("no huge pages", prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
    CHANGE("groups", setgroups(2, groups));
    CHANGE("group", setresgid(0, 5, 0) ? -1 : prctl(PR_SET_DUMPABLE, 1));
    CHANGE("process group", setpgid(0, 0));
    CHANGE("session", setsid());
    CHANGE("personality", personality(ADDR_NO_RANDOMIZE));
    CHANGE("dump filter", write_text("/proc/self/coredump_filter", "0x1"));
    CHANGE("memory killer", write_text("/proc/self/oom_score_adj", "77"));
    CHANGE("words", (strcpy(getenv("A_WORD"), "two"), 0));
    CHANGE("memory", (memory[5000] = 1, 0));
    CHANGE("shared memory", (code[0] = 1, 0));
    CHANGE("map", mmap(memory + 4 * PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED ? -1 : 0);
    CHANGE("unmap", munmap(memory + 6 * PAGE, PAGE));
    CHANGE("protect", mprotect(memory, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC));
    CHANGE("advice", madvise(memory, PAGE, MADV_DONTFORK));
    CHANGE("dump advice", madvise(memory + PAGE, PAGE, MADV_DONTDUMP));
    CHANGE("locked", mlock(memory + 2 * PAGE, PAGE));
    CHANGE("break", sbrk((intptr_t)(16 * PAGE)) == (void *)-1 ? -1 : 0);
    CHANGE("rounding", (_mm_setcsr(_mm_getcsr() | _MM_ROUND_UP), 0));
    CHANGE("thread", -pthread_create(&other, NULL, idle, NULL));
    CHANGE("child", end_child());
    return "an unknown command";
}

int main(int count, char **words) {
    begin();
    if (count < 2 || chdir(words[1])) die("directory");
    words_place = words[1];
    file = open("file", O_RDWR | O_CREAT, 0600);
    deleted = open("deleted", O_RDWR | O_CREAT, 0600);
    unlink("deleted");
    memory_file = memfd_create("sealed", MFD_ALLOW_SEALING);
    if (ftruncate(memory_file, PAGE) || pipe(pipes) || socketpair(AF_UNIX, SOCK_STREAM, 0, sockets)) die("descriptors");
    epoll = epoll_create1(0);
    event = eventfd(0, 0);
    timer_file = timerfd_create(CLOCK_MONOTONIC, 0);
    dup2(open("/dev/zero", O_RDONLY), 97);
    dup2(open("/dev/zero", O_RDONLY), 98);
    memory = map_anonymous(8 * PAGE);
    code = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (pthread_create(&other, NULL, idle, NULL)) die("thread");
    ready();
    for (;;) {
        const char *problem = perform(next_line());
        if (problem)
            printf("cannot: %s\n", problem);
        else
            puts("done");
    }
}
