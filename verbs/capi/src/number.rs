//! The numbers that handles are: a kind, a place in a table, and how often that place was used before.
//!
//! ```text
//!   63            26 25         2 1  0
//!   generation       place        kind
//! ```
//!
//! The place's word holds the number that is valid there, or the next one with the kind [`FREE`]. As generations only grow
//! and a place whose generations are used up is given up for good, no number is valid twice. It takes half an hour of
//! nothing but lookups to use one place up, at 10 ns a lookup, and there are 16 777 216.

/// Nothing is there.
pub(crate) const FREE: u64 = 0;
/// A guard.
pub(crate) const GUARD: u64 = 1;
/// A cache.
pub(crate) const CACHE: u64 = 2;
/// Nothing will ever be there again; and a cache that is being destroyed.
pub(crate) const CLOSED: u64 = 3;

const KIND: u64 = 3;
const PLACE_BITS: u32 = 24;
const GENERATION: u64 = 1 << (2 + PLACE_BITS);

/// What a place that was never used is to hold: numbers begin where they can be no addresses, nor anything small.
pub(crate) const FIRST: u64 = 0x5ca1 << 48;

/// Places in a table.
pub(crate) const PLACES: u32 = 1 << PLACE_BITS;

/// The kind of handle that a number could be.
#[inline]
pub(crate) fn kind(number: u64) -> u64 {
    number & KIND
}

/// Where it would be.
#[inline]
pub(crate) fn place(number: u64) -> u32 {
    ((number >> 2) as u32) & (PLACES - 1)
}

/// What a word that holds a free number becomes.
#[inline]
pub(crate) fn valid(free: u64, place: u32, kind: u64) -> u64 {
    (free & !(GENERATION - 1)) | u64::from(place) << 2 | kind
}

/// What follows a valid number: free, or closed if there is no other generation.
#[inline]
pub(crate) fn after(number: u64) -> u64 {
    match (number & !(GENERATION - 1)).checked_add(GENERATION) {
        Some(generation) => generation | FREE,
        None => number | CLOSED,
    }
}

/// The same number while it is being destroyed.
pub(crate) fn closing(number: u64) -> u64 {
    number | CLOSED
}

/// Whether the number was valid once, given the word at its place.
pub(crate) fn is_past(number: u64, word: u64) -> bool {
    number & !(GENERATION - 1) < word & !(GENERATION - 1) || kind(word) == CLOSED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_gives_out_every_generation_once_and_then_none() {
        let first = valid(FIRST, 7, GUARD);
        assert_eq!((kind(first), place(first)), (GUARD, 7));
        let second = valid(after(first), 7, GUARD);
        assert_ne!(first, second);
        assert!(is_past(first, second) && !is_past(second, second));
        let last = valid(!(GENERATION - 1), PLACES - 1, GUARD);
        assert_eq!(place(last), PLACES - 1);
        assert_eq!(kind(after(last)), CLOSED);
        assert!(is_past(last, after(last)));
    }
}
