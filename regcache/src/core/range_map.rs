//! [`RangeMap`]: a map from ranges to slots, ordered by the ranges' starts.
//!
//! The map consists of blocks of up to [`BLOCK`] ranges, and an array of the blocks' starts. To
//! find an address, the map searches that array and then one block. The time of a search is the
//! time of its dependent loads. Each step of a binary search makes one load, and halves the
//! remaining starts. Each step of [`up_to`] makes three independent loads, and quarters the
//! remaining starts. So `up_to` needs half as many steps.
//!
//! The map remembers the position of the last search. A miss looks a range up, registers the range
//! and inserts it. So the insertion needs no search of its own.
//!
//! The speed of this map matters only if registering takes about a microsecond, as with io_uring.
//! If registering takes tens of microseconds, std's `BTreeMap` would be fast enough.

use std::collections::BTreeMap;

use crate::core::slab::Slot;
use crate::range::VaRange;

/// The maximum number of ranges in a block. A search of such a small block waits for few cache
/// lines, and an insertion moves few ranges. Smaller blocks would be split more often, and a split
/// moves the array of starts. With a million ranges, an insertion with a split takes 6 us.
const BLOCK: usize = 8;

/// A block with fewer ranges than this is joined with the next block, if the ranges of both fit in
/// one block.
const FEW: usize = BLOCK / 4;

/// The map from ranges to slots; see the head of this file.
#[derive(Debug, Default)]
pub(crate) struct RangeMap {
    /// The number of insertions and removals. The number is 0 in a new map, for which the initial
    /// value of `last` is a correct search result.
    version: u64,
    /// The start of each block's first range.
    firsts: Vec<usize>,
    /// The blocks. No block is empty.
    #[expect(
        clippy::vec_box,
        reason = "an insertion in between moves pointers, not blocks"
    )]
    blocks: Vec<Box<Block>>,
    /// The ends of the ranges whose packed length is [`LONG`], by the ranges' starts.
    long: BTreeMap<usize, usize>,
    /// The result of the last search.
    last: LastSearch,
}

/// The start that unused places of a block hold. No range starts at this address, because the end
/// of a range must be higher.
const NONE: usize = usize::MAX;

/// The number of bits of a packed range that hold the length. The other bits hold the slot.
const LEN_BITS: u32 = u64::BITS - Slot::BITS;

/// The packed length of every range that has this many bytes (about 1 TiB) or more. The map stores
/// the ends of such ranges separately.
const LONG: u64 = (1 << LEN_BITS) - 1;

/// A block of ranges. The starts are in one cache line, and a search reads only that line. The
/// ranges' other bits (`rests`) are in the next cache line. The start of an unused place is
/// [`NONE`], so a search need not know the number of ranges.
#[derive(Debug)]
#[repr(align(64))]
struct Block {
    starts: [usize; BLOCK],
    rests: [u64; BLOCK],
}

/// An [`Item`] packed into 16 bytes, so that a block fits in two cache lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packed {
    start: usize,
    rest: u64,
}

impl Packed {
    #[inline]
    fn len(self) -> u64 {
        self.rest & LONG
    }
}

/// A range and its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) slot: Slot,
}

/// A position between two neighbouring ranges, before the first range, or after the last one.
#[derive(Debug, Default, Clone, Copy)]
struct Position {
    block: usize,
    /// The number of ranges in the block that come before the position.
    before: usize,
}

/// The result of the last search. The result is valid while the map's version is unchanged.
#[derive(Debug, Default, Clone, Copy)]
struct LastSearch {
    address: usize,
    version: u64,
    position: Position,
}

/// Returns how many of the `sorted` addresses are at or before `address`.
///
/// The search adds the results of comparisons in place of branching. A branch here would be
/// mispredicted half of the time.
#[inline(always)]
fn up_to(sorted: &[usize], address: usize) -> usize {
    let mut rest = sorted;
    let mut before = 0;
    while rest.len() >= 16 {
        let quarter = rest.len() / 4;
        let is_before = |i: usize| usize::from(rest[i * quarter - 1] <= address);
        let whole = is_before(1) + is_before(2) + is_before(3);
        before += whole * quarter;
        rest = &rest[whole * quarter..][..rest.len() - 3 * quarter];
    }
    before
        + rest
            .iter()
            .map(|&its| usize::from(its <= address))
            .sum::<usize>()
}

/// Inserts an element at `i`, and drops the last element. A comparison selects the new value of
/// each place. For so few elements, the comparisons are faster than a call of `memmove`.
#[inline]
fn insert<T: Copy>(into: &mut [T; BLOCK], i: usize, element: T) {
    for k in (1..BLOCK).rev() {
        into[k] = if k > i { into[k - 1] } else { into[k] };
    }
    into[i] = element;
}

impl Block {
    const EMPTY: Self = Self {
        starts: [NONE; BLOCK],
        rests: [0; BLOCK],
    };

