#!/usr/bin/env bash
# gdb 13.1 (Debian package 13.1-3): one page that cannot be read costs gcore all the bytes of its mapping.
#
# A page that reads as an error inside a mapping is nothing rare: a guard region (MADV_GUARD_INSTALL, Linux 6.13; glibc
# 2.42 uses them for the stacks of threads), the end of a mapped file that was made shorter, a poisoned page.
# Expected: the core lacks that page. Seen: it lacks the whole mapping, of which 15 of 16 pages can be read; gdb warns
# "Memory read failed for corefile section" and ends with 0. The core that Linux writes of the same process has them.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
cd "$work"
version=$(dpkg-query -W -f '${Version}' gdb 2>/dev/null || true)
if [ "$version" != 13.1-3 ]; then
    # Any gdb 13.1 will do; where another is installed, that of Debian 12 is unpacked here.
    apt-get download -q gdb=13.1-3 >/dev/null 2>&1 || { echo "gdb 13.1-3 cannot be had here (a package of Debian 12)" >&2; exit 2; }
    dpkg -x gdb_13.1-3_*.deb gdb
    PATH="$work/gdb/usr/bin:$PATH"
fi
gdb --version | head -n 1
cat > program.c <<'C'
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(void) {
    int file = open("mapped", O_RDWR | O_CREAT, 0600);
    ftruncate(file, 16 * 4096);
    char *memory = mmap(0, 16 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    for (int page = 0; page < 16; page++) strcpy(memory + page * 4096, "what the program holds");
    ftruncate(file, 15 * 4096); /* the last page is gone: SIGBUS for who reads it */
    puts("ready");
    fflush(stdout);
    pause();
    return 0;
}
C
cc -w -o program program.c
./program > said & pid=$!
trap 'kill "$pid" 2>/dev/null || true; rm -rf "$work"' EXIT
for _ in $(seq 100); do grep -q ready said && break; sleep 0.1; done
echo 0x3f > "/proc/$pid/coredump_filter"
gdb -batch -nx -p "$pid" -ex "gcore by-gdb" > gdb.log 2>&1
grep 'Memory read failed for corefile section, 65536 bytes' gdb.log | sed 's/ at .*//'
# The strings with their end: the program's own constant is one of them.
count() { { grep -aoP 'what the program holds\x00' "$1" || true; } | wc -l; }
by_gdb=$(count by-gdb)
echo "pages in gdb's core: $((by_gdb > 2 ? by_gdb : 0)) of 15"
if [ "$(cat /proc/sys/kernel/core_pattern)" = core ] && [ "$(ulimit -Hc)" = unlimited ]; then
    prlimit --pid "$pid" --core=unlimited
    kill -ABRT "$pid"; wait "$pid" 2>/dev/null || true
    by_kernel=$(count core*)
    echo "pages in the kernel's core: $by_kernel"
    [ "$by_kernel" -ge 15 ] || { echo "this has changed" >&2; exit 1; }
else
    echo "SKIPPED: the kernel's own core goes elsewhere on this machine (kernel.core_pattern)"
fi
[ "$by_gdb" -le 2 ] || { echo "this has changed" >&2; exit 1; }
