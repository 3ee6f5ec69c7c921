//! [`RangeMap`]: a map from ranges to slots, ordered by the ranges' starts.
//!
//! The map is a B+tree of three levels. The lowest level consists of *blocks* of up to [`BLOCK`]
//! ranges. The middle level consists of *chunks* of up to [`CHUNK`] blocks. The top is one array of
//! chunks. Each level has an array of the starts of its parts, and a search goes through one array
//! of each level.
//!
//! An insertion or a removal moves at most the ranges of one block and the starts of one chunk. The
//! array at the top changes only when a chunk is split, joined or removed, which takes hundreds of
//! insertions or removals. So the cost of a change is nearly independent of the number of ranges
//! and of the order of the changes. The tree has no need for a fourth level: at the limit of 16.7
//! million ranges the array at the top has some ten thousand elements.
//!
//! The time of a search is the time of its dependent loads. Each step of a binary search makes one
//! load, and halves the remaining starts. Each step in a chunk makes seven independent loads, and
//! leaves an eighth of the remaining starts. So the search needs a third of the steps. The arrays
//! of starts have fixed lengths, so the steps have no branches.
//!
//! The map remembers the position of the last search. A miss looks a range up, registers the range
//! and inserts it. So the insertion needs no search of its own. A miss that will evict an entry
//! searches for the range of that entry at the same time, because the CPU then waits for the loads
//! of both searches at once.
//!
//! The speed of this map matters only if registering takes about a microsecond, as with io_uring.
//! If registering takes tens of microseconds, std's `BTreeMap` would be fast enough.
//! `docs/design/hit-path.md` compares the two.

use std::collections::BTreeMap;
use std::hint::select_unpredictable;

use crate::core::blocks::{BLOCK, Block, Blocks, NONE, Packed, Place};
use crate::core::slot::Slot;
use crate::range::VaRange;

/// The maximum number of blocks in a chunk, a power of two. The starts of a chunk's blocks take
/// 2 KiB, so that moving them takes less than 100 ns. In unit tests chunks are small, so that few
/// ranges make many chunks.
const CHUNK: usize = if cfg!(test) { 16 } else { 256 };

/// The number of parts into which one step of a search divides the starts of a chunk.
const PARTS: usize = 8;

/// A part of fewer than `full / FEW` elements is joined with the next one, if the elements of both
/// fill at most half of one. `full` is the maximum number of elements.
const FEW: usize = 4;

/// The map from ranges to slots; see the head of this file.
#[derive(Debug, Default)]
pub(crate) struct RangeMap {
    /// The number of insertions and removals. The number is 0 in a new map, for which the initial
    /// value of `last` is a correct search result.
    version: u64,
    /// The start of each chunk's first range.
    firsts: Vec<usize>,
    /// The chunks. No chunk is empty.
    chunks: Vec<Chunk>,
    blocks: Blocks,
    /// The ends of the ranges whose packed length is [`LONG`], by the ranges' starts.
    long: BTreeMap<usize, usize>,
    /// The result of the last search for a lookup.
    last: LastSearch,
    /// The start of the range that is expected to be removed next, until a search has found it.
    expected: Option<usize>,
    /// The result of the search for that range.
    found: LastSearch,
}

/// A chunk of blocks.
#[derive(Debug)]
struct Chunk {
    /// The start of each block's first range. The rest of the array holds [`NONE`].
    firsts: Box<[usize; CHUNK]>,
    /// The places of the blocks. No block is empty.
    blocks: Vec<Place>,
}

/// The number of bits of a packed range that hold the length. The other bits hold the slot.
const LEN_BITS: u32 = u64::BITS - Slot::BITS;

/// The packed length of every range that has this many bytes (about 1 TiB) or more. The map stores
/// the ends of such ranges separately.
const LONG: u64 = (1 << LEN_BITS) - 1;

/// Returns the packed length of a range.
#[inline]
fn len_of(item: Packed) -> u64 {
    item.rest & LONG
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
    chunk: usize,
    /// The number of the block in its chunk.
    block: usize,
    /// The number of ranges in the block that come before the position.
    before: usize,
}

