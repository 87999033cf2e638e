// kernel_state plain|full THREADS: two threads (or more) and the first one. With "full", each has the kernel keep all
// kinds of things for it. All signals are blocked. Lines on stdin: "?" prints what the process itself sees of that, in
// one line; "take" prints the signals that waited, and takes them.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/capability.h>
#include <linux/mempolicy.h>
#include <linux/prctl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define AREA ((char *)0x100000000000)
#define AREA_BYTES (1 << 20)
#define THREADS_MAX 64
#define REPORT_BYTES 8192

static int threads, full;
static pthread_barrier_t barrier;
static pthread_t handles[THREADS_MAX];
static int numbers[THREADS_MAX];
static char reports[THREADS_MAX][REPORT_BYTES];
static volatile int must_end;

struct capability_data { uint32_t effective, permitted, inheritable; };

#define MUST(call) do { if ((long)(call) < 0) { printf("%s: %s\n", #call, strerror(errno)); fflush(stdout); exit(1); } } while (0)

static void handler(int signal) { (void)signal; }
static void other_handler(int signal, siginfo_t *info, void *context) { (void)signal; (void)info; (void)context; }

// What a thread has of its own. `index` 0 is the first.
static void fill_thread(int index) {
    char *own = AREA + index * 16384;
    char name[16];
    snprintf(name, sizeof name, "a (name) %d", index);
    MUST(prctl(PR_SET_NAME, name));
    stack_t stack = {.ss_sp = own + 4096, .ss_size = 12288, .ss_flags = index == 1 ? 1u << 31 : 0};
    MUST(sigaltstack(&stack, 0));
    uint64_t *robust = (uint64_t *)own;
    robust[0] = (uint64_t)own;
    MUST(syscall(SYS_set_robust_list, own, 24));
    MUST(syscall(SYS_set_tid_address, own + 256));
    MUST(syscall(SYS_rseq, own + 512, 32, 0, 0x53053053));
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(index % 2, &one);
    sched_setaffinity(0, sizeof one, &one);  // there may be one processor only
    uint64_t slice = 4000000;
    struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t runtime, deadline, period; }
        attributes[] = {{48, 0, 0, 5, 0, 0, 0, 0}, {48, 1, 1, 0, 3, 0, 0, 0}, {48, 3, 0, 7, 0, slice, 0, 0}};
    MUST(syscall(SYS_sched_setattr, 0, &attributes[index % 3], 0));
    MUST(syscall(SYS_ioprio_set, 1, 0, 2 << 13 | (1 + index)));
    MUST(prctl(PR_SET_TIMERSLACK, 12345 + index));
    unsigned long nodes = 1;
    if (index < 2) syscall(SYS_set_mempolicy, index ? MPOL_BIND | MPOL_F_STATIC_NODES : MPOL_PREFERRED, &nodes, 65);
    if (index == 1) MUST(prctl(PR_SET_TSC, PR_TSC_SIGSEGV));
    MUST(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, index % 2 ? PR_MCE_KILL_EARLY : PR_MCE_KILL_LATE, 0, 0));
    MUST(syscall(SYS_personality, index == 2 ? 0x0040000 : 0));
    union sigval value = {.sival_ptr = (void *)(0x1234567800ull + index)};
    for (int i = 0; i < 3; i++) {
        value.sival_ptr = (char *)value.sival_ptr + 256;
        MUST(pthread_sigqueue(pthread_self(), SIGRTMIN + 3, value));
    }
    MUST(syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR2));
}