    fn is_full(&self) -> bool {
        self.starts[BLOCK - 1] != NONE
    }

    fn len(&self) -> usize {
        self.up_to(NONE - 1)
    }

    /// Returns the number of the block's ranges that start at or before `address`.
    ///
    /// The function counts in two steps. The compiler would vectorise a single count of all places,
    /// which would make misses a tenth slower.
    #[inline]
    fn up_to(&self, address: usize) -> usize {
        const QUARTER: usize = BLOCK / 4;
        let is_before = |i: usize| usize::from(self.starts[i] <= address);
        let quarters =
            is_before(QUARTER - 1) + is_before(2 * QUARTER - 1) + is_before(3 * QUARTER - 1);
        let from = quarters * QUARTER;
        let rest = &self.starts[from..from + QUARTER];
        let before: usize = rest.iter().map(|&its| usize::from(its <= address)).sum();
        from + before
    }

    #[inline]
    fn item(&self, i: usize) -> Option<Packed> {
        let start = *self.starts.get(i)?;
        let rest = self.rests[i];
        (start != NONE).then_some(Packed { start, rest })
    }

    /// Adds a range. The block must have room.
    #[inline]
    fn insert(&mut self, i: usize, item: Packed) {
        insert(&mut self.starts, i, item.start);
        insert(&mut self.rests, i, item.rest);
    }

    fn remove(&mut self, i: usize) {
        self.starts.copy_within(i + 1.., i);
        self.rests.copy_within(i + 1.., i);
        self.starts[BLOCK - 1] = NONE;
    }

    /// Moves the ranges from number `i` on to the end of another block, which must have room.
    fn move_to(&mut self, i: usize, other: &mut Self) {
        let from = i..self.len();
        let to = other.len()..other.len() + from.len();
        other.starts[to.clone()].copy_from_slice(&self.starts[from.clone()]);
        other.rests[to].copy_from_slice(&self.rests[from]);
        self.starts[i..].fill(NONE);
    }
}

impl RangeMap {
    /// Returns the position after all ranges that start at or before `address`.
    #[inline]
    fn search(&mut self, address: usize) -> Position {
        if (self.last.address, self.last.version) != (address, self.version) {
            self.last = LastSearch {
                address,
                version: self.version,
                position: self.after(address),
            };
        }
        self.last.position
    }

    /// Returns the last range that starts at or before `address`.
    #[inline]
    pub(crate) fn last_to(&mut self, address: usize) -> Option<Item> {
        let Position { block, before } = self.search(address);
        let item = self.blocks.get(block)?.item(before.checked_sub(1)?)?;
        Some(self.unpacked(item))
    }

    /// Returns the ranges that start at or before `address`, beginning with the last one.
    pub(crate) fn back_from(&self, address: usize) -> impl Iterator<Item = Item> {
        let mut at = self.after(address);
        std::iter::from_fn(move || {
            if at.before == 0 {
                at.block = at.block.checked_sub(1)?;
                at.before = self.blocks.get(at.block)?.len();
            }
            at.before -= 1;
            let item = self.blocks.get(at.block)?.item(at.before)?;
            Some(self.unpacked(item))
        })
    }

    /// Returns the first range that starts at or after `address`.
    #[inline]
    pub(crate) fn first_from(&mut self, address: usize) -> Option<Item> {
        let Position { block, before } = self.search(address);
        let here = self.blocks.get(block)?;
        // If a range starts exactly at `address`, the position is after that range. So the range
        // before the position is checked first.
        if let Some(item) = before.checked_sub(1).and_then(|i| here.item(i))
            && item.start == address
        {
            return Some(self.unpacked(item));
        }
        let next = || self.blocks.get(block + 1)?.item(0);
        let item = here.item(before).or_else(next)?;
        Some(self.unpacked(item))
    }

    /// Adds a range. No other range may have the same start.
    #[inline]
    pub(crate) fn insert(&mut self, range: VaRange, slot: Slot) {
        let Position {
            mut block,
            mut before,
        } = self.search(range.start());
        self.version += 1;
        if self.blocks.is_empty() {
            self.firsts.push(range.start());
            self.blocks.push(Box::new(Block::EMPTY));
        }
        if self.blocks[block].is_full() {
            self.split(block);
            if before > BLOCK / 2 {
                block += 1;
                before -= BLOCK / 2;
            }
        }
        let item = self.packed(range, slot);
        self.blocks[block].insert(before, item);
        if before == 0 {
            self.firsts[block] = range.start();
        }
    }

