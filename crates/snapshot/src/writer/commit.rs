//! The end of a snapshot that was made: what holds of everything that was put, the tables of the
//! file, and its publication.

use super::SnapshotWriter;
use crate::error::{ReadError, WriteError};
use crate::format::header::Header;
use crate::format::index::{Index, Run};
use crate::format::metadata::{self, Metadata, captured_regions};
use crate::format::{MAX_INDEX_BYTES, NEW_VERSION};
use crate::frames::{FrameError, Log};
use crate::kept::CompactIndex;
use crate::layer::{self, Layer, file_name};
use crate::model::PageState;
use crate::runs::{self, Resolved};
use crate::storage::StoredFile;
use crate::view::{Origin, View};
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

impl SnapshotWriter {
    /// Finishes the snapshot: it is durable when this returns. Every page of every captured region
    /// must have been put, now or in an ancestor. After an error there is no such snapshot.
    #[tracing::instrument(level = "debug", skip_all, name = "commit")]
    pub fn commit(mut self) -> Result<View, WriteError> {
        self.check_alive()?;
        let spaces = &mut self.spaces;
        let log: &mut Log<'_> = &mut |space, entry| runs::log(&mut spaces[space].entries, entry);
        let flushed = self.frames.flush_all(log);
        flushed.map_err(|error| self.frame_failure(error))?;
        let mut top = self.records()?;
        let index = self.index(&mut top);
        let index_bytes = index.encode();
        if index_bytes.len() as u64 > MAX_INDEX_BYTES {
            let what = "it has more pages than one snapshot can".to_owned();
            return Err(WriteError::Invalid { what });
        }
        let metadata = self.metadata(&index);
        let metadata_bytes =
            metadata::encode(&metadata).map_err(|what| WriteError::Invalid { what })?;
        let parent = self.parent.as_ref();
        let header = Header {
            version: NEW_VERSION,
            store: self.store.id(),
            snapshot: self.id,
            parent: parent.map(|view| (view.id(), view.info().content_hash)),
            frames_length: self.frames.length(),
            metadata_length: metadata_bytes.len() as u64,
            index_length: index_bytes.len() as u64,
            metadata_hash: *blake3::hash(&metadata_bytes).as_bytes(),
            index_hash: *blake3::hash(&index_bytes).as_bytes(),
            stands_for: None,
        };
        let info = layer::info(&header, &metadata);
        let (id, storage) = (self.store.id(), self.store.storage());
        let layer = Arc::new(Layer::new(
            id,
            storage,
            &header,
            CompactIndex::all(index.frames, index.hashes),
        ));
        // Made before the file is published: what is wrong with it must keep it from existing.
        let view = View::over(
            parent,
            Arc::clone(&layer),
            &top,
            info,
            (metadata.spaces, metadata.attachments),
            Origin::new(self.store.find(), None),
        )
        .map_err(incomplete)?;
        self.append(&metadata_bytes)?;
        self.append(&index_bytes)?;
        let published = self.publish(&layer.header)?;
        self.lock.used(self.id);
        let view = view.set_held(published);
        tracing::debug!(
            snapshot = self.id.0,
            pages = view.info().pages.0,
            "committed"
        );
        Ok(view)
    }

    /// What holds of the pages of each space in the end, within its captured regions.
    fn records(&mut self) -> Result<Vec<Vec<Resolved>>, WriteError> {
        let records = self.spaces.iter_mut().map(|open| {
            let runs = runs::latest(std::mem::take(&mut open.entries), 0);
            let mut misfit = None;
            let records = runs::restrict(&runs, captured_regions(&open.space), |region, run| {
                if !region.admits(run.state) {
                    misfit.get_or_insert(*run);
                }
                true
            });
            let Some(misfit) = misfit else {
                return Ok(records);
            };
            Err(WriteError::BadPages {
                space: open.space.name.clone(),
                pages: misfit.pages,
                what: match misfit.state {
                    PageState::Shown => "cannot be shown by a region that shows nothing".to_owned(),
                    _ => "cannot be in the file of a region that has none".to_owned(),
                },
            })
        });
        records.collect()
    }

    /// The index of what holds. The hashes of pages of files come after those of stored pages, without
    /// those that are no longer needed; the records are told where.
    fn index(&mut self, top: &mut [Vec<Resolved>]) -> Index {
        let (frames, mut hashes) = self.frames.take_tables();
        let stored = hashes.len() as u64;
        for records in &mut *top {
            let mut placed = Vec::with_capacity(records.len());
            for mut run in std::mem::take(records) {
                if run.state == PageState::File {
                    let first = run.ordinal as usize;
                    let count = run.pages.count().0 as usize;
                    run.ordinal = hashes.len() as u64;
                    hashes.extend_from_slice(&self.file_hashes[first..first + count]);
                }
                runs::push(&mut placed, run);
            }
            *records = placed;
        }
        let runs = top.iter().enumerate().flat_map(|(space, runs)| {
            runs.iter().map(move |run| Run {
                space: space as u32,
                state: run.state,
                pages: run.pages,
                ordinal: run.ordinal,
            })
        });
        Index {
            runs: runs.collect(),
            frames,
            stored,
            hashes,
        }
    }

    fn metadata(&mut self, index: &Index) -> Metadata {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Metadata {
            created_unix_ns: now.map_or(0, |time| time.as_nanos() as u64),
            data_pages: index.count(PageState::Data),
            zero_pages: index.count(PageState::Zero),
            file_pages: index.count(PageState::File),
            spaces: self.spaces.drain(..).map(|open| open.space).collect(),
            attachments: std::mem::take(&mut self.attachments),
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let result = self.frames.append(bytes);
        result.map_err(|error| self.frame_failure(FrameError::Append(error)))
    }

    fn publish(&mut self, header: &Header) -> Result<Box<dyn StoredFile>, WriteError> {
        let name = file_name(self.id);
        let result = match self.frames.take_file() {
            Some(mut file) => file
                .rewrite(0, &header.encode())
                .and_then(|()| file.publish(&name)),
            None => Err(ErrorKind::NotFound.into()),
        };
        result.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => {
                self.lock.used(self.id);
                WriteError::Exists {
                    location: self.store.location(),
                    snapshot: self.id,
                }
            }
            _ => self.failure(format!("publish {name}"), error),
        })
    }
}

/// The only thing that can be wrong with a view before its file exists.
fn incomplete(error: ReadError) -> WriteError {
    match error {
        ReadError::MissingPages {
            space,
            address,
            length,
            ..
        } => WriteError::MissingPages {
            space,
            address,
            length,
        },
        other => WriteError::Invalid {
            what: other.to_string(),
        },
    }
}
