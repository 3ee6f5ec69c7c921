//! [`Hints`]: where the hit path looks first.
//!
//! A set-associative table, like a TLB, from an address to the slot of an entry that has served it.
//! It may forget, and it may be wrong: a slot that it names may have been recycled. The reader asks
//! the entry itself (`entry.rs`, point 3), so that nothing here needs ordering, and a hit reads one
//! line of this table and one of the entry. What is not found here is looked up in the index, under
//! the lock.
//!
//! As in a TLB, an address stands for all of its page, and there are pages of several sizes: a
//! registration is entered by pages no larger than itself, but not much smaller, so that looking up
//! one part of a large one after another does not push everything else out. First asked is the
//! size entered last, then all that were ever entered.

use crate::VaRange;
use crate::slab::Slot;
use crate::sync::{AtomicU32, Ordering};

/// Bytes of the smallest page, 4096, as a power of two; how much larger the next size is, 16 times; and
/// how many sizes there are, the largest 256 MiB. A matter of speed only, so that the kernel's sizes do
/// not matter.
const SMALLEST: u32 = 12;
const STEP: u32 = 4;
const SIZES: u32 = 5;

/// Hints in a set, which is a quarter of a cache line.
const WAYS: usize = 4;

/// Bits of a hint that are the tag. The others are the slot.
const TAG_BITS: u32 = 8;

/// 2^64 divided by the golden ratio: multiplying by it spreads pages over the upper bits.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// Most sets a table has: 4 MiB, enough for 1 048 576 pages.
const MAX_SETS: usize = 1 << 18;

/// Slots, each with the tag of the page that it is for. A tag is short, so that one in some hundred
/// lookups that should find nothing finds another page's slot: a wrong hint like any other.
#[derive(Debug, Default)]
#[repr(align(16))]
struct Set([AtomicU32; WAYS]);

impl Set {
    #[inline]
    fn of_tag(&self, tag: u8) -> impl Iterator<Item = Slot> {
        let ways = self.0.iter().map(|way| way.load(Ordering::Relaxed));
        ways.filter(move |&its| its as u8 == tag)
            .map(|its| Slot(its >> TAG_BITS))
    }
}

#[derive(Debug)]
pub(crate) struct Hints {
    sets: Box<[Set]>,
    /// 2^(64 - shift) is how many they are.
    shift: u32,
    /// A bit for each size of pages that was ever noted.
    sizes: AtomicU32,
    /// Bytes of the pages noted last, as a power of two.
    latest: AtomicU32,
}

impl Hints {
    /// A table for about `entries` entries, of 8 to 16 bytes each.
    pub(crate) fn new(entries: u32) -> Self {
        let sets = (entries as usize)
            .div_ceil(WAYS / 2)
            .next_power_of_two()
            .clamp(2, MAX_SETS);
        Self {
            sets: (0..sets).map(|_| Set::default()).collect(),
            shift: u64::BITS - sets.trailing_zeros(),
            sizes: AtomicU32::new(0),
            latest: AtomicU32::new(SMALLEST),
        }
    }

    /// The set and the tag of an address in pages of 2^`shift` bytes.
    #[inline]
    fn place(&self, address: usize, shift: u32) -> (&Set, u8) {
        let hash = (address as u64 >> (shift & 63)).wrapping_mul(SPREAD);
        // A product's upper bits choose the set, those in the middle are the tag, which is not 0, as that of
        // a way that was never written is.
        let set = (hash >> (self.shift & 63)) as usize;
        let tag = (hash >> 32) as u8 | 1;
        // SAFETY: a number of 64 - `shift` bits.
        (unsafe { self.sets.get_unchecked(set) }, tag)
    }

    /// The slot that is most likely to serve `address`.
    #[inline]
    pub(crate) fn first(&self, address: usize) -> Option<Slot> {
        let (set, tag) = self.place(address, self.latest.load(Ordering::Relaxed));
        set.of_tag(tag).next()
    }

    /// The first of the slots that may serve `address` for which `serve` gives something.
    pub(crate) fn any<T>(
        &self,
        address: usize,
        mut serve: impl FnMut(Slot) -> Option<T>,
    ) -> Option<T> {
        let mut sizes = self.sizes.load(Ordering::Relaxed);
        while sizes != 0 {
            let (set, tag) = self.place(address, SMALLEST + STEP * sizes.trailing_zeros());
            sizes &= sizes - 1;
            for slot in set.of_tag(tag) {
                if let Some(found) = serve(slot) {
                    return Some(found);
                }
            }
        }
        None
    }

    /// Remembers that `slot`, an entry of `range`, serves `address`. Called by one thread at a time.
    pub(crate) fn note(&self, address: usize, slot: Slot, range: VaRange) {
        let Some(way) = slot.0.checked_mul(1 << TAG_BITS) else {
            return;
        };
        let size = (range.len().ilog2().max(SMALLEST) - SMALLEST) / STEP;
        let size = size.min(SIZES - 1);
        let sizes = self.sizes.load(Ordering::Relaxed) | 1 << size;
        self.sizes.store(sizes, Ordering::Relaxed);
        let shift = SMALLEST + STEP * size;
        self.latest.store(shift, Ordering::Relaxed);
        let (set, tag) = self.place(address, shift);
        if set.of_tag(tag).any(|other| other == slot) {
            return;
        }
        // The oldest makes room: ways are in the order in which they were noted.
        for i in (1..WAYS).rev() {
            set.0[i].store(set.0[i - 1].load(Ordering::Relaxed), Ordering::Relaxed);
        }
        set.0[0].store(way | u32::from(tag), Ordering::Relaxed);
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
        hints.any(address, |slot| -> Option<()> {
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
        assert_eq!(misses, 5);
        assert_eq!(slots(&hints, small.start()), [1]);
        assert!(slots(&hints, large.end() + (16 << 20)).is_empty());
    }

    #[test]
    fn pages_of_all_sizes_are_told_apart() {
        let hints = Hints::new(1024);
        let base = 0x7f00_0000_0000;
        for (slot, len) in [(1, PAGE), (2, 1 << 20), (3, 2 << 30)] {
            hints.note(base, Slot(slot), range(base, len));
        }
        assert_eq!(slots(&hints, base), [1, 2, 3], "the smallest first");
        assert_eq!(slots(&hints, base + PAGE), [2, 3]);
        assert_eq!(slots(&hints, base + (1 << 20)), [3]);
        assert!(slots(&hints, base + (256 << 20)).is_empty());
    }
}
