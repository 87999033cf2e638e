/* Memory that is written with no page fault, by whoever has pinned or mapped it: rings of io_uring in all the ways
 * in which they hide, AF_XDP, a virtual processor, a call of another process. `make WHAT` prepares it, `write` has the
 * kernel write, `close` closes the ring. Answers are `done`, or `cannot` and why. */
#include "writers.h"
#include "writers_rings.h"
#include "writers_others.h"

static const struct way {
    const char *name;
    const char *(*make)(void);
    const char *(*write)(void);
} ways[] = {
    {"registered_ring", make_registered_ring, complete_many},
    {"filtered_ring", make_filtered_ring, complete_polled},
    {"diverted_ring", make_diverted_ring, complete_polled},
    {"own_ring", make_own_ring, complete_many},
    {"deceiving_ring", make_deceiving_ring, complete_many},
    {"lent_ring", make_lent_ring, complete_lent},
    {"buffer_ring", make_buffer_ring, receive},
    {"lone_buffer_ring", make_lone_buffer_ring, receive},
    {"fixed_buffers", make_fixed_buffers, read_fixed},
    {"sparse_buffers", make_sparse_buffers, read_fixed},
    {"moved_buffers", make_moved_buffers, read_fixed},
    {"moved_and_replaced_buffers", make_moved_and_replaced_buffers, read_fixed},
    {"cloned_buffers", make_cloned_buffers, read_fixed},
    {"lent_buffers", make_lent_buffers, read_lent},
    {"packets", make_packets, send_packet},
    {"processor", make_processor, run_processor},
    {"late_call", make_late_call, let_it_arrive},
    {"late_call_again", begin_late_call, let_it_arrive},
};

int main(void) {
    begin();
    signal(SIGCHLD, SIG_IGN);
    fill_pool();
    ready();
    const struct way *way = NULL;
    for (;;) {
        char *line = next_line();
        const char *problem = "an unknown command";
        if (!strncmp(line, "make ", 5)) {
            for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
                if (!strcmp(line + 5, ways[i].name)) way = &ways[i];
            if (way) problem = way->make();
        } else if (!strcmp(line, "write") && way) {
            problem = way->write();
        } else if (!strcmp(line, "close")) {
            problem = close_ring();
        }
        if (problem)
            printf("cannot: %s\n", problem);
        else
            puts("done");
    }
}
