/* A child in a process group of its own that was stopped by the signal that is the third word, a number. The fourth is "told" if its
 * parent has waited for that, else "untold". In each step the child stands still, and the parent is told what it would be told. When there is a
 * file "go" in the directory that is the second word, the child goes on, is seen to, and is stopped again: "went on". */
#include "steps.h"

static _Atomic int signals;

static void count_signal(int signal) {
    (void)signal;
    signals++;
}

int main(int count, char **words) {
    begin_steps(count, words);
    must(count == 5);
    int by = atoi(words[3]), told = !strcmp(words[4], "told");
    struct sigaction action = {.sa_handler = count_signal, .sa_flags = SA_RESTART};
    must(sigaction(SIGCHLD, &action, NULL) == 0);
    _Atomic long *counted = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(counted != MAP_FAILED);
    pid_t child = fork();
    must(child >= 0);
    if (!child) {
        signal(SIGCHLD, SIG_DFL);
        setpgid(0, 0);
        for (;;) {
            ++*counted;
            usleep(1000);
        }
    }
    setpgid(child, child);
    wait_until(*counted > 0);
    must(kill(child, by) == 0);
    wait_until(signals == 1);
    int status;
    if (told) must(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status) && WSTOPSIG(status) == by);
    for (;;) {
        long before = *counted;
        sleep_ms(20);
        must(*counted == before);
        siginfo_t is = {0};
        must(waitid(P_PID, (id_t)child, &is, WSTOPPED | WNOHANG | WNOWAIT) == 0);
        must(told ? is.si_pid == 0 : is.si_pid == child && is.si_status == by);
        must(signals == 1);
        char path[512];
        snprintf(path, sizeof path, "%s/go", words[2]);
        if (!access(path, F_OK)) {
            if (!told) must(waitpid(child, &status, WUNTRACED) == child && WSTOPSIG(status) == by);
            must(kill(child, SIGCONT) == 0);
            wait_until(*counted > before);
            must(waitpid(child, &status, WCONTINUED) == child && WIFCONTINUED(status));
            must(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child && WIFSIGNALED(status));
            step("went on");
            return 0;
        }
        step("stands");
    }
}
