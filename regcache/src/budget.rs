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

/// Busy entries that are passed over in one search for a victim.
const PATIENCE: u32 = 256;

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
        let fits = self.entries < self.max_entries
            && self
                .bytes
                .checked_add(bytes)
                .is_some_and(|sum| sum <= self.max_bytes);
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

    /// The entry to evict, struck out; `None` if all are busy. `look` is told a slot, and says what
    /// it is now; one that stays is enlisted anew with the time that `look` returned, or `now`.
    pub(crate) fn victim(
        &mut self,
        now: u64,
        mut look: impl FnMut(Slot) -> Found,
        mut moved: impl FnMut(Slot, u64),
    ) -> Option<Slot> {
        let mut patience = PATIENCE;
        while let Some((_, slot)) = self.order.pop_first() {
            let time = match look(slot) {
                Found::Idle => return Some(slot),
                // Moves up, towards `now`, so that it ends.
                Found::UsedAt(time) => time,
                Found::Busy => {
                    patience -= 1;
                    now
                }
            };
            self.enlist(slot, time);
            moved(slot, time);
            if patience == 0 {
                break;
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
        let mut moves = Vec::new();
        let victim = budget.victim(
            10,
            |slot| match slot.0 {
                0 => Found::Busy,
                1 => Found::UsedAt(7),
                _ => Found::Idle,
            },
            |slot, time| moves.push((slot.0, time)),
        );
        assert_eq!(victim, Some(Slot(2)));
        assert_eq!(moves, [(0, 10), (1, 7)]);
        let next = budget.victim(11, |_| Found::Idle, |_, _| ());
        assert_eq!(next, Some(Slot(1)), "7 is before 10");
    }

    #[test]
    fn when_all_are_busy_the_search_ends() {
        let mut budget = Budget::new(9, 9);
        budget.enlist(Slot(0), 1);
        budget.enlist(Slot(1), 1);
        assert_eq!(budget.victim(5, |_| Found::Busy, |_, _| ()), None);
        budget.strike(Slot(0), 5);
        budget.strike(Slot(1), 5);
        assert_eq!(
            budget.victim(5, |_| Found::Idle, |_, _| ()),
            None,
            "both were moved to 5"
        );
    }
}
