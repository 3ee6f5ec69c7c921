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

use std::io;

use crate::VaRange;
use crate::core::slab::Slot;
use crate::sys::sync::{AtomicU32, Ordering};
use crate::sys::zeroed::{Array, Zeros};

/// Bytes of the smallest page, 4096, as a power of two; how much larger the next size is, 16 times; and
/// how many sizes there are, the largest 256 MiB. A matter of speed only, so that the kernel's sizes do
/// not matter.
const SMALLEST: u32 = 12;
const STEP: u32 = 4;
const SIZES: u32 = 5;

/// Hints in a set, which is a quarter of a cache line.
const WAYS: usize = 4;

/// Bits of a hint that are the tag. The others are the slot.
const TAG_BITS: u32 = u32::BITS - Slot::BITS;

/// 2^64 divided by the golden ratio: multiplying by it spreads pages over the upper bits.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// Most pages of a registration that are forgotten with it: all, if it has less than 4 GiB.
const FORGOTTEN: usize = 1 + (1 << STEP);

/// Sets in use of a table that is new: a kilobyte.
const FIRST_SETS: usize = 64;

/// Most sets a table has: 4 MiB, enough for 1 048 576 pages.
const MAX_SETS: usize = 1 << 18;

/// Slots, each with the tag of the page that it is for. A tag is short, so that one in some hundred
/// lookups that should find nothing finds another page's slot: a wrong hint like any other.
#[derive(Debug, Default)]
#[repr(align(16))]
struct Set([AtomicU32; WAYS]);

// SAFETY: zeros are a set that was never written.
#[cfg(not(loom))]
unsafe impl Zeros for Set {}

#[cfg(loom)]
impl Zeros for Set {
    fn zeros() -> Self {
        Self::default()
    }
}

impl Set {
    #[inline]
    fn of_tag(&self, tag: u8) -> impl Iterator<Item = Slot> {
        let ways = self.0.iter().map(|way| way.load(Ordering::Relaxed));
        ways.filter(move |&its| its as u8 == tag)
            .map(|its| Slot(its >> TAG_BITS))
    }
}

fn hint(slot: Slot, tag: u8) -> u32 {
    slot.0 << TAG_BITS | u32::from(tag)
}

/// Which size of pages a registration is entered by.
fn size_of(range: VaRange) -> u32 {
    ((range.len().ilog2().max(SMALLEST) - SMALLEST) / STEP).min(SIZES - 1)
}

#[derive(Debug)]
pub(crate) struct Hints {
    sets: Array<Set>,
    /// 2^(64 - shift) is how many of them are in use.
    shift: AtomicU32,
    /// Notes of entries that were there before, since the number of sets in use was doubled.
    found: AtomicU32,
    /// A bit for each size of pages that was ever noted.
    sizes: AtomicU32,
    /// Bytes of the pages noted last, as a power of two.
    latest: AtomicU32,
}

impl Hints {
    /// A table for up to `entries` entries, of 8 to 16 bytes each.
    ///
    /// # Errors
    ///
    /// If the kernel does not give the address space.
    pub(crate) fn new(entries: u32) -> io::Result<Self> {
        let sets = (entries as usize)
            .div_ceil(WAYS / 2)
            .next_power_of_two()
            .clamp(2, MAX_SETS);
        Ok(Self {
            sets: Array::new(sets)?,
            shift: AtomicU32::new(u64::BITS - sets.min(FIRST_SETS).trailing_zeros()),
            found: AtomicU32::new(0),
            sizes: AtomicU32::new(0),
            latest: AtomicU32::new(SMALLEST),
        })
    }

