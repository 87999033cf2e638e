//! What the kernel maps into every process by itself: the vdso, and the data that its code reads. A program holds
//! addresses of functions in it, so it has to be where it was, and the same.

use pagetide_kernel::maps::{Mapping, MappingName};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// One such mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelMapping {
    /// As `/proc/PID/maps` shows it: `[vdso]`, `[vvar]`, `[vvar_vclock]`.
    pub name: String,
    /// Address of the first byte.
    pub start: u64,
    /// Address past the last byte.
    pub end: u64,
}

/// Why the vdso cannot be what it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelMappingsError {
    /// There are others, or they have other sizes.
    #[error(
        "this kernel maps {present} into a process, and the one of the snapshot mapped {wanted}"
    )]
    Others {
        /// What this kernel maps.
        present: String,
        /// What the kernel of the snapshot mapped.
        wanted: String,
    },
    /// The vdso has no system call, or there is none.
    #[error("this kernel maps no vdso with a system call into a process")]
    NoSystemCall,
}

/// One step of moving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub start: u64,
    pub end: u64,
    pub to: u64,
}

/// The kernel's own mappings among those of a process, ascending. Not `[vsyscall]`, which is part of the kernel's address
/// space, nor what it maps for probes where it needs it.
pub(super) fn among(mappings: &[Mapping]) -> Vec<KernelMapping> {
    let kernel = mappings.iter().filter(|mapping| match mapping.name {
        MappingName::Vdso => true,
        MappingName::KernelData(name) => name != "vsyscall" && !name.starts_with("uprobes"),
        _ => false,
    });
    kernel
        .map(|mapping| KernelMapping {
            name: mapping.name.to_string(),
            start: mapping.start,
            end: mapping.end,
        })
        .collect()
}

/// The kernel's own mappings of a process that lives.
pub fn kernel_mappings_of(
    pid: i32,
) -> Result<Vec<KernelMapping>, pagetide_kernel::maps::MapsError> {
    Ok(among(&pagetide_kernel::maps::mappings(pid)?))
}

fn listed(mappings: &[KernelMapping]) -> String {
    let one = |mapping: &KernelMapping| {
        format!("{} ({} bytes)", mapping.name, mapping.end - mapping.start)
    };
    match mappings {
        [] => String::from("nothing"),
        mappings => mappings.iter().map(one).collect::<Vec<_>>().join(", "),
    }
}

/// How to get from where they are to where they were, one mapping at a time, and not over what is in `kept`.
pub(super) fn moves(
    present: &[KernelMapping],
    wanted: &[KernelMapping],
    kept: &[(u64, u64)],
) -> Result<Vec<Move>, KernelMappingsError> {
    let shape = |mapping: &KernelMapping| (mapping.name.clone(), mapping.end - mapping.start);
    if !present.iter().map(shape).eq(wanted.iter().map(shape)) {
        return Err(KernelMappingsError::Others {
            present: listed(present),
            wanted: listed(wanted),
        });
    }
    let changed = || {
        let pairs = present.iter().zip(wanted);
        pairs.filter(|(is, to)| is.start != to.start)
    };
    let overlaps = |one: &KernelMapping, start: u64, end: u64| one.start < end && start < one.end;
    let entangled =
        changed().any(|(_, to)| present.iter().any(|is| overlaps(is, to.start, to.end)));
    let direct = |is: &KernelMapping, to: u64| Move {
        start: is.start,
        end: is.end,
        to,
    };
    if !entangled {
        return Ok(changed().map(|(is, to)| direct(is, to.start)).collect());
    }
    // By way of a place that nobody is at and nobody wants.
    let total: u64 = present.iter().map(|is| is.end - is.start).sum();
    let free = |start: &u64| {
        let taken = |one: &KernelMapping| overlaps(one, *start, *start + total);
        let is_kept = |range: &(u64, u64)| range.0 < *start + total && *start < range.1;
        !present.iter().any(taken) && !wanted.iter().any(taken) && !kept.iter().any(is_kept)
    };
    let places = (1..).map(|number| number << 32);
    let Some(mut place) = places.take(1 << 14).find(free) else {
        return Err(KernelMappingsError::NoSystemCall);
    };
    let mut there = Vec::new();
    for (is, to) in present.iter().zip(wanted) {
        let length = is.end - is.start;
        there.push((
            direct(is, place),
            Move {
                start: place,
                end: place + length,
                to: to.start,
            },
        ));
        place += length;
    }
    let (away, back): (Vec<Move>, Vec<Move>) = there.into_iter().unzip();
    Ok(away.into_iter().chain(back).collect())
}

