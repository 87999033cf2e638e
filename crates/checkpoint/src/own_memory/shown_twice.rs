//! Pages of shared memory that regions show at more than one place. One page cannot hold two things, so a snapshot in
//! which such places differed cannot be put back.

use super::error::OwnMemoryError;
use super::ground::{Ground, Kind, in_file};
use super::placement::Places;
use crate::capture::SIZE;
use crate::files::{self, FileKey};
use pagetide_pages::{PageCount, PageIndex, PageRange};
use pagetide_snapshot::View;

/// A range of an object, and where a region shows it.
#[derive(Clone, Copy)]
struct ObjectView {
    object: FileKey,
    in_object: PageRange,
    mapped: PageIndex,
}

impl ObjectView {
    /// Where a page of the object is mapped.
    fn at(&self, page: PageIndex) -> PageIndex {
        self.mapped
            .plus(PageCount(page.0 - self.in_object.start().0))
    }
}

/// An error if two places show the same memory now, and the snapshot has different bytes for them. A place for which it
/// has none is not put back, and does not count.
pub(super) fn refuse(
    view: &View,
    space: usize,
    places: &Places,
    ground: &Ground,
) -> Result<(), OwnMemoryError> {
    let wanted = |page| {
        let page = places.page_in_space(page)?;
        view.page_hash(space, page)
    };
    for (first, second, pages) in pairs(ground) {
        let differs = |&page: &PageIndex| {
            let (one, other) = (wanted(first.at(page)), wanted(second.at(page)));
            one.is_some() && other.is_some() && one != other
        };
        let count = pages.pages().filter(differs).count() as u64;
        if let Some(page) = pages.pages().find(differs) {
            return Err(OwnMemoryError::ShowTheSame {
                id: view.id(),
                count,
                address: SIZE.address_of(first.at(page)),
                elsewhere: SIZE.address_of(second.at(page)),
            });
        }
    }
    Ok(())
}

/// Pairs of places that show the same pages of an object. Whatever is shown often is compared with one place, which is
/// enough: what equals the same is equal.
fn pairs(ground: &Ground) -> Vec<(ObjectView, ObjectView, PageRange)> {
    let is_shared = |kind| matches!(kind, Kind::Shared | Kind::SharedAlone);
    let shared = ground.pieces.iter().filter(|piece| is_shared(piece.kind));
    let mut shown: Vec<ObjectView> = shared
        .map(|piece| ObjectView {
            object: files::key(&piece.mapping),
            in_object: in_file(&piece.mapping, piece.pages),
            mapped: piece.pages.start(),
        })
        .collect();
    shown.sort_by_key(|shown| (shown.object, shown.in_object.start(), shown.mapped));
    let mut pairs = Vec::new();
    // What is shown first of each page, by object and page: no two of these have a page in common.
    let mut firsts: Vec<(ObjectView, PageRange)> = Vec::new();
    for one in shown {
        let range = one.in_object;
        let is_before = |(first, pages): &&(ObjectView, PageRange)| {
            first.object == one.object && pages.end() > range.start()
        };
        for (first, pages) in firsts.iter().rev().take_while(is_before) {
            pairs.extend(pages.intersection(range).map(|both| (*first, one, both)));
        }
        let from = match firsts.last() {
            Some((first, pages)) if first.object == one.object => pages.end().max(range.start()),
            _ => range.start(),
        };
        if from < range.end() {
            firsts.push((one, PageRange::new(from, range.end())));
        }
    }
    pairs
}
