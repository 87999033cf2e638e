#!/bin/bash
# A schedule that lives long: `checkpoint --every 50ms --keep-last 200` of a Python program that goes on writing, and of a
# redis-server under load, until so many snapshots of each are taken. Prints a table (own memory, files, bytes, stop), and
# fails if own memory at the end is more than 1.2 times that after 200 snapshots, if a snapshot but the first is full, or
# if the store does not verify.
#
#   tests/soak.sh PAGETIDE [SNAPSHOTS]
#
# PAGETIDE_SOAK_MOST is how many times, if not 1.2: a few snapshots do not settle.
set -eu
pagetide=$(realpath "$1")
snapshots=${2:-20000}
first=$((snapshots < 200 ? snapshots / 2 : 200))
work=$(mktemp -d "${TMPDIR:-/tmp}/pagetide-soak-XXXXXX")
started=()
finish() {
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

cat >"$work/writer.py" <<'PROGRAM'
import os, random, time
memory = bytearray(64 << 20)
table = {}
while True:
    for _ in range(20):
        at = random.randrange(len(memory) - 64)
        memory[at:at + 64] = os.urandom(64)
        table[random.randrange(20000)] = str(random.random())
    time.sleep(0.01)
PROGRAM
cat >"$work/load.py" <<'PROGRAM'
import random, socket, sys, time
while True:
    try:
        server = socket.socket(socket.AF_UNIX)
        server.connect(sys.argv[1])
        break
    except OSError:
        time.sleep(0.05)
def word(text):
    return b"$%d\r\n%s\r\n" % (len(text), text)
while True:
    calls = b""
    for _ in range(20):
        key, value = b"key:%d" % random.randrange(100000), random.randbytes(100)
        calls += b"*3\r\n" + word(b"SET") + word(key) + word(value)
    server.sendall(calls)
    answered = 0
    while answered < 20 * len(b"+OK\r\n"):
        answered += len(server.recv(65536))
    time.sleep(0.02)
PROGRAM

python3 "$work/writer.py" &
python=$!
started+=("$python")
redis-server --port 0 --unixsocket "$work/redis.sock" --save "" --appendonly no --dir "$work" >/dev/null &
redis=$!
started+=("$redis")
python3 "$work/load.py" "$work/redis.sock" &
started+=("$!")
sleep 1

declare -A schedule
for name in python redis; do
    "$pagetide" checkpoint "${!name}" --store "$work/$name" --every 50ms --keep-last 200 --count $((snapshots + 100)) --json \
        >"$work/$name.lines" 2>"$work/$name.errors" &
    schedule[$name]=$!
    started+=("$!")
done

row() { # program, snapshots
    local lines="$work/$1.lines" store="$work/$1"
    local memory files bytes stop
    memory=$(awk '/^VmRSS/ { print $2 }' "/proc/${schedule[$1]}/status")
    files=$(ls "$store/snapshots" | wc -l)
    bytes=$(du -sb "$store" 2>/dev/null | cut -f1)
    stop=$(tail -n 200 "$lines" | grep -o '"stop_us":[0-9]*' | cut -d: -f2 | sort -n |
        awk '{ all[NR] = $1 } END { printf "%.1f / %.1f", all[int((NR + 1) / 2)] / 1000, all[int(NR * 0.99)] / 1000 }')
    printf '%-7s %9d %9.1f MiB %6d %9.1f MiB   %s ms\n' "$1" "$2" "$(echo "$memory" | awk '{ print $1 / 1024 }')" \
        "$files" "$(echo "$bytes" | awk '{ print $1 / 1048576 }')" "$stop"
    echo "$1 $2 $memory" >>"$work/memory"
}

printf '%-7s %9s %13s %6s %13s   %s\n' program snapshots "own memory" files "store" "stop (median / 99 %)"
# The schedules are not equally fast, and each ends a while after its last row: whichever is there first has its row first.
declare -A left
for name in python redis; do left[$name]=$(printf '%s\n' $first $((snapshots / 10)) $snapshots | awk -v first=$first '$1 >= first' | sort -nu); done
while [ -n "${left[python]}${left[redis]}" ]; do
    for name in python redis; do
        at=${left[$name]%%$'\n'*}
        [ -n "$at" ] || continue
        if [ "$(wc -l <"$work/$name.lines")" -ge "$at" ]; then
            row "$name" "$at"
            left[$name]=$(echo "${left[$name]}" | sed 1d)
        elif ! kill -0 "${schedule[$name]}" 2>/dev/null; then
            echo "the schedule of $name has ended:"
            cat "$work/$name.errors"
            exit 1
        fi
    done
    sleep 0.02
done
for name in python redis; do
    wait "${schedule[$name]}" || { echo "the schedule of $name failed:"; cat "$work/$name.errors"; exit 1; }
    cat "$work/$name.errors"
    full=$(grep -c '"kind":"full"' "$work/$name.lines")
    [ "$full" -eq 1 ] || { echo "$name: $full full snapshots"; exit 1; }
    "$pagetide" verify "$work/$name"
    "$pagetide" log "$work/$name" --json | grep -o '"id":' | wc -l | awk '{ print $1 " snapshots are left" }'
done
awk -v first="$first" -v most="${PAGETIDE_SOAK_MOST:-1.2}" '
    $2 == first { begun[$1] = $3 }
    { last[$1] = $3 }
    END {
        for (name in last) {
            ratio = last[name] / begun[name]
            printf "%s: own memory %.2f times that after %d snapshots\n", name, ratio, first
            if (ratio > most) failed = 1
        }
        exit failed
    }' "$work/memory"
