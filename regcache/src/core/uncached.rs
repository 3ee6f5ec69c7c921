//! [`Uncached`]: the list of uncached registrations, which are deregistered with their guards.
//!
//! Uncached registrations have no slot. This list exists so that a
//! [`Completion`](crate::Completion) can wait for them. A registration is on the list before it is
//! made. So a completion also waits for one that is in the making.

use std::collections::BTreeMap;

use crate::core::slot::EntryId;
use crate::range::VaRange;

/// The ranges of all uncached registrations. Each registration has a number that no other one has
/// at the same time. A number is used again after 2^32 uncached registrations.
#[derive(Debug, Default)]
pub(crate) struct Uncached {
    ranges: BTreeMap<u32, VaRange>,
    last: u32,
    /// The number of registrations on the list that are being made.
    in_the_making: usize,
}

impl Uncached {
    /// Adds a registration that is about to be made, and returns its number.
    pub(crate) fn add(&mut self, range: VaRange) -> u32 {
        self.last = self.last.wrapping_add(1);
        while self.ranges.contains_key(&self.last) {
            self.last = self.last.wrapping_add(1);
        }
        self.in_the_making += 1;
        self.ranges.insert(self.last, range);
        self.last
    }

    /// Notes that a registration is no longer in the making.
    pub(crate) fn was_made(&mut self) {
        self.in_the_making -= 1;
    }

    /// Returns the number of registrations that are being made.
    pub(crate) fn in_the_making(&self) -> usize {
        self.in_the_making
    }

    pub(crate) fn remove(&mut self, number: u32) {
        self.ranges.remove(&number);
    }

    pub(crate) fn contains(&self, number: u32) -> bool {
        self.ranges.contains_key(&number)
    }

    /// Returns the ranges of the registrations.
    #[cfg(feature = "snapshot")]
    pub(crate) fn ranges(&self) -> impl Iterator<Item = VaRange> {
        self.ranges.values().copied()
    }

    /// Returns the ids of the registrations for whose ranges `meant` returns true.
    pub(crate) fn ids(&self, meant: impl Fn(&VaRange) -> bool) -> impl Iterator<Item = EntryId> {
        let ranges = self.ranges.iter().filter(move |(_, range)| meant(range));
        ranges.map(|(&number, _)| EntryId::Uncached(number))
    }
}
