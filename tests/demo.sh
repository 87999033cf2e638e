#!/usr/bin/env bash
# Checkpoints of a real redis-server while it serves, a value rolled back, the chain verified.
# Usage: tests/demo.sh PATH-TO-PAGETIDE. Takes about ten seconds. Leaves nothing behind.
set -euo pipefail

# Descriptors of whoever started this are none of the server's: it could not be restored with them.
exec </dev/null
for descriptor in /proc/$BASHPID/fd/*; do
    number=${descriptor##*/}
    # 255 is this script.
    [ "$number" -le 2 ] || [ "$number" = 255 ] || eval "exec $number>&-"
done

pagetide=$(realpath "$1")
work=$(mktemp -d /tmp/pagetide-demo.XXXXXX)
server="" load=""
cleanup() {
    [ -z "$load" ] || kill "$load" 2>/dev/null || true
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() { echo "demo: $*" >&2; exit 1; }

# A free port on loopback.
for port in $(shuf -i 20000-29999 -n 20); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
done
redis() { redis-cli -h 127.0.0.1 -p "$port" "$@"; }

say "1. A redis-server with 200,000 keys on port $port"
redis-server --bind 127.0.0.1 --port "$port" --save "" --appendonly no --dir "$work" \
    >"$work/redis.log" 2>&1 &
server=$!
for _ in $(seq 100); do redis ping >/dev/null 2>&1 && break; sleep 0.1; done
redis ping >/dev/null || fail "redis-server did not start: $(tail -3 "$work/redis.log")"
seq 200000 | awk '{ printf "SET key:%d %0400d\r\n", $1, $1 * 7919 }' | redis --pipe | tail -1
echo "process $server, $(awk '/VmRSS/ { print int($2 / 1024) " MiB in memory" }' "/proc/$server/status")"

say "2. One full snapshot and nine deltas, every 200 ms, while clients write to it"
redis-benchmark -h 127.0.0.1 -p "$port" -t set,get -r 200000 -d 400 -n 100000000 -c 20 -q \
    >"$work/load.log" 2>&1 &
load=$!
sleep 0.5
"$pagetide" checkpoint "$server" --store "$work/store" --every 200ms --count 10
kill -0 "$load" 2>/dev/null || fail "the clients were disturbed: $(tail -c 300 "$work/load.log")"
kill "$load"; wait "$load" 2>/dev/null || true; load=""
if grep -qi error "$work/load.log"; then fail "a client saw an error: $(grep -i error "$work/load.log")"; fi
echo "no client saw an error"

say "3. A value is stored, a snapshot taken, the value overwritten, and the server rolled back"
redis set precious "the only copy" >/dev/null
"$pagetide" checkpoint "$server" --store "$work/store"
id=$("$pagetide" log "$work/store" | tail -1 | awk '{ print $1 }')
redis set precious "overwritten by mistake" >/dev/null
echo "before: $(redis get precious)"
"$pagetide" rollback "$server" "$work/store" --at "$id"
value=$(redis get precious)
echo "after:  $value"
[ "$value" = "the only copy" ] || fail "the value was not rolled back"

say "4. From the shell: what was written since the last snapshot, with nothing of ours running between"
redis set another value >/dev/null
"$pagetide" checkpoint "$server" --store "$work/store"
"$pagetide" detach "$server"

say "5. The chain"
"$pagetide" log "$work/store"
"$pagetide" verify "$work/store"
kill -0 "$server" 2>/dev/null || fail "the server died"
echo "the server still runs and has $(redis dbsize) keys"
