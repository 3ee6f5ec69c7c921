//! [`Blocks`]: the blocks of ranges that are the lowest level of a [`RangeMap`].
//!
//! Blocks are allocated in groups, in the order in which they are first used. So a block needs no
//! memory beside its ranges, blocks share few pages, and a new block moves no other one. A block
//! that is no longer used keeps its place, and the next new block uses the place.
//!
//! [`RangeMap`]: crate::core::range_map::RangeMap

use std::hint::select_unpredictable;
use std::ops::{Index, IndexMut};
use std::ptr::NonNull;

use crate::sys::prefetch::prefetch;

/// The maximum number of ranges in a block. The starts of so many ranges fill a cache line, and an
/// insertion moves few ranges.
pub(crate) const BLOCK: usize = 8;

/// The number of blocks that are allocated at once, in 8 KiB.
const GROUP: usize = 64;

/// The maximum number of blocks in use that [`Blocks::give_back`] moves. Moving so many takes less
/// than a millisecond, during which the caller holds the cache's lock.
const MOVED: usize = 2048;

/// The start that unused places of a block hold. No range starts at this address, because the end
/// of a range must be higher.
pub(crate) const NONE: usize = usize::MAX;

/// A block of ranges. The starts are in one cache line, and a search reads only this line. The
/// ranges' other bits (`rests`) are in the next one. The start of an unused place is [`NONE`], so a
/// search need not know the number of ranges.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Block {
    starts: [usize; BLOCK],
    rests: [u64; BLOCK],
}

/// A range in a block: its start, and its other bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packed {
    pub(crate) start: usize,
    pub(crate) rest: u64,
}

/// Inserts an element at `i`, and drops the last element. For so few elements, comparisons are
/// faster than a call of `memmove`.
#[inline]
fn insert<T: Copy>(into: &mut [T; BLOCK], i: usize, element: T) {
    for k in (1..BLOCK).rev() {
        into[k] = if k > i { into[k - 1] } else { into[k] };
    }
    into[i] = element;
}

/// Removes the element at `i`. The last place then holds `unused`. The place is as good as random,
/// so a branch would be mispredicted.
#[inline]
fn remove<T: Copy>(from: &mut [T; BLOCK], i: usize, unused: T) {
    for k in 0..BLOCK - 1 {
        from[k] = select_unpredictable(k < i, from[k], from[k + 1]);
    }
    from[BLOCK - 1] = unused;
}

impl Block {
    const EMPTY: Self = Self {
        starts: [NONE; BLOCK],
        rests: [0; BLOCK],
    };

    /// Returns the starts of the ranges, in ascending order. Unused places hold [`NONE`].
    #[inline]
    pub(crate) fn starts(&self) -> &[usize; BLOCK] {
        &self.starts
    }

    pub(crate) fn is_full(&self) -> bool {
        self.starts[BLOCK - 1] != NONE
    }

    pub(crate) fn len(&self) -> usize {
        self.up_to(NONE - 1)
    }

    /// Returns the number of the block's ranges that start at or before `address`.
    ///
    /// The function counts in two steps. The compiler would vectorise a single count of all places,
    /// which would make misses a tenth slower.
    #[inline]
    pub(crate) fn up_to(&self, address: usize) -> usize {
        const QUARTER: usize = BLOCK / 4;
        let is_before = |i: usize| usize::from(self.starts[i] <= address);
        let quarters =
            is_before(QUARTER - 1) + is_before(2 * QUARTER - 1) + is_before(3 * QUARTER - 1);
        let from = quarters * QUARTER;
        let rest = &self.starts[from..from + QUARTER];
        let before: usize = rest.iter().map(|&its| usize::from(its <= address)).sum();
        from + before
    }

    /// Begins to load the cache line that the search of the block does not read.
    #[inline]
    pub(crate) fn prefetch_rests(&self) {
        prefetch(&self.rests[0]);
    }

    #[inline]
    pub(crate) fn item(&self, i: usize) -> Option<Packed> {
        let start = *self.starts.get(i)?;
        let rest = self.rests[i];
        (start != NONE).then_some(Packed { start, rest })
    }

    /// Adds a range. The block must have room.
    #[inline]
    pub(crate) fn insert(&mut self, i: usize, item: Packed) {
        insert(&mut self.starts, i, item.start);
        insert(&mut self.rests, i, item.rest);
    }

    #[inline]
    pub(crate) fn remove(&mut self, i: usize) {
        remove(&mut self.starts, i, NONE);
        remove(&mut self.rests, i, 0);
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

/// A block of a [`Blocks`]: its address, which stays the same until [`Blocks::give_back`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place(NonNull<Block>);

// SAFETY: a place is only an address. Only `Blocks` dereferences it, and a `Blocks` may be sent and
// shared, because its blocks are plain data that it owns.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

/// All blocks of a map; see the head of this file.
///
/// A map passes a place only to the `Blocks` that returned it, and drops all places that
/// [`give_back`](Self::give_back) replaces. So each place that a method gets is in one of its
/// groups. The safety of this file's `unsafe` code depends on this rule.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    /// The first block of each group, which is a leaked `Box<[Block; GROUP]>`.
    groups: Vec<Place>,
    /// The number of blocks that were ever used.
    len: usize,
    unused: Vec<Place>,
}

impl Index<Place> for Blocks {
    type Output = Block;

    #[inline]
    fn index(&self, Place(block): Place) -> &Block {
        // SAFETY: the block is in a group, which lives as long as `self`. A mutable reference to it
        // would borrow `self` mutably.
        unsafe { block.as_ref() }
    }
}

impl IndexMut<Place> for Blocks {
    #[inline]
    fn index_mut(&mut self, Place(mut block): Place) -> &mut Block {
        // SAFETY: the block is in a group, which lives as long as `self`. Another reference to it
        // would borrow `self`.
        unsafe { block.as_mut() }
    }
}

impl Blocks {
    /// Adds an empty block.
    pub(crate) fn add(&mut self) -> Place {
        if let Some(place) = self.unused.pop() {
            return place;
        }
        let at = self.len % GROUP;
        if at == 0 {
            let group = Box::leak(Box::new([Block::EMPTY; GROUP]));
            self.groups.push(Place(NonNull::from(group).cast()));
        }
        let Place(first) = self.groups[self.len / GROUP];
        self.len += 1;
        // SAFETY: a group has more than `at` blocks.
        Place(unsafe { first.add(at) })
    }

    /// Removes an empty block.
    pub(crate) fn remove(&mut self, place: Place) {
        self.unused.push(place);
    }

    /// Moves the ranges of one block from number `i` on to the end of another one, which must have
    /// room.
    pub(crate) fn move_to(&mut self, from: Place, i: usize, to: Place) {
        let mut other = self[to];
        self[from].move_to(i, &mut other);
        self[to] = other;
    }

    /// Gives back the memory of unused blocks, if few blocks are in use. Moves the blocks at
    /// `places`, which are all blocks in use, and stores their new places.
    pub(crate) fn give_back<'p>(&mut self, places: impl Iterator<Item = &'p mut Place>) {
        if self.len - self.unused.len() > MOVED {
            return;
        }
        let mut used = Self::default();
        for place in places {
            let moved = used.add();
            used[moved] = self[*place];
            *place = moved;
        }
        *self = used;
    }

    /// Returns the number of blocks, used and unused.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        for Place(group) in self.groups.drain(..) {
            let group = group.cast::<[Block; GROUP]>();
            // SAFETY: the group was leaked by `add`, and is freed only here.
            drop(unsafe { Box::from_raw(group.as_ptr()) });
        }
    }
}
