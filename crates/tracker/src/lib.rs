//! Which pages were written since the last harvest.
//!
//! A [`Tracker`] watches mappings of one address space. [`Tracker::harvest`] atomically takes and
//! clears the written set; what it gives is a [`Harvest`], which is either committed (the pages are
//! durably stored) or given back (they count as written again). There is no third way: a harvest
//! that is dropped gives back.
//!
//! The tracker never stops a process, never enters one, and copies no page. It is handed the file
//! descriptors it needs. A page reported too often is a cost, a page missed is a bug; when unsure, it
//! says written.

mod backend;
mod empty;
mod error;
mod harvest;
mod labels;
mod layout_change;
mod seen;
mod soft_dirty;
mod tracker;
mod wp_async;

pub use backend::Backend;
pub use error::TrackError;
pub use harvest::{GivenBack, Harvest};
pub use layout_change::{LayoutChange, Refused, RefusedReason};
pub use soft_dirty::SoftDirty;
pub use tracker::Tracker;
pub use wp_async::WpAsync;
