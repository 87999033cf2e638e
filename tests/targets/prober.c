/* A tracing tool: probes (uprobes) in another process. Words: its process id, its file, and offsets in that. It is `ready`, or says
 * why it cannot; `count` gives how often the probes were hit, `end` ends the tracing. */
#include "common.h"
#include <linux/perf_event.h>

static int probe(pid_t pid, const char *path, unsigned long offset) {
    int type = -1;
    FILE *file = fopen("/sys/bus/event_source/devices/uprobe/type", "r");
    if (!file || fscanf(file, "%d", &type) != 1) return -1;
    fclose(file);
    struct perf_event_attr event = {.type = (unsigned)type, .size = sizeof event};
    event.config1 = (unsigned long)path;
    event.config2 = offset;
    return (int)syscall(SYS_perf_event_open, &event, pid, -1, -1, PERF_FLAG_FD_CLOEXEC);
}

int main(int count, char **words) {
    begin();
    int probes[8], all = 0;
    for (int i = 3; i < count && all < 8; i++) {
        probes[all] = probe(atoi(words[1]), words[2], strtoul(words[i], NULL, 10));
        if (probes[all++] < 0) {
            printf("cannot: perf_event_open(2): %s\n", strerror(errno));
            return 0;
        }
    }
    ready();
    for (;;) {
        char *line = next_line();
        uint64_t sum = 0, hits;
        for (int i = 0; i < all; i++) {
            if (!strcmp(line, "end")) close(probes[i]);
            else if (read(probes[i], &hits, sizeof hits) == sizeof hits) sum += hits;
        }
        printf("%lu\n", sum);
    }
}
