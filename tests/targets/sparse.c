/* Memory of which little was ever touched, of every kind that a read would allocate.
 *
 *   sparse KIND...
 *
 * Each kind is 64 MiB, of which the second and the last page are written. Says `KIND ADDRESS` for each, or `KIND - REASON` where this
 * machine has no such thing, and then "ready". Commands:
 *
 *   touch        one page more of each is written, in the middle, and the second one again
 *   resident     how many pages the memory of the guest has
 *   check        "right", if all pages hold what was written to them last; else which does not */
#include "common.h"
#include <linux/bpf.h>
#include <linux/kvm.h>
#include <linux/memfd.h>
#include <sys/ipc.h>
#include <sys/shm.h>

#define LENGTH (64 * MIB)
#define ARENA 33
#define ARENA_MMAPABLE (1u << 10)
#define SYS_CACHESTAT 451

/* Since Linux 6.8; that it can be mapped, since 6.18. Older headers do not have it. */
struct guest_memory {
    uint64_t size, flags, reserved[6];
};
#define CREATE_GUEST_MEMFD _IOWR(0xAE, 0xd4, struct guest_memory)
#define MAPPABLE_AND_SHARED 3

static struct kind {
    const char *name;
    unsigned char *at;
    unsigned char second, middle, last;
} kinds[16];
static int count, guest = -1;

static void *map(int fd, int protection, int flags) {
    void *at = mmap(NULL, LENGTH, protection, flags, fd, 0);
    return at == MAP_FAILED ? NULL : at;
}

static void *of_memory(unsigned flags, int how) {
    int fd = memfd_create("sparse", flags);
    return fd < 0 || ftruncate(fd, LENGTH) ? NULL : map(fd, PROT_READ | PROT_WRITE, how);
}

/* A private mapping of a file on tmpfs that is open for reading only. */
static void *of_tmpfs(void) {
    char name[64];
    snprintf(name, sizeof name, "/dev/shm/pagetide-sparse-%d", getpid());
    int fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0 || ftruncate(fd, LENGTH) || pwrite(fd, "\1", 1, PAGE) != 1 || pwrite(fd, "\3", 1, LENGTH - PAGE) != 1) return NULL;
    int reading = open(name, O_RDONLY);
    unlink(name);
    close(fd);
    return map(reading, PROT_READ, MAP_PRIVATE);
}

static void *of_system_v(void) {
    int id = shmget(IPC_PRIVATE, LENGTH, 0600 | IPC_CREAT);
    void *at = id < 0 ? (void *)-1 : shmat(id, NULL, 0);
    if (id >= 0) shmctl(id, IPC_RMID, NULL);
    return at == (void *)-1 ? NULL : at;
}

static void *of_guest(void) {
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), machine = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
    struct guest_memory wanted = {.size = LENGTH, .flags = MAPPABLE_AND_SHARED};
    if (machine < 0 || (guest = ioctl(machine, CREATE_GUEST_MEMFD, &wanted)) < 0) return NULL;
    return map(guest, PROT_READ | PROT_WRITE, MAP_SHARED);
}

static void *of_arena(void) {
    union bpf_attr wanted;
    memset(&wanted, 0, sizeof wanted);
    wanted.map_type = ARENA;
    wanted.max_entries = LENGTH / PAGE;
    wanted.map_flags = ARENA_MMAPABLE;
    int fd = (int)syscall(SYS_bpf, BPF_MAP_CREATE, &wanted, sizeof wanted);
    /* Its address must be told beforehand, and be the same for all. */
    void *at = fd < 0 ? MAP_FAILED : mmap((void *)0x7e0000000000, LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return at == MAP_FAILED ? NULL : at;
}

static void *make(const char *name) {
    int anonymous = MAP_ANONYMOUS, both = PROT_READ | PROT_WRITE;
    if (!strcmp(name, "memfd-shared")) return of_memory(0, MAP_SHARED);
    if (!strcmp(name, "memfd-private")) return of_memory(0, MAP_PRIVATE);
    if (!strcmp(name, "tmpfs-private")) return of_tmpfs();
    if (!strcmp(name, "anonymous-shared")) return map(-1, both, MAP_SHARED | anonymous);
    if (!strcmp(name, "anonymous-private")) return map(-1, both, MAP_PRIVATE | anonymous);
    if (!strcmp(name, "system-v")) return of_system_v();
    if (!strcmp(name, "guest")) return of_guest();
    if (!strcmp(name, "arena")) return of_arena();
    if (!strcmp(name, "huge-file-shared")) return of_memory(MFD_HUGETLB, MAP_SHARED);
    if (!strcmp(name, "huge-file-private")) return of_memory(MFD_HUGETLB, MAP_PRIVATE);
    if (!strcmp(name, "huge-shared")) return map(-1, both, MAP_SHARED | anonymous | MAP_HUGETLB);
    if (!strcmp(name, "huge-private")) return map(-1, both, MAP_PRIVATE | anonymous | MAP_HUGETLB);
    return NULL;
}

static int may_write(const struct kind *kind) { return strcmp(kind->name, "tmpfs-private") != 0; }

static void touch(void) {
    for (struct kind *kind = kinds; kind < kinds + count; kind++) {
        if (!may_write(kind)) continue;
        kind->at[PAGE] = kind->second = 7;
        kind->at[LENGTH / 2 + PAGE] = kind->middle = 8;
    }
}

static void check(void) {
    for (struct kind *kind = kinds; kind < kinds + count; kind++) {
        int right = kind->at[PAGE] == kind->second && kind->at[LENGTH / 2 + PAGE] == kind->middle && kind->at[LENGTH - PAGE] == kind->last;
        if (!right) {
            printf("%s is wrong\n", kind->name);
            return;
        }
    }
    puts("right");
}

static uint64_t resident(void) {
    uint64_t range[2] = {0, LENGTH}, statistics[5] = {0};
    if (guest < 0 || syscall(SYS_CACHESTAT, guest, range, statistics, 0)) return 0;
    return statistics[0];
}

int main(int words, char **word) {
    begin();
    for (int at = 1; at < words; at++) {
        errno = 0;
        unsigned char *memory = make(word[at]);
        if (!memory) {
            printf("%s - %s\n", word[at], strerror(errno));
            continue;
        }
        struct kind *kind = &kinds[count++];
        *kind = (struct kind){word[at], memory, 1, 0, 3};
        if (may_write(kind)) {
            memory[PAGE] = 1;
            memory[LENGTH - PAGE] = 3;
        }
        printf("%s %lx\n", word[at], (unsigned long)memory);
    }
    ready();
    for (;;) {
        const char *line = next_line();
        if (!strcmp(line, "touch")) touch(), puts("done");
        else if (!strcmp(line, "resident")) printf("%lu\n", (unsigned long)resident());
        else if (!strcmp(line, "check")) check();
        else puts("what?");
    }
}
