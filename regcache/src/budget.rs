//! [`Budget`]: how many entries and bytes the cache may hold, and which entry goes first.
//!
//! Least recently used, where time moves with each miss. Hits do not come here: a hit stamps its own
//! entry, and the order kept here is brought up to date only when something must go. The entry that
//! was oldest when last looked at is looked at again; if it has been used since it goes back in its
//! new place, else it is the oldest in fact.

use std::collections::BTreeSet;

use crate::slab::Slot;

/// What an entry that is oldest by the books is found to be.
pub(crate) enum Found {
    /// Used later, at this time.
    UsedAt(u64),
    /// Not to be evicted now: evicting it would free nothing.
    Busy,
    /// Idle since.
    Idle,
}

#[derive(Debug)]
pub(crate) struct Budget {
    max_entries: usize,
    max_bytes: usize,
    /// Held by registrations that are being made, are cached, or wait for their last guard.
    entries: usize,
    bytes: usize,
    order: BTreeSet<(u64, Slot)>,
}

impl Budget {
    pub(crate) fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self {
            max_entries,
            max_bytes,
            entries: 0,
            bytes: 0,
            order: BTreeSet::new(),
        }
    }

    /// True if an entry of `bytes` could ever be cached.
    pub(crate) fn could_hold(&self, bytes: usize) -> bool {
        self.max_entries > 0 && bytes <= self.max_bytes
    }

    /// Sets room for an entry aside, if there is room.
    pub(crate) fn reserve(&mut self, bytes: usize) -> bool {
        let fits = self.would_hold(bytes, 0, 0);
        if fits {
            self.entries += 1;
            self.bytes += bytes;
        }
        fits
    }

    /// Gives the room of an entry back.
    pub(crate) fn release(&mut self, bytes: usize) {
        self.entries -= 1;
        self.bytes -= bytes;
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Enters an entry, last used at `time`, among those that can be evicted.
    pub(crate) fn enlist(&mut self, slot: Slot, time: u64) {
        self.order.insert((time, slot));
    }

    /// Takes out an entry that was enlisted with `time`.
    pub(crate) fn strike(&mut self, slot: Slot, time: u64) {
        self.order.remove(&(time, slot));
    }

    /// True if there were room for an entry of `bytes` after so many entries and bytes have gone.
    pub(crate) fn would_hold(&self, bytes: usize, gone: usize, gone_bytes: usize) -> bool {
        let sum = (self.bytes - gone_bytes).checked_add(bytes);
        self.entries - gone < self.max_entries && sum.is_some_and(|sum| sum <= self.max_bytes)
    }

    /// The entry to evict, struck out; `None` if all are busy. `look` is told a slot and the time it
    /// was enlisted with, and says what it is now. One that stays is enlisted anew, with the time that
    /// `look` returned, or `now` if it is busy.
    pub(crate) fn victim(
        &mut self,
        now: u64,
        mut look: impl FnMut(Slot, u64) -> Found,
    ) -> Option<Slot> {
        // Each is found busy once at most; between that, used ones move up towards `now`.
        let mut patience = self.order.len();
        while patience > 0 {
            let (enlisted, slot) = self.order.pop_first()?;
            match look(slot, enlisted) {
                Found::Idle => return Some(slot),
                Found::UsedAt(time) => self.enlist(slot, time),
                Found::Busy => {
                    patience -= 1;
                    self.enlist(slot, now);
                }
            }
        }
        None
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn neither_limit_is_exceeded() {
        let mut budget = Budget::new(2, 100);
        assert!(!budget.could_hold(101));
        assert!(budget.reserve(60));
        assert!(!budget.reserve(41), "bytes");
        assert!(budget.reserve(40));
        assert!(!budget.reserve(0), "entries");
        assert!(!budget.reserve(usize::MAX), "no overflow");
        budget.release(60);
        assert_eq!(budget.bytes(), 40);
        assert!(budget.reserve(60));
    }

    #[test]
    fn the_least_recently_used_idle_entry_goes_first() {
        let mut budget = Budget::new(9, 9);
        for (slot, time) in [(0, 1), (1, 2), (2, 3)] {
            budget.enlist(Slot(slot), time);
        }
        let mut seen = Vec::new();
        let victim = budget.victim(10, |slot, enlisted| {
            seen.push((slot.0, enlisted));
            match slot.0 {
                0 => Found::Busy,
                1 => Found::UsedAt(7),
                _ => Found::Idle,
            }
        });
        assert_eq!(victim, Some(Slot(2)));
        assert_eq!(seen, [(0, 1), (1, 2), (2, 3)]);
        let next = budget.victim(11, |_, enlisted| {
            assert_eq!(enlisted, 7, "which is before 10");
            Found::Idle
        });
        assert_eq!(next, Some(Slot(1)));
    }

    #[test]
    fn when_all_are_busy_the_search_ends() {
        let mut budget = Budget::new(9, 9);
        budget.enlist(Slot(0), 1);
        budget.enlist(Slot(1), 1);
        assert_eq!(budget.victim(5, |_, _| Found::Busy), None);
        budget.strike(Slot(0), 5);
        budget.strike(Slot(1), 5);
        assert_eq!(
            budget.victim(5, |_, _| Found::Idle),
            None,
            "both were moved to 5"
        );
    }
}