/// The result of a search. The result is valid while the map's version is unchanged.
#[derive(Debug, Default, Clone, Copy)]
struct LastSearch {
    address: usize,
    version: u64,
    position: Position,
}

impl LastSearch {
    /// Returns true if this is the result for `address` in this version of the map.
    #[inline]
    fn is_of(&self, address: usize, version: u64) -> bool {
        (self.address, self.version) == (address, version)
    }

    /// Stores a result, in parts. A copy of the whole would read words that were just written.
    #[inline]
    fn set(&mut self, address: usize, version: u64, position: Position) {
        self.address = address;
        self.version = version;
        self.position.chunk = position.chunk;
        self.position.block = position.block;
        self.position.before = position.before;
    }
}

impl Chunk {
    fn of(first: usize, block: Place) -> Self {
        let mut firsts = Box::new([NONE; CHUNK]);
        firsts[0] = first;
        Self {
            firsts,
            blocks: vec![block],
        }
    }

    fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Returns the number of the last block that starts at or before `address`, or 0 if there is no
    /// such block.
    ///
    /// The search adds the results of comparisons in place of branching. A branch here would be
    /// mispredicted half of the time. The masks show the compiler that no index is out of bounds.
    #[inline(always)]
    fn find(&self, address: usize) -> usize {
        let is_before = |i: usize| usize::from(self.firsts[i & (CHUNK - 1)] <= address);
        let (mut at, mut width) = (0, CHUNK);
        while width > 1 {
            let parts = width.min(PARTS);
            width /= parts;
            let before: usize = (1..parts).map(|part| is_before(at + part * width)).sum();
            at += before * width;
        }
        at
    }

    fn insert(&mut self, i: usize, first: usize, block: Place) {
        self.firsts.copy_within(i..self.blocks.len(), i + 1);
        self.firsts[i] = first;
        self.blocks.insert(i, block);
    }

    fn remove(&mut self, i: usize) -> Place {
        let len = self.len();
        self.firsts.copy_within(i + 1..len, i);
        self.firsts[len - 1] = NONE;
        self.blocks.remove(i)
    }

    /// Removes the blocks from number `i` on, and returns them as a chunk.
    fn split_off(&mut self, i: usize) -> Self {
        let moved = i..self.len();
        let mut firsts = Box::new([NONE; CHUNK]);
        firsts[..moved.len()].copy_from_slice(&self.firsts[moved.clone()]);
        self.firsts[moved].fill(NONE);
        Self {
            firsts,
            blocks: self.blocks.split_off(i),
        }
    }

    fn append(&mut self, mut other: Self) {
        let (from, moved) = (self.len(), other.len());
        self.firsts[from..from + moved].copy_from_slice(&other.firsts[..moved]);
        self.blocks.append(&mut other.blocks);
    }
}

/// Returns the number of the last of these sorted starts that is at or before `address`, or 0 if
/// there is no such start.
#[inline(always)]
fn last_up_to(starts: &[usize], address: usize) -> usize {
    let Some((_, mut rest)) = starts.split_first() else {
        return 0;
    };
    let mut before = 0;
    while rest.len() >= 2 * PARTS {
        let quarter = rest.len() / 4;
        let is_before = |i: usize| usize::from(rest[i * quarter - 1] <= address);
        let quarters = is_before(1) + is_before(2) + is_before(3);
        before += quarters * quarter;
        rest = &rest[quarters * quarter..][..rest.len() - 3 * quarter];
    }
    let rest: usize = rest.iter().map(|&its| usize::from(its <= address)).sum();
    before + rest
}

/// Returns true if a part of `len` elements is to be joined with the next one of `next` elements.
fn should_join(len: usize, next: usize, full: usize) -> bool {
    len < full / FEW && len + next <= full / 2
}

impl RangeMap {
    /// Returns the position after all ranges that start at or before `address`.
    #[inline]
    fn search(&mut self, address: usize) -> Position {
        if !self.last.is_of(address, self.version) {
            self.search_again(address);
        }
        self.last.position
    }

