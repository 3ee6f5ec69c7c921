//! [`Sorted`]: ranges in the order in which they start.
//!
//! Blocks of up to [`BLOCK`] ranges, and an array of where each block starts: a search is two binary
//! searches, of an array that is in the processor's cache and of one block. Half to a fifth of the
//! instructions of a B-tree of the standard library's, whose searches for a neighbour go down from
//! the root twice.

use crate::VaRange;
use crate::slab::Slot;

/// Moving half a block, as inserting does, costs about what finding it does.
const BLOCK: usize = 64;

/// Blocks of fewer than this are joined.
const FEW: usize = BLOCK / 4;

#[derive(Debug, Default)]
pub(crate) struct Sorted {
    /// Counts changes.
    version: u64,
    /// The start of each block's first range.
    firsts: Vec<usize>,
    /// None is empty.
    blocks: Vec<Block>,
}

#[derive(Debug)]
struct Block {
    starts: Vec<usize>,
    rest: Vec<(usize, Slot)>,
}

/// A range, by its bounds, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) slot: Slot,
}

/// Between two ranges, or beside one: the number of a block, and of ranges in it that are before.
#[derive(Debug, Clone, Copy)]
struct Place {
    block: usize,
    before: usize,
}

/// Where an address was found to belong, as long as nothing changes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    address: usize,
    version: u64,
    place: Place,
}

impl Block {
    fn new() -> Self {
        Self {
            starts: Vec::with_capacity(BLOCK),
            rest: Vec::with_capacity(BLOCK),
        }
    }

    fn item(&self, i: usize) -> Option<Item> {
        let (&start, &(end, slot)) = self.starts.get(i).zip(self.rest.get(i))?;
        Some(Item { start, end, slot })
    }
}

impl Sorted {
    /// Where `address` belongs.
    #[inline]
    pub(crate) fn search(&self, address: usize) -> Found {
        Found {
            address,
            version: self.version,
            place: self.after(address),
        }
    }

    /// Where `address` belongs, by what was found before if that holds.
    #[inline]
    fn search_again(&self, address: usize, found: Option<Found>) -> Place {
        match found {
            Some(it) if (it.address, it.version) == (address, self.version) => it.place,
            _ => self.after(address),
        }
    }

    /// The last that starts at or before the address that was searched for just now.
    #[inline]
    pub(crate) fn last_to(&self, found: &Found) -> Option<Item> {
        let Place { block, before } = found.place;
        self.blocks.get(block)?.item(before.checked_sub(1)?)
    }

    /// Those that start at or before `address`, the last first.
    pub(crate) fn back_from(&self, address: usize) -> impl Iterator<Item = Item> {
        let mut place = self.after(address);
        std::iter::from_fn(move || {
            if place.before == 0 {
                place.block = place.block.checked_sub(1)?;
                place.before = self.blocks.get(place.block)?.starts.len();
            }
            place.before -= 1;
            self.blocks.get(place.block)?.item(place.before)
        })
    }

    /// The first that starts at or after `address`.
    #[inline]
    pub(crate) fn first_from(&self, address: usize, found: Option<Found>) -> Option<Item> {
        let Place { block, before } = self.search_again(address, found);
        let here = self.blocks.get(block)?;
        // One that starts just there is before that.
        if let Some(item) = before.checked_sub(1).and_then(|i| here.item(i))
            && item.start == address
        {
            return Some(item);
        }
        here.item(before)
            .or_else(|| self.blocks.get(block + 1)?.item(0))
    }

    /// Adds a range of which none has the start.
    pub(crate) fn insert(&mut self, range: VaRange, slot: Slot, found: Option<Found>) {
        let Place {
            mut block,
            mut before,
        } = self.search_again(range.start(), found);
        self.version += 1;
        if self.blocks.is_empty() {
            self.firsts.push(range.start());
            self.blocks.push(Block::new());
        }
        if self.blocks[block].starts.len() == BLOCK {
            self.split(block);
            if before > BLOCK / 2 {
                block += 1;
                before -= BLOCK / 2;
            }
        }
        let into = &mut self.blocks[block];
        into.starts.insert(before, range.start());
        into.rest.insert(before, (range.end(), slot));
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
        if from.starts[i] != start {
            return;
        }
        self.version += 1;
        from.starts.remove(i);
        from.rest.remove(i);
        if from.starts.is_empty() {
            self.blocks.remove(block);
            self.firsts.remove(block);
            return;
        }
        self.firsts[block] = from.starts[0];
        let len = from.starts.len();
        if len < FEW
            && let Some(next) = self.blocks.get(block + 1)
            && len + next.starts.len() <= BLOCK / 2
        {
            self.firsts.remove(block + 1);
            let mut next = self.blocks.remove(block + 1);
            let into = &mut self.blocks[block];
            into.starts.append(&mut next.starts);
            into.rest.append(&mut next.rest);
        }
    }

    /// After all that start at or before `address`. Beside the first of all if there are none, else in
    /// the block of the last of them.
    fn after(&self, address: usize) -> Place {
        let block = self.firsts.partition_point(|&first| first <= address);
        let block = block.saturating_sub(1);
        let before = match self.blocks.get(block) {
            Some(it) => it.starts.partition_point(|&start| start <= address),
            None => 0,
        };
        Place { block, before }
    }

    fn split(&mut self, block: usize) {
        let from = &mut self.blocks[block];
        let mut upper = Block::new();
        upper.starts.extend(from.starts.drain(BLOCK / 2..));
        upper.rest.extend(from.rest.drain(BLOCK / 2..));
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

    fn check(sorted: &Sorted, model: &BTreeMap<usize, usize>, at: usize) {
        let pairs = |items: &mut dyn Iterator<Item = Item>| -> Vec<_> {
            items.map(|item| (item.start, item.end)).collect()
        };
        let pair = |(&start, &end): (&usize, &usize)| (start, end);
        let from: Vec<_> = model.range(at..).map(pair).collect();
        let back: Vec<_> = model.range(..=at).rev().map(pair).collect();
        let found = sorted.search(at);
        assert_eq!(
            pairs(&mut sorted.last_to(&found).into_iter()),
            back[..back.len().min(1)]
        );
        for found in [Some(found), None] {
            let first = sorted.first_from(at, found);
            assert_eq!(pairs(&mut first.into_iter()), from[..from.len().min(1)]);
        }
        assert_eq!(pairs(&mut sorted.back_from(at)), back);
    }

    proptest! {
        #[test]
        fn it_is_a_map_by_start(
            ops in prop::collection::vec(ops(), 0..1500),
            last in prop::collection::vec(0..600_usize, 700),
        ) {
            let (mut sorted, mut model) = (Sorted::default(), BTreeMap::new());
            let mut found = None;
            let removals = last.into_iter().map(Op::Remove);
            for op in ops.into_iter().chain(removals) {
                match op {
                    Op::Insert(start, len) => {
                        if let std::collections::btree_map::Entry::Vacant(entry) = model.entry(start) {
                            entry.insert(start + len);
                            let range = VaRange::new(ptr::without_provenance(start), len);
                            sorted.insert(range.expect("not empty"), Slot(0), found);
                        }
                    }
                    Op::Remove(start) => {
                        model.remove(&start);
                        sorted.remove(start);
                    }
                    Op::Look(at) => {
                        check(&sorted, &model, at);
                        found = Some(sorted.search(at));
                    }
                }
            }
            check(&sorted, &model, 300);
        }
    }
}
