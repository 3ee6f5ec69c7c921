//! [`Table`]: everything that the cache's lock protects.
//!
//! The table has the phase of each slot (`slots.rs`), the indexes, the budget, the order of
//! eviction (`eviction.rs`) and the counters. No method of the table registers, deregisters or
//! calls the monitor. So the table only lists dead entries, or puts them into a batch. `mod.rs`
//! deregisters them later, without the lock.
//!
//! A report only marks its entry (`marks.rs`). A marked entry is still linked, but no lookup may
//! return it. Each method that finds a marked entry in the index unlinks it.
//!
//! There are two indexes, one for revocable and one for retained entries. A *revocable* entry is
//! deregistered when its last guard is dropped. Entries with remote access are revocable if the
//! option `revoke_remote_keys` is set. All other entries are *retained*. A revocable entry serves
//! only lookups with remote access. A guard of another lookup would keep the remote key alive.

use std::ops::Range;

use crate::core::batch::{Batch, PIECE};
use crate::core::budget::Budget;
use crate::core::entry::Entry;
use crate::core::eviction::{Candidate, Eviction, List};
use crate::core::index::Index;
use crate::core::slab::{SPARE, Slab};
use crate::core::slot::{EntryId, Slot};
use crate::core::slots::{Making, Phase, Record, Request, Slots};
use crate::core::uncached::Uncached;
use crate::monitor::Cookie;
use crate::range::VaRange;
use crate::registrar::Access;
#[cfg(feature = "snapshot")]
use crate::snapshot::{EntryState, SnapshotEntry};
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
    /// The number of calls of [`give_back`](Table::give_back).
    returns: u64,
    /// The number of threads that wait for a deregistration.
    pub(crate) waiting: usize,
    /// The number of threads that wait for a registration that another thread is making.
    pub(crate) awaiting: usize,
}

/// Unlinked registrations whose room will become free, and their pinned size. The caller can wait
/// until the registration with this id is gone. The id is `None` if the caller deregisters all of
/// them itself. The id is also `None` if a reader acquired a guard just before the entry was
/// unlinked. That guard may live for long, so no thread should wait for the registration.
pub(crate) type Outgoing = (Option<EntryId>, usize);

/// The place at which [`Table::unlink_overlapping`] goes on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor {
    /// True in the index of revocable entries, which comes second.
    revocable: bool,
    /// The number of the map in the index.
    map: usize,
    /// The entries that start at this address or later are done.
    below: usize,
}

impl Cursor {
    fn new(revocable: bool) -> Self {
        Self {
            revocable,
            map: 0,
            below: usize::MAX,
        }
    }
}

impl Default for Cursor {
    fn default() -> Self {
        Self::new(false)
    }
}

