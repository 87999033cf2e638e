/* A family of processes that share memory in every way there is, and that come and go.
 *
 *   family MEBIBYTES
 *
 * The parent holds so much private memory, which its children inherit, and some of every kind of shared
 * memory. Commands (each answered by one line; "pid" is the new process, 0 if there are several):
 *
 *   worker N     N children, each with a child of its own; all of them write to all kinds of memory
 *   idle         a child that does nothing, and has inherited everything
 *   threads      a child that writes with four threads
 *   stopped      a child that has stopped itself by SIGSTOP
 *   zombie N     N children that have ended, and are not reaped
 *   orphan       a child of a child that has ended
 *   middle       a child with a child that outlives it
 *   subreaper    from now on orphans become children of the parent
 *   exec PID     that idle child executes this program again
 *   end PID      that child ends and is reaped
 *   churn        a child that forks all the time: children that end at once, that write a lot, that execute
 *   spawn        a child that calls vfork and posix_spawn all the time
 *   hold         a child that sleeps between vfork and the end of its child, again and again
 *   march        a parent, a child and a grandchild that count in lock-step; answers the address
 *   rounds       how often workers have written, in all */
#include "common.h"
#include <spawn.h>
#include <sys/ipc.h>
#include <sys/shm.h>

#define SHARED (2 * MIB)

struct shared {
    atomic_ulong rounds;
    atomic_ulong march;
    /* Workers that have begun. */
    atomic_int born;
};
static pid_t root;
static struct shared *common;
static unsigned char *private, *anonymous, *of_memfd, *of_sysv, *of_tmpfs;
static size_t private_bytes;
static int memfd, tmpfs;
static const char *program;
/* One page a counter: private, each process has its own. */
static volatile unsigned long *count;

/* The parent must not be the one by pid alone: it may have ended between the two calls. */
static pid_t begin_child(int dies_with_parent) {
    pid_t parent = getpid(), pid = fork();
    if (pid < 0) die("fork");
    if (pid == 0 && dies_with_parent) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(0);
    }
    if (pid == 0) prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    return pid;
}

static void sleep_us(long us) {
    struct timespec pause = {us / 1000000, us % 1000000 * 1000};
    nanosleep(&pause, NULL);
}

static void idle(void) {
    while (kill(root, 0) == 0) sleep_us(20000);
    _exit(0);
}

static void write_somewhere(uint64_t *seed) {
    unsigned char *places[] = {private, anonymous, of_memfd, of_sysv, of_tmpfs};
    for (int i = 0; i < 5; i++) {
        size_t length = i ? SHARED : private_bytes;
        *(uint64_t *)(places[i] + next_random(seed) % (length / 8) * 8) = *seed;
    }
    unsigned long page = next_random(seed) % (SHARED / PAGE);
    switch (next_random(seed) % 16) {
    case 0: fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, page * PAGE, 3 * PAGE); break;
    case 1: madvise(anonymous + page * PAGE, PAGE, MADV_REMOVE); break;
    case 2: if (pwrite(tmpfs, seed, 8, page * PAGE + 16) != 8) die("pwrite"); break;
    case 3: madvise(private + next_random(seed) % (private_bytes / PAGE) * PAGE, PAGE, MADV_DONTNEED); break;
    default: break;
    }
    atomic_fetch_add(&common->rounds, 1);
}

static void *work(void *argument) {
    uint64_t seed = (uint64_t)getpid() * 1000 + (uintptr_t)argument;
    for (;;) {
        for (int i = 0; i < 20; i++) write_somewhere(&seed);
        sleep_us(500);
    }
    return NULL;
}

static pid_t worker(void) {
    pid_t pid = begin_child(1);
    if (pid == 0) {
        begin_child(1);
        atomic_fetch_add(&common->born, 1);
        work(NULL);
    }
    return pid;
}

