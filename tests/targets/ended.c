/* Children that have ended and are not reaped yet: the signal that tells of it waits, or has been taken; it comes once. */
#include "steps.h"
#include <sys/wait.h>

#define OF_ANOTHER 65534
#define STATUS 7
#define OTHERS 6

static sigset_t of_children;

static int next(siginfo_t *info) {
    struct timespec none = {0, 0};
    return sigtimedwait(&of_children, info, &none);
}

/* It has ended by itself, or by SIGTERM. */
static pid_t ended_child(uid_t of, int by_signal) {
    pid_t child = fork();
    must(child >= 0);
    if (child == 0) {
        if (by_signal) kill(getpid(), SIGTERM);
        _exit(setresuid(of, of, of) == 0 ? STATUS : 1);
    }
    siginfo_t info = {0};
    must(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT) == 0);
    must(info.si_status == (by_signal ? SIGTERM : STATUS));
    return child;
}

int main(int count, char **words) {
    begin_steps(count, words);
    sigemptyset(&of_children);
    sigaddset(&of_children, SIGCHLD);
    must(sigprocmask(SIG_BLOCK, &of_children, NULL) == 0);
    for (;;) {
        /* The signal that waits tells of the first. */
        pid_t child = ended_child(OF_ANOTHER, 0), others[OTHERS];
        for (int i = 0; i < OTHERS; i++) others[i] = ended_child(getuid(), i % 2);
        sleep_ms(40);
        siginfo_t info = {0};
        must(next(&info) == SIGCHLD);
        if (info.si_code != CLD_EXITED || info.si_pid != child || info.si_uid != OF_ANOTHER || info.si_status != STATUS)
            wrong("code %d, pid %d for %d, uid %d, status %d", info.si_code, info.si_pid, child, info.si_uid, info.si_status);
        sleep_ms(40);
        must(next(NULL) == -1 && errno == EAGAIN);
        must(waitpid(child, NULL, 0) == child);
        for (int i = 0; i < OTHERS; i++) {
            int status;
            must(waitpid(others[i], &status, 0) == others[i]);
            must(i % 2 ? WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM : WEXITSTATUS(status) == STATUS);
        }
        step("ended");
    }
}
