/* Arguments: DIRECTORY-ON-DISK DIRECTORY-IN-MEMORY. Does to its memory what it is told, one operation a
 * line, and answers `ok`, or `no` and the errno. Nothing is checked before the kernel is asked: an
 * operation it refuses is as good as any other, and a store to where nothing can be stored is caught.
 *
 * Pages are counted from the start of an area of fixed address, so that the same operations lead to the
 * same memory in every run. `@K line` hands a line to child K, which interprets it for its own memory.
 * The state of the interpreter lies in descriptors of fixed numbers as far as it can, so that it
 * fits also after the memory of the process was put back to an earlier time. */
#include "adversary_common.h"
#include "adversary_maps.h"
#include "adversary_files.h"
#include "adversary_io.h"
#include "adversary_rings.h"
#include "adversary_uffd.h"
#include "adversary_devices.h"
#include "adversary_processes.h"

static const struct verb {
    const char *name;
    int (*act)(char **words);
} verbs[] = {
    MAPS_VERBS FILES_VERBS IO_VERBS RING_VERBS UFFD_VERBS DEVICE_VERBS PROCESSES_VERBS
};

/* 0, or -1 with errno, or 1 in a new process that takes orders of its own. */
static int perform(char *line) {
    char *words[MOST_WORDS] = {0};
    int count = 0;
    for (char *rest = line, *word; count < MOST_WORDS - 1 && (word = strtok_r(rest, " ", &rest));) words[count++] = word;
    for (int i = count; i < MOST_WORDS; i++) words[i] = "0";
    errno = 0;
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++)
        if (!strcmp(words[0], verbs[i].name)) return verbs[i].act(words);
    unknown(words[0]);
}

static void write_all(const char *bytes, size_t length) {
    while (length > 0) {
        ssize_t written = write(1, bytes, length);
        if (written <= 0) _exit(97);
        bytes += written;
        length -= (size_t)written;
    }
}

/* Lines that are done over and over: `repeat MILLISECONDS`, the lines, `repeated`. Memory that was put back may be from the
 * middle of them, even from before the end of the last line: after an empty line, `mark` ends them. */
static struct {
    int on;
    uint64_t milliseconds;
    size_t length;
    char lines[1 << 15];
} again;

static uint64_t milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Until the time is over, and at least once. The answers are those of the last time. */
static size_t repeat(char *out) {
    uint64_t end = milliseconds() + again.milliseconds;
    size_t said;
    do {
        said = 0;
        for (size_t at = 0; at < again.length; at += strlen(again.lines + at) + 1) {
            char line[256];
            snprintf(line, sizeof line, "%s", again.lines + at);
            int result = perform(line);
            said += (size_t)(result ? sprintf(out + said, "no %d\n", errno) : sprintf(out + said, "ok\n"));
        }
    } while (milliseconds() < end);
    return said;
}

/* True if the line is one of these. What it adds to the answers goes to `out`. */
static int is_repeated(const char *line, char *out, size_t *said) {
    if (!*line) {
        return 1;
    } else if (!strcmp(line, "mark")) {
        again.on = 0;
        *said += (size_t)sprintf(out + *said, "mark\n");
    } else if (!strncmp(line, "repeat ", 7)) {
        again.on = 1;
        again.milliseconds = number(line + 7);
        again.length = 0;
    } else if (!strcmp(line, "repeated")) {
        again.on = 0;
        *said += repeat(out + *said);
    } else if (again.on) {
        size_t length = strlen(line) + 1;
        if (again.length + length > sizeof again.lines) unknown("too much to repeat");
        memcpy(again.lines + again.length, line, length);
        again.length += length;
    } else {
        return 0;
    }
    return 1;
}

/* All whole lines that have come are answered in one piece. */
static void interpret(void) {
    static char in[1 << 16], out[1 << 16];
    size_t held = 0;
    for (;;) {
        ssize_t got = read(0, in + held, sizeof in - 1 - held);
        if (got <= 0) _exit(0);
        held += (size_t)got;
        size_t used = 0, said = 0;
        for (char *end; (end = memchr(in + used, '\n', held - used));) {
            char *line = in + used;
            *end = 0;
            used = (size_t)(end + 1 - in);
            if (is_repeated(line, out, &said)) continue;
            int result = line[0] == '@' ? 0 : perform(line);
            if (result > 0) {
                used = held;
                said = 0;
            } else if (line[0] == '@') {
                said += relay(line, out + said);
            } else if (result == 0) {
                said += (size_t)sprintf(out + said, "ok\n");
            } else {
                said += (size_t)sprintf(out + said, "no %d\n", errno);
            }
            if (said > sizeof out - 256) {
                write_all(out, said);
                said = 0;
            }
        }
        memmove(in, in + used, held - used);
        held -= used;
        write_all(out, said);
    }
}

int main(int count, char **words) {
    begin();
    if (count != 3) return 2;
    int fixed = personality(0xffffffff);
    if (!(fixed & ADDR_NO_RANDOMIZE)) {
        personality((unsigned long)fixed | ADDR_NO_RANDOMIZE);
        execv("/proc/self/exe", words);
        die("execv");
    }
    arguments = words;
    main_pid = getpid();
    signal(SIGPIPE, SIG_IGN);
    signal(SIGCHLD, SIG_IGN);
    catch_faults();
    free(malloc(120000)); /* room for malloc, so that the break is left to `brk` */
    write_all("ready\n", 6);
    interpret();
}
