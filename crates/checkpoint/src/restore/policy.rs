//! Memory policies of mappings, as mbind(2) sets them, from what the snapshot recorded of numa_maps(5). Set before there are
//! pages, so that each lies where the policy has it.
//!
//! Where a mapping has no policy of its own, numa_maps shows that of the process, which is put back by itself: what equals
//! it is left out.

use super::plan::RestorePlan;
use crate::numa::numa_of;
use pagetide_pages::PageRange;
use pagetide_process::{MemoryPolicy, RemoteCallError, RemoteCalls};
use pagetide_snapshot::View;

const SYS_MBIND: i64 = nix::libc::SYS_mbind;

/// Modes of mbind(2), by the name that numa_maps(5) has for them.
const MODES: [(&str, u32); 6] = [
    ("prefer", 1),
    ("bind", 2),
    ("interleave", 3),
    ("local", 4),
    ("prefer (many)", 5),
    ("weighted interleave", 6),
];

/// Flags of a mode, likewise: MPOL_F_STATIC_NODES, MPOL_F_RELATIVE_NODES, MPOL_F_NUMA_BALANCING.
const FLAGS: [(&str, u32); 3] = [
    ("static", 1 << 15),
    ("relative", 1 << 14),
    ("balancing", 1 << 13),
];

/// No kernel for x86-64 is built for more nodes.
const NODES: u32 = 1024;

/// The policy of one mapping.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// First address.
    start: u64,
    /// Address past the last byte.
    end: u64,
    policy: MemoryPolicy,
    /// As numa_maps(5) has it.
    text: String,
}

/// The policies that mappings of this process had of their own.
pub(super) fn policies_of(view: &View, plan: &RestorePlan<'_>) -> Vec<Policy> {
    let first = plan.kernel.threads.first();
    let of_process = first.map(|first| &first.memory_policy);
    let recorded = numa_of(view, &plan.names.numa).unwrap_or_default();
    let policy = |region: crate::numa::NumaRegion| {
        let policy = parse(&region.policy)?;
        (Some(&policy) != of_process).then_some(Policy {
            start: region.start,
            end: region.end,
            policy,
            text: region.policy,
        })
    };
    recorded.into_iter().filter_map(policy).collect()
}

/// The policy that numa_maps(5) calls so; nothing for that of everybody.
fn parse(text: &str) -> Option<MemoryPolicy> {
    let (how, nodes) = text.split_once(':').unwrap_or((text, ""));
    let (mode, flags) = how.split_once('=').unwrap_or((how, ""));
    let (_, mode) = MODES.iter().find(|(name, _)| *name == mode)?;
    let mut policy = MemoryPolicy {
        mode: *mode,
        nodes: Vec::new(),
    };
    for flag in flags.split('|').filter(|flag| !flag.is_empty()) {
        policy.mode |= FLAGS.iter().find(|(name, _)| *name == flag)?.1;
    }
    for part in nodes.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last >= NODES {
            return None;
        }
        for node in first..=last {
            let word = (node / 64) as usize;
            if policy.nodes.len() <= word {
                policy.nodes.resize(word + 1, 0);
            }
            policy.nodes[word] |= 1 << (node % 64);
        }
    }
    Some(policy)
}

/// True if any of them lies within `pages`.
pub(super) fn is_set(policies: &[Policy], pages: PageRange) -> bool {
    let (start, end) = crate::capture::SIZE.span_of(pages);
    let first = policies.partition_point(|policy| policy.end <= start);
    policies.get(first).is_some_and(|policy| policy.start < end)
}

/// Sets those that lie within `pages`, one mapping. Returns what this machine does not have, for people.
pub(super) fn set(
    calls: &mut RemoteCalls<'_>,
    policies: &[Policy],
    pages: PageRange,
) -> Result<Vec<String>, RemoteCallError> {
    let (start, end) = crate::capture::SIZE.span_of(pages);
    let first = policies.partition_point(|policy| policy.end <= start);
    let mut refused = Vec::new();
    for policy in policies[first..].iter().take_while(|one| one.start < end) {
        let (from, until) = (policy.start.max(start), policy.end.min(end));
        let words = policy.policy.nodes.iter();
        let nodes: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
        let mode = u64::from(policy.policy.mode);
        // The kernel takes one bit less than it is told.
        let bits = nodes.len() as u64 * 8 + 1;
        let set = if nodes.is_empty() {
            calls.call(SYS_MBIND, [from, until - from, mode, 0, 0, 0])
        } else {
            calls.with_bytes(&nodes, |calls, nodes| {
                calls.call(SYS_MBIND, [from, until - from, mode, nodes, bits, 0])
            })
        };
        match set {
            Ok(_) => {}
            Err(RemoteCallError::Failed { errno, .. }) => refused.push(format!(
                "{from:#x}-{until:#x} had the memory policy {}, which cannot be had here: {errno}",
                policy.text
            )),
            Err(error) => return Err(error),
        }
    }
    Ok(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_as_numa_maps_has_them() {
        let is = |text, mode, nodes: &[u64]| {
            let nodes = nodes.to_vec();
            assert_eq!(parse(text), Some(MemoryPolicy { mode, nodes }), "{text}");
        };
        is("bind:0", 2, &[1]);
        is("bind=static:0-1,3", 2 | 1 << 15, &[0b1011]);
        is("bind=static|balancing:1", 2 | 1 << 15 | 1 << 13, &[2]);
        is("prefer=relative:65", 1 | 1 << 14, &[0, 2]);
        is("prefer (many):0", 5, &[1]);
        is("weighted interleave:0-1", 6, &[3]);
        is("local", 4, &[]);
        for nothing in [
            "default",
            "",
            "bind:x",
            "bind=odd:1",
            "bind:0-100000",
            "odd:1",
        ] {
            assert_eq!(parse(nothing), None, "{nothing}");
        }
    }
}
