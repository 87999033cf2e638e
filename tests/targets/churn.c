/* Arguments: SEED DIRECTORY. Changes its memory in every way there is, for ever and by itself: threads
 * that write, and one that maps, unmaps, moves, grows, protects, advises, forks, truncates and punches.
 * What is done follows from the seed; how the threads interleave does not.
 *
 * Answers `count` with the number of operations that were done. */
#include "common.h"
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>

#ifndef MADV_COLD
#define MADV_COLD 20
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

enum kind { EMPTY, ANON, HUGE, SHARED_ANON, MEMFD, MEMFD_PRIVATE, SYSV, TMPFS, FILE_PRIVATE, FILE_SHARED, KINDS };
enum state { WRITABLE, READ_ONLY, NO_ACCESS, GUARD };

#define SLOTS 26
#define MOST_PAGES 1024

struct slot {
    enum kind kind;
    char *at;
    size_t pages;
    size_t valid; /* pages within the file */
    int fd;
    int not_in_children;
    unsigned char state[MOST_PAGES];
};

static struct slot slots[SLOTS];
static uint64_t seed;
static const char *directory;
static unsigned serial;
static atomic_ulong operations;
static char *brk_start, *brk_end;
static volatile char *signal_page;

static uint64_t dice(uint64_t sides) { return next_random(&seed) % sides; }

static int is_anonymous(const struct slot *s) { return s->kind == ANON || s->kind == HUGE; }
static int is_shmem(const struct slot *s) {
    return s->kind == SHARED_ANON || s->kind == MEMFD || s->kind == SYSV || s->kind == TMPFS;
}
static int is_file(const struct slot *s) {
    return s->kind == MEMFD || s->kind == MEMFD_PRIVATE || s->kind == TMPFS || s->kind == FILE_PRIVATE || s->kind == FILE_SHARED;
}
static int is_private(const struct slot *s) {
    return is_anonymous(s) || s->kind == MEMFD_PRIVATE || s->kind == FILE_PRIVATE;
}

static void fill(char *at, size_t length, uint64_t value) {
    for (size_t offset = 0; offset + 8 <= length; offset += 8) {
        uint64_t word = next_random(&value);
        memcpy(at + offset, &word, 8);
    }
}

static void write_some(struct slot *s) {
    size_t count = 1 + dice(dice(4) ? 6 : s->pages);
    for (size_t i = 0; i < count; i++) {
        size_t page = dice(s->pages);
        if (s->state[page] != WRITABLE || page >= s->valid) continue;
        char *at = s->at + page * PAGE;
        switch (dice(4)) {
        case 0: fill(at, PAGE, dice(UINT64_MAX)); break;
        case 1: memset(at, 0, PAGE); break;
        case 2: at[dice(PAGE)] ^= 1; break;
        case 3: memset(at, (int)dice(256), 1 + dice(PAGE)); break;
        }
    }
}

static int new_file(const char *where, size_t length) {
    char path[512];
    snprintf(path, sizeof path, "%s/churn-%d-%u", where, getpid(), serial++);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) die(path);
    unlink(path);
    if (ftruncate(fd, (off_t)length)) die("ftruncate");
    static char buffer[PAGE];
    for (size_t at = 0; at < length; at += PAGE)
        if (dice(3)) {
            fill(buffer, PAGE, dice(UINT64_MAX));
            if (pwrite(fd, buffer, PAGE, (off_t)at) != (ssize_t)PAGE) die("pwrite");
        }
    return fd;
}

static void drop(struct slot *s) {
    if (s->kind == EMPTY) return;
    munmap(s->at, s->pages * PAGE);
    if (s->fd >= 0) close(s->fd);
    s->kind = EMPTY;
}

