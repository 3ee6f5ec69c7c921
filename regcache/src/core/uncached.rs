//! [`Uncached`]: the registrations that die with their guards.
//!
//! They are in no slot. They are listed so that a [`Completion`](crate::Completion) can wait for
//! them.

use std::collections::BTreeMap;

use crate::core::slab::EntryId;
use crate::range::VaRange;

/// Their ranges, each under a number of its own.
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

    /// Returns the ids of the registrations whose ranges are `meant`.
    pub(crate) fn ids(&self, meant: impl Fn(&VaRange) -> bool) -> impl Iterator<Item = EntryId> {
        let ranges = self.ranges.iter().filter(move |(_, range)| meant(range));
        ranges.map(|(&number, _)| EntryId::Uncached(number))
    }
}
