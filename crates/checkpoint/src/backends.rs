//! By which backend written pages are found: which there are on this kernel, and the choice among them.

use crate::error::AttachError;
use pagetide_kernel::probe::Probe;
use pagetide_tracker::Backend;

/// The backends, the preferred first, and for each why it cannot be used, if so.
pub fn backends(probe: &Probe) -> Vec<(Backend, Result<(), String>)> {
    vec![
        (Backend::WpAsync, probe.wp_async.clone()),
        (Backend::SoftDirty, probe.soft_dirty.clone()),
        (Backend::Rehash, Ok(())),
    ]
}

pub(crate) fn choose_backend(wanted: Option<Backend>) -> Result<Backend, AttachError> {
    let usable = backends(&Probe::of_this_kernel());
    match wanted {
        None => Ok(usable
            .iter()
            .find(|(_, usable)| usable.is_ok())
            .map_or(Backend::Rehash, |(backend, _)| *backend)),
        Some(backend) => match usable.into_iter().find(|(found, _)| *found == backend) {
            Some((_, Err(reason))) => Err(AttachError::Backend { backend, reason }),
            _ => Ok(backend),
        },
    }
}
