#!/bin/bash
# What the commands look like in a terminal of 80 columns: writes docs/SCREENS.md. Each command runs in tmux(1), and what its
# screen shows is taken as text.
#
#   tests/screens.sh PAGETIDE > docs/SCREENS.md
set -eu
pagetide=$(realpath "$1")
work=$(mktemp -d /tmp/pagetide-screens-XXXXXX)
session=pagetide-screens-$$
program=""
finish() {
    tmux -L "$session" kill-server 2>/dev/null || true
    sleep 0.2
    [ -z "$program" ] || kill "$program" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
mkdir "$work/bin"
ln -s "$pagetide" "$work/bin/pagetide"

cat >"$work/writer.pl" <<'PROGRAM'
my $memory = "\0" x (16 << 20);
my $at = 0;
while (1) {
    for (1 .. 20) {
        $at = ($at + 40961) % length $memory;
        substr($memory, $at, 1) = chr(int rand 256);
    }
    select undef, undef, undef, 0.01;
}
PROGRAM
(
    # Descriptors of whoever started this are none of the program's.
    for descriptor in /proc/$BASHPID/fd/*; do
        number=${descriptor##*/}
        [ "$number" -le 2 ] || [ "$number" = 255 ] || eval "exec $number>&-"
    done
    cd /
    exec setsid env -i /usr/bin/perl "$work/writer.pl" </dev/null >/dev/null 2>&1
) &
program=$!
sleep 0.5

cd "$work"
tmux -L "$session" -f /dev/null new-session -d -x 80 -y 45 \
    "env -i HOME=$work TERM=screen PATH=$work/bin:/usr/bin:/bin PS1='\$ ' PROMPT_COMMAND='touch $work/done' bash --norc"
sleep 0.5
screen() { # title, command, lines
    tmux -L "$session" send-keys "clear" Enter
    sleep 0.3
    tmux -L "$session" clear-history
    rm -f "$work/done"
    tmux -L "$session" send-keys "$2" Enter
    for _ in $(seq 300); do [ -e "$work/done" ] && break; sleep 0.1; done
    sleep 0.3
    printf '\n## %s\n\n```\n' "$1"
    tmux -L "$session" capture-pane -p -S -1000 | sed -e 's/[ ]*$//' -e '/^\$$/d' |
        awk -v most="$3" '{ lines[NR] = $0; if ($0 != "") last = NR }
            END { for (i = 1; i <= last && i <= most; i++) print lines[i]; if (last > most) print "..." }'
    printf '```\n'
}

cat <<'HEAD'
# What it looks like

In a terminal of 80 columns. Made by `make screens`; only the numbers are others each time. Names come last in a line, and are cut before
anything else is; where standard output is no terminal nothing is cut.
HEAD
screen checkpoint "pagetide checkpoint $program --store ckpt --every 200ms --count 6 --keep-last 4" 20
screen log "pagetide log ckpt" 20
screen show "pagetide show ckpt" 20
screen pages "pagetide pages $program" 20
screen prune "pagetide prune ckpt --keep-last 2" 20
screen verify "pagetide verify ckpt" 20
kill "$program"
wait 2>/dev/null || true
program=""
screen restore "pagetide restore ckpt --dry-run" 20
