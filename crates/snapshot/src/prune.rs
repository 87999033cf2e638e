//! Making chains shorter: snapshots that are not to be kept are taken away, and one delta takes the place of many.
//!
//! A snapshot that goes may have pages that newer ones need. It is then only renamed, so that it is no snapshot any more but
//! a *base*, which costs nothing. Bases that follow each other become one file when those after the first are together as
//! large as it (`merge`): so each page is copied some ten or twenty times until it lies in the oldest of them, and that one is
//! rewritten when as much has come after it, however often is pruned.
//!
//! At each moment every snapshot that is listed is whole: a file is replaced by one that stands for the same, and is
//! removed when nothing needs it. Readers are not in the way: a snapshot that is read stays as a base, and a file that is no
//! longer where a reader looks for it is found anew.

use crate::error::{PruneError, ReadError};
use crate::layer::{self, base_name, file_name};
use crate::lineage::Lineage;
use crate::merge::{Merged, failure, merge};
use crate::model::SnapshotId;
use crate::storage::{Access, Right, StorageLock};
use crate::store::Store;
use std::collections::BTreeSet;
use std::io::ErrorKind;

const NANOSECONDS: u64 = 1_000_000_000;
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// Which snapshots stay: all that any of these names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// So many of the newest.
    pub last: u64,
    /// Of so many of the newest hours that have any, the newest in each. Hours and days are those of UTC.
    pub hourly: u64,
    /// Of so many of the newest days that have any, the newest in each.
    pub daily: u64,
}

/// What was pruned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pruned {
    /// The snapshots that are gone, or would be.
    pub removed: Vec<SnapshotId>,
    /// How many are left.
    pub kept: u64,
    /// Those of the removed whose files stay because somebody reads them.
    pub in_use: Vec<SnapshotId>,
    /// Bytes of the files that were removed or replaced, less those of the files that took their place.
    pub freed_bytes: i64,
    /// How many files are there only for the pages that snapshots need.
    pub base_files: u64,
    /// How long they are together.
    pub base_bytes: u64,
}

impl Store {
    /// Takes away all snapshots but those to keep, while others read and write. Needs no room for what is only taken away, and
    /// as much as the smaller of the files that are put together otherwise. With `dry_run` only says which.
    pub fn prune(&self, keep: &Keep, dry_run: bool) -> Result<Pruned, PruneError> {
        if *keep == Keep::default() {
            return Err(PruneError::NothingKept);
        }
        let pruning = if dry_run {
            None
        } else {
            Some(Pruning::begin(self)?)
        };
        let lineage = Lineage::of(self)?;
        let kept = self.kept(keep, &lineage)?;
        let going = lineage.snapshots().filter(|id| !kept.contains(id));
        let removed: Vec<SnapshotId> = going.collect();
        let Some(pruning) = pruning else {
            return Ok(Pruned {
                removed,
                kept: kept.len() as u64,
                ..Pruned::default()
            });
        };
        pruning.hide(&removed)?;
        let mut pruned = pruning.tidy()?;
        pruned.removed = removed;
        Ok(pruned)
    }

    /// Takes away the snapshots between `from` and `to`: `to` is a delta to `from` then.
    pub fn squash(&self, from: SnapshotId, to: SnapshotId) -> Result<Pruned, PruneError> {
        self.unpruned(from)?;
        self.unpruned(to)?;
        let pruning = Pruning::begin(self)?;
        let lineage = Lineage::of(self)?;
        let mut path: Vec<SnapshotId> = lineage.ancestors(to).take_while(|&id| id > from).collect();
        let last = path.last().and_then(|id| lineage.links[id].parent);
        if last != Some(from) {
            return Err(PruneError::NotAncestor { from, to });
        }
        path.reverse();
        let between = &path[..path.len() - 1];
        let children = lineage.children(&lineage.needed([]));
        for (&snapshot, next) in between.iter().zip(&path[1..]) {
            let others = children.get(&snapshot).into_iter().flatten();
            if let Some(&child) = others.into_iter().find(|child| *child != next) {
                return Err(PruneError::Fork { snapshot, child });
            }
        }
        let removed: Vec<SnapshotId> = between
            .iter()
            .copied()
            .filter(|id| !lineage.links[id].is_base)
            .collect();
        let mut freed = 0;
        if !between.is_empty() {
            pruning.check_free(to)?;
            // What can fail for want of room is done before anything is taken away.
            let merged = merge(self, &path)?;
            pruning.hide(&removed)?;
            freed = pruning.put(merged, to, &lineage)?;
        }
        let mut pruned = pruning.tidy()?;
        pruned.freed_bytes += freed;
        pruned.removed = removed;
        Ok(pruned)
    }