// Each by itself, and each another way, for what takes rights away.
static void drop_rights(int index) {
    unsigned groups[] = {7, 70, 700 + index};
    MUST(syscall(SYS_setgroups, 3, groups));
    MUST(syscall(SYS_setresgid, 1001, 1002, 1003 + index));
    MUST(syscall(SYS_setfsgid, 1001));
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct capability_data data[2];
    MUST(syscall(SYS_capget, &header, data));
    data[0].inheritable = 1 << CAP_NET_RAW | 1 << CAP_NET_BIND_SERVICE | 1 << CAP_CHOWN;
    data[1].inheritable = 0;
    MUST(syscall(SYS_capset, &header, data));
    MUST(prctl(PR_CAPBSET_DROP, CAP_CHOWN));
    MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT));
    MUST(prctl(PR_SET_SECUREBITS, 1 << 2));
    MUST(syscall(SYS_setresuid, 2001 + index, 2002, 2003));
    MUST(syscall(SYS_setfsuid, 2003));
    MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0));
    MUST(prctl(PR_SET_SECUREBITS, 1 << 2 | 1 << 4 | (index == 1 ? 1 << 3 | 1 << 6 : 0)));
    MUST(syscall(SYS_capget, &header, data));
    data[0].permitted = 1 << CAP_NET_RAW | 1 << CAP_NET_BIND_SERVICE | 1 << CAP_SYS_NICE;
    data[1].permitted = index == 2 ? 1 << (CAP_SYSLOG - 32) : 0;
    data[0].effective = 1 << CAP_NET_RAW;
    data[1].effective = 0;
    MUST(syscall(SYS_capset, &header, data));
    if (index != 2) MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    MUST(prctl(PR_SET_PDEATHSIG, index == 0 ? SIGKILL : 0));
}

static int make_timer(clockid_t clock, int notify, int signal, uint64_t value, int thread) {
    int id = -1;
    struct sigevent event;
    memset(&event, 0, sizeof event);
    event.sigev_notify = notify;
    event.sigev_signo = signal;
    event.sigev_value.sival_ptr = (void *)value;
    ((int *)&event)[4] = thread;
    MUST(syscall(SYS_timer_create, clock, &event, &id));
    return id;
}

static void set_timer(int id, long seconds, long nanoseconds, long interval_seconds) {
    struct itimerspec time = {{interval_seconds, 0}, {seconds, nanoseconds}};
    MUST(syscall(SYS_timer_settime, id, 0, &time, 0));
}

static void fill_timers(void) {
    int unused[4];
    for (int i = 0; i < 4; i++) unused[i] = make_timer(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGUSR1, 0, 0);
    set_timer(make_timer(CLOCK_REALTIME, SIGEV_SIGNAL, SIGRTMIN + 5, 0xfedcba9876543210, 0), 5000, 123456789, 70);
    make_timer(CLOCK_BOOTTIME, SIGEV_SIGNAL, SIGUSR1, 1, 0);
    set_timer(make_timer(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0), 6000, 0, 0);
    int gap = make_timer(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGUSR1, 0, 0);
    set_timer(make_timer(CLOCK_MONOTONIC, SIGEV_THREAD_ID, SIGRTMIN + 6, 2, numbers[2]), 7000, 0, 0);
    set_timer(make_timer(CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, SIGRTMIN + 6, 3, 0), 8000, 0, 0);
    clockid_t clock;
    MUST(pthread_getcpuclockid(handles[1], &clock));
    set_timer(make_timer(clock, SIGEV_SIGNAL, SIGRTMIN + 6, 4, 0), 9000, 0, 1);
    // Its signal waits.
    int pending = make_timer(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 7, 5, 0);
    set_timer(pending, 0, 1, 4000);
    MUST(syscall(SYS_timer_delete, gap));
    for (int i = 0; i < 4; i++) if (i != 2) MUST(syscall(SYS_timer_delete, unused[i]));
    struct itimerval real = {{4000, 0}, {0, 1}}, virtual_time = {{0, 0}, {1000, 500000}}, profile = {{3, 4}, {2000, 0}};
    MUST(setitimer(ITIMER_REAL, &real, 0));
    MUST(setitimer(ITIMER_VIRTUAL, &virtual_time, 0));
    MUST(setitimer(ITIMER_PROF, &profile, 0));
    sigset_t set;
    do sigpending(&set); while (!sigismember(&set, SIGALRM) || !sigismember(&set, SIGRTMIN + 7));
}

