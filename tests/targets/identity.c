/* A program that knows who and where it is, and looks again and again whether that still holds. */
#include "steps.h"
#include <dlfcn.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/resource.h>
#include <sys/time.h>

#define THREADS 3

struct known {
    pthread_t self;
    pid_t tid;
    char name[16];
    atomic_uint signals;
};

static struct known threads[THREADS + 1];
static __thread struct known *own;
static pid_t process, session, group;
static uint64_t last_monotonic;
static double (*cosine)(double);
static char directory[4096], program[4096];

static void on_signal(int signal) {
    (void)signal;
    must(own && own->tid == gettid() && own->self == pthread_self());
    atomic_fetch_add(&own->signals, 1);
}

static void remember(struct known *known, const char *name) {
    own = known;
    known->self = pthread_self();
    snprintf(known->name, sizeof known->name, "%s", name);
    must(prctl(PR_SET_NAME, name) == 0);
    known->tid = gettid();
}

static void assert_known(struct known *known) {
    char name[16];
    must(own == known && known->self == pthread_self() && known->tid == gettid());
    must(syscall(SYS_gettid) == known->tid && getpid() == process);
    must(prctl(PR_GET_NAME, name) == 0 && !strcmp(name, known->name));
}

static void *live(void *which) {
    char name[16];
    snprintf(name, sizeof name, "thread %c", (char)('a' + ((struct known *)which - threads)));
    remember(which, name);
    for (;;) {
        assert_known(which);
        struct timespec nap = {0, 3000000};
        nanosleep(&nap, NULL);
    }
    return NULL;
}

static void assert_clocks(void) {
    struct timespec in_kernel;
    /* The first by the code that the kernel maps into us, the second by a call. */
    uint64_t before = now_ns(CLOCK_MONOTONIC);
    must(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &in_kernel) == 0);
    uint64_t between = (uint64_t)in_kernel.tv_sec * 1000000000ull + (uint64_t)in_kernel.tv_nsec;
    uint64_t after = now_ns(CLOCK_MONOTONIC);
    must(last_monotonic <= before && before <= between && between <= after);
    last_monotonic = after;
    struct timeval day;
    unsigned processor;
    must(gettimeofday(&day, NULL) == 0 && llabs(day.tv_sec - time(NULL)) <= 1);
    must(getcpu(&processor, NULL) == 0 && processor < 1024);
    void *vdso = (void *)getauxval(AT_SYSINFO_EHDR);
    must(vdso != NULL && !memcmp(vdso, "\177ELF", 4));
}

static void assert_place(int count, char **words) {
    char now[4096] = "", bytes[8192];
    must(getcwd(now, sizeof now) && !strcmp(now, directory) && umask(027) == 027);
    must(getsid(0) == session && getpgrp() == group);
    memset(now, 0, sizeof now);
    must(readlink("/proc/self/exe", now, sizeof now - 1) > 0 && !strcmp(now, program));
    int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t length = read(fd, bytes, sizeof bytes);
    close(fd);
    char *at = bytes;
    for (int word = 0; word < count; at += strlen(at) + 1, word++) must(at < bytes + length && !strcmp(at, words[word]));
    struct rlimit limit;
    must(getrlimit(RLIMIT_CORE, &limit) == 0 && limit.rlim_cur == 4096 && limit.rlim_max == 8192);
    must(getenv("A_WORD") && !strcmp(getenv("A_WORD"), "one"));
    must(getpriority(PRIO_PROCESS, 0) == 3 && sched_getscheduler(0) == SCHED_BATCH);
    must(prctl(PR_GET_TIMERSLACK) == 54321 && prctl(PR_GET_DUMPABLE) == 1 && prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
}

int main(int count, char **words) {
    begin_steps(count, words);
    process = getpid(), session = getsid(0), group = getpgrp();
    umask(027);
    must(getcwd(directory, sizeof directory) && readlink("/proc/self/exe", program, sizeof program - 1) > 0);
    struct rlimit limit = {4096, 8192};
    struct sched_param zero = {0};
    must(setrlimit(RLIMIT_CORE, &limit) == 0 && sched_setscheduler(0, SCHED_BATCH, &zero) == 0);
    must(setpriority(PRIO_PROCESS, 0, 3) == 0 && prctl(PR_SET_TIMERSLACK, 54321) == 0);
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    /* Code and data of a library that was mapped at run time. */
    void *library = dlopen("libm.so.6", RTLD_NOW);
    must(library && (*(void **)&cosine = dlsym(library, "cos")));
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    must(sigaction(SIGUSR1, &action, NULL) == 0);
    remember(&threads[THREADS], "the first");
    for (int at = 0; at < THREADS; at++) start_thread(live, &threads[at]);
    for (int at = 0; at < THREADS; at++) wait_until(*(volatile pid_t *)&threads[at].tid);
    for (double angle = 0;; angle += 0.001) {
        for (int at = 0; at <= THREADS; at++) {
            unsigned before = atomic_load(&threads[at].signals);
            must(syscall(SYS_tgkill, process, threads[at].tid, SIGUSR1) == 0);
            wait_until(atomic_load(&threads[at].signals) == before + 1);
        }
        double sine = 1 - cosine(angle) * cosine(angle);
        must(sine >= -1e-12 && sine <= angle * angle + 1e-12);
        assert_known(&threads[THREADS]);
        assert_clocks();
        assert_place(count, words);
        sleep_ms(10);
        step("known");
    }
}