    /// Those that stay.
    fn kept(&self, keep: &Keep, lineage: &Lineage) -> Result<BTreeSet<SnapshotId>, PruneError> {
        let newest = lineage.snapshots().rev();
        let last = usize::try_from(keep.last).unwrap_or(usize::MAX);
        let mut kept: BTreeSet<SnapshotId> = newest.take(last).collect();
        if keep.hourly == 0 && keep.daily == 0 {
            return Ok(kept);
        }
        let (mut hours, mut days) = (BTreeSet::new(), BTreeSet::new());
        for id in lineage.snapshots().rev() {
            let seconds = self.file(id)?.metadata()?.created_unix_ns / NANOSECONDS;
            for (spans, length, most) in [
                (&mut hours, HOUR, keep.hourly),
                (&mut days, DAY, keep.daily),
            ] {
                if (spans.len() as u64) < most && spans.insert(seconds / length) {
                    kept.insert(id);
                }
            }
            if hours.len() as u64 >= keep.hourly && days.len() as u64 >= keep.daily {
                break;
            }
        }
        Ok(kept)
    }
}

/// The right to prune a store, as long as it is being done.
struct Pruning<'s> {
    store: &'s Store,
    _lock: Box<dyn StorageLock>,
}

impl<'s> Pruning<'s> {
    /// Also removes what somebody left who crashed.
    fn begin(store: &'s Store) -> Result<Self, PruneError> {
        let lock = store.take_right(Right::Prune)?;
        let pruning = Pruning { store, _lock: lock };
        for name in store.names()?.iter().filter(|name| layer::is_merging(name)) {
            pruning.changed(name, store.storage().remove(name))?;
        }
        Ok(pruning)
    }

    /// From now on these are bases.
    fn hide(&self, ids: &[SnapshotId]) -> Result<(), PruneError> {
        for &id in ids {
            let (from, to) = (file_name(id), base_name(id));
            self.changed(&from, self.store.storage().rename(&from, &to))?;
        }
        match ids {
            [] => Ok(()),
            [first, ..] => self.changed(&file_name(*first), self.store.storage().sync()),
        }
    }

    /// Puts bases together and removes those that nothing needs.
    fn tidy(&self) -> Result<Pruned, PruneError> {
        let mut freed = 0;
        let (mut lineage, held) = self.look()?;
        freed += self.sweep(&lineage, &held)?;
        let needed = lineage.needed(held.iter().copied());
        let groups = groups(&lineage, &needed, &held);
        for group in &groups {
            freed += self.rewrite(group, &lineage)?;
        }
        if !groups.is_empty() {
            lineage = Lineage::of(self.store)?;
            freed += self.sweep(&lineage, &held)?;
        }
        let needed = lineage.needed(held.iter().copied());
        let bases = lineage.bases().filter(|id| needed.contains(id));
        let lengths: Vec<u64> = bases.map(|id| lineage.links[&id].bytes).collect();
        Ok(Pruned {
            kept: lineage.snapshots().count() as u64,
            base_files: lengths.len() as u64,
            base_bytes: lengths.iter().sum(),
            in_use: held.into_iter().collect(),
            freed_bytes: freed,
            ..Pruned::default()
        })
    }

    /// All files, and which of the bases are being read.
    fn look(&self) -> Result<(Lineage, BTreeSet<SnapshotId>), PruneError> {
        let _gate = self.store.pass(Access::Exclusive)?;
        let lineage = Lineage::of(self.store)?;
        let mut held = BTreeSet::new();
        for id in lineage.bases() {
            if self.store.file(id)?.is_held()? {
                held.insert(id);
            }
        }
        Ok((lineage, held))
    }

    /// Removes what nothing needs; how many bytes that frees.
    fn sweep(&self, lineage: &Lineage, held: &BTreeSet<SnapshotId>) -> Result<i64, PruneError> {
        let needed = lineage.needed(held.iter().copied());
        let mut freed = 0;
        let _gate = self.store.pass(Access::Exclusive)?;
        // The newest first, so that whatever is left of it when this ends too early hangs together.
        for id in lineage.bases().rev().filter(|id| !needed.contains(id)) {
            let name = base_name(id);
            self.changed(&name, self.store.storage().remove(&name))?;
            freed += lineage.links[&id].bytes.cast_signed();
        }
        Ok(freed)
    }

