//! Pages out of a whole page and the differences to it. Which these are a view knows (see `beneath`); frames of differences
//! that were decoded lately are kept, since the pages of one lie over those of many others.

use crate::differences::Differences;
use crate::error::ReadError;
use crate::format::FormatError;
use crate::layer::FrameReader;
use crate::model::PageHash;
use crate::runs::Resolved;
use crate::view::Inner;
use pagetide_pages::{PageCount, PageIndex, PageRange};
use std::sync::Arc;

/// The place of a stored page: the number of the layer, that of the frame in it, and the position in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FramePlace {
    pub layer: u32,
    pub frame: usize,
    pub position: u64,
}

impl FramePlace {
    /// No place at all, for pages of which the store has no bytes.
    pub const NONE: Self = Self {
        layer: u32::MAX,
        frame: 0,
        position: 0,
    };
}

/// Where pages that follow one another come from: in each place they follow one another, too.
#[derive(Clone, Debug)]
pub struct Sources {
    pub whole: FramePlace,
    /// The differences to that, the newest first.
    pub differences: Vec<FramePlace>,
}

impl Sources {
    /// Where the pages themselves are stored.
    pub fn newest(&self) -> FramePlace {
        self.differences.first().copied().unwrap_or(self.whole)
    }
}

impl Inner {
    /// Where the pages of `run` from its first on come from, which is recorded at `page` of `space`; and of how many of them
    /// that holds.
    pub fn sources(&self, run: &Resolved, space: usize, page: PageIndex) -> (Sources, PageCount) {
        let mut count = run.pages.count();
        let (mut layer, mut ordinal) = (run.layer, run.ordinal);
        let mut differences = Vec::new();
        loop {
            let kept = &self.layers[layer as usize].kept;
            let number = kept.frame_of(ordinal);
            let frame = &kept.frames[number];
            let position = ordinal - frame.first_ordinal;
            let source = FramePlace {
                layer,
                frame: number,
                position,
            };
            count = count.min(PageCount(u64::from(frame.page_count) - position));
            let beneath = self.beneath_at(space, differences.len(), page);
            let (true, Some(beneath)) = (frame.differs(), beneath) else {
                let whole = source;
                return (Sources { whole, differences }, count);
            };
            differences.push(source);
            let left = PageRange::new(page, beneath.pages.end());
            count = count.min(left.count());
            ordinal = beneath.ordinal + (page.0 - beneath.pages.start().0);
            layer = beneath.layer;
        }
    }

    /// Makes of whole pages in `pages`, each of `page_bytes`, what they are with all differences.
    pub fn apply_differences(
        &self,
        sources: &Sources,
        page_bytes: usize,
        reader: &mut FrameReader,
        pages: &mut [u8],
    ) -> Result<(), ReadError> {
        for source in sources.differences.iter().rev() {
            let differences = self.differences(source, page_bytes, reader)?;
            let layer = &self.layers[source.layer as usize];
            let first = source.position as usize;
            reader.apply((&differences, layer), first, pages, page_bytes)?;
        }
        let newest = sources.newest();
        let layer = &self.layers[newest.layer as usize];
        let first = layer.kept.frames[newest.frame].first_ordinal + newest.position;
        let hashes = layer.kept.hashes(first, (pages.len() / page_bytes) as u64);
        let mut made = pages.chunks_exact(page_bytes).zip(hashes);
        if made.all(|(page, hash)| PageHash::of(page) == *hash) {
            Ok(())
        } else {
            let what = "pages do not have their hash".to_owned();
            Err(reader.at(FormatError::Damaged(what), layer))
        }
    }

    fn differences(
        &self,
        source: &FramePlace,
        page_bytes: usize,
        reader: &mut FrameReader,
    ) -> Result<Arc<Differences>, ReadError> {
        let key = (source.layer, source.frame);
        if let Some(differences) = self.cache.shelf.get(key) {
            return Ok(differences);
        }
        let layer = &self.layers[source.layer as usize];
        let differences = Arc::new(reader.differences(layer, source.frame, page_bytes)?);
        self.cache.shelf.put(key, &differences);
        Ok(differences)
    }
}
