/* Executes a command as somebody who has many things of his own that are inherited: a session keyring with a key in it, words in the
 * environment, descriptors, limits, a control group, signals ignored and blocked, capabilities, and so on. Words: a directory of control
 * groups or `-`, and the command. */
#include "common.h"
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sched.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/stat.h>

#define NEEDED(is_so) ((is_so) ? (void)0 : (perror(#is_so), _exit(94)))

static void write_to(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    NEEDED(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && close(fd) == 0);
}

int main(int count, char **words) {
    if (count < 3) return 95;
    if (strcmp(words[1], "-")) {
        char path[4096], pid[32];
        snprintf(path, sizeof path, "%s/cgroup.procs", words[1]);
        snprintf(pid, sizeof pid, "%d", getpid());
        write_to(path, pid);
    }
    /* Where keys are known: one in a session keyring of our own. */
    if (syscall(SYS_keyctl, 1, NULL) >= 0) NEEDED(syscall(SYS_add_key, "user", "pagetide-test", "secret", 6, -3) >= 0);
    NEEDED(setenv("PAGETIDE_TEST_SECRET", "word", 1) == 0);
    NEEDED(dup2(open("/etc/passwd", O_RDONLY), 77) == 77);
    umask(0);
    NEEDED(nice(3) != -1);
    /* IOPRIO_WHO_PROCESS, best effort, the lowest. */
    NEEDED(syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 7) == 0);
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    NEEDED(sched_setaffinity(0, sizeof one, &one) == 0);
    /* What is lowered for good could not be raised again by everybody. */
    struct rlimit limit;
    NEEDED(getrlimit(RLIMIT_MSGQUEUE, &limit) == 0);
    limit.rlim_cur = 4096;
    NEEDED(setrlimit(RLIMIT_MSGQUEUE, &limit) == 0);
    NEEDED(signal(SIGPIPE, SIG_IGN) != SIG_ERR && signal(SIGHUP, SIG_IGN) != SIG_ERR);
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    NEEDED(sigprocmask(SIG_BLOCK, &blocked, NULL) == 0);
    NEEDED(personality(ADDR_NO_RANDOMIZE) != -1);
    NEEDED(prctl(PR_SET_TIMERSLACK, 123456) == 0);
    NEEDED(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0);
    write_to("/proc/self/oom_score_adj", "345");
    write_to("/proc/self/coredump_filter", "0x7f");
    NEEDED(chdir("/") == 0);
    gid_t groups[] = {1234, 1235};
    NEEDED(syscall(SYS_setgroups, 2, groups) == 0);
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2];
    NEEDED(syscall(SYS_capget, &header, sets) == 0);
    sets[0].inheritable |= 1u << CAP_NET_RAW;
    NEEDED(syscall(SYS_capset, &header, sets) == 0);
    NEEDED(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_RAW, 0, 0) == 0);
    NEEDED(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) == 0);
    execvp(words[2], words + 2);
    return errno == ENOENT ? 127 : 126;
}
