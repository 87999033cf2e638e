//! What one snapshot is made with: of whom, from which parent on, and where its pages go.

use crate::arena::Arena;
use crate::files::Files;
use crate::harvests::{Harvests, Writing};
use crate::members::Members;
use crate::options::Options;
use pagetide_snapshot::View;

/// See the head of this file.
pub(crate) struct Context<'a> {
    pub members: &'a mut Members,
    pub options: &'a Options,
    pub files: &'a mut Files,
    /// Memory for copies, until they are stored.
    pub arena: &'a mut Arena,
    /// `None` for a full snapshot.
    pub parent: Option<&'a View>,
    pub writing: Writing,
    pub harvests: &'a mut Harvests,
}