    /// The set and the tag of an address in pages of 2^`shift` bytes.
    #[inline]
    fn place(&self, address: usize, shift: u32) -> (&Set, u8) {
        let hash = (address as u64 >> (shift & 63)).wrapping_mul(SPREAD);
        // A product's upper bits choose the set, those in the middle are the tag, which is not 0, as that of
        // a way that was never written is.
        let set = (hash >> (self.shift.load(Ordering::Relaxed) & 63)) as usize;
        let tag = (hash >> 32) as u8 | 1;
        // SAFETY: a number of 64 - `shift` bits, and there are as many sets.
        (unsafe { self.sets.as_slice().get_unchecked(set) }, tag)
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

    /// Remembers that `slot`, an entry of `range`, serves `address`, which was not known here. Called by
    /// one thread at a time, as [`note`](Self::note) is.
    pub(crate) fn note_found(&self, address: usize, slot: Slot, range: VaRange) {
        let found = self.found.load(Ordering::Relaxed) + 1;
        self.found.store(found, Ordering::Relaxed);
        if found as usize > self.in_use() {
            self.grow();
        }
        self.note(address, slot, range);
    }

    /// Remembers that `slot`, a new entry of `range`, serves `address`.
    pub(crate) fn note(&self, address: usize, slot: Slot, range: VaRange) {
        // Slots are used in their order.
        if slot.0 as usize >= self.in_use() * WAYS / 2 {
            self.grow();
        }
        let size = size_of(range);
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
        set.0[0].store(hint(slot, tag), Ordering::Relaxed);
    }

    /// `slot` is no longer an entry of `range`: whoever registers the same memory again would be led
    /// there first. What is left, of a registration that has more pages than nearly all, is wrong and no
    /// more than that. Called by one thread at a time, as [`note`](Self::note) is.
    pub(crate) fn forget(&self, slot: Slot, range: VaRange) {
        let shift = SMALLEST + STEP * size_of(range);
        let pages = (range.start() >> shift)..=((range.end() - 1) >> shift);
        for page in pages.take(FORGOTTEN) {
            let (set, tag) = self.place(page << shift, shift);
            let hint = hint(slot, tag);
            let mut to = 0;
            for from in 0..WAYS {
                let its = set.0[from].load(Ordering::Relaxed);
                if its != hint {
                    if to != from {
                        set.0[to].store(its, Ordering::Relaxed);
                    }
                    to += 1;
                }
            }
            for rest in to..WAYS {
                set.0[rest].store(0, Ordering::Relaxed);
            }
        }
    }

    /// How many sets are in use.
    fn in_use(&self) -> usize {
        1 << (u64::BITS - self.shift.load(Ordering::Relaxed))
    }

    /// Puts twice as many sets in use, if there are more. Nothing is forgotten: what was in one set belongs
    /// into one of the two that stand where it would be, and is put into both.
    #[cold]
    fn grow(&self) {
        let (sets, before) = (self.sets.as_slice(), self.in_use());
        self.found.store(0, Ordering::Relaxed);
        if before == sets.len() {
            return;
        }
        for i in (0..before).rev() {
            for way in 0..WAYS {
                let hint = sets[i].0[way].load(Ordering::Relaxed);
                sets[2 * i].0[way].store(hint, Ordering::Relaxed);
                sets[2 * i + 1].0[way].store(hint, Ordering::Relaxed);
            }
        }
        let shift = self.shift.load(Ordering::Relaxed) - 1;
        self.shift.store(shift, Ordering::Relaxed);
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
        let hints = Hints::new(4).unwrap();
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
        let hints = Hints::new(n).unwrap();
        let address = |i: u32| 0x7f00_0000_0000 + i as usize * 0x3000;
        for i in 0..n {
            hints.note(address(i), Slot(i), range(address(i), PAGE));
        }
        let found = (0..n).filter(|&i| slots(&hints, address(i)).contains(&i));
        assert!(found.count() > 9_500);
    }

    #[test]
    fn a_table_grows_with_its_entries_and_forgets_none_meanwhile() {
        let hints = Hints::new(1 << 16).unwrap();
        let address = |i: u32| 0x7f00_0000_0000 + i as usize * 0x3000;
        let sets = hints.in_use();
        for i in 0..100 {
            hints.note(address(i), Slot(i), range(address(i), PAGE));
        }
        assert_eq!(hints.in_use(), sets, "there was room");
        let found = |i: &u32| slots(&hints, address(*i)).contains(i);
        let before: Vec<_> = (0..100).filter(found).collect();
        while hints.in_use() < sets << 4 {
            hints.grow();
            assert!(before.iter().all(found));
        }
    }

    #[test]
    fn a_table_that_has_no_place_for_what_is_looked_up_grows() {
        let hints = Hints::new(1 << 16).unwrap();
        let sets = hints.in_use();
        let large = range(0x7f00_0000_0000, 15 << 28);
        for address in (large.start()..large.end()).step_by(PAGE << 16) {
            hints.note_found(address, Slot(1), large);
        }
        assert_eq!(hints.in_use(), sets);
        for _ in 0..sets {
            hints.note_found(large.start(), Slot(1), large);
        }
        assert_eq!(hints.in_use(), 2 * sets);
    }

    #[test]
    fn what_is_gone_is_forgotten_and_others_of_its_page_are_not() {
        let hints = Hints::new(64).unwrap();
        let page = range(0x7e00_0000_0000, PAGE);
        for slot in 1..4 {
            hints.note(page.start(), Slot(slot), page);
        }
        hints.forget(Slot(2), page);
        assert_eq!(slots(&hints, page.start()), [3, 1]);
        let large = range(0x7f00_0000_3000, 64 << 20);
        for address in (large.start()..large.end()).step_by(PAGE) {
            hints.note(address, Slot(2), large);
        }
        hints.forget(Slot(2), large);
        for address in (large.start()..large.end()).step_by(PAGE) {
            assert!(!slots(&hints, address).contains(&2));
        }
    }

    #[test]
    fn a_large_registration_takes_few_places() {
        let hints = Hints::new(64).unwrap();
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
        let hints = Hints::new(1024).unwrap();
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
