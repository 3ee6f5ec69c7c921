//! [`Uncached`]: the list of uncached registrations, which are deregistered with their guards.
//!
//! Uncached registrations have no slot. This list exists so that a
//! [`Completion`](crate::Completion) can wait for them.

use std::collections::BTreeMap;

use crate::core::slab::EntryId;
use crate::range::VaRange;

/// The ranges of all uncached registrations. Each registration has a unique number.
#[derive(Debug, Default)]
pub(crate) struct Uncached {
    ranges: BTreeMap<u64, VaRange>,
    last: u64,
}

impl Uncached {
    /// Adds a registration, and returns its number.
    pub(crate) fn add(&mut self, range: VaRange) -> u64 {
        self.last += 1;
        self.ranges.insert(self.last, range);
        self.last
    }

    pub(crate) fn remove(&mut self, number: u64) {
        self.ranges.remove(&number);
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        self.ranges.contains_key(&number)
    }

    /// Returns the ids of the registrations for whose ranges `meant` returns true.
    pub(crate) fn ids(&self, meant: impl Fn(&VaRange) -> bool) -> impl Iterator<Item = EntryId> {
        let ranges = self.ranges.iter().filter(move |(_, range)| meant(range));
        ranges.map(|(&number, _)| EntryId::Uncached(number))
    }
}