impl<A: Access> Table<A> {
    /// Returns the table of a cache with this budget, for a slab of `capacity` entries.
    pub(crate) fn new(budget: Budget, capacity: usize, page_size: usize) -> Self {
        Self {
            slots: Slots::new(capacity, page_size),
            retained: Index::new(),
            revocable: Index::new(),
            budget,
            eviction: Eviction::new(),
            uncached: Uncached::default(),
            counts: Stats::default(),
            links: 0,
            deregistrations: 0,
            returns: 0,
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
            if !slab.marks.contains(slot) && entry.acquire() {
                return Some((slot, entry, whole));
            }
            // The entry is marked, or its count of references is full (`entry.rs`, point 4). A new
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
    pub(crate) fn reserve<T>(
        &mut self,
        slab: &Slab<T>,
        request: Request<A>,
    ) -> Option<(Slot, Cookie)> {
        let (slot, cookie) = self.slots.reserve(request)?;
        slab.prepare(slot);
        Some((slot, cookie))
    }

    /// Prepares a pending slot for another attempt, and returns the cookie for its next watch.
    pub(crate) fn renew(&mut self, slot: Slot) -> Cookie {
        self.slots.renew(slot)
    }

    /// Tells the index which entry a registration of `bytes` bytes will probably evict, if there is
    /// no room. The next search of the index then searches for that entry as well. Returns the
    /// range of that entry.
    pub(crate) fn expect_eviction<T>(&mut self, slab: &Slab<T>, bytes: usize) -> Option<VaRange> {
        if self.budget.would_hold(bytes, 0, 0) {
            return None;
        }
        let slot = self.eviction.head(List::Live)?;
        let record = self.slots.at(slot);
        let (range, access, revocable) = (record.range, record.access, record.revocable);
        self.index_mut(revocable).expect_removal(range, access);
        // The next miss will probably evict the entry that comes after this one.
        if let Some(next) = self.eviction.after(slot) {
            slab.prefetch(next);
            self.slots.prefetch(next);
            self.eviction.prefetch(next);
        }
        Some(range)
    }

    /// Charges the registration at a pending slot. To make room for it, unlinks marked entries, and
    /// evicts idle ones if that is not enough. Returns false if too few entries are idle. If one
    /// idle entry was enough, stores its slot in `evicted`, which was `None`. The caller must
    /// deregister that entry and further dead entries afterwards
    /// ([`pop_excess`](Self::pop_excess)).
    pub(crate) fn admit<T>(
        &mut self,
        slab: &Slab<T>,
        slot: Slot,
        evicted: &mut Option<Slot>,
    ) -> bool {
        let bytes = self.slots.bytes(slot);
        while evicted.is_none() && !self.budget.would_hold(bytes, 0, 0) {
            if let Some(marked) = self.eviction.head(List::Marked) {
                self.unlink(slab, marked);
                continue;
            }
            // A reader may acquire an entry just before it is evicted. The entry then still takes
            // room, so that the loop evicts another one.
            if self.make_room(slab, bytes, evicted).is_none() {
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

    /// Changes the limits, and evicts idle entries until the limits are kept. The caller must
    /// deregister dead entries afterwards ([`pop_excess`](Self::pop_excess)). The slab has room for
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
        while !self.budget.is_kept()
            && let Some(slot) = self.choose_for_room(slab)
        {
            self.unlink(slab, slot);
        }
    }

    /// Puts an admitted registration into its index, and unlinks the entries that the registration
    /// contains. The caller must publish the entry before it releases the lock.
    pub(crate) fn link<T>(&mut self, slab: &Slab<T>, slot: Slot) {
        let record = self.slots.at(slot);
        let (range, access, revocable) = (record.range, record.access, record.revocable);
        while let Some(smaller) = self.index_mut(revocable).contained(range, access) {
            let marked = slab.marks.contains(smaller);
            self.unlink(slab, smaller);
            self.counts.merges += u64::from(!marked);
        }
        self.index_mut(revocable).insert(range, access, slot);
        self.eviction.push(List::Live, slot);
        self.links += 1;
        self.slots.link(slot);
        self.counts.misses += 1;
    }

    /// Unlinks an entry, and puts it on the list of dead entries if no guard holds it.
    fn unlink<T>(&mut self, slab: &Slab<T>, slot: Slot) {
        self.unlink_to(slab, slot, List::Dead);
    }

    /// Unlinks an entry. If no guard holds it, puts its slot into the batch, whose owner must
    /// deregister it. The batch must have room.
    fn unlink_into<T>(&mut self, slab: &Slab<T>, slot: Slot, batch: &mut Batch) {
        if self.unlink_to(slab, slot, List::Draining) {
            batch.push(slot);
        }
    }

    /// Removes an entry from its index and kills the entry. If no guard holds the entry, puts it on
    /// the list `idle` and returns true. Otherwise the drop of the last guard deregisters it.
    fn unlink_to<T>(&mut self, slab: &Slab<T>, slot: Slot, idle: List) -> bool {
        let record = self.slots.at(slot);
        let (range, access) = (record.range, record.access);
        let (phase, revocable) = (record.phase(), record.revocable);
        let bytes = self.slots.bytes(slot);
        if phase != Phase::Linked {
            return false;
        }
        let Some(entry) = slab.get(slot) else {
            return false;
        };
        self.index_mut(revocable).remove(range, access);
        // SAFETY: the slot is linked, so its entry is live. The phase changes below, so no other
        // call kills this entry.
        let held = !unsafe { entry.kill() };
        // The entry must be killed before its mark is cleared (`marks.rs`, step 3).
        self.counts.invalidations += u64::from(slab.marks.remove(slot));
        self.slots.unlink(slot, held);
        if held {
            self.eviction.move_to(List::Draining, slot);
            self.counts.unreleased += 1;
            self.counts.unreleased_bytes += bytes;
        } else {
            self.eviction.move_to(idle, slot);
            self.budget.leave(bytes);
        }
        !held
    }

    /// Makes a slot vacant, after its registration was deregistered or could not be made. Returns
    /// the range of the registration.
    pub(crate) fn vacate(&mut self, slot: Slot) -> VaRange {
        let (before, bytes) = self.slots.vacate(slot);
        if let Phase::Unlinked { held } = before {
            self.eviction.remove(slot);
            self.deregistrations += 1;
            if held {
                self.counts.unreleased -= 1;
                self.counts.unreleased_bytes -= bytes;
            }
            self.budget.release(bytes, !held);
        }
        self.range(slot)
    }

    /// Adds an uncached registration that is about to be made, and returns its number.
    pub(crate) fn add_uncached(&mut self, range: VaRange) -> u32 {
        self.uncached.add(range)
    }

    /// Counts an uncached registration, after it was made.
    pub(crate) fn uncached_was_made(&mut self) {
        self.counts.misses += 1;
        self.counts.uncached += 1;
        self.uncached.was_made();
    }

    /// Removes an uncached registration that could not be made.
    pub(crate) fn uncached_was_refused(&mut self, number: u32) {
        self.uncached.was_made();
        self.uncached.remove(number);
    }

    /// Removes an uncached registration after it was deregistered.
    pub(crate) fn remove_uncached(&mut self, number: u32) {
        self.uncached.remove(number);
        self.deregistrations += 1;
    }

    /// Returns the number of slots that were ever used.
    pub(crate) fn slots(&self) -> u32 {
        self.slots.ever_used() as u32
    }

    /// Returns true if most of the memory for slots is not needed any more.
    pub(crate) fn is_sparse(&self) -> bool {
        self.slots.is_sparse()
    }

    /// Gives back the memory of the entries at these slots that are vacant. Their hits are kept.
    pub(crate) fn give_back_entries<T>(&mut self, slab: &Slab<T>, slots: Range<u32>) {
        let mut first = slots.start;
        for slot in slots.clone().chain([slots.end]) {
            if slot == slots.end || !self.slots.is_vacant(Slot(slot)) {
                // SAFETY: the entries between are vacant, and the caller holds the lock.
                self.counts.hits += unsafe { slab.give_back(first..slot) };
                first = slot + 1;
            }
        }
        self.returns += 1;
    }

    /// Gives back the memory of the table that is not needed any more. If slots have changed since
    /// [`vacancies`](Self::vacancies) returned `since`, vacant entries may have hits.
    pub(crate) fn give_back<T>(&mut self, slab: &Slab<T>, since: (u64, usize)) {
        let (before, has_changed) = (self.slots(), self.vacancies() != since);
        self.slots.give_back();
        self.eviction.give_back(self.slots.ever_used());
        self.retained.give_back();
        self.revocable.give_back();
        if has_changed {
            self.give_back_entries(slab, self.slots()..before);
        }
        self.returns += 1;
    }

    /// Returns two numbers, one of which changes when a slot becomes vacant or is reserved.
    pub(crate) fn vacancies(&self) -> (u64, usize) {
        self.slots.vacancies()
    }

    /// Returns a version counter. It rises when hits move from the entries to the table, or when
    /// fewer slots count as used.
    pub(crate) fn returns(&self) -> u64 {
        self.returns
    }

    /// Returns the statistics. Most hits are missing, because the entries count them.
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
    /// Handles a report that the memory under a watch has changed. A linked entry is marked, and
    /// must be unlinked later. A pending registration is marked as invalidated, so that it is made
    /// again. Returns the range of the registration. Returns `None` if the slot is in another
    /// phase, or if no slot has a watch with this cookie.
    pub(crate) fn mark<T>(&mut self, slab: &Slab<T>, cookie: Cookie) -> Option<VaRange> {
        let slot = self.slots.watched_by(cookie)?;
        let record = self.slots.at(slot);
        let range = record.range;
        match record.phase() {
            Phase::Pending { .. } => self.slots.invalidate(slot),
            Phase::Linked => self.mark_linked(slab, slot),
            Phase::Vacant | Phase::Unlinked { .. } => return None,
        }
        Some(range)
    }

    fn mark_linked<T>(&mut self, slab: &Slab<T>, slot: Slot) {
        slab.prefetch(slot);
        slab.marks.insert(slot);
        self.eviction.move_to(List::Marked, slot);
    }

    /// Marks all entries, and all pending registrations as invalidated.
    pub(crate) fn mark_all<T>(&mut self, slab: &Slab<T>) {
        self.slots.invalidate_pending(|_| true);
        for list in [List::Live, List::Parked] {
            while let Some(slot) = self.eviction.head(list) {
                self.mark_linked(slab, slot);
            }
        }
    }

    /// Returns true if there are marked entries to unlink.
    pub(crate) fn has_marked(&self) -> bool {
        self.eviction.head(List::Marked).is_some()
    }

    /// Unlinks marked entries and takes dead ones, until the batch is full or no marked and no dead
    /// entry is left. The owner of the batch must deregister its entries.
    pub(crate) fn take_marked_and_dead<T>(&mut self, slab: &Slab<T>, batch: &mut Batch) {
        // Guards hold some marked entries, so the batch alone would not bound the loop.
        for _ in 0..PIECE {
            match self.eviction.head(List::Marked) {
                Some(slot) if !batch.is_full() => self.unlink_into(slab, slot, batch),
                _ => break,
            }
        }
        while self.pop_dead(batch).is_some() {}
    }

    /// Unlinks up to `most` marked entries.
    pub(crate) fn unlink_marked<T>(&mut self, slab: &Slab<T>, most: usize) {
        for _ in 0..most {
            let Some(slot) = self.eviction.head(List::Marked) else {
                return;
            };
            self.unlink(slab, slot);
        }
    }

    /// Marks the pending registrations that overlap `range` as invalidated, so that they are made
    /// again.
    pub(crate) fn invalidate_pending(&mut self, range: VaRange) {
        self.slots.invalidate_pending(|its| its.overlaps(&range));
    }

    /// Unlinks a bounded number of the entries that overlap `range`. Call this method until it
    /// returns `None`, with the cursor that the last call has returned.
    pub(crate) fn unlink_overlapping<T>(
        &mut self,
        slab: &Slab<T>,
        range: VaRange,
        mut cursor: Cursor,
    ) -> Option<Cursor> {
        let mut slots = [Slot(0); PIECE];
        let index = self.index_mut(cursor.revocable);
        let found = index.overlapping_of(&mut cursor.map, range, &mut cursor.below, &mut slots);
        for &slot in &slots[..found] {
            self.unlink(slab, slot);
        }
        if found == 0 {
            if cursor.revocable {
                return None;
            }
            cursor = Cursor::new(true);
        }
        Some(cursor)
    }

    /// Unlinks the entries that cover `range`. Marks the pending registrations that would cover
    /// `range`, so that they are made again.
    pub(crate) fn invalidate_covering<T>(&mut self, slab: &Slab<T>, range: VaRange) {
        let indexes = [&self.retained, &self.revocable];
        let linked = indexes.iter().flat_map(|it| it.overlapping(range));
        let mut linked: Vec<_> = linked.collect();
        linked.retain(|&slot| self.slots.at(slot).range.contains(&range));
        for &slot in &linked {
            let marked = slab.marks.contains(slot);
            self.unlink(slab, slot);
            self.counts.invalidations += u64::from(!marked);
        }
        self.slots.invalidate_pending(|its| its.contains(&range));
    }

    /// Unlinks the entries at the given slots. Marks the pending registrations there, so that they
    /// are made again.
    pub(crate) fn unlink_slots<T>(&mut self, slab: &Slab<T>, slots: Range<u32>) {
        for slot in slots.map(Slot) {
            match self.slots.get(slot).map(Record::phase) {
                Some(Phase::Pending { .. }) => self.slots.invalidate(slot),
                Some(Phase::Linked) => self.unlink(slab, slot),
                Some(Phase::Vacant | Phase::Unlinked { .. }) | None => {}
            }
        }
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

    /// Appends the registrations at the given slots to `to`.
    #[cfg(feature = "snapshot")]
    pub(crate) fn describe_slots<T>(
        &self,
        slab: &Slab<T>,
        slots: Range<u32>,
        to: &mut Vec<SnapshotEntry<A>>,
    ) {
        to.extend(slots.map(Slot).filter_map(|slot| {
            let record = self.slots.get(slot)?;
            let is_in_use = || slab.get(slot).is_some_and(Entry::is_in_use);
            let (state, in_use) = match record.phase() {
                Phase::Vacant => return None,
                Phase::Pending { .. } => (EntryState::Making, true),
                Phase::Linked if slab.marks.contains(slot) => {
                    (EntryState::Invalidated, is_in_use())
                }
                Phase::Linked => (EntryState::Cached, is_in_use()),
                Phase::Unlinked { held } => (EntryState::Leaving, held),
            };
            let access = Some(record.access);
            Some(SnapshotEntry::new(record.range, access, state, in_use))
        }));
    }

    /// Appends the uncached registrations to `to`.
    #[cfg(feature = "snapshot")]
    pub(crate) fn describe_uncached(&self, to: &mut Vec<SnapshotEntry<A>>) {
        let uncached = |range| SnapshotEntry::new(range, None, EntryState::Uncached, true);
        to.extend(self.uncached.ranges().map(uncached));
    }

    /// Returns true if the registration was deregistered.
    pub(crate) fn is_gone(&self, id: EntryId) -> bool {
        match id {
            EntryId::Cached(slot, cookie) => self.slots.is_gone(slot, cookie),
            EntryId::Uncached(number) => !self.uncached.contains(number),
        }
    }

    /// Returns true if the registration is not deregistered yet, and no guard held it when it was
    /// unlinked.
    pub(crate) fn is_idle_and_leaving(&self, id: EntryId) -> bool {
        match id {
            EntryId::Cached(slot, _) => {
                let phase = self.slots.get(slot).map(Record::phase);
                phase == Some(Phase::Unlinked { held: false }) && !self.is_gone(id)
            }
            EntryId::Uncached(_) => false,
        }
    }

    /// Handles the drop of the last guard of a revocable or parked entry, unless another lookup has
    /// acquired the entry meanwhile. A revocable entry is unlinked. A parked entry becomes a
    /// candidate for eviction again, and is evicted if a limit was lowered while it was in use.
    /// The slot is put into the batch if the caller must deregister its entry.
    pub(crate) fn last_guard_dropped<T>(
        &mut self,
        slab: &Slab<T>,
        slot: Slot,
        cookie: Cookie,
        batch: &mut Batch,
    ) {
        let (Some(entry), Some(record)) = (slab.get(slot), self.slots.get(slot)) else {
            return;
        };
        if entry.is_in_use() || record.cookie != cookie || record.phase() != Phase::Linked {
            return;
        }
        if record.revocable {
            self.unlink_into(slab, slot, batch);
        } else if entry.unpark() && !slab.marks.contains(slot) {
            if self.budget.is_kept() {
                self.eviction.move_to(List::Live, slot);
            } else {
                self.counts.evictions += 1;
                self.unlink_into(slab, slot, batch);
            }
        }
    }
}

/// The methods for eviction, reclaim and deferred deregistration.
impl<A: Access> Table<A> {
    /// Evicts idle entries until a new entry of `bytes` bytes fits, once the leaving entries are
    /// gone. If too few entries are idle, returns `None` and evicts nothing.
    fn make_room<T>(
        &mut self,
        slab: &Slab<T>,
        bytes: usize,
        evicted: &mut Option<Slot>,
    ) -> Option<()> {
        // One victim is enough nearly always, and need not be put aside.
        let victim = self.victim(slab)?;
        let freed = self.slots.bytes(victim);
        if self.budget.would_hold(bytes, 1, freed) {
            self.counts.evictions += 1;
            // If the entry was idle, there is room now.
            *evicted = self
                .unlink_to(slab, victim, List::Draining)
                .then_some(victim);
            return Some(());
        }
        self.choose_and_evict(slab, bytes)
    }

    /// Does the same as [`make_room`](Self::make_room), if one victim is not enough.
    #[cold]
    fn choose_and_evict<T>(&mut self, slab: &Slab<T>, bytes: usize) -> Option<()> {
        let (mut chosen, mut freed) = (0, 0);
        while !self.budget.would_hold(bytes, chosen, freed) {
            let Some(slot) = self.victim(slab) else {
                self.eviction.put_back();
                return None;
            };
            chosen += 1;
            freed += self.slots.bytes(slot);
            self.eviction.move_to(List::Chosen, slot);
        }
        while let Some(slot) = self.eviction.head(List::Chosen) {
            self.counts.evictions += 1;
            self.unlink(slab, slot);
        }
        Some(())
    }

    /// Returns the entry that the caller should unlink to make room: a marked entry or, if there is
    /// none, the idle entry that is next in the order of eviction. Counts the latter as evicted.
    fn choose_for_room<T>(&mut self, slab: &Slab<T>) -> Option<Slot> {
        let marked = self.eviction.head(List::Marked);
        if marked.is_some() {
            return marked;
        }
        let slot = self.victim(slab)?;
        self.counts.evictions += 1;
        Some(slot)
    }

    /// Unlinks a marked entry. If there is none, evicts an idle one. Returns its id and the bytes
    /// that it pins. If no guard holds the entry, its slot is put into the batch, whose owner must
    /// deregister it.
    pub(crate) fn evict<T>(&mut self, slab: &Slab<T>, batch: &mut Batch) -> Option<Outgoing> {
        let slot = self.choose_for_room(slab)?;
        self.unlink_into(slab, slot, batch);
        Some((self.unheld(slot), self.slots.bytes(slot)))
    }

    /// Chooses registrations whose room a new one of `bytes` bytes can take: dead entries, or else
    /// one entry that is unlinked for it, or else one that another thread is deregistering. The
    /// calling thread must deregister the entries that are put into the empty batch.
    pub(crate) fn make_way<T>(
        &mut self,
        slab: &Slab<T>,
        bytes: usize,
        batch: &mut Batch,
    ) -> Option<Outgoing> {
        let mut freed = 0;
        while freed < bytes
            && let Some(slot) = self.pop_dead(batch)
        {
            freed += self.slots.bytes(slot);
        }
        if !batch.is_empty() {
            return Some((None, freed));
        }
        if let Some(outgoing) = self.evict(slab, batch) {
            return Some(outgoing);
        }
        let mut draining = self.eviction.all(List::Draining);
        draining.find_map(|slot| {
            let id = self.unheld(slot)?;
            Some((Some(id), self.slots.bytes(slot)))
        })
    }

    /// Returns the id of an unlinked entry, if no guard held it when it was unlinked.
    fn unheld(&self, slot: Slot) -> Option<EntryId> {
        let unheld = self.slots.at(slot).phase() == Phase::Unlinked { held: false };
        unheld.then(|| self.slots.id(slot))
    }

    /// Returns the idle entry that is next in the order of eviction.
    fn victim<T>(&mut self, slab: &Slab<T>) -> Option<Slot> {
        self.eviction.victim(|slot| match slab.get(slot) {
            None => Candidate::InUse,
            Some(entry) if entry.is_in_use() && entry.park() => Candidate::InUse,
            Some(entry) if entry.was_used() => Candidate::Used,
            Some(_) => Candidate::Idle,
        })
    }

    /// Returns the range of the registration at a slot.
    pub(crate) fn range(&self, slot: Slot) -> VaRange {
        self.slots.at(slot).range
    }

    /// Returns true if there are dead entries to deregister.
    pub(crate) fn has_dead(&self) -> bool {
        self.eviction.head(List::Dead).is_some()
    }

    /// Moves a dead entry into the batch, if there is a dead entry and room in the batch. The owner
    /// of the batch must deregister the entry.
    pub(crate) fn pop_dead(&mut self, batch: &mut Batch) -> Option<Slot> {
        if batch.is_full() {
            return None;
        }
        let slot = self.eviction.head(List::Dead)?;
        self.eviction.move_to(List::Draining, slot);
        batch.push(slot);
        Some(slot)
    }

    /// Moves dead entries into the batch, until its entries are as many as exceed the limits of the
    /// cache, or until it is full.
    pub(crate) fn pop_excess(&mut self, batch: &mut Batch) {
        if !self.has_dead() {
            return;
        }
        let mut gone = batch.len();
        let mut freed = batch.iter().map(|&slot| self.slots.bytes(slot)).sum();
        while self.budget.exceeds(gone, freed)
            && let Some(slot) = self.pop_dead(batch)
        {
            gone += 1;
            freed += self.slots.bytes(slot);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_entry_without_references_to_grant_makes_way_for_another_that_serves() {
        let slab: Slab<u8> = Slab::new(8, 0).unwrap();
        let mut table: Table<()> = Table::new(Budget::new(8, 1 << 20, None), 8, 1);
        let range =
            |s: usize, e: usize| VaRange::new(std::ptr::without_provenance(s), e - s).unwrap();
        let enter = |table: &mut Table<()>, range| {
            let found = table.find(&slab, range, (), false);
            assert!(found.is_none());
            let request = Request {
                range,
                access: (),
                revocable: false,
            };
            let (slot, _) = table.reserve(&slab, request).unwrap();
            assert!(table.admit(&slab, slot, &mut None));
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
