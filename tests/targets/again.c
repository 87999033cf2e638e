/* Files that are opened again by other ways than their descriptors, by the third word: "owner", a pipe, by somebody who is not root;
 * "memfd", files of memory that could be executed; "names", mapped files whose first name is gone and that have another, or are called
 * " (deleted)"; "threads", files of /proc of this process and its threads; "high", descriptors of the highest numbers. In each step
 * all of it is as it was. */
#include "steps.h"
#include <grp.h>
#include <sys/resource.h>

#define NOBODY 65534

static char *place;

static const char *path_of(int file) {
    static char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    return path;
}

static void owner(void) {
    static int ends[2] = {-1, -1};
    static struct stat was;
    if (ends[0] < 0) {
        must(fchown(steps_log, NOBODY, NOBODY) == 0 && chmod(place, 0755) == 0);
        must(setgroups(0, NULL) == 0 && setresgid(NOBODY, NOBODY, NOBODY) == 0);
        must(setresuid(NOBODY, NOBODY, NOBODY) == 0 && prctl(PR_SET_DUMPABLE, 1) == 0);
        must(pipe(ends) == 0 && fchmod(ends[0], 0640) == 0 && fstat(ends[0], &was) == 0);
        must(was.st_uid == NOBODY);
    }
    for (int i = 0; i < 2; i++) {
        int again = open(path_of(ends[i]), (i ? O_WRONLY : O_RDONLY) | O_NONBLOCK | O_CLOEXEC);
        struct stat is;
        must(again >= 0 && fstat(again, &is) == 0);
        must(is.st_uid == was.st_uid && is.st_gid == was.st_gid && is.st_mode == was.st_mode);
        close(again);
    }
}

/* A read lease is given where nobody may write, and only then is a program executed. */
static void can_be_executed(int file) {
    int again = open(path_of(file), O_RDONLY | O_CLOEXEC);
    must(again >= 0);
    must(fcntl(again, F_SETLEASE, F_RDLCK) == 0);
    must(fcntl(again, F_SETLEASE, F_UNLCK) == 0);
    close(again);
}

static void memfd(void) {
    static int plain = -1, sealed = -1;
    if (plain < 0) {
        plain = memfd_create("plain", MFD_CLOEXEC);
        sealed = memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        must(write(plain, "program", 7) == 7 && write(sealed, "program", 7) == 7);
        must(fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
        must(lseek(plain, 3, SEEK_SET) == 3);
    }
    can_be_executed(plain);
    can_be_executed(sealed);
    must(lseek(plain, 0, SEEK_CUR) == 3);
}

static uint64_t *mapped(const char *name) {
    int file = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    must(file >= 0 && ftruncate(file, 2 * PAGE) == 0);
    uint64_t *at = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    must(at != MAP_FAILED);
    close(file);
    return at;
}

static void counts(uint64_t *at, const char *name) {
    uint64_t now = ++*at, found = 0;
    int file = open(name, O_RDONLY | O_CLOEXEC);
    must(file >= 0 && pread(file, &found, sizeof found, 0) == sizeof found);
    must(found == now);
    close(file);
}

static void names(void) {
    static uint64_t *other, *literal;
    if (!other) {
        must(chdir(place) == 0);
        other = mapped("first");
        must(link("first", "second") == 0 && unlink("first") == 0);
        literal = mapped("it (deleted)");
    }
    counts(other, "second");
    counts(literal, "it (deleted)");
}

static _Atomic int other_thread;

static void *waits(void *nothing) {
    prctl(PR_SET_NAME, "waits");
    other_thread = gettid();
    for (;;) pause();
    return nothing;
}

static void threads(void) {
    static int of_other = -1, of_first, of_own, own_maps;
    if (of_other < 0) {
        start_thread(waits, NULL);
        wait_until(other_thread);
        char path[64];
        snprintf(path, sizeof path, "/proc/self/task/%d/comm", other_thread);
        of_other = open(path, O_RDWR | O_CLOEXEC);
        snprintf(path, sizeof path, "/proc/self/task/%d/comm", getpid());
        of_first = open(path, O_RDWR | O_CLOEXEC);
        of_own = open("/proc/thread-self/comm", O_RDONLY | O_CLOEXEC);
        own_maps = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
        must(of_other >= 0 && of_first >= 0 && of_own >= 0 && own_maps >= 0);
    }
    char text[64] = {0};
    must(pread(of_other, text, 6, 0) == 6 && !memcmp(text, "waits\n", 6));
    must(pread(of_first, text, 6, 0) == 6 && !memcmp(text, "again\n", 6));
    must(pread(of_own, text, 6, 0) == 6 && !memcmp(text, "again\n", 6));
    must(pread(own_maps, text, 10, 0) == 10);
}

/* The two highest that it may have: one of a file, and one of a file of /proc. */
static void high(void) {
    static int most;
    if (!most) {
        struct rlimit limit;
        must(getrlimit(RLIMIT_NOFILE, &limit) == 0);
        limit.rlim_cur = limit.rlim_max;
        must(setrlimit(RLIMIT_NOFILE, &limit) == 0);
        most = (int)limit.rlim_max;
        int file = open("/dev/zero", O_RDONLY | O_CLOEXEC), own = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
        must(dup3(file, most - 1, O_CLOEXEC) == most - 1 && dup3(own, most - 2, 0) == most - 2);
        close(file);
        close(own);
    }
    char text[8] = "full";
    must(read(most - 1, text, 4) == 4 && !memcmp(text, "\0\0\0\0", 4));
    must(pread(most - 2, text, 4, 0) == 4);
    must(fcntl(most - 1, F_GETFD) == FD_CLOEXEC && fcntl(most - 2, F_GETFD) == 0);
}

int main(int count, char **words) {
    begin_steps(count, words);
    must(count == 4);
    place = words[2];
    prctl(PR_SET_NAME, "again");
    const char *what = words[3];
    void (*look)(void) = !strcmp(what, "owner") ? owner : !strcmp(what, "memfd") ? memfd
                       : !strcmp(what, "names") ? names : !strcmp(what, "high") ? high : threads;
    for (;;) {
        look();
        sleep_ms(5);
        step("as it was");
    }
}
