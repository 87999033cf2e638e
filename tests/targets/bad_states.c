/* Processes that are hard to checkpoint. The first argument says how, the others are its own:
 *
 *   plain                        nothing special
 *   thread                       answers `tid` with the number of a second thread
 *   threads N                    N further threads that wait
 *   zombie                       answers `child` with the number of a child that has ended
 *   filter-kill, filter-errno    a seccomp filter against userfaultfd(2)
 *   strict                       the strict mode of seccomp, reading its input for ever
 *   no-descriptors FREE          all file descriptors that it may have are open, but for so many
 *   undumpable                   it may be read by root alone
 *   tracer PID                   traces that process, as a debugger does
 *   mapped PATH                  maps a file
 *   exec                         `exec PROGRAM WORD` runs another program
 *   exit                         `exit STATUS` ends it
 *   vfork                        `vfork` answers with a descriptor and waits, by a child, until
 *                                a byte is written to that
 *   nested DIRECTORY             in its own mount namespace, with another root
 *
 * All have 4 MiB of anonymous memory that cannot be compressed. `noise FIRST COUNT SEED` fills pages with
 * something else. Every line is answered. */
#include "common.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>

#define LENGTH (4 * MIB)

static atomic_int second_thread;

static void *wait_for_ever(void *unused) {
    second_thread = (int)syscall(SYS_gettid);
    for (;;) pause();
    return unused;
}

static void start_thread(void) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 64 * 1024);
    pthread_t thread;
    if ((errno = pthread_create(&thread, &attributes, wait_for_ever, NULL))) die("pthread_create");
}

static void forbid_userfaultfd(unsigned action) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) die("no_new_privs");
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) die("seccomp");
}

static void use_up_descriptors(int but) {
    struct rlimit limit = {32, 32};
    if (setrlimit(RLIMIT_NOFILE, &limit)) die("setrlimit");
    while (dup(0) >= 0) {}
    if (errno != EMFILE) die("dup");
    while (but > 0) close(32 - but--);
}

static void map_file(const char *path) {
    int file = open(path, O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, 2 * PAGE)) die(path);
    char *at = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    if (at == MAP_FAILED) die("mmap");
    strcpy(at, "a copy of its own");
}

static void enter(const char *root) {
    if (unshare(CLONE_NEWNS)) die("unshare");
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) die("mount");
    if (mount("pagetide-test", root, "tmpfs", 0, NULL)) die("mount tmpfs");
    if (chroot(root) || chdir("/")) die("chroot");
    map_file("/mapped");
}

static void make_noise(unsigned char *memory, size_t length, uint64_t seed) {
    for (size_t at = 0; at < length; at += 8) {
        uint64_t value = next_random(&seed);
        memcpy(memory + at, &value, 8);
    }
}

/* The child of vfork borrows this process's memory, so it does nothing but wait and end. */
static void hang_in_vfork(void) {
    int ends[2];
    if (pipe(ends)) die("pipe");
    printf("%d\n", ends[1]);
    pid_t child = vfork();
    if (child == 0) {
        char byte;
        syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL);
        syscall(SYS_read, ends[0], &byte, 1);
        _exit(0);
    }
    close(ends[0]);
    close(ends[1]);
    waitpid(child, NULL, 0);
}

int main(int count, char **words) {
    begin();
    const char *kind = count > 1 ? words[1] : "plain";
    unsigned char *memory = map_anonymous(LENGTH);
    make_noise(memory, LENGTH, 1);
    pid_t child = 0;
    if (!strcmp(kind, "thread")) start_thread();
    if (!strcmp(kind, "threads"))
        for (int i = atoi(words[2]); i > 0; i--) start_thread();
    if (!strcmp(kind, "zombie") && (child = fork()) == 0) _exit(0);
    if (child > 0) waitid(P_PID, (id_t)child, &(siginfo_t){0}, WEXITED | WNOWAIT);
    if (!strcmp(kind, "filter-kill")) forbid_userfaultfd(SECCOMP_RET_KILL_PROCESS);
    if (!strcmp(kind, "filter-errno")) forbid_userfaultfd(SECCOMP_RET_ERRNO | EPERM);
    if (!strcmp(kind, "nested")) enter(words[2]);
    if (!strcmp(kind, "no-descriptors")) use_up_descriptors(atoi(words[2]));
    if (!strcmp(kind, "undumpable")) prctl(PR_SET_DUMPABLE, 0);
    if (!strcmp(kind, "tracer") && ptrace(PTRACE_SEIZE, atoi(words[2]), 0, 0)) die("ptrace");
    if (!strcmp(kind, "mapped")) map_file(words[2]);
    while (!strcmp(kind, "thread") && !second_thread) usleep(1000);
    ready();
    if (!strcmp(kind, "strict")) {
        if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT)) die("seccomp");
        char byte;
        for (;;) {
            if (read(0, &byte, 1) != 1) syscall(SYS_exit, 0);
            if (byte == '\n' && write(1, "ok\n", 3) != 3) syscall(SYS_exit, 1);
        }
    }
    for (;;) {
        char *line = next_line();
        size_t first, pages;
        unsigned value;
        if (sscanf(line, "noise %zu %zu %u", &first, &pages, &value) == 3)
            make_noise(memory + first * PAGE, pages * PAGE, value + 2);
        if (!strcmp(line, "tid")) printf("%d\n", second_thread);
        else if (!strcmp(line, "child")) printf("%d\n", child);
        else if (!strcmp(line, "vfork")) hang_in_vfork();
        else if (!strncmp(line, "exit ", 5)) _exit(atoi(line + 5));
        else if (!strncmp(line, "exec ", 5)) {
            char *word = strchr(line + 5, ' ');
            if (word) *word++ = 0;
            execl(line + 5, line + 5, word, NULL);
            die("exec");
        } else printf("%p\n", (void *)memory);
    }
}
