//! What the objects behind shared memory have, which no page table tells.

use super::sources::Sources;
use super::usage::{Unavailable, Usage};
use pagetide_kernel::maps::Mapping;
use pagetide_kernel::object_pages::{is_shared_memory, object_pages, open_object, shown_at};
use pagetide_pages::{PageRange, PageSize};
use std::io;

const SIZE: PageSize = PageSize::KIB_4;
const OBJECTS: &str = "shared-objects";

/// What a shared memory object has at one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ObjectState {
    /// The page is in memory, mapped in this process or not.
    Resident,
    /// The page has content, and is in swap.
    Swapped,
    /// There is no page: nobody touched it, or it was dropped.
    Hole,
}

/// Counts what the object behind `mapping`, all or a part of the mapping `whole`, has of it.
pub(super) fn count(
    pid: i32,
    sources: &mut Sources,
    whole: &Mapping,
    mapping: &Mapping,
    usage: &mut Usage,
) {
    if !is_shared_memory(mapping) {
        return;
    }
    let found = open_object(pid, whole)
        .and_then(|object| object_pages(&object, shown_at(mapping, mapping.pages())));
    match found {
        Ok(found) => {
            let resident = SIZE.bytes_of(found.resident.count());
            let swapped = SIZE.bytes_of(found.swapped.count());
            usage.object_resident_bytes = Some(resident);
            usage.object_present_bytes = Some(usage.present_bytes);
            usage.object_swapped_bytes = Some(swapped);
            usage.object_hole_bytes = Some(usage.size_bytes.saturating_sub(resident + swapped));
        }
        Err(error) => not_told(&mut sources.unavailable, &error),
    }
}

/// What the object behind `mapping` has at `page` of it; `None` if it is no shared memory, or is not told.
pub(super) fn state(
    pid: i32,
    sources: &mut Sources,
    mapping: &Mapping,
    page: PageRange,
) -> Option<ObjectState> {
    if !is_shared_memory(mapping) {
        return None;
    }
    let found =
        open_object(pid, mapping).and_then(|object| object_pages(&object, shown_at(mapping, page)));
    match found {
        Ok(found) if !found.resident.is_empty() => Some(ObjectState::Resident),
        Ok(found) if !found.swapped.is_empty() => Some(ObjectState::Swapped),
        Ok(_) => Some(ObjectState::Hole),
        Err(error) => {
            not_told(&mut sources.unavailable, &error);
            None
        }
    }
}

/// Says once why objects are not told.
fn not_told(unavailable: &mut Vec<Unavailable>, error: &io::Error) {
    if unavailable.iter().any(|one| one.what == OBJECTS) {
        return;
    }
    let reason = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "what shared memory has in memory and in swap is asked of the object, which the kernel opens only to \
             CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN"
                .to_owned()
        }
        _ => format!("a shared memory object did not tell what it has: {error}"),
    };
    unavailable.push(Unavailable {
        what: OBJECTS,
        reason,
    });
}
