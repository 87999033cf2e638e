//! What attachments a snapshot can have, so that whoever gives one learns it then and not when the snapshot is stored.

use crate::error::WriteError;
use crate::format::MAX_METADATA_BYTES;

/// The most that all attachments of a snapshot may take with their names, in bytes: 48 MiB. The rest of the section that
/// they stand in is for regions.
pub const ATTACHMENTS_BYTES_MAX: u64 = MAX_METADATA_BYTES / 4 * 3;

/// Fails if a snapshot cannot have attachments of these names and lengths in bytes.
///
/// # Errors
/// [`WriteError::Invalid`], which says why.
pub fn check_attachments<'a>(
    attachments: impl Iterator<Item = (&'a str, u64)>,
) -> Result<(), WriteError> {
    let mut all_bytes = 0u64;
    for (name, bytes) in attachments {
        if name.is_empty() {
            let what = "an attachment has no name".to_owned();
            return Err(WriteError::Invalid { what });
        }
        all_bytes = all_bytes
            .saturating_add(name.len() as u64)
            .saturating_add(bytes);
        if all_bytes > ATTACHMENTS_BYTES_MAX {
            let what = format!(
                "with {name} of {bytes} bytes its attachments take more than {ATTACHMENTS_BYTES_MAX} bytes: what is \
                 large belongs into a region"
            );
            return Err(WriteError::Invalid { what });
        }
    }
    Ok(())
}
