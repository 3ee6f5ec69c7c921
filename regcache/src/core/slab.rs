//! [`Slab`]: where entries live.
//!
//! Entries never move and are not freed before the slab is, so that a reader may look at the state
//! of one whose registration has gone (see `entry.rs`). They are one array, so that a reader finds
//! an entry without another load. It is room for as many as the cache may hold (`array.rs`).
//! (LeakSanitizer does not look into mappings: what only an entry points to it takes for lost, if a
//! cache is never dropped.)

use std::io;

use crossbeam_utils::CachePadded;

use crate::core::entry::Entry;
use crate::sys::zeroed::{Array, Zeros};

/// Index of an entry in the slab.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Slot(pub(crate) u32);

impl Slot {
    /// A slot has no more than these, which leaves others room beside it.
    pub(crate) const BITS: u32 = 24;
}

/// Threads that use different entries write different cache lines.
type Padded<T> = CachePadded<Entry<T>>;

// SAFETY: zeros are a vacant entry.
#[cfg(not(loom))]
unsafe impl<T> Zeros for Padded<T> {}

#[cfg(loom)]
impl<T> Zeros for Padded<T> {
    fn zeros() -> Self {
        CachePadded::new(Entry::vacant())
    }
}

#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Array<Padded<T>>,
}

impl<T> Slab<T> {
    /// A slab of `capacity` vacant entries.
    ///
    /// # Errors
    ///
    /// If the kernel does not give the address space.
    pub(crate) fn new(capacity: u32) -> io::Result<Self> {
        Ok(Self {
            entries: Array::new(capacity as usize)?,
        })
    }

    /// The entry at `slot`, if the slab has that many.
    #[inline]
    pub(crate) fn get(&self, slot: Slot) -> Option<&Entry<T>> {
        let padded = self.entries.as_slice().get(slot.0 as usize)?;
        Some(padded)
    }
}
