//! Reading every byte of a store to find damage.
#![allow(unused)]

use crate::model::SnapshotId;

/// A damaged part of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// Which snapshot.
    pub snapshot: SnapshotId,
    /// The name of the space, if the damage is to pages.
    pub space: Option<String>,
    /// The address of the first damaged byte in the space, if the damage is to pages.
    pub address: Option<u64>,
    /// How many bytes are lost: of the space if there is an address, of the file otherwise.
    pub length_bytes: u64,
    /// What is wrong, for people.
    pub what: String,
}

/// How far a verification has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyProgress {
    /// The snapshot being read.
    pub snapshot: SnapshotId,
    /// Bytes of files checked so far.
    pub done_bytes: u64,
    /// Bytes of all files.
    pub total_bytes: u64,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// True if there is no damage.
    pub ok: bool,
    /// How many snapshots were checked.
    pub snapshots: u64,
    /// Bytes of files checked.
    pub checked_bytes: u64,
    /// The damage, by snapshot.
    pub damaged: Vec<Damage>,
}
