//! [`Hints`]: guesses at the slot of an address. The hit path tries the hints before the index.
//!
//! The hints are a set-associative table, like a TLB. The table maps an address to the slot of an
//! entry that has served the address. The table may lose hints, and a hint may be wrong because the
//! entry at the slot was recycled. The reader checks the entry itself (`entry.rs`, point 3). So the
//! loads and stores of hints need no memory ordering. A hit reads one cache line of this table and
//! one of the entry. If an address has no hint, the lookup takes the lock and searches the index.
//!
//! As in a TLB, a hint is for a whole page, and there are pages of several sizes. The hints of a
//! registration use the largest page size that is not larger than the registration. So if parts of
//! a large registration are looked up one after another, their hints do not evict all others. A
//! lookup first tries the page size of the hint that was noted last. If that fails, the lookup
//! tries all page sizes that were ever noted.
//!
//! A set has few places, and all hints of a page are in one set. Many registrations may start in
//! one page: small buffers, or ranges that overlap like the windows of an arena. So if a set is
//! full of hints of one page, the page is *crowded*. The new hint then uses the next smaller page
//! size. If pages of one size were crowded several times, no further hint uses that size.
//!
//! The table grows by doubling, and each hint of an old set belongs in one of two new sets. The
//! next bit of the hash tells which one, but a hint has no room for that bit. So a second array
//! keeps the next bits of each hint, and only writers use it.

use std::hint::select_unpredictable;
use std::io;

use crate::core::slot::Slot;
use crate::range::VaRange;
use crate::sys::prefetch::prefetch;
use crate::sys::sync::{AtomicU32, Ordering};
#[cfg(not(loom))]
use crate::sys::zeroed::FromZeros;
use crate::sys::zeroed::Zeroed;

/// The binary logarithm of the smallest page size, 64 bytes. The page sizes of the hints only
/// affect speed, so they need not be the kernel's page sizes.
const SMALLEST: u32 = 6;

/// The binary logarithm of the second page size, 4096 bytes.
const SECOND: u32 = 12;

/// The binary logarithm of 16, the ratio of each further page size to the next smaller one.
const STEP: u32 = 4;

/// The number of page sizes. The largest page size is 256 MiB.
const SIZES: usize = 6;

/// The number of crowded pages of one size after which no further hint uses that size.
const CROWDED: u32 = 16;

/// The number of hints in a set. With 4 hints, a set takes a quarter of a cache line, and the next
/// bits of its hints fill a word.
const WAYS: usize = 4;

/// The number of bits of a hint that hold the tag. The other bits hold the slot.
const TAG_BITS: u32 = u32::BITS - Slot::BITS;

/// The multiplier of the hash: 2^64 divided by the golden ratio. The product spreads pages over its
/// upper bits.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// The maximum number of pages whose hints [`Hints::forget`] drops. A registration below 4 GiB has
/// no more pages than this.
const FORGOTTEN: usize = 1 + (1 << STEP);

/// The number of sets that a new table uses. These sets take 1 KiB.
const FIRST_SETS: usize = 64;

/// The maximum number of sets of a table. A table of this size takes 5 MiB and holds 1 048 576
/// hints.
const MAX_SETS: usize = 1 << 18;

/// A set of hints. A hint consists of a slot and the tag of a page. Tags are short, so two pages
/// may have the same tag. If a page has no hint, two or three in a hundred of its lookups find the
/// slot of another page. The reader treats that slot as a wrong hint.
#[derive(Debug, Default)]
#[repr(align(16))]
struct Set([AtomicU32; WAYS]);

// SAFETY: a `Set` whose bytes are all 0 is valid: it has no hints.
#[cfg(not(loom))]
unsafe impl FromZeros for Set {}

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

/// Returns the index of the page size that a registration of `range` uses. The index of the
/// smallest page size is 0.
fn size_of(range: VaRange) -> usize {
    // A range is not empty. The bit shows this to the compiler.
    let log = (range.len() | 1).ilog2();
    let steps = log.saturating_sub(SECOND - STEP) / STEP;
    steps.min(SIZES as u32 - 1) as usize
}

