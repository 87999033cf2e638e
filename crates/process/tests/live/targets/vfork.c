// vfork: sleeps uninterruptibly as the parent of a vfork until a line comes on stdin (read by the
// child); then prints "back".
#include <stdio.h>
#include <unistd.h>

int main(void) {
    if (write(1, "ready\n", 6) != 6) return 1;
    if (vfork() == 0) {
        char line[64];
        ssize_t n = read(0, line, sizeof line);
        _exit(n < 0);
    }
    if (write(1, "back\n", 5) != 5) return 1;
    return 0;
}
