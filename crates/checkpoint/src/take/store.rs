//! What was captured goes into the file, while the processes run again.

use super::context::Context;
use super::droppable;
use super::second_look::second_look;
use super::standstill::Instantaneous;
use crate::compared::ComparedBecause;
use crate::error::TakeError;
use crate::files;
use crate::harvests::{Writing, check_cancelled};
use crate::mapped_file::file_page;
use crate::report::NotTracked;
use pagetide_pages::{PageIndex, PageRange};
use pagetide_snapshot::PageState;

/// So many pieces are stored between two looks at whether the caller wants no more.
const PIECES_AT_ONCE: usize = 4096;

/// Stores what the arena holds, in batches, so that it can be cancelled and watched.
#[tracing::instrument(level = "debug", skip_all, name = "store pages")]
pub(crate) fn pages(context: &mut Context<'_>, found: &Instantaneous) -> Result<(), TakeError> {
    let Writing { spaces, writer } = &mut context.writing;
    spaces.tell(writer)?;
    let left_out = droppable::of_all(context.members, spaces, &found.members);
    let all = context.arena.pieces_without(&left_out);
    let length = |pieces: &[(PageIndex, &[u8])]| -> u64 {
        pieces.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    };
    let total: u64 = all.iter().map(|(_, pieces)| length(pieces)).sum();
    spaces.stored.expect(total, true);
    for (space, pieces) in &all {
        for batch in pieces.chunks(PIECES_AT_ONCE) {
            check_cancelled(context.options)?;
            writer.put_pages(*space, batch)?;
            spaces.stored.add(length(batch));
        }
    }
    Ok(())
}

/// Stores what is known of pages without bytes.
#[tracing::instrument(level = "debug", skip_all, name = "store states")]
pub(crate) fn states(context: &mut Context<'_>, found: &Instantaneous) -> Result<(), TakeError> {
    let Writing { spaces, writer } = &mut context.writing;
    for (member, stopped) in context.members.list().iter().zip(&found.members) {
        let Some(stopped) = stopped else { continue };
        let number = spaces.number_of(&member.names.space);
        for &(range, state) in &stopped.states {
            writer.put_state(number, range, state)?;
        }
        for &range in stopped.droppable().ranges() {
            writer.put_state(number, range, PageState::Zero)?;
        }
        for (mapping, _) in stopped.layout.each() {
            let pages = stopped.in_file.within(mapping.pages());
            for &range in pages.ranges() {
                let first = file_page(mapping, range.start());
                let shown = PageRange::with_count(first, range.count());
                for (part, hashes) in found.hashes.known(files::key(mapping), shown) {
                    let start = range.start().0 + (part.start().0 - first.0);
                    writer.put_file_pages(number, PageIndex(start), hashes)?;
                }
            }
        }
    }
    for pages in &found.object_pages {
        for &(range, state) in &pages.states {
            writer.put_state(pages.number, range, state)?;
        }
        for &(page, hash) in &pages.in_file {
            writer.put_file_pages(pages.number, page, &[hash])?;
        }
    }
    Ok(())
}

/// Remembers for the next snapshot what arrived after it was copied.
pub(crate) fn look_again(context: &Context<'_>, found: &mut Instantaneous) {
    for (member, stopped) in context.members.list().iter().zip(&mut found.members) {
        let Some(stopped) = stopped else { continue };
        let number = context.writing.spaces.number_of(&member.names.space);
        let late = second_look(member, context.arena, number, stopped);
        // Of a process that does asynchronous I/O all of it is copied again.
        let late = late.subtract(&stopped.memo.in_flight);
        if !late.is_empty() {
            stopped.memo.in_flight = stopped.memo.in_flight.union(&late);
            let told = NotTracked::whole(member.pid(), ComparedBecause::WrittenUnseen);
            stopped.not_tracked.push(told);
        }
    }
}
