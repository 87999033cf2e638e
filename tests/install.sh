#!/bin/sh
# Installs the program with its manual pages and completions, or removes them again.
# Usage: tests/install.sh PROGRAM PREFIX | tests/install.sh --remove PREFIX
set -eu

program=$1 prefix=$2
bash=$prefix/share/bash-completion/completions/pagetide
zsh=$prefix/share/zsh/site-functions/_pagetide
fish=$prefix/share/fish/vendor_completions.d/pagetide.fish
manual=$prefix/share/man/man1

if [ "$program" = --remove ]; then
    rm -f "$prefix/bin/pagetide" "$bash" "$zsh" "$fish" "$manual/pagetide.1" "$manual"/pagetide-*.1
    exit 0
fi
install -D -m 755 "$program" "$prefix/bin/pagetide"
"$program" man --directory "$manual"
for shell in bash zsh fish; do
    eval "file=\$$shell"
    mkdir -p "$(dirname "$file")"
    "$program" completions "$shell" > "$file"
done