    /// Searches for `address`, and for the range that is expected to be removed.
    #[inline(never)]
    fn search_again(&mut self, address: usize) {
        let position = match self.expected.take() {
            None => self.after([address])[0],
            Some(expected) => {
                let [position, found] = self.after([address, expected]);
                self.found.set(expected, self.version, found);
                position
            }
        };
        self.last.set(address, self.version, position);
    }

    #[inline]
    fn block(&self, chunk: usize, block: usize) -> Option<&Block> {
        let place = *self.chunks.get(chunk)?.blocks.get(block)?;
        Some(&self.blocks[place])
    }

    /// Returns the last range that starts at or before `address`.
    #[inline]
    pub(crate) fn last_to(&mut self, address: usize) -> Option<Item> {
        let at = self.search(address);
        self.item(at.chunk, at.block, at.before.checked_sub(1)?)
    }

    /// Returns the ranges that start at or before `address`, beginning with the last one.
    pub(crate) fn back_from(&self, address: usize) -> impl Iterator<Item = Item> {
        let [mut at] = self.after([address]);
        std::iter::from_fn(move || {
            if at.before == 0 {
                if at.block == 0 {
                    at.chunk = at.chunk.checked_sub(1)?;
                    at.block = self.chunks.get(at.chunk)?.len();
                }
                at.block -= 1;
                at.before = self.block(at.chunk, at.block)?.len();
            }
            at.before -= 1;
            self.item(at.chunk, at.block, at.before)
        })
    }

    /// Returns the first range that starts at or after `address`, if it starts before `end`.
    #[inline]
    pub(crate) fn first_between(&mut self, address: usize, end: usize) -> Option<Item> {
        let at = self.search(address);
        let chunk = self.chunks.get(at.chunk)?;
        let starts = self.blocks[*chunk.blocks.get(at.block)?].starts();
        // If a range starts exactly at `address`, the position is after that range. So the range
        // before the position is checked first.
        let before = at.before.wrapping_sub(1);
        if starts.get(before) == Some(&address) {
            return self.item(at.chunk, at.block, before);
        }
        // The arrays of starts show where the next range starts, so most searches load no more. The
        // start of an unused place is higher than all others.
        let in_block = starts[at.before % BLOCK];
        let in_block = select_unpredictable(at.before < BLOCK, in_block, NONE);
        let in_chunk = chunk.firsts.get(at.block + 1).map_or(NONE, |&first| first);
        let start = if in_chunk == NONE && in_block == NONE {
            *self.firsts.get(at.chunk + 1)?
        } else {
            in_block.min(in_chunk)
        };
        if start >= end {
            return None;
        }
        if in_block != NONE {
            self.item(at.chunk, at.block, at.before)
        } else if in_chunk != NONE {
            self.item(at.chunk, at.block + 1, 0)
        } else {
            self.item(at.chunk + 1, 0, 0)
        }
    }

    /// Returns a range, given its chunk, its block in the chunk and its number in the block.
    fn item(&self, chunk: usize, block: usize, i: usize) -> Option<Item> {
        Some(self.unpacked(self.block(chunk, block)?.item(i)?))
    }

    /// Adds a range. No other range may have the same start.
    #[inline]
    pub(crate) fn insert(&mut self, range: VaRange, slot: Slot) {
        let mut at = self.search(range.start());
        self.version += 1;
        let item = self.packed(range, slot);
        let is_full = self.block(at.chunk, at.block).map(Block::is_full);
        if is_full != Some(false) {
            at = self.make_place(at, item);
        }
        let Some(chunk) = self.chunks.get_mut(at.chunk) else {
            return;
        };
        let block = &mut self.blocks[chunk.blocks[at.block]];
        block.insert(at.before, item);
        // A branch for a new first range would be mispredicted.
        chunk.firsts[at.block] = block.starts()[0];
        if at.block == 0 {
            self.firsts[at.chunk] = chunk.firsts[0];
        }
    }

