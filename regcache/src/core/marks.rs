//! [`Marks`]: the entries that a report has named and that are not unlinked yet.
//!
//! Unlinking an entry takes some hundred nanoseconds, so a large drain would keep all lookups
//! waiting. A drain therefore only *marks* the entries that the reports name, which takes a few
//! nanoseconds each. Marked entries are unlinked later, in pieces. Meanwhile a lookup of other
//! memory can be a hit: the lookup checks that the entry to which the hints lead has no mark.
//!
//! # Why a hit of an entry without a mark is not stale
//!
//! All marks are changed under the lock. [`Marks::generation`] is the generation up to which all
//! invalidated entries were marked or unlinked. A lookup compares it with the monitor's generation,
//! checks the mark, and *then* takes a reference to the entry.
//!
//! Let D be the drain that stored the generation which the lookup loaded, and let E be an entry
//! whose watch was named in D or before. The claim is that the lookup does not return E.
//!
//! 1. If E was linked, D has marked E or found it unlinked. The marks come before the store to
//!    `generation`, which releases. The lookup's load acquires. So the lookup's load of the mark
//!    returns the mark of E or a later value.
//! 2. If that value is the mark, the lookup does not use the slot.
//! 3. Otherwise the mark was cleared. Only [`Table::unlink`] clears a mark, and kills the entry
//!    *before* it clears the mark. All stores to marks release, because 64 slots share a word, and
//!    the load of the mark acquires. So the kill happens before the lookup's attempt to acquire E,
//!    and the attempt fails. The slot may have been recycled. Then the lookup acquires another
//!    entry, to which the same argument applies.
//! 4. If E was pending, D has marked its slot as invalidated, and E is never published.
//!
//! If the lookup took the reference before it checked the mark, step 3 would not hold: the entry
//! could be killed, and its mark cleared, between the two.
//!
//! [`Table::unlink`]: crate::core::table::Table

use std::io;

use crate::core::slot::Slot;
use crate::sys::sync::{AtomicU64, Ordering};
use crate::sys::zeroed::Zeroed;

/// One mark for each slot, and the generation of the marks; see the head of this file.
#[derive(Debug)]
pub(crate) struct Marks {
    generation: AtomicU64,
    /// The marks of 64 slots in each word.
    words: Zeroed<AtomicU64>,
}

impl Marks {
    /// Makes the marks of a slab of `capacity` entries. No entry is marked.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error if there is no address space left.
    pub(crate) fn new(capacity: u32, generation: u64) -> io::Result<Self> {
        Ok(Self {
            generation: AtomicU64::new(generation),
            words: Zeroed::new((capacity as usize).div_ceil(64))?,
        })
    }

    /// Returns the generation up to which all invalidated entries were marked or unlinked.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Sets the generation. The caller holds the table's lock, and has marked all entries that were
    /// invalidated up to the generation.
    pub(crate) fn set_generation(&self, generation: u64) {
        self.generation.store(generation, Ordering::Release);
    }

    fn word(&self, slot: Slot) -> Option<(&AtomicU64, u64)> {
        let word = self.words.as_slice().get(slot.0 as usize / 64)?;
        Some((word, 1 << (slot.0 % 64)))
    }

    /// Returns true if the slot's entry is marked.
    #[inline]
    pub(crate) fn contains(&self, slot: Slot) -> bool {
        let word = self.word(slot);
        word.is_none_or(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
    }

    /// Marks the slot's entry. The caller holds the table's lock.
    pub(crate) fn insert(&self, slot: Slot) {
        if let Some((word, bit)) = self.word(slot) {
            let marks = word.load(Ordering::Relaxed);
            word.store(marks | bit, Ordering::Release);
        }
    }

    /// Clears the mark of the slot's entry. Returns true if the entry was marked. The caller holds
    /// the table's lock, and has killed the entry.
    pub(crate) fn remove(&self, slot: Slot) -> bool {
        let Some((word, bit)) = self.word(slot) else {
            return false;
        };
        let marks = word.load(Ordering::Relaxed);
        if marks & bit == 0 {
            return false;
        }
        word.store(marks & !bit, Ordering::Release);
        true
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_slot_has_its_own_mark() {
        let marks = Marks::new(130, 7).unwrap();
        marks.insert(Slot(0));
        marks.insert(Slot(129));
        let marked: Vec<_> = (0..130).filter(|&i| marks.contains(Slot(i))).collect();
        assert_eq!(marked, [0, 129]);
        assert!(marks.remove(Slot(0)));
        assert!(!marks.remove(Slot(0)));
        assert!(marks.contains(Slot(129)));
    }
}
