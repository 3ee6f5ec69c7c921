//! [`Pile`]: records that stay at their places, and that are named by these places.
//!
//! A place is used again after its record was removed. A pile gives memory back after most records
//! have been removed, but only the memory behind the last record that is left.

use slab::Slab;

/// Records that stay at their places; see the head of this file.
#[derive(Debug)]
pub(super) struct Pile<T> {
    slab: Slab<T>,
    /// The next attempt to give memory back comes when so few records are left. An attempt may pass
    /// over all places. So each attempt waits until half of the records that the last attempt met
    /// are removed.
    shrink_at: usize,
}

impl<T> Pile<T> {
    /// The maximum number of records. The highest bit of each place is 0.
    pub(super) const MAX: usize = i32::MAX as usize;

    pub(super) fn new() -> Self {
        Self {
            slab: Slab::new(),
            shrink_at: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(super) fn get(&self, at: u32) -> Option<&T> {
        self.slab.get(at as usize)
    }

    pub(super) fn get_mut(&mut self, at: u32) -> Option<&mut T> {
        self.slab.get_mut(at as usize)
    }

    /// Adds a record. Returns its place, or `None` if there is no room.
    pub(super) fn add(&mut self, record: T) -> Option<u32> {
        if self.len() >= Self::MAX {
            return None;
        }
        // The cast loses no bits, because the slab uses a new place only if no other one is vacant.
        let at = self.slab.insert(record) as u32;
        self.shrink_at = self.shrink_at.max(self.len() / 4);
        Some(at)
    }

    pub(super) fn remove(&mut self, at: u32) -> Option<T> {
        let removed = self.slab.try_remove(at as usize)?;
        if self.len() <= self.shrink_at {
            self.slab.shrink_to_fit();
            self.shrink_at = self.len() / 2;
        }
        Some(removed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_when_three_quarters_are_removed() {
        let mut pile = Pile::new();
        let places: Vec<_> = (0..1000).map(|i| pile.add(i).unwrap()).collect();
        for &at in places[250..].iter().rev() {
            assert_eq!(pile.remove(at), Some(at as usize));
        }
        assert_eq!((pile.len(), pile.slab.capacity()), (250, 250));
        assert!((0..250).all(|at| pile.get(at) == Some(&(at as usize))));
    }

    #[test]
    fn no_memory_is_kept_for_records_that_are_all_removed() {
        let mut pile = Pile::new();
        let places: Vec<_> = (0..1000).map(|i| pile.add(i).unwrap()).collect();
        for at in places {
            assert!(pile.remove(at).is_some());
            assert!(pile.remove(at).is_none());
        }
        assert_eq!(pile.slab.capacity(), 0);
    }
}
