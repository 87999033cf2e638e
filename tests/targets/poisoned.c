/* Private and shared memory of which a page each is poisoned (UFFDIO_POISON). In each step all other pages are counted up, and
 * the poisoned ones are touched, which must be a SIGBUS that says so. With the word `private` what would be shared is a
 * private mapping of the file; with `failed` the pages were there and their memory is declared broken (MADV_HWPOISON), which
 * costs the machine this memory until it starts again. */
#include "steps.h"
#include <linux/userfaultfd.h>
#include <setjmp.h>

#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1 << 14)
struct uffdio_poison {
    struct uffdio_range range;
    __u64 mode;
    __s64 updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, 0x08, struct uffdio_poison)
#endif

#define PAGES 8ul
#define POISONED 3ul

static sigjmp_buf back;
static volatile int code;

static void on_bus(int signal, siginfo_t *about, void *context) {
    (void)signal, (void)context;
    code = about->si_code;
    siglongjmp(back, 1);
}

static void must_be_poisoned(volatile uint64_t *word) {
    code = 0;
    if (sigsetjmp(back, 1) == 0) wrong("%llu instead of a SIGBUS", (unsigned long long)*word);
    /* The second where the kernel was built without CONFIG_MEMORY_FAILURE. */
    must(code == BUS_MCEERR_AR || code == BUS_ADRERR);
}

static void poison(unsigned char *memory, int by_failure) {
    if (by_failure) {
        memset(memory, 0, PAGES * PAGE);
        /* Who declares it is told like who touches it. */
        if (sigsetjmp(back, 1) == 0) must(madvise(memory + POISONED * PAGE, PAGE, MADV_HWPOISON) == 0);
        return;
    }
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | 1 /* UFFD_USER_MODE_ONLY */);
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_POISON};
    struct uffdio_register all = {{(uintptr_t)memory, PAGES * PAGE}, UFFDIO_REGISTER_MODE_MISSING, 0};
    struct uffdio_poison one = {{(uintptr_t)memory + POISONED * PAGE, PAGE}, 0, 0};
    must(fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0 && ioctl(fd, UFFDIO_REGISTER, &all) == 0);
    must(ioctl(fd, UFFDIO_POISON, &one) == 0 && close(fd) == 0);
}

int main(int count, char **words) {
    begin_steps(count, words);
    struct sigaction action = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO};
    must(sigaction(SIGBUS, &action, NULL) == 0);
    unsigned char *memory[2];
    int sharing = count > 3 && !strcmp(words[3], "private") ? MAP_PRIVATE : MAP_SHARED;
    int memfd = memfd_create("poisoned", MFD_CLOEXEC);
    must(memfd >= 0 && ftruncate(memfd, PAGES * PAGE) == 0);
    memory[0] = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memory[1] = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, sharing, memfd, 0);
    int by_failure = count > 3 && !strcmp(words[3], "failed");
    for (int i = 0; i < 2; i++) {
        must(memory[i] != MAP_FAILED);
        poison(memory[i], by_failure);
    }
    /* A restored object has no broken memory: only who maps it has the page poisoned again. */
    if (by_failure) close(memfd);
    printf("%lx %lx\n", (unsigned long)memory[0] + POISONED * PAGE, (unsigned long)memory[1] + POISONED * PAGE);
    fflush(stdout);
    for (uint64_t round = 1;; round++) {
        for (int i = 0; i < 2; i++)
            for (unsigned long page = 0; page < PAGES; page++) {
                uint64_t *word = (uint64_t *)(memory[i] + page * PAGE);
                if (page == POISONED) {
                    must_be_poisoned(word);
                    continue;
                }
                must(*word == round - 1);
                *word = round;
            }
        sleep_ms(5);
        step("counted");
    }
}
