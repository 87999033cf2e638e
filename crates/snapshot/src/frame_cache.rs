//! The frames of a view that were decoded last.

use crate::differences::Differences;
use crate::layer::FrameReader;
use crate::memory;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// How many decoded frames a view keeps at least, and at most. In between it keeps two for each
/// layer, because pages in ascending order lie in frames of many layers at once.
const KEPT_FRAMES_MIN: usize = 8;
const KEPT_FRAMES_MAX: usize = 256;
/// No more differences are kept than take this.
const DIFFERENCES_BYTES_MAX: usize = 64 << 20;

/// The frames decoded last, and what is needed to decode more.
pub struct FrameCache {
    pub state: Mutex<CacheState>,
    pub shelf: Shelf,
}

/// The pages of a frame, and when they were last asked for.
pub type CachedFrame = (Arc<Vec<u8>>, u64);

#[derive(Default)]
pub struct CacheState {
    pub capacity: usize,
    pub bytes: usize,
    pub clock: u64,
    /// By layer and number, with the time of the last use.
    pub frames: HashMap<(u32, usize), CachedFrame>,
    pub reader: FrameReader,
}

impl FrameCache {
    pub fn new(layers: usize) -> Self {
        let state = CacheState {
            capacity: (2 * layers).clamp(KEPT_FRAMES_MIN, KEPT_FRAMES_MAX),
            ..CacheState::default()
        };
        Self {
            state: Mutex::new(state),
            shelf: Shelf::default(),
        }
    }
}

/// The differences decoded last, by layer and number of the frame.
#[derive(Default)]
pub struct Shelf {
    state: Mutex<ShelfState>,
}

#[derive(Default)]
struct ShelfState {
    frames: HashMap<(u32, usize), Arc<Differences>>,
    /// In the order they came.
    order: VecDeque<(u32, usize)>,
    bytes: usize,
}

impl Shelf {
    pub fn get(&self, key: (u32, usize)) -> Option<Arc<Differences>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.frames.get(&key).cloned()
    }

    pub fn put(&self, key: (u32, usize), differences: &Arc<Differences>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.frames.insert(key, Arc::clone(differences)).is_some() {
            return;
        }
        state.order.push_back(key);
        state.bytes += differences.bytes();
        while state.bytes > memory::cache_bytes(DIFFERENCES_BYTES_MAX) {
            let oldest = state.order.pop_front();
            let Some(gone) = oldest.and_then(|key| state.frames.remove(&key)) else {
                break;
            };
            state.bytes -= gone.bytes();
        }
    }
}