/// Returns the binary logarithm of the page size with this index.
fn shift_of(size: usize) -> u32 {
    match size {
        0 => SMALLEST,
        _ => SECOND + STEP * (size as u32 - 1),
    }
}

/// Returns the hash of the page that contains `address`. A page has 2^`shift` bytes.
#[inline]
fn hash_of(address: usize, shift: u32) -> u64 {
    (address as u64 >> (shift & 63)).wrapping_mul(SPREAD)
}

/// Returns the tag of a page with this hash. The upper bits of the hash choose the set. If many
/// pages have equal distances, the hashes of the pages in one set differ in the next bits. Bits
/// further down are equal for some distances. The tag is never 0, because 0 marks an unused hint.
#[inline]
fn tag_of(hash: u64) -> u8 {
    (hash >> 36) as u8 | 1
}

/// Returns the initial value of `shift` for a table of so many sets.
fn first_shift(sets: usize) -> u32 {
    u64::BITS - sets.min(FIRST_SETS).trailing_zeros()
}

/// The index of a set that the table has.
#[derive(Clone, Copy)]
struct SetIndex(usize);

/// The table of hints; see the head of this file.
#[derive(Debug)]
pub(crate) struct Hints {
    sets: Zeroed<Set>,
    /// The rests of each set's hints: the 8 bits of the hash that follow those that chose the set.
    /// The lowest byte is for the first hint. After a table has grown 8 times since a hint was
    /// noted, the rest of the hint is 0, and growth may lose the hint.
    rests: Zeroed<AtomicU32>,
    /// The table uses 2^(64 - `shift`) sets.
    shift: AtomicU32,
    /// The number of calls of `note_found` since the table last grew. Many calls show that the
    /// table is too small.
    found: AtomicU32,
    /// One bit for each page size that was ever noted.
    sizes: AtomicU32,
    /// The binary logarithm of the page size that was noted last.
    latest: AtomicU32,
    /// The number of crowded pages that were met, for each page size.
    crowded: [AtomicU32; SIZES],
}

impl Hints {
    /// Makes a table for up to `entries` entries. The table reserves 10 to 20 bytes for each entry.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error if there is no address space left.
    pub(crate) fn new(entries: u32) -> io::Result<Self> {
        let sets = (entries as usize)
            .div_ceil(WAYS / 2)
            .next_power_of_two()
            .clamp(2, MAX_SETS);
        Ok(Self {
            sets: Zeroed::new(sets)?,
            rests: Zeroed::new(sets)?,
            shift: AtomicU32::new(first_shift(sets)),
            found: AtomicU32::new(0),
            sizes: AtomicU32::new(0),
            latest: AtomicU32::new(SECOND),
            crowded: std::array::from_fn(|_| AtomicU32::new(0)),
        })
    }

    /// Returns the set and the tag of the page that contains `address`. A page has 2^`shift` bytes.
    #[inline]
    fn locate(&self, address: usize, shift: u32) -> (&Set, u8) {
        let hash = hash_of(address, shift);
        (self.set(self.index_of(hash)), tag_of(hash))
    }

    /// Returns a set.
    #[inline]
    fn set(&self, index: SetIndex) -> &Set {
        // SAFETY: the table has this set.
        unsafe { self.sets.as_slice().get_unchecked(index.0) }
    }

    /// Returns the rests of a set.
    #[inline]
    fn rests(&self, index: SetIndex) -> &AtomicU32 {
        // SAFETY: the table has this set, and as many rests as sets.
        unsafe { self.rests.as_slice().get_unchecked(index.0) }
    }

    /// Returns the index of the set for a page with this hash.
    #[inline]
    fn index_of(&self, hash: u64) -> SetIndex {
        // Let n be 64 - `self.shift`. The index has n bits, and the table has at least 2^n sets.
        SetIndex((hash >> (self.shift.load(Ordering::Relaxed) & 63)) as usize)
    }

    /// Returns the 8 bits of the hash that follow those that choose the set.
    fn rest_of(&self, hash: u64) -> u8 {
        (hash >> (self.shift.load(Ordering::Relaxed) - u8::BITS)) as u8
    }