static void create(struct slot *s) {
    s->kind = 1 + (enum kind)dice(KINDS - 1);
    s->pages = s->kind == HUGE ? 1024 : 1 + dice(150);
    s->valid = s->pages;
    s->fd = -1;
    s->not_in_children = 0;
    memset(s->state, WRITABLE, sizeof s->state);
    size_t length = s->pages * PAGE;
    int protection = PROT_READ | PROT_WRITE, flags = MAP_SHARED;
    switch (s->kind) {
    case ANON: flags = MAP_PRIVATE | MAP_ANONYMOUS | (dice(4) ? 0 : MAP_NORESERVE); break;
    case HUGE: flags = MAP_PRIVATE | MAP_ANONYMOUS; break;
    case SHARED_ANON: flags = MAP_SHARED | MAP_ANONYMOUS; break;
    case MEMFD_PRIVATE: flags = MAP_PRIVATE; /* fall through */
    case MEMFD:
        s->fd = memfd_create("churn", MFD_CLOEXEC);
        if (ftruncate(s->fd, (off_t)length)) die("ftruncate a memfd");
        break;
    case SYSV: {
        int id = shmget(IPC_PRIVATE, length, IPC_CREAT | 0600);
        if (id < 0) die("shmget");
        s->at = shmat(id, NULL, 0);
        shmctl(id, IPC_RMID, NULL);
        if (s->at == (void *)-1) die("shmat");
        write_some(s);
        return;
    }
    case TMPFS: s->fd = new_file("/dev/shm", length); break;
    case FILE_PRIVATE: flags = MAP_PRIVATE; /* fall through */
    case FILE_SHARED: s->fd = new_file(directory, length); break;
    default: break;
    }
    s->at = mmap(NULL, length, protection, flags, s->fd, 0);
    if (s->at == MAP_FAILED) die("mmap");
    if (s->kind == HUGE) madvise(s->at, length, MADV_HUGEPAGE);
    write_some(s);
}

/* A random part of the slot. */
static void part(struct slot *s, size_t *first, size_t *count) {
    *first = dice(s->pages);
    *count = 1 + dice(s->pages - *first);
}

static void protect(struct slot *s) {
    size_t first, count;
    part(s, &first, &count);
    enum state state = dice(2) ? WRITABLE : 1 + (enum state)dice(2);
    int protection = state == WRITABLE ? PROT_READ | PROT_WRITE : state == READ_ONLY ? PROT_READ : PROT_NONE;
    if (mprotect(s->at + first * PAGE, count * PAGE, protection)) return;
    for (size_t page = first; page < first + count; page++)
        if (s->state[page] != GUARD) s->state[page] = state;
}

static void all_writable(struct slot *s) {
    madvise(s->at, s->pages * PAGE, MADV_GUARD_REMOVE);
    if (mprotect(s->at, s->pages * PAGE, PROT_READ | PROT_WRITE)) die("mprotect");
    memset(s->state, WRITABLE, sizeof s->state);
}

static void advise(struct slot *s) {
    static const int any[] = {MADV_DONTNEED, MADV_DONTNEED, MADV_WILLNEED, MADV_COLD, MADV_PAGEOUT,
                              MADV_POPULATE_READ, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_COLLAPSE,
                              MADV_DONTDUMP, MADV_DODUMP, MADV_SEQUENTIAL, MADV_NORMAL};
    static const int anonymous[] = {MADV_FREE, MADV_FREE, MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_POPULATE_WRITE,
                                    MADV_WIPEONFORK, MADV_KEEPONFORK};
    size_t first, count;
    part(s, &first, &count);
    int advice = is_anonymous(s) && dice(2) ? anonymous[dice(sizeof anonymous / sizeof *anonymous)]
                                            : any[dice(sizeof any / sizeof *any)];
    if (is_shmem(s) && !dice(3)) advice = MADV_REMOVE;
    madvise(s->at + first * PAGE, count * PAGE, advice);
}

/* Guard pages last until the slot is made writable again as a whole. */
static void guard(struct slot *s) {
    size_t first, count;
    part(s, &first, &count);
    if (s->kind != ANON || madvise(s->at + first * PAGE, count * PAGE, MADV_GUARD_INSTALL)) return;
    memset(s->state + first, GUARD, count);
}

