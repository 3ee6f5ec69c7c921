//! [`Slab`]: the array of all entries.
//!
//! Entries never move, and the slab frees them only when it is dropped itself. So a reader may load
//! the state of an entry whose registration is gone (`entry.rs`, point 3). The address of an entry
//! is a fixed distance from the start of the slab. So a reader needs no load to find an entry. The
//! slab reserves address space for as many entries as the cache may hold (`zeroed.rs`).
//!
//! LeakSanitizer does not search mappings for pointers. So if a cache is never dropped,
//! LeakSanitizer reports as leaked the memory to which only an entry points.

use std::io;
use std::ops::Range;
use std::ptr;

use crate::core::entry::Entry;
use crate::core::marks::Marks;
use crate::core::slot::Slot;
use crate::sys::prefetch::prefetch;
use crate::sys::sync::{AtomicU32, Ordering};
#[cfg(not(loom))]
use crate::sys::zeroed::FromZeros;
use crate::sys::zeroed::Zeroed;

/// The number of slots that a slab has in addition to the cache's limit on entries. They are for
/// registrations that are being made, for which no other entry was evicted yet.
pub(crate) const SPARE: u32 = if cfg!(loom) { 3 } else { 256 };

/// The number of entries in the page that a cache uses first.
const LEAST_POPULATED: u32 = 32;

/// The maximum number of entries whose pages are added at once. Adding these 64 KiB takes some ten
/// microseconds.
const MOST_POPULATED: u32 = 1024;

/// An entry that shares no cache line with another entry. So threads that use different entries do
/// not write to the same cache line.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Padded<T>(Entry<T>);

impl<T> std::ops::Deref for Padded<T> {
    type Target = Entry<T>;

    #[inline]
    fn deref(&self) -> &Entry<T> {
        &self.0
    }
}

// SAFETY: a value whose bytes are all 0 is valid: it is a vacant entry.
#[cfg(not(loom))]
unsafe impl<T> FromZeros for Padded<T> {}

#[cfg(loom)]
impl<T> Default for Padded<T> {
    fn default() -> Self {
        Self(Entry::vacant())
    }
}

/// The array of all entries, and their marks; see the head of this file.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Zeroed<Padded<T>>,
    /// The number of entries whose pages were added in advance.
    populated: AtomicU32,
    pub(crate) marks: Marks,
}

impl<T> Slab<T> {
    /// Makes a slab of `capacity` vacant entries. `generation` is the generation of the marks.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error if there is no address space left.
    pub(crate) fn new(capacity: u32, generation: u64) -> io::Result<Self> {
        Ok(Self {
            entries: Zeroed::new(capacity as usize)?,
            populated: AtomicU32::new(0),
            marks: Marks::new(capacity, generation)?,
        })
    }

    /// Returns all entries. The index of an entry is its slot.
    #[inline]
    pub(crate) fn entries(&self) -> &[Padded<T>] {
        self.entries.as_slice()
    }

    /// Prepares for the use of `slot`. Slots are first used in ascending order. The caller holds
    /// the table's lock.
    #[inline]
    pub(crate) fn prepare(&self, slot: Slot) {
        if slot.0 >= self.populated.load(Ordering::Relaxed) {
            self.populate(slot);
        }
        self.prefetch(slot);
    }

    /// Begins to load the entry at `slot`.
    #[inline]
    pub(crate) fn prefetch(&self, slot: Slot) {
        if let Some(entry) = self.get(slot) {
            prefetch(entry);
        }
    }

    /// Adds the pages of about as many entries as are in use, but of at most [`MOST_POPULATED`].
    #[cold]
    fn populate(&self, Slot(first): Slot) {
        let entries = first.clamp(LEAST_POPULATED, MOST_POPULATED);
        self.entries
            .populate(first as usize..(first + entries) as usize);
        self.populated.store(first + entries, Ordering::Relaxed);
    }

    /// Returns the entry at `slot`.
    ///
    /// # Safety
    ///
    /// The slab has this slot.
    #[inline(always)]
    pub(crate) unsafe fn get_unchecked(&self, slot: Slot) -> &Entry<T> {
        // SAFETY: the caller meets the condition.
        unsafe { self.entries().get_unchecked(slot.0 as usize) }
    }

    /// Gives back the memory of entries that are vacant. Returns the number of hits that they had
    /// counted, and forgets these hits. The entries stay vacant, because a vacant entry may consist
    /// of zeros.
    ///
    /// # Safety
    ///
    /// The caller holds the table's lock, and the entries are vacant. So no thread writes to them:
    /// `acquire` writes only to live entries (`entry.rs`, point 1).
    pub(crate) unsafe fn give_back(&self, slots: Range<u32>) -> u64 {
        let slots = slots.start as usize..slots.end as usize;
        let Some(entries) = self.entries().get(slots.clone()) else {
            return 0;
        };
        // SAFETY: the caller meets the conditions.
        let hits = entries.iter().map(|entry| unsafe { entry.forget_hits() });
        let hits = hits.sum();
        let populated = self.populated.load(Ordering::Relaxed);
        self.populated
            .store(populated.min(slots.start as u32), Ordering::Relaxed);
        // SAFETY: the entries are vacant, and their states are zeros. No thread writes to them.
        unsafe { self.entries.discard(slots) };
        hits
    }

    /// Returns the slot of an entry, or `None` if the entry is not in this slab.
    pub(crate) fn slot_of(&self, entry: &Entry<T>) -> Option<Slot> {
        self.slot_at(ptr::from_ref(entry).addr())
    }

    /// Returns the slot whose entry contains this address, or `None` if there is none.
    pub(crate) fn slot_at(&self, address: usize) -> Option<Slot> {
        let offset = address.wrapping_sub(self.entries().as_ptr().addr());
        let index = offset / size_of::<Padded<T>>();
        (index < self.entries().len()).then_some(Slot(index as u32))
    }

    /// Returns the entry at `slot`, or `None` if the slab has no such slot.
    #[inline]
    pub(crate) fn get(&self, slot: Slot) -> Option<&Entry<T>> {
        let padded = self.entries().get(slot.0 as usize)?;
        Some(padded)
    }
}
