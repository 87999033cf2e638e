/* A program of any user that has one of each kind of file open or mapped in a directory, and stands in it. Words: log, directory,
 * and files to map. In the directory it makes `lines` (appended to), `data` (read), `mapped` (private), `both` (shared), `socket`
 * (listening) and `pipe` (a FIFO), and it has the directory itself open. */
#include "steps.h"
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static char shown[8][4096];

static const char *inside(const char *directory, const char *name, int number) {
    must(snprintf(shown[number], sizeof shown[number], "%s/%s", directory, name) < (int)sizeof shown[number]);
    return shown[number];
}

static void make(const char *path, size_t bytes) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    char content[PAGE];
    memset(content, 'o', sizeof content);
    must(fd >= 0 && write(fd, content, bytes) == (ssize_t)bytes && close(fd) == 0);
}

/* KEYCTL_SEARCH of the session keyring. Whoever restores may have a key of this name, and it is not ours. */
static int has_key(void) {
    return syscall(SYS_keyctl, 10, -3, "user", "pagetide-test", 0) >= 0;
}

int main(int count, char **words) {
    must(close_range(3, ~0u, 0) == 0);
    begin_steps(count, words);
    must(count >= 3);
    const char *at = words[2];
    const char *lines = inside(at, "lines", 0), *data = inside(at, "data", 1), *mapped = inside(at, "mapped", 2);
    const char *both = inside(at, "both", 3), *name = inside(at, "socket", 4), *fifo = inside(at, "pipe", 5);
    make(lines, 10), make(data, 100), make(mapped, PAGE), make(both, PAGE);
    must(mkfifo(fifo, 0600) == 0 && chdir(at) == 0);

    int appended = open(lines, O_WRONLY | O_APPEND), read_from = open(data, O_RDONLY);
    int directory = open(at, O_RDONLY | O_DIRECTORY), pipe = open(fifo, O_RDWR);
    must(appended >= 0 && read_from >= 0 && directory >= 0 && pipe >= 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    must(strlen(name) < sizeof address.sun_path);
    strcpy(address.sun_path, name);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    must(listener >= 0 && bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 4) == 0);
    for (int word = 3; word < count; word++) {
        int fd = open(words[word], O_RDONLY | O_CLOEXEC);
        must(fd >= 0 && mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0) != MAP_FAILED && close(fd) == 0);
    }
    int fd = open(mapped, O_RDONLY | O_CLOEXEC);
    char *private = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    must(fd >= 0 && private != MAP_FAILED && close(fd) == 0);
    fd = open(both, O_RDWR | O_CLOEXEC);
    char *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    must(fd >= 0 && shared != MAP_FAILED && close(fd) == 0);
    private[7] = 'p';
    for (;;) {
        must(private[7] == 'p' && private[8] == 'o' && shared[8] == 'o' && !has_key());
        step("on");
        sleep_ms(5);
    }
}
