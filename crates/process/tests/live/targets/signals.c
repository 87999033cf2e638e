// signals THREADS: counts real-time signals in a handler, in whichever thread gets them, while
// all threads compute. Any line on stdin: prints "COUNT" so far, or "broken".
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <errno.h>

static volatile uint64_t count;
static volatile uint64_t last_value[8];
static volatile int broken;

static void handler(int signal, siginfo_t *info, void *context) {
    (void)context;
    if (info->si_code != SI_QUEUE || info->si_signo != signal) broken = 1;
    __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
}

static void *work(void *argument) {
    (void)argument;
    uint64_t mix = 1, again = 1;
    for (;;) {
        mix = mix * 6364136223846793005ull + 1;
        again = again * 6364136223846793005ull + 1;
        __asm__ volatile("" : "+r"(mix), "+r"(again));
        if (mix != again) broken = 1;
    }
    return 0;
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 0;
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};
    for (int signal = SIGRTMIN; signal <= SIGRTMIN + 7; signal++) sigaction(signal, &action, 0);
    for (int i = 0; i < threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, 0, work, 0)) return 1;
    }
    puts("ready");
    fflush(stdout);
    char line[64];
    for (;;) {
        ssize_t n = read(0, line, sizeof line);
        if (n < 0) { puts("broken read"); fflush(stdout); continue; }
        if (n == 0) return 0;
        if (broken) puts("broken"); else printf("%llu\n", (unsigned long long)count);
        fflush(stdout);
    }
}
