#!/usr/bin/env bash
# goblin 0.10.7 and object 0.37.3 and the cores of processes with more than 65,534 mappings.
#
# Such a core says 0xffff (PN_XNUM) in e_phnum, and the number in sh_info of its only section header (elf(5)). Linux
# leaves e_shstrndx at SHN_UNDEF then, since there is no section of names (fill_extnum_info in fs/binfmt_elf.c).
# Expected: all 70,000 segments. Seen: goblin shows 65535 without an error; object's ElfFile refuses the file ("Missing
# ELF e_shstrndx"), while its lower layer, FileHeader64::program_headers, shows all. The crate elf 0.8.0 shows all.
# The input is the header, the segments and the section header as Linux 6.18 was seen to write them.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
mkdir "$work/src"
cat > "$work/Cargo.toml" <<'TOML'
[package]
name = "show"
version = "0.0.0"
edition = "2021"
[dependencies]
goblin = "=0.10.7"
object = "=0.37.3"
elf = "=0.8.0"
TOML
cat > "$work/src/main.rs" <<'RUST'
use object::read::elf::{ElfFile64, FileHeader};

const SEGMENTS: u32 = 70_000;

fn core() -> Vec<u8> {
    let mut core = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    core.extend([4u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    core.extend(1u32.to_le_bytes());
    let sections_at = 64 + 56 * u64::from(SEGMENTS);
    core.extend([0u64, 64, sections_at].iter().flat_map(|word| word.to_le_bytes()));
    core.extend(0u32.to_le_bytes());
    core.extend([64u16, 56, 0xffff, 64, 1, 0].iter().flat_map(|half| half.to_le_bytes()));
    for number in 0..u64::from(SEGMENTS) {
        core.extend([1u32, 6].iter().flat_map(|half| half.to_le_bytes()));
        let address = 0x1000_0000 + number * 0x2000;
        core.extend([0, address, 0, 0, 0x1000, 0x1000].iter().flat_map(|word: &u64| word.to_le_bytes()));
    }
    core.extend([0u32; 2].iter().flat_map(|half| half.to_le_bytes()));
    core.extend([0u64, 0, 0, 1].iter().flat_map(|word| word.to_le_bytes()));
    core.extend([0u32, SEGMENTS].iter().flat_map(|half| half.to_le_bytes()));
    core.extend([0u64; 2].iter().flat_map(|word| word.to_le_bytes()));
    core
}

fn main() {
    let core = core();
    let segments = goblin::elf::Elf::parse(&core).map(|elf| elf.program_headers.len());
    println!("goblin {segments:?}");
    match ElfFile64::<object::Endianness>::parse(&*core) {
        Ok(_) => println!("object takes it"),
        Err(error) => println!("object: {error}"),
    }
    let header = object::elf::FileHeader64::<object::Endianness>::parse(&*core).unwrap();
    let segments = header.program_headers(header.endian().unwrap(), &*core).unwrap();
    println!("object, lower layer {}", segments.len());
    let elf = elf::ElfBytes::<elf::endian::AnyEndian>::minimal_parse(&core).unwrap();
    println!("elf {}", elf.segments().unwrap().len());
}
RUST
seen=$(cd "$work" && cargo run -q 2>&1)
echo "$seen"
expected='goblin Ok(65535)
object: Missing ELF e_shstrndx
object, lower layer 70000
elf 70000'
[ "$seen" = "$expected" ] || { echo "this has changed" >&2; exit 1; }