    /// Returns the slot that is most likely to serve `address`.
    #[inline(always)]
    pub(crate) fn first(&self, address: usize) -> Option<Slot> {
        let (set, tag) = self.locate(address, self.latest.load(Ordering::Relaxed));
        set.of_tag(tag).next()
    }

    /// Returns true if hints of several page sizes were ever noted. Otherwise
    /// [`first`](Self::first) looks at all hints that [`any`](Self::any) does.
    #[inline]
    pub(crate) fn has_other_sizes(&self) -> bool {
        let sizes = self.sizes.load(Ordering::Relaxed);
        sizes & sizes.wrapping_sub(1) != 0
    }

    /// Calls `serve` with each slot that may serve `address`, and returns the first result that is
    /// not `None`.
    pub(crate) fn any<T>(
        &self,
        address: usize,
        mut serve: impl FnMut(Slot) -> Option<T>,
    ) -> Option<T> {
        let mut sizes = self.sizes.load(Ordering::Relaxed);
        while sizes != 0 {
            let (set, tag) = self.locate(address, shift_of(sizes.trailing_zeros() as usize));
            sizes &= sizes - 1;
            for slot in set.of_tag(tag) {
                if let Some(found) = serve(slot) {
                    return Some(found);
                }
            }
        }
        None
    }

    /// Notes a hint for `address` to `slot`, an existing entry of `range` that a lookup found only
    /// in the index. The caller holds the table's lock, as for [`note`](Self::note).
    pub(crate) fn note_found(&self, address: usize, slot: Slot, range: VaRange) {
        let found = self.found.load(Ordering::Relaxed) + 1;
        self.found.store(found, Ordering::Relaxed);
        if found as usize > self.in_use() {
            self.grow();
        }
        self.add::<false>(address, slot, range);
    }

    /// Notes a hint for `address` to `slot`, a new entry of `range`. The caller holds the table's
    /// lock.
    pub(crate) fn note(&self, address: usize, slot: Slot, range: VaRange) {
        // Slots are first used in ascending order. So a high slot shows that the cache has many
        // entries and needs more sets.
        if slot.0 as usize >= self.in_use() * WAYS / 2 {
            self.grow();
        }
        self.add::<true>(address, slot, range);
    }

    /// Adds a hint, unless it exists. `NEW` is true if `slot` has just become an entry of `range`.
    /// Then it has no hint for a page of the range's own size, because `forget` drops those.
    #[inline]
    fn add<const NEW: bool>(&self, address: usize, slot: Slot, range: VaRange) {
        let own = size_of(range);
        let mut size = own;
        loop {
            let hash = hash_of(address, shift_of(size));
            let (index, tag) = (self.index_of(hash), tag_of(hash));
            let set = self.set(index);
            if (!NEW || size < own) && set.of_tag(tag).any(|other| other == slot) {
                return;
            }
            if size == 0 || !self.is_crowded(size, set, tag) {
                let sizes = self.sizes.load(Ordering::Relaxed) | 1 << size;
                self.sizes.store(sizes, Ordering::Relaxed);
                self.latest.store(shift_of(size), Ordering::Relaxed);
                return self.push(index, hint(slot, tag), self.rest_of(hash));
            }
            size -= 1;
        }
    }

    /// Adds a hint to a set. The hints of a set are ordered by age. The oldest one is dropped.
    fn push(&self, index: SetIndex, hint: u32, rest: u8) {
        let (set, rests) = (self.set(index), self.rests(index));
        for i in (1..WAYS).rev() {
            set.0[i].store(set.0[i - 1].load(Ordering::Relaxed), Ordering::Relaxed);
        }
        set.0[0].store(hint, Ordering::Relaxed);
        let others = rests.load(Ordering::Relaxed) << u8::BITS;
        rests.store(others | u32::from(rest), Ordering::Relaxed);
    }

    /// Returns the hints of a set with their rests, from the newest to the oldest. An unused hint
    /// is 0.
    fn load(&self, index: SetIndex) -> [(u32, u8); WAYS] {
        let (set, rests) = (self.set(index), self.rests(index));
        let rests = rests.load(Ordering::Relaxed).to_le_bytes();
        std::array::from_fn(|i| (set.0[i].load(Ordering::Relaxed), rests[i]))
    }

