//! [`Sorted`]: ranges in the order in which they start.
//!
//! Blocks of up to [`BLOCK`] ranges, and an array of where each block starts: a search is one of that
//! array and one of a block. What it takes is the time for one load after another to arrive, so it asks
//! in three places at once and cuts the rest to a quarter ([`up_to`]), where halving would ask in one.
//! The last search is remembered: a miss looks a range up, registers it and then puts it there.

use std::collections::BTreeMap;

use crate::VaRange;
use crate::core::slab::Slot;

/// So few that a search waits for three cache lines of it at most, and what an insertion moves is little.
/// Splitting one moves the array of starts: a million ranges entered for the first time take 6 us each at
/// the end, less than registering does.
const BLOCK: usize = 8;

/// Blocks of fewer than this are joined.
const FEW: usize = BLOCK / 4;

#[derive(Debug, Default)]
pub(crate) struct Sorted {
    /// Counts changes. 0 as long as there is nothing, and that is what the search remembered first has found.
    version: u64,
    /// The start of each block's first range.
    firsts: Vec<usize>,
    /// None is empty.
    #[expect(
        clippy::vec_box,
        reason = "putting one in between moves pointers, not blocks"
    )]
    blocks: Vec<Box<Block>>,
    /// The ends of those that are [`LONG`], by their starts.
    long: BTreeMap<usize, usize>,
    /// The last search.
    last: Found,
}

/// Where no range starts: it would have to end behind it.
const NONE: usize = usize::MAX;

/// Bits of a packed range's number of bytes. The others are the slot's.
const LEN_BITS: u32 = u64::BITS - Slot::BITS;

/// A number of bytes that stands for itself and all above, some 1 TiB.
const LONG: u64 = (1 << LEN_BITS) - 1;

/// The starts of its ranges in one cache line, which is what a search reads, and the rest of them in the next. After
/// the last there are others that start at [`NONE`], so that neither need know how many there are.
#[derive(Debug)]
#[repr(align(64))]
struct Block {
    starts: [usize; BLOCK],
    rests: [u64; BLOCK],
}

/// An [`Item`] in so little that eight share two cache lines: those that a miss waits for are here.
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

/// A range, by its bounds, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) slot: Slot,
}

/// Between two ranges, or beside one: the number of a block, and of ranges in it that are before.
#[derive(Debug, Default, Clone, Copy)]
struct Place {
    block: usize,
    before: usize,
}

/// Where an address was found to belong, as long as nothing changes.
#[derive(Debug, Default, Clone, Copy)]
struct Found {
    address: usize,
    version: u64,
    place: Place,
}

