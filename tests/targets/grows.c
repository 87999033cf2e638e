/* A program whose memory grows, is mapped and never touched, or is looked at by itself. Commands: `reserve GIB` maps
 * memory, `store PAGE VALUE` and `drop PAGE COUNT` are about it; `reservation KIB` makes the beginning of a new
 * reservation accessible; `heap KIB`, `arena KIB` (mprotect), `stretch KIB` (mremap) and
 * `beside KIB` (mmap) make memory grow and fill what is new; `pieces COUNT` maps small pieces far from each other, `fill` fills them, and
 * `widen` maps and fills as much behind each;
 * `watch` opens its own pagemap, `unwatch` closes it, `round` writes pages and tells how many of them its own scan does not find;
 * `two` and `join` move what was mapped as two. */
#include "common.h"

#define WATCHED 100

struct page_region { uint64_t start, end, categories; };
struct pm_scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, all_of, any_of, returned;
};
#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#define WRITTEN 2
#define PRESENT 8

static char *map_at(char *at, size_t length, int protection) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at ? MAP_FIXED : 0);
    char *mapped = mmap(at, length, protection, flags, -1, 0);
    if (mapped == MAP_FAILED) die("mmap");
    return mapped;
}

/* Address space with nothing beside it. */
static char *alone(size_t length) {
    char *space = map_at(NULL, length, PROT_NONE);
    munmap(space, length);
    return space;
}

static int round_of(int pagemap, char *watched, int value) {
    for (int page = 0; page < WATCHED; page++) watched[page * PAGE + 16] = (char)value;
    puts("written");
    next_line();
    struct page_region found[WATCHED];
    struct pm_scan_arg scan = {
        .size = sizeof scan,
        .start = (uint64_t)watched,
        .end = (uint64_t)watched + WATCHED * PAGE,
        .vec = (uint64_t)found,
        .vec_len = WATCHED,
        .all_of = WRITTEN | PRESENT,
        .returned = WRITTEN,
    };
    long ranges = ioctl(pagemap, PAGEMAP_SCAN, &scan);
    if (ranges < 0) die("PAGEMAP_SCAN");
    for (long range = 0; range < ranges; range++)
        memset((void *)found[range].start, 0, found[range].end - found[range].start);
    int left = 0;
    for (int page = 0; page < WATCHED; page++) left += watched[page * PAGE + 16] != 0;
    memset(watched, 0, WATCHED * PAGE);
    return left;
}

int main(void) {
    begin();
    char *reserved = NULL, *arena = NULL, *stretched = NULL, *beside = NULL, *two = NULL;
    char *pieces = NULL;
    size_t arena_length = 0, stretched_length = 0, piece_count = 0;
    int pagemap = -1, value = 1;
    char *watched = map_anonymous(WATCHED * PAGE);
    ready();
    for (;; value = value % 100 + 1) {
        char *line = next_line();
        size_t a, b;
        const char *answer = "done";
        char text[64];
        if (sscanf(line, "reserve %zu", &a) == 1)
            reserved = map_at(NULL, a << 30, PROT_READ | PROT_WRITE);
        else if (sscanf(line, "store %zu %zu", &a, &b) == 2)
            memset(reserved + a * PAGE, (int)b, 100);
        else if (sscanf(line, "drop %zu %zu", &a, &b) == 2) {
            if (madvise(reserved + a * PAGE, b * PAGE, MADV_DONTNEED)) die("madvise");
        } else if (sscanf(line, "heap %zu", &a) == 1) {
            char *grown = sbrk((intptr_t)(a << 10));
            if (grown == (char *)-1) die("sbrk");
            memset(grown, value, a << 10);
        } else if (sscanf(line, "arena %zu", &a) == 1) {
            if (!arena) arena = map_at(NULL, 1024 * MIB, PROT_NONE);
            if (mprotect(arena + arena_length, a << 10, PROT_READ | PROT_WRITE)) die("mprotect");
            memset(arena + arena_length, value, a << 10);
            arena_length += a << 10;
        } else if (sscanf(line, "reservation %zu", &a) == 1) {
            /* As the C library makes the heap of a thread. */
            char *heap = map_at(NULL, 16 * MIB, PROT_NONE);
            if (mprotect(heap, a << 10, PROT_READ | PROT_WRITE)) die("mprotect");
            memset(heap, value, a << 10);
        } else if (sscanf(line, "stretch %zu", &a) == 1) {
            if (!stretched) stretched = map_at(alone(1024 * MIB), stretched_length = PAGE, PROT_READ | PROT_WRITE);
            size_t length = stretched_length + (a << 10);
            if (mremap(stretched, stretched_length, length, 0) != stretched) die("mremap");
            memset(stretched + stretched_length, value, a << 10);
            stretched_length = length;
        } else if (sscanf(line, "beside %zu", &a) == 1) {
            if (!beside) beside = alone(1024 * MIB) + 1024 * MIB;
            beside = map_at(beside - (a << 10), a << 10, PROT_READ | PROT_WRITE);
            memset(beside, value, a << 10);
        } else if (sscanf(line, "pieces %zu", &a) == 1) {
            pieces = alone(a * 4 * MIB) + MIB;
            piece_count = a;
            for (size_t piece = 0; piece < a; piece++)
                map_at(pieces + piece * 4 * MIB, 2 * PAGE, PROT_READ | PROT_WRITE);
        } else if (!strcmp(line, "fill")) {
            for (size_t piece = 0; piece < piece_count; piece++) memset(pieces + piece * 4 * MIB, value, 2 * PAGE);
        } else if (!strcmp(line, "widen")) {
            for (size_t piece = 0; piece < piece_count; piece++) {
                char *behind = pieces + piece * 4 * MIB + 2 * PAGE;
                memset(map_at(behind, 2 * PAGE, PROT_READ | PROT_WRITE), value, 2 * PAGE);
            }
        } else if (!strcmp(line, "watch")) {
            pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
            if (pagemap < 0) die("pagemap");
        } else if (!strcmp(line, "unwatch"))
            close(pagemap);
        else if (!strcmp(line, "round")) {
            snprintf(text, sizeof text, "%d", round_of(pagemap, watched, value));
            answer = text;
        } else if (!strcmp(line, "two")) {
            two = map_at(alone(64 * PAGE) + 16 * PAGE, 16 * PAGE, PROT_READ | PROT_WRITE);
            memset(two, 1, 16 * PAGE);
        } else if (!strcmp(line, "join")) {
            memset(map_at(two + 16 * PAGE, 16 * PAGE, PROT_READ | PROT_WRITE), 2, 16 * PAGE);
            char *moved = mremap(two, 32 * PAGE, 64 * PAGE, MREMAP_MAYMOVE);
            answer = moved == MAP_FAILED ? strerror(errno) : "done";
        } else
            die(line);
        puts(answer);
    }
}
