//! [`Index`]: finds the entry that serves an address range.
//!
//! The index has one map, ordered by address, for each access in use. Few accesses are in use, so a
//! search tries each map. Within one map *no range contains another*. Before a range is inserted,
//! all ranges that it contains are removed. So the ranges of a map have the same order by start and
//! by end. Of all ranges that start at or before an address, the last one also has the highest end.
//! So one search for that last range shows whether any range contains a given one. No interval tree
//! is needed.

use crate::core::range_map::{Item, RangeMap};
use crate::core::slot::Slot;
use crate::range::VaRange;
use crate::registrar::Access;

/// The index of linked entries; see the head of this file.
#[derive(Debug)]
pub(crate) struct Index<A> {
    /// One map for each access that was ever used.
    maps: Vec<(A, RangeMap)>,
}

impl<A: Access> Index<A> {
    pub(crate) fn new() -> Self {
        Self { maps: Vec::new() }
    }

    /// Returns an entry that serves `range` with `access`.
    pub(crate) fn find(&mut self, range: VaRange, access: A) -> Option<Slot> {
        let mut maps = self.maps.iter_mut().filter(|(a, _)| a.serves(access));
        maps.find_map(|(_, map)| {
            let item = map.last_to(range.start())?;
            (item.end >= range.end()).then_some(item.slot)
        })
    }

    /// Returns an entry that a new entry of `range` and `access` would make superfluous. The caller
    /// must remove all such entries before it inserts the new one.
    pub(crate) fn contained(&mut self, range: VaRange, access: A) -> Option<Slot> {
        let mut maps = self.maps.iter_mut().filter(|(a, _)| access.serves(*a));
        maps.find_map(|(_, map)| {
            let item = map.first_between(range.start(), range.end())?;
            (item.end <= range.end()).then_some(item.slot)
        })
    }

    /// Returns the entries that share a byte with `range`.
    pub(crate) fn overlapping(&self, range: VaRange) -> impl Iterator<Item = Slot> {
        let maps = self.maps.iter();
        maps.flat_map(move |(_, map)| between(map, range.start() + 1, range.end() - 1))
    }

    /// Finds entries that share a byte with `range`, in map number `map` or a later one. Writes the
    /// slots of the first of them into `slots`, from high to low addresses, and returns their
    /// number. A further call goes on there. `below` is above the starts of the entries that are
    /// left in the map, and the first call passes `usize::MAX`. The result is 0 if no entry is
    /// left.
    pub(crate) fn overlapping_of(
        &self,
        map: &mut usize,
        range: VaRange,
        below: &mut usize,
        slots: &mut [Slot],
    ) -> usize {
        while let Some((_, its)) = self.maps.get(*map) {
            let last = (*below).min(range.end()).saturating_sub(1);
            let items = its
                .back_from(last)
                .take_while(|item| item.end > range.start());
            let mut found = 0;
            for (place, item) in slots.iter_mut().zip(items) {
                *place = item.slot;
                *below = item.start;
                found += 1;
            }
            if found > 0 {
                return found;
            }
            *map += 1;
            *below = usize::MAX;
        }
        0
    }

    /// Returns the entries of exactly this access that share a byte with `range` or are adjacent to
    /// it.
    pub(crate) fn neighbours(&self, range: VaRange, access: A) -> impl Iterator<Item = Slot> {
        let maps = self.maps.iter().filter(move |(a, _)| *a == access);
        maps.flat_map(move |(_, map)| between(map, range.start(), range.end()))
    }

    /// Adds an entry. Before the call, neither [`find`](Self::find) nor
    /// [`contained`](Self::contained) may return an entry for this range and access.
    pub(crate) fn insert(&mut self, range: VaRange, access: A, slot: Slot) {
        debug_assert!(self.find(range, access).is_none());
        debug_assert!(self.contained(range, access).is_none());
        let i = self
            .maps
            .iter()
            .position(|(a, _)| *a == access)
            .unwrap_or_else(|| {
                self.maps.push((access, RangeMap::default()));
                self.maps.len() - 1
            });
        self.maps[i].1.insert(range, slot);
    }

    /// Notes that the entry of this range and access will probably be removed soon, so that the
    /// next search searches for it too.
    pub(crate) fn expect_removal(&mut self, range: VaRange, access: A) {
        if let Some((_, map)) = self.maps.iter_mut().find(|(a, _)| *a == access) {
            map.expect_removal(range.start());
        }
    }

