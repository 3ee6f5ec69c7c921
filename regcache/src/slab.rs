//! [`Slab`]: where entries live.
//!
//! Entries never move and are not freed before the slab is, so that a reader may look at the state
//! of one whose registration has gone (see `entry.rs`). Memory grows by chunks, up to the limit that
//! the cache was built with.

use std::sync::OnceLock;

use crossbeam_utils::CachePadded;

use crate::entry::Entry;

/// Index of an entry in the slab.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Slot(pub(crate) u32);

const CHUNK: usize = if cfg!(loom) { 2 } else { 256 };

/// One entry a cache line (or two): threads that use different entries write different lines.
type Chunk<T> = Box<[CachePadded<Entry<T>>]>;

#[derive(Debug)]
pub(crate) struct Slab<T> {
    chunks: Box<[OnceLock<Chunk<T>>]>,
}

impl<T> Slab<T> {
    pub(crate) fn new(capacity: u32) -> Self {
        let chunks = (capacity as usize).div_ceil(CHUNK);
        let slab = Self {
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
        };
        if cfg!(loom) {
            // loom does not see how a OnceLock orders what it makes before who finds it.
            for i in 0..capacity {
                slab.prepare(Slot(i));
            }
        }
        slab
    }

    /// The entry at `slot`, if it was ever [`prepare`](Self::prepare)d.
    #[inline]
    pub(crate) fn get(&self, slot: Slot) -> Option<&Entry<T>> {
        let i = slot.0 as usize;
        Some(&self.chunks.get(i / CHUNK)?.get()?[i % CHUNK])
    }

    /// The entry at `slot`, which is below the capacity, made if need be.
    pub(crate) fn prepare(&self, slot: Slot) -> &Entry<T> {
        let i = slot.0 as usize;
        let vacant = || {
            (0..CHUNK)
                .map(|_| CachePadded::new(Entry::vacant()))
                .collect()
        };
        &self.chunks[i / CHUNK].get_or_init(vacant)[i % CHUNK]
    }
}
