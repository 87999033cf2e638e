// traps HOW: SIGTRAP is "handled", "ignored", "blocked" or "blocked-handled". Any line on stdin:
// prints how often it was handled, whether it is pending, and whether its disposition is as it was.
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static volatile int count;
static void handler(int signal) { (void)signal; count++; }

int main(int argc, char **argv) {
    const char *how = argc > 1 ? argv[1] : "";
    struct sigaction action = {.sa_handler = SIG_DFL, .sa_flags = SA_RESTART}, now;
    if (strstr(how, "handled")) action.sa_handler = handler;
    if (strstr(how, "ignored")) action.sa_handler = SIG_IGN;
    sigaction(SIGTRAP, &action, 0);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTRAP);
    if (strstr(how, "blocked")) sigprocmask(SIG_BLOCK, &set, 0);
    puts("ready");
    fflush(stdout);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        sigpending(&set);
        sigaction(SIGTRAP, 0, &now);
        printf("handled %d pending %d same %d\n", count, sigismember(&set, SIGTRAP),
               now.sa_handler == action.sa_handler);
        fflush(stdout);
    }
    return 0;
}
