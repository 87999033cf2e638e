/* Children that store, end or stay; threads; signals; another program. */
#pragma once
#include "adversary_common.h"

/* Threads that store until they are told to end. */
#define THREADS 3
static struct storing {
    atomic_int running;
    pthread_t thread;
    char *at;
    size_t length;
    uint64_t seed;
    char signal_stack[32768];
} threads[THREADS];

/* In a new process. */
static void no_threads(void) {
    for (int i = 0; i < THREADS; i++) atomic_store(&threads[i].running, 0);
}

static void close_children(void) {
    for (int fd = CHILD_FD; fd < CHILD_FD + 2 * CHILDREN; fd++) close(fd);
}

static int ended(pid_t child) {
    if (child < 0) return -1;
    waitpid(child, NULL, 0); /* says ECHILD when it has ended, as SIGCHLD is ignored */
    return 0;
}

/* PAGE PAGES SEED: stores in a child, which ends. */
static int do_fork(char **words) {
    pid_t child = fork();
    if (child == 0) {
        store_pages(page(words[1]), pages(words[2]), number(words[3]), WHOLE);
        _exit(0);
    }
    return ended(child);
}

static char **in_child;

static int store_by_clone(void *argument) {
    (void)argument;
    store_pages(page(in_child[1]), pages(in_child[2]), number(in_child[3]), WHOLE);
    syscall(SYS_exit, 0); /* not exit_group's handlers: the memory is the parent's */
    return 0;
}

/* The same in a process that shares the memory, while this one waits. */
static int do_vfork(char **words) {
    static char stack[65536] __attribute__((aligned(16)));
    in_child = words;
    return ended(clone(store_by_clone, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL));
}

static int do_clone_vm(char **words) {
    static char stack[65536] __attribute__((aligned(16)));
    in_child = words;
    return ended(clone(store_by_clone, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL));
}

/* CHILD: one that stays and takes orders. */
static int do_spawn(char **words) {
    int k = (int)(number(words[1]) % CHILDREN), down[2], up[2];
    close(CHILD_FD + 2 * k);
    close(CHILD_FD + 2 * k + 1);
    if (pipe2(down, O_CLOEXEC)) return -1;
    if (pipe2(up, O_CLOEXEC)) {
        close(down[0]);
        close(down[1]);
        return -1;
    }
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(down[0], 0);
        dup2(up[1], 1);
        for (int i = 0; i < 2; i++) {
            close(down[i]);
            close(up[i]);
        }
        close_children();
        no_threads();
        return 1;
    }
    close(down[0]);
    close(up[1]);
    if (child < 0 || keep(down[1], CHILD_FD + 2 * k) < 0 || keep(up[0], CHILD_FD + 2 * k + 1) < 0) return -1;
    return 0;
}

static int do_dismiss(char **words) {
    int k = (int)(number(words[1]) % CHILDREN);
    close(CHILD_FD + 2 * k + 1);
    return close(CHILD_FD + 2 * k);
}

/* `@K line` to child K; its answer. */
static size_t relay(char *line, char *answer) {
    int k = line[1] - '0';
    if (k < 0 || k >= CHILDREN || line[2] != ' ') return (size_t)sprintf(answer, "no %d\n", EINVAL);
    size_t length = strlen(line + 3);
    line[3 + length] = '\n';
    if (write(CHILD_FD + 2 * k, line + 3, length + 1) != (ssize_t)length + 1) return (size_t)sprintf(answer, "no %d\n", errno);
    size_t said = 0;
    while (said == 0 || answer[said - 1] != '\n') {
        struct pollfd wait = {.fd = CHILD_FD + 2 * k + 1, .events = POLLIN};
        ssize_t got = poll(&wait, 1, 20000) == 1 ? read(wait.fd, answer + said, 32) : -1;
        if (got <= 0) return (size_t)sprintf(answer, "no %d\n", ECHILD);
        said += (size_t)got;
    }
    return said;
}

/* Only alone in a batch: what was read ahead is lost. */
static int do_exec(char **words) {
    (void)words;
    execv("/proc/self/exe", arguments);
    return -1;
}

static void *store_on(void *argument) {
    struct storing *self = argument;
    own_signal_stack(self->signal_stack, sizeof self->signal_stack);
    while (atomic_load(&self->running)) {
        uint64_t value = next_random(&self->seed);
        store_pages(self->at + value % (self->length / PAGE) * PAGE, PAGE, value, ONE_WORD);
        struct timespec pause = {0, 200000};
        nanosleep(&pause, NULL);
    }
    return NULL;
}

/* THREAD PAGE PAGES SEED */
static int do_thread(char **words) {
    struct storing *self = &threads[number(words[1]) % THREADS];
    if (atomic_load(&self->running)) return fails(EBUSY);
    if (number(words[3]) == 0) return fails(EINVAL);
    self->at = page(words[2]);
    self->length = pages(words[3]);
    self->seed = number(words[4]);
    atomic_store(&self->running, 1);
    int error = pthread_create(&self->thread, NULL, store_on, self);
    if (error) atomic_store(&self->running, 0);
    return error ? fails(error) : 0;
}

static int do_join(char **words) {
    struct storing *self = &threads[number(words[1]) % THREADS];
    if (!atomic_load(&self->running)) return fails(ESRCH);
    atomic_store(&self->running, 0);
    int error = pthread_join(self->thread, NULL);
    return error ? fails(error) : 0;
}

/* --- signals --- */

static volatile uint64_t signal_seed;

static void on_signal(int number) {
    (void)number;
    descend(signal_seed % 8, signal_seed);
}

/* ALTERNATIVE-STACK SEED: a handler runs, here or on a stack of its own. */
static int do_signal(char **words) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = number(words[1]) ? SA_ONSTACK : 0};
    if (sigaction(SIGUSR1, &action, NULL)) return -1;
    signal_seed = number(words[2]);
    return raise(SIGUSR1);
}

#define PROCESSES_VERBS \
    {"fork", do_fork}, {"vfork", do_vfork}, {"clone_vm", do_clone_vm}, {"spawn", do_spawn}, {"dismiss", do_dismiss}, \
    {"exec", do_exec}, {"thread", do_thread}, {"join", do_join}, {"signal", do_signal},
