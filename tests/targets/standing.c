/* As many threads as the third word says count, one after the other, each in a step of its own. */
#include "steps.h"

static _Atomic long turn;
static long threads;

static void *count_up(void *which) {
    for (;;) {
        if (turn % threads == (long)which) {
            turn++;
            step("counted");
        }
        sleep_ms(2);
    }
    return NULL;
}

int main(int count, char **words) {
    begin_steps(count, words);
    threads = atol(words[3]);
    /* SIGTSTP stops nobody in a group without a parent outside, as all are that setsid(1) has started. */
    must(setpgid(0, 0) == 0);
    for (long i = 1; i < threads; i++) start_thread(count_up, (void *)i);
    count_up(NULL);
}
