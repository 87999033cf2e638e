#!/usr/bin/env bash
# bincode 2.0.1: Configuration::with_limit counts the size that decoded values have in memory, padding
# included, and not the bytes that are read.
#
# Expected: what was encoded to 44 bytes decodes under a limit of 44. Seen: four pairs (u8, u64), 44 bytes with fixed
# integers, need a limit of 72 (a length of 8, and 4 times 16); a thousand u64 that take 1,003 bytes with variable integers need
# more than 8,000. So a limit that is the length of the file refuses valid files, by a factor that depends on the types.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
mkdir "$work/src"
cat > "$work/Cargo.toml" <<'TOML'
[package]
name = "show"
version = "0.0.0"
edition = "2021"
[dependencies]
bincode = "=2.0.1"
TOML
cat > "$work/src/main.rs" <<'RUST'
use bincode::config::standard;
use bincode::{decode_from_slice, encode_to_vec};

fn main() {
    let pairs = vec![(1u8, 2u64); 4];
    let fixed = standard().with_fixed_int_encoding();
    let bytes = encode_to_vec(&pairs, fixed).unwrap();
    let fits = |ok: bool| if ok { "decodes" } else { "refused" };
    let at = |result: Result<(Vec<(u8, u64)>, usize), _>| {
        let _: &Result<_, bincode::error::DecodeError> = &result;
        fits(result.is_ok())
    };
    println!("{} bytes:", bytes.len());
    println!("limit 44 {}", at(decode_from_slice(&bytes, fixed.with_limit::<44>())));
    println!("limit 71 {}", at(decode_from_slice(&bytes, fixed.with_limit::<71>())));
    println!("limit 72 {}", at(decode_from_slice(&bytes, fixed.with_limit::<72>())));
    let words = vec![1u64; 1000];
    let bytes = encode_to_vec(&words, standard()).unwrap();
    let at = |result: Result<(Vec<u64>, usize), _>| {
        let _: &Result<_, bincode::error::DecodeError> = &result;
        fits(result.is_ok())
    };
    println!("{} bytes:", bytes.len());
    println!("limit 1003 {}", at(decode_from_slice(&bytes, standard().with_limit::<1003>())));
    println!("limit 8000 {}", at(decode_from_slice(&bytes, standard().with_limit::<8000>())));
    println!("limit 9000 {}", at(decode_from_slice(&bytes, standard().with_limit::<9000>())));
}
RUST
seen=$(cd "$work" && cargo run -q 2>&1)
echo "$seen"
expected='44 bytes:
limit 44 refused
limit 71 refused
limit 72 decodes
1003 bytes:
limit 1003 refused
limit 8000 refused
limit 9000 decodes'
[ "$seen" = "$expected" ] || { echo "this has changed" >&2; exit 1; }