    /// Replaces the hints of a set, and their rests.
    fn store(&self, index: SetIndex, hints: [(u32, u8); WAYS]) {
        let (set, rests) = (self.set(index), self.rests(index));
        for (way, (hint, _)) in set.0.iter().zip(hints) {
            way.store(hint, Ordering::Relaxed);
        }
        let bytes = hints.map(|(_, rest)| rest);
        rests.store(u32::from_le_bytes(bytes), Ordering::Relaxed);
    }

    /// Returns true if a new hint for a page of this size must use a smaller size, because the set
    /// of the page is full of the page's hints, or because that has happened too often.
    fn is_crowded(&self, size: usize, set: &Set, tag: u8) -> bool {
        let crowded = self.crowded[size].load(Ordering::Relaxed);
        if crowded >= CROWDED {
            return true;
        }
        // The oldest hint of most sets is unused, which saves the count.
        let oldest = set.0[WAYS - 1].load(Ordering::Relaxed);
        let is_full = oldest as u8 == tag && set.of_tag(tag).count() == WAYS;
        if is_full {
            self.crowded[size].store(crowded + 1, Ordering::Relaxed);
        }
        is_full
    }

    /// Drops the hints to `slot`, which is no longer an entry of `range`. If the same memory is
    /// registered again, its lookups then do not probe the old slot first. Some registrations may
    /// leave wrong hints, each of which costs only a probe: very large ones, and those for which
    /// parts of crowded pages were looked up. The caller holds the table's lock.
    pub(crate) fn forget(&self, slot: Slot, range: VaRange) {
        let size = size_of(range);
        let shift = shift_of(size);
        let (first, last) = (range.start() >> shift, (range.end() - 1) >> shift);
        for page in first..=last.min(first + FORGOTTEN - 1) {
            self.forget_one(slot, page << shift, shift);
        }
        let mut smaller = self.sizes.load(Ordering::Relaxed) & ((1 << size) - 1);
        while smaller != 0 {
            let shift = shift_of(smaller.trailing_zeros() as usize);
            self.forget_one(slot, range.start(), shift);
            smaller &= smaller - 1;
        }
    }

    /// Drops the hint to `slot` of the page that contains `address`.
    fn forget_one(&self, slot: Slot, address: usize, shift: u32) {
        let hash = hash_of(address, shift);
        let (index, hint) = (self.index_of(hash), hint(slot, tag_of(hash)));
        let (set, rests) = (self.set(index), self.rests(index));
        let hints: [u32; WAYS] = std::array::from_fn(|i| set.0[i].load(Ordering::Relaxed));
        // A branch for each hint would be mispredicted.
        let mut at = WAYS;
        for i in (0..WAYS).rev() {
            at = select_unpredictable(hints[i] == hint, i, at);
        }
        if at == WAYS {
            return;
        }
        for (i, way) in set.0.iter().enumerate() {
            let next = hints.get(i + 1).copied().unwrap_or(0);
            let left = select_unpredictable(i < at, hints[i], next);
            way.store(left, Ordering::Relaxed);
        }
        let all = rests.load(Ordering::Relaxed);
        let newer = (1 << (u8::BITS * at as u32)) - 1;
        let left = all & newer | all >> u8::BITS & !newer;
        rests.store(left, Ordering::Relaxed);
    }

    /// Drops all hints and gives back their memory. Lookups find the entries in the index, and note
    /// hints for them again. The caller holds the table's lock.
    pub(crate) fn give_back(&self) {
        let sets = self.sets.as_slice().len();
        self.shift.store(first_shift(sets), Ordering::Relaxed);
        // SAFETY: only callers that hold the table's lock write to sets and rests. A reader takes
        // zeros as a set without hints.
        unsafe {
            self.sets.discard(0..sets);
            self.rests.discard(0..sets);
        }
    }

    /// Begins to load the hint for the start of `range`, which will be noted or dropped.
    #[inline]
    pub(crate) fn prefetch(&self, range: VaRange) {
        let index = self.index_of(hash_of(range.start(), shift_of(size_of(range))));
        prefetch(self.set(index));
        prefetch(self.rests(index));
    }

