#!/bin/sh
# Makes sure that what is needed is installed. Usage: tests/setup.sh build|demo|test, each with all that the ones
# before it need. As root it installs missing packages; otherwise, or where Rust is missing or too old, it says all
# that is missing, at once, and what to do. Says nothing when all is there. $CARGO is the cargo that is looked at.
set -eu

purpose=${1:-}
case $purpose in
    build) level=1 ;;
    demo) level=2 ;;
    test) level=3 ;;
    *) echo "usage: tests/setup.sh build|demo|test" >&2; exit 2 ;;
esac
top=$(cd "$(dirname "$0")/.." && pwd)
# It may have arguments.
cargo=${CARGO:-cargo}

# From which purpose on it is needed, a program or file that must be there, and the Debian or Ubuntu package that brings it.
# The userfaultfd crate reads the kernel's header through libclang when it is built.
needs() {
    cat <<'LIST'
1 cc gcc
1 make make
1 /usr/lib/llvm-*/lib/libclang*.so* libclang-dev
1 /usr/lib/llvm-*/lib/clang/*/include libclang-dev
1 /usr/include/linux/userfaultfd.h linux-libc-dev
1 /usr/include/stdio.h libc6-dev
2 redis-server redis-server
2 redis-benchmark redis-tools
3 /usr/lib/postgresql/*/bin/postgres postgresql
3 gdb gdb
3 /usr/bin/python3 python3
3 /usr/lib/python3/dist-packages/numpy python3-numpy
3 node nodejs
3 sqlite3 sqlite3
3 memcached memcached
3 /usr/bin/kill procps
3 mount mount
3 setpriv util-linux
3 qemu-system-x86_64 qemu-system-x86
3 /bin/busybox busybox-static
3 xz xz-utils
LIST
}

# True if anything has the name or fits the pattern.
there() {
    case $1 in
        # shellcheck disable=SC2086
        /*) ls -d $1 >/dev/null 2>&1 ;;
        *) command -v "$1" >/dev/null 2>&1 ;;
    esac
}

missing=$(needs | while read -r from what package; do
    [ "$from" -gt "$level" ] || there "$what" || echo "$package"
done | sort -u | tr '\n' ' ')
missing=${missing% }

# True if version $1 is at least version $2.
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -1)" = "$2" ]; }

wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$top/Cargo.toml")
rust=""
if ! command -v "${cargo%% *}" >/dev/null 2>&1; then
    rust="Rust $wanted or newer is missing ($cargo is not found)"
else
    version=$(cd "$top" && $cargo --version | cut -d' ' -f2)
    at_least "$version" "$wanted" || rust="Rust $version is too old ($cargo): $wanted or newer is needed"
fi

if [ -n "$rust" ]; then
    cat >&2 <<SAY
setup: $rust
    everywhere:     rustup, for this user alone
    Debian 13:      apt-get install -t trixie-backports cargo      (with trixie-backports among the sources)
    Ubuntu 24.04:   apt-get install cargo-1.89 rustc-1.89, and then: make CARGO=cargo-1.89 RUSTC=rustc-1.89 $purpose
SAY
fi
if [ -n "$missing" ] && { [ -n "$rust" ] || [ "$(id -u)" != 0 ]; }; then
    echo "setup: packages are missing; as root: apt-get install --no-install-recommends $missing" >&2
    exit 1
fi
[ -z "$rust" ] || exit 1
[ -n "$missing" ] || exit 0

echo "setup: installing $missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
install() {
    # shellcheck disable=SC2086
    apt-get install -y --no-install-recommends $missing >"$log" 2>&1
}
# A server that is installed for the demo or for tests must not start by itself, nor stay under the init system.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy" && chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
elif allowed=0 && { "$policy" pagetide start >/dev/null 2>&1 || allowed=$?; } && [ "$allowed" != 101 ]; then
    echo "setup: $policy lets servers start; install by hand: $missing" >&2
    exit 1
fi
if ! { apt-get update >"$log" 2>&1 && install; }; then
    tail -20 "$log" >&2
    echo "setup: could not install $missing" >&2
    exit 1
fi
rm -f "$log"
