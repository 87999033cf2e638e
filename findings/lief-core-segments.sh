#!/usr/bin/env bash
# lief 1.0.0 (Python package) shows 10,000 segments of a core that has more, without an error.
#
# A core has a segment for each mapping of the process (core(5)); programs with more than 10,000 mappings are
# common (JVMs, sanitizers, databases with many extents). Expected: all segments, or an error. Seen: len(segments)
# is 10000 of 20000, and parse() gives no sign that something is missing.
# Not concerned: pyelftools 0.33 shows all of them.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check lief==1.0.0 pyelftools==0.33
cat > "$work/show.py" <<'PY'
import struct, sys
import lief
from elftools.elf.elffile import ELFFile

SEGMENTS = 20_000
path = sys.argv[1]
header = b"\x7fELF" + bytes([2, 1, 1, 0]) + bytes(8) + struct.pack(
    "<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, SEGMENTS, 0, 0, 0)
with open(path, "wb") as core:
    core.write(header)
    for number in range(SEGMENTS):
        address = 0x10000000 + number * 0x2000
        core.write(struct.pack("<IIQQQQQQ", 1, 6, 0, address, 0, 0, 0x1000, 0x1000))
with open(path, "rb") as core:
    print("pyelftools", ELFFile(core).num_segments())
print("lief", len(lief.parse(path).segments))
PY
seen=$("$work/venv/bin/python" "$work/show.py" "$work/core" 2>&1)
echo "$seen"
[ "$seen" = "$(printf 'pyelftools 20000\nlief 10000')" ] || { echo "this has changed" >&2; exit 1; }