/// How many of these, which are sorted, are `address` or before.
#[inline(always)]
fn up_to(sorted: &[usize], address: usize) -> usize {
    let mut rest = sorted;
    let mut before = 0;
    // What is left out is known to be before, or not needed to tell. Counts are added where one would
    // branch: which way is anybody's guess, and half of the guesses are wrong.
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

/// Puts one in at `i`; the last falls out. Moves by a choice for each place, where a call for the few to be moved
/// would take longer.
#[inline]
fn insert<T: Copy>(into: &mut [T; BLOCK], i: usize, one: T) {
    for k in (1..BLOCK).rev() {
        into[k] = if k > i { into[k - 1] } else { into[k] };
    }
    into[i] = one;
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

    /// How many start at `address` or before. Not one count of all: the compiler makes vectors of that, which
    /// take a tenth of a miss more.
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

    /// Adds one, which there is room for.
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

    /// Moves those from number `i` on to the end of another, which has room for them.
    fn move_to(&mut self, i: usize, other: &mut Self) {
        let from = i..self.len();
        let to = other.len()..other.len() + from.len();
        other.starts[to.clone()].copy_from_slice(&self.starts[from.clone()]);
        other.rests[to].copy_from_slice(&self.rests[from]);
        self.starts[i..].fill(NONE);
    }
}

impl Sorted {
    /// Where `address` belongs.
    #[inline]
    fn search(&mut self, address: usize) -> Place {
        if (self.last.address, self.last.version) != (address, self.version) {
            self.last = Found {
                address,
                version: self.version,
                place: self.after(address),
            };
        }
        self.last.place
    }

    /// The last that starts at or before `address`.
    #[inline]
    pub(crate) fn last_to(&mut self, address: usize) -> Option<Item> {
        let Place { block, before } = self.search(address);
        let item = self.blocks.get(block)?.item(before.checked_sub(1)?)?;
        Some(self.unpacked(item))
    }

    /// Those that start at or before `address`, the last first.
    pub(crate) fn back_from(&self, address: usize) -> impl Iterator<Item = Item> {
        let mut place = self.after(address);
        std::iter::from_fn(move || {
            if place.before == 0 {
                place.block = place.block.checked_sub(1)?;
                place.before = self.blocks.get(place.block)?.len();
            }
            place.before -= 1;
            let item = self.blocks.get(place.block)?.item(place.before)?;
            Some(self.unpacked(item))
        })
    }

    /// The first that starts at or after `address`.
    #[inline]
    pub(crate) fn first_from(&mut self, address: usize) -> Option<Item> {
        let Place { block, before } = self.search(address);
        let here = self.blocks.get(block)?;
        // One that starts just there is before that.
        if let Some(item) = before.checked_sub(1).and_then(|i| here.item(i))
            && item.start == address
        {
            return Some(self.unpacked(item));
        }
        let next = || self.blocks.get(block + 1)?.item(0);
        let item = here.item(before).or_else(next)?;
        Some(self.unpacked(item))
    }

    /// Adds a range of which none has the start.
    #[inline]
    pub(crate) fn insert(&mut self, range: VaRange, slot: Slot) {
        let Place {
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

    /// Removes the range that starts here, if there is one.
    pub(crate) fn remove(&mut self, start: usize) {
        let Place { block, before } = self.after(start);
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

    /// After all that start at or before `address`. Beside the first of all if there are none, else in
    /// the block of the last of them.
    #[inline]
    fn after(&self, address: usize) -> Place {
        let address = address.min(NONE - 1);
        let block = up_to(&self.firsts, address).saturating_sub(1);
        let before = match self.blocks.get(block) {
            Some(it) => it.up_to(address),
            None => 0,
        };
        Place { block, before }
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

    fn check(sorted: &mut Sorted, model: &BTreeMap<usize, usize>, at: usize) {
        let pairs = |items: &mut dyn Iterator<Item = Item>| -> Vec<_> {
            items.map(|item| (item.start, item.end)).collect()
        };
        let pair = |(&start, &end): (&usize, &usize)| (start, end);
        let from: Vec<_> = model.range(at..).map(pair).collect();
        let back: Vec<_> = model.range(..=at).rev().map(pair).collect();
        let last = sorted.last_to(at);
        assert_eq!(pairs(&mut last.into_iter()), back[..back.len().min(1)]);
        let first = sorted.first_from(at);
        assert_eq!(pairs(&mut first.into_iter()), from[..from.len().min(1)]);
        assert_eq!(pairs(&mut sorted.back_from(at)), back);
    }

    #[test]
    fn a_range_may_have_more_bytes_than_there_is_room_for() {
        let mut sorted = Sorted::default();
        let long = 1 << LEN_BITS;
        for (start, len) in [(1 << 30, long - 2), (2 << 30, long), (3 << 30, 8 * long)] {
            let range = VaRange::new(ptr::without_provenance(start), len).unwrap();
            sorted.insert(range, Slot((1 << Slot::BITS) - 1));
            let item = sorted.last_to(start).unwrap();
            assert_eq!((item.start, item.end), (start, start + len));
            assert_eq!(item.slot, Slot((1 << Slot::BITS) - 1));
        }
        sorted.remove(2 << 30);
        sorted.remove(3 << 30);
        assert!(sorted.long.is_empty());
    }

    proptest! {
        #[test]
        fn it_is_a_map_by_start(
            ops in prop::collection::vec(ops(), 0..1500),
            last in prop::collection::vec(0..600_usize, 700),
        ) {
            let (mut sorted, mut model) = (Sorted::default(), BTreeMap::new());
            let removals = last.into_iter().map(Op::Remove);
            for op in ops.into_iter().chain(removals) {
                match op {
                    Op::Insert(start, len) => {
                        if let std::collections::btree_map::Entry::Vacant(entry) = model.entry(start) {
                            entry.insert(start + len);
                            let range = VaRange::new(ptr::without_provenance(start), len);
                            sorted.insert(range.expect("not empty"), Slot(0));
                        }
                    }
                    Op::Remove(start) => {
                        model.remove(&start);
                        sorted.remove(start);
                    }
                    Op::Look(at) => check(&mut sorted, &model, at),
                }
            }
            check(&mut sorted, &model, 300);
        }
    }
}
