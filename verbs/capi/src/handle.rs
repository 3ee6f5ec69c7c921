//! Handles: the 64-bit numbers by which C programs name guards, caches and pools.
//!
//! ```text
//!   63            26 25        2 1  0
//!     generation        slot     kind
//! ```
//!
//! A handle names a slot of a table and a generation, which is the number of earlier uses of that
//! slot. The slot has a word. While the slot is in use, the word holds the valid handle. While the
//! slot is free, the word holds the next generation with the kind [`FREE`].
//!
//! No handle is valid twice, because generations only grow. A slot whose generations are used up is
//! never used again. At 10 ns for a lookup, half an hour of lookups in one slot would use its
//! generations up. That is acceptable, because there are 16 777 216 slots.

/// The kind of a word whose slot is free.
pub(crate) const FREE: u64 = 0;
/// The kind of a guard's handle.
pub(crate) const GUARD: u64 = 1;
/// The kind of the handle of a cache or a pool.
pub(crate) const OBJECT: u64 = 2;
/// The kind of a word whose slot is retired, or whose object is being destroyed.
pub(crate) const CLOSED: u64 = 3;

const KIND: u64 = 3;
const SLOT_BITS: u32 = 24;
const GENERATION: u64 = 1 << (2 + SLOT_BITS);

/// The word of a slot that was never used. Because of its high bits, handles are non-canonical
/// addresses. So no handle can be confused with a pointer or a small integer.
pub(crate) const FIRST: u64 = 0x5ca1 << 48;

/// The number of slots that a handle can name.
pub(crate) const SLOTS: u32 = 1 << SLOT_BITS;

/// Returns the kind bits of `handle`, which may be any number.
#[inline]
pub(crate) fn kind(handle: u64) -> u64 {
    handle & KIND
}

/// Returns the slot that `handle` names.
#[inline]
pub(crate) fn slot(handle: u64) -> u32 {
    ((handle >> 2) as u32) & (SLOTS - 1)
}

/// Returns the next valid handle of a slot whose word is `free`.
#[inline]
pub(crate) fn valid(free: u64, slot: u32, kind: u64) -> u64 {
    (free & !(GENERATION - 1)) | u64::from(slot) << 2 | kind
}

/// Returns the word that a slot gets after this handle: free, or closed if no generation is left.
#[inline]
pub(crate) fn after(handle: u64) -> u64 {
    match (handle & !(GENERATION - 1)).checked_add(GENERATION) {
        Some(generation) => generation | FREE,
        None => handle | CLOSED,
    }
}

/// Returns the word that a slot has while the object of this handle is being destroyed.
pub(crate) fn closing(handle: u64) -> u64 {
    handle | CLOSED
}

/// Returns true if `handle` was valid once and is not valid any more. `word` is the word of its
/// slot.
pub(crate) fn is_past(handle: u64, word: u64) -> bool {
    handle & !(GENERATION - 1) < word & !(GENERATION - 1) || kind(word) == CLOSED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_gives_out_every_generation_once_and_then_none() {
        let first = valid(FIRST, 7, GUARD);
        assert_eq!((kind(first), slot(first)), (GUARD, 7));
        let second = valid(after(first), 7, GUARD);
        assert_ne!(first, second);
        assert!(is_past(first, second) && !is_past(second, second));
        let last = valid(!(GENERATION - 1), SLOTS - 1, GUARD);
        assert_eq!(slot(last), SLOTS - 1);
        assert_eq!(kind(after(last)), CLOSED);
        assert!(is_past(last, after(last)));
    }
}
