//! [`Table`]: everything that the cache's lock protects.
//!
//! The table has the phase of each slot (`slots.rs`), the indexes, the budget, the order of
//! eviction (`eviction.rs`) and the counters. No method of the table registers, deregisters or
//! calls the monitor. So the table only lists dead entries. `mod.rs` deregisters them later,
//! without the lock.
//!
//! There are two indexes, one for revocable and one for retained entries. A *revocable* entry is
//! deregistered when its last guard is dropped. Entries with remote access are revocable if the
//! option `revoke_remote_keys` is set. All other entries are *retained*. A revocable entry serves
//! only lookups with remote access. A guard of another lookup would keep the remote key alive.

use crate::core::budget::Budget;
use crate::core::entry::Entry;
use crate::core::eviction::{Eviction, List};
use crate::core::index::Index;
use crate::core::slab::{EntryId, SPARE, Slab, Slot};
use crate::core::slots::{Making, Phase, Request, Slots};
use crate::core::uncached::Uncached;
use crate::monitor::Cookie;
use crate::range::VaRange;
use crate::registrar::Access;
use crate::stats::Stats;

/// The state that the cache's lock protects; see the head of this file.
#[derive(Debug)]
pub(crate) struct Table<A> {
    slots: Slots<A>,
    retained: Index<A>,
    revocable: Index<A>,
    budget: Budget,
    eviction: Eviction,
    uncached: Uncached,
    /// The counters and the totals of unreleased registrations.
    pub(crate) counts: Stats,
    links: u64,
    deregistrations: u64,
    /// The number of threads that wait for a deregistration.
    pub(crate) waiting: usize,
    /// The number of threads that wait for a registration that another thread is making.
    pub(crate) awaiting: usize,
}

/// An unlinked registration whose room will become free, and its pinned size. The caller can wait
/// until the registration with this id is gone. The id is `None` if a reader acquired a guard just
/// before the entry was unlinked. That guard may live for long, so no thread should wait for the
/// registration.
pub(crate) type Outgoing = (Option<EntryId>, usize);

impl<A: Access> Table<A> {
    /// Returns the table of a cache with this budget, for a slab of `capacity` entries.
    pub(crate) fn new(budget: Budget, capacity: usize) -> Self {
        Self {
            slots: Slots::new(capacity),
            retained: Index::new(),
            revocable: Index::new(),
            budget,
            eviction: Eviction::new(),
            uncached: Uncached::default(),
            counts: Stats::default(),
            links: 0,
            deregistrations: 0,
            waiting: 0,
            awaiting: 0,
        }
    }

    /// Returns true if an empty cache could hold a registration of `bytes` bytes.
    pub(crate) fn could_hold(&self, bytes: usize) -> bool {
        self.budget.could_hold(bytes)
    }

    /// Returns a version counter, which rises when a registration is linked. While the counter is
    /// unchanged, a range that a search did not find is still not in the index.
    pub(crate) fn link_version(&self) -> u64 {
        self.links
    }

    /// Returns a version counter, which rises when a registration is made or deregistered. Assume
    /// that the device had no room for a registration. While the counter is unchanged, a retry
    /// would fail again.
    pub(crate) fn room_version(&self) -> u64 {
        self.taken_version() + self.deregistrations
    }

    /// Returns a version counter, which rises when a registration has taken room on the device.
    pub(crate) fn taken_version(&self) -> u64 {
        self.links + self.counts.uncached
    }

    /// Returns the number of registrations that are being made now. Each of them may have taken
    /// room on the device already.
    pub(crate) fn in_the_making(&self) -> usize {
        self.slots.pending() + self.uncached.in_the_making()
    }

    /// Returns a registration in the making that will serve the request, and the bytes that it
    /// pins.
    pub(crate) fn being_made(
        &self,
        range: VaRange,
        access: A,
        revocable: bool,
    ) -> Option<(Making, usize)> {
        self.slots.being_made(range, access, revocable)
    }