    /// Removes the range that starts at `start`, if there is one.
    pub(crate) fn remove(&mut self, start: usize) {
        let Position { block, before } = self.after(start);
        let Some(i) = before.checked_sub(1) else {
            return;
        };
        let from = &mut self.blocks[block];
        let Some(item) = from.item(i).filter(|item| item.start == start) else {
            return;
        };
        self.version += 1;
        if item.len() == LONG {
            self.long.remove(&start);
        }
        from.remove(i);
        let len = from.len();
        if len == 0 {
            self.blocks.remove(block);
            self.firsts.remove(block);
            return;
        }
        self.firsts[block] = from.starts[0];
        if len < FEW
            && let Some(next) = self.blocks.get(block + 1)
            && len + next.len() <= BLOCK / 2
        {
            self.firsts.remove(block + 1);
            let mut next = self.blocks.remove(block + 1);
            next.move_to(0, &mut self.blocks[block]);
        }
    }

    #[inline]
    fn packed(&mut self, range: VaRange, slot: Slot) -> Packed {
        let len = (range.len() as u64).min(LONG);
        if len == LONG {
            self.long.insert(range.start(), range.end());
        }
        Packed {
            start: range.start(),
            rest: u64::from(slot.0) << LEN_BITS | len,
        }
    }

    #[inline]
    fn unpacked(&self, item: Packed) -> Item {
        let end = match item.len() {
            LONG => self.long[&item.start],
            len => item.start + len as usize,
        };
        Item {
            start: item.start,
            end,
            slot: Slot((item.rest >> LEN_BITS) as u32),
        }
    }

    /// Searches for the position after all ranges that start at or before `address`. The position
    /// is in the block of the last such range. If there is no such range, the position is before
    /// the first range of the map.
    #[inline]
    fn after(&self, address: usize) -> Position {
        let address = address.min(NONE - 1);
        let block = up_to(&self.firsts, address).saturating_sub(1);
        let before = match self.blocks.get(block) {
            Some(it) => it.up_to(address),
            None => 0,
        };
        Position { block, before }
    }

    #[cold]
    fn split(&mut self, block: usize) {
        let mut upper = Box::new(Block::EMPTY);
        self.blocks[block].move_to(BLOCK / 2, &mut upper);
        self.firsts.insert(block + 1, upper.starts[0]);
        self.blocks.insert(block + 1, upper);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeMap;
    use std::ptr;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Op {
        Insert(usize, usize),
        Remove(usize),
        Look(usize),
    }

    fn ops() -> impl Strategy<Value = Op> {
        let at = 0..600_usize;
        prop_oneof![
            3 => (at.clone(), 1..9_usize).prop_map(|(start, len)| Op::Insert(start, len)),
            2 => at.clone().prop_map(Op::Remove),
            1 => at.prop_map(Op::Look),
        ]
    }

    fn check(map: &mut RangeMap, model: &BTreeMap<usize, usize>, at: usize) {
        let pairs = |items: &mut dyn Iterator<Item = Item>| -> Vec<_> {
            items.map(|item| (item.start, item.end)).collect()
        };
        let pair = |(&start, &end): (&usize, &usize)| (start, end);
        let from: Vec<_> = model.range(at..).map(pair).collect();
        let back: Vec<_> = model.range(..=at).rev().map(pair).collect();
        let last = map.last_to(at);
        assert_eq!(pairs(&mut last.into_iter()), back[..back.len().min(1)]);
        let first = map.first_from(at);
        assert_eq!(pairs(&mut first.into_iter()), from[..from.len().min(1)]);
        assert_eq!(pairs(&mut map.back_from(at)), back);
    }

    #[test]
    fn a_range_may_have_more_bytes_than_there_is_room_for() {
        let mut map = RangeMap::default();
        let long = 1 << LEN_BITS;
        for (start, len) in [(1 << 30, long - 2), (2 << 30, long), (3 << 30, 8 * long)] {
            let range = VaRange::new(ptr::without_provenance(start), len).unwrap();
            map.insert(range, Slot((1 << Slot::BITS) - 1));
            let item = map.last_to(start).unwrap();
            assert_eq!((item.start, item.end), (start, start + len));
            assert_eq!(item.slot, Slot((1 << Slot::BITS) - 1));
        }
        map.remove(2 << 30);
        map.remove(3 << 30);
        assert!(map.long.is_empty());
    }

    proptest! {
        #[test]
        fn it_is_a_map_by_start(
            ops in prop::collection::vec(ops(), 0..1500),
            last in prop::collection::vec(0..600_usize, 700),
        ) {
            let (mut map, mut model) = (RangeMap::default(), BTreeMap::new());
            let removals = last.into_iter().map(Op::Remove);
            for op in ops.into_iter().chain(removals) {
                match op {
                    Op::Insert(start, len) => {
                        if let std::collections::btree_map::Entry::Vacant(entry) = model.entry(start) {
                            entry.insert(start + len);
                            let range = VaRange::new(ptr::without_provenance(start), len);
                            map.insert(range.expect("not empty"), Slot(0));
                        }
                    }
                    Op::Remove(start) => {
                        model.remove(&start);
                        map.remove(start);
                    }
                    Op::Look(at) => check(&mut map, &model, at),
                }
            }
            check(&mut map, &model, 300);
        }
    }
}