    /// Splits the block at the position, which is full, or makes the first block. Returns the new
    /// position of the item.
    #[cold]
    #[inline(never)]
    fn make_place(&mut self, mut at: Position, item: Packed) -> Position {
        let upper = self.blocks.add();
        if self.chunks.is_empty() {
            self.firsts.push(item.start);
            self.chunks.push(Chunk::of(item.start, upper));
            return at;
        }
        if self.chunks[at.chunk].len() == CHUNK {
            // Ranges that are added in ascending order leave full chunks behind, as below.
            let middle = if at.block == CHUNK - 1 {
                CHUNK - 1
            } else {
                CHUNK / 2
            };
            let chunk = self.chunks[at.chunk].split_off(middle);
            self.firsts.insert(at.chunk + 1, chunk.firsts[0]);
            self.chunks.insert(at.chunk + 1, chunk);
            if at.block >= middle {
                at.chunk += 1;
                at.block -= middle;
            }
        }
        let chunk = &mut self.chunks[at.chunk];
        let block = chunk.blocks[at.block];
        // Ranges that are added in ascending order leave full blocks behind. A split in the middle
        // would leave half-full ones.
        let (middle, first) = if at.before == BLOCK {
            (BLOCK, item.start)
        } else {
            (BLOCK / 2, self.blocks[block].starts()[BLOCK / 2])
        };
        self.blocks.move_to(block, middle, upper);
        chunk.insert(at.block + 1, first, upper);
        if at.before > BLOCK / 2 {
            at.block += 1;
            at.before -= middle;
        }
        at
    }

    /// Notes that the range that starts at `start` will probably be removed soon. The next search
    /// for a lookup also searches for this range, so that its removal need not.
    #[inline]
    pub(crate) fn expect_removal(&mut self, start: usize) {
        self.expected = Some(start);
    }

    /// Removes the range that starts at `start`, if there is one.
    pub(crate) fn remove(&mut self, start: usize) {
        let at = if self.found.is_of(start, self.version) {
            self.found.position
        } else {
            self.after([start])[0]
        };
        let Some(i) = at.before.checked_sub(1) else {
            return;
        };
        let Some(chunk) = self.chunks.get_mut(at.chunk) else {
            return;
        };
        let block = &mut self.blocks[chunk.blocks[at.block]];
        let Some(item) = block.item(i).filter(|item| item.start == start) else {
            return;
        };
        self.version += 1;
        let last = self.last.position;
        let is_elsewhere = (last.chunk, last.block) != (at.chunk, at.block);
        let keeps_places = block.starts()[BLOCK / FEW] != NONE;
        if is_elsewhere && keeps_places && self.last.version == self.version - 1 {
            // The removal moves no range of the block that the last search has found. So its result
            // stays valid, and a miss that evicts an entry searches for its own range only once.
            self.last.version = self.version;
        }
        if len_of(item) == LONG {
            self.long.remove(&start);
        }
        block.remove(i);
        chunk.firsts[at.block] = block.starts()[0];
        if block.starts()[BLOCK / FEW - 1] == NONE {
            self.shrink(at);
        } else if at.block == 0 {
            self.firsts[at.chunk] = chunk.firsts[0];
        }
    }

    /// Removes a block that became empty, or joins a block with few ranges with the next one. Does
    /// the same for the chunk.
    fn shrink(&mut self, at: Position) {
        let chunk = &mut self.chunks[at.chunk];
        let block = chunk.blocks[at.block];
        let len = self.blocks[block].len();
        if len == 0 {
            self.blocks.remove(chunk.remove(at.block));
        } else if let Some(&next) = chunk.blocks.get(at.block + 1)
            && should_join(len, self.blocks[next].len(), BLOCK)
        {
            self.blocks.move_to(next, 0, block);
            self.blocks.remove(chunk.remove(at.block + 1));
        }
        let len = chunk.len();
        if len == 0 {
            self.firsts.remove(at.chunk);
            self.chunks.remove(at.chunk);
            return;
        }
        self.firsts[at.chunk] = chunk.firsts[0];
        if let Some(next) = self.chunks.get(at.chunk + 1)
            && should_join(len, next.len(), CHUNK)
        {
            self.firsts.remove(at.chunk + 1);
            let next = self.chunks.remove(at.chunk + 1);
            self.chunks[at.chunk].append(next);
        }
    }

