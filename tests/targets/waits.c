/* Each thread waits in another call. None may notice that the process was away: no EINTR, no answer too early, none lost. */
#include "steps.h"
#include <linux/futex.h>
#include <poll.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/socket.h>

#define NAP_MS 30

enum waiter { READER, POLLER, EPOLLER, SEMAPHORE, FUTEX, SIGNAL, SOCKET, CONDITION, WAITERS };

static atomic_uint seen[WAITERS], naps;
static int read_pipe[2], poll_pipe[2], sockets[2], event, epoll;
static sem_t semaphore;
static atomic_uint futex_word;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static unsigned condition_tick;

/* As every libc calls it: the number stands right before the call, where it is found again when the kernel has put the
 * number of restart_syscall in its place. Through syscall(3) it could not be found, and the call would end with EINTR. */
static long wait_for_futex(atomic_uint *word, unsigned value, const struct timespec *patience) {
    register const struct timespec *timeout asm("r10") = patience;
    long result;
    asm volatile("mov %1, %%eax\n\tsyscall"
                 : "=a"(result)
                 : "i"(SYS_futex), "D"(word), "S"(FUTEX_WAIT_PRIVATE), "d"(value), "r"(timeout)
                 : "rcx", "r11", "memory");
    return result;
}

static void take_byte(int fd, unsigned tick) {
    unsigned char byte;
    ssize_t got = read(fd, &byte, 1);
    must(got == 1 && byte == (unsigned char)tick);
}

static void *wait_in(void *which) {
    enum waiter waiter = (enum waiter)(uintptr_t)which;
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, SIGRTMIN);
    for (unsigned tick = 1;; tick++) {
        switch (waiter) {
        case READER:
            take_byte(read_pipe[0], tick);
            break;
        case POLLER: {
            struct pollfd wanted = {poll_pipe[0], POLLIN, 0};
            must(poll(&wanted, 1, 60 * 1000) == 1 && wanted.revents == POLLIN);
            take_byte(poll_pipe[0], tick);
            break;
        }
        case EPOLLER: {
            struct epoll_event got;
            uint64_t value = 0;
            must(epoll_wait(epoll, &got, 1, -1) == 1 && got.data.u64 == 4711);
            must(read(event, &value, 8) == 8 && value == tick);
            break;
        }
        case SEMAPHORE:
            must(sem_wait(&semaphore) == 0);
            break;
        case FUTEX: {
            struct timespec patience = {60, 0};
            while (atomic_load(&futex_word) != tick) {
                long result = wait_for_futex(&futex_word, tick - 1, &patience);
                if (result != 0 && result != -EAGAIN) wrong("futex: %ld", result);
            }
            break;
        }
        case SIGNAL: {
            siginfo_t info;
            must(sigwaitinfo(&one, &info) == SIGRTMIN && info.si_value.sival_int == (int)tick);
            break;
        }
        case SOCKET: {
            unsigned got = 0;
            must(recv(sockets[0], &got, sizeof got, 0) == sizeof got && got == tick);
            break;
        }
        default:
            pthread_mutex_lock(&lock);
            while (condition_tick != tick) must(pthread_cond_wait(&condition, &lock) == 0);
            pthread_mutex_unlock(&lock);
        }
        atomic_store(&seen[waiter], tick);
    }
    return NULL;
}

static uint64_t began;
static void begin_nap(void) { began = now_ns(CLOCK_MONOTONIC); }
static void end_nap(const char *what) {
    uint64_t took = now_ns(CLOCK_MONOTONIC) - began;
    if (took < NAP_MS * 1000000ull) wrong("%s was over after %llu ns", what, (unsigned long long)took);
    atomic_fetch_add(&naps, 1);
}

/* One after another, each way to let time pass. */
static void *nap(void *unused) {
    struct timespec time = {0, NAP_MS * 1000000};
    int empty[2];
    sem_t never;
    must(pipe(empty) == 0 && sem_init(&never, 0, 0) == 0);
    int set = epoll_create1(EPOLL_CLOEXEC);
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, SIGRTMIN + 1);
    for (;;) {
        struct timespec left = time;
        begin_nap();
        must(nanosleep(&left, &left) == 0);
        end_nap("nanosleep");
        begin_nap();
        must(clock_nanosleep(CLOCK_BOOTTIME, 0, &time, NULL) == 0);
        end_nap("clock_nanosleep");
        begin_nap();
        struct timespec end = {(time_t)((began + NAP_MS * 1000000ull) / 1000000000ull), (long)((began + NAP_MS * 1000000ull) % 1000000000ull)};
        must(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL) == 0);
        end_nap("clock_nanosleep until");
        begin_nap();
        must(poll(&(struct pollfd){empty[0], POLLIN, 0}, 1, NAP_MS) == 0);
        end_nap("poll");
        begin_nap();
        must(epoll_wait(set, &(struct epoll_event){0}, 1, NAP_MS) == 0);
        end_nap("epoll_wait");
        begin_nap();
        must(select(0, NULL, NULL, NULL, &(struct timeval){0, NAP_MS * 1000}) == 0);
        end_nap("select");
        begin_nap();
        atomic_uint word = 0;
        must(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &time, NULL, 0) == -1 && errno == ETIMEDOUT);
        end_nap("futex");
        begin_nap();
        must(sigtimedwait(&one, NULL, &time) == -1 && errno == EAGAIN);
        end_nap("sigtimedwait");
    }
    return unused;
}

int main(int count, char **words) {
    begin_steps(count, words);
    sigset_t blocked;
    sigfillset(&blocked);
    must(sigprocmask(SIG_BLOCK, &blocked, NULL) == 0);
    must(pipe(read_pipe) == 0 && pipe(poll_pipe) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
    event = eventfd(0, EFD_CLOEXEC);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    must(epoll_ctl(epoll, EPOLL_CTL_ADD, event, &(struct epoll_event){.events = EPOLLIN, .data.u64 = 4711}) == 0);
    must(sem_init(&semaphore, 0, 0) == 0);
    pthread_t threads[WAITERS];
    for (uintptr_t at = 0; at < WAITERS; at++) threads[at] = start_thread(wait_in, (void *)at);
    start_thread(nap, NULL);
    for (unsigned tick = 1;; tick++) {
        unsigned char byte = (unsigned char)tick;
        uint64_t value = tick;
        unsigned napped = atomic_load(&naps);
        sleep_ms(25);
        must(write(read_pipe[1], &byte, 1) == 1 && write(poll_pipe[1], &byte, 1) == 1);
        must(write(event, &value, 8) == 8 && sem_post(&semaphore) == 0);
        must(send(sockets[1], &tick, sizeof tick, 0) == sizeof tick);
        must(pthread_sigqueue(threads[SIGNAL], SIGRTMIN, (union sigval){.sival_int = (int)tick}) == 0);
        atomic_store(&futex_word, tick);
        syscall(SYS_futex, &futex_word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
        pthread_mutex_lock(&lock);
        condition_tick = tick;
        pthread_cond_broadcast(&condition);
        pthread_mutex_unlock(&lock);
        for (int at = 0; at < WAITERS; at++) {
            uint64_t since = now_ns(CLOCK_MONOTONIC);
            while (atomic_load(&seen[at]) != tick) {
                if (now_ns(CLOCK_MONOTONIC) - since > PATIENCE_SECONDS * 1000000000ull) wrong("waiter %d does not come back", at);
                sleep_ms(1);
            }
        }
        wait_until(atomic_load(&naps) != napped);
        step("all woke");
    }
}
