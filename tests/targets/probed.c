/* A program that a tracing tool puts probes into, or that has breakpoints of its own. It calls its functions again and again
 * and writes to its log how often, as long as all is as it should be. Words: a log, a directory, and what it is to be:
 * `plain`, `own` (it catches SIGTRAP, and one of its functions traps) or `stored` (it has made one of its functions useless,
 * by stores). In the file `offsets` it says where its functions are in its file. */
#include "common.h"

#define CODE(name, text)                                            \
    __attribute__((naked, noinline, aligned(64))) int name(int n) { \
        (void)n;                                                    \
        __asm__ volatile(text "\n lea 1(%rdi), %eax\n ret");        \
    }

/* What a probe does instead of the first instruction: it is followed by the kernel, copied, replaced by a call (6.18). */
CODE(emulated, "push %rbp\n pop %rbp")
CODE(copied, "mov %rdi, %rcx")
CODE(replaced, ".byte 0x0f, 0x1f, 0x44, 0x00, 0x00")
CODE(trapping, "nop")
/* Of a page of its own. */
__attribute__((naked, noinline, aligned(4096))) int useless(int n) {
    (void)n;
    __asm__ volatile("nop\n lea 1(%rdi), %eax\n ret\n .fill 4000, 1, 0x90");
}

static volatile int traps;

static void trapped(int signal) {
    (void)signal;
    traps++;
}

static long offset_of(void *function) {
    FILE *maps = fopen("/proc/self/maps", "r");
    unsigned long start, end, offset, at = (unsigned long)function;
    char line[4096];
    while (maps && fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx %*s %lx", &start, &end, &offset) == 3 && start <= at && at < end) {
            fclose(maps);
            return (long)(at - start + offset);
        }
    die("maps");
    return 0;
}

static void write_by_proc(void *at, unsigned char byte) {
    int memory = open("/proc/self/mem", O_RDWR);
    if (memory < 0 || pwrite(memory, &byte, 1, (off_t)(unsigned long)at) != 1) die("/proc/self/mem");
    close(memory);
}

static void store(void *at, unsigned char byte) {
    if (mprotect(at, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC)) die("mprotect");
    *(volatile unsigned char *)at = byte;
    if (mprotect(at, PAGE, PROT_READ | PROT_EXEC)) die("mprotect");
}

int main(int count, char **words) {
    begin();
    if (count < 4) return 95;
    int log = open(words[1], O_WRONLY | O_CREAT | O_APPEND, 0600);
    int own = !strcmp(words[3], "own"), stored = !strcmp(words[3], "stored");
    if (log < 0) die(words[1]);
    char path[4096];
    snprintf(path, sizeof path, "%s/offsets", words[2]);
    FILE *offsets = fopen(path, "w");
    if (!offsets) die(path);
    fprintf(offsets, "%ld %ld %ld", offset_of(emulated), offset_of(copied), offset_of(replaced));
    fclose(offsets);
    signal(SIGTRAP, own ? trapped : SIG_DFL);
    if (own) write_by_proc(trapping, 0xcc);
    if (stored) store(useless, 0xcc);
    for (int round = 1;; round++) {
        if (emulated(1) + copied(2) + replaced(3) != 9 || trapping(1) != 2) return 1;
        if (own && traps != round) return 2;
        if (stored && *(volatile unsigned char *)useless != 0xcc) return 3;
        dprintf(log, "%d\n", round);
        usleep(2000);
    }
}