    /// Removes the entry of this range and access.
    pub(crate) fn remove(&mut self, range: VaRange, access: A) {
        if let Some((_, map)) = self.maps.iter_mut().find(|(a, _)| *a == access) {
            map.remove(range.start());
        }
    }

    /// Gives back memory that is not needed any more.
    pub(crate) fn give_back(&mut self) {
        for (_, map) in &mut self.maps {
            map.give_back();
        }
    }
}

/// Returns the entries that end at `first` or later and start at `last` or earlier.
fn between(map: &RangeMap, first: usize, last: usize) -> impl Iterator<Item = Slot> {
    // Within a map, ranges that are sorted by start are also sorted by end. So these entries are
    // neighbours in the map, and an iteration backwards from `last` finds them.
    map.back_from(last)
        .take_while(move |item: &Item| item.end >= first)
        .map(|item| item.slot)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::ptr;

    use intervaltree::IntervalTree;
    use proptest::prelude::*;

    use super::*;

    /// An access that is a set of bits. A superset serves a subset.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Bits(u8);

    impl Access for Bits {
        fn serves(self, wanted: Self) -> bool {
            self.0 & wanted.0 == wanted.0
        }
    }

    fn range(start: usize, len: usize) -> VaRange {
        VaRange::new(ptr::without_provenance(start), len).expect("neither empty nor wrapping")
    }

    fn ranges() -> impl Strategy<Value = (VaRange, Bits)> {
        (1..60_usize, 1..20_usize, 0..4_u8).prop_map(|(s, l, a)| (range(s, l), Bits(a)))
    }

    proptest! {
        /// The reference is an interval tree of the same entries, which finds all overlapping
        /// ranges.
        #[test]
        fn finds_what_contains_overlaps_or_touches_a_range(
            entries in prop::collection::vec(ranges(), 0..40),
            removed in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
            queries in prop::collection::vec(ranges(), 1..40),
        ) {
            let mut index = Index::new();
            let mut model: Vec<(VaRange, Bits, Slot)> = Vec::new();
            for (i, &(r, a)) in entries.iter().enumerate() {
                if index.find(r, a).is_some() {
                    continue;
                }
                let mut gone = Vec::new();
                while let Some(slot) = index.contained(r, a) {
                    let &(r, a, _) = model.iter().find(|e| e.2 == slot).unwrap();
                    index.remove(r, a);
                    gone.push(slot);
                }
                let expected: Vec<_> = model
                    .iter()
                    .filter(|e| r.contains(&e.0) && a.serves(e.1))
                    .map(|e| e.2)
                    .collect();
                prop_assert_eq!(gone.len(), expected.len());
                prop_assert!(expected.iter().all(|slot| gone.contains(slot)));
                model.retain(|e| !gone.contains(&e.2));
                let slot = Slot(i as u32);
                index.insert(r, a, slot);
                model.push((r, a, slot));
            }
            for which in removed {
                if !model.is_empty() {
                    let (r, a, _) = model.swap_remove(which.index(model.len()));
                    index.remove(r, a);
                }
            }
            let tree: IntervalTree<usize, (VaRange, Bits, Slot)> =
                model.iter().map(|&e| (e.0.start()..e.0.end(), e)).collect();
            for (r, a) in queries {
                let candidates: Vec<_> = tree
                    .query(r.start()..r.end())
                    .map(|e| e.value)
                    .filter(|e| e.0.contains(&r) && e.1.serves(a))
                    .map(|e| e.2)
                    .collect();
                match index.find(r, a) {
                    Some(slot) => prop_assert!(candidates.contains(&slot)),
                    None => prop_assert!(candidates.is_empty()),
                }
                let sorted = |slots: &mut dyn Iterator<Item = Slot>| {
                    let mut slots: Vec<_> = slots.collect();
                    slots.sort_unstable();
                    slots
                };
                let overlapping = &mut tree.query(r.start()..r.end()).map(|e| e.value.2);
                prop_assert_eq!(sorted(&mut index.overlapping(r)), sorted(overlapping));
                let near = tree.query(r.start() - 1..r.end() + 1).map(|e| e.value);
                let neighbours = &mut near.filter(|e| e.1 == a).map(|e| e.2);
                prop_assert_eq!(sorted(&mut index.neighbours(r, a)), sorted(neighbours));
            }
        }
    }
}
