#!/usr/bin/env python3
"""Reads a store of pagetide by docs/FORMAT.md alone, to show that it can be done in another language.

    read_store.py STORE [SNAPSHOT] [--hex]

prints a line for each page of the newest snapshot, or of the one whose number is given: its space, its number in
hexadecimal, what it is, and the SHA-256 of its bytes (with --hex the bytes) if the store has them. Of a page that is in a file it prints the hash
that the snapshot has of it. Needs nothing but the library of zstd. CRC32C is checked; BLAKE3 and XXH3 are not, since Python
has neither: `pagetide verify` checks those.
"""

import bisect
import collections
import ctypes
import ctypes.util
import hashlib
import pathlib
import struct
import sys

ZSTD = ctypes.CDLL(ctypes.util.find_library("zstd") or "libzstd.so.1")
ZSTD.ZSTD_decompress.restype = ctypes.c_size_t
ZSTD.ZSTD_decompress.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]

ZSTD.ZSTD_createDCtx.restype = ctypes.c_void_p
ZSTD.ZSTD_decompress_usingDict.restype = ctypes.c_size_t
ZSTD.ZSTD_decompress_usingDict.argtypes = [ctypes.c_void_p] + [ctypes.c_char_p, ctypes.c_size_t] * 3
CONTEXT = ZSTD.ZSTD_createDCtx()

DATA, ZERO, GUARD, UNBACKED, SHOWN, FILE = 1, 2, 3, 4, 5, 6
KINDS = {DATA: "data", ZERO: "zero", GUARD: "guard", UNBACKED: "unbacked", FILE: "file"}
RAW, COMPRESSED, WORDS, PATCHES, LZ4 = 0, 1, 2, 3, 4

Region = collections.namedtuple("Region", "first count backing captured shows shown_first")
Space = collections.namedtuple("Space", "name page_size regions")
Run = collections.namedtuple("Run", "space kind first count ordinal")
Frame = collections.namedtuple("Frame", "encoding offset stored_length ordinal count page_size")


def check(holds, what):
    if not holds:
        sys.exit(f"read_store.py: {what}")


def decompress(packed, length, dictionary=None):
    buffer = ctypes.create_string_buffer(max(length, 1))
    if dictionary is None:
        found = ZSTD.ZSTD_decompress(buffer, length, packed, len(packed))
    else:
        check(dictionary[:4] != b"\x37\xa4\x30\xec", "a patch is to what is no page for patches")
        found = ZSTD.ZSTD_decompress_usingDict(CONTEXT, buffer, length, packed, len(packed), dictionary, len(dictionary))
    check(found == length, "a zstd frame does not have its length")
    return buffer.raw[:length]


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


