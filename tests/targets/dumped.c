/* Memory of each kind that a core may hold or leave out. `where` is answered with a line: name=address of each, and `filter N`
 * sets the filter of cores. */
#include "common.h"
#include <sys/shm.h>

static void *map(int protection, int flags, int fd) {
    void *at = mmap(NULL, 2 * PAGE, protection, flags, fd, 0);
    if (at == MAP_FAILED) die("mmap");
    return at;
}

static int file(const char *name, int is_elf) {
    int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, 2 * PAGE)) die(name);
    if (pwrite(fd, is_elf ? "\177ELF" : "text", 4, 0) != 4) die("pwrite");
    if (fsync(fd) || futimens(fd, (struct timespec[2]){{1000, 0}, {1000, 0}})) die("fsync");
    int again = open(name, O_RDONLY | O_CLOEXEC);
    close(fd);
    return again;
}

int main(int argc, char **argv) {
    begin();
    if (argc != 2 || chdir(argv[1])) return 2;
    /* What lies beside it on both sides is not joined with it. */
    char *anonymous = map_anonymous(4 * PAGE);
    if (mprotect(anonymous, PAGE, PROT_NONE) || mprotect(anonymous + 3 * PAGE, PAGE, PROT_NONE)) die("mprotect");
    anonymous += PAGE;
    char *left_out = map(PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    char *shared = map(PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
    char *program = map(PROT_READ, MAP_PRIVATE, file("program", 1));
    char *text = map(PROT_READ, MAP_PRIVATE, file("text", 0));
    char *shared_file = map(PROT_READ, MAP_SHARED, file("shared", 0));
    char *copied = map(PROT_READ | PROT_WRITE, MAP_PRIVATE, file("copied", 0));
    int id = shmget(IPC_PRIVATE, 2 * PAGE, IPC_CREAT | 0600);
    char *segment = shmat(id, NULL, 0);
    if (segment == (char *)-1 || shmctl(id, IPC_RMID, NULL)) die("shmat");
    if (madvise(left_out, 2 * PAGE, MADV_DONTDUMP)) die("madvise");
    strcpy(anonymous, "anonymous");
    strcpy(left_out, "left out");
    strcpy(shared, "shared");
    strcpy(copied, "copied");
    strcpy(segment, "segment");
    ready();
    for (;;) {
        const char *line = next_line();
        if (!strncmp(line, "filter ", 7)) {
            int fd = open("/proc/self/coredump_filter", O_WRONLY | O_CLOEXEC);
            if (write(fd, line + 7, strlen(line + 7)) < 0) die("filter");
            close(fd);
            puts("done");
            continue;
        }
        printf("anonymous=%p left-out=%p shared=%p program=%p text=%p shared-file=%p copied=%p segment=%p\n", (void *)anonymous,
               (void *)left_out, (void *)shared, (void *)program, (void *)text, (void *)shared_file, (void *)copied, (void *)segment);
    }
}
