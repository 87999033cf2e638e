/* A file system with one file, `file`, that somebody serves: this program, through /dev/fuse (fuse(4)). Argument: where to mount
 * it. Commands: `silent` answers no request any more, `answer` does again, `vanish` takes the mount away while what is
 * open stays so. Ends, and with it all requests, when our input does. With `map` and a file, another program: it maps that. */
#include "common.h"
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/stat.h>

enum { FILE_INODE = 2, FILE_BYTES = 8192 };

static int device;

static void reply(uint64_t unique, int error, const void *data, size_t length) {
    char buffer[sizeof(struct fuse_out_header) + 65536];
    struct fuse_out_header head = {.len = sizeof head + length, .error = error, .unique = unique};
    memcpy(buffer, &head, sizeof head);
    if (length) memcpy(buffer + sizeof head, data, length);
    /* Whoever asked may have been killed. */
    if (write(device, buffer, head.len) < 0 && errno != ENOENT) die("answer");
}

static struct fuse_attr attributes(uint64_t inode) {
    int is_file = inode == FILE_INODE;
    struct fuse_attr found = {.ino = inode, .nlink = is_file ? 1 : 2, .blksize = 4096};
    found.mode = is_file ? S_IFREG | 0644 : S_IFDIR | 0755;
    found.size = is_file ? FILE_BYTES : 0;
    return found;
}

static void answer(const struct fuse_in_header *in, const void *body) {
    switch (in->opcode) {
    case FUSE_INIT: {
        struct fuse_init_out out = {.major = FUSE_KERNEL_VERSION, .minor = 31, .max_write = 65536};
        return reply(in->unique, 0, &out, sizeof out);
    }
    case FUSE_LOOKUP: {
        if (strcmp(body, "file")) return reply(in->unique, -ENOENT, NULL, 0);
        /* Nothing may be remembered: each look is a request. */
        struct fuse_entry_out out = {.nodeid = FILE_INODE, .attr = attributes(FILE_INODE)};
        return reply(in->unique, 0, &out, sizeof out);
    }
    case FUSE_GETATTR: {
        struct fuse_attr_out out = {.attr = attributes(in->nodeid)};
        return reply(in->unique, 0, &out, sizeof out);
    }
    case FUSE_OPEN:
    case FUSE_OPENDIR: {
        struct fuse_open_out out = {.fh = in->nodeid};
        return reply(in->unique, 0, &out, sizeof out);
    }
    case FUSE_READ: {
        const struct fuse_read_in *read = body;
        static char text[FILE_BYTES];
        memset(text, 'x', sizeof text);
        size_t from = read->offset < FILE_BYTES ? read->offset : FILE_BYTES;
        size_t length = FILE_BYTES - from < read->size ? FILE_BYTES - from : read->size;
        return reply(in->unique, 0, text, length);
    }
    case FUSE_STATFS: {
        struct fuse_statfs_out out = {.st = {.bsize = 4096, .namelen = 255}};
        return reply(in->unique, 0, &out, sizeof out);
    }
    case FUSE_FLUSH:
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
    case FUSE_READDIR:
    case FUSE_ACCESS:
        return reply(in->unique, 0, NULL, 0);
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:
        return;
    default:
        return reply(in->unique, -ENOSYS, NULL, 0);
    }
}

static void map(const char *path) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    volatile char *at = file < 0 ? MAP_FAILED : mmap(NULL, FILE_BYTES, PROT_READ, MAP_PRIVATE, file, 0);
    if (at == MAP_FAILED) die(path);
    close(file);
    if (*at != 'x') die("read the mapping");
    ready();
    for (;;) next_line();
}

int main(int count, char **words) {
    begin();
    if (count < 2) return 2;
    if (count > 2) map(words[2]);
    device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (device < 0) die("/dev/fuse");
    char options[128];
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device);
    if (mount("silent", words[1], "fuse.silent", MS_NOSUID | MS_NODEV, options)) die("mount");
    static char request[1 << 20];
    int serves = 1, is_ready = 0;
    for (;;) {
        struct pollfd both[2] = {{.fd = 0, .events = POLLIN}, {.fd = serves ? device : -1, .events = POLLIN}};
        if (poll(both, 2, -1) < 0) die("poll");
        if (both[1].revents & POLLIN) {
            ssize_t length = read(device, request, sizeof request);
            if (length > 0)
                answer((void *)request, request + sizeof(struct fuse_in_header));
            else if (errno != EINTR && errno != ENOENT && errno != EAGAIN)
                break;
            if (!is_ready) {
                is_ready = 1;
                ready();
            }
        }
        if (!both[0].revents) continue;
        char line[64];
        ssize_t length = read(0, line, sizeof line - 1);
        if (length <= 0) break;
        line[length] = 0;
        if (!strncmp(line, "silent", 6)) serves = 0;
        else if (!strncmp(line, "answer", 6)) serves = 1;
        else if (!strncmp(line, "vanish", 6) && umount2(words[1], MNT_DETACH)) die("umount2");
        puts("done");
    }
    umount2(words[1], MNT_DETACH);
}