static pid_t with_threads(void) {
    int before = atomic_load(&common->born);
    pid_t pid = begin_child(1);
    if (pid == 0) {
        pthread_t id;
        for (uintptr_t i = 1; i < 4; i++)
            if (pthread_create(&id, NULL, work, (void *)i)) die("thread");
        atomic_fetch_add(&common->born, 1);
        work(NULL);
    }
    while (atomic_load(&common->born) == before) sleep_us(500);
    return pid;
}

static pid_t orphan(void) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC)) die("pipe");
    pid_t pid = begin_child(1);
    if (pid == 0) {
        pid_t grandchild = begin_child(0);
        if (grandchild == 0) idle();
        if (write(ends[1], &grandchild, sizeof grandchild) < 0) die("write");
        _exit(0);
    }
    pid_t grandchild;
    if (read(ends[0], &grandchild, sizeof grandchild) != sizeof grandchild) die("read");
    close(ends[0]);
    close(ends[1]);
    waitpid(pid, NULL, 0);
    return grandchild;
}

static void middle(void) {
    begin_child(0);
    idle();
}

static void churn(void) {
    uint64_t seed = 99;
    for (;;) {
        pid_t pid = begin_child(1);
        if (pid == 0) {
            seed += (uint64_t)getpid();
            long pause = (long)(next_random(&seed) % 30000);
            switch (next_random(&seed) % 4) {
            case 0: break;
            case 1: memset(map_anonymous(12 * MIB), 7, 12 * MIB); break;
            case 2: for (int i = 0; i < 50; i++) write_somewhere(&seed); break;
            default:
                sleep_us(pause);
                execl(program, program, "nap", NULL);
            }
            sleep_us(pause);
            _exit(0);
        }
        sleep_us(2000);
        while (waitpid(-1, NULL, WNOHANG) > 0) {}
    }
}

static void spawn(void) {
    extern char **environ;
    char *words[] = {(char *)program, "nap", NULL};
    for (;;) {
        pid_t pid;
        if (posix_spawn(&pid, program, NULL, NULL, words, environ)) die("posix_spawn");
        waitpid(pid, NULL, 0);
        pid = vfork();
        if (pid == 0) {
            execl(program, program, "nap", NULL);
            _exit(1);
        }
        waitpid(pid, NULL, 0);
    }
}

static void hold(void) {
    for (;;) {
        pid_t pid = vfork();
        if (pid == 0) {
            sleep_us(30000);
            _exit(0);
        }
        waitpid(pid, NULL, 0);
    }
}

/* Counts in lock-step: at any instant parent >= shared >= child >= grandchild >= parent - 1. */
static void march(void) {
    int down[2], on[2], back[2];
    if (pipe(down) || pipe(on) || pipe(back)) die("pipe");
    char beat = 0;
    pid_t child = begin_child(1);
    if (child == 0) {
        pid_t grandchild = begin_child(1);
        for (;;) {
            int from = grandchild ? down[0] : on[0], to = grandchild ? on[1] : back[1];
            if (read(from, &beat, 1) != 1) _exit(0);
            ++*count;
            if (write(to, &beat, 1) != 1) _exit(0);
        }
    }
    for (;;) {
        ++*count;
        atomic_store(&common->march, *count);
        if (write(down[1], &beat, 1) != 1 || read(back[0], &beat, 1) != 1) die("march");
    }
}

