//! On which NUMA nodes the pages of each region lay, and by what policy: the attachment `numa` of a
//! snapshot. A restore puts the policies back (`restore::policy`); the nodes describe.
//!
//! On a machine with one node of memory every page is there, and only policies are recorded: then there is most often
//! nothing to tell, and no attachment is made.

use pagetide_kernel::maps::Mapping;
use pagetide_kernel::numa_maps::numa_mappings;
use pagetide_process::Encoding;
use pagetide_snapshot::View;

/// The name of the attachment of a process that is checkpointed alone.
pub(crate) const ATTACHMENT: &str = "numa";

/// The policy of who has asked for none.
const DEFAULT: &str = "default";

/// Nothing longer was ever written by us.
const ENCODING: Encoding<{ 256 << 20 }> = Encoding::new(1);

/// What the kernel said of one region.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
#[non_exhaustive]
pub struct NumaRegion {
    /// Address of the first byte.
    pub start: u64,
    /// Address past the last byte.
    pub end: u64,
    /// The memory policy as numa_maps(5) prints it, such as `default` or `bind:0-1`.
    pub policy: String,
    /// Nodes, ascending, and how many pages of the region lay on each.
    pub nodes: Vec<(u32, u64)>,
    /// The unit of these pages in bytes; 0 if there were none.
    pub page_bytes: u64,
}

/// The record of one process, by ascending address. Regions without pages and with the default policy
/// are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NumaRecord {
    pub regions: Vec<NumaRegion>,
}

/// How many nodes of this machine have memory; 1 where the kernel does not tell.
fn nodes_with_memory() -> usize {
    let list = std::fs::read_to_string("/sys/devices/system/node/has_memory").unwrap_or_default();
    let parts = list.trim().split(',');
    let count = |part: &str| match part.split_once('-') {
        Some((first, last)) => match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), Ok(last)) => (last + 1).saturating_sub(first),
            _ => 1,
        },
        None => 1,
    };
    parts.map(count).sum()
}

impl NumaRecord {
    /// What the kernel says now of `mappings` of process `pid`, sorted. The kernel walks all page tables
    /// for it: not for a stop window. What it does not tell is not recorded.
    pub fn of_process(pid: i32, mappings: &[Mapping]) -> Self {
        let mut told = Self::told(pid, mappings);
        if nodes_with_memory() < 2 {
            told.regions.retain(|region| region.policy != DEFAULT);
            for region in &mut told.regions {
                region.nodes.clear();
                region.page_bytes = 0;
            }
        }
        told
    }

    fn told(pid: i32, mappings: &[Mapping]) -> Self {
        let all = numa_mappings(pid).unwrap_or_else(|error| {
            tracing::debug!(%error, "the nodes of memory are not recorded");
            Vec::new()
        });
        let tells = all
            .into_iter()
            .filter(|told| told.policy != DEFAULT || !told.nodes.is_empty());
        let region = |told: pagetide_kernel::numa_maps::NumaMapping| {
            let at = mappings.binary_search_by_key(&told.start, |mapping| mapping.start);
            Some(NumaRegion {
                start: told.start,
                end: mappings.get(at.ok()?)?.end,
                policy: told.policy,
                nodes: told.nodes.into_iter().collect(),
                page_bytes: told.page_bytes.unwrap_or(0),
            })
        };
        Self {
            regions: tells.filter_map(region).collect(),
        }
    }

    /// The bytes of the attachment; `None` if there is nothing to tell, or more than the limit.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        if self.regions.is_empty() {
            return None;
        }
        ENCODING.encode(&self.regions)
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let regions = ENCODING.decode(bytes).ok()?;
        Some(Self { regions })
    }
}

/// On which NUMA nodes the memory of a process lay when the snapshot was taken: `attachment` is
/// [`crate::MemberNames::numa`]. `None` if the snapshot does not say, as on a machine with one node.
/// Source: numa_maps(5).
pub fn numa_of(view: &View, attachment: &str) -> Option<Vec<NumaRegion>> {
    Some(NumaRecord::from_bytes(view.attachment(attachment)?)?.regions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_refused_when_cut() {
        let region = NumaRegion {
            start: 0x1000,
            end: 0x9000,
            policy: "bind:0-1".to_owned(),
            nodes: vec![(0, 3), (1, 4)],
            page_bytes: 4096,
        };
        let record = NumaRecord {
            regions: vec![region],
        };
        let bytes = record.to_bytes().expect("there is something to tell");
        assert_eq!(NumaRecord::from_bytes(&bytes), Some(record));
        for length in 0..bytes.len() {
            assert_eq!(NumaRecord::from_bytes(&bytes[..length]), None);
        }
    }

    #[test]
    fn an_empty_record_costs_nothing() {
        assert_eq!(NumaRecord::default().to_bytes(), None);
    }

    #[test]
    fn what_the_kernel_tells_of_this_process_fits_its_mappings() {
        let pid = std::process::id().cast_signed();
        let mappings = pagetide_kernel::maps::mappings(pid).expect("maps");
        let record = NumaRecord::told(pid, &mappings);
        let pages: u64 = record
            .regions
            .iter()
            .flat_map(|region| &region.nodes)
            .map(|(_, pages)| pages)
            .sum();
        // The kernel may have been built without NUMA; then it tells nothing of any region.
        assert!(record.regions.is_empty() || pages > 10, "{record:?}");
        for region in &record.regions {
            assert!(region.start < region.end && !region.policy.is_empty());
        }
    }
}
