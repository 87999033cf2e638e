// exec: replaces itself by itself for ever, with threads about; never twice the same address space.
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static char *self;
static void *replace(void *argument) {
    char *const arguments[] = {self, "again", 0};
    execv("/proc/self/exe", arguments);
    return argument;
}
static void *idle(void *argument) { for (;;) pause(); return argument; }

int main(int argc, char **argv) {
    self = argv[0];
    if (argc < 2) { puts("ready"); fflush(stdout); }
    pthread_t thread;
    pthread_create(&thread, 0, idle, 0);
    // A thread that is not the first replaces the program: the first is killed, and it takes its number.
    pthread_create(&thread, 0, replace, 0);
    for (;;) pause();
}