static void *map_shared(int fd) {
    int flags = fd < 0 ? MAP_SHARED | MAP_ANONYMOUS : MAP_SHARED;
    void *at = mmap(NULL, SHARED, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (at == MAP_FAILED) die("map shared memory");
    return at;
}

static void fill(unsigned char *at, size_t length, uint64_t seed) {
    for (size_t i = 0; i < length; i += 8) *(uint64_t *)(at + i) = next_random(&seed);
}

static void make_memory(void) {
    common = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (common == MAP_FAILED) die("mmap");
    count = map_anonymous(PAGE);
    private = map_anonymous(private_bytes);
    anonymous = map_shared(-1);
    memfd = memfd_create("family", MFD_CLOEXEC);
    char path[] = "/dev/shm/pagetide-family-XXXXXX";
    tmpfs = mkostemp(path, O_CLOEXEC);
    if (memfd < 0 || tmpfs < 0 || ftruncate(memfd, SHARED) || ftruncate(tmpfs, SHARED)) die("make files");
    unlink(path);
    of_memfd = map_shared(memfd);
    of_tmpfs = map_shared(tmpfs);
    int id = shmget(IPC_PRIVATE, SHARED, 0600);
    of_sysv = shmat(id, NULL, 0);
    if (of_sysv == (void *)-1) die("shmat");
    shmctl(id, IPC_RMID, NULL);
    fill(private, private_bytes, 1);
    fill(anonymous, SHARED, 2);
    fill(of_memfd, SHARED, 3);
    fill(of_sysv, SHARED, 4);
    fill(of_tmpfs, SHARED, 5);
}

/* A child whose body is `body`, or which just idles. */
static pid_t child_that(void (*body)(void)) {
    pid_t pid = begin_child(1);
    if (pid == 0) body();
    return pid;
}

static void execute(int signal) {
    (void)signal;
    execl(program, program, "idle", NULL);
    _exit(1);
}

int main(int words, char **word) {
    program = "/proc/self/exe";
    if (words > 1 && !strcmp(word[1], "nap")) {
        sleep_us(1000 * (getpid() % 8));
        return 0;
    }
    if (words > 1 && !strcmp(word[1], "idle")) {
        memset(map_anonymous(MIB), 5, MIB);
        for (;;) pause();
    }
    begin();
    root = getpid();
    private_bytes = (words > 1 ? (size_t)atol(word[1]) : 4) * MIB;
    signal(SIGUSR1, execute);
    make_memory();
    ready();
    for (;;) {
        char *line = next_line();
        char name[20];
        int number = 0;
        pid_t pid = 0;
        sscanf(line, "%19s %d", name, &number);
        if (!strcmp(name, "worker"))
            for (int i = 0; i < number; i++) {
                int before = atomic_load(&common->born);
                worker();
                while (atomic_load(&common->born) < before + 2) sleep_us(500);
            }
        if (!strcmp(name, "idle")) pid = child_that(idle);
        if (!strcmp(name, "threads")) pid = with_threads();
        if (!strcmp(name, "stopped")) {
            pid = child_that(idle);
            kill(pid, SIGSTOP);
            waitpid(pid, NULL, WUNTRACED);
        }
        if (!strcmp(name, "zombie"))
            for (int i = 0; i < number; i++) {
                pid = child_that(idle);
                kill(pid, SIGKILL);
                siginfo_t info;
                waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT);
            }
        if (!strcmp(name, "orphan")) pid = orphan();
        if (!strcmp(name, "subreaper")) prctl(PR_SET_CHILD_SUBREAPER, 1);
        if (!strcmp(name, "exec")) {
            kill(number, SIGUSR1);
            char path[40], where[600] = "";
            snprintf(path, sizeof path, "/proc/%d/cmdline", number);
            while (!strstr(where, "self/exe")) {
                int fd = open(path, O_RDONLY);
                if (fd < 0 || read(fd, where, sizeof where - 1) < 0) die("cmdline");
                close(fd);
            }
        }
        if (!strcmp(name, "end")) {
            kill(number, SIGKILL);
            waitpid(number, NULL, 0);
        }
        if (!strcmp(name, "middle")) pid = child_that(middle);
        if (!strcmp(name, "churn")) pid = child_that(churn);
        if (!strcmp(name, "spawn")) pid = child_that(spawn);
        if (!strcmp(name, "hold")) pid = child_that(hold);
        if (!strcmp(name, "march")) {
            pid = child_that(march);
            printf("%d %p %p\n", pid, (void *)count, (void *)&common->march);
            continue;
        }
        if (!strcmp(name, "rounds")) {
            printf("%lu\n", atomic_load(&common->rounds));
            continue;
        }
        printf("%d\n", pid);
    }
}
