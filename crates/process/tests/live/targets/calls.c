// calls KIND: says "ready", enters one blocking call, and says how it ended: "RESULT ERRNO MS".
// "RESULT" is what the call returned; a handler that ran adds " handled N".
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/ipc.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int handled;
static void handler(int signal) { (void)signal; handled++; }

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

int main(int argc, char **argv) {
    const char *kind = argc > 1 ? argv[1] : "";
    long result = -99;
    char byte;
    struct sigaction action = {.sa_handler = handler};
    sigaction(SIGUSR1, &action, 0);
    sigset_t usr1, none;
    sigemptyset(&none);
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    struct timespec sleep_time = {0, 700 * 1000 * 1000};
    int word = 0;
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &event);
    struct pollfd input = {0, POLLIN, 0};
    int pair[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    struct timeval long_time = {30, 0};
    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &long_time, sizeof long_time);
    int semaphore = -1;
    if (!strncmp(kind, "sem", 3)) semaphore = semget(IPC_PRIVATE, 1, 0600);
    puts("ready");
    fflush(stdout);
    double begin = now();
    errno = 0;
    if (!strcmp(kind, "nanosleep")) result = syscall(SYS_nanosleep, &sleep_time, 0);
    else if (!strcmp(kind, "clock_nanosleep")) result = syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &sleep_time, 0);
    else if (!strcmp(kind, "clock_nanosleep_absolute")) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += sleep_time.tv_nsec;
        if (until.tv_nsec >= 1000000000) { until.tv_sec++; until.tv_nsec -= 1000000000; }
        result = syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &until, 0);
    }
    else if (!strcmp(kind, "poll")) result = syscall(SYS_poll, 0, 0, 700);
    else if (!strcmp(kind, "futex_timeout")) result = syscall(SYS_futex, &word, FUTEX_WAIT, 0, &sleep_time, 0, 0);
    else if (!strcmp(kind, "select")) {
        struct timeval time = {0, 700 * 1000};
        result = select(0, 0, 0, 0, &time);
    }
    else if (!strcmp(kind, "read")) result = read(0, &byte, 1);
    else if (!strcmp(kind, "poll_input")) result = poll(&input, 1, 30000);
    else if (!strcmp(kind, "epoll_wait")) result = epoll_wait(epoll, &event, 1, 30000);
    else if (!strcmp(kind, "epoll_wait_forever")) result = epoll_wait(epoll, &event, 1, -1);
    else if (!strcmp(kind, "epoll_pwait")) result = epoll_pwait(epoll, &event, 1, 30000, &usr1);
    else if (!strcmp(kind, "epoll_timeout")) result = epoll_wait(epoll, &event, 1, 200);
    else if (!strcmp(kind, "epoll_signal")) result = epoll_wait(epoll, &event, 1, -1);
    else if (!strcmp(kind, "recv_timeout")) {
        dup2(pair[1], 100);
        result = recv(pair[0], &byte, 1, 0);
    }
    else if (!strcmp(kind, "semop")) {
        struct sembuf down = {0, -1, 0};
        result = semop(semaphore, &down, 1);
    }
    else if (!strcmp(kind, "sigtimedwait")) {
        struct timespec limit = {30, 0};
        sigprocmask(SIG_BLOCK, &usr1, 0);
        result = sigtimedwait(&usr1, 0, &limit);
    }
    else if (!strcmp(kind, "ppoll")) {
        struct timespec limit = {30, 0};
        sigprocmask(SIG_BLOCK, &usr1, 0);
        result = ppoll(0, 0, &limit, &none);
    }
    else if (!strcmp(kind, "sigsuspend")) {
        sigprocmask(SIG_BLOCK, &usr1, 0);
        result = sigsuspend(&none);
    }
    else if (!strcmp(kind, "pause")) result = pause();
    else return 2;
    int error = result < 0 ? errno : 0;
    sigset_t mask;
    sigprocmask(SIG_BLOCK, 0, &mask);
    printf("%ld %d %.0f handled %d blocked %d\n", result, error, now() - begin, handled,
           sigismember(&mask, SIGUSR1));
    fflush(stdout);
    return 0;
}
