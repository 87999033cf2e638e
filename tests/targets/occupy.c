/* A process with the number that is the first word, as long as our input is open. */
#include "common.h"
#include <linux/sched.h>

int main(int count, char **words) {
    begin();
    pid_t wanted = count > 1 ? atoi(words[1]) : 0;
    struct clone_args how = {.exit_signal = SIGCHLD, .set_tid = (uintptr_t)&wanted, .set_tid_size = 1};
    long pid = -1;
    /* A number is free only a moment after its owner has gone. */
    for (int tries = 0; tries < 2000 && pid < 0; tries++) {
        pid = syscall(SYS_clone3, &how, sizeof how);
        if (pid < 0 && errno != EEXIST) die("clone3");
        if (pid < 0) usleep(1000);
    }
    if (pid < 0) die("clone3");
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) pause();
    }
    ready();
    while (getchar() != EOF) {}
    kill((pid_t)pid, SIGKILL);
    waitpid((pid_t)pid, NULL, 0);
}
