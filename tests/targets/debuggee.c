/* Threads that stand in functions of their own, for a debugger to find: a call chain that ends in
 * `stand_still(number)`, a global, and a vector register. */
#include "common.h"

volatile int known_global = 424242;
volatile double known_ratio = 2.5;
static atomic_int standing;

__attribute__((noinline)) void stand_still(volatile int number) {
    int pattern[4] = {1000 + number, 2000 + number, 3000 + number, 4000 + number};
    atomic_fetch_add(&standing, 1);
    /* Loaded and kept: nothing in this loop uses the register. */
    __asm__ volatile("movdqu (%0), %%xmm5\n 1: pause\n jmp 1b\n" : : "r"(pattern) : "xmm5", "memory");
    printf("%d", number); /* no tail call */
}

__attribute__((noinline)) void middle(volatile int number) {
    stand_still(number);
    known_ratio += number;
}

static void *thread_body(void *argument) {
    middle((int)(uintptr_t)argument);
    known_ratio += 1;
    return NULL;
}

int main(void) {
    begin();
    for (uintptr_t i = 1; i <= 3; i++) {
        pthread_t id;
        if (pthread_create(&id, NULL, thread_body, (void *)i)) die("thread");
    }
    while (atomic_load(&standing) < 3) usleep(1000);
    ready();
    next_line();
    return 0;
}
