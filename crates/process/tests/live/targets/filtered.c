// filtered HOW: under seccomp. "strict": the strict mode. "no-userfaultfd": a filter that kills the
// process for userfaultfd (call 323). "lenient": a filter that allows everything. "two": both.
// Then answers each line on stdin with "alive".
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>
#include <sys/syscall.h>

static void install(struct sock_filter *code, unsigned short length) {
    struct sock_fprog program = {length, code};
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) perror("seccomp");
}

int main(int argc, char **argv) {
    const char *how = argc > 1 ? argv[1] : "";
    struct sock_filter lenient[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_filter killing[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 323, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (!strcmp(how, "lenient") || !strcmp(how, "two")) install(lenient, 1);
    if (!strcmp(how, "no-userfaultfd") || !strcmp(how, "two")) install(killing, 4);
    if (!strcmp(how, "two")) install(lenient, 1);
    if (!strcmp(how, "strict") && prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT)) return 1;
    static const char ready[] = "ready\n", alive[] = "alive\n";
    if (write(1, ready, 6) != 6) return 1;
    char line[64];
    while (read(0, line, sizeof line) > 0)
        if (write(1, alive, 6) != 6) return 1;
    // exit_group is not allowed in the strict mode.
    syscall(SYS_exit, 0);
}
