//! [`Hints`]: where the hit path looks first.
//!
//! A set-associative table, like a TLB, from the page of an address to the slot of an entry that
//! has served it. It may forget, and it may be wrong: a slot that it names may have been recycled.
//! The reader asks the entry itself (`entry.rs`, point 3), so that nothing here needs ordering, and
//! a hit reads one line of this table and one of the entry. What is not found here is looked up in
//! the index, under the lock.

use crate::slab::Slot;
use crate::sync::{AtomicU64, Ordering};

/// 4 KiB. A matter of speed only, so it need not be the kernel's page size.
const PAGE_SHIFT: u32 = 12;

/// Words a set has: half a cache line.
const WAYS: usize = 4;

/// 2^64 divided by the golden ratio: multiplying by it spreads pages over the upper bits.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// Most sets a table has: 8 MiB, enough for 1 048 576 pages.
const MAX_SETS: usize = 1 << 18;

#[derive(Debug)]
#[repr(align(32))]
struct Set([AtomicU64; WAYS]);

/// A word is `tag << 32 | slot + 1`, or 0.
#[derive(Debug)]
pub(crate) struct Hints {
    sets: Box<[Set]>,
    shift: u32,
}

impl Hints {
    /// A table for about `entries` entries, of 16 to 32 bytes each.
    pub(crate) fn new(entries: u32) -> Self {
        let sets = (entries as usize)
            .div_ceil(WAYS / 2)
            .next_power_of_two()
            .clamp(2, MAX_SETS);
        Self {
            sets: (0..sets)
                .map(|_| Set(std::array::from_fn(|_| AtomicU64::new(0))))
                .collect(),
            shift: u64::BITS - sets.trailing_zeros(),
        }
    }

    #[inline]
    fn place(&self, address: usize) -> (&Set, u64) {
        let hash = (address as u64 >> PAGE_SHIFT).wrapping_mul(SPREAD);
        // A product's upper bits choose the set, the lower ones are the tag.
        (&self.sets[(hash >> self.shift) as usize], hash << 32)
    }

    /// The slots that may serve `address`.
    #[inline]
    pub(crate) fn probe(&self, address: usize) -> impl Iterator<Item = Slot> {
        let (set, tag) = self.place(address);
        set.0.iter().filter_map(move |way| {
            let word = way.load(Ordering::Relaxed);
            let slot = word as u32;
            (word ^ u64::from(slot) == tag && slot != 0).then(|| Slot(slot - 1))
        })
    }

    /// Remembers that `slot` serves `address`. Called by one thread at a time.
    pub(crate) fn note(&self, address: usize, slot: Slot) {
        let (set, tag) = self.place(address);
        let word = tag | u64::from(slot.0 + 1);
        let words = set.0.each_ref().map(|way| way.load(Ordering::Relaxed));
        if words.contains(&word) {
            return;
        }
        // The oldest makes room: ways are in the order in which they were noted.
        let end = words.iter().position(|&w| w == 0).unwrap_or(WAYS - 1);
        for i in (0..end).rev() {
            set.0[i + 1].store(words[i], Ordering::Relaxed);
        }
        set.0[0].store(word, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_found_for_the_whole_page_until_others_push_it_out() {
        let hints = Hints::new(4);
        hints.note(0x7000_1234, Slot(3));
        assert_eq!(hints.probe(0x7000_1fff).collect::<Vec<_>>(), [Slot(3)]);
        assert_eq!(hints.probe(0x7000_2000).count(), 0);
        hints.note(0x7000_1000, Slot(3));
        assert_eq!(hints.probe(0x7000_1000).count(), 1, "noted once");
        for slot in 4..8 {
            hints.note(0x7000_1000, Slot(slot));
        }
        let slots: Vec<_> = hints.probe(0x7000_1000).map(|s| s.0).collect();
        assert_eq!(slots, [7, 6, 5, 4], "newest first, the oldest gone");
    }

    #[test]
    fn a_table_of_hints_finds_nearly_all_of_its_entries() {
        let n = 10_000;
        let hints = Hints::new(n);
        for i in 0..n {
            hints.note(0x7f00_0000_0000 + i as usize * 0x3000, Slot(i));
        }
        let found = (0..n).filter(|&i| {
            hints
                .probe(0x7f00_0000_0000 + i as usize * 0x3000)
                .any(|slot| slot == Slot(i))
        });
        assert!(found.count() > 9_500);
    }
}