    /// Returns true if the registration is still being made.
    pub(crate) fn is_pending(&self, making: Making) -> bool {
        self.slots.is_pending(making)
    }

    fn index_mut(&mut self, revocable: bool) -> &mut Index<A> {
        if revocable {
            &mut self.revocable
        } else {
            &mut self.retained
        }
    }

    /// Returns an entry that serves `range` with `access`, and the range of the entry. The caller
    /// owns a reference to the entry.
    pub(crate) fn find<'s, T>(
        &mut self,
        slab: &'s Slab<T>,
        range: VaRange,
        access: A,
        revocable: bool,
    ) -> Option<(Slot, &'s Entry<T>, VaRange)> {
        loop {
            let slot = self.index_mut(revocable).find(range, access)?;
            let record = self.slots.at(slot);
            // The record serves the request unless the implementation of `Access` breaks its
            // contract. This check keeps such an error from returning a wrong registration.
            if !(record.range.contains(&range) && record.access.serves(access)) {
                return None;
            }
            let whole = record.range;
            let entry = slab.get(slot)?;
            if entry.acquire() {
                return Some((slot, entry, whole));
            }
            // The entry is live, but its count of references is full (`entry.rs`, point 4). A new
            // registration serves the lookup in its place.
            self.unlink(slab, slot);
        }
    }

    /// Returns the ranges registered for `access` that overlap `range` or are adjacent to it.
    pub(crate) fn neighbours(&self, range: VaRange, access: A) -> impl Iterator<Item = VaRange> {
        let slots = self.retained.neighbours(range, access);
        slots.map(|slot| self.slots.at(slot).range)
    }

    /// Reserves a slot for a registration, if a slot is vacant.
    pub(crate) fn reserve(&mut self, request: Request<A>) -> Option<(Slot, Cookie)> {
        self.slots.reserve(request)
    }

    /// Prepares a pending slot for another attempt, and returns the cookie for its next watch.
    pub(crate) fn renew(&mut self, slot: Slot) -> Cookie {
        self.slots.renew(slot)
    }

    /// Charges the registration at a pending slot. Evicts idle entries to make room for it. If too
    /// few entries are idle, returns false.
    pub(crate) fn admit<T>(&mut self, slab: &Slab<T>, slot: Slot) -> bool {
        let bytes = self.slots.at(slot).bytes;
        while !self.budget.would_hold(bytes, 0, 0) {
            // A reader may acquire an entry just before it is evicted. The entry then still takes
            // room, so that the loop evicts another one.
            if self.make_room(slab, bytes).is_none() {
                return false;
            }
        }
        self.budget.charge(bytes);
        true
    }

    /// Returns true if the pending slot is marked as invalidated, because its memory has changed.
    pub(crate) fn was_invalidated(&self, slot: Slot) -> bool {
        self.slots.was_invalidated(slot)
    }

    /// Changes the limits, and evicts idle entries until the limits are kept. The slab has room for
    /// no more entries than it was made for.
    pub(crate) fn set_limits<T>(
        &mut self,
        slab: &Slab<T>,
        max_entries: Option<usize>,
        max_bytes: Option<usize>,
    ) {
        let most = self.slots.capacity() - SPARE as usize;
        let max_entries = max_entries.map(|it| it.min(most));
        self.budget.set_limits(max_entries, max_bytes);
        while !self.budget.is_kept() && self.evict(slab).is_some() {}
    }

    /// Puts an admitted registration into its index, and unlinks the entries that the registration
    /// contains. The caller must publish the entry before it releases the lock.
    pub(crate) fn link<T>(&mut self, slab: &Slab<T>, slot: Slot) {
        let record = self.slots.at(slot);
        let (range, access, revocable) = (record.range, record.access, record.revocable);
        while let Some(smaller) = self.index_mut(revocable).contained(range, access) {
            self.unlink(slab, smaller);
            self.counts.merges += 1;
        }
        self.index_mut(revocable).insert(range, access, slot);
        self.eviction.push(List::Live, slot);
        self.links += 1;
        self.slots.link(slot);
        self.counts.misses += 1;
    }

    /// Removes an entry from its index and kills the entry. Returns false if the entry is not
    /// linked. An entry that no guard holds is put on the list of dead entries. Otherwise the drop
    /// of the last guard deregisters the entry.
    fn unlink<T>(&mut self, slab: &Slab<T>, slot: Slot) -> bool {
        let record = self.slots.at(slot);
        let (range, access, bytes) = (record.range, record.access, record.bytes);
        let (phase, revocable) = (record.phase(), record.revocable);
        if phase != Phase::Linked {
            return false;
        }
        let Some(entry) = slab.get(slot) else {
            return false;
        };
        self.index_mut(revocable).remove(range, access);
        self.eviction.remove(List::Live, slot);
        // SAFETY: the slot is linked, so its entry is live. The phase changes below, so no other
        // call kills this entry.
        let held = !unsafe { entry.kill() };
        self.slots.unlink(slot, held);
        if held {
            self.eviction.push(List::Draining, slot);
            self.counts.unreleased += 1;
            self.counts.unreleased_bytes += bytes;
        } else {
            self.eviction.push(List::Dead, slot);
            self.budget.leave(bytes);
        }
        true
    }

    /// Makes a slot vacant, after its registration was deregistered or could not be made.
    pub(crate) fn vacate(&mut self, slot: Slot) {
        let (before, bytes) = self.slots.vacate(slot);
        if let Phase::Unlinked { held } = before {
            self.eviction.remove(List::Draining, slot);
            self.deregistrations += 1;
            if held {
                self.counts.unreleased -= 1;
                self.counts.unreleased_bytes -= bytes;
            }
            self.budget.release(bytes, !held);
        }
    }

    /// Adds an uncached registration that is about to be made, and returns its number.
    pub(crate) fn add_uncached(&mut self, range: VaRange) -> u64 {
        self.uncached.add(range)
    }

    /// Counts an uncached registration, after it was made.
    pub(crate) fn uncached_was_made(&mut self) {
        self.counts.misses += 1;
        self.counts.uncached += 1;
        self.uncached.was_made();
    }

    /// Removes an uncached registration that could not be made.
    pub(crate) fn uncached_was_refused(&mut self, number: u64) {
        self.uncached.was_made();
        self.uncached.remove(number);
    }

    /// Removes an uncached registration after it was deregistered.
    pub(crate) fn remove_uncached(&mut self, number: u64) {
        self.uncached.remove(number);
        self.deregistrations += 1;
    }

    /// Returns the number of slots that were ever used.
    pub(crate) fn slots(&self) -> u32 {
        self.slots.ever_used() as u32
    }

    /// Returns the statistics without the hits. The entries count the hits.
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            entries: self.slots.in_use(),
            bytes: self.budget.bytes() + self.slots.pending_bytes(),
            ..self.counts
        }
    }
}

