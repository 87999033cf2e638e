// storm KIND: threads that are born and die without end. "chain": each thread makes the next and
// ends, several chains at once. "burst": the first thread makes and joins eight at a time. Any
// line on stdin: prints how many threads there have been.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile uint64_t born;
static pthread_attr_t detached;

static void *link_of_chain(void *argument) {
    __atomic_add_fetch(&born, 1, __ATOMIC_SEQ_CST);
    pthread_t next;
    while (pthread_create(&next, &detached, link_of_chain, argument)) usleep(100);
    return 0;
}

static void *short_life(void *argument) {
    __atomic_add_fetch(&born, 1, __ATOMIC_SEQ_CST);
    return argument;
}

static void *bursts(void *argument) {
    for (;;) {
        pthread_t threads[8];
        int made = 0;
        while (made < 8 && !pthread_create(&threads[made], 0, short_life, 0)) made++;
        for (int i = 0; i < made; i++) pthread_join(threads[i], 0);
    }
    return argument;
}

int main(int argc, char **argv) {
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&detached, 65536);
    int chain = argc > 1 && !strcmp(argv[1], "chain");
    pthread_t thread;
    for (int i = 0; i < 3; i++)
        if (pthread_create(&thread, &detached, chain ? link_of_chain : bursts, 0)) return 1;
    puts("ready");
    fflush(stdout);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        printf("%llu\n", (unsigned long long)born);
        fflush(stdout);
    }
    return 0;
}
