//! What a restore could not bring back, as a snapshot lists it.

use pagetide_process::{Blocker, Encoding};
use pagetide_snapshot::View;

/// The name of the attachment that lists what a restore cannot bring back.
pub(crate) const ATTACHMENT: &str = "blockers";

/// Nothing longer was ever written by us.
const ENCODING: Encoding<{ 64 << 20 }> = Encoding::new(1);

/// The bytes of the attachment.
pub(crate) fn to_bytes(blockers: &[Blocker]) -> Option<Vec<u8>> {
    ENCODING.encode(&blockers)
}

/// True if this keeps a process from being restored by who accepts these names.
pub(crate) fn stays(blocker: &Blocker, accepted: &[String]) -> bool {
    blocker.instead.is_none() || !accepted.contains(&blocker.name())
}

/// What a restore of a snapshot could not bring back; `None` if the snapshot does not say, because it was taken
/// without what a restore needs.
pub fn blockers_of(view: &View) -> Option<Vec<Blocker>> {
    ENCODING.decode(view.attachment(ATTACHMENT)?).ok()
}
