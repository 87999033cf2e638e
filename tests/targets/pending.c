/* Signals that are blocked wait for a while, with their values: of the process, of the main thread and of another one. */
#include "steps.h"

#define QUEUED 6

static pthread_t other;
static atomic_uint asked, answered;
static sigset_t all;

static void queue_for(pthread_t thread, int signal, int value) {
    must(pthread_sigqueue(thread, signal, (union sigval){.sival_int = value}) == 0);
}

static void take(int signal, int code, int value) {
    siginfo_t info = {0};
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, signal);
    struct timespec none = {0, 0};
    must(sigtimedwait(&one, &info, &none) == signal);
    must(info.si_code == code && info.si_pid == getpid() && info.si_uid == getuid());
    must(code != SI_QUEUE || info.si_value.sival_int == value);
}

static void nothing_more(void) {
    sigset_t waiting;
    struct timespec none = {0, 0};
    must(sigpending(&waiting) == 0);
    for (int signal = 1; signal <= SIGRTMAX; signal++) must(signal == SIGCONT || sigismember(&waiting, signal) != 1);
    must(sigtimedwait(&all, NULL, &none) == -1 && errno == EAGAIN);
}

/* Whatever is sent to this thread waits until it is asked to look. */
static void *in_another(void *unused) {
    for (unsigned round = 1;; round++) {
        wait_until(atomic_load(&asked) == round);
        for (int at = 0; at < QUEUED; at++) take(SIGRTMIN + 5, SI_QUEUE, (int)round * 100 + at);
        take(SIGUSR2, SI_USER, 0); /* as the C library tells it */
        nothing_more();
        atomic_store(&answered, round);
    }
    return unused;
}

int main(int count, char **words) {
    begin_steps(count, words);
    /* The one by which whoever stopped us lets us go is not of those that are watched. */
    sigfillset(&all);
    sigdelset(&all, SIGCONT);
    must(pthread_sigmask(SIG_BLOCK, &all, NULL) == 0);
    other = start_thread(in_another, NULL);
    for (unsigned round = 1;; round++) {
        for (int at = 0; at < QUEUED; at++) {
            must(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = (int)round + at}) == 0);
            queue_for(pthread_self(), SIGRTMIN + 4, (int)round * 10 + at);
            queue_for(other, SIGRTMIN + 5, (int)round * 100 + at);
        }
        must(kill(getpid(), SIGTERM) == 0 && pthread_kill(other, SIGUSR2) == 0);
        sleep_ms(40);
        for (int at = 0; at < QUEUED; at++) {
            take(SIGRTMIN + 3, SI_QUEUE, (int)round + at);
            take(SIGRTMIN + 4, SI_QUEUE, (int)round * 10 + at);
        }
        take(SIGTERM, SI_USER, 0);
        nothing_more();
        atomic_store(&asked, round);
        wait_until(atomic_load(&answered) == round);
        step("taken");
    }
}
