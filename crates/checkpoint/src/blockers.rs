//! What a restore could not bring back, as a snapshot lists it.

use pagetide_process::Blocker;
use pagetide_snapshot::View;

/// The name of the attachment that lists what a restore cannot bring back.
pub(crate) const ATTACHMENT: &str = "blockers";

const VERSION: u16 = 1;

/// More than this was never written by us.
const LIMIT_BYTES: usize = 64 << 20;

fn config() -> impl bincode::config::Config {
    bincode::config::standard()
        .with_little_endian()
        .with_fixed_int_encoding()
        .with_limit::<LIMIT_BYTES>()
}

/// The bytes of the attachment.
pub(crate) fn to_bytes(blockers: &[Blocker]) -> Option<Vec<u8>> {
    bincode::encode_to_vec((VERSION, blockers), config()).ok()
}

/// True if this keeps a process from being restored by who accepts these names.
pub(crate) fn stays(blocker: &Blocker, accepted: &[String]) -> bool {
    blocker.instead.is_none() || !accepted.contains(&blocker.name())
}

/// What a restore of a snapshot could not bring back; `None` if the snapshot does not say, because it was taken
/// without what a restore needs.
pub fn blockers_of(view: &View) -> Option<Vec<Blocker>> {
    let bytes = view.attachment(ATTACHMENT)?;
    let ((version, blockers), used): ((u16, Vec<Blocker>), usize) =
        bincode::decode_from_slice(bytes, config()).ok()?;
    (version == VERSION && used == bytes.len()).then_some(blockers)
}