/// The methods for invalidation.
impl<A: Access> Table<A> {
    /// Handles a report that the memory under a watch has changed. A linked entry is unlinked. A
    /// pending registration is marked, so that it is made again. Returns false if the slot is in
    /// another phase, or if no slot has a watch with this cookie.
    pub(crate) fn invalidate<T>(&mut self, slab: &Slab<T>, cookie: Cookie) -> bool {
        let Some(slot) = self.slots.watched_by(cookie) else {
            return false;
        };
        match self.slots.at(slot).phase() {
            Phase::Pending { .. } => {
                self.slots.invalidate(slot);
                true
            }
            Phase::Linked => {
                self.unlink(slab, slot);
                self.counts.invalidations += 1;
                true
            }
            Phase::Vacant | Phase::Unlinked { .. } => false,
        }
    }

    /// Unlinks the entries that overlap `range`. Marks the pending registrations that overlap it,
    /// so that they are made again. Returns the ids of all overlapping registrations that are not
    /// deregistered yet.
    pub(crate) fn invalidate_overlapping<T>(
        &mut self,
        slab: &Slab<T>,
        range: VaRange,
    ) -> Vec<EntryId> {
        self.unlink_overlapping(slab, range, |_| true);
        self.outstanding(|its| its.overlaps(&range))
    }