    /// Gives back memory that is not needed any more.
    pub(crate) fn give_back(&mut self) {
        let places = self.chunks.iter_mut().flat_map(|chunk| &mut chunk.blocks);
        self.blocks.give_back(places);
    }

    #[inline]
    fn packed(&mut self, range: VaRange, slot: Slot) -> Packed {
        let len = (range.len() as u64).min(LONG);
        if len == LONG {
            self.add_long(range);
        }
        Packed {
            start: range.start(),
            rest: u64::from(slot.0) << LEN_BITS | len,
        }
    }

    #[inline]
    fn unpacked(&self, item: Packed) -> Item {
        let end = match len_of(item) {
            LONG => self.end_of_long(item.start),
            len => item.start + len as usize,
        };
        Item {
            start: item.start,
            end,
            slot: Slot((item.rest >> LEN_BITS) as u32),
        }
    }

    #[cold]
    #[inline(never)]
    fn add_long(&mut self, range: VaRange) {
        self.long.insert(range.start(), range.end());
    }

    #[cold]
    #[inline(never)]
    fn end_of_long(&self, start: usize) -> usize {
        self.long[&start]
    }

    /// Searches for the positions after all ranges that start at or before each address. A position
    /// is in the block of the last such range. If there is no such range, the position is before
    /// the first range of the map.
    ///
    /// The searches go through the levels together, so that the CPU waits for the loads of all of
    /// them at once.
    #[inline(always)]
    fn after<const N: usize>(&self, mut addresses: [usize; N]) -> [Position; N] {
        for address in &mut addresses {
            *address = (*address).min(NONE - 1);
        }
        let mut positions = [Position::default(); N];
        for (at, &address) in positions.iter_mut().zip(&addresses) {
            at.chunk = last_up_to(&self.firsts, address);
        }
        for (at, &address) in positions.iter_mut().zip(&addresses) {
            if let Some(chunk) = self.chunks.get(at.chunk) {
                at.block = chunk.find(address);
            }
        }
        for (at, &address) in positions.iter_mut().zip(&addresses) {
            if let Some(block) = self.block(at.chunk, at.block) {
                block.prefetch_rests();
                at.before = block.up_to(address);
            }
        }
        positions
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
        /// Look an address up, remove another range, and look the address up again.
        Evict(usize, usize),
        /// Announce the removal of a range.
        Expect(usize),
        GiveBack,
    }

    fn ops() -> impl Strategy<Value = Op> {
        let at = 0..600_usize;
        prop_oneof![
            3 => (at.clone(), 1..9_usize).prop_map(|(start, len)| Op::Insert(start, len)),
            2 => at.clone().prop_map(Op::Remove),
            1 => at.clone().prop_map(Op::Look),
            2 => (at.clone(), at.clone()).prop_map(|(at, victim)| Op::Evict(at, victim)),
            2 => at.prop_map(Op::Expect),
            1 => Just(Op::GiveBack),
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
        for end in [at + 1, at + 10, usize::MAX] {
            let first = map.first_between(at, end);
            let expected = from.first().filter(|(start, _)| *start < end);
            assert_eq!(pairs(&mut first.into_iter()).first(), expected);
        }
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

    #[test]
    fn a_search_of_any_number_of_starts_finds_the_last_one_up_to_an_address() {
        let starts: Vec<_> = (0..300).map(|i| 10 + 2 * i).collect();
        for len in 1..starts.len() {
            let starts = &starts[..len];
            for address in 0..620 {
                let before = starts.partition_point(|&start| start <= address);
                assert_eq!(last_up_to(starts, address), before.saturating_sub(1));
            }
        }
        assert_eq!(last_up_to(&[], 7), 0);
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
                    Op::Expect(start) => map.expect_removal(start),
                    Op::GiveBack => {
                        map.give_back();
                        let used: usize = map.chunks.iter().map(Chunk::len).sum();
                        assert_eq!(map.blocks.len(), used);
                    }
                    Op::Evict(at, victim) => {
                        check(&mut map, &model, at);
                        model.remove(&victim);
                        map.remove(victim);
                        check(&mut map, &model, at);
                    }
                }
            }
            check(&mut map, &model, 300);
        }
    }
}
