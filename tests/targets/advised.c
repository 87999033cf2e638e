/* Argument: how many mappings of one page to have besides. `set` and `clear` give advice and a lock to a mapping, or take
 * them away; `toggle` does so all the time from then on; `drop` unmaps it, and `huge` gives it advice that nothing takes back. A word in memory says how it is: 1 set, 0 clear, 2 changing.
 * `where` is answered with the addresses of the mapping and of the word. */
#include "common.h"

#define ADVISED_PAGES 16ul

static unsigned char *advised;
static volatile uint64_t is_set;

static void change(int set) {
    is_set = 2;
    __sync_synchronize();
    if (madvise(advised, ADVISED_PAGES * PAGE, set ? 18 /* MADV_WIPEONFORK */ : 19 /* MADV_KEEPONFORK */)) die("madvise");
    if (set ? mlock(advised, ADVISED_PAGES * PAGE) : munlock(advised, ADVISED_PAGES * PAGE)) die("lock");
    __sync_synchronize();
    is_set = (uint64_t)set;
}

static void *toggle(void *unused) {
    for (int set = 1;; set = !set) {
        change(set);
        usleep(300);
    }
    return unused;
}

int main(int argc, char **argv) {
    begin();
    size_t others = argc > 1 ? (size_t)atol(argv[1]) : 0;
    advised = map_anonymous(ADVISED_PAGES * PAGE);
    memset(advised, 7, ADVISED_PAGES * PAGE);
    unsigned char *many = map_anonymous((2 * others + 1) * PAGE);
    for (size_t i = 0; i < others; i++)
        if (mprotect(many + (2 * i + 1) * PAGE, PAGE, PROT_READ)) die("mprotect");
    ready();
    for (;;) {
        const char *line = next_line();
        pthread_t thread;
        if (!strcmp(line, "where")) {
            printf("%lx %lx\n", (unsigned long)advised, (unsigned long)&is_set);
            continue;
        }
        if (!strcmp(line, "toggle")) {
            if (pthread_create(&thread, NULL, toggle, NULL)) die("pthread_create");
        } else if (!strcmp(line, "drop")) {
            if (munmap(advised, ADVISED_PAGES * PAGE)) die("munmap");
        } else if (!strcmp(line, "huge")) {
            if (madvise(advised, ADVISED_PAGES * PAGE, MADV_HUGEPAGE)) die("madvise");
        } else {
            change(!strcmp(line, "set"));
        }
        puts("done");
    }
}
