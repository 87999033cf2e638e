// dead_first: its first thread ends, another one runs on.
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

static void *run(void *argument) {
    usleep(50 * 1000);
    puts("ready");
    fflush(stdout);
    for (;;) pause();
    return argument;
}

int main(void) {
    pthread_t thread;
    pthread_create(&thread, 0, run, 0);
    pthread_exit(0);
}