/// A `syscall` instruction in the vdso, which lies at `range`.
pub(super) fn system_call(memory: &File, range: (u64, u64)) -> Result<u64, KernelMappingsError> {
    const SYSCALL: &[u8] = &[0x0f, 0x05];
    let length = usize::try_from(range.1 - range.0).unwrap_or(0);
    let mut code = vec![0; length];
    let read = memory.read_exact_at(&mut code, range.0);
    let at = read.ok().and_then(|()| {
        code.windows(SYSCALL.len())
            .position(|window| window == SYSCALL)
    });
    at.map(|at| range.0 + at as u64)
        .ok_or(KernelMappingsError::NoSystemCall)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(places: [u64; 2]) -> Vec<KernelMapping> {
        let names = ["[vvar]", "[vdso]"];
        let lengths = [0x4000, 0x2000];
        (0..2)
            .map(|n| KernelMapping {
                name: names[n].to_owned(),
                start: places[n],
                end: places[n] + lengths[n],
            })
            .collect()
    }

    /// Carries the moves out on paper: no move may fall on what is somewhere.
    fn carried_out(present: &[KernelMapping], moves: &[Move]) -> Vec<u64> {
        let mut now: Vec<(u64, u64)> = present.iter().map(|is| (is.start, is.end)).collect();
        for step in moves {
            let number = now
                .iter()
                .position(|is| *is == (step.start, step.end))
                .expect("it is there");
            let length = step.end - step.start;
            for other in &now {
                assert!(
                    step.to + length <= other.0 || other.1 <= step.to,
                    "{step:?} {now:x?}"
                );
            }
            now[number] = (step.to, step.to + length);
        }
        now.into_iter().map(|(start, _)| start).collect()
    }

    #[test]
    fn they_make_way_for_each_other_and_not_over_what_is_kept() {
        let present = at([0x10_0000, 0x10_4000]);
        let wanted = at([0x10_4000, 0x10_0000]);
        let kept = [(1 << 32, (1 << 32) + 0x1000), (3 << 32, 4 << 32)];
        let moves = moves(&present, &wanted, &kept).expect("the same mappings");
        assert_eq!(carried_out(&present, &moves), [0x10_4000, 0x10_0000]);
        for step in &moves {
            let end = step.to + (step.end - step.start);
            let is_hit = |range: &&(u64, u64)| range.0 < end && step.to < range.1;
            assert_eq!(kept.iter().find(is_hit), None, "{step:?}");
        }
    }

    #[test]
    fn they_get_where_they_were_from_anywhere() {
        let present = at([0x10_0000, 0x10_4000]);
        for wanted in [
            [0x10_0000, 0x10_4000],
            [0x90_0000, 0x90_4000],
            [0x10_1000, 0x10_5000],
            [0xf_f000, 0x10_3000],
            [0x10_2000, 0x10_0000],
        ] {
            let wanted = at(wanted);
            let moves = moves(&present, &wanted, &[]).expect("the same mappings");
            let starts: Vec<u64> = wanted.iter().map(|to| to.start).collect();
            assert_eq!(carried_out(&present, &moves), starts);
        }
    }

    #[test]
    fn other_mappings_are_refused_by_name() {
        let present = at([0x10_0000, 0x10_4000]);
        let mut wanted = present.clone();
        wanted[0].end += 0x1000;
        let error = moves(&present, &wanted, &[]).expect_err("another size");
        let text = error.to_string();
        assert!(
            text.contains("[vvar] (16384 bytes)") && text.contains("[vvar] (20480 bytes)"),
            "{text}"
        );
        assert!(moves(&present, &wanted[..1], &[]).is_err());
    }
}