static void fill_process(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    sigemptyset(&action.sa_mask);
    sigaddset(&action.sa_mask, SIGUSR1);
    sigaddset(&action.sa_mask, SIGRTMAX);
    action.sa_flags = SA_RESTART | SA_ONSTACK | SA_NODEFER;
    for (int signal = SIGRTMIN + 3; signal <= SIGRTMIN + 9; signal++) MUST(sigaction(signal, &action, 0));
    action.sa_sigaction = other_handler;
    action.sa_flags = SA_SIGINFO | SA_RESETHAND;
    MUST(sigaction(SIGSEGV, &action, 0));
    MUST(sigaction(SIGUSR2, &action, 0));
    signal(SIGPIPE, SIG_IGN);
    action.sa_handler = SIG_DFL;
    action.sa_flags = SA_NOCLDWAIT | SA_NOCLDSTOP;
    MUST(sigaction(SIGCHLD, &action, 0));
    umask(0137);
    struct rlimit limit = {111, 222};
    MUST(setrlimit(RLIMIT_NOFILE, &limit));
    limit.rlim_cur = limit.rlim_max = 1 << 20;
    MUST(setrlimit(RLIMIT_CORE, &limit));
    limit.rlim_cur = limit.rlim_max = 300;
    MUST(setrlimit(RLIMIT_SIGPENDING, &limit));
    MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
    MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
    prctl(67 /* PR_SET_MEMORY_MERGE */, 1, 0, 0, 0);
    prctl(65 /* PR_SET_MDWE */, 1, 0, 0, 0);
    FILE *file = fopen("/proc/self/oom_score_adj", "w");
    if (!file || fprintf(file, "345") < 0 || fclose(file)) exit(1);
    file = fopen("/proc/self/coredump_filter", "w");
    if (!file || fprintf(file, "0x7b") < 0 || fclose(file)) exit(1);
    union sigval value = {.sival_ptr = (void *)0xabcdef0123456789ull};
    MUST(sigqueue(getpid(), SIGRTMIN + 4, value));
    value.sival_int = 77;
    MUST(sigqueue(getpid(), SIGRTMIN + 4, value));
    MUST(kill(getpid(), SIGUSR1));
    MUST(kill(getpid(), SIGTSTP));
}

static void report_thread(int index) {
    char *text = reports[index];
    size_t used = 0;
#define SAY(...) (used += snprintf(text + used, REPORT_BYTES - used, __VA_ARGS__))
    stack_t stack;
    sigaltstack(0, &stack);
    SAY("stack %p %zx %x ", stack.ss_sp, stack.ss_size, stack.ss_flags);
    void *head, *tid_address;
    size_t length;
    syscall(SYS_get_robust_list, 0, &head, &length);
    prctl(PR_GET_TID_ADDRESS, &tid_address);
    SAY("addresses %p %zx %p ", head, length, tid_address);
    unsigned char attributes[56] = {0};
    syscall(SYS_sched_getattr, 0, attributes, sizeof attributes, 0);
    for (size_t i = 0; i < sizeof attributes; i++) SAY("%02x", attributes[i]);
    cpu_set_t set;
    sched_getaffinity(0, sizeof set, &set);
    SAY(" on %d ioprio %ld slack %d", CPU_COUNT(&set), syscall(SYS_ioprio_get, 1, 0), prctl(PR_GET_TIMERSLACK));
    int mode = 0, tsc = 0, death = 0;
    unsigned long nodes[16] = {0};
    syscall(SYS_get_mempolicy, &mode, nodes, 1024, 0, 0);
    prctl(PR_GET_TSC, &tsc);
    prctl(PR_GET_PDEATHSIG, &death);
    SAY(" memory %x %lx tsc %d death %d mce %d bits %x nnp %d persona %lx", mode, nodes[0], tsc, death,
        prctl(PR_MCE_KILL_GET, 0, 0, 0, 0), prctl(PR_GET_SECUREBITS), prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0),
        syscall(SYS_personality, 0xffffffff));
    unsigned ids[6], groups[8];
    getresuid(&ids[0], &ids[1], &ids[2]);
    getresgid(&ids[3], &ids[4], &ids[5]);
    SAY(" ids %u %u %u %u %u %u", ids[0], ids[1], ids[2], ids[3], ids[4], ids[5]);
    int count = getgroups(8, groups);
    for (int i = 0; i < count; i++) SAY(" %u", groups[i]);
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct capability_data data[2];
    syscall(SYS_capget, &header, data);
    for (int i = 0; i < 2; i++) SAY(" %x %x %x", data[i].effective, data[i].permitted, data[i].inheritable);
    uint64_t mask = 0;
    syscall(SYS_rt_sigprocmask, 0, 0, &mask, 8);
    sigset_t pending;
    sigpending(&pending);
    SAY(" mask %llx pending %lx; ", (unsigned long long)mask, *(unsigned long *)&pending);
}

