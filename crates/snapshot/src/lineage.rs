//! Who is whose parent in a store: of all files, those of pruned snapshots included, from their headers alone.

use crate::error::{PruneError, ReadError};
use crate::layer;
use crate::model::SnapshotId;
use crate::store::Store;
use std::collections::{BTreeMap, BTreeSet};

/// A file of a store.
pub struct Link {
    pub parent: Option<SnapshotId>,
    /// It was pruned, and is there for its pages alone.
    pub is_base: bool,
    pub bytes: u64,
}

/// See the head of this file.
pub struct Lineage {
    pub links: BTreeMap<SnapshotId, Link>,
}

impl Lineage {
    /// All of a store. What cannot be read is an error: nothing may be taken away from what is not understood.
    pub fn of(store: &Store) -> Result<Self, PruneError> {
        let names = store.names()?;
        let mut links = BTreeMap::new();
        let found = names.iter().filter_map(|name| {
            let snapshot = layer::snapshot_of(name).map(|id| (id, false));
            snapshot.or_else(|| layer::base_of(name).map(|id| (id, true)))
        });
        for (id, is_base) in found {
            let file = match store.file(id) {
                Ok(file) => file,
                Err(error @ ReadError::Io { .. }) => return Err(error.into()),
                Err(source) => {
                    return Err(PruneError::Damaged {
                        snapshot: id,
                        source,
                    });
                }
            };
            let header = &file.header;
            let link = Link {
                parent: header.parent.map(|(parent, _)| parent),
                is_base,
                bytes: header.file_length(),
            };
            links.insert(id, link);
        }
        let lineage = Self { links };
        lineage.check()?;
        Ok(lineage)
    }

    /// Whatever a snapshot needs is there.
    fn check(&self) -> Result<(), PruneError> {
        for (&snapshot, link) in self.links.iter().filter(|(_, link)| !link.is_base) {
            let mut at = (snapshot, link.parent);
            while let (child, Some(parent)) = at {
                let Some(link) = self.links.get(&parent) else {
                    let source = ReadError::ParentMissing {
                        snapshot: child,
                        parent,
                    };
                    return Err(PruneError::Damaged { snapshot, source });
                };
                // Further back it was looked at already.
                at = if link.is_base {
                    (parent, link.parent)
                } else {
                    break;
                };
            }
        }
        Ok(())
    }

    /// The numbers of the snapshots that were not pruned, ascending.
    pub fn snapshots(&self) -> impl DoubleEndedIterator<Item = SnapshotId> + '_ {
        let links = self.links.iter().filter(|(_, link)| !link.is_base);
        links.map(|(&id, _)| id)
    }

    /// The numbers of those that were, ascending.
    pub fn bases(&self) -> impl DoubleEndedIterator<Item = SnapshotId> + '_ {
        let links = self.links.iter().filter(|(_, link)| link.is_base);
        links.map(|(&id, _)| id)
    }

    /// A snapshot and its ancestors, newest first.
    pub fn ancestors(&self, id: SnapshotId) -> impl Iterator<Item = SnapshotId> + '_ {
        let parent = |id: &SnapshotId| self.links.get(id)?.parent;
        std::iter::successors(Some(id), parent)
    }

    /// All that is needed for these and for every snapshot that was not pruned.
    pub fn needed(&self, besides: impl IntoIterator<Item = SnapshotId>) -> BTreeSet<SnapshotId> {
        let mut needed = BTreeSet::new();
        for id in self.snapshots().chain(besides) {
            for ancestor in self.ancestors(id) {
                if !needed.insert(ancestor) {
                    break;
                }
            }
        }
        needed
    }

    /// The children of each that are among `those`.
    pub fn children(&self, those: &BTreeSet<SnapshotId>) -> BTreeMap<SnapshotId, Vec<SnapshotId>> {
        let mut children: BTreeMap<SnapshotId, Vec<SnapshotId>> = BTreeMap::new();
        for &id in those {
            if let Some(parent) = self.links.get(&id).and_then(|link| link.parent) {
                children.entry(parent).or_default().push(id);
            }
        }
        children
    }
}