    /// Returns the number of sets in use.
    fn in_use(&self) -> usize {
        1 << (u64::BITS - self.shift.load(Ordering::Relaxed))
    }

    /// Doubles the number of sets in use, up to the size of the table.
    #[cold]
    fn grow(&self) {
        let before = self.in_use();
        self.found.store(0, Ordering::Relaxed);
        if before == self.sets.as_slice().len() {
            return;
        }
        for i in (0..before).rev() {
            let (mut new, mut used) = ([[(0, 0); WAYS]; 2], [0; 2]);
            for (hint, rest) in self.load(SetIndex(i)) {
                let upper = usize::from(rest >> 7);
                if hint != 0 {
                    new[upper][used[upper]] = (hint, rest << 1);
                    used[upper] += 1;
                }
            }
            self.store(SetIndex(2 * i), new[0]);
            self.store(SetIndex(2 * i + 1), new[1]);
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
    fn hints_of_many_small_buffers_and_windows_push_none_out() {
        for (distance, len) in [(64, 64), (64, 256), (512, 512), (PAGE, 16 * PAGE)] {
            let hints = Hints::new(1 << 16).unwrap();
            let address = |i: u32| 0x7f00_0000_0000 + i as usize * distance;
            let all = 0..4096;
            for _ in 0..2 {
                for i in all.clone() {
                    hints.note_found(address(i), Slot(i), range(address(i), len));
                }
            }
            let first = |i: &u32| hints.first(address(*i)) == Some(Slot(*i));
            let found = all.filter(first).count();
            assert!(found > 3600, "{found} of {len} bytes each {distance}");
        }
    }

    #[test]
    fn what_was_noted_is_found_for_the_whole_page_until_others_push_it_out() {
        let hints = Hints::new(64).unwrap();
        let page = range(0x7000_1000, PAGE);
        hints.note(0x7000_1234, Slot(3), page);
        assert_eq!(slots(&hints, 0x7000_1fff), [3]);
        assert!(slots(&hints, 0x7000_2000).is_empty());
        hints.note_found(0x7000_1000, Slot(3), page);
        assert_eq!(slots(&hints, 0x7000_1000), [3], "noted once");
        for slot in 4..7 {
            hints.note(0x7000_1000, Slot(slot), page);
        }
        assert_eq!(slots(&hints, 0x7000_1000), [6, 5, 4, 3], "newest first");
        for slot in 7..12 {
            hints.note(0x7000_1000, Slot(slot), page);
        }
        let now = slots(&hints, 0x7000_1000);
        assert_eq!(now, [11, 10, 9, 8, 6, 5, 4, 3], "the smallest page first");
        assert_eq!(slots(&hints, 0x7000_1fff), [6, 5, 4, 3]);
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
        let places = || {
            let used = |i| {
                hints
                    .load(SetIndex(i))
                    .iter()
                    .filter(|(hint, _)| *hint != 0)
                    .count()
            };
            (0..hints.in_use()).map(used).sum::<usize>()
        };
        let used = places();
        while hints.in_use() < sets << 8 {
            hints.grow();
            assert!(before.iter().all(found));
            assert_eq!(places(), used, "none is in two sets");
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
            hints.note_found(address, Slot(2), large);
        }
        hints.forget(Slot(2), large);
        for address in (large.start()..large.end()).step_by(PAGE) {
            assert!(!slots(&hints, address).contains(&2));
        }
    }

    #[test]
    fn a_hint_that_was_not_forgotten_is_not_noted_again() {
        let hints = Hints::new(64).unwrap();
        let page = range(0x7000_1000, PAGE);
        let size = size_of(page);
        hints.crowded[size].store(CROWDED, Ordering::Relaxed);
        for slot in 1..4 {
            hints.note(0x7000_1800, Slot(slot), page);
        }
        for _ in 0..5 {
            hints.note(0x7000_1800, Slot(9), page);
            // This call looks only in the first page of the smaller size.
            hints.forget(Slot(9), page);
        }
        assert_eq!(slots(&hints, 0x7000_1800), [9, 3, 2, 1]);
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
