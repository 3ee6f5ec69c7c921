//! [`Budget`]: how many entries and bytes the cache may hold, and which entry goes first.
//!
//! Least recently used, nearly: second chance. Entries stand in line; who is at the head goes, unless it
//! was used since it was put in line: then it is put at the end. Hits do not come here: a hit stamps
//! its own entry, and that is looked at when something must go. (docs/policy.md compares it with others.)

use crate::slab::Slot;

/// Most entries looked at to find a victim. If there is none the next search goes on from there.
const PATIENCE: usize = 4096;

/// What the entry at the head of the line is found to be.
pub(crate) enum Found {
    /// Used since it was put in line, or now: evicting it would be a pity, or free nothing.
    Used,
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
    line: Line,
}

/// The line, by what is before and behind each slot. The last place is not a slot's: it is before
/// the head and behind the end.
#[derive(Debug)]
struct Line {
    places: Vec<Place>,
    len: usize,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    before: u32,
    behind: u32,
}

impl Line {
    fn new() -> Self {
        Self {
            places: vec![Place {
                before: 0,
                behind: 0,
            }],
            len: 0,
        }
    }

    /// Slots have the places after the one that is no slot's.
    fn place(slot: Slot) -> u32 {
        slot.0 + 1
    }

    fn head(&self) -> Option<Slot> {
        Some(Slot(self.places[0].behind.checked_sub(1)?))
    }

    /// Puts `slot` behind the place, which is 0 for the head of the line.
    fn insert_behind(&mut self, before: u32, slot: Slot) {
        let at = Self::place(slot);
        if at as usize >= self.places.len() {
            let nowhere = Place {
                before: at,
                behind: at,
            };
            self.places.resize(at as usize + 1, nowhere);
        }
        let behind = self.places[before as usize].behind;
        self.places[at as usize] = Place { before, behind };
        self.places[before as usize].behind = at;
        self.places[behind as usize].before = at;
        self.len += 1;
    }

    fn push(&mut self, slot: Slot) {
        self.insert_behind(self.places[0].before, slot);
    }

    fn remove(&mut self, slot: Slot) {
        let Place { before, behind } = self.places[Self::place(slot) as usize];
        self.places[before as usize].behind = behind;
        self.places[behind as usize].before = before;
        self.len -= 1;
    }
}

impl Budget {
    pub(crate) fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self {
            max_entries,
            max_bytes,
            entries: 0,
            bytes: 0,
            line: Line::new(),
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

    /// Puts an entry at the end of the line.
    pub(crate) fn enlist(&mut self, slot: Slot) {
        self.line.push(slot);
    }

    /// Puts an entry back at the head of the line.
    pub(crate) fn put_back(&mut self, slot: Slot) {
        self.line.insert_behind(0, slot);
    }

    /// Takes an entry out of the line, in which it is.
    pub(crate) fn strike(&mut self, slot: Slot) {
        self.line.remove(slot);
    }

    /// True if there were room for an entry of `bytes` after so many entries and bytes have gone.
    pub(crate) fn would_hold(&self, bytes: usize, gone: usize, gone_bytes: usize) -> bool {
        let sum = (self.bytes - gone_bytes).checked_add(bytes);
        self.entries - gone < self.max_entries && sum.is_some_and(|sum| sum <= self.max_bytes)
    }

    /// The entry to evict, struck out; `None` if all are in use. `look` says what becomes of the one at
    /// the head.
    pub(crate) fn victim(&mut self, mut look: impl FnMut(Slot) -> Found) -> Option<Slot> {
        // Twice round the line there is nobody left who was used before it began.
        for _ in 0..PATIENCE.min(2 * self.line.len) {
            let slot = self.line.head()?;
            self.line.remove(slot);
            match look(slot) {
                Found::Idle => return Some(slot),
                Found::Used => self.line.push(slot),
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
    fn who_was_used_gets_a_second_chance() {
        let mut budget = Budget::new(9, 9);
        for slot in 0..4 {
            budget.enlist(Slot(slot));
        }
        budget.strike(Slot(2));
        let victim = |budget: &mut Budget, used: &[u32]| {
            budget.victim(|slot| {
                if used.contains(&slot.0) {
                    Found::Used
                } else {
                    Found::Idle
                }
            })
        };
        assert_eq!(victim(&mut budget, &[0]), Some(Slot(1)));
        budget.put_back(Slot(1));
        assert_eq!(victim(&mut budget, &[1]), Some(Slot(3)), "0 is behind it");
        assert_eq!(victim(&mut budget, &[0, 1]), None, "the search ends");
        assert_eq!(victim(&mut budget, &[1]), Some(Slot(0)));
        budget.strike(Slot(1));
        assert_eq!(victim(&mut budget, &[]), None);
    }
}