static void over_the_same_address(struct slot *s) {
    if (!is_private(s)) return;
    void *at = mmap(s->at, s->pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (at != s->at) die("mmap over");
    if (s->fd >= 0) close(s->fd);
    s->fd = -1;
    s->kind = ANON;
    s->valid = s->pages;
    s->not_in_children = 0;
    memset(s->state, WRITABLE, sizeof s->state);
    if (dice(2)) write_some(s);
}

/* munmap, then mmap at the same address: maps looks as before. */
static void unmap_and_map_again(struct slot *s) {
    if (s->kind != ANON) return;
    munmap(s->at, s->pages * PAGE);
    void *at = mmap(s->at, s->pages * PAGE, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (at != s->at) { /* a thread's stack or the like came between */
        s->kind = EMPTY;
        return;
    }
    s->not_in_children = 0;
    memset(s->state, WRITABLE, sizeof s->state);
    if (dice(2)) write_some(s);
}

static void move(struct slot *s) {
    if (s->kind == SYSV) return;
    size_t length = s->pages * PAGE;
    all_writable(s);
    size_t wanted = length;
    if (dice(2) && s->kind == ANON && s->pages * 2 <= 300) wanted = length * 2;
    void *at;
    if (wanted == length && dice(2)) {
        void *room = mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        at = mremap(s->at, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, room);
        if (at == MAP_FAILED) {
            /* A kernel that moves several mappings one by one may have stopped half way. */
            munmap(room, length);
            drop(s);
            return;
        }
    } else {
        at = mremap(s->at, length, wanted, MREMAP_MAYMOVE);
    }
    if (at == MAP_FAILED) return; /* it consists of several mappings: advice or protection differ */
    s->at = at;
    s->pages = wanted / PAGE;
    if (!is_file(s)) s->valid = s->pages;
    write_some(s);
}

static void leave_the_old_place(struct slot *s) {
    if (s->kind != ANON) return;
    size_t length = s->pages * PAGE;
    all_writable(s);
    void *at = mremap(s->at, length, length, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
    if (at == MAP_FAILED) return;
    if (dice(2)) {
        fill(s->at + dice(s->pages) * PAGE, 64, dice(UINT64_MAX));
        madvise(at, length, MADV_COLD);
    }
    munmap(dice(2) ? s->at : at, length);
    /* Whichever is left cannot be told apart from here; look. */
    s->at = msync(s->at, PAGE, MS_ASYNC) == 0 ? s->at : at;
}

static void shrink(struct slot *s) {
    if (s->pages < 4 || s->kind == SYSV) return;
    size_t keep = s->pages / 2;
    munmap(s->at + keep * PAGE, (s->pages - keep) * PAGE);
    s->pages = keep;
    if (s->valid > keep) s->valid = keep;
}

static void kernel_writes(struct slot *s) {
    size_t page = dice(s->pages);
    if (s->state[page] != WRITABLE || page >= s->valid) return;
    char *at = s->at + page * PAGE;
    static int random = -1;
    if (random < 0) random = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    switch (dice(3)) {
    case 0:
        if (read(random, at, 1 + dice(PAGE)) < 0) die("read");
        break;
    case 1:
        if (syscall(SYS_getrandom, at, 100, 0) < 0) die("getrandom");
        break;
    case 2: {
        char bytes[64];
        fill(bytes, sizeof bytes, dice(UINT64_MAX));
        struct iovec from = {bytes, sizeof bytes}, to = {at + 128, sizeof bytes};
        if (process_vm_writev(getpid(), &from, 1, &to, 1, 0) < 0) die("process_vm_writev");
        break;
    }
    }
}

/* The file behind a mapping changes by system calls. */
static void change_file(struct slot *s, uint64_t *random) {
    if (!is_file(s) || s->fd < 0) return;
    size_t page = next_random(random) % s->pages;
    char bytes[PAGE];
    fill(bytes, PAGE, next_random(random));
    if (page < s->valid && pwrite(s->fd, bytes, 1 + next_random(random) % PAGE, (off_t)(page * PAGE)) < 0) die("pwrite");
}

static void truncate_or_punch(struct slot *s) {
    if (!is_file(s) || s->fd < 0) return;
    size_t first, count;
    part(s, &first, &count);
    switch (dice(3)) {
    case 0:
        fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(first * PAGE), (off_t)(count * PAGE));
        break;
    case 1:
        if (ftruncate(s->fd, (off_t)(first * PAGE + dice(PAGE)))) die("ftruncate");
        s->valid = first;
        break;
    case 2:
        if (ftruncate(s->fd, (off_t)(s->pages * PAGE))) die("ftruncate");
        s->valid = s->pages;
        break;
    }
}

static void change_brk(void) {
    if (sbrk(0) != brk_end) return; /* malloc has used it */
    if (dice(2) && brk_end - brk_start < 64 * (long)PAGE) {
        size_t grow = (1 + dice(16)) * PAGE;
        if (sbrk((intptr_t)grow) == (void *)-1) return;
        brk_end += grow;
    } else {
        long most = brk_end - brk_start;
        long less = most ? (long)dice((uint64_t)most / PAGE + 1) * (long)PAGE : 0;
        sbrk(-less);
        brk_end -= less;
    }
    if (brk_end > brk_start) fill(brk_start + (dice((uint64_t)(brk_end - brk_start) / PAGE)) * PAGE, PAGE, dice(UINT64_MAX));
}

static __attribute__((noinline)) int descend(int depth, uint64_t value) {
    volatile char here[3000];
    for (size_t at = 0; at < sizeof here; at += 512) here[at] = (char)(value + at);
    return depth ? descend(depth - 1, value + 1) + here[512] : here[0];
}

static int children;

static void fork_one(void) {
    while (children > 0 && waitpid(-1, NULL, WNOHANG) > 0) children--;
    if (children >= 2) return;
    uint64_t random = dice(UINT64_MAX);
    pid_t child = fork();
    if (child < 0) return;
    if (child) {
        children++;
        return;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int i = 0; i < 12; i++) {
        struct slot *s = &slots[next_random(&random) % SLOTS];
        if (s->kind == EMPTY || s->not_in_children) continue;
        size_t page = next_random(&random) % s->pages;
        if (next_random(&random) % 3 == 0)
            change_file(s, &random);
        else if (s->state[page] == WRITABLE && page < s->valid)
            fill(s->at + page * PAGE, PAGE, random);
    }
    _exit(0);
}

static void dont_fork(struct slot *s) {
    if (!is_anonymous(s)) return;
    s->not_in_children = !s->not_in_children;
    madvise(s->at, s->pages * PAGE, s->not_in_children ? MADV_DONTFORK : MADV_DOFORK);
}

static void operate(void) {
    struct slot *s = &slots[dice(SLOTS)];
    switch (dice(40)) {
    case 0: fork_one(); return;
    case 1: change_brk(); return;
    case 2: if (!dice(4)) descend(1 + (int)dice(120), dice(UINT64_MAX)); return;
    default: break;
    }
    if (s->kind == EMPTY) {
        create(s);
        return;
    }
    switch (dice(30)) {
    case 0: drop(s); break;
    case 1: over_the_same_address(s); break;
    case 2: unmap_and_map_again(s); break;
    case 3: move(s); break;
    case 4: leave_the_old_place(s); break;
    case 5: shrink(s); break;
    case 6: case 7: protect(s); break;
    case 8: all_writable(s); break;
    case 9: case 10: case 11: case 12: advise(s); break;
    case 13: guard(s); break;
    case 14: case 15: kernel_writes(s); break;
    case 16: case 17: change_file(s, &seed); break;
    case 18: truncate_or_punch(s); break;
    case 19: dont_fork(s); break;
    default: write_some(s); break;
    }
}

static void on_alarm(int number) {
    (void)number;
    static unsigned count;
    count++;
    memcpy((char *)signal_page + (count % 1000) * 4, &count, 4);
}

static void *writer(void *argument) {
    uint64_t random = (uint64_t)(uintptr_t)argument * 0x9e3779b97f4a7c15ull;
    size_t length = MIB;
    char *memory = map_anonymous(length);
    volatile char deep[20000];
    for (;;) {
        for (int i = 0; i < 20; i++) {
            uint64_t value = next_random(&random);
            memcpy(memory + value % (length - 8), &value, 8);
        }
        deep[next_random(&random) % sizeof deep] ^= 1;
        if (next_random(&random) % 500 == 0) madvise(memory + (random % 128) * PAGE, 64 * PAGE, MADV_DONTNEED);
        struct timespec pause = {0, 200000};
        nanosleep(&pause, NULL);
    }
    return NULL;
}

static void *answer(void *argument) {
    (void)argument;
    for (;;) {
        next_line();
        printf("%lu\n", atomic_load(&operations));
    }
    return NULL;
}

/* In the first thread, whose stack grows. */
static void churn(void) {
    brk_start = brk_end = sbrk(0);
    for (int i = 0; i < SLOTS; i++) create(&slots[i]);
    ready();
    for (;;) {
        operate();
        atomic_fetch_add(&operations, 1);
        struct timespec pause = {0, 150000};
        if (!dice(4)) nanosleep(&pause, NULL);
    }
}

static void thread(void *(*body)(void *), uintptr_t number) {
    pthread_t id;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 2 * MIB);
    if (pthread_create(&id, &attributes, body, (void *)number)) die("pthread_create");
}

int main(int count, char **words) {
    begin();
    if (count != 3) return 2;
    seed = strtoull(words[1], NULL, 0);
    directory = words[2];
    signal_page = map_anonymous(PAGE);
    signal(SIGPIPE, SIG_IGN);
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval timer = {{0, 5000}, {0, 5000}};
    setitimer(ITIMER_REAL, &timer, NULL);
    for (uintptr_t i = 1; i <= 3; i++) thread(writer, i);
    thread(answer, 0);
    churn();
}
