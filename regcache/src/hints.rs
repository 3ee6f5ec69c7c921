//! [`Hints`]: where the hit path looks first.
//!
//! A set-associative table, like a TLB, from an address to the slot of an entry that has served it.
//! It may forget, and it may be wrong: a slot that it names may have been recycled. The reader asks
//! the entry itself (`entry.rs`, point 3), so that nothing here needs ordering, and a hit reads one
//! line of this table and one of the entry. What is not found here is looked up in the index, under
//! the lock.
//!
//! As in a TLB, an address stands for all of its page, and there are pages of several sizes: a large
//! registration is entered by large pages, so that looking up one part of it after another does not
//! push everything else out. Larger pages are asked for only when the smaller ones fail, and only if
//! there are any.

use crate::VaRange;
use crate::slab::Slot;
use crate::sync::{AtomicU64, Ordering};

/// Bytes of a page, as powers of two. A matter of speed only, so they need not be the kernel's.
const PAGE_SHIFTS: [u32; 3] = [12, 21, 30];

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
    /// Sizes of pages that were ever noted, from the smallest on.
    sizes: AtomicU64,
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
            sizes: AtomicU64::new(1),
        }
    }

    #[inline]
    fn place(&self, address: usize, size: usize) -> (&Set, u64) {
        // Pages of different sizes differ in their lower bits.
        let page = address as u64 >> PAGE_SHIFTS[size] << 2 | size as u64;
        let hash = page.wrapping_mul(SPREAD);
        // A product's upper bits choose the set, the lower ones are the tag.
        (&self.sets[(hash >> self.shift) as usize], hash << 32)
    }

    /// The first of the slots that may serve `address` for which `serve` gives something.
    #[inline]
    pub(crate) fn probe<T>(
        &self,
        address: usize,
        mut serve: impl FnMut(Slot) -> Option<T>,
    ) -> Option<T> {
        let mut size = 0;
        loop {
            let (set, tag) = self.place(address, size);
            for way in &set.0 {
                let word = way.load(Ordering::Relaxed);
                let slot = word as u32;
                if word ^ u64::from(slot) == tag
                    && slot != 0
                    && let Some(found) = serve(Slot(slot - 1))
                {
                    return Some(found);
                }
            }
            size += 1;
            if size >= self.sizes.load(Ordering::Relaxed) as usize {
                return None;
            }
        }
    }

    /// Remembers that `slot`, an entry of `range`, serves `address`. Called by one thread at a time.
    pub(crate) fn note(&self, address: usize, slot: Slot, range: VaRange) {
        // A range of two pages' length has a whole page.
        let whole = |shift: &u32| range.len() >= 2 << shift;
        let size = PAGE_SHIFTS[1..].iter().take_while(|s| whole(s)).count();
        if size as u64 >= self.sizes.load(Ordering::Relaxed) {
            self.sizes.store(size as u64 + 1, Ordering::Relaxed);
        }
        let (set, tag) = self.place(address, size);
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
    use std::ptr;

    use super::*;

    const PAGE: usize = 4096;

    fn range(start: usize, len: usize) -> VaRange {
        VaRange::new(ptr::without_provenance(start), len).expect("neither empty nor wrapping")
    }

    fn slots(hints: &Hints, address: usize) -> Vec<u32> {
        let mut slots = Vec::new();
        hints.probe(address, |slot| -> Option<()> {
            slots.push(slot.0);
            None
        });
        slots
    }

    #[test]
    fn what_was_noted_is_found_for_the_whole_page_until_others_push_it_out() {
        let hints = Hints::new(4);
        let page = range(0x7000_1000, PAGE);
        hints.note(0x7000_1234, Slot(3), page);
        assert_eq!(slots(&hints, 0x7000_1fff), [3]);
        assert!(slots(&hints, 0x7000_2000).is_empty());
        hints.note(0x7000_1000, Slot(3), page);
        assert_eq!(slots(&hints, 0x7000_1000), [3], "noted once");
        for slot in 4..8 {
            hints.note(0x7000_1000, Slot(slot), page);
        }
        let now = slots(&hints, 0x7000_1000);
        assert_eq!(now, [7, 6, 5, 4], "newest first, the oldest gone");
    }

    #[test]
    fn a_table_of_hints_finds_nearly_all_of_its_entries() {
        let n = 10_000;
        let hints = Hints::new(n);
        let address = |i: u32| 0x7f00_0000_0000 + i as usize * 0x3000;
        for i in 0..n {
            hints.note(address(i), Slot(i), range(address(i), PAGE));
        }
        let found = (0..n).filter(|&i| slots(&hints, address(i)).contains(&i));
        assert!(found.count() > 9_500);
    }

    #[test]
    fn a_large_registration_takes_few_places() {
        let hints = Hints::new(64);
        let small = range(0x7e00_0000_0000, PAGE);
        hints.note(small.start(), Slot(1), small);
        let large = range(0x7f00_0000_3000, 64 << 20);
        let mut misses = 0;
        for address in (large.start()..large.end()).step_by(PAGE) {
            if !slots(&hints, address).contains(&2) {
                misses += 1;
                hints.note(address, Slot(2), large);
            }
        }
        assert_eq!(misses, 33);
        assert_eq!(slots(&hints, small.start()), [1]);
        assert!(slots(&hints, large.end() + (4 << 20)).is_empty());
    }

    #[test]
    fn pages_of_all_sizes_are_told_apart() {
        let hints = Hints::new(1024);
        let base = 0x7f00_0000_0000;
        for (slot, len) in [(1, PAGE), (2, 4 << 20), (3, 2 << 30)] {
            hints.note(base, Slot(slot), range(base, len));
        }
        assert_eq!(slots(&hints, base), [1, 2, 3], "the smallest first");
        assert_eq!(slots(&hints, base + PAGE), [2, 3]);
        assert_eq!(slots(&hints, base + (2 << 20)), [3]);
        assert!(slots(&hints, base + (1 << 30)).is_empty());
    }
}