class Fields:
    """Reads numbers, strings and lists one after another."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, layout):
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values if len(values) > 1 else values[0]

    def bytes(self):
        length = self.take("Q")
        self.at += length
        return self.data[self.at - length : self.at]

    def list(self, read):
        return [read() for _ in range(self.take("Q"))]


class File:
    """A snapshot file: its header, metadata and index."""

    def __init__(self, path):
        self.data = path.read_bytes()
        magic, self.version, self.header_length = struct.unpack_from("<8sII", self.data)
        check(magic == b"\x89PTSNAP\n", f"{path} is no snapshot")
        header = self.data[: self.header_length]
        check(crc32c(header[:-4]) == struct.unpack("<I", header[-4:])[0], f"the header of {path} is damaged")
        check(self.version in (1, 2, 3), f"{path} is of a newer format")
        length, _, self.number, parent, _ = struct.unpack_from("<Q16sQQ32s", self.data, 16)
        check(length == len(self.data), f"{path} does not have its length")
        self.parent = parent or None
        frames, metadata, index = struct.unpack_from("<QQQ", self.data, 88)
        start = self.header_length + frames
        self.read_metadata(self.data[start : start + metadata])
        self.read_index(self.data[start + metadata : start + metadata + index])

    def read_metadata(self, section):
        fields = Fields(decompress(section[8:], struct.unpack_from("<Q", section)[0]))
        fields.take("QQQ" if self.version == 1 else "QQQQ")
        self.spaces = fields.list(lambda: self.read_space(fields))
        fields.list(lambda: (fields.bytes(), fields.bytes()))
        check(fields.at == len(fields.data), "metadata has bytes left over")

    def read_space(self, fields):
        name, page_size = fields.bytes().decode(), fields.take("Q")
        return Space(name, page_size, fields.list(lambda: self.read_region(fields)))

    def read_region(self, fields):
        first, count = fields.take("QQ")
        _, _, backing, capture = fields.take("BBBB")
        shows, space, shown_first = (1, 0, 0) if self.version == 1 else fields.take("BIQ")
        fields.take("QQQQq")
        fields.bytes()
        if self.version > 1:
            fields.bytes()
        fields.bytes()
        fields.list(fields.bytes)
        fields.bytes()
        return Region(first, count, backing, capture == 1, space if shows == 2 else None, shown_first)

    def read_index(self, section):
        fields = Fields(section)
        runs, frames, hashes = fields.take("QQQ")
        self.runs = []
        for _ in range(runs):
            space, kind, encoding, first, count, ordinal = fields.take("IHHQQQ")
            check(kind in range(1, 7) and encoding == 0, "a run is of a newer kind")
            self.runs.append(Run(space, kind, first, count, ordinal))
        self.frames, offset, ordinal = [], self.header_length, 0
        for _ in range(frames):
            space, encoding, zero, stored_length, count, _ = fields.take("IHHII32s")
            check(encoding in (RAW, COMPRESSED, WORDS, PATCHES, LZ4) and zero == 0, "a frame is of a newer kind")
            page_size = self.spaces[space].page_size
            self.frames.append(Frame(encoding, offset, stored_length, ordinal, count, page_size))
            offset, ordinal = offset + stored_length, ordinal + count
        self.hashes = [fields.take("16s") for _ in range(hashes)]
        self.firsts = [frame.ordinal for frame in self.frames]

    def frame_of(self, ordinal):
        frame = self.frames[bisect.bisect_right(self.firsts, ordinal) - 1]
        stored = self.data[frame.offset : frame.offset + frame.stored_length]
        return frame, stored, ordinal - frame.ordinal


def varint(data, at):
    number = shift = 0
    while True:
        number |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return number, at


def lz4(block, length):
    """What a block of lz4 decompresses to: literals, and copies of what came before."""

    def more(number, at):
        byte = 255 if number == 15 else 0
        while byte == 255:
            byte, at = block[at], at + 1
            number += byte
        return number, at

    raw, at = bytearray(), 0
    while True:
        token = block[at]
        count, at = more(token >> 4, at + 1)
        raw += block[at : at + count]
        at += count
        if at == len(block):
            break
        distance, at = block[at] | block[at + 1] << 8, at + 2
        count, at = more(token & 15, at)
        for _ in range(count + 4):
            raw.append(raw[-distance])
    check(len(raw) == length, "a block of lz4 does not have its length")
    return bytes(raw)


def patches(frame, stored):
    """The patches of the pages of a frame."""
    at, lengths, found = 16 * frame.count, [], []
    for _ in range(frame.count):
        length, at = varint(stored, at)
        lengths.append(length)
    for length in lengths:
        found.append(stored[at : at + length])
        at += length
    check(at == len(stored), "a frame of patches does not add up")
    return found


def words(frame, stored):
    """The words of the pages of a frame, with their positions."""
    length, at = struct.unpack_from("<I", stored)[0], 0
    columns = decompress(stored[4 + 16 * frame.count :], length)
    counts, positions = [], []
    for _ in range(frame.count):
        count, at = varint(columns, at)
        counts.append(count)
    for count in counts:
        after = 0
        of_page = []
        for _ in range(count):
            gap, at = varint(columns, at)
            of_page.append(after + gap)
            after += gap + 1
        positions.append(of_page)
    check(length - at == 8 * sum(counts), "a frame of differences does not add up")
    pages = []
    for of_page in positions:
        pages.append([])
        for position in of_page:
            pages[-1].append((position, columns[at : at + 8]))
            at += 8
    return pages


class Snapshot:
    """A snapshot over its parent: for each space, by name and size of a page, which file and run each page is in."""

    def __init__(self, file, parent):
        self.file, self.parent, self.pages = file, parent, {}
        for number, space in enumerate(file.spaces):
            key = (space.name, space.page_size)
            pages = self.pages[key] = {}
            before = parent.pages.get(key, {}) if parent else {}
            for region in filter(lambda region: region.captured, space.regions):
                for page in range(region.first, region.first + region.count):
                    kind = before[page][1] if page in before else None
                    fits = (kind != SHOWN or region.shows is not None) and (kind != FILE or region.backing == 2)
                    if kind and fits:
                        pages[page] = before[page]
            for run in filter(lambda run: run.space == number, file.runs):
                for page in range(run.first, run.first + run.count):
                    pages[page] = (self, run.kind, run.ordinal + page - run.first)

    def bytes(self, key, page):
        """The bytes of a page that is data."""
        owner, kind, ordinal = self.pages[key][page]
        check(kind == DATA, "differences are to a page that has no bytes")
        frame, stored, position = owner.file.frame_of(ordinal)
        if frame.encoding in (WORDS, PATCHES):
            parent = owner.parent.bytes(key, page)
            below, _, below_ordinal = owner.parent.pages[key][page]
            at = 16 * position + (4 if frame.encoding == WORDS else 0)
            check(stored[at : at + 16] == below.file.hashes[below_ordinal], "differences are to another page")
            if frame.encoding == PATCHES:
                return decompress(patches(frame, stored)[position], frame.page_size, parent)
            made = bytearray(parent)
            for at, word in words(frame, stored)[position]:
                made[8 * at : 8 * at + 8] = word
            return bytes(made)
        length = frame.count * frame.page_size
        raw = {RAW: lambda: stored, COMPRESSED: lambda: decompress(stored, length), LZ4: lambda: lz4(stored, length)}[frame.encoding]()
        return raw[position * frame.page_size :][: frame.page_size]

    def lines(self):
        for space in self.file.spaces:
            for region in space.regions:
                pages = self.pages[(space.name, space.page_size)]
                for page in range(region.first, region.first + region.count if region.captured else 0):
                    yield self.line(space, region, page, pages[page])

    def line(self, space, region, page, found):
        key, at = (space.name, space.page_size), page
        if found[1] == SHOWN:
            shown = self.file.spaces[region.shows]
            key, at = (shown.name, shown.page_size), region.shown_first + page - region.first
            found = self.pages[key][at]
        owner, kind, ordinal = found
        shown = bytes.hex if "--hex" in sys.argv else lambda data: hashlib.sha256(data).hexdigest()
        what = {DATA: lambda: shown(self.bytes(key, at)), FILE: lambda: owner.file.hashes[ordinal].hex()}
        return " ".join([space.name, f"{page:x}", KINDS[kind], what.get(kind, lambda: "-")()])


def main():
    arguments = [argument for argument in sys.argv[1:] if argument != "--hex"]
    check(len(arguments) in (1, 2), "usage: read_store.py STORE [SNAPSHOT] [--hex]")
    directory = pathlib.Path(arguments[0]) / "snapshots"
    names = {int(path.stem): path for path in directory.iterdir() if path.suffix in (".snap", ".base")}
    at = int(arguments[1]) if len(arguments) == 2 else max(names)
    files = []
    while at is not None:
        check(at in names, f"there is no snapshot {at}")
        files.append(File(names[at]))
        at = files[-1].parent
    snapshot = None
    for file in reversed(files):
        snapshot = Snapshot(file, snapshot)
    for line in snapshot.lines():
        print(line)


main()