    /// Unlinks the entries that cover `range`. Marks the pending registrations that would cover
    /// `range`, so that they are made again.
    pub(crate) fn invalidate_covering<T>(&mut self, slab: &Slab<T>, range: VaRange) {
        let unlinked = self.unlink_overlapping(slab, range, |its| its.contains(&range));
        self.counts.invalidations += unlinked;
    }

    /// Unlinks the entries whose ranges overlap `range`, if `meant` returns true for them. Marks
    /// the pending registrations with such ranges, so that they are made again. Returns the number
    /// of entries unlinked.
    fn unlink_overlapping<T>(
        &mut self,
        slab: &Slab<T>,
        range: VaRange,
        meant: impl Fn(&VaRange) -> bool,
    ) -> u64 {
        let indexes = [&self.retained, &self.revocable];
        let linked = indexes.iter().flat_map(|it| it.overlapping(range));
        let mut linked: Vec<_> = linked.collect();
        linked.retain(|&slot| meant(&self.slots.at(slot).range));
        for &slot in &linked {
            self.unlink(slab, slot);
        }
        let pending = |its: &VaRange| its.overlaps(&range) && meant(its);
        self.slots.invalidate_pending(pending);
        linked.len() as u64
    }

    /// Unlinks all entries. Marks all pending registrations, so that they are made again.
    pub(crate) fn unlink_all<T>(&mut self, slab: &Slab<T>) {
        self.slots.invalidate_pending(|_| true);
        while let Some(slot) = self.eviction.head(List::Live)
            && self.unlink(slab, slot)
        {}
    }

    /// Returns the registrations that still exist although no later lookup returns them, if `meant`
    /// returns true for their ranges. Such registrations are dead, draining, uncached, or pending
    /// and invalidated.
    pub(crate) fn outstanding(&self, meant: impl Fn(&VaRange) -> bool) -> Vec<EntryId> {
        let dead = self.eviction.all(List::Dead);
        let draining = self.eviction.all(List::Draining);
        let slots = dead.chain(draining).chain(self.slots.invalidated());
        slots
            .filter(|&slot| meant(&self.slots.at(slot).range))
            .map(|slot| self.slots.id(slot))
            .chain(self.uncached.ids(&meant))
            .collect()
    }

    /// Returns true if the registration was deregistered.
    pub(crate) fn is_gone(&self, id: EntryId) -> bool {
        match id {
            EntryId::Cached(slot, cookie) => self.slots.is_gone(slot, cookie),
            EntryId::Uncached(number) => !self.uncached.contains(number),
        }
    }

    /// Unlinks a revocable entry after the drop of its last guard, unless another lookup has
    /// acquired the entry meanwhile.
    pub(crate) fn revoke<T>(&mut self, slab: &Slab<T>, slot: Slot, cookie: Cookie) {
        let idle = slab.get(slot).is_some_and(|entry| !entry.is_in_use());
        if idle && self.slots.at(slot).cookie == cookie {
            self.unlink(slab, slot);
        }
    }
}