    /// Puts a file in the place of the last of `group`, over the parent of the first; how many bytes the last is shorter.
    fn rewrite(&self, group: &[SnapshotId], lineage: &Lineage) -> Result<i64, PruneError> {
        match group.last() {
            Some(&last) => self.put(merge(self.store, group)?, last, lineage),
            None => Ok(0),
        }
    }

    /// Puts a file in the place of that of a snapshot or base.
    fn put(&self, merged: Merged, id: SnapshotId, lineage: &Lineage) -> Result<i64, PruneError> {
        let link = &lineage.links[&id];
        let name = if link.is_base {
            base_name(id)
        } else {
            file_name(id)
        };
        let _gate = self.store.pass(Access::Exclusive)?;
        self.check_free(id)?;
        let bytes = merged.bytes;
        let replaced = merged.file.replace(&name);
        replaced.map_err(|error| failure(self.store, id, "put in its place", error))?;
        Ok(link.bytes.cast_signed() - bytes.cast_signed())
    }

    /// Nobody reads it: whoever does holds the file that is there, and not one in its place.
    fn check_free(&self, id: SnapshotId) -> Result<(), PruneError> {
        if self.store.file(id)?.is_held()? {
            Err(PruneError::InUse { snapshot: id })
        } else {
            Ok(())
        }
    }

    /// An operation on a file of this name; that there is none any more is as good.
    fn changed(&self, name: &str, result: std::io::Result<()>) -> Result<(), PruneError> {
        match result {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(PruneError::Read(ReadError::Io {
                    location: self.store.location(),
                    operation: format!("take away {name}"),
                    source: error,
                }))
            }
            _ => Ok(()),
        }
    }
}

/// Bases to be put together: of those that follow each other with no branch in between, from the first on that is not
/// larger than all after it.
fn groups(
    lineage: &Lineage,
    needed: &BTreeSet<SnapshotId>,
    held: &BTreeSet<SnapshotId>,
) -> Vec<Vec<SnapshotId>> {
    let children = lineage.children(needed);
    let is_free = |id: &SnapshotId| lineage.links[id].is_base && !held.contains(id);
    let only_child = |id: SnapshotId| match children.get(&id).map(Vec::as_slice) {
        Some(&[child]) => Some(child),
        _ => None,
    };
    let mut seen = BTreeSet::new();
    let mut groups = Vec::new();
    for &first in needed.iter().filter(|id| is_free(id)) {
        if seen.contains(&first) {
            continue;
        }
        let next = |id: &SnapshotId| only_child(*id).filter(is_free);
        let row: Vec<SnapshotId> = std::iter::successors(Some(first), next).collect();
        seen.extend(row.iter().copied());
        let sizes: Vec<u64> = row.iter().map(|id| lineage.links[id].bytes).collect();
        if let Some(from) = first_outgrown(&sizes) {
            groups.push(row[from..].to_vec());
        }
    }
    groups
}

/// The first that is not larger than all after it together.
fn first_outgrown(sizes: &[u64]) -> Option<usize> {
    let mut after: u64 = sizes.iter().sum();
    for (position, size) in sizes.iter().enumerate() {
        after -= size;
        if after > 0 && *size <= after {
            return Some(position);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::first_outgrown;

    #[test]
    fn a_file_is_put_together_with_what_has_outgrown_it() {
        assert_eq!(first_outgrown(&[]), None);
        assert_eq!(first_outgrown(&[7]), None);
        assert_eq!(first_outgrown(&[100, 30, 10]), None);
        assert_eq!(first_outgrown(&[100, 30, 30]), Some(1));
        assert_eq!(first_outgrown(&[100, 60, 40]), Some(0));
    }

    /// Files of one size each come one after another: no page is copied often, and there are never many files.
    #[test]
    fn a_thousand_prunes_copy_little_and_leave_few_files() {
        let mut sizes: Vec<u64> = vec![1000];
        let (mut copied, mut most) = (0, 0);
        for _ in 0..10_000 {
            sizes.push(1);
            if let Some(from) = first_outgrown(&sizes) {
                let sum: u64 = sizes[from..].iter().sum();
                copied += sum;
                sizes.truncate(from);
                // A base does not grow: what is new in it takes the place of what was there.
                sizes.push(if from == 0 { 1000 } else { sum });
            }
            most = most.max(sizes.len());
        }
        assert!(copied < 20 * 10_000 && most <= 12, "{copied} {most}");
    }
}
