/* Timers of all kinds run, and their signals arrive at handlers that stay what they were. */
#include "steps.h"
#include <sys/time.h>
#include <sys/timerfd.h>

#define MS 1000000l
#define KINDS 8
#define RESTORER 0x04000000 /* the C library's own */

enum kind { POSIX, TO_THREAD, CPU, ONCE, REAL, VIRTUAL, PROFILE, DESCRIPTOR };
static const char *const names[KINDS] = {"timer", "timer to a thread", "timer of the processor", "timer that is set again",
                                         "real itimer", "virtual itimer", "profiling itimer", "timerfd"};
static atomic_uint fired[KINDS];
static timer_t timers[ONCE + 1], far;
static int descriptor;
static pid_t timed_thread;

static struct itimerspec every(long milliseconds) {
    return (struct itimerspec){{0, milliseconds * MS}, {0, milliseconds * MS}};
}

static void on_timer(int signal, siginfo_t *info, void *unused) {
    (void)unused;
    int saved = errno;
    must(info->si_code == SI_TIMER && info->si_signo == signal);
    int kind = info->si_value.sival_int;
    must(kind >= POSIX && kind <= ONCE && signal == SIGRTMIN + kind);
    must(kind != TO_THREAD || gettid() == timed_thread);
    sigset_t mask;
    must(sigprocmask(SIG_BLOCK, NULL, &mask) == 0 && sigismember(&mask, SIGUSR2) && sigismember(&mask, signal));
    atomic_fetch_add(&fired[kind], 1);
    struct itimerspec again = {.it_value.tv_nsec = 9 * MS};
    if (kind == ONCE) must(timer_settime(timers[ONCE], 0, &again, NULL) == 0);
    errno = saved;
}

static void on_itimer(int signal, siginfo_t *info, void *unused) {
    (void)unused;
    must(info->si_code == SI_KERNEL);
    atomic_fetch_add(&fired[signal == SIGALRM ? REAL : signal == SIGVTALRM ? VIRTUAL : PROFILE], 1);
}

static void handle(int signal, void (*handler)(int, siginfo_t *, void *), int flags) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = flags | SA_SIGINFO};
    sigaddset(&action.sa_mask, SIGUSR2);
    must(sigaction(signal, &action, NULL) == 0);
}

static void assert_handled(int signal, void (*handler)(int, siginfo_t *, void *), int flags) {
    struct sigaction action;
    must(sigaction(signal, NULL, &action) == 0 && action.sa_sigaction == handler);
    must((action.sa_flags & ~RESTORER) == (flags | SA_SIGINFO));
    must(sigismember(&action.sa_mask, SIGUSR2) && !sigismember(&action.sa_mask, SIGHUP));
}

static void *timed(void *unused) {
    timed_thread = gettid();
    for (;;) pause();
    return unused;
}

static void *read_descriptor(void *unused) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    for (;;) {
        uint64_t times = 0;
        must(read(descriptor, &times, 8) == 8 && times > 0);
        atomic_fetch_add(&fired[DESCRIPTOR], 1);
    }
    return unused;
}

static void make(enum kind kind, clockid_t clock, long milliseconds, int to_thread) {
    struct sigevent event = {.sigev_signo = SIGRTMIN + (int)kind, .sigev_value.sival_int = (int)kind};
    event.sigev_notify = to_thread ? SIGEV_THREAD_ID : SIGEV_SIGNAL;
    if (to_thread) event._sigev_un._tid = to_thread;
    handle(SIGRTMIN + (int)kind, on_timer, SA_RESTART);
    struct itimerspec when = every(milliseconds);
    if (kind == ONCE) when.it_interval.tv_nsec = 0;
    must(timer_create(clock, &event, &timers[kind]) == 0 && timer_settime(timers[kind], 0, &when, NULL) == 0);
}

static void assert_interval(enum kind kind, long milliseconds) {
    struct itimerspec now;
    must(timer_gettime(timers[kind], &now) == 0 && now.it_interval.tv_sec == 0 && now.it_interval.tv_nsec == milliseconds * MS);
}

static void assert_itimer(int which, long microseconds) {
    struct itimerval now;
    must(getitimer(which, &now) == 0 && now.it_interval.tv_sec == 0);
    /* Those of the processor are kept in ticks on some kernels. */
    must(labs(now.it_interval.tv_usec - microseconds) <= (which == ITIMER_REAL ? 0 : 4000));
}

int main(int count, char **words) {
    begin_steps(count, words);
    start_thread(timed, NULL);
    wait_until(timed_thread != 0);
    make(POSIX, CLOCK_MONOTONIC, 7, 0);
    make(TO_THREAD, CLOCK_REALTIME, 11, timed_thread);
    make(CPU, CLOCK_PROCESS_CPUTIME_ID, 12, 0);
    make(ONCE, CLOCK_BOOTTIME, 9, 0);
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    struct itimerspec hour = {.it_value.tv_sec = 3600, .it_interval.tv_sec = 3600}, left = hour;
    must(timer_create(CLOCK_MONOTONIC, &none, &far) == 0 && timer_settime(far, 0, &hour, NULL) == 0);
    for (int signal = 0; signal < 3; signal++)
        handle((int[]){SIGALRM, SIGVTALRM, SIGPROF}[signal], on_itimer, SA_RESTART | (signal == 1 ? SA_NODEFER : 0));
    for (int which = ITIMER_REAL; which <= ITIMER_PROF; which++) {
        struct itimerval when = {{0, 8000}, {0, 8000}};
        must(setitimer((__itimer_which_t)which, &when, NULL) == 0);
    }
    descriptor = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    struct itimerspec often = every(6);
    must(timerfd_settime(descriptor, 0, &often, NULL) == 0);
    start_thread(read_descriptor, NULL);
    for (;;) {
        unsigned before[KINDS];
        for (int kind = 0; kind < KINDS; kind++) before[kind] = atomic_load(&fired[kind]);
        uint64_t since = now_ns(CLOCK_MONOTONIC);
        for (int kind = 0; kind < KINDS; kind++)
            /* Some count the time that we use: no sleep. */
            while (atomic_load(&fired[kind]) == before[kind])
                if (now_ns(CLOCK_MONOTONIC) - since > PATIENCE_SECONDS * 1000000000ull) wrong("the %s stands still", names[kind]);
        assert_interval(POSIX, 7), assert_interval(TO_THREAD, 11), assert_interval(CPU, 12), assert_interval(ONCE, 0);
        assert_itimer(ITIMER_REAL, 8000), assert_itimer(ITIMER_VIRTUAL, 8000), assert_itimer(ITIMER_PROF, 8000);
        struct itimerspec now;
        must(timerfd_gettime(descriptor, &now) == 0 && now.it_interval.tv_nsec == 6 * MS);
        must(timer_gettime(far, &now) == 0 && now.it_interval.tv_sec == 3600);
        must(now.it_value.tv_sec > 3600 - 2 * LIFETIME_SECONDS && now.it_value.tv_sec <= left.it_value.tv_sec);
        left = now;
        assert_handled(SIGRTMIN, on_timer, SA_RESTART), assert_handled(SIGALRM, on_itimer, SA_RESTART);
        assert_handled(SIGVTALRM, on_itimer, SA_RESTART | SA_NODEFER), assert_handled(SIGPROF, on_itimer, SA_RESTART);
        step("all fired");
    }
}
