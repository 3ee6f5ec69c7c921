//! Handles: the 64-bit numbers by which C programs name guards, caches and pools.
//!
//! ```text
//!   63            26 25  24 23         0
//!     generation       kind     slot
//! ```
//!
//! A handle names a slot of a table and a generation, which is the number of earlier uses of that
//! slot. The slot has a word. While the slot is in use, the word holds the valid handle.
//!
//! While the slot of a cache or a pool is free, its word holds the next handle with the kind
//! [`FREE`] in place of its own. While the slot of a guard is free, its word holds the next handle
//! plus 1. So its lowest bits name another slot, and no number that leads to the slot equals its
//! word. A put thus need not check the kind of the number that it gets.
//!
//! No handle is valid twice, because generations only grow. A slot whose generations are used up is
//! never used again. At 10 ns for a lookup, half an hour of lookups in one slot would use its
//! generations up. That is acceptable, because there are 16 777 216 slots.

/// The kind of a word whose slot is free.
pub(crate) const FREE: u64 = 0;
/// The kind of a guard's handle.
pub(crate) const GUARD: u64 = 1 << SLOT_BITS;
/// The kind of the handle of a cache or a pool.
pub(crate) const OBJECT: u64 = 2 << SLOT_BITS;
/// The kind of a word whose object is being destroyed, or whose slot is retired.
pub(crate) const CLOSED: u64 = 3 << SLOT_BITS;

const KIND: u64 = 3 << SLOT_BITS;
const SLOT_BITS: u32 = 24;
const GENERATION: u64 = 1 << (2 + SLOT_BITS);

/// The generation of a slot that was never used. Because of its high bits, handles are
/// non-canonical addresses. So no handle can be confused with a pointer or a small integer.
const FIRST: u64 = 0x5ca1 << 48;

/// The number of slots that a handle can name.
pub(crate) const SLOTS: u32 = 1 << SLOT_BITS;

/// Returns the kind of `handle`, which may be any number.
#[inline]
pub(crate) fn kind(handle: u64) -> u64 {
    handle & KIND
}

/// Returns the slot that `handle` names.
#[inline]
pub(crate) fn slot(handle: u64) -> u32 {
    (handle as u32) & (SLOTS - 1)
}

/// Returns the word of a slot that was never used.
pub(crate) fn first(slot: u32) -> u64 {
    FIRST | u64::from(slot)
}

/// Returns the next valid handle of a slot whose word is `free`.
#[inline]
pub(crate) fn valid(free: u64, kind: u64) -> u64 {
    free | kind
}

/// Returns the word that a slot gets after this handle: free, or closed if no generation is left.
pub(crate) fn after(handle: u64) -> u64 {
    match (handle & !KIND).checked_add(GENERATION) {
        Some(free) => free | FREE,
        None => closing(handle),
    }
}

/// Returns the word of a guard's slot that was never used.
pub(crate) fn first_of_guards(slot: u32) -> u64 {
    first(slot) + GUARD + 1
}

/// Returns the next handle of a guard's slot whose word is `free`.
#[inline(always)]
pub(crate) fn of_guard(free: u64) -> u64 {
    free.wrapping_sub(1)
}

/// Returns the word that a guard's slot gets after this handle, unless no generation is left.
#[inline(always)]
pub(crate) fn after_guard(handle: u64) -> Option<u64> {
    handle.checked_add(GENERATION + 1)
}

/// Returns the word of a guard's slot that had this handle, and that has no generation left. As in
/// the word of a free slot, the lowest bits name another slot.
pub(crate) fn retired(handle: u64) -> u64 {
    handle.wrapping_add(2)
}

/// Returns true if `word`, which is the word of a guard's slot, is the handle of a guard.
pub(crate) fn holds_guard(word: u64, slot_of_word: u32) -> bool {
    kind(word) == GUARD && slot(word) == slot_of_word
}

/// Returns true if `handle`, which has the kind of a guard, was valid once and is not valid any
/// more. `word` is the word of its slot.
pub(crate) fn is_past_guard(handle: u64, word: u64) -> bool {
    handle & !(GENERATION - 1) < word & !(GENERATION - 1) || word == retired(handle)
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
        let first = valid(first(7), OBJECT);
        assert_eq!((kind(first), slot(first)), (OBJECT, 7));
        assert_eq!((kind(after(first)), slot(after(first))), (FREE, 7));
        let second = valid(after(first), OBJECT);
        assert_ne!(first, second);
        assert!(is_past(first, second) && !is_past(second, second));
        let last = valid(!(GENERATION - 1) | u64::from(SLOTS - 1), OBJECT);
        assert_eq!(slot(last), SLOTS - 1);
        assert_eq!(kind(after(last)), CLOSED);
        assert!(is_past(last, after(last)));
    }

    #[test]
    fn no_number_that_leads_to_a_free_slot_of_a_guard_equals_its_word() {
        for number in [0, 7, 0xffff, 0x1_0000, SLOTS - 1] {
            let free = first_of_guards(number);
            let handle = of_guard(free);
            assert!(holds_guard(handle, number) && !holds_guard(free, number));
            let next = after_guard(handle).unwrap();
            assert!(is_past_guard(handle, next) && !is_past_guard(of_guard(next), next));
            assert_eq!(slot(of_guard(next)), number);
            assert_eq!(kind(of_guard(next)), GUARD);
            let last = !(GENERATION - 1) | GUARD | u64::from(number);
            assert_eq!(after_guard(last), None);
            assert!(is_past_guard(last, retired(last)));
            for word in [free, next, retired(last)] {
                assert_ne!(word as u16, number as u16, "{word:#x}");
                assert!(!holds_guard(word, number));
            }
        }
    }
}
