// kept_back WHAT: a process with something that a restore cannot bring back. For "pid" and "time" it is its child that
// lives in another namespace.
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <errno.h>
#include <linux/aio_abi.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/io.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile char selector;

static int namespace_flag(const char *name) {
    if (!strcmp(name, "mnt")) return CLONE_NEWNS;
    if (!strcmp(name, "net")) return CLONE_NEWNET;
    if (!strcmp(name, "ipc")) return CLONE_NEWIPC;
    if (!strcmp(name, "uts")) return CLONE_NEWUTS;
    if (!strcmp(name, "cgroup")) return CLONE_NEWCGROUP;
    if (!strcmp(name, "user")) return CLONE_NEWUSER;
    if (!strcmp(name, "pid")) return CLONE_NEWPID;
    if (!strcmp(name, "time")) return 0x80;
    return 0;
}

static pid_t child_that_waits(void) {
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) pause();
    }
    return child;
}

static int prepare(const char *what) {
    int flag = namespace_flag(what);
    if (flag) {
        if (unshare(flag)) return 1;
        return (flag == CLONE_NEWPID || flag == 0x80) && child_that_waits() < 0;
    }
    if (!strcmp(what, "ldt")) {
        struct user_desc segment = {.entry_number = 3, .base_addr = 0, .limit = 1, .seg_32bit = 1};
        return syscall(SYS_modify_ldt, 1, &segment, sizeof segment) != 0;
    }
    if (!strcmp(what, "io-ports")) return ioperm(0x80, 1, 1);
    if (!strcmp(what, "aio")) {
        aio_context_t context = 0;
        return syscall(SYS_io_setup, 4, &context) != 0;
    }
    if (!strcmp(what, "syscall-dispatch")) return prctl(59, 1, 0, 0, &selector);
    if (!strcmp(what, "traces")) {
        pid_t child = child_that_waits();
        return child < 0 || ptrace(PTRACE_SEIZE, child, 0, 0);
    }
    if (!strcmp(what, "cpu-timer")) {
        clockid_t clock;
        timer_t timer;
        struct sigevent event = {.sigev_notify = SIGEV_NONE};
        return clock_getcpuclockid(getppid(), &clock) || timer_create(clock, &event, &timer);
    }
    return strcmp(what, "nothing");
}

int main(int argc, char **argv) {
    if (argc < 2 || prepare(argv[1])) {
        printf("%s\n", strerror(errno));
        return 1;
    }
    puts("ready");
    fflush(stdout);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        puts("alive");
        fflush(stdout);
    }
    return 0;
}
