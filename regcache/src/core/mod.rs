//! The cache's inside: what the front calls, down to a single entry.

pub(crate) mod budget;
pub(crate) mod entry;
pub(crate) mod eviction;
pub(crate) mod hints;
pub(crate) mod index;
pub(crate) mod lookup;
pub(crate) mod range_map;
pub(crate) mod reaper;
pub(crate) mod slab;
pub(crate) mod table;
pub(crate) mod widen;
