#!/bin/sh
# Makes sure that what building and testing need is installed. As root it installs what is missing;
# otherwise it says exactly what to install. Says nothing when all is there.
set -eu

# program or file that must be there, and the Debian package that brings it
needs() {
    cat <<'LIST'
cc gcc
make make
redis-server redis-server
redis-benchmark redis-tools
/usr/lib/postgresql/15/bin/postgres postgresql-15
gdb gdb
/usr/bin/python3 python3
/usr/lib/python3/dist-packages/numpy python3-numpy
node nodejs
sqlite3 sqlite3
memcached memcached
/usr/bin/kill procps
mount mount
setpriv util-linux
qemu-system-x86_64 qemu-system-x86
/bin/busybox busybox-static
xz xz-utils
/usr/include/linux/userfaultfd.h linux-libc-dev
/usr/include/stdio.h libc6-dev
LIST
}

missing=""
add() { case " $missing " in *" $1 "*) ;; *) missing="$missing $1" ;; esac; }

needs > "${TMPDIR:-/tmp}/pagetide-needs.$$"
while read -r what package; do
    case $what in
        /*) [ -e "$what" ] || add "$package" ;;
        *) command -v "$what" >/dev/null 2>&1 || add "$package" ;;
    esac
done < "${TMPDIR:-/tmp}/pagetide-needs.$$"
rm -f "${TMPDIR:-/tmp}/pagetide-needs.$$"

# The userfaultfd crate reads the kernel's header through libclang when it is built.
ls /usr/lib/llvm-*/lib/libclang*.so* >/dev/null 2>&1 || add libclang-dev
ls -d /usr/lib/llvm-*/lib/clang/*/include >/dev/null 2>&1 || add libclang-dev

if ! command -v cargo >/dev/null 2>&1; then
    echo "setup: cargo is missing: install Rust 1.88 or newer (rustup, or your distribution's packages)" >&2
    exit 1
fi
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "setup: missing packages; run as root:" >&2
    echo "    apt-get install --no-install-recommends$missing" >&2
    exit 1
fi
echo "setup: installing$missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
install() {
    # shellcheck disable=SC2086
    apt-get install -y --no-install-recommends $missing >"$log" 2>&1
}
# A server that is installed for tests must not start by itself, nor stay under the init system.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy" && chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
elif allowed=0 && { "$policy" pagetide start >/dev/null 2>&1 || allowed=$?; } && [ "$allowed" != 101 ]; then
    echo "setup: $policy lets servers start; install by hand:$missing" >&2
    exit 1
fi
if ! { apt-get update >"$log" 2>&1 && install; }; then
    tail -20 "$log" >&2
    echo "setup: could not install$missing" >&2
    exit 1
fi
rm -f "$log"
