// count THREADS: each thread counts, keeping a checksum that a lost or doubled instruction breaks.
// Any line on stdin: prints the sum of the counts, or "broken".
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct slot { volatile uint64_t count; volatile uint64_t mirror; volatile int broken; char pad[40]; };
static struct slot slots[512];

static void *work(void *argument) {
    struct slot *slot = argument;
    uint64_t count = 0, mix = 88172645463325252ull, again = mix;
    for (;;) {
        mix ^= mix << 13; mix ^= mix >> 7; mix ^= mix << 17;
        again ^= again << 13; again ^= again >> 7; again ^= again << 17;
        if (mix != again) slot->broken = 1;
        slot->count = ++count;
        slot->mirror = count;
        if (count % 64 == 0) {
            // A system call whose result is known, so that a wrong register shows.
            if (getpid() != *(volatile int *)&(int){getpid()}) slot->broken = 1;
        }
    }
    return 0;
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    for (int i = 0; i < threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, 0, work, &slots[i])) return 1;
    }
    puts("ready");
    fflush(stdout);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        uint64_t sum = 0;
        int broken = 0;
        for (int i = 0; i < threads; i++) { sum += slots[i].count; broken |= slots[i].broken; }
        if (broken) puts("broken"); else printf("%llu\n", (unsigned long long)sum);
        fflush(stdout);
    }
    return 0;
}
