/* Arguments: a directory for files, a file to map privately. Shared memory of every kind, each object mapped
 * twice in full and once in part, with another process that changes it in every way that leaves no trace in
 * our page tables. Commands: `others N` lets it do N things; `copy` stores to the private mapping, `drop`
 * gives a copy back; `device NAME` opens a file that is named like a device. */
#include "common.h"
#include <sys/ipc.h>
#include <sys/shm.h>

#define PAGES 64ul
#define LENGTH (PAGES * PAGE)
#define OBJECTS 5

static unsigned char *objects[OBJECTS], *file_memory;
static int descriptors[OBJECTS] = {-1, -1, -1, -1, -1};

static int file_in(const char *directory, const char *name) {
    char path[600];
    snprintf(path, sizeof path, "%s/shared-%d-%s", directory, getpid(), name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) die(path);
    unlink(path);
    if (ftruncate(fd, LENGTH)) die("ftruncate");
    return fd;
}

static void *map(void *at, size_t length, int protection, int flags, int fd, off_t offset) {
    void *mapped = mmap(at, length, protection, flags, fd, offset);
    if (mapped == MAP_FAILED) die("mmap");
    return mapped;
}

/* One change to one object, by the process that is not checkpointed. */
static void change(uint64_t *state) {
    unsigned number = next_random(state) % OBJECTS;
    unsigned char *memory = objects[number];
    int fd = descriptors[number];
    uint64_t page = next_random(state) % PAGES, value = next_random(state);
    switch (next_random(state) % 6) {
    case 0:
    case 1:
        if (fd >= 0 && ftruncate(fd, LENGTH)) die("ftruncate");
        memcpy(memory + page * PAGE + value % 500 * 8, &value, 8);
        break;
    case 2:
        if (fd >= 0 && pwrite(fd, &value, 8, (off_t)(page * PAGE + value % 500 * 8)) != 8) die("pwrite");
        break;
    case 3:
        if (fd >= 0 && fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(page * PAGE), 3 * PAGE)) die("punch");
        break;
    case 4:
        if (fd >= 0 && ftruncate(fd, (off_t)(page * PAGE + value % PAGE))) die("ftruncate");
        break;
    case 5:
        if (fd < 0 && madvise(memory + page * PAGE, PAGE, MADV_REMOVE) && errno != EINVAL) die("MADV_REMOVE");
        break;
    }
}

static int to_other[2], from_other[2];

/* Ends with the target, when nobody can write to the pipe any more. */
static void other(void) {
    close(to_other[1]);
    uint64_t state = 7, count;
    while (read(to_other[0], &count, sizeof count) == sizeof count) {
        for (uint64_t i = 0; i < count; i++) change(&state);
        if (write(from_other[1], &count, sizeof count) != sizeof count) _exit(1);
    }
    _exit(0);
}

static const char *perform(const char *command) {
    if (!strncmp(command, "others ", 7)) {
        uint64_t count = strtoull(command + 7, NULL, 10);
        if (write(to_other[1], &count, sizeof count) != sizeof count) die("write");
        if (read(from_other[0], &count, sizeof count) != sizeof count) die("read");
    } else if (!strcmp(command, "copy")) {
        memset(file_memory + 5 * PAGE, 'c', 2 * PAGE);
    } else if (!strcmp(command, "drop")) {
        if (madvise(file_memory + 5 * PAGE, PAGE, MADV_DONTNEED)) die("madvise");
    } else if (!strncmp(command, "device ", 7)) {
        if (open(command + 7, O_RDONLY | O_CLOEXEC) < 0) return strerror(errno);
    } else {
        return "an unknown command";
    }
    return NULL;
}

int main(int count, char **words) {
    begin();
    if (count != 3) return 2;
    descriptors[0] = memfd_create("shared", MFD_CLOEXEC);
    if (ftruncate(descriptors[0], LENGTH)) die("ftruncate");
    descriptors[1] = file_in("/dev/shm", "tmpfs");
    descriptors[2] = file_in(words[1], "disk");
    int key = shmget(IPC_PRIVATE, LENGTH, 0600);
    if (key < 0) die("shmget");
    for (int i = 0; i < OBJECTS; i++) {
        if (i < 3) {
            objects[i] = map(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED, descriptors[i], 0);
            map(NULL, LENGTH, PROT_READ, MAP_SHARED, descriptors[i], 0);
            map(NULL, 7 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, descriptors[i], 40 * PAGE);
        } else if (i == 3) {
            objects[i] = map(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
            if (mremap(objects[i], 0, LENGTH, MREMAP_MAYMOVE) == MAP_FAILED) die("mremap");
        } else {
            objects[i] = shmat(key, NULL, 0);
            shmat(key, NULL, SHM_RDONLY);
        }
        /* The upper half is never allocated. */
        for (size_t at = 0; at < LENGTH / 2; at += 8) {
            uint64_t word = at * 2654435761u + (uint64_t)i;
            memcpy(objects[i] + at, &word, 8);
        }
    }
    shmctl(key, IPC_RMID, NULL);
    int fd = open(words[2], O_RDONLY | O_CLOEXEC);
    if (fd < 0) die(words[2]);
    file_memory = map(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (pipe(to_other) || pipe(from_other)) die("pipe");
    /* Not a child of ours: what is frozen waits for its children. */
    pid_t child = fork();
    if (child == 0) {
        if (fork() == 0) other();
        _exit(0);
    }
    waitpid(child, NULL, 0);
    ready();
    for (;;) {
        const char *problem = perform(next_line());
        if (!problem)
            puts("done");
        else
            printf("cannot: %s\n", problem);
    }
}