static void report_process(void) {
    static char text[REPORT_BYTES];
    size_t used = 0;
    for (int signal = 1; signal <= 64; signal++) {
        uint64_t action[4] = {0};
        if (syscall(SYS_rt_sigaction, signal, 0, action, 8)) continue;
        if (!action[0] && !action[1]) continue;
        SAY("%d %llx %llx %llx %llx ", signal, (long long)action[0], (long long)action[1], (long long)action[2], (long long)action[3]);
    }
    for (int which = 0; which < 3; which++) {
        struct itimerval timer;
        getitimer(which, &timer);
        // The first stands still until its signal is taken, which cannot be had again.
        int runs = which == ITIMER_REAL || timer.it_value.tv_sec != 0;
        SAY("itimer %ld.%06ld %d ", timer.it_interval.tv_sec, timer.it_interval.tv_usec, runs);
    }
    for (int id = 0; id < 16; id++) {
        struct itimerspec timer;
        if (syscall(SYS_timer_gettime, id, &timer)) continue;
        SAY("timer %d %ld %d %ld ", id, timer.it_interval.tv_sec, timer.it_value.tv_sec != 0, syscall(SYS_timer_getoverrun, id));
    }
    int subreaper = 0;
    prctl(PR_GET_CHILD_SUBREAPER, &subreaper);
    mode_t mask = umask(0);
    umask(mask);
    SAY("umask %o reaper %d dumpable %d thp %d", mask, subreaper, prctl(PR_GET_DUMPABLE), prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
    for (int which = 0; which < 16; which++) {
        struct rlimit limit;
        getrlimit(which, &limit);
        SAY(" %lx/%lx", limit.rlim_cur, limit.rlim_max);
    }
    printf("%s | ", text);
    for (int i = 0; i <= threads; i++) printf("%s", reports[i]);
    printf("\n");
    fflush(stdout);
}

static void take_signals(void) {
    sigset_t all;
    sigfillset(&all);
    siginfo_t info;
    for (;;) {
        if (syscall(SYS_rt_sigtimedwait, &all, &info, &(struct timespec){0, 0}, 8) < 0) break;
        printf("%d:%d:%p ", info.si_signo, info.si_code, info.si_code == SI_USER || info.si_code == SI_TKILL || info.si_code == SI_KERNEL ? 0 : info.si_value.sival_ptr);
    }
    printf("\n");
    fflush(stdout);
}

static void *work(void *argument) {
    int index = (int)(intptr_t)argument;
    numbers[index] = syscall(SYS_gettid);
    if (full) fill_thread(index);
    pthread_barrier_wait(&barrier);
    // The first thread makes timers.
    pthread_barrier_wait(&barrier);
    if (full) drop_rights(index);
    pthread_barrier_wait(&barrier);
    for (;;) {
        pthread_barrier_wait(&barrier);
        report_thread(index);
        pthread_barrier_wait(&barrier);
    }
    return 0;
}

int main(int argc, char **argv) {
    full = argc > 1 && !strcmp(argv[1], "full");
    threads = argc > 2 ? atoi(argv[2]) : 2;
    sigset_t all;
    sigfillset(&all);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, 0, 8);
    if (mmap(AREA, AREA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != AREA) return 1;
    pthread_barrier_init(&barrier, 0, threads + 1);
    for (int i = 1; i <= threads; i++) {
        if (pthread_create(&handles[i], 0, work, (void *)(intptr_t)i)) return 1;
    }
    if (full) fill_process();
    if (full) fill_thread(0);
    pthread_barrier_wait(&barrier);
    if (full) fill_timers();
    pthread_barrier_wait(&barrier);
    if (full) drop_rights(0);
    pthread_barrier_wait(&barrier);
    if (full) MUST(prctl(PR_SET_DUMPABLE, 0));
    puts("ready");
    fflush(stdout);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        if (line[0] == 't') {
            take_signals();
            continue;
        }
        pthread_barrier_wait(&barrier);
        report_thread(0);
        pthread_barrier_wait(&barrier);
        report_process();
    }
    return 0;
}
