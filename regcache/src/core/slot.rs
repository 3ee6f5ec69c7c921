//! [`Slot`]: the place of an entry, and [`EntryId`]: the name of a registration.

use crate::monitor::Cookie;

/// The index of an entry in the slab.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Slot(pub(crate) u32);

impl Slot {
    /// The maximum number of bits in a slot. The limit exists because hints and range maps pack a
    /// slot and another number into one word.
    pub(crate) const BITS: u32 = 24;
}

/// The name of one registration. No other registration of the cache ever has the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryId {
    /// An entry of the slab, with the cookie of its watch.
    Cached(Slot, Cookie),
    /// A registration that is not cached and not watched, by its number. Its entry is in a box of
    /// its own.
    Uncached(u32),
}