/// The methods for eviction, reclaim and deferred deregistration.
impl<A: Access> Table<A> {
    /// Evicts idle entries until a new entry of `bytes` bytes fits. If too few entries are idle,
    /// returns `None` and evicts nothing.
    pub(crate) fn make_room<T>(&mut self, slab: &Slab<T>, bytes: usize) -> Option<()> {
        let mut victims = Vec::new();
        let mut freed = 0;
        while !self.budget.would_hold(bytes, victims.len(), freed) {
            let Some(slot) = self.victim(slab) else {
                for slot in victims.into_iter().rev() {
                    self.eviction.put_back(slot);
                }
                return None;
            };
            freed += self.slots.at(slot).bytes;
            victims.push(slot);
        }
        for slot in victims {
            self.evict_victim(slab, slot);
        }
        Some(())
    }

    /// Evicts the idle entry that is next in the order of eviction.
    pub(crate) fn evict<T>(&mut self, slab: &Slab<T>) -> Option<Outgoing> {
        let slot = self.victim(slab)?;
        self.evict_victim(slab, slot);
        Some((self.unheld(slot), self.slots.at(slot).bytes))
    }

    /// Returns an unlinked entry that no guard holds. A thread is deregistering the entry, or will
    /// do so soon.
    pub(crate) fn any_outgoing(&self) -> Option<Outgoing> {
        let dead = self.eviction.all(List::Dead);
        let mut unlinked = dead.chain(self.eviction.all(List::Draining));
        unlinked.find_map(|slot| {
            let id = self.unheld(slot)?;
            Some((Some(id), self.slots.at(slot).bytes))
        })
    }

    /// Returns the id of an unlinked entry, if no guard held it when it was unlinked.
    fn unheld(&self, slot: Slot) -> Option<EntryId> {
        let unheld = self.slots.at(slot).phase() == Phase::Unlinked { held: false };
        unheld.then(|| self.slots.id(slot))
    }

    fn evict_victim<T>(&mut self, slab: &Slab<T>, slot: Slot) {
        self.eviction.put_back(slot);
        self.unlink(slab, slot);
        self.counts.evictions += 1;
    }

    /// Removes the idle entry that is next in the order of eviction from the list of live entries,
    /// and returns its slot.
    fn victim<T>(&mut self, slab: &Slab<T>) -> Option<Slot> {
        self.eviction.victim(|slot| {
            let entry = slab.get(slot);
            entry.is_some_and(|entry| !entry.is_in_use() && !entry.was_used())
        })
    }

    /// Returns true if there are dead entries to deregister.
    pub(crate) fn has_dead(&self) -> bool {
        self.eviction.head(List::Dead).is_some()
    }

    /// Removes an entry from the list of dead entries. The entry is draining from now on. The
    /// caller must take the content out of the entry and deregister the registration.
    pub(crate) fn pop_dead(&mut self) -> Option<Slot> {
        let slot = self.eviction.head(List::Dead)?;
        self.eviction.remove(List::Dead, slot);
        self.eviction.push(List::Draining, slot);
        Some(slot)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_entry_without_references_to_grant_makes_way_for_another_that_serves() {
        let slab: Slab<u8> = Slab::new(8).unwrap();
        let mut table: Table<()> = Table::new(Budget::new(8, 1 << 20, None), 8);
        let range =
            |s: usize, e: usize| VaRange::new(std::ptr::without_provenance(s), e - s).unwrap();
        let enter = |table: &mut Table<()>, range| {
            let found = table.find(&slab, range, (), false);
            assert!(found.is_none());
            let request = Request {
                range,
                access: (),
                revocable: false,
                bytes: 1,
            };
            let (slot, _) = table.reserve(request).unwrap();
            assert!(table.admit(&slab, slot));
            table.link(&slab, slot);
            // SAFETY: the slot is reserved, so its entry is vacant and no other thread fills it.
            unsafe { slab.get(slot).unwrap().publish(0, false) };
            slot
        };
        let a = enter(&mut table, range(10, 20));
        let b = enter(&mut table, range(12, 22));
        slab.get(b).unwrap().saturate();
        let (found, ..) = table.find(&slab, range(13, 19), (), false).unwrap();
        assert_eq!(found, a);
    }
}
