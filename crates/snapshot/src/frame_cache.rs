//! The frames of a view that were decoded last.

use crate::layer::FrameReader;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// How many decoded frames a view keeps at least, and at most. In between it keeps two for each
/// layer, because pages in ascending order lie in frames of many layers at once.
const KEPT_FRAMES_MIN: usize = 8;
const KEPT_FRAMES_MAX: usize = 256;

/// The frames decoded last, and what is needed to decode more.
pub struct FrameCache {
    pub state: Mutex<CacheState>,
}

/// The pages of a frame, and when they were last asked for.
pub type Kept = (Arc<Vec<u8>>, u64);

#[derive(Default)]
pub struct CacheState {
    pub capacity: usize,
    pub bytes: usize,
    pub clock: u64,
    /// By layer and number, with the time of the last use.
    pub frames: HashMap<(u32, usize), Kept>,
    pub reader: FrameReader,
}

impl FrameCache {
    pub fn new(layers: usize) -> FrameCache {
        let state = CacheState {
            capacity: (2 * layers).clamp(KEPT_FRAMES_MIN, KEPT_FRAMES_MAX),
            ..CacheState::default()
        };
        FrameCache {
            state: Mutex::new(state),
        }
    }
}
